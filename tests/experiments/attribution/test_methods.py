"""Attributions: laws of every method, closed forms of linear networks, captum as reference, and what is refused."""

from __future__ import annotations

import typing
import warnings

import pytest
import torch
from captum.attr import DeepLift, LayerGradCam
from torch import nn
from torch.nn import functional as F

from experiments import explain, robustness
from experiments.attribution.focus import NONE, images_for
from experiments.attribution.lime import lime, mean_colours, superpixels
from experiments.attribution.methods import ATTRIBUTIONS, Attribution, attribution
from experiments.explanations.options import LAYERED
from experiments.networks.own import OwnClassifier
from experiments.networks.small import MLP, SmallCNN
from mechanisms.runs.files import RunError
from tests.errors import naming

METHODS = list(ATTRIBUTIONS.values())
PLAIN = [method for method in METHODS if not method.layered]
EXACT = [attribution("deeplift"), attribution("integrated_gradients")]  # of a linear network


@pytest.fixture(scope="module")
def images():
    """Smooth, so that there are superpixels."""
    coarse = torch.rand(4, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    return F.interpolate(coarse, 32, mode="bilinear")


@pytest.fixture(scope="module")
def network(images):
    """With batch norm whose statistics are not its initial ones."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = SmallCNN((3, 32, 32), 3, 16)
        for _ in range(5):
            made(torch.rand(16, 3, 32, 32))
    return made.eval()


@pytest.fixture(autouse=True)
def fewer_samples(monkeypatch):
    """100 instead of 1,000."""
    monkeypatch.setattr(lime, "__defaults__", (100, 0))


class Linear(nn.Module):
    """logits_k = Σ_pixels w_k·x."""

    def __init__(self, weight: torch.Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bchw,kchw->bk", images, self.weight)


# ---------------------------------------------------------------------------------------------------- laws of all methods
@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_laws(method: Attribution, network, images):
    """One finite map an image, of its own size; that does not depend on the batch; nothing is left behind; no warning either."""
    network.dense[1].train()  # one module in another mode than the rest
    before, given = {n: v.clone() for n, v in network.state_dict().items()}, images.clone()
    targets = torch.tensor([2, 0, 1, 1])
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("error")
        maps = method(network, images, targets)
        alone = method(network, images[2:3], targets[2:3])
    assert maps.shape == (4, 32, 32) and torch.isfinite(maps).all() and not maps.requires_grad
    assert maps.abs().sum() > 0 and (method.signed or maps.min() >= 0)
    torch.testing.assert_close(maps[2:3], alone, rtol=1e-3, atol=1e-6)
    assert network.dense[1].training and not network.training and not network.blocks[0].training
    assert all(torch.equal(v, before[n]) for n, v in network.state_dict().items()) and torch.equal(images, given)
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
    network.eval()
    assert torch.equal(method(network, images), method(network, images, network(images).argmax(1)))  # the predicted class


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_frozen_networks_are_explained_too(method: Attribution, network, images):
    free = method(network, images[:1])
    network.requires_grad_(False)
    try:
        torch.testing.assert_close(method(network, images[:1]), free)
    finally:
        network.requires_grad_(True)


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
def test_targets_are_classes(method: Attribution, network, images):
    for wrong in (torch.tensor([0, 1, 2, 3]), torch.tensor([0, 1])):
        with pytest.raises(RunError, match=naming("(4,) 0..2")):
            method(network, images, wrong)
    with pytest.raises(RunError, match=naming("(4,) 4")):
        method(nn.Sequential(nn.Flatten(), nn.Linear(3072, 1), nn.Flatten(0)), images, layer="0")


def test_names():
    with pytest.raises(RunError, match=naming("'lrp' saliency gradcam xgradcam deeplift")):
        attribution("lrp")
    flags = typing.get_type_hints(explain.Options)["method"], typing.get_type_hints(robustness.Options)["focus"]
    assert typing.get_args(flags[0]) == tuple(ATTRIBUTIONS) and typing.get_args(flags[1]) == (*ATTRIBUTIONS, NONE)
    assert LAYERED == tuple(m.name for m in METHODS if m.layered)


def test_slow_methods_look_at_fewer_images():
    assert [images_for(m.name, 10_000) for m in METHODS] == [256, 256, 256, 256, 128, 16] and images_for("lime", 9) == 9


# ---------------------------------------------------------------------------------------------------- what they compute
def test_saliency_is_the_gradient_of_the_own_class(network, images):
    """Against one backward pass for each image: ``logits[:, y].sum()`` would mix the classes of the batch."""
    targets, expected = torch.tensor([2, 0, 1, 1]), []
    for image, target in zip(images, targets, strict=True):
        one = image[None].clone().requires_grad_()
        network(one)[0, target].backward(inputs=one)
        expected.append(one.grad[0].square().sum(0).sqrt())
    torch.testing.assert_close(attribution("saliency")(network, images, targets), torch.stack(expected), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", EXACT, ids=lambda m: m.name)
def test_of_a_linear_network_attributions_are_weight_times_pixel(method, images):
    weight = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    found = method(Linear(weight), images, torch.tensor([1, 0, 0, 1]))
    torch.testing.assert_close(found, (weight[[1, 0, 0, 1]] * images).sum(1), rtol=1e-4, atol=1e-5)
    saliency = attribution("saliency")(Linear(weight), images, torch.tensor([1, 0, 0, 1]))
    torch.testing.assert_close(saliency, weight[[1, 0, 0, 1]].square().sum(1).sqrt())


def test_deeplift_is_captums(images):
    """Whose network needs a module for each nonlinearity, none used twice. (A black image ties all places of a max pooling's
    window, so that these are the same only up to a choice.)
    """
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Conv2d(4, 4, 3, 2), nn.Sigmoid(), nn.Flatten(), nn.Linear(4 * 49, 3))
    targets = torch.tensor([2, 0, 1, 1])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = DeepLift(network).attribute(images.clone(), torch.zeros_like(images), targets).sum(1).detach()
    found = attribution("deeplift")(network, images, targets)
    assert float((found - expected).abs().max()) < 1e-4 * float(expected.abs().max())


def test_gradcam_is_captums(network, images):
    targets = torch.tensor([2, 0, 1, 1])
    given = images.clone().requires_grad_()
    maps = LayerGradCam(network, network.get_submodule(network.cam_layer)).attribute(given, targets, relu_attributions=True)
    spread = maps - maps.amin((2, 3), keepdim=True)
    large = F.interpolate(spread / (spread.amax((2, 3), keepdim=True) + 1e-7), images.shape[2:], mode="bilinear")[:, 0]
    large = large - large.amin((1, 2), keepdim=True)
    expected = (large / (large.amax((1, 2), keepdim=True) + 1e-7)).detach()
    torch.testing.assert_close(attribution("gradcam")(network, images, targets), expected, rtol=1e-4, atol=1e-4)


class Reused(nn.Module):
    """One ReLU module in two places, one function, and one product if asked for: what hooks on modules cannot see."""

    def __init__(self, product: bool) -> None:
        super().__init__()
        self.first, self.second, self.out, self.relu = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Linear(4, 2), nn.ReLU(inplace=True)
        self.product = product

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = F.relu(self.relu(self.second(self.relu(self.first(images)))) - 0.01)
        maps = maps * (1 + 30 * maps) if self.product else maps
        return self.out(F.max_pool2d(maps, 3).mean((2, 3)))


@pytest.mark.parametrize("build", [lambda: MLP((3, 32, 32), 2, 8), lambda: Reused(False)], ids=["mlp", "reused"])
def test_deeplift_adds_up_whatever_nonlinearities_are_written_as(build, images):
    torch.manual_seed(0)
    made = build().eval()
    found, targets = attribution("deeplift")(made, images), made(images).argmax(1)
    logits = [made(x).gather(1, targets[:, None])[:, 0].detach() for x in (images, torch.zeros_like(images))]
    torch.testing.assert_close(found.sum((1, 2)), logits[0] - logits[1], rtol=1e-3, atol=1e-5)


def test_deeplift_refuses_what_does_not_add_up(images):
    torch.manual_seed(0)
    with pytest.raises(RunError, match=naming("Reused integrated_gradients")):
        attribution("deeplift")(Reused(True), images)


# ---------------------------------------------------------------------------------------------------- layers
@pytest.mark.parametrize("method", [m for m in METHODS if m.layered], ids=lambda m: m.name)
def test_networks_without_maps(method, images):
    with pytest.raises(RunError, match=naming("mlp --method saliency deeplift")):
        method(MLP((3, 32, 32), 2, 8), images)
    with pytest.raises(RunError, match=naming("'first'")):
        method(MLP((3, 32, 32), 2, 8), images, layer="first")
    with pytest.raises(RunError, match=naming("'nowhere'")):
        method(SmallCNN((3, 32, 32), 2, 8), images, layer="nowhere")


@pytest.mark.parametrize("method", PLAIN, ids=lambda m: m.name)
def test_others_need_no_layer(method, images):
    assert method(MLP((3, 32, 32), 2, 8), images).abs().sum() > 0


def test_a_single_number_stands_for_two_logits(images):
    class One(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return images[:, 0].mean((1, 2)) - images[:, 2].mean((1, 2))

    own = OwnClassifier("one", One(), 2, "the classifier one.py:build", torch.device("cpu"))
    found = [attribution("integrated_gradients")(own.module(), images, torch.full((4,), k)) for k in range(2)]
    torch.testing.assert_close(found[0], -found[1])
    assert len(own.network._forward_hooks) == 1 and own.predict(images).shape == (4, 2)  # asked for twice, hooked once


# ---------------------------------------------------------------------------------------------------- LIME
def test_lime_finds_what_the_answer_depends_on(images):
    """Weights are positive where showing a superpixel makes the class likelier, and least where it does not matter."""
    image = torch.full((1, 3, 32, 32), 0.2)
    image[:, :, 8:20, 8:20], image[:, :, 24:30, 3:28] = 0.9, torch.tensor([0.9, 0.1, 0.1]).view(1, 3, 1, 1)

    class Bright(nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            there = 4 * (images[:, :, 8:20, 8:20].mean((1, 2, 3)) - 0.5)
            return torch.stack([-there, there], 1)

    found = lime(Bright(), image, torch.tensor([1]))[0]
    regions = superpixels(image[0])
    assert all(len(found[regions == k].unique()) == 1 for k in regions.unique())
    against = lime(Bright(), image, torch.tensor([0]))[0]
    torch.testing.assert_close(against, -found, rtol=1e-3, atol=1e-5)
    other = lime(Bright(), image, torch.tensor([1]), seed=1)[0]
    assert not torch.equal(other, found) and torch.equal(lime(Bright(), image, torch.tensor([1]))[0], found)


def test_lime_recovers_a_linear_answer(images):
    """Ridge of 1,000 samples all but recovers what each superpixel adds to a probability that is linear in what is shown."""
    image = images[0]
    regions = superpixels(image)
    masks = torch.stack([regions == k for k in regions.unique()])
    gap = torch.einsum("rhw,chw->r", masks.float(), image - mean_colours(image, regions))
    assert float(gap.abs().max()) < 1e-3  # hidden superpixels keep their mean
    extra = torch.arange(len(masks)).float() / len(masks) - 0.5
    shown = (image - mean_colours(image, regions)).abs().sum(0)

    class Sum(nn.Module):
        """p_1 = ½ + Σ_r extra_r·[superpixel r is shown] / 2R, read off the pixels."""

        def forward(self, pixels: torch.Tensor) -> torch.Tensor:
            there = torch.einsum("rhw,bhw->br", masks.float(), (pixels - mean_colours(image, regions)).abs().sum(1))
            there = there / torch.einsum("rhw,hw->r", masks.float(), shown)
            p = 0.5 + there @ extra / (2 * len(extra))
            return torch.stack([1 - p, p], 1).log()

    found = lime(Sum(), image[None], torch.tensor([1]), samples=1000)[0]
    weights = torch.stack([found[mask].mean() for mask in masks])
    assert float((weights - extra / (2 * len(extra))).abs().max()) < 0.1 * float(extra.abs().max()) / (2 * len(extra))


def test_superpixels_of_any_image(images):
    grey = images[0, :1]
    assert torch.equal(superpixels(grey), superpixels(grey.expand(3, -1, -1)))
    two = superpixels(images[0, :2])
    assert torch.equal(two, superpixels(torch.cat([images[0, :2], torch.zeros(1, 32, 32)]))) and len(two.unique()) > 3
    regions = superpixels(images[0])
    assert torch.equal(regions.unique(), torch.arange(int(regions.max()) + 1))
    colours = mean_colours(images[0], regions)
    for k in regions.unique():
        inside = images[0][:, regions == k]
        torch.testing.assert_close(colours[:, regions == k], inside.mean(1, keepdim=True).expand_as(inside))


def test_lime_of_a_grey_image(images):
    """Of a classifier of one channel: a weight for each superpixel."""
    torch.manual_seed(0)
    grey, network = images[:2, :1], SmallCNN((1, 32, 32), 3, 16).eval()
    found = attribution("lime")(network, grey)
    assert found.shape == (2, 32, 32) and found.isfinite().all() and found.flatten(1).any(1).all()
    for image, one in zip(grey, found, strict=True):
        regions = superpixels(image)
        assert all(len(one[regions == k].unique()) == 1 for k in regions.unique())


def test_an_image_without_superpixels():
    with pytest.raises(RunError, match=naming("4×4")):
        lime(Linear(torch.zeros(2, 1, 4, 4)), torch.zeros(1, 1, 4, 4), torch.tensor([0]))
