"""TODO."""

from __future__ import annotations

RULES = ("last", "iid", "worst-group", "oracle")
MEANING = {"last": "weights of the end", "iid": "best on validation images as observed",
           "worst-group": "best worst group of validation images", "oracle": "best under the test's own shifts, on validation images"}
