"""What a user's own classifier answers with: logits, probabilities or log-probabilities, and how these become logits ``(B, K)``.

Whether numbers are logits cannot be seen from every answer, but probabilities give themselves away: all of a trial lie in [0, 1]. Read as
logits they would be wrong without a word (the sigmoid of a probability is never below ½), so they are refused until ``--outputs`` says.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mechanisms.runs.files import RunError

AUTO, LOGITS, PROBABILITIES, LOG_PROBABILITIES = "auto", "logits", "probabilities", "log-probabilities"
_ROUNDING = 1e-2  # of sums of probabilities in half precision
_LEAST = -80.0  # log of what is taken for 0, so that its logit is finite in single precision


def logits_of(answer: Any, rows: int, classes: int, where: str, outputs: str = LOGITS) -> Tensor:
    """The answer as logits ``(B, K)``, where it is and with its graph.

    Of two classes, a single number per image is about the second one: a logit l stands for (−l/2, l/2), a probability p for
    (log(1 − p), log p). Probabilities and log-probabilities become log-probabilities, which are logits.

    Args:
        outputs: what the numbers are; ``auto`` takes them for logits, see :func:`check_trial`.

    Raises:
        RunError: for another type or shape, and for numbers that are not what ``outputs`` says.
    """
    if not isinstance(answer, Tensor):
        inside = f" ({', '.join(map(str, answer))})" if isinstance(answer, dict) else ""
        raise RunError(f"{where} returns a {type(answer).__name__}{inside}; expected a tensor of logits ({rows}, {classes}). "
                       "Return these alone")
    if not answer.is_floating_point():
        raise RunError(f"{where} returns {str(answer.dtype).removeprefix('torch.')} numbers, as of classes; expected floating-point logits "
                       f"({rows}, {classes}), from before any argmax")
    shape = tuple(answer.shape)
    single = classes == 2 and shape in ((rows,), (rows, 1))
    if not single and shape != (rows, classes):
        other = f", or ({rows},) as there are two classes" if classes == 2 else ""
        raise RunError(f"{where} returns shape {shape} for {rows} images; expected logits ({rows}, {classes}), one for each class{other}")
    if outputs in (PROBABILITIES, LOG_PROBABILITIES):
        return _from_probabilities(answer.reshape(rows) if single else answer, outputs == LOG_PROBABILITIES, where)
    return torch.stack([-answer.reshape(rows) / 2, answer.reshape(rows) / 2], 1) if single else answer


def _from_probabilities(answer: Tensor, logarithm: bool, where: str) -> Tensor:
    """Log-probabilities ``(B, K)`` of p or log p, ``(B,)`` or ``(B, K)``; those of impossible classes are finite."""
    given = answer.float()
    seen, kind = given.detach(), LOG_PROBABILITIES if logarithm else PROBABILITIES
    beyond = seen > _ROUNDING if logarithm else (seen < -_ROUNDING) | (seen > 1 + _ROUNDING)  # nan is told of by as_logits
    if beyond.any():
        raise RunError(f"{where} returns {float(seen[beyond][0]):.4g}, which is none of the {kind} that --outputs says it returns; give "
                       f"--outputs {LOGITS}, or leave it out")
    p = given.exp() if logarithm else given
    if given.ndim == 1:
        return torch.stack([_log(-given.expm1() if logarithm else 1 - p), given.clamp(min=_LEAST) if logarithm else _log(p)], 1)
    total = p.detach().sum(1)
    if len(apart := total[(total - 1).abs() > _ROUNDING]):
        raise RunError(f"{where} returns {kind} that add up to {float(apart[0]):.4g} over the classes of an image, not to 1; these are of "
                       "exclusive classes. Return logits, from before the last activation")
    return given.clamp(min=_LEAST) if logarithm else _log(p)


def _log(p: Tensor) -> Tensor:
    return p.clamp(min=math.exp(_LEAST)).log()


def as_logits(answer: Any, rows: int, classes: int, where: str, outputs: str = LOGITS) -> Tensor:
    """:func:`logits_of` on the CPU, in single precision and without a graph.

    Raises:
        RunError: for what are no logits, and for values that are not finite.
    """
    answer = logits_of(answer, rows, classes, where, outputs).detach().float().cpu()
    if not torch.isfinite(answer).all():
        raise RunError(f"{where} returns logits that are not finite, for {int((~torch.isfinite(answer)).any(1).sum())} of {rows} images. "
                       "Was it trained to the end, and are its weights loaded (--weights)?")
    return answer


def check_trial(answers: Tensor, where: str) -> None:
    """Raises RunError for answers of a trial, ``(N,)``, ``(N, 1)`` or ``(N, K)``, that look like probabilities.

    All of these lie in [0, 1], or are shares that add up to the same for every image, as percentages do.
    """
    if bool((answers < 0).any()):
        return
    totals = answers.sum(1) if answers.ndim == 2 and answers.shape[1] > 1 else None
    shares = totals is not None and bool(((totals - totals[0]).abs() <= _ROUNDING * totals[0]).all()) and bool(totals[0] > 0)
    if not shares and bool((answers > 1).any()):
        return
    sums = f" which add up to {float(totals[0]):.4g} for each image" if shares else ""
    least, most = float(answers.min()), float(answers.max())
    raise RunError(f"{where} returns numbers from {least:.4g} to {most:.4g}{sums}, for {len(answers)} images. Are these "
                   f"probabilities rather than logits? Say so: --outputs {PROBABILITIES}, or --outputs {LOGITS}")
