"""torchvision's networks by name: what they take, pretrained weights and what is wrong with them, frozen bodies."""

from __future__ import annotations

import copy
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F
from torchvision import models

from experiments.attribution.xgradcam import xgradcam
from experiments.networks import registry
from experiments.networks import torchvision as backbones
from experiments.networks.base import at_once
from experiments.networks.config import ClassifierConfig
from experiments.networks.own import load_weights
from experiments.networks.registry import ALIASES, build_network, fresh, rebuild
from experiments.networks.torchvision import Backbone, backbone, load_pretrained, names
from experiments.training.options import Options
from mechanisms.runs.command import run_command
from mechanisms.runs.files import RunError, weights_fingerprint

SHAPE = (3, 32, 32)
SMALL = ("resnet18", "mobilenet_v3_small", "shufflenet_v2_x0_5", "regnet_x_400mf", "densenet121", "mnasnet0_5", "efficientnet_b0")


def images(rows: int = 4, channels: int = 3, side: int = 32) -> torch.Tensor:
    return torch.rand(rows, channels, side, side, generator=torch.Generator().manual_seed(0))


def built(name: str = "resnet18", channels: int = 3, classes: int = 3):
    torch.manual_seed(0)
    return build_network(name, (channels, 32, 32), classes)


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """A state dict of torchvision's ResNet-18, its own classifier of 1,000 classes included."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("weights") / "resnet18.pt"
    torch.save(models.resnet18().state_dict(), path)
    return path


@pytest.fixture(autouse=True)
def nothing_kept():
    """What a command keeps of the files that it has read."""
    backbones._pretrained.cache_clear()
    registry._fresh.cache_clear()


# ---------------------------------------------------------------------------------------------------- laws
@pytest.mark.parametrize("name", SMALL)
def test_logits_are_the_head_of_the_features_and_maps_have_places(name):
    network = built(name).eval()
    features = network.features(images())
    assert features.shape == (4, network.hidden) == (4, network.head.in_features) and network.head.out_features == 3
    assert torch.equal(network.logits(features), network(images()))
    assert xgradcam(network, images(), network.cam_layer).shape == (4, 32, 32)


@pytest.mark.parametrize("classes, outputs", [(2, 1), (3, 3)])
def test_two_classes_are_one_output(classes, outputs):
    network = build_network("resnet18", SHAPE, classes).eval()
    logits = network(images())
    assert network.head.out_features == outputs and logits.shape == (4, classes)
    if classes == 2:  # the logistic loss of that output
        output, labels = network.head(network.features(images()))[:, 0], torch.arange(4) % 2
        torch.testing.assert_close(F.cross_entropy(logits, labels), F.binary_cross_entropy_with_logits(output, labels.float()))


@pytest.mark.parametrize("frozen", [False, True])
def test_a_description_rebuilds_it_without_any_file(weights, frozen, monkeypatch):
    network = fresh(ClassifierConfig("resnet18", weights=str(weights), frozen=frozen), SHAPE, 3, 0)
    described, state = network.describe(), network.state_dict()
    monkeypatch.setattr("experiments.networks.torchvision.read_weights", lambda path: pytest.fail("reads the pretrained file"))
    again = rebuild(described)
    again.load_state_dict(state)
    assert again.describe() == described and again.frozen == frozen
    assert torch.equal(again.eval()(images()), network.eval()(images()))


def test_descriptions_of_earlier_trainings_still_build():
    again = rebuild({"network": "smallcnn", "shape": [3, 32, 32], "classes": 3, "hidden": 8})
    assert not again.frozen and again.describe() == {"network": "smallcnn", "shape": [3, 32, 32], "classes": 3, "hidden": 8}


def test_the_body_is_torchvisions_on_normalised_images(weights):
    network, theirs = load_pretrained(built(), str(weights)).eval(), models.resnet18().eval()
    theirs.load_state_dict(torch.load(weights, weights_only=True))
    theirs.fc = torch.nn.Identity()
    published = models.ResNet18_Weights.DEFAULT.transforms()
    mean, std = (torch.tensor(v)[:, None, None] for v in (published.mean, published.std))
    torch.testing.assert_close(network.features(images()), theirs((images() - mean) / std), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("wrap", [
    lambda s: {f"module.{n}": v for n, v in s.items()}, lambda s: {f"model.{n}": v for n, v in s.items()},
    lambda s: {f"_orig_mod.{n}": v for n, v in s.items()}, lambda s: {f"module._orig_mod.{n}": v for n, v in s.items()},
    lambda s: {f"model.module.{n}": v for n, v in s.items()},
    lambda s: {"state_dict": {f"module.{n}": v for n, v in s.items()}, "epoch": 3},
    lambda s: {"model_state_dict": s}])
def test_what_wrappers_put_before_names_is_left_out(weights, tmp_path, wrap):
    """As of a user's own classifier: one function for both."""
    state = torch.load(weights, weights_only=True)
    torch.save(wrap(state), tmp_path / "w.pt")
    own, ours, theirs = models.resnet18(), load_pretrained(built(), str(tmp_path / "w.pt")), load_pretrained(built(), str(weights))
    load_weights(own, tmp_path / "w.pt")
    assert all(torch.equal(v, state[n]) for n, v in own.state_dict().items())
    assert ours.body_fingerprint() == theirs.body_fingerprint() and ours.pretrained == theirs.pretrained


def test_a_prefix_of_some_names_only_is_told_of(weights, tmp_path):
    state = torch.load(weights, weights_only=True)
    torch.save({n if n == "conv1.weight" else f"module.{n}": v for n, v in state.items()}, tmp_path / "w.pt")
    with pytest.raises(RunError, match="it has the unknown module.bn1"):
        load_pretrained(built(), str(tmp_path / "w.pt"))


def test_grey_images_are_repeated_to_three_channels():
    grey, colour = built(channels=1).eval(), built().eval()
    one = images(channels=1)
    assert torch.equal(grey(one), colour(one.expand(-1, 3, -1, -1)))


def test_half_precision_ends_at_the_head_and_gradients_reach_everything():
    network = built()
    with torch.autocast("cpu", torch.bfloat16):
        assert network(images()).dtype == torch.float32
    F.cross_entropy(network(images()), torch.arange(4) % 3).backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters() if p.ndim > 1)


# ---------------------------------------------------------------------------------------------------- frozen
@pytest.mark.parametrize("name", ["resnet18", "smallcnn", "mlp"])
def test_a_frozen_body_never_changes(name):
    """Neither by gradients nor by batch norm, in training mode or out of it; copies do not share anything."""
    network = built(name).freeze()
    other = copy.deepcopy(network)
    before, features = weights_fingerprint(network), network.features(images())
    body = network.body_fingerprint()
    network.train()
    optimizer = torch.optim.Adam(network.parameters(), 0.1, weight_decay=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(network(images()), torch.arange(4) % 3).backward()
        optimizer.step()
    assert network.training and network.head.training
    assert torch.equal(network.features(images()), features) and network.body_fingerprint() == body
    assert weights_fingerprint(network) != before == weights_fingerprint(other)
    assert [id(p) for p in network.trained_parameters()] == [id(p) for p in network.head.parameters()]
    assert {n for n, p in network.named_parameters() if p.requires_grad} == {"head.weight", "head.bias"}
    assert not any(m.training for n, child in network.named_children() if n != "head" for m in child.modules())


def test_a_network_that_is_not_frozen_trains_its_statistics():
    network = built().train()
    before = network.body_fingerprint()
    network(images())
    assert network.body_fingerprint() != before


# ---------------------------------------------------------------------------------------------------- weights
def test_weights_are_those_of_the_file_and_only_the_head_is_the_seeds(weights, tmp_path):
    safe = tmp_path / "resnet18.safetensors"
    save_file(torch.load(weights, weights_only=True), safe)
    of = [fresh(ClassifierConfig("resnet18", weights=str(path), frozen=True), SHAPE, 3, seed) for path, seed in ((weights, 0), (safe, 1))]
    assert of[0].pretrained == of[1].pretrained == weights_fingerprint(of[0].body) and of[0].body_fingerprint() == of[0].pretrained
    assert not torch.equal(of[0].head.weight, of[1].head.weight)
    assert torch.equal(of[0].head.weight, fresh(ClassifierConfig("resnet18"), SHAPE, 3, 0).head.weight)
    assert of[0].pretrained != fresh(ClassifierConfig("resnet18"), SHAPE, 3, 0).body_fingerprint()


def test_a_fresh_network_is_a_function_of_the_seed_and_leaves_the_stream():
    state = torch.get_rng_state()
    first, again, other = (weights_fingerprint(fresh(ClassifierConfig("resnet18"), SHAPE, 3, seed)) for seed in (0, 0, 1))
    assert first == again != other and torch.equal(torch.get_rng_state(), state)


def test_files_of_older_versions_fit(tmp_path):
    """Without counters of batches, and densenet's with a dot in the names of its layers."""
    theirs = models.densenet121()
    old = {name.replace("denselayer1.norm1", "denselayer1.norm.1").replace("denselayer1.conv2", "denselayer1.conv.2"): value
           for name, value in theirs.state_dict().items() if not name.endswith("num_batches_tracked")}
    torch.save({"state_dict": old}, tmp_path / "old.pt")
    network = load_pretrained(built("densenet121"), str(tmp_path / "old.pt"))
    assert torch.equal(network.body.features.denseblock1.denselayer1.conv2.weight, theirs.features.denseblock1.denselayer1.conv2.weight)


def test_auxiliary_classifiers_are_left_out(tmp_path):
    theirs = models.googlenet(init_weights=False)
    assert any(name.startswith("aux1.") for name in theirs.state_dict())
    torch.save(theirs.state_dict(), tmp_path / "googlenet.pt")
    network = load_pretrained(built("googlenet"), str(tmp_path / "googlenet.pt")).train()
    assert network.body.transform_input and network(images(side=64)).shape == (4, 3)


def test_weights_of_another_architecture_are_named(weights, tmp_path):
    with pytest.raises(RunError, match=r"of another architecture: it lacks layer1.0.conv3.weight.* Give weights of --network resnet50"):
        load_pretrained(built("resnet50"), str(weights))
    state = torch.load(weights, weights_only=True)
    torch.save({**state, "conv1.weight": torch.zeros(64, 1, 7, 7)}, tmp_path / "grey.pt")
    with pytest.raises(RunError, match=r"of another shape: conv1.weight \(64×1×7×7 in the file, 64×3×7×7 built\)"):
        load_pretrained(built(), str(tmp_path / "grey.pt"))


def test_weights_that_cannot_be_read(tmp_path, monkeypatch):
    (tmp_path / "broken.pt").write_bytes(b"no archive")
    for path, message in ((tmp_path / "none.pt", "does not exist"), (tmp_path / "broken.pt", "is damaged")):
        with pytest.raises(RunError, match=message):
            load_pretrained(built(), str(path))
    with pytest.raises(RunError, match="--network smallcnn has no pretrained weights"):
        load_pretrained(built("smallcnn"), "default")

    def offline(*_, **__):
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", offline)
    with pytest.raises(RunError, match=r"cannot download the weights of resnet18 .*no route.* Fetch https://.*pth .*--weights PATH"):
        load_pretrained(built(), "default")


def test_default_weights_are_torchvisions_own(weights, monkeypatch):
    asked = {}

    def download(url, *_, **options):
        asked.update(options, url=url)
        return torch.load(weights, weights_only=True)

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", download)
    network = load_pretrained(built(), "default")
    assert network.pretrained == load_pretrained(built(), str(weights)).pretrained
    assert asked["url"] == models.ResNet18_Weights.DEFAULT.url and asked["weights_only"] and asked["check_hash"]


# ---------------------------------------------------------------------------------------------------- what cannot be built
@pytest.mark.parametrize("arguments, message", [
    (("resnet19", SHAPE, 2), "mlp, smallcnn, small, and torchvision's families alexnet, .*vit.*family resnet: resnet101, .*resnet18"),
    (("squeezenet1_0", SHAPE, 2), "unknown network 'squeezenet1_0'"),
    (("resnet18", (2, 32, 32), 2), "grey or RGB images, of 1 or 3 channels, not 2"),
    (("resnet18", SHAPE, 2, 64), "has 512 features, not 64; leave --hidden out, or give --hidden 512"),
    (("alexnet", SHAPE, 2), "at least 63×63 pixels, not 32×32"),
    (("vit_b_32", SHAPE, 2), "images of 224×224 pixels only, not 32×32"),
])
def test_what_cannot_be_built(arguments, message):
    with pytest.raises(RunError, match=message):
        build_network(*arguments)


def test_names():
    assert {"resnet18", "resnet50", "vit_b_16", "convnext_tiny"} <= set(names()) and len(names()) > 50
    assert backbone("resnet18") is backbone("resnet18") and issubclass(backbone("resnet18"), Backbone) and backbone("mlp") is None
    assert all(backbone(name).cam_layer for name in names() if not name.startswith("vit"))
    assert build_network("small", SHAPE, 2).name == ALIASES["small"] == "smallcnn"


def test_large_images_are_shown_in_smaller_parts():
    assert at_once((3, 28, 28)) == at_once((3, 64, 64)) == 1000 and 50 < at_once((3, 224, 224)) < 200 and at_once((3, 9999, 9999)) == 1


# ---------------------------------------------------------------------------------------------------- flags
def given(*arguments: str) -> dict:
    found = {}
    run_command(Options, lambda options: found.update(options.training.given()), arguments)
    return {name: value for name, value in found.items() if name in ("network", "weights", "frozen")}


@pytest.mark.parametrize("arguments, expected", [
    ([], {}), (["--backbone", "resnet18"], {"network": "resnet18"}),
    (["--network", "small", "--frozen"], {"network": "small", "frozen": True}),
    (["--frozen", "--weights", "w.pt"], {"weights": "w.pt", "frozen": True}), (["--frozen", "false"], {"frozen": False}),
])
def test_flags(arguments, expected):
    assert given(*arguments) == expected


def test_a_switch_that_is_neither_true_nor_false(capsys):
    with pytest.raises(SystemExit):
        given("--frozen", "perhaps")
    assert "true or false, not perhaps" in capsys.readouterr().err
