"""How long one training took, where its stages keep their own time and what it begins with is charged elsewhere."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Stopwatch:
    """``seconds`` = Σ seconds of the loops of all stages + what passed between these.

    The loops' own are those of their logs, so that interrupted parts count too. What is done in :meth:`apart` is left out.

    Attributes:
        seconds: see above, once :meth:`running` is left.
        only_read: whether all stages so far were finished before, so that nothing was trained.
    """

    def __init__(self) -> None:
        self.seconds, self.only_read, self._apart = 0.0, True, 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Around the whole training."""
        began = time.perf_counter()
        yield
        self.seconds += time.perf_counter() - began - self._apart

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Around what is not charged by this watch: a loop, whose log says how long it took, or another training."""
        began = time.perf_counter()
        yield
        self._apart += time.perf_counter() - began

    def add_stage(self, seconds: float, only_read: bool) -> None:
        """Charge a stage's loop.

        Args:
            seconds: of all its parts, by its log.
            only_read: whether it was finished before.
        """
        self.seconds += seconds
        self.only_read &= only_read
