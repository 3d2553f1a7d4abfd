"""What learning a task costs, also where it was stopped inside and went on in another process."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from perdure.seals import facts_of

SPENT = "spent"
"""Key of a checkpoint's manifest."""


class Spent:
    """Seconds, and what a learner counts, since the task began: as if it had not been interrupted.

    Work that a killed process lost, and what a resume does before it goes on, do not count.

    Args: passes: the learner's counts so far.
    """

    def __init__(self, passes: Callable[[], Mapping[str, int]]) -> None:
        self._passes = passes
        self._begin({})

    def _begin(self, before: Mapping[str, float]) -> None:
        self._before, self._began, self._counts = before, time.monotonic(), self._passes()

    def now(self) -> dict[str, float]:
        """All that was spent until now, by name."""
        found = {"seconds": time.monotonic() - self._began}
        found |= {name: float(n - self._counts[name]) for name, n in self._passes().items()}
        return {name: round(self._before.get(name, 0.0) + n, 2) for name, n in found.items()}

    def go_on(self, checkpoint: Path) -> None:
        """Count on from what had been spent when a checkpoint inside the task was saved."""
        said = facts_of(checkpoint).get(SPENT)
        if isinstance(said, Mapping):  # an older Perdure's has none
            self._begin({k: float(v) for k, v in said.items() if isinstance(v, int | float)})
