"""How a command line names a data set. Imports no torch, so that ``--help`` answers at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from datasets.errors import UserError
from datasets.words import assignments

if TYPE_CHECKING:
    from datasets.base import CausalDataset


@dataclass(frozen=True)
class DataOptions:
    """Which data, and its options."""

    dataset: str = "morphomnist"
    """A registered data set, or the path of your own file (my_scm.py)."""
    data_dir: Path | None = None
    """Folder with the source files, for data sets that read some."""
    download: bool = False
    """Fetch the source files into --data-dir, for data sets that can."""
    option: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Any further option of the data set as KEY=VALUE; may be repeated."""

    def as_dict(self) -> dict[str, Any]:
        """Only what was set: the data set's own defaults hold for the rest."""
        options: dict[str, Any] = assignments(self.option, "--option")
        for key, given in (("data_dir", self.data_dir is not None), ("download", self.download)):
            if given and key in options:
                raise UserError(f"--{key.replace('_', '-')} and --option {key}={options[key]} say the same; leave one out")
        if self.data_dir is not None:
            options["data_dir"] = self.data_dir
        if self.download:
            options["download"] = True
        return options

    def open(self) -> CausalDataset:
        from datasets.registry import open_dataset

        return open_dataset(self.dataset, self.as_dict())
