"""How a command line asks for experts. Imports no torch, so that ``--help`` answers at once."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from datasets.errors import UserError
from datasets.options import DataOptions
from datasets.ranges import AtLeastOne, NotNegative, Seeds, Share, Width, check_ranges, within
from mechanisms.training.config import RunOptions, TrainingConfig

ExpertName = Literal["residual", "cnn", "vae"]
DiscriminatorName = Literal["compact", "published", "domain"]
DEFAULT_STEPS = 1500
Reach = within(0, 1024)
DEFAULTS = TrainingConfig(batch_size=48, optimizer="adam", learning_rate=2e-3, warmup=30, weight_decay=0.0, beta1=0.5, beta2=0.99,
                          clip=1e9, skip=1e9, ema=0.99, validation_rows=500, precision="fp32")


@dataclass(frozen=True)
class ExpertsConfig:
    """The experts, the discriminator, and what keeps the competition from collapsing."""

    experts: AtLeastOne[int] = 10
    """How many experts compete."""
    expert: ExpertName = "residual"
    """residual: x plus a wide linear filter plus a small network, an identity at the start; cnn and vae: as published."""
    width: Width[int] = 16
    """Channels of a residual expert's network, at half of the resolution."""
    reach: Reach[int] = 6
    """How many pixels a residual expert's linear filter reaches in each direction; 0 for none."""
    latent: Width[int] = 256
    """Latent numbers of a VAE expert."""
    beta: NotNegative[float] = 1e-6
    """Weight of a VAE expert's KL term, per nat: beside the mean squared error while it learns the identity, then beside the
    discriminator's cross-entropy."""
    discriminator: DiscriminatorName = "compact"
    """compact: strided and cheap; published: that of the paper; domain: the domain classifier of the course project."""
    discriminator_width: Width[int] = 32
    """Channels of the compact discriminator's first layer."""
    identity: bool = True
    """Begin at the identity: a residual expert by its initial weights, others by a first phase of reproducing their input."""
    identity_error: NotNegative[float] = 0.002
    """The first phase ends where the mean squared error is below this."""
    identity_share: Share[float] = 0.3
    """It also ends after this share of the training."""
    free: Share[float] = 0.8
    """Share of the training after which nothing but the scores decides who wins."""
    temperature: NotNegative[float] = 0.0
    """Gumbel noise on the scores at first, which falls to 0 until --free."""
    balance: NotNegative[float] = 0.05
    """Until --free, experts that win less than their share are favoured: each update by this many standard deviations of the
    experts' scores more; 0 for no balance."""
    reseed: Share[float] = 0.2
    """Until three quarters of --free, an expert whose running share of wins is below this fraction of an equal one becomes a copy
    of the busiest; 0 for never."""
    winners: Share[float] = 0.5
    """Share of what the discriminator is trained against that are winners' outputs; the rest are any expert's, as published (0)."""
    penalty: NotNegative[float] = 3.0
    """Weight of the discriminator's gradient penalty; 0 for none."""
    spectral: bool = False
    """Spectral norm on the discriminator's layers."""
    instance_noise: NotNegative[float] = 0.1
    """Standard deviation of noise on what the discriminator is trained with, which falls to 0."""

    def check(self, batch_size: int, rows: int | None = None) -> None:
        """Raises UserError for a number that makes no sense with this batch size, and this many training images."""
        most = batch_size if rows is None else min(batch_size, rows)
        if not 1 <= self.experts <= most:
            limit = f"--batch-size {batch_size}" if most == batch_size else f"the {rows} training images"
            raise UserError(f"--experts {self.experts} must lie between 1 and {limit}: with more experts than images in "
                            "a batch, most win nothing in most updates and never learn. A few more than there may be mechanisms are enough")
        check_ranges(self)


@dataclass(frozen=True)
class ExpertsData(DataOptions):
    """Which data, and its options."""

    dataset: str = "transformed-mnist"
    """A data set with canonical images: transformed-mnist, unpaired-folders, or the path of your own file."""
    transforms: str = ""
    """The mechanisms, with commas between, as right,down,invert or rotate=45,noise=.1; without it ten, those of the paper."""
    digits: str = ""
    """Which digits to keep, with commas between; all without it."""
    colour: bool = False
    """Digits in colours of their own instead of grey ones; folders in colour."""

    def as_dict(self) -> dict[str, object]:
        given = {"transforms": self.transforms, "digits": self.digits, "channels": "3" if self.colour else ""}
        own, further = {name: value for name, value in given.items() if value}, super().as_dict()
        if twice := sorted(own.keys() & further.keys()):
            flag = "colour" if twice[0] == "channels" else twice[0]
            raise UserError(f"--{flag} and --option {twice[0]}={further[twice[0]]} say the same; leave one out")
        return {**own, **further}


@dataclass(frozen=True)
class Options:
    """Train experts that compete to invert the unknown mechanisms of images, and measure which one each has found.

    Without a budget, 1,500 updates a seed. With --apply, --transfer or --compare nothing is trained.
    """

    data: ExpertsData = field(default_factory=ExpertsData)
    run: RunOptions = field(default_factory=lambda: RunOptions(run=Path("runs/experts")))
    training: TrainingConfig = DEFAULTS
    config: ExpertsConfig = field(default_factory=ExpertsConfig)
    seeds: Seeds[int] = 1
    """So many trainings, from --seed on, each in a folder of its own; the table is over all of them."""
    apply: Path | None = None
    """Route every image of this folder through the expert that wins it, and write the results."""
    out: Path | None = None
    """Where --apply writes; RUN/applied without it."""
    transfer: bool = False
    """Score the experts of --run on images of another source: scikit-learn's digits, or with --transfer-from images of a folder."""
    transfer_from: Path | None = None
    """Folder of images of another kind (Fashion-MNIST, Omniglot, …), on which the run's transformations act."""
    compare: tuple[Path, ...] = ()
    """Run folders to print side by side, a row for each over its seeds; nothing is trained."""
