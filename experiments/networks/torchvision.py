"""torchvision's image classifiers as networks by name, freshly initialised or with weights that were trained elsewhere."""

from __future__ import annotations

import re
from functools import cache, lru_cache
from pathlib import Path
from urllib.error import URLError

import torch
from accelerate import PartialState
from torch import Tensor, nn

from experiments.networks.base import Network, Shape
from experiments.networks.own import check_weights, read_weights, unwrapped
from mechanisms.runs.files import RunError, weights_fingerprint

NONE, DEFAULT = "none", "default"
# where a family's last maps are, by the beginning of its names; transformers of patches have none
_MAPS = {"resne": "layer4", "wide_resnet": "layer4", "regnet": "trunk_output", "shufflenet": "conv5", "mnasnet": "layers",
         "googlenet": "inception5b", "inception": "Mixed_7c", "swin": "permute", "maxvit": "blocks.3", "vit": ""}
_ELSEWHERE = "features"  # alexnet, convnext, densenet, efficientnet, mobilenet, vgg
_ONE_SIZE = ("vit_", "maxvit_")
# these have auxiliary classifiers, and expect images that were normalised otherwise unless they are told
_INCEPTIONS = {"aux_logits": False, "init_weights": True, "transform_input": True}
_AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
_OLD_DENSE = re.compile(r"^(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)$")  # as files of densenet still name their layers


class Backbone(Network):
    """A classifier of torchvision whose last module is linear: that is replaced by the head; one output for two classes.

    Images are normalised inside, with the mean and standard deviation that torchvision's own weights of this network were
    trained with (ImageNet's (0.485, 0.456, 0.406) and (0.229, 0.224, 0.225) for nearly all), also where it is not
    pretrained; grey images are repeated to three channels. They are not resized. Classes of this class are made by
    :func:`backbone`.

    Raises:
        RunError: for images of other than one or three channels, or of a size that the network cannot take; for another
            ``hidden`` than the features that the network has.
    """

    def __init__(self, shape: Shape, classes: int, hidden: int | None = None) -> None:
        from torchvision.models import get_model_weights

        super().__init__(shape, classes, hidden)
        published = get_model_weights(self.name).DEFAULT
        self._check(published.meta["min_size"])
        self.body, _, self.hidden = _body(self.name)
        if hidden not in (None, self.hidden):
            raise RunError(f"--network {self.name} has {self.hidden} features, not {hidden}; leave --hidden out, or give --hidden "
                           f"{self.hidden} where a recipe sets another")
        self.head = nn.Linear(self.hidden, 1 if classes == 2 else classes)
        transform = published.transforms()
        for name in ("mean", "std"):  # constants of the network's name, so no part of its state
            self.register_buffer(name, torch.tensor(getattr(transform, name))[:, None, None], persistent=False)
        self.to(memory_format=torch.channels_last)  # ResNet-18 takes a third less time so on 224×224 images

    def features(self, images: Tensor) -> Tensor:
        return self.body((images.expand(-1, 3, -1, -1) - self.mean) / self.std)

    def _check(self, least: tuple[int, int]) -> None:
        channels, *size = self.shape
        if channels not in (1, 3):
            raise RunError(f"--network {self.name} takes grey or RGB images, of 1 or 3 channels, not {channels}; take --network mlp or "
                           "smallcnn")
        if self.name.startswith(_ONE_SIZE):
            if tuple(size) != (224, 224):
                raise RunError(f"--network {self.name} takes images of 224×224 pixels only, not {size[0]}×{size[1]}; take --network "
                               "resnet18")
        elif size[0] < least[0] or size[1] < least[1]:
            raise RunError(f"--network {self.name} needs images of at least {least[0]}×{least[1]} pixels, not {size[0]}×{size[1]}; take "
                           "--network resnet18 or smallcnn")


def _body(name: str) -> tuple[nn.Module, str, int]:
    """torchvision's network without its last module, the name of that, and how many features it would read."""
    from torchvision.models import get_model

    body = get_model(name, weights=None, **(_INCEPTIONS if name in ("googlenet", "inception_v3") else {}))
    *_, (path, last) = body.named_modules()
    body.set_submodule(path, nn.Identity())
    return body, path, last.in_features


@cache
def names() -> tuple[str, ...]:
    """Of all classifiers of torchvision that end in a linear layer."""
    from torchvision import models

    return tuple(name for name in models.list_models(module=models) if not name.startswith("squeezenet"))  # ends in a convolution


@cache
def backbone(name: str) -> type[Backbone] | None:
    """The network of that name; None if torchvision has none such."""
    if name not in names():
        return None
    layer = next((layer for start, layer in _MAPS.items() if name.startswith(start)), _ELSEWHERE)
    return type(name, (Backbone,), {"name": name, "cam_layer": f"body.{layer}" if layer else "", "__doc__": Backbone.__doc__})


def known(name: str) -> str:
    """What to tell who asked for a network of a name that there is not: the families, and the members of the one meant."""
    families = dict.fromkeys(_family(n) for n in names())
    meant = [n for n in names() if name and _family(n) == _family(name)]
    members = f". Of the family {_family(name)}: {', '.join(meant)}" if meant else ""
    return f"families {', '.join(families)} (for instance resnet18, resnet50, efficientnet_b0){members}"


def _family(name: str) -> str:
    return re.match(r"[a-z]*(_resnet)?", name.lower()).group()


# -------------------------------------------------------------------------------------------------------- weights


def load_pretrained(network: Network, weights: str) -> Network:
    """Put weights into the body of ``network``, whose ``pretrained`` is then their fingerprint; its head stays as it is.

    Args:
        weights: ``none`` changes nothing; ``default`` takes torchvision's, which are downloaded once; else the path of a state
            dict of torchvision's network of that name (``.pt`` or ``.safetensors``), whose own classifier is left out.

    Raises:
        RunError: for networks that are not torchvision's, a download that fails, a file that is missing or damaged, and
            weights of another architecture, naming what differs.
    """
    if weights == NONE:
        return network
    if not isinstance(network, Backbone):
        raise RunError(f"--weights {weights}: --network {network.name} has no pretrained weights, only torchvision's networks have; take "
                       "--weights none, or --network resnet18")
    file = Path(weights)
    state, network.pretrained = _pretrained(network.name, weights, file.stat().st_mtime_ns if file.is_file() else 0)
    network.body.load_state_dict(state)
    return network


@lru_cache(maxsize=1)  # every seed and algorithm of a command begins with the same
def _pretrained(name: str, weights: str, changed: int) -> tuple[dict[str, Tensor], str]:
    """The body's weights, checked, and their fingerprint."""
    if weights == DEFAULT:
        where, state = f"torchvision's file of {name}", _downloaded(name)
    else:
        where, state = weights, read_weights(Path(weights))
    with torch.random.fork_rng(devices=[]):
        body, replaced, _ = _body(name)
    state = unwrapped(state, body.state_dict())
    if name.startswith("densenet"):
        state = {_OLD_DENSE.sub(r"\1\2", n): value for n, value in state.items()}
    own = body.state_dict()
    counters = {n: value for n, value in own.items() if n.endswith("num_batches_tracked")}  # older files have none
    state = {**counters, **{n: value for n, value in state.items() if not n.startswith((f"{replaced}.", *_AUXILIARY))}}
    check_weights(own, state, where, f"Give weights of --network {name}, or the --network that they are of")
    body.load_state_dict(state)
    return body.state_dict(), weights_fingerprint(body)


def _downloaded(name: str) -> dict[str, Tensor]:
    from torchvision.models import get_model_weights

    published = get_model_weights(name).DEFAULT
    with PartialState().main_process_first():  # the others read what it has kept
        try:
            return published.get_state_dict(progress=True, check_hash=True, map_location="cpu", weights_only=True)
        except (URLError, OSError, RuntimeError) as error:
            raise RunError(f"--weights default: cannot download the weights of {name} ({error}). Fetch {published.url} where there is a "
                           "network, and give --weights PATH; or begin without: --weights none") from error
