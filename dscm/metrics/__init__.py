"""Metrics of counterfactual images: pure functions of tensors, one file for each family.

Images are ``(B, C, H, W)`` in [0, 1], attributes ``(B,)`` in physical units, features ``(B, F)``, draws ``(K, B, …)``. A
metric that is a mean over images returns its values per image, so that standard errors can be made of them.
"""

from datasets.lazy import lazy_attributes

_HOMES = {"METRICS": "dscm.metrics.registry", "Metric": "dscm.metrics.score", "Score": "dscm.metrics.score",
          "mean_and_error": "dscm.metrics.score", "summarise": "dscm.metrics.registry"}
__all__ = list(_HOMES)
__getattr__ = lazy_attributes(__name__, _HOMES)
