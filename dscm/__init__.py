"""Attributes and image merged: counterfactuals, and how right they are."""

import mechanisms  # noqa: F401  (explains a clash of names before anything else is imported)
from datasets.lazy import lazy_attributes

_HOMES = {"DSCM": "dscm.model", "Counterfactual": "dscm.results", "Exogenous": "dscm.results"}
__all__ = list(_HOMES)
__getattr__ = lazy_attributes(__name__, _HOMES)
