"""Has each expert found one mechanism? Winners held against the true mechanisms, which training never saw."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from datasets.errors import UserError
from mechanisms.runs.tables import mean_over

COLLAPSED_BELOW = 0.9  # of Hungarian accuracy
IDLE_BELOW = 0.1  # of an equal share of wins


def confusion(winner: Tensor, mechanism: Tensor, experts: int, mechanisms: int) -> np.ndarray:
    """How often expert e won an image of mechanism k, int64 ``(E, K)``, from indices ``(N,)``.

    Raises:
        UserError: for no images, unequal lengths, or an index out of range.
    """
    if len(winner) != len(mechanism) or len(winner) == 0:
        raise UserError(f"{len(winner)} winners for {len(mechanism)} mechanisms; give one each, and at least one")
    if not (0 <= int(winner.min()) <= int(winner.max()) < experts and 0 <= int(mechanism.min()) <= int(mechanism.max()) < mechanisms):
        raise UserError(f"a winner that is not below {experts}, or a mechanism that is not below {mechanisms}")
    counts = np.zeros((experts, mechanisms), np.int64)
    np.add.at(counts, (winner.cpu().numpy(), mechanism.cpu().numpy()), 1)
    return counts


def assignment(counts: np.ndarray) -> dict[int, int]:
    """expert → mechanism, the one-to-one assignment that most images agree with; others have none."""
    return {int(e): int(k) for e, k in zip(*linear_sum_assignment(-counts), strict=True)}


def specialists(counts: np.ndarray) -> dict[int, int]:
    """expert → mechanism that it has found: it wins most of its images, and most of what it wins are images of it."""
    return {e: k for e, k in assignment(counts).items() if 2 * counts[e, k] > max(counts[e].sum(), counts[:, k].sum())}


def specialisation(counts: np.ndarray) -> dict[str, float]:
    """Figures of a confusion matrix ``(E, K)`` of N images.

    - ``purity``: Σ_e max_k n_ek / N. High too where several experts share one mechanism.
    - ``nmi``: 2·I(expert; mechanism) / (H(expert) + H(mechanism)); 1 if both are one-valued.
    - ``hungarian``: Σ_e n_{e,π(e)} / N for the best one-to-one assignment π; 1 only if each mechanism has an expert of its own.
    - ``usage_entropy``: H(expert) in nats, of at most log E. ``idle``: experts with less than a tenth of an equal share.
    - ``collapsed``: 1 if ``hungarian`` < 0.9, or an expert is idle although there are no more experts than mechanisms.
    """
    total = counts.sum()
    joint = counts / total
    won, true = joint.sum(1), joint.sum(0)
    entropies = _entropy(won), _entropy(true)
    shared = sum(entropies) - _entropy(joint.ravel())
    hungarian = float(sum(counts[e, k] for e, k in assignment(counts).items()) / total)
    idle = int((won * len(won) < IDLE_BELOW).sum())
    return {"purity": float(counts.max(1).sum() / total), "nmi": 2 * shared / sum(entropies) if sum(entropies) > 0 else 1.0,
            "hungarian": hungarian, "usage_entropy": entropies[0], "idle": float(idle),
            "collapsed": float(hungarian < COLLAPSED_BELOW or (idle > 0 and len(won) <= int((true > 0).sum())))}


def _entropy(shares: np.ndarray) -> float:
    positive = shares[shares > 0]
    return float(np.abs(positive * np.log(positive)).sum())


def over_seeds(rows: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float | None]]:
    """figure → ``mean`` and its standard ``error`` over seeds, None for a single one; ``collapsed`` is their number."""
    found = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if name == "collapsed":
            found[name] = {"count": int(sum(values)), "of": len(values)}
            continue
        found[name] = dict(zip(("mean", "error"), mean_over(values), strict=True))
    return found
