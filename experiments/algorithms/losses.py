"""What a classifier is to say of an image whose foreground is gone: it no longer shows class y.

Chang, Adam and Goldenberg 2021, *Towards robust classification model by counterfactual and invariant data generation*
(CVPR), section 3. With logits l of K classes and p = softmax(l), each is a function ``(B, K) → (B,)`` in nats:

- ``negative``: −log(1 − p_y), the likelihood of "not y".
- ``uniform``: −(1/K)·Σ_k log p_k, the cross-entropy to a prediction that knows nothing; at least log K.
- ``uniform_others``: −(1/(K−1))·Σ_{k≠y} log p_k, the same without y; at least log(K−1).
- ``double``: −log p_{K+y} of 2K logits, whose second half are the classes "without y".
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from datasets.errors import valid_are
from mechanisms.runs.files import RunError

Loss = Callable[[Tensor, Tensor], Tensor]


def negative(logits: Tensor, labels: Tensor) -> Tensor:
    """−log(1 − p_y) = log(1 + exp(l_y − log Σ_{k≠y} exp l_k)); finite wherever the logits are, where p_y rounds to 1 too."""
    own = F.one_hot(labels, logits.shape[1]).bool()
    others = logits.masked_fill(own, -torch.inf).logsumexp(1)
    return F.softplus(logits.gather(1, labels[:, None])[:, 0] - others)


def uniform(logits: Tensor, labels: Tensor) -> Tensor:
    """−(1/K)·Σ_k log p_k; the labels do not matter."""
    return -logits.log_softmax(1).mean(1)


def uniform_others(logits: Tensor, labels: Tensor) -> Tensor:
    """−(1/(K−1))·Σ_{k≠y} log p_k; with two classes this is :func:`negative`."""
    logs = logits.log_softmax(1)
    return -logs.masked_fill(F.one_hot(labels, logits.shape[1]).bool(), 0.0).sum(1) / (logits.shape[1] - 1)


def double(logits: Tensor, labels: Tensor) -> Tensor:
    """−log p_{K+y} of 2K logits ``(B, 2K)``; images with their foreground are trained with −log p_y of the same 2K."""
    return F.cross_entropy(logits, labels + logits.shape[1] // 2, reduction="none")


COUNTERFACTUAL_LOSSES: dict[str, Loss] = {"negative": negative, "uniform": uniform, "uniform_others": uniform_others, "double": double}


def counterfactual_loss(name: str, logits: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The loss of that name of images without their foreground, in nats, ``(B,)``; in single precision at least.

    Args:
        logits: ``(B, K)``; of ``double``, ``(B, 2K)``.
        labels: ``(B,)`` in 0..K−1, of the images as they were.
        classes: K, at least 2.

    Raises:
        RunError: for an unknown name, or logits of another width.
    """
    if name not in COUNTERFACTUAL_LOSSES:
        raise RunError(f"unknown counterfactual loss {name!r}; {valid_are(COUNTERFACTUAL_LOSSES, name)}")
    width = 2 * classes if name == "double" else classes
    if logits.ndim != 2 or logits.shape[1] != width:
        raise RunError(f"the counterfactual loss {name!r} of {classes} classes needs logits (B, {width}), not {tuple(logits.shape)}")
    with torch.autocast(logits.device.type, enabled=False):
        return COUNTERFACTUAL_LOSSES[name](logits if logits.dtype == torch.float64 else logits.float(), labels)
