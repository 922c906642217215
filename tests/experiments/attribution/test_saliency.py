"""Saliency as it is trained on: against loops over single images, captum and closed forms; modes, regions, bad input."""

from __future__ import annotations

import captum.attr
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.attribution.deeplift import deeplift
from experiments.attribution.saliency import PENALTIES, SALIENCY, check_saliency, outside, penalty, saliency
from experiments.networks.base import Network
from experiments.networks.registry import NETWORKS, build_network
from experiments.networks.small import SmallCNN
from mechanisms.runs.files import RunError
from tests.errors import naming

ROWS, CLASSES, SHAPE = 6, 3, (3, 16, 16)
every = pytest.mark.parametrize("name", SALIENCY)
every_penalty = pytest.mark.parametrize("mode", PENALTIES)


def case(kind: str = "smallcnn", shape: tuple[int, int, int] = SHAPE, classes: int = CLASSES) -> tuple[Network, Tensor, Tensor, Tensor]:
    """A network with statistics of its own in batch norm, in double precision; images, labels and regions."""
    torch.manual_seed(0)
    network = build_network(kind, shape, classes, 12)
    images, labels = torch.rand(ROWS, *shape), torch.arange(ROWS) % classes
    for _ in range(3):
        network.train()(torch.rand(32, *shape))
    masks = torch.zeros(ROWS, *shape[1:], dtype=torch.bool)
    for i in range(ROWS):
        masks[i, 2 + i : 6 + i, 3:9] = True
    network = network.double()
    network.logits = lambda features: torch.cat([-network.head(features) / 2, network.head(features) / 2], -1) \
        if network.head.out_features == 1 else network.head(features)  # heads compute in single precision, these tests in double
    return network, images.double(), labels, masks


def by_definition(name: str, network: Network, image: Tensor, label: int) -> Tensor:
    """Of one image ``(1, C, H, W)``, without any code of ours but DeepLift's (which captum is compared with below)."""
    if name == "deeplift":
        return deeplift(network, image, torch.tensor([label]))
    if name == "gradcam":
        maps = network.get_submodule("blocks.0")(image)
        maps = network.get_submodule("blocks.1.4")(network.get_submodule("blocks.1.3")(network.blocks[1][:3](maps))).relu()
        score = network.logits(network.dense(F.max_pool2d(maps, 2).flatten(1)))[0, label]
        (slopes,) = torch.autograd.grad(score, maps, create_graph=True)
        evidence = torch.zeros(maps.shape[2:], dtype=maps.dtype)
        for k in range(maps.shape[1]):
            evidence = evidence + slopes[0, k].mean() * maps[0, k]
        return F.interpolate(evidence.clamp(min=0)[None, None], image.shape[2:], mode="bilinear")
    image = image.clone().requires_grad_()
    logits = network(image)[0]
    score = {"gradient": logits[label], "logits_sum": sum(logits), "rrr": sum(logits.log_softmax(0))}[name]
    return torch.autograd.grad(score, image, create_graph=True)[0]


# ---------------------------------------------------------------------------------------------------- against a loop
@every
@pytest.mark.parametrize("mode", PENALTIES)
def test_every_saliency_and_its_gradient_is_that_of_single_images(name, mode):
    """1e-6 relative to the greatest entry; the batch's sum of scores is differentiated once, the loop's images one by one."""
    network, images, labels, masks = case()
    found = saliency(name, network, images, labels)
    network.eval()
    alone = [by_definition(name, network, images[i : i + 1], int(labels[i])) for i in range(ROWS)]
    torch.testing.assert_close(found, torch.cat(alone), rtol=0, atol=1e-6 * float(found.detach().abs().max()))
    losses = [penalty(mode, one, masks[i : i + 1]) for i, one in enumerate(alone)]
    torch.testing.assert_close(penalty(mode, found, masks), torch.cat(losses), rtol=1e-6, atol=0)
    parameters = [p for p in network.parameters() if p is not network.head.bias]
    ours = torch.autograd.grad(penalty(mode, found, masks).mean(), parameters, allow_unused=True)
    theirs = torch.autograd.grad(sum(losses) / ROWS, parameters, allow_unused=True)
    for our, their in zip(ours, theirs, strict=True):
        if our is None and their is None:
            continue
        torch.testing.assert_close(our, their, rtol=0, atol=1e-6 * float(their.abs().max()) + 1e-15)


def test_a_column_of_classes_is_not_each_images_own():
    """``logits[:, y].sum()`` takes all B×B logits: its gradient is another, by far more than rounding."""
    network, images, labels, _ = case()
    pixels = images.clone().requires_grad_()
    (block,) = torch.autograd.grad(network.eval()(pixels)[:, labels].sum(), pixels)
    own = saliency("gradient", network, images, labels)
    assert (block - own).abs().max() > own.abs().max()


@every
def test_no_image_depends_on_its_batch_and_modes_are_left(name):
    network, images, labels, _ = case()
    network.train()
    network.blocks[0].eval()
    modes = [module.training for module in network.modules()]
    state = {key: value.clone() for key, value in network.state_dict().items()}
    together = saliency(name, network, images, labels)
    torch.testing.assert_close(torch.cat([saliency(name, network, images[i : i + 1], labels[i : i + 1]) for i in range(ROWS)]), together)
    assert [module.training for module in network.modules()] == modes and all(p.grad is None for p in network.parameters())
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


@every
def test_a_frozen_body_has_the_same_saliency_and_a_gradient_of_the_head(name):
    network, images, labels, masks = case()
    free = saliency(name, network, images, labels)
    (expected,) = torch.autograd.grad(penalty("outside", free, masks).sum(), network.head.weight)
    found = saliency(name, network.freeze(), images, labels)
    torch.testing.assert_close(found, free)
    penalty("outside", found, masks).sum().backward()
    torch.testing.assert_close(network.head.weight.grad, expected)
    assert expected.any() and all(p.grad is None for n, p in network.named_parameters() if not n.startswith("head"))


def test_in_train_mode_images_would_depend_on_each_other():
    network, images, labels, _ = case()
    pixels = images.clone().requires_grad_()
    (mixed,) = torch.autograd.grad(network.train()(pixels).gather(1, labels[:, None])[0].sum(), pixels)
    assert mixed[1:].abs().max() > 0.01 * mixed[0].abs().max()  # the first image's logit has a gradient by all others


@pytest.mark.parametrize("name", [name for name in SALIENCY if name != "gradcam"])
def test_one_output_for_two_classes_and_grey(name):
    network, images, labels, masks = case("mlp", (1, 16, 16), 2)
    found = saliency(name, network, images, labels)
    alone = [by_definition(name, network, images[i : i + 1], int(labels[i])) for i in range(ROWS)]
    torch.testing.assert_close(found, torch.cat(alone))
    assert (found.abs().max() == 0) == (name == "logits_sum")
    assert penalty("outside", found, masks).isfinite().all()


# ---------------------------------------------------------------------------------------------------- DeepLift, Grad-CAM
class Modules(nn.Module):
    """Nonlinearities as modules, each used once and with a linear layer before the next.

    Captum's rule for one reads the gradient at its output before the rule for one that follows it directly has changed it:
    of a ReLU and the pooling right after it, its attributions do not add up.
    """

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Conv2d(5, 5, 1), nn.MaxPool2d(2), nn.Conv2d(5, 4, 3), nn.Sigmoid(),
                                  nn.Conv2d(4, 4, 1), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(16, 8), nn.Softplus(), nn.Linear(8, CLASSES))

    def forward(self, images: Tensor) -> Tensor:
        return self.body(images)


@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks", "ignore:Input Tensor 0 did not already require gradients")
@pytest.mark.parametrize("baseline", [0.0, 0.5])
def test_deeplift_is_captums_and_adds_up(baseline):
    torch.manual_seed(1)
    network, images, labels = Modules().double().eval(), torch.rand(ROWS, 3, 14, 14).double(), torch.arange(ROWS) % CLASSES
    ours = deeplift(network, images, labels, baseline)
    theirs = captum.attr.DeepLift(network).attribute(images, baseline, target=labels)
    torch.testing.assert_close(ours.detach(), theirs.detach(), rtol=1e-6, atol=1e-9)
    own = [network(x).gather(1, labels[:, None])[:, 0] for x in (images, torch.full_like(images, baseline))]
    torch.testing.assert_close(ours.flatten(1).sum(1), own[0] - own[1])


def test_deeplift_adds_up_on_functions_in_place_and_overlapping_windows():
    class Functions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6 * 4, CLASSES)

        def forward(self, images: Tensor) -> Tensor:
            maps = F.max_pool2d(F.relu(self.first(images), inplace=True), 3, stride=2, padding=1)
            maps = F.gelu(self.second(maps)) + maps
            return self.head(F.adaptive_avg_pool2d(torch.tanh(maps), 2).flatten(1)).relu()

    torch.manual_seed(2)
    network, images, labels = Functions().double(), torch.rand(ROWS, 3, 12, 12).double(), torch.arange(ROWS) % CLASSES
    found = deeplift(network, images, labels)
    own = (network(images) - network(torch.zeros_like(images))).gather(1, labels[:, None])[:, 0]
    torch.testing.assert_close(found.flatten(1).sum(1), own)


class Gated(SmallCNN):
    """With a product that takes a thousandth from the sum of DeepLift's attributions."""

    name = "gated"
    gate = 0.01

    def features(self, images: Tensor) -> Tensor:
        found = super().features(images)
        return found * (1 + self.gate * found.mean(1, keepdim=True))


def test_deeplift_of_networks_with_products_is_refused():
    network = Gated(SHAPE, CLASSES, 12)
    state = torch.get_rng_state()
    with pytest.raises(RunError, match=naming("Gated saliency_of=gradient")):
        check_saliency("deeplift", network)
    assert torch.equal(torch.get_rng_state(), state)
    check_saliency("gradient", network)
    for kind in (*NETWORKS, "resnet18"):  # the latter's signals vanish without statistics of batch norm
        check_saliency("deeplift", build_network(kind, (3, 32, 32), CLASSES))


def test_deeplifts_gradient_is_a_finite_difference():
    """By a weight of each layer: so the multipliers' own dependence on weights is there, which hooks lose."""
    network, images, labels, masks = case()
    network.eval()

    def loss() -> Tensor:
        return outside(saliency("deeplift", network, images, labels), masks).mean()

    for parameter in (network.blocks[0][0].weight, network.blocks[1][3].weight, network.dense[0].weight, network.head.weight):
        (slope,) = torch.autograd.grad(loss(), parameter)
        direction = slope.sign() * (slope.abs() > 0.1 * slope.abs().max())
        values = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                parameter += step * direction
            values.append(loss().item())
            with torch.no_grad():
                parameter -= step * direction
        assert (values[0] - values[1]) / 2e-6 == pytest.approx((slope * direction).sum().item(), rel=1e-3)


def test_gradcam_is_captums():
    network, images, labels, _ = case()
    network.eval()
    layer = network.get_submodule(network.cam_layer)
    found = captum.attr.LayerGradCam(network, layer).attribute(images, labels, relu_attributions=True)
    resized = F.interpolate(found, images.shape[2:], mode="bilinear")
    torch.testing.assert_close(saliency("gradcam", network, images, labels).detach(), resized.detach())


# ---------------------------------------------------------------------------------------------------- penalties
@every_penalty
def test_penalties_are_least_inside_and_do_not_mix_images(mode):
    region = torch.zeros(2, 8, 8, dtype=torch.bool)
    region[0, 2:4, 2:6] = True
    region[1, 5:, :3] = True
    inside, wrong = region[:, None] * torch.tensor([-2.0, 1.0]).view(1, 2, 1, 1), (~region)[:, None] * torch.ones(2, 1, 8, 8)
    assert penalty(mode, inside, region).abs().max() < 1e-6
    far = penalty(mode, wrong, region)
    assert far.tolist() == pytest.approx([56 / 64, 55 / 64] if mode == "outside" else [1.0, 1.0])
    torch.testing.assert_close(penalty(mode, torch.cat([inside[:1], inside[:1] + 0 * inside[1:]]), region[:1].repeat(2, 1, 1)),
                               penalty(mode, inside[:1], region[:1]).repeat(2))
    if mode != "outside":
        some = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        torch.testing.assert_close(penalty(mode, 1e-6 * some, region), penalty(mode, some, region), rtol=1e-4, atol=1e-6)


@every_penalty
def test_nothing_and_nowhere_have_finite_gradients(mode):
    region = torch.stack([torch.zeros(5, 5), torch.ones(5, 5)]).bool()
    for found in (torch.zeros(2, 1, 5, 5, requires_grad=True), torch.ones(2, 1, 5, 5, requires_grad=True)):
        values = penalty(mode, found, region)
        (slope,) = torch.autograd.grad(values.sum(), found)
        assert values.isfinite().all() and slope.isfinite().all() and (values >= 0).all() and (values <= 1).all()


def test_known_values():
    found = torch.tensor([[[[3.0, 0.0], [4.0, 0.0]]]])
    region = torch.tensor([[[True, False], [False, False]]])
    assert penalty("outside", found, region).item() == pytest.approx(16 / 4)
    assert penalty("cosine", found, region).item() == pytest.approx(1 - 3 / 5)
    assert penalty("f1", found, region).item() == pytest.approx(1 - 2 * (9 / 16) / (9 / 16 + 1 + 1))


def test_bad_input():
    network, images, labels, masks = case("mlp")
    with pytest.raises(RunError, match=naming("'lime' gradient logits_sum rrr deeplift gradcam")):
        saliency("lime", network, images, labels)
    with pytest.raises(RunError, match=naming("Grad-CAM --network mlp")):
        saliency("gradcam", network, images, labels)
    with pytest.raises(RunError, match=naming("'inside' outside cosine f1")):
        penalty("inside", images, masks)
    with pytest.raises(RunError, match=naming("(6, 16, 16) (6, 1, 16, 16)")):
        penalty("outside", images, masks[:, None])
