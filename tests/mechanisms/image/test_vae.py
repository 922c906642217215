"""The VAE with one latent vector; its laws are in test_image_mechanism.py."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from datasets import Graph, Variable
from datasets.errors import UserError
from mechanisms.image.config import PRESETS, ImageConfig
from mechanisms.image.vae import VAE
from mechanisms.training.noise import Noise
from tests.errors import naming

ROWS = 8
TINY = ImageConfig(encoder="4b1,1b1", decoder="1b1,4b2", widths="4:8,1:16", patch=4, z_dim=3, embedding=12)


def values(rows: int = ROWS) -> dict[str, Tensor]:
    return {"width": torch.rand(rows, generator=torch.Generator().manual_seed(0)) + 0.5}


def graph(channels: int = 1, size: int = 16) -> Graph:
    image = Variable("image", "image", ("width",), shape=(channels, size, size))
    return Graph([Variable("width", "positive"), image]).fitted(values(200))


@pytest.mark.parametrize("prior", ["exogenous", "mediator"])
@pytest.mark.parametrize("channels, size", [(1, 32), (3, 32), (1, 28), (3, 4)])
def test_all_of_the_image_comes_from_one_vector(prior, channels, size):
    torch.manual_seed(0)
    model = VAE(graph(channels, size), ImageConfig(prior=prior, z_dim=5, embedding=8)).eval()
    noise = model.draw_noise(ROWS, Noise(0))
    assert [z.shape for z in noise.latents] == [(ROWS, 5, 1, 1)] == [z.shape for z in model.abduct(torch.rand(ROWS, channels, size, size),
                                                                                                   values()).latents]
    bare = model.predict(noise, values(), temperature=0.0)
    assert bare.shape == (ROWS, channels, size, size) and bare.min() >= 0 and bare.max() <= 1
    constant = model.predict(replace(noise, latents=(torch.zeros(ROWS, 5, 1, 1),)), {"width": torch.ones(ROWS)}, temperature=0.0)
    assert torch.allclose(constant[0], constant[1:], atol=1e-5) and not torch.allclose(bare[0], bare[1], atol=1e-3)


@pytest.mark.parametrize("channels, size", [(1, 32), (3, 32), (1, 64)])
def test_the_latent_vector_is_heard_from_the_start(channels, size):
    """Of signals that arrive a thousand times weaker, the decoder soon makes noise to be ignored: the rate stays at 0."""
    torch.manual_seed(0)
    model, given = VAE(graph(channels, size)).eval(), {"width": torch.ones(ROWS)}
    images = torch.rand(ROWS, channels, 4, 4).repeat_interleave(size // 4, 2).repeat_interleave(size // 4, 3)
    spread = model.predict(model.draw_noise(ROWS, Noise(0)), given, temperature=0.0).std(0).mean()
    means, draws = model.abduct(images, given).latents[0], model.abduct(images, given, Noise(0)).latents[0]
    assert spread > 0.02 and means.std(0).mean() > 0.5 * (draws - means).std()


def test_reference_topology_fits():
    model = VAE(graph(1, 32), ImageConfig(**PRESETS["reference"]))
    assert model.levels == (1,) and sum(len(stage) for stage in model.decoder) == 20


@pytest.mark.parametrize("decoder", ["4b1", "4b2"])
def test_a_decoder_without_resolution_1_is_refused(decoder):
    with pytest.raises(UserError, match=naming("VAE decoder 1 4")):
        VAE(graph(), replace(TINY, decoder=decoder))


@pytest.mark.parametrize("prior", ["exogenous", "mediator"])
@pytest.mark.parametrize("likelihood", ["gaussian", "logistic-mixture"])
def test_training_lowers_the_free_energy(prior, likelihood):
    torch.manual_seed(0)
    model = VAE(graph(), replace(TINY, prior=prior, likelihood=likelihood, components=3))
    bright = values()["width"].view(-1, 1, 1, 1).expand(-1, 1, 16, 16) / 2  # the parent is the brightness
    batch = dict(values(), image=(bright * 255).round() / 255)
    optimizer, noise, energies = torch.optim.Adam(model.parameters(), lr=1e-2), Noise(0), []
    for _ in range(60):
        optimizer.zero_grad()
        energies.append((loss := model(batch, noise)["loss"].mean()).item())
        loss.backward()
        optimizer.step()
    assert energies[-1] < 0.6 * energies[0]
