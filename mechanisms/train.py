"""``python -m mechanisms.train``: fits the image mechanism."""

from __future__ import annotations

from datasets.words import assignments
from mechanisms.image.options import Options
from mechanisms.runs.command import run_command


def main(options: Options) -> None:
    from mechanisms.image.fit import train_image

    settings = assignments(options.set, "--set")
    train_image(options.data.open(), options.data, options.run, options.training, options.mechanism, options.config, settings,
                options.preset, options.shift, options.flip)


if __name__ == "__main__":
    run_command(Options, main)
