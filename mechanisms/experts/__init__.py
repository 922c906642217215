"""Independent causal mechanisms: experts that compete to invert transformations that nobody names."""

from datasets.lazy import lazy_attributes

_HOMES = {
    "Competition": "mechanisms.experts.competition", "Experts": "mechanisms.experts.model", "Inverted": "mechanisms.experts.model",
    "ExpertsConfig": "mechanisms.experts.options", "specialisation": "mechanisms.experts.metrics",
}
__all__ = list(_HOMES)
__getattr__ = lazy_attributes(__name__, _HOMES)
