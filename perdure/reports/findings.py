"""What a run learned, kept and lost, task by task: the changes of its scores, sorted.

`perdure.scoring.change` decides what a change means; `perdure.reports.words` says it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from perdure.reports.data import MISSING, RunView, TaskFacts
from perdure.scoring.change import Change

GENERAL = "general ability"


@dataclass(frozen=True)
class Finding:
    """What became of one task in one run. Scores are nan, changes None, where missing."""

    task: TaskFacts
    base: float
    learned: float
    final: float
    gain: Change | None
    """From the base model, or from `begun`, to just learned."""
    since: Change | None
    """From just learned to the end; None of the task that was learned last, or only scored, or of
    one that `goes_on`."""
    against: Change | None
    """From the base model to the end."""
    last: bool = False
    only_scored: bool = False
    after: str = ""
    """The task before it that was learned and is scored on the same test rows, as a warm-up is."""
    begun: float = MISSING
    """The score that it left."""
    goes_on: str = ""
    """The next task that is learned and scored on the same rows: what becomes of the score since
    then is said of that one."""

    @property
    def gained(self) -> str:
        """learned | worse | not learned | open | unknown, from base to just learned."""
        if self.gain is None:
            return "unknown"
        return "worse" if self.gain.outcome == "lost" else self.gain.gain

    @property
    def kept(self) -> str:
        """kept | lost | improved | open | last | unknown, from just learned to the end."""
        if self.since is None:
            return "last" if self.last else "unknown"
        return "improved" if self.since.gain == "learned" else self.since.outcome


def findings(run: RunView) -> list[Finding]:
    """One finding a task, in the order of the stream, as far as the run has come."""
    found, change, done = [], run.evidence.change, run.done
    trained = [i for i, learned in enumerate(run.matrix.learned, start=1) if learned]
    last = max((i for i in trained if i <= done), default=0)
    names, start = run.matrix.tasks, dict.fromkeys(range(len(run.tasks)), 0)
    follows = {i - 1: run.matrix.next_on_same_rows(i - 1) for i in trained}
    start |= {later: i + 1 for i, later in follows.items() if later is not None}
    for index, task in enumerate(run.tasks, start=1):
        only_scored, begun = index not in trained, start[index - 1]
        later = follows.get(index - 1)
        goes_on = later is not None and later < done
        found.append(
            Finding(
                task,
                run.score(0, task.name),
                MISSING if only_scored else run.score(index, task.name),
                run.score(done, task.name),
                gain=None if only_scored else change(task, begun, index),
                since=change(task, index, done)
                if index < last and not (only_scored or goes_on)
                else None,
                against=change(task, 0, done) if done >= index and not goes_on else None,
                last=index == last,
                only_scored=only_scored,
                after=names[begun - 1] if begun else "",
                begun=run.score(begun, task.name) if begun else MISSING,
                goes_on=names[later] if goes_on and later is not None else "",
            )
        )
    return found


@dataclass(frozen=True)
class Account:
    """Names of tasks, and `GENERAL`, by what was shown of them.

    The first three are of tasks that began with the base model's score; what a task did to the
    score that another one left is in `further`.
    """

    learned: tuple[str, ...]
    not_learned: tuple[str, ...]
    unclear: tuple[str, ...]
    """Too few rows to tell whether they were learned."""
    below: tuple[str, ...]
    """Lost against the base model."""
    forgotten: tuple[str, ...]
    """Lost since they were learned, but not shown to be below the base model."""
    kept: tuple[str, ...]
    open: tuple[str, ...]
    """Too few rows to tell whether they were kept."""
    earlier: int
    """Tasks that were learned before the last one."""
    further: tuple[Finding, ...] = ()

    @property
    def lost(self) -> tuple[str, ...]:
        return (*self.below, *self.forgotten)

    @property
    def nothing_lost(self) -> bool:
        """Whether it was shown that nothing was forgotten, which takes every word."""
        return bool(self.kept) and not (self.lost or self.open)


def account(run: RunView) -> Account:
    """Sort a run's tasks and its general ability by what was shown."""
    found = findings(run)
    first = [f for f in found if not f.after]
    below = [f.task.name for f in found if f.against is not None and f.against.outcome == "lost"]
    earlier = [f for f in found if f.kept not in ("unknown", "last")]
    general = general_outcome(run)
    texts = any(not math.isnan(value) for value in run.general)
    return Account(
        learned=tuple(f.task.name for f in first if f.gained == "learned"),
        not_learned=tuple(f.task.name for f in first if f.gained in ("not learned", "worse")),
        unclear=tuple(f.task.name for f in first if f.gained == "open"),
        below=(*below, *((GENERAL,) if general == "lost" else ())),
        forgotten=tuple(
            f.task.name for f in earlier if f.kept == "lost" and f.task.name not in below
        ),
        kept=(
            *(f.task.name for f in earlier if f.kept in ("kept", "improved")),
            *((GENERAL,) if general == "kept" else ()),
        ),
        open=(
            *(f.task.name for f in earlier if f.kept == "open" and f.task.name not in below),
            *((GENERAL,) if texts and run.done and general == "open" else ()),
        ),
        earlier=len(earlier),
        further=tuple(f for f in found if f.after and f.gain is not None),
    )


def general_outcome(run: RunView) -> str:
    """lost | kept | open, of general text since the base model; kept too where it improved."""
    change = run.evidence.general_change
    return "open" if change is None else change.outcome
