"""The score matrix: what the model scored on every task after each task it learned.

    R[i, j] = score on task j after learning i tasks;  R is (T+1, T), row 0 = the untouched model

A cell that was never scored is missing: `value` and every figure that needs it raise
`ScoreMissing`, nothing takes it for zero. All summary figures of Perdure are derived here and
nowhere else. They average over the learned tasks whose score runs from 0 to 1, higher for better;
the others, such as those measured by perplexity, have another unit, and tasks that are only scored
(`learn: none`) cannot be forgotten, so they are left out (`left_out` names them). Tasks that are
scored on the same rows (`test_of`) have one score, which counts once: for the one learned last.
Formulas below count tasks j from 0, so task j is learned between row j and row j+1.
"""

from __future__ import annotations

import json
import math
from bisect import bisect_left, bisect_right
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from perdure.errors import UsageError
from perdure.scoring.cells import TaskScores
from perdure.scoring.terms import (
    Cell,
    Cells,
    ScoreMissing,
    Term,
    mean_of,
    rows_of_tasks,
)

__all__ = ["ScoreMatrix", "ScoreMissing"]


class ScoreMatrix(TaskScores):
    """Scores of T tasks before and after learning each of them.

    Args:
        tasks: names in the order they are learned, each once.
        higher_is_better: one flag a task; None means True for all.
        in_shares: one flag a task: its scores run from 0 to 1; None means True for all.
        learned: one flag a task: it is trained on, not only scored; None means True for all.
        rows: test rows of each task, 0 where not known; None means not known for all.
        tested_on: of each task the name of the one whose test rows it is scored on; None means
            that each has rows of its own.
    """

    FIGURES = (
        "average_accuracy", "average_incremental_accuracy", "backward_transfer", "forgetting",
        "forward_transfer", "learning_accuracy",
    )  # fmt: skip
    BY_SAMPLE = "accuracy_by_sample"
    """Beside average accuracy where test sets differ in size; not one of `FIGURES`."""

    @property
    def left_out(self) -> tuple[str, ...]:
        """Tasks that no summary figure counts: a lower score is better, none is a share, they are
        only scored, or a later task that is learned is scored on the same rows."""
        counted = set(self._counted)
        return tuple(task for j, task in enumerate(self.tasks) if j not in counted)

    def average_accuracy(self, after: int | None = None) -> float:
        """Mean score on the tasks learned so far, after learning `after` of them (None: all T).

        ACC = 1/T * sum over j of R[T, j]. Row 0, where nothing is learned yet, is averaged over
        all tasks: what the base model can do. Unit: the metrics', 0 to 1.
        Raises: ScoreMissing, naming the cell.
        Source: Lopez-Paz and Ranzato 2017 (GEM), section 2.
        """
        return self._figure("average_accuracy", self._averaged(after))

    def average_incremental_accuracy(self) -> float:
        """Mean over all steps of the average accuracy after that step, on what was learned by then.

        AIA = 1/T * sum over i >= 1 of 1/i * sum over j < i of R[i, j]. Steps at which a task was
        only scored are no steps. Unit: the metrics', 0 to 1.
        Raises: ScoreMissing, naming the cell.
        Source: Rebuffi et al. 2017 (iCaRL), section 4; "average incremental" in SEQ* (2312.07887).
        """
        values: list[float] = []
        weights: list[float] = []
        for row, columns in self._steps():  # a million terms of a thousand tasks: no objects
            found = self._scores[row, columns]
            if np.isnan(found).any():
                self._at(row, columns[int(np.isnan(found).argmax())])  # raises
            values += found.tolist()
            weights += [1 / len(columns)] * len(columns)
        return mean_of("average incremental accuracy", values, weights)

    def accuracy_by_sample(self) -> float:
        """Share of all test rows that are right at the end: average accuracy with each task
        weighted by its test rows, so that a small test set counts for less.

        Raises: ScoreMissing, naming the cell; or the tasks' test rows are not known.
        """
        return self._figure(self.BY_SAMPLE, self.terms(self.BY_SAMPLE))

    @property
    def uneven(self) -> bool:
        """Whether the counted tasks' test sets are known and differ in size."""
        known = {self.rows[j] for j in self._counted}
        return len(known) > 1 and 0 not in known

    def backward_transfer(self) -> float:
        """Mean change on earlier tasks, from just learned to the end of the stream.

        BWT = 1/(T-1) * sum over j < T-1 of R[T, j] - R[j+1, j]. Unit: the metrics', -1 to 1;
        negative is forgetting.
        Raises: ScoreMissing, naming the cell; or there is no earlier task.
        Source: Lopez-Paz and Ranzato 2017 (GEM), section 2.
        """
        return self._figure("backward_transfer", self.terms("backward_transfer"))

    def forgetting(self, *, from_base: bool = False, maximum: str = "past") -> float:
        """Mean drop on earlier tasks, from the best they ever scored before the end to the end.

        F = 1/(T-1) * sum over j < T-1 of (max over 1 <= i <= T-1 of R[i, j]) - R[T, j].
        As in the paper, the maximum runs over every row after a task was learned, those before
        task j itself was learned among them where they have a score: a classifier that has no
        head for a task yet has none there. Row 0, the untouched base model, which the paper's
        models trained from scratch do not have, is NOT in the maximum; `from_base=True` puts it
        there, so that ability lost against the base model counts as well. `maximum="all"` puts
        the last row there, as SEQ*'s released code does: the figure is then never below 0.
        Unit: the metrics', -1 to 1; positive is forgetting.
        Raises: ScoreMissing, naming the cell; or there is no earlier task; or UsageError for
            another word than those.
        Source: Chaudhry et al. 2018 (Riemannian walk), section 3.1.
        """
        if maximum not in ("past", "all"):
            raise UsageError(f'forgetting: maximum="{maximum}"', 'one of: "past", "all"')
        drops = self._drops(0 if from_base else 1)
        if maximum == "all":
            drops = [replace(drop, rows=(*drop.rows, len(self.tasks))) for drop in drops]
        return self._figure("forgetting", drops)

    def forward_transfer(self) -> float:
        """Mean change on a task from the base model to the row just before it is learned.

        FWT = 1/(T-1) * sum over 1 <= j < T of R[j, j] - R[0, j]. The paper's baseline is a
        randomly initialised model; here it is the base model, row 0. Task 0 has nothing before
        it and is not counted. Unit: the metrics', -1 to 1; positive: earlier tasks helped.
        Raises: ScoreMissing, naming the cell; or there is no later task.
        Source: Lopez-Paz and Ranzato 2017 (GEM), section 2.
        """
        return self._figure("forward_transfer", self.terms("forward_transfer"))

    def learning_accuracy(self) -> float:
        """Mean score on each task just after it was learned.

        LA = 1/T * sum over j of R[j+1, j]. Unit: the metrics', 0 to 1.
        Raises: ScoreMissing, naming the cell.
        Source: Riemer et al. 2019 (MER), section 5.
        """
        return self._figure("learning_accuracy", self.terms("learning_accuracy"))

    def terms(self, name: str) -> list[Term]:
        """What a figure of `FIGURES` is the mean of, one term for each task that it counts."""
        last = len(self.tasks)
        if name == "average_accuracy":
            return self._averaged(None)
        if name == self.BY_SAMPLE:
            found = [replace(t, weight=float(self.rows[t.task])) for t in self._averaged(None)]
            return found if all(term.weight for term in found) else []
        if name == "average_incremental_accuracy":
            return [
                Term(j, (row,), None, 1 / len(columns))
                for row, columns in self._steps()
                for j in columns
            ]
        if name == "forgetting":
            return self._drops(1)
        if name == "backward_transfer":
            return [Term(j, (last,), j + 1) for j in self._earlier()]
        if name == "forward_transfer":
            first = self.learned.index(True) if any(self.learned) else last
            return [Term(j, (j,), 0) for j in self._counted if j > first]
        if name == "learning_accuracy":
            return [Term(j, (j + 1,)) for j in self._counted]
        raise UsageError(f"score matrix: no figure {name!r}", f"one of: {', '.join(self.FIGURES)}")

    def cells(self, name: str) -> Cells:
        """Which cells a figure rests on, in the order of the tasks.

        A figure that needs a missing cell is not defined. Forgetting passes over those of rows
        before a task was learned, as after an extension or for a head that was not there yet.
        """
        return Cells(self._which(name, missing=False), self._which(name, missing=True))

    def missing(self, name: str, *, since_learned: bool = False) -> tuple[Cell, ...]:
        """Those cells alone of `cells` that were never scored.

        Args: since_learned: without rows before a cell's task was learned.
        """
        return self._which(name, missing=True, since_learned=since_learned)

    def _which(self, name: str, *, missing: bool, since_learned: bool = False) -> tuple[Cell, ...]:
        last = len(self.tasks)
        if name == "average_incremental_accuracy":
            steps = [row for row, _ in self._steps()]
            wanted = [(j, steps[bisect_right(steps, j) :]) for j in self._counted]
        else:
            wanted = rows_of_tasks(self.terms(name), last if name == "forgetting" else 0)
        return tuple(
            Cell(self.tasks[j], rows[i])
            for j, rows in wanted
            for i in np.flatnonzero(np.isnan(self._scores[rows, j]) == missing)
            if not since_learned or rows[i] > j
        )

    def _steps(self) -> list[tuple[int, list[int]]]:
        """Each row after a task was learned, and the columns that were learned by then."""
        learned = [i for i, flag in enumerate(self.learned, start=1) if flag]
        found = [(i, self._counted[: bisect_left(self._counted, i)]) for i in learned]
        return [(row, columns) for row, columns in found if columns]

    def parts(self, name: str) -> dict[str, float]:
        """Return each task's own part of a figure, whose mean is the figure.

        Raises: ScoreMissing, naming the cell.
        """
        terms = self.terms(name)
        found: dict[int, list[Term]] = {}
        for term in terms:
            found.setdefault(term.task, []).append(term)
        if len(found) == len(terms) and len({term.weight for term in terms}) == 1:
            return {self.tasks[term.task]: self._value(term) for term in terms}
        share = len(found) / math.fsum(term.weight for term in terms)
        return {
            self.tasks[j]: share * math.fsum(t.weight * self._value(t) for t in mine)
            for j, mine in found.items()
        }

    def _averaged(self, after: int | None) -> list[Term]:
        last = len(self.tasks) if after is None else self._row(after)
        return [Term(j, (last,)) for j in self._counted if j < last or last == 0]

    def _drops(self, first: int) -> list[Term]:
        """Terms of forgetting. Rows 1 to j came before task j was learned, where there may be
        nothing to score: those that are missing are passed over."""
        last = len(self.tasks)
        rows, gone = np.arange(first, last), np.isnan(self._scores[first:last])
        kept = ~(gone & (rows[:, None] >= 1) & (rows[:, None] <= np.arange(last)))
        return [Term(j, tuple(rows[kept[:, j]].tolist()), last) for j in self._earlier()]

    def _figure(self, name: str, terms: Sequence[Term]) -> float:
        weights = [term.weight for term in terms]
        return mean_of(name.replace("_", " "), [self._value(term) for term in terms], weights)

    def _value(self, term: Term) -> float:
        if len(term.rows) == 1:
            highest = self._at(term.rows[0], term.task)
        else:
            found = self._scores[list(term.rows), term.task]
            if np.isnan(found).any():
                self._at(term.rows[int(np.isnan(found).argmax())], term.task)  # raises
            highest = float(found.max())
        return highest if term.less is None else highest - self._at(term.less, term.task)

    def summary(self) -> dict[str, float | None]:
        """Return every figure of `FIGURES` by name; None where it cannot be derived."""
        figures: dict[str, float | None] = dict.fromkeys(self.FIGURES)
        for name in self.FIGURES:
            with suppress(ScoreMissing):
                figures[name] = getattr(self, name)()
        return figures

    def to_dict(self) -> dict[str, Any]:
        """Return tasks, scores (None where missing) and the summary, ready for `json.dumps`."""
        of_tasks = ("tasks", "higher_is_better", "in_shares", "learned", "rows", "tested_on")
        return {
            **{name: list(getattr(self, name)) for name in of_tasks},
            "scores": [[None if np.isnan(x) else float(x) for x in row] for row in self._scores],
            "summary": self.summary(),
        }

    def to_json(self) -> str:
        """Return `to_dict` as JSON text; `from_json` reads it back."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> ScoreMatrix:
        """Read what `to_json` wrote; the summary in it is derived again, not read."""
        data = json.loads(text)
        flags = (data["higher_is_better"], data.get("in_shares"), data.get("learned"))
        matrix = cls(data["tasks"], *flags, data.get("rows"), data.get("tested_on"))
        for after, row in enumerate(data["scores"]):
            for task, score in zip(data["tasks"], row, strict=True):
                if score is not None:
                    matrix.record(after, task, score)
        return matrix

    @classmethod
    def from_rows(
        cls,
        rows: Iterable[Mapping[str, Any]],
        tasks: Sequence[str] | None = None,
        only_scored: Collection[str] = (),
        tested_on: Mapping[str, str] | None = None,
    ) -> ScoreMatrix:
        """Build a matrix from the rows of a run's `scores.jsonl`.

        Args:
            rows: mappings with `kind`, and for kind "task": `after`, `task`, `score` and
                `higher_is_better`; of a metric that is not Perdure's also `low` and `high`.
                Other kinds are skipped. Of two rows for a cell the later one counts.
            tasks: names of the learned tasks in order; rows of other tasks are skipped. None:
                as they appear.
            only_scored: names of tasks among them that are not trained on.
            tested_on: of a task that is scored on another's test rows, the name of that one.
        """
        scored = [row for row in rows if row["kind"] == "task"]
        names = list(tasks) if tasks is not None else list(dict.fromkeys(r["task"] for r in scored))
        higher = {row["task"]: bool(row.get("higher_is_better", True)) for row in scored}
        wide = {r["task"] for r in scored if (r.get("low", 0), r.get("high", 1)) != (0, 1)}
        rows_of = {row["task"]: int(row.get("rows") or 0) for row in scored}
        matrix = cls(
            names,
            [higher.get(n, True) for n in names],
            [n not in wide for n in names],
            [n not in only_scored for n in names],
            [rows_of.get(n, 0) for n in names],
            [(tested_on or {}).get(n, n) for n in names],
        )
        for row in scored:
            if matrix.column(row["task"]) is not None:
                matrix.record(row["after"], row["task"], row["score"])
        return matrix

    @cached_property
    def _counted(self) -> list[int]:
        flags = zip(self.higher_is_better, self.in_shares, self.learned, strict=True)
        counted = [j for j, of_task in enumerate(flags) if all(of_task)]
        return [j for j in counted if self.next_on_same_rows(j) is None]

    def _earlier(self) -> list[int]:
        """Counted tasks after which at least one more was learned."""
        last = max((k for k, learned in enumerate(self.learned) if learned), default=-1)
        return [j for j in self._counted if j < last]
