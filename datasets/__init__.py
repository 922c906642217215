"""What is observed, and the causal story behind it. Imports nothing else of ours."""

from datasets.base import SPLITS, CausalDataset, LazyImages, Split
from datasets.schema import Graph, SchemaError, Statistics, Variable, encode_parents

__all__ = ["SPLITS", "CausalDataset", "Graph", "LazyImages", "SchemaError", "Split", "Statistics", "Variable", "encode_parents",
           "open_dataset"]


def __getattr__(name: str):
    if name == "open_dataset":  # the registry imports this package, so it comes last
        from datasets.registry import open_dataset

        return open_dataset
    raise AttributeError(f"module 'datasets' has no attribute {name!r}")
