"""What is observed, and the causal story behind it. Imports nothing else of ours."""

from datasets.lazy import lazy_attributes

_HOMES = {
    "SPLITS": "datasets.base", "CausalDataset": "datasets.base", "LazyImages": "datasets.base", "Split": "datasets.base",
    "Graph": "datasets.schema", "SchemaError": "datasets.schema", "Statistics": "datasets.schema",
    "Variable": "datasets.schema", "encode_parents": "datasets.schema",
    "ImageFiles": "datasets.files.images", "UnpairedDataset": "datasets.unpaired", "open_dataset": "datasets.registry",
}
__all__ = list(_HOMES)
__getattr__ = lazy_attributes(__name__, _HOMES)
