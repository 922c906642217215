"""An image mechanism of your own, of a family that is no VAE: each pixel a Gaussian whose mean and width its causes decide.
    x = μ(pa) + σ(pa)·u,    u ~ N(0, 1),    log p(x | pa) = Σ_pixels log N(x; μ(pa), σ(pa)²)

Abduction is exact, and so is the likelihood. What no cause explains, such as where a shape lies, stays in u.
    python -m pgm.train --dataset docs/my_scm.py --run runs/mine
    python -m mechanisms.train --dataset docs/my_scm.py --run runs/mine --mechanism docs/my_mechanism.py:Pixelwise --set width=128
"""
from dataclasses import dataclass

import torch
from torch import nn

from mechanisms.image.base import ImageMechanism, ImageNoise


@dataclass
class Residual(ImageNoise):  # 1. The noise u, (B, C, H, W): rows that can be counted, selected and joined.
    u: torch.Tensor

    def __len__(self):
        return len(self.u)

    def rows(self, index):
        return Residual(self.u[index])

    @classmethod
    def cat(cls, noises):
        return cls(torch.cat([noise.u for noise in noises]))

@dataclass(frozen=True)
class Settings:  # 2. Settings, if you like: --set width=128
    width: int = 64

class Pixelwise(ImageMechanism):
    settings = Settings

    def __init__(self, graph, config=None):
        super().__init__(graph, config)
        inputs, hidden, outputs = sum(v.width for v in self.parents), self.config.width, 2 * torch.Size(graph.image.shape).numel()
        self.network = nn.Sequential(nn.Linear(inputs, hidden), nn.SiLU(), nn.Linear(hidden, outputs))

    def normal(self, parents, rows):  # self.encode: the causes as numbers about 0, one row each
        mean, width = self.network(self.encode(parents, rows)).view(rows, 2, *self.graph.image.shape).unbind(1)
        return torch.distributions.Normal(mean, 0.01 + nn.functional.softplus(width))

    def forward(self, batch, noise, progress=1.0):  # 3. What is minimised: −log p(x | pa) itself, which is also its own bound
        energy = -self.normal(batch, len(batch["image"])).log_prob(batch["image"]).sum((1, 2, 3))
        return {"loss": energy, "free_energy": energy}

    def abduct(self, images, parents, draw=None, draws=1):  # 4. The u of images, K times: it is exact, so all draws are alike
        normal = self.normal(parents, len(images))
        return Residual(((images - normal.loc) / normal.scale).repeat(draws, 1, 1, 1))

    def predict(self, noise, parents, temperature=1.0, effect="total"):  # 5. The images that u makes under other causes
        self.check_effect(effect)
        normal = self.normal(parents, len(noise))
        return (normal.loc + temperature * normal.scale * noise.u).clamp(0, 1)

    def draw_noise(self, rows, draw):  # 6. u ~ p(u), which never sees a cause
        return Residual(draw(rows, *self.graph.image.shape))
