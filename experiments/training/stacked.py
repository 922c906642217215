"""Several seeds of one algorithm trained at once: their parameters stacked, one pass of batched matrix products for all.

Each seed gets the initial weights and the rows that it would get alone, and optimisers work entry by entry, so its weights
are, up to rounding, those of training it alone. When they are done they are taken apart into the ordinary folder of each
seed, from which each can be loaded, and resumed, on its own. Of networks with a frozen body the heads are stacked, and the body,
which is the same for all, is put back then.

It saves what an update costs beside arithmetic: 150 updates of five seeds of IRM on 14×14×2 images took 1.2 s of one core
instead of 2.5 with 16 hidden units and batches of 64, and 1.4 instead of 2.7 with 64 units. With 390 units and full batches
of 2,000 rows or more the arithmetic is all there is, and a stack was no faster. So it is done where that pays, see
:func:`pays`.
"""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, nn
from torch.func import functional_call

from experiments.algorithms.base import Algorithm, Batch
from experiments.training.options import NEVER
from experiments.training.selection import criteria
from experiments.training.store import forget
from experiments.training.trainer import Trainer
from mechanisms.runs.files import MetricsLog, load, locked, save, write_json
from mechanisms.training.devices import find_device
from mechanisms.training.hooks import Hooks, has_statistics
from mechanisms.training.loop import fit
from mechanisms.training.noise import Noise
from mechanisms.training.resume import finished_training
from mechanisms.training.state import CHECKPOINT, CONFIG, METRICS, WEIGHTS

_LARGE = 2e7  # entries of weights times rows of a batch, above which a processor has its hands full with one seed
_LARGE_HEAD = 1e6  # the same of a head on features, whose one thin product a stack makes slower: five heads on 512 features, full
# batches of 2,133 rows: 19 ms an update instead of 5 × 2; of 64 rows: 3 instead of 5 × 1
_AT, _DOT = "@", "/"


class Stacked(nn.Module):
    """S algorithms of one kind and shape as one module; its loss is the sum of theirs, so that each has its own gradient.

    Terms are ``name@seed``, ``(B,)``. A batch is ``(S, B, …)``, rows of each seed's own, or ``(B, …)``, the same for all.
    """

    def __init__(self, algorithms: Sequence[Algorithm], seeds: Sequence[int]) -> None:
        super().__init__()
        self.seeds = tuple(seeds)
        for name in trained(algorithms[0]):
            values = torch.stack([algorithm.get_parameter(name).detach() for algorithm in algorithms])
            self.register_parameter(name.replace(".", _DOT), nn.Parameter(values))
        self._one = [copy.deepcopy(algorithms[0])]  # in a list, so that it is no part of this module

    def forward(self, batch: Batch, noise: Any = None, progress: float = 1.0) -> dict[str, Tensor]:
        one = self._one[0].to(batch["label"].device).train(self.training)
        parameters = {name.replace(_DOT, "."): value for name, value in self.named_parameters()}
        rows = 0 if batch["label"].ndim == 2 else None
        terms = torch.vmap(lambda p, b: functional_call(one, p, (b, None, progress)), in_dims=(0, rows))(parameters, dict(batch))
        named = {f"{name}{_AT}{seed}": term[k] for name, term in terms.items() for k, seed in enumerate(self.seeds)}
        return {"loss": terms["loss"].sum(0), **named}


def trained(model: nn.Module) -> list[str]:
    """Names of the parameters that are trained."""
    return [name for name, value in model.named_parameters() if value.requires_grad]


def can_stack(trainer: Trainer) -> bool:
    """Whether this training gives the same alone and in a stack, and has not begun.

    No noise, state or second stage in the algorithm, no statistics of batches in the network, unless it reads features of a
    body that all seeds share, no rule of the loop that looks at all weights at once or at the clock, one process, images in
    memory.
    """
    if not trainer.plan.kind.stackable_with(trainer.settings):
        return False
    config, network = trainer.config, trainer.network()
    alike = bool(network.pretrained) if trainer.reads_features else not has_statistics(network)
    return (alike and PartialState().num_processes == 1 and trainer.augmentation() is None
            and config.minutes is None and config.patience is None and min(config.clip, config.skip) >= NEVER and trainer.train.in_memory
            and (trainer.overwrites(trainer.folder) or not (trainer.folder / CHECKPOINT).exists()))


def pays(trainer: Trainer) -> bool:
    """Whether a stack takes less time than its seeds one by one: on accelerators, and for small updates on processors."""
    if find_device(trainer.config.device).type != "cpu":
        return True
    weights = sum(p.numel() for p in trainer.network().trained_parameters())
    return weights * min(trainer.config.batch_size, len(trainer.train)) <= (_LARGE_HEAD if trainer.reads_features else _LARGE)


def learn_stacked(trainers: Sequence[Trainer]) -> list[int]:
    """Train those seeds of one algorithm that can be stacked, if these are two or more and it pays; the seeds that were trained.

    Raises:
        RunError: see :func:`mechanisms.training.loop.fit`.
    """
    together = [one for one in trainers if can_stack(one)]
    if len(together) < 2 or not pays(together[0]):
        return []
    first, seeds = together[0], [one.seed for one in together]
    folder = first.folder.parent / f"seeds-{'-'.join(map(str, seeds))}"
    models = [one.build() for one in together]
    config = replace(first.config, validation_rows=len(first.valid))
    total = first.updates(config, first.train)
    options = replace(first.options, resume=first.options.resume or finished_training(folder, config, total) is not None)
    criterion_by_rule = criteria(first.valid, first.rows.sizes)
    rules = {f"{rule}{_AT}{seed}": _of_seed(criterion, seed) for rule, criterion in criterion_by_rule.items() for seed in seeds}
    stacked = Stacked(models, seeds)
    for one in together:
        forget(one.options.run, one.plan.kind.name, one.seed)
    fit(stacked, first.train, first.valid, config, folder, {**first.describe(models[0]), "seeds": seeds}, options,
        Hooks(rules=rules, restarts=models[0].restarts(), seeds=seeds))
    for k, (one, model) in enumerate(zip(together, models, strict=True)):
        _take_out(k, one, model, len(seeds), folder)
        one.rows.trained.add(one.folder)
    shutil.rmtree(folder)
    return seeds


def _of_seed(criterion: Callable[[Mapping[str, float]], float], seed: int) -> Callable[[Mapping[str, float]], float]:
    return lambda means: criterion(_terms(means, seed))


def _terms(means: Mapping[str, float], seed: int) -> dict[str, float]:
    """The terms of one seed, under their own names."""
    return {name.rpartition(_AT)[0]: value for name, value in means.items() if name.rpartition(_AT)[2] == str(seed)}


def _take_out(k: int, trainer: Trainer, model: Algorithm, count: int, source: Any) -> None:
    """Write the ``k``-th of ``count`` trainings of a stack into the folder of its seed, as if it had been trained there."""
    state, kept, rows = load(source / CHECKPOINT, "training"), load(source / WEIGHTS), MetricsLog.read(source / METRICS)
    seed, folder = trainer.seed, trainer.folder
    config = replace(trainer.config, validation_rows=state["config"]["validation_rows"])
    description = trainer.describe(model)
    names, every = trained(model), [name for name, _ in model.named_parameters()]
    fixed = {name: value for name, value in model.state_dict().items() if name not in names}

    def sliced(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        learned = {name: weights[name.replace(".", _DOT)][k].clone() for name in names}
        return {name: learned[name] if name in learned else fixed[name] for name in model.state_dict()}

    def network(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name.removeprefix("network."): value for name, value in sliced(weights).items()}

    selected = {rule.rpartition(_AT)[0]: {**best, "weights": network(best["weights"])}
                for rule, best in kept["selected"].items() if rule.rpartition(_AT)[2] == str(seed)}
    position = {**state["position"], "elapsed": state["position"]["elapsed"] / count,
                "best": min(_terms(row["valid"], seed)["loss"] for row in rows)}
    optimizer = {"param_groups": [{**group, "params": list(range(len(every)))} for group in state["optimizer"]["param_groups"]], "state": {
        every.index(names[n]): {key: value[k].clone() if value.ndim and len(value) == count else value for key, value in entry.items()}
        for n, entry in state["optimizer"]["state"].items()}}
    averages = dict(zip(names, state["average"], strict=True))
    with locked(folder):
        (folder / CHECKPOINT).unlink(missing_ok=True)  # written last: without it nothing counts as trained
        write_json(folder / CONFIG, {"training": asdict(config), **description})
        log = MetricsLog(folder / METRICS)
        for row in rows:
            log.write({**row, "seconds": round(row["seconds"] / count, 3), "train": _terms(row["train"], seed),
                       "valid": _terms(row["valid"], seed)})
        save(folder / WEIGHTS, {**description, "weights": network(kept["weights"]), "step": kept["step"], "selected": selected})
        save(folder / CHECKPOINT, {
            "kind": "training", "config": asdict(config), "description": description, "model": sliced(state["model"]),
            "optimizer": optimizer, "average": [averages[name][k].clone() if name in averages else fixed[name] for name in every],
            "noise": Noise(seed).generator.get_state(), "position": position, "best": None, "selected": selected,
            "meter": {"sums": {}, "count": 0}})
