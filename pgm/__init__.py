"""The attributes' structural causal model. Imports datasets and mechanisms."""

import mechanisms  # noqa: F401  (explains a clash of names before anything else is imported)
from datasets.lazy import lazy_attributes

_HOMES = {"AttributeConfig": "pgm.options", "AttributeSCM": "pgm.scm", "parse_do": "pgm.interventions", "resolve_do": "pgm.interventions"}
__all__ = list(_HOMES)
__getattr__ = lazy_attributes(__name__, _HOMES)
