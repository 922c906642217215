"""Figures on which every text stands as it is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from matplotlib import rc_context
from matplotlib.backend_bases import RendererBase
from matplotlib.figure import Figure
from matplotlib.text import Text


class Page(Figure):
    """A figure that sets no text as a formula: names of classes, files and units may have dollars in them."""

    @contextmanager
    def _as_it_is(self) -> Iterator[None]:
        for text in self.findobj(Text):
            text.set_parse_math(False)
        with rc_context({"text.parse_math": False}):  # of ticks, whose text is made as they are drawn
            yield

    def draw(self, renderer: RendererBase) -> None:
        with self._as_it_is():
            super().draw(renderer)

    def tight_layout(self, **given: Any) -> None:
        with self._as_it_is():
            super().tight_layout(**given)
