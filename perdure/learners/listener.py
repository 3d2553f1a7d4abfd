"""What a learner says while it works, and what it hands back: whoever runs it records and shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol


class Listener(Protocol):
    """Hears how a learner goes on. Each method is called on every process."""

    def row(self, row: Mapping[str, Any]) -> None:
        """A logged step: `after`, `task`, `phase`, `step`, `steps`, `loss` and more figures."""

    def note(self, text: str) -> None:
        """A line for the run's log."""

    def warn(self, text: str) -> None:
        """A line for the run's log that the user must also see at once."""

    def progress(self, verb: str, what: str, done: int, total: int) -> None:
        """How far slow work has come, for example "scoring", the task's name, 16, 200."""


class Silent:
    """A listener that drops everything."""

    def row(self, row: Mapping[str, Any]) -> None: ...
    def note(self, text: str) -> None: ...
    def warn(self, text: str) -> None: ...
    def progress(self, verb: str, what: str, done: int, total: int) -> None: ...


@dataclass(frozen=True)
class Folders:
    """Where a learner keeps files.

    Attributes:
        cache: what methods and gauges computed once.
        work: checkpoints inside a task, which count until the task is saved.
        trackers: the trackers' own files.
    """

    cache: Path
    work: Path
    trackers: Path

    @classmethod
    def below(cls, folder: Path) -> Folders:
        """The three folders in one, under their own names."""
        return cls(folder / "cache", folder / "work", folder / "trackers")


@dataclass(frozen=True)
class Fitted:
    """What learning one task left behind beside the weights.

    Attributes:
        facts: by name, figures that methods and gauges logged at the task's end, named as in the
            log of steps: `{"method/rewind_factor": 0.4}`.
    """

    facts: Mapping[str, float] = field(default_factory=dict)
