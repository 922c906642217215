"""The competition: one update of discriminator and experts together, for :func:`mechanisms.training.loop.fit`.

For a batch of transformed images x' and canonical images c (Parascandolo et al. 2018, algorithm 1):

1. Every expert's output of every image is scored without gradient; the winner of an image is argmax_j D(E_j(x')).
2. D's loss is BCE(D(c), 1) + BCE(D(E_j(x')), 0) over the outputs of *all* experts, of which each update takes one of each
   image: the winner's for a share ``winners`` of them, any at random for the rest. As published that share is 0; but then all
   but one in E are outputs of experts for what is not theirs, which D tells at a glance, and it learns little about the others.
   No gradient reaches an expert.
3. The experts' loss is BCE(D(E_w(x')), 1): only winners run again, with gradient, and D's weights are held constant in it.

The two losses have no parameter in common, so that one backward pass and one optimiser serve both.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import torch
from torch import Tensor, distributed, nn
from torch.func import functional_call
from torch.nn import functional as F

from mechanisms.experts.model import Experts
from mechanisms.experts.networks import VAEExpert
from mechanisms.training.noise import Noise

_PACE = 0.02  # of running means over updates
_APART = 0.1  # in standard deviations of a weight: how far a re-seeded expert is from the one that it copies
_REST = 200  # updates that a re-seeded expert is left alone
_LAST = 0.75  # of the time until assignment is free: later a re-seeded expert, and the average of its weights, would not be ready
_STEP = 0.1  # of the range of pixels, which is 1 (25.5 grey levels of 255): δ of the gradient penalty's finite difference
_FADE = 0.99  # of what favours the idle, each update


class Competition(nn.Module):
    """Experts with what their competition remembers: who is favoured, who has won, whether all began at the identity.

    Against collapse, each by a setting of :class:`mechanisms.experts.options.ExpertsConfig`:

    - *identity*: experts that do not start at the identity first reproduce their input until its error is small.
    - *temperature*: the winner is argmax_j D(E_j(x')) + T·g, Gumbel noise g, T falling to 0.
    - *balance*: the winner is argmax_j D(E_j(x')) + b_j, where b_j rises while expert j wins less than its share, in steps
      relative to the spread of scores. Many updates together are balanced, not each batch, whose mechanisms never are.
      What favours an expert is forgotten, or chance would add up until experts win, and learn, what others do well.
    - *reseed*: an idle expert becomes a copy of the busiest, which probably serves two mechanisms; until three quarters of the
      time before assignment is free.
    - *penalty*: ½·λ·((D(x + δn) − D(x)) / δ)², n ~ N(0, 1): on average ½·λ·‖∇D‖², by one more pass of D and no second
      derivative (a finite difference of Roth et al. 2017 and Mescheder et al. 2018). *spectral* and *instance_noise* too.
    """

    def __init__(self, experts: Experts) -> None:
        super().__init__()
        self.experts, self.config = experts, experts.config
        count = self.config.experts
        self.register_buffer("favour", torch.zeros(count))
        self.register_buffer("usage", torch.full((count,), 1 / count))
        self.register_buffer("rest", torch.zeros(()))
        self.register_buffer("identity_error", torch.tensor(0.0 if self._starts_as_identity else 1.0))

    @property
    def _starts_as_identity(self) -> bool:
        return self.config.expert == "residual" or not self.config.identity

    def forward(self, batch: Mapping[str, Tensor], noise: Noise, progress: float) -> dict[str, Tensor]:
        """Terms ``(B,)`` of a batch with ``image``, float, and ``canonical``, uint8, both ``(B, C, H, W)``.

        ``loss`` is ``discriminator`` + ``experts``. For expert j, ``won_j`` is its share of wins, ``loss_j`` what it adds to
        ``experts``, and ``score_j`` D of its outputs of all images.
        """
        x, canonical = batch["image"], batch["canonical"].float() / 255
        beginning = bool(self.identity_error > self.config.identity_error)
        if beginning and progress >= self.config.identity_share:
            beginning = False
            if self.training:
                warnings.warn("experts do not reproduce their input well enough (mean squared error above --identity-error "
                              f"{self.config.identity_error} after a share of --identity-share {self.config.identity_share} of the "
                              "training); the competition begins nevertheless. Train longer, or raise --identity-share", stacklevel=2)
        if self.training and self.config.reseed and not beginning and progress < _LAST * self.config.free:
            self._reseed(noise)
        with torch.no_grad():
            outputs = self._unlearned(x)
            scores = self.experts.scores(outputs)
            winner = scores.argmax(0)
            if self.training:
                winner = noise(len(x), self.config.experts).argmax(1) if beginning else self._assigned(scores, noise, progress)
        anyone, lot = noise(len(x), len(outputs)).argmax(1), torch.special.ndtr(noise(len(x)))
        chosen = outputs[torch.where(lot < self.config.winners, winner, anyone), torch.arange(len(x), device=x.device)]
        if beginning:  # nobody competes yet, and a discriminator ahead of its time would have won before they do
            discriminator = x.new_zeros(len(x)) + 0.0 * sum(p.sum() for p in self.experts.discriminator.parameters())
        else:
            discriminator = self._discriminator_loss(canonical, chosen, noise, progress)
        experts = self._experts_loss(x, winner, noise, progress, beginning)
        terms = {"loss": discriminator + experts, "discriminator": discriminator, "experts": experts}
        for j in range(len(outputs)):
            won = (winner == j).float()
            terms |= {f"won_{j}": won, f"loss_{j}": won * experts, f"score_{j}": scores[j]}
        return terms

    # ------------------------------------------------------------------------------------------------ who wins
    def _unlearned(self, x: Tensor) -> Tensor:
        """Outputs with running statistics, so that a norm over a batch of all mechanisms does not judge an expert of one."""
        self.experts.experts.eval()
        outputs = self.experts.outputs(x)
        self.experts.experts.train(self.training)
        return outputs

    def _assigned(self, scores: Tensor, noise: Noise, progress: float) -> Tensor:
        """The winners ``(B,)`` of scores ``(E, B)`` in training; remembers shares."""
        config = self.config
        left = max(0.0, 1 - progress / config.free) if config.free else 0.0
        spread = scores.std(0, unbiased=False).mean()  # of the experts on an image: what an advantage is worth
        if left:
            scores = scores + self.favour[:, None]
        if config.temperature and left:
            uniform = torch.special.ndtr(noise(scores.shape[1], len(scores))).clamp(1e-6, 1 - 1e-6)
            scores = scores - config.temperature * left * torch.log(-torch.log(uniform)).T
        winner = scores.argmax(0)
        *share, spread = _over_processes(torch.cat([F.one_hot(winner, len(scores)).float().mean(0), spread[None]]))
        if torch.isfinite(spread):  # or one broken batch would break all that is remembered; the loop skips such updates
            share = torch.stack(share)
            self.usage.lerp_(share, _PACE)
            self.favour.mul_(_FADE).add_(config.balance * spread * (1 - len(scores) * share) * bool(left))
        return winner

    @torch.no_grad()
    def _reseed(self, noise: Noise) -> None:
        """The idlest expert becomes a copy of the busiest, a little apart from it, if it wins far less than an equal share."""
        if self.rest > 0:
            self.rest.sub_(1)
            return
        count = len(self.usage)
        idle, busy = int(self.usage.argmin()), int(self.usage.argmax())
        if self.usage[idle] * count >= self.config.reseed or self.usage[busy] * count < 1.5:
            return
        for mine, theirs in zip(self.experts.experts[idle].parameters(), self.experts.experts[busy].parameters(), strict=True):
            apart = torch.randn(theirs.shape, generator=noise.generator, device=theirs.device)  # the same on all processes
            mine.copy_(theirs + _APART * (theirs.std(unbiased=False)) * apart)
        for mine, theirs in zip(self.experts.experts[idle].buffers(), self.experts.experts[busy].buffers(), strict=True):
            mine.copy_(theirs)
        self.usage[[idle, busy]] = self.usage[[idle, busy]].mean()
        self.favour[idle] = self.favour[busy]
        self.rest.fill_(_REST)

    # ------------------------------------------------------------------------------------------------ what is minimised
    def _with_instance_noise(self, images: Tensor, noise: Noise, progress: float) -> Tensor:
        """``images`` under instance noise, in training; it has fallen to 0 before the end."""
        sigma = self.config.instance_noise * max(0.0, 1 - progress / 0.9) if self.training else 0.0
        return images + sigma * noise(*images.shape) if sigma else images

    def _discriminator_loss(self, canonical: Tensor, made: Tensor, noise: Noise, progress: float) -> Tensor:
        """BCE(D(c), 1) + BCE(D(made), 0) and the penalty, ``(B,)``."""
        noisy = [self._with_instance_noise(images, noise, progress) for images in (canonical, made)]
        both = torch.cat(noisy)
        if not (self.training and self.config.penalty):
            real, fake = self.experts.discriminator(both).chunk(2)
            return F.softplus(-real) + F.softplus(fake)
        beside = [images + _STEP * noise(*images.shape) for images in noisy]
        there, beside = self.experts.discriminator(torch.cat([both, *beside])).chunk(2)
        real, fake = there.chunk(2)
        steepness = ((beside - there) / _STEP).square().view(2, -1).mean(0)
        return F.softplus(-real) + F.softplus(fake) + 0.5 * self.config.penalty * steepness

    def _experts_loss(self, x: Tensor, winner: Tensor, noise: Noise, progress: float, beginning: bool) -> Tensor:
        """Of each image in its winner's output: BCE(D(E_w(x')), 1), or at the beginning the squared error to x'; ``(B,)``.

        Every expert's weights are touched, winner or not, because processes that share a batch must agree on gradients.
        """
        loss, config = x.new_zeros(len(x)), self.config
        constant = {name: value.detach() for name, value in self.experts.discriminator.named_parameters()}
        eps = noise(len(x), config.latent) if config.expert == "vae" and self.training else None  # processes draw alike, whoever wins
        instance_noise = self._with_instance_noise(torch.zeros_like(x), noise, progress)
        errors = x.new_zeros(len(x))
        for j, expert in enumerate(self.experts.experts):
            if not len(rows := (winner == j).nonzero().flatten()):
                continue
            if isinstance(expert, VAEExpert):
                made, kl = expert.reconstruct(x[rows], None if eps is None else eps[rows])
            else:
                made, kl = expert(x[rows]), 0.0
            error = (made - x[rows]).square().mean((1, 2, 3))
            errors[rows] = error.detach()
            if beginning:
                own = error
            else:
                own = F.softplus(-functional_call(self.experts.discriminator, constant, (made + instance_noise[rows],)))
            loss = loss.index_add(0, rows, (own + config.beta * kl).to(loss.dtype))
        if self.training:
            if not self._starts_as_identity and beginning:
                (error,) = _over_processes(errors.mean()[None])
                if torch.isfinite(error):  # a weight of 0 would not do: 0·nan is nan, which no error is above
                    self.identity_error.lerp_(error, _PACE)
            loss = loss + 0.0 * sum(parameter.sum() for parameter in self.experts.experts.parameters())
        return loss


def _over_processes(values: Tensor) -> Tensor:
    """Mean over processes of what each has seen of the batch, so that all remember the same."""
    if distributed.is_available() and distributed.is_initialized():
        distributed.all_reduce(values)
        values = values / distributed.get_world_size()
    return values
