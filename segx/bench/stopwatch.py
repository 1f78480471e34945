"""Where the wall time of a bench goes."""

from __future__ import annotations

import contextlib
import time
from collections import defaultdict
from collections.abc import Iterator

from segx.results.types import Wall


class Stopwatch:
    """Runs from its creation on; parts of the time are put down to what they were spent on."""

    def __init__(self) -> None:
        self._begun = time.perf_counter()
        self._spent: defaultdict[str, float] = defaultdict(float)

    @contextlib.contextmanager
    def timing(self, part: str) -> Iterator[None]:
        """Put the time of the block down to ``part``, a field of ``Wall``."""
        begun = time.perf_counter()
        try:
            yield
        finally:
            self.add(part, time.perf_counter() - begun)

    def add(self, part: str, seconds: float) -> None:
        """Put some seconds down to ``part``."""
        self._spent[part] += seconds

    def read(self) -> Wall:
        """The parts so far."""
        parts = {part: self._spent[part] for part in ("sampling", "loading", "export", "reference", "peaks")}
        return Wall(total=time.perf_counter() - self._begun, **parts)
