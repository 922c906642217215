"""``python -m mechanisms.experts``: experts that compete to invert unknown mechanisms, trained, measured and put to use."""

from __future__ import annotations

from mechanisms.experts.options import DEFAULTS, Options
from mechanisms.runs.command import run_command


def main(options: Options) -> None:
    from datasets.errors import UserError

    run, transferred = options.run.run, options.transfer or options.transfer_from is not None
    asked = {"--apply": options.apply is not None, "--transfer": transferred, "--compare": bool(options.compare)}
    if sum(asked.values()) > 1:
        raise UserError(f"{' and '.join(name for name, given in asked.items() if given)} are two questions; ask one at a time")
    from mechanisms.experts.model import trained_seeds

    seed = options.training.seed
    if seed == DEFAULTS.seed and seed not in trained_seeds(run):  # as if none had been given
        seed = None
    if options.compare:
        from mechanisms.experts.compare import comparison

        print(comparison(options.compare))
    elif options.apply is not None:
        from mechanisms.experts.apply import apply
        print(apply(run, options.apply, options.out or run / "applied", seed, options.training.device))
    elif transferred:
        from mechanisms.experts.transfer import transfer

        transfer(run, options.transfer_from, options.training.device, seed)
    else:
        from mechanisms.experts.train import train_experts

        train_experts(options)


if __name__ == "__main__":
    run_command(Options, main)
