"""A training's batches: one order of rows, whatever reads them and however many processes share them."""

from __future__ import annotations

import itertools
import signal
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datasets.base import Split
from datasets.errors import UserError
from mechanisms.training.noise import seeded

Batch = dict[str, Tensor]


class _Rows(Dataset):
    """Adapts a split to a DataLoader: item = all rows of one batch, so that the order stays ours.

    An error that the user can mend is returned, not raised: a DataLoader would bury it under a worker's traceback.
    """

    def __init__(self, split: Split, batches: list[Tensor]) -> None:
        self.split, self.batches = split, batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, k: int) -> Batch | UserError:
        try:
            return self.split.batch(self.batches[k])
        except UserError as error:
            return UserError(str(error))


def _leave_signals_to_parent(worker: int) -> None:
    """Ctrl-C reaches every process of a terminal: the training stops after its update, so its workers must live on."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def epoch_of(train: Split, seed: int | Sequence[int], epoch: int, size: int, rank: int, world: int, workers: int, first: int,
             device: torch.device) -> Iterator[Batch]:
    """This process's batches of one epoch, from batch ``first`` on; the order of rows is a function of seed and epoch.

    A batch that is all of the split is never shuffled, and is made once for all epochs to come.
    """
    if size == len(train) and world == 1 and train.in_memory:
        whole = {name: value.to(device) for name, value in train.batch(slice(None)).items()}
        yield from itertools.repeat(whole)
    seeds = (seed,) if isinstance(seed, int) else seed
    orders = torch.stack([torch.randperm(len(train), generator=seeded(s, epoch)) for s in seeds])
    yield from batches(train, orders[0] if isinstance(seed, int) else orders, size, rank, world, workers, first)


def batches_from(train: Split, seed: int | Sequence[int], step: int, size: int, rank: int, world: int, workers: int,
                 device: torch.device) -> Iterator[Batch]:
    """This process's batches of all epochs, from that of update ``step`` on, without an end."""
    epoch, first = divmod(step, len(train) // size)
    while True:
        yield from epoch_of(train, seed, epoch, size, rank, world, workers, first, device)
        epoch, first = epoch + 1, 0


def batches(split: Split, order: Tensor, size: int, rank: int, world: int, workers: int = 0, start: int = 0) -> Iterator[Batch]:
    """This process's rows of each global batch, from batch ``start`` on; read ahead by workers if not in memory.

    Args:
        order: of all rows, ``(N,)``; several orders ``(S, N)`` of a split in memory make batches ``(S, B, …)``.
    """
    share = size // world
    chunks = [order[..., k + rank * share : k + (rank + 1) * share] for k in range(start * size, order.shape[-1] - size + 1, size)]
    if split.in_memory or not workers:
        yield from (_of_shape(rows.shape, split.batch(rows.flatten())) for rows in chunks)
    else:
        for batch in DataLoader(_Rows(split, chunks), batch_size=None, num_workers=workers, worker_init_fn=_leave_signals_to_parent):
            if isinstance(batch, UserError):
                raise batch
            yield batch


def _of_shape(shape: torch.Size, batch: Batch) -> Batch:
    """The rows ``(S·B, …)`` of S batches as ``(S, B, …)``; those of a single one as they are."""
    return batch if len(shape) == 1 else {name: value.unflatten(0, shape) for name, value in batch.items()}
