"""``python -m mechanisms.experts``: experts that compete to invert unknown mechanisms, trained, measured and put to use."""

from __future__ import annotations

from datasets.errors import UserError
from mechanisms.experts.options import DEFAULTS, Options
from mechanisms.runs.command import run_command


def main(options: Options) -> None:
    run, transferred = options.run.run, options.transfer or options.transfer_from is not None
    asked = {"--apply": options.apply is not None, "--transfer": transferred, "--compare": bool(options.compare)}
    if sum(asked.values()) > 1:
        raise UserError(f"{' and '.join(name for name, given in asked.items() if given)} are two questions; ask one at a time")
    from mechanisms.experts import apply, compare, model, train, transfer

    seed, device = options.training.seed, options.training.device
    if seed == DEFAULTS.seed and seed not in model.trained_seeds(run):  # as if none had been given
        seed = None
    if options.compare:
        print(compare.comparison(options.compare))
    elif options.apply is not None:
        print(apply.apply(run, options.apply, options.out or run / "applied", seed, device))
    elif transferred:
        transfer.transfer(run, options.transfer_from, device, seed)
    else:
        train.train_experts(options.data, options.run, options.training, options.config, options.seeds)


if __name__ == "__main__":
    run_command(Options, main)
