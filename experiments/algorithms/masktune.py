"""MaskTune: hide what the trained network looks at, and let it find something else.

Asgari et al. 2022, *MaskTune: Mitigating Spurious Correlations by Forcing to Explore*, algorithm 1.
"""

from __future__ import annotations

import copy
import sys
from dataclasses import asdict, dataclass

from accelerate import PartialState

from datasets.base import Split
from datasets.ranges import NotNegative, Positive, within
from experiments.algorithms.base import Algorithm, TrainingContext
from experiments.algorithms.erm import ERM
from experiments.algorithms.masks import Masks, find_masks, load_masks, masked, save_masks
from experiments.networks.base import Network
from mechanisms.runs.files import RunError, load, weights_fingerprint
from mechanisms.training.noise import seeded
from mechanisms.training.state import CHECKPOINT

_AS_BEFORE = ("optimizer", "weight_decay", "beta1", "beta2", "batch_size", "clip", "skip", "ema")
_VALIDATIONS = 4  # of the short fine-tuning
_LOW = 0.05  # of the peak; of 10,000 images of Spurious MNIST, fine-tuned at 0.01 of it: malicious 50 %, at 0.1: 73 %, at the peak: 96 %

Iterations = within(1, 1000)


@dataclass(frozen=True)
class MaskTuneSettings:
    """How images are masked, and how long the network is trained on them."""

    sigmas: NotNegative[float] = 2.0
    """Pixels are dropped where the map exceeds the mean of its positive values by so many standard deviations."""
    iterations: Iterations[int] = 1
    """How often the newest network's masks are made and it is trained on the images with these."""
    accumulate: bool = False
    """Whether earlier masks stay on, under those of later iterations."""
    random_masks: bool = False
    """Ablation: drop as many pixels of each image, at random places."""
    tune_epochs: Positive[float] = 1.0
    """Passes over the masked images in each iteration."""
    tune_learning_rate: Positive[float | None] = None
    """Learning rate of fine-tuning, constant; the last one of the first stage without it."""


class MaskTune(ERM):
    """ERM; then the same network, trained on for an epoch on the training images without the pixels that it relied on.

    The first stage is the run's own ERM of the same seed. Its XGradCAM maps of the predicted class, at the network's
    ``cam_layer``, are taken in eval mode (:mod:`experiments.algorithms.masks`). Fine-tuning begins bit for bit with the weights that
    the maps are of, in train mode (batch norm included), with the first stage's optimiser, begun anew, at its last
    learning rate. Masks are kept in ``masks-<iteration>.pt`` with a fingerprint of these weights, and are made anew if that
    is not the one of the weights at hand.
    """

    name = "masktune"
    title = "MaskTune"
    assumes = "what is spurious lies in few places, and the network looks at these first; the rest of the image suffices for the label"
    needs = frozenset({"camera"})
    settings = MaskTuneSettings
    reads_features = False
    stackable = False

    @classmethod
    def learn(cls, trainer: TrainingContext) -> Algorithm:
        """Both stages, and further iterations if there are to be any; each is trained, or only read where it is finished.

        Raises:
            RunError: for a network without maps; see also :meth:`experiments.algorithms.base.TrainingContext.fit`.
        """
        settings, first = trainer.settings, trainer.resolve("erm").training
        model = trainer.base()
        if not model.network.cam_layer:
            raise RunError(f"masktune begins with the network that erm has trained, {model.network.name}, which has no layer of maps; take "
                           "--network smallcnn for both")
        rate = settings.tune_learning_rate or last_learning_rate(trainer)
        masks = None
        for number in range(1, settings.iterations + 1):
            masks = stored_masks(trainer, model.network, number, masks)
            model = trainer.build(copy.deepcopy(model.network))
            stage = "" if number == settings.iterations else stage_name(number)
            model = trainer.fit(model, stage, masked(trainer.train, masks), epochs=settings.tune_epochs, learning_rate=rate,
                                schedule="constant", warmup=0, patience=None, validations=min(_VALIDATIONS, trainer.config.validations),
                                **{name: getattr(first, name) for name in _AS_BEFORE})
        return model


def stage_name(number: int) -> str:
    """Folder of an iteration that is not the last."""
    return f"iteration-{number}"


def last_learning_rate(trainer: TrainingContext) -> float:
    """Of the last update of the first stage; warns where it has fallen so low that fine-tuning changes little."""
    peak = trainer.resolve("erm").training.learning_rate
    rate = float(load(trainer.base_folder / CHECKPOINT, "training")["optimizer"]["param_groups"][0]["lr"])
    if rate < _LOW * peak and PartialState().is_main_process:
        print(f"warning: the last learning rate of erm is {rate:.2g}, {rate / peak:.1g} of its peak: fine-tuning at this rate changes "
              "little. Set one, --set masktune.tune_learning_rate=RATE, or train with --schedule constant", file=sys.stderr)
    return rate


def next_masks(network: Network, split: Split, settings: MaskTuneSettings, seed: int, number: int, earlier: Masks | None) -> Masks:
    """The masks that iteration ``number`` trains with.

    If masks accumulate, ``network`` is shown the images with the ``earlier`` ones, which it was trained on, and these stay.
    """
    stay = earlier if settings.accumulate else None
    masks = find_masks(network, network.cam_layer, split if stay is None else masked(split, stay), settings.sigmas)
    if settings.random_masks:
        masks = masks.scattered(seeded(seed, 11, number))
    return masks if stay is None else masks.with_earlier(stay)


def stored_masks(trainer: TrainingContext, network: Network, number: int, earlier: Masks | None) -> Masks:
    """:func:`next_masks` of the training split: read if they were made with these weights and settings, else made and kept."""
    settings = {name: value for name, value in asdict(trainer.settings).items() if name in ("sigmas", "accumulate", "random_masks")}
    origin = {"weights": weights_fingerprint(network), "layer": network.cam_layer, "rows": len(trainer.train), "iteration": number,
              "seed": trainer.seed, **settings}
    path, state = trainer.folder / f"masks-{number}.pt", PartialState()
    with state.main_process_first():  # the others read what it has made
        if (masks := load_masks(path, origin)) is not None:
            return masks
        masks = next_masks(network, trainer.train, trainer.settings, trainer.seed, number, earlier)
        save_masks(path, masks, origin)
    if state.is_main_process:
        print(f"{trainer.folder.name}: {masks.report()}", file=sys.stderr)
        if masks.warning():
            print(f"warning: {masks.warning()}", file=sys.stderr)
    return masks
