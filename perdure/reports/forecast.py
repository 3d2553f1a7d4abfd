"""How long runs take that were estimated in parts, estimated again while they are done.

An estimate made from a few seconds of measurement errs, and a machine gets busy. What was done so
far tells how much dearer a part is than was thought; what is left is taken at that rate.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Sequence
from typing import Any

from perdure.reports.format import duration
from perdure.reports.terminal import Display

Part = tuple[str, str, int]
"""A part of the work: the method, "loading", "training" or "scoring", and after how many tasks."""
BELIEF = 0.1
"""Weight of the first estimate, as a share of the whole: the first seconds alone tell little."""
DEVIATION, LEAST = 0.25, 20.0
"""A new estimate is told where it differs by this share, and by so many seconds, from what was
told last."""


class Forecast:
    """See the module. Parts are done in their order; one that is passed over counts as done.

    Args:
        parts: name and estimated seconds of each, at least one of them above 0.
        clock: seconds, monotonic; it starts now.
    """

    def __init__(
        self,
        parts: Sequence[tuple[Hashable, float]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._before: dict[Hashable, tuple[float, float]] = {}
        self.estimated = 0.0
        for name, seconds in parts:
            self._before[name] = (self.estimated, seconds)
            self.estimated += seconds
        self._clock, self._start = clock, clock()
        self._done = 0.0
        self._told = self.estimated

    def reach(self, name: Hashable, share: float = 0.0) -> None:
        """So much of a part is done, and all that comes before it; never less than before."""
        if name in self._before:
            start, seconds = self._before[name]
            self._done = max(self._done, start + seconds * min(1.0, share))

    @property
    def left(self) -> float:
        """Seconds that what is left will take."""
        belief = BELIEF * self.estimated
        rate = (self._clock() - self._start + belief) / (self._done + belief)
        return (self.estimated - self._done) * rate

    @property
    def whole(self) -> float:
        """Seconds from the start to the end."""
        return self._clock() - self._start + self.left

    def news(self) -> tuple[float, float] | None:
        """The whole as it was told last and as it is now, where they differ by much; the new one
        counts as told then."""
        told, now = self._told, self.whole
        if abs(now - told) <= max(DEVIATION * told, LEAST):
            return None
        self._told = now
        return told, now


class Promise:
    """A display of several runs, one after the other, that keeps the promised time up to date.

    Args:
        display: shows their progress.
        forecast: of all of them; its parts are `Part`s.
        cells: what is scored after each task: the tasks, and general text.
    """

    def __init__(self, display: Display, forecast: Forecast, cells: int) -> None:
        self._display, self.forecast, self._cells = display, forecast, cells
        self._tasks: list[str] = []
        self._scored: list[str] = []

    def begin(self, number: int, of: int, name: str) -> None:
        """Tell which method comes, and what is left."""
        self._tasks, self._scored = [], []
        self.forecast.reach((name, "loading", 0))
        left = f", about {duration(self.forecast.left)} left" if number > 1 else ""
        self._display.message(f"method {number} of {of}: {name}{left}")

    def training(
        self, method: str, task: str, step: int, steps: int, *facts: Any, **more: Any
    ) -> None:
        if task not in self._tasks:
            self._tasks.append(task)
            self._scored = []
        self._display.training(method, task, step, steps, *facts, **more)
        self._reach((method, "training", len(self._tasks)), step / max(1, steps))

    def scoring(self, method: str, task: str, done: int, total: int) -> None:
        self._display.scoring(method, task, done, total)
        if task not in self._scored:
            self._scored.append(task)
        share = (len(self._scored) - 1 + done / max(1, total)) / self._cells
        self._reach((method, "scoring", len(self._tasks)), share)

    def doing(self, method: str, verb: str, what: str, done: int, total: int) -> None:
        self._display.doing(method, verb, what, done, total)

    def _reach(self, part: Part, share: float) -> None:
        self.forecast.reach(part, share)
        if (news := self.forecast.news()) is not None:
            told, now = map(duration, news)
            left = duration(self.forecast.left)
            self._display.message(
                f"estimated anew: about {now} in all instead of {told}, {left} left"
            )
