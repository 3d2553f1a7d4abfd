"""What a learner says and returns, written to a run directory and shown to the user."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from perdure.errors import task_named
from perdure.failures import at
from perdure.processes import barrier, rank
from perdure.run.directory import Run
from perdure.run.pool import POOL, pool_in
from perdure.seals import Sealer

SAMPLED = ("reward", "length", "truncated")
"""Figures of a task learned from rewards, after `rl/`, that are shown while it is."""


class Shows(Protocol):
    """The part of a display that a recorder uses."""

    def training(
        self,
        method: str,
        task: str,
        step: int,
        steps: int,
        loss: float | None = None,
        tokens_per_second: float | None = None,
        seconds_left: float | None = None,
        *,
        sampled: Mapping[str, float] | None = None,
    ) -> None: ...
    def scoring(self, method: str, task: str, done: int, total: int) -> None: ...
    def doing(self, method: str, verb: str, what: str, done: int, total: int) -> None: ...


class Recorder:
    """Hears a learner and records for it; of several processes the first one writes."""

    def __init__(self, run: Run, display: Shows) -> None:
        self.run, self.display = run, display
        self.sealer = Sealer()
        self._scored: dict[int, set[tuple[str, str | None]]] | None = None

    # --- while a learner works

    def row(self, row: Mapping[str, Any]) -> None:
        """Add a logged step to log.jsonl, and show it."""
        if rank() != 0:
            return
        self.run.log(row)
        shown = ("task", "step", "steps", "loss", "tokens_per_second", "seconds_left")
        sampled = {name: row[f"rl/{name}"] for name in SAMPLED if f"rl/{name}" in row}
        self.display.training(self.run.methods_name, *(row[key] for key in shown), sampled=sampled)

    def note(self, text: str) -> None:
        """Add a line to perdure.log."""
        if rank() == 0:
            self.run.note(text)

    def warn(self, text: str) -> None:
        """Add a line to perdure.log that the user must not miss, and print it at once."""
        self.note(text)
        if rank() == 0:
            logging.getLogger("perdure").warning("%s", text)

    def progress(self, verb: str, what: str, done: int, total: int) -> None:
        """Show how far slow work has come."""
        if verb == "scoring":
            self.display.scoring(self.run.methods_name, what, done, total)
        else:
            self.display.doing(self.run.methods_name, verb, what, done, total)

    # --- what it returns

    def facts(self, after: int, task: str, found: Mapping[str, float]) -> None:
        """Record what was found at the end of a task, and say it in perdure.log."""
        if rank() != 0:
            return
        for name, value in found.items():
            self.run.record_fact(after, task, name, value)
            self.run.note(f"{task_named(task)}: {name} {value:g}")

    def scored(self, after: int) -> set[tuple[str, str | None]]:
        """What has a score after `after` tasks already: its kind and task."""
        if self._scored is None:  # read once: what is scored from now on is recorded here
            self._scored = {}
            for line in self.run.scores():
                self._note_score(line)
        return set(self._scored.get(after, ()))

    def _note_score(self, line: Mapping[str, Any]) -> None:
        if self._scored is not None:
            self._scored.setdefault(line["after"], set()).add((line["kind"], line.get("task")))

    def scores(
        self, lines: Iterable[tuple[Mapping[str, Any], Sequence[Mapping[str, Any]]]]
    ) -> None:
        """Record each score as soon as it is there."""
        for line, items in lines:
            if rank() == 0:
                self.run.record(line, items)
            self._note_score(line)

    def steps_of(self, learned: int) -> int:
        """Optimizer steps of the first `learned` tasks."""
        done = {(r["after"], r["phase"]): r["steps"] for r in self.run.log_rows()}
        return sum(steps for (after, _), steps in done.items() if after <= learned)

    @contextmanager
    def sealing(self, after: int) -> Iterator[Path]:
        """A folder for the checkpoint of `after` tasks, which then replaces what came before it.

        It is synced and hashed while scoring and training go on.
        """
        self.sealer.wait()
        draft = self.run.draft(after) if rank() == 0 else Path()
        with at(self.run.path / "checkpoints" / f"task-{after}"):
            yield draft
        barrier()
        if rank() == 0:
            if (pool := pool_in(draft)) is not None:
                task = self.run.stream_facts()[after - 1]["name"]
                self.run.record_fact(after, task, POOL, pool)
            self.sealer.begin(draft, partial(self._settle, after))

    def _settle(self, after: int) -> None:
        self.run.seal(after)
        self.run.share(after)
        self.run.drop_work(after)
        if self.run.recipe.save.tasks == "last":
            self.run.drop_checkpoints_before(after)

    def finish(self) -> None:
        """Mark the run as finished."""
        self.sealer.wait()
        if rank() == 0:
            self.run.finish()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        """Whatever ended the run: a checkpoint that is whole gets its seal."""
        try:
            self.sealer.wait()
        except Exception:
            if error is None:
                raise
