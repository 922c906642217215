"""``python -m dscm.export``: intervened images on disk, with attributes, source rows and provenance, for any trainer."""

from __future__ import annotations

from dscm.exports.options import Options
from mechanisms.runs.command import run_command


def main(options: Options) -> None:
    options.check()
    from dscm.exports.run import export_run

    export_run(options.run, options.do, options.out, options.split, options.count, options.draws, options.truth, options.format,
               options.shard_size, options.temperature, options.seed, options.device)


if __name__ == "__main__":
    run_command(Options, main)
