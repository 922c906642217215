"""XGradCAM: the formula, laws over layers and batches, what it leaves behind, and the package that it equals."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from experiments.attribution.xgradcam import layers, xgradcam
from experiments.benchmarks.classifiers import measure_xgradcam
from experiments.networks.base import evaluating
from experiments.networks.small import MLP, SmallCNN
from mechanisms.runs.files import RunError
from tests.errors import naming

CONVOLUTIONS, POOLS = ([name for name, module in SmallCNN((3, 28, 28), 2).named_modules() if isinstance(module, kind)]
                       for kind in (nn.Conv2d, nn.MaxPool2d))
LAYERS = (CONVOLUTIONS[0], SmallCNN.cam_layer, *POOLS)


@pytest.fixture(scope="module")
def images():
    return torch.rand(48, 3, 28, 28, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def network(images):
    """With batch norm whose statistics are not its initial ones, and which predicts every class."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = SmallCNN((3, 28, 28), 5)
        labels = torch.arange(len(images)) % 5
        optimizer = torch.optim.Adam(made.parameters(), 3e-3)
        for _ in range(40):
            optimizer.zero_grad()
            nn.functional.cross_entropy(made(images), labels).backward()
            optimizer.step()
    made.eval()
    assert len(made(images).argmax(1).unique()) == 5
    return made


class TwoLayers(nn.Module):
    """Maps a = image, logits = Σ_places weight_k·a: gradients and activations are known by hand."""

    def __init__(self, weight):
        super().__init__()
        self.keep, self.weight = nn.Identity(), nn.Parameter(weight)

    def forward(self, images):
        return torch.einsum("bfhw,kfhw->bk", self.keep(images), self.weight)


# ---------------------------------------------------------------------------------------------------- what it computes
def test_formula_on_a_network_that_is_solved_by_hand():
    activations = torch.tensor([[[[1.0, 3.0], [0.0, 4.0]], [[2.0, 0.0], [2.0, 0.0]]]])
    slopes = torch.tensor([[[[1.0, 1.0], [5.0, 0.5]], [[-1.0, 7.0], [0.0, 7.0]]]])
    # channel weights (1 + 3 + 2)/8 and −2/4; Σ_k w_k·A_k = [[.75 − 1, 2.25], [−1, 3]]
    found = xgradcam(TwoLayers(slopes), activations, "keep", torch.tensor([0]))
    torch.testing.assert_close(found, torch.tensor([[[0.0, 0.75], [0.0, 1.0]]]))


def test_resizing_is_bilinear_and_stretched_again(network, images):
    small = xgradcam(network, images, network.cam_layer, resized=False)
    assert small.shape == (48, 8, 8)
    large = nn.functional.interpolate(small[:, None], (28, 28), mode="bilinear")[:, 0]
    low, high = (edge(large, (1, 2), keepdim=True) for edge in (torch.amin, torch.amax))
    torch.testing.assert_close(xgradcam(network, images, network.cam_layer), (large - low) / (high - low + 1e-7))


@pytest.mark.parametrize("layer", LAYERS)
def test_maps_lie_between_0_and_1_and_reach_both(network, images, layer):
    maps = xgradcam(network, images, layer)
    assert maps.shape == (48, 28, 28) and maps.min() == 0 and maps.max() <= 1
    shown = maps.flatten(1).amax(1) > 0
    assert shown.float().mean() > 0.5
    torch.testing.assert_close(maps[shown].flatten(1).amax(1), torch.ones(int(shown.sum())))


@pytest.mark.parametrize("layer", LAYERS)
def test_a_map_does_not_depend_on_the_rest_of_the_batch(network, images, layer):
    together = xgradcam(network.train(), images, layer)  # in training mode, batch norm would mix them
    apart = torch.cat([xgradcam(network, part, layer) for part in images.split([1, 7, 40])])
    torch.testing.assert_close(together, apart, atol=1e-4, rtol=0)
    network.eval()


def test_the_predicted_class_is_explained_unless_another_is_asked_for(network, images):
    predicted = network(images).argmax(1)
    assert torch.equal(xgradcam(network, images, network.cam_layer), xgradcam(network, images, network.cam_layer, predicted))
    other = xgradcam(network, images, network.cam_layer, (predicted + 1) % 5)
    assert (other - xgradcam(network, images, network.cam_layer)).abs().amax((1, 2)).min() > 0.05


def test_a_layer_that_is_changed_in_place_afterwards_is_read_as_it_was():
    torch.manual_seed(0)
    plain, hasty = (nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(inplace), nn.Flatten(), nn.Linear(4 * 36, 3)) for inplace in (False, True))
    hasty.load_state_dict(plain.state_dict())
    images = torch.rand(6, 1, 8, 8)
    assert torch.equal(xgradcam(plain, images, "0"), xgradcam(hasty, images, "0"))


def test_no_evidence_gives_a_map_of_zeros():
    network = TwoLayers(torch.full((2, 1, 4, 4), -1.0))
    assert torch.equal(xgradcam(network, torch.rand(3, 1, 4, 4), "keep"), torch.zeros(3, 4, 4))


def test_frozen_networks_and_callers_without_gradients(network, images):
    expected = xgradcam(network, images, network.cam_layer)
    network.requires_grad_(False)
    with torch.no_grad():
        assert torch.equal(xgradcam(network, images, network.cam_layer), expected)
        assert not torch.is_grad_enabled()
    assert torch.is_grad_enabled()
    network.requires_grad_(True)


@pytest.mark.parametrize("layer", LAYERS)
def test_equals_the_package(network, images, layer):
    package = pytest.importorskip("pytorch_grad_cam", reason="the test extra installs grad-cam")
    with package.XGradCAM(network, [network.get_submodule(layer)]) as cam:
        theirs = torch.as_tensor(cam(images, None))
        cam.get_target_width_height = lambda given: None  # before they resize
        small = torch.as_tensor(cam(images, None))
    torch.testing.assert_close(xgradcam(network, images, layer), theirs, atol=1e-4, rtol=0)
    torch.testing.assert_close(xgradcam(network, images, layer, resized=False), small, atol=1e-4, rtol=0)


# ---------------------------------------------------------------------------------------------------- what it leaves behind
class Breaking(nn.Module):
    """Fails after its layer."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)

    def forward(self, images):
        self.norm(self.conv(images))
        raise ValueError("broken on purpose")


def test_modes_hooks_and_gradients_are_as_before(network, images):
    network.train()
    network.head.eval()  # mixed modes, as where a part is frozen
    before = {name: module.training for name, module in network.named_modules()}
    statistics = {name: value.clone() for name, value in network.state_dict().items()}
    network.zero_grad(set_to_none=True)
    xgradcam(network, images, network.cam_layer)
    assert {name: module.training for name, module in network.named_modules()} == before
    assert all(torch.equal(value, statistics[name]) for name, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())
    assert not any(m._forward_hooks for m in network.modules())
    network.eval()


def test_after_an_error_too():
    network = Breaking().train()
    with pytest.raises(ValueError, match="on purpose"):
        xgradcam(network, torch.rand(2, 1, 8, 8), "conv")
    assert all(m.training for m in network.modules()) and not network.conv._forward_hooks and torch.is_grad_enabled()
    with pytest.raises(KeyError), evaluating(network):
        raise KeyError
    assert network.norm.training


# ---------------------------------------------------------------------------------------------------- bad input
def test_unknown_layers_list_the_known_ones(network, images):
    for layer in ("", "blocks.7"):
        with pytest.raises(RunError, match=naming(f"{SmallCNN.cam_layer} head")):
            xgradcam(network, images, layer)


def test_layers_that_cannot_be_read(network, images):
    with pytest.raises(RunError, match=naming("'head' (48, 5) XGradCAM")):
        xgradcam(network, images, "head")
    with pytest.raises(RunError, match=naming("'blocks'")):
        xgradcam(network, images, "blocks")
    shared = nn.ReLU()
    twice = nn.Sequential(nn.Conv2d(3, 2, 3), shared, nn.Conv2d(2, 2, 3), shared, nn.Flatten(), nn.LazyLinear(2))
    with pytest.raises(RunError, match=naming("'1'")):
        xgradcam(twice, images, "1")


def test_networks_that_are_no_classifiers(images):
    with pytest.raises(RunError, match=naming("(48, 2, 26, 26)")):
        xgradcam(nn.Sequential(nn.Conv2d(3, 2, 3)), images, "0")

    class Deaf(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 2, 3)

        def forward(self, given):
            self.conv(given)
            return given.new_zeros(len(given), 2)

    with pytest.raises(RunError, match=naming("'conv'")):
        xgradcam(Deaf(), images, "conv")


@pytest.mark.parametrize("targets", [torch.zeros(3).long(), torch.full((48,), 5), torch.full((48,), -1)])
def test_targets_that_are_no_classes(network, images, targets):
    with pytest.raises(RunError, match=naming("(48,) 0..4")):
        xgradcam(network, images, network.cam_layer, targets)


def test_layers_and_speed(network):
    assert network.cam_layer in layers(network) and "" not in layers(network)
    assert layers(MLP((1, 8, 8), 2, 4)) == ["first", "second", "head"]
    assert measure_xgradcam(64, 16) > 10
