"""Networks that classify: shapes, one head, one output for two classes, what cannot be built."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from experiments.networks.registry import NETWORKS, build_network, rebuild
from mechanisms.runs.files import RunError
from tests.errors import naming

SHAPES = {"mlp": (2, 14, 14), "smallcnn": (3, 28, 28)}
every = pytest.mark.parametrize("name", NETWORKS)


@every
@pytest.mark.parametrize("classes", [2, 10])
def test_logits_are_the_head_of_the_features(name, classes):
    network, images = build_network(name, SHAPES[name], classes).eval(), torch.rand(5, *SHAPES[name])
    features, logits = network.features(images), network(images)
    assert features.shape == (5, network.hidden) and logits.shape == (5, classes)
    assert torch.equal(network.logits(features), logits) and network.head.in_features == features.shape[1]


@every
def test_gradients_reach_every_parameter_and_a_copy_is_the_same(name):
    network, images = build_network(name, SHAPES[name], 2, hidden=16), torch.rand(8, *SHAPES[name])
    F.cross_entropy(network(images), torch.arange(8) % 2).backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in network.parameters() if p.ndim > 1)
    again = rebuild(network.describe())
    again.load_state_dict(network.state_dict())
    assert torch.equal(again.eval()(images), network.eval()(images)) and again.describe() == network.describe()


@every
def test_half_precision_ends_at_the_head(name):
    network, images = build_network(name, SHAPES[name], 2), torch.rand(4, *SHAPES[name])
    with torch.autocast("cpu", torch.bfloat16):
        logits = network(images)
    assert logits.dtype == torch.float32


def test_one_output_for_two_classes_is_the_logistic_loss():
    network, images, labels = build_network("mlp", (1, 4, 4), 2, 8), torch.rand(6, 1, 4, 4), torch.tensor([0, 1, 1, 0, 1, 0])
    output = network.head(network.features(images))[:, 0]
    expected = F.binary_cross_entropy_with_logits(output, labels.float())
    torch.testing.assert_close(F.cross_entropy(network(images), labels), expected)
    assert build_network("mlp", (1, 4, 4), 3, 8).head.out_features == 3


def test_the_published_sizes():
    """Parameters of IRM's network on 2×14×14 pixels, and of MaskTune's on 3×28×28."""
    count = {name: sum(p.numel() for p in build_network(name, SHAPES[name], 2).parameters()) for name in NETWORKS}
    assert count["mlp"] == 392 * 390 + 390 + 390 * 390 + 390 + 390 + 1
    convolutions = 3 * 16 * 9 + 16 + 16 * 16 * 9 + 16 + 16 * 32 * 9 + 32 + 32 * 32 * 9 + 32
    assert count["smallcnn"] == convolutions + 2 * (16 + 16 + 32 + 32) + 512 * 256 + 256 + 512 + 256 * 2 + 2


def test_the_mlp_begins_with_zero_biases():
    network = build_network("mlp", (2, 14, 14), 2)
    assert all(not p.any() for name, p in network.named_parameters() if name.endswith("bias"))
    limit = (6 / (392 + 390)) ** 0.5
    assert 0.99 * limit < network.first.weight.abs().max() <= limit


@every
def test_the_layer_for_maps_is_there(name):
    network = build_network(name, SHAPES[name], 2)
    assert not network.cam_layer or network.cam_layer in dict(network.named_modules())


@pytest.mark.parametrize("arguments, message", [
    (("resnet", (3, 28, 28), 2), "'resnet' mlp smallcnn"),
    (("smallcnn", (2, 14, 14), 2), "16×16 14×14 --network mlp"),
    (("mlp", (2, 14, 14), 1), "1"),
    (("mlp", (2, 14, 14), 2, 0), "--hidden 0 1"),
])
def test_what_cannot_be_built(arguments, message):
    with pytest.raises(RunError, match=naming(message)):
        build_network(*arguments)
