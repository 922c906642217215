"""Discs and squares whose size makes them brighter: everything that a data set of your own needs, in one file.

    python -m pgm.train --dataset docs/my_scm.py --run runs/mine
    python -m mechanisms.train --dataset docs/my_scm.py --run runs/mine --minutes 1
    python -m dscm.counterfactual --run runs/mine --do radius=2,4 --out grid.png
"""

from dataclasses import dataclass

import torch

from datasets import CausalDataset, Variable

SIDE = 16


@dataclass
class Shapes(CausalDataset):
    # 1. The causal story: every variable, what values it takes, and which others cause it directly.
    variables = (
        Variable("radius", "positive", unit="px"),
        Variable("brightness", "interval", parents=("radius",), low=0.2, high=1.0),
        Variable("shape", "binary", classes=("disc", "square")),
        Variable("image", "image", parents=("radius", "brightness", "shape"), shape=(1, SIDE, SIDE)),
    )

    size: int = 4000  # 2. Options, if you like: --option size=1000

    # 3. The data: attributes (N,) in physical units, images (N, C, H, W) in [0, 1] or uint8. With real data, read a
    #    table here and return datasets.ImageFiles(paths, shape) as the image. Training needs no more than this.
    def load(self, split):
        return self.world(self.noise(split), do={})

    # 4. Only if you know how the data arose: the truth, to score counterfactuals against.
    true_images_under = ("radius", "brightness", "shape")

    def true_counterfactual(self, split, index, do):
        return self.world({k: u[index] for k, u in self.noise(split).items()}, do)

    # 5. Only if attributes can be read off an image: a measurement, to check whether an intervention took effect.
    def measure(self, images):
        brightness = images.amax((1, 2, 3)).clamp(0.2, 1)
        covered = images[:, 0] / brightness[:, None, None]
        radius = (covered.sum(2).amax(1) / 2).clamp(min=0.5)  # half the longest row
        return {"radius": radius, "brightness": brightness, "shape": (covered.sum((1, 2)) > 3.57 * radius**2).long()}

    # Below is this example's own process: noise is drawn once, and an intervention replaces one line of the world.
    def noise(self, split):
        generator = torch.Generator().manual_seed({"train": 0, "valid": 1, "test": 2}[split])
        return {k: torch.randn(self.size, generator=generator) for k in ("radius", "brightness", "shape", "x", "y")}

    def world(self, u, do):
        radius = do.get("radius", 2.5 * torch.exp(0.25 * u["radius"]))
        brightness = do.get("brightness", 0.2 + 0.8 * torch.sigmoid(2 * (radius - 2.5) + 0.5 * u["brightness"]))
        shape = do.get("shape", (u["shape"] > 0).long())
        grid = torch.arange(SIDE) - (SIDE - 1) / 2
        dx, dy = grid - u["x"].clamp(-2, 2)[:, None, None], grid[:, None] - u["y"].clamp(-2, 2)[:, None, None]
        distance = torch.where(shape[:, None, None] == 1, torch.maximum(dx.abs(), dy.abs()), torch.hypot(dx, dy))
        image = brightness[:, None, None] * (radius[:, None, None] - distance + 0.5).clamp(0, 1)
        return {"radius": radius, "brightness": brightness, "shape": shape, "image": image[:, None]}
