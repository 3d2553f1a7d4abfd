"""The scenario of a run's scores, and the same run scored in the other one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from perdure.reports.evidence import Evidence, Items
from perdure.scoring.matrix import ScoreMatrix
from perdure.streams.kinds.classes import AMONG_ALL, WITHIN_TASK

ALL, OWN = "class-incremental", "task-incremental"
MEANING = {
    ALL: "all classes learned so far compete",
    OWN: "only those of the row’s own task compete, as if the task were known",
}
_OTHER = {WITHIN_TASK: OWN, AMONG_ALL: ALL}
_GUESS = {OWN: "within_task", ALL: "among_all"}


def scenario_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """The scenario that the scores are of; empty where a run knows only one answer."""
    named = [name for row in rows for name in row.get("measures") or () if name in _OTHER]
    return "" if not named else (OWN if _OTHER[named[0]] == ALL else ALL)


def foreknown(recipe: Mapping[str, Any]) -> str:
    """What a run's recipe told of classes to come, by allocating them beforehand; else ""."""
    model = recipe.get("model")
    head = model.get("head") if isinstance(model, Mapping) else None
    kept = head.get("preallocate") if isinstance(head, Mapping) else None
    if not kept:
        return ""
    many = "all of the stream’s classes" if kept == "all" else f"{kept} classes"
    return (
        f"model.head.preallocate: {kept} uses future knowledge: from the first task on {many} were "
        "in the softmax, those to come as negatives"
    )


def other_scores(
    scenario: str,
    matrix: ScoreMatrix,
    evidence: Evidence,
    rows: Sequence[Mapping[str, Any]],
    items: Callable[[int, str], Items],
    name: str,
) -> tuple[str, ScoreMatrix, Evidence]:
    """The scores of a run by its other answer, which every line has in its measures.

    Args:
        scenario, matrix, evidence: of the run as it is scored.
        rows: its lines of the tasks; items: the scored rows of a cell.
        name: tells this run from all others.

    Returns: the other scenario, its matrix and its evidence.
    """
    other = OWN if scenario == ALL else ALL
    measure = next(key for key, found in _OTHER.items() if found == other)
    kept = [
        {**row, "score": row["measures"][measure]}
        for row in rows
        if measure in row.get("measures", {})
    ]
    only = [t for t, learned in zip(matrix.tasks, matrix.learned, strict=True) if not learned]

    def answered(after: int, task: str) -> Items:
        key = _GUESS[other]
        return [
            {**row, "score": float(row[key] == row["answer"])}
            for row in items(after, task)
            if key in row
        ]

    tested_on = dict(zip(matrix.tasks, matrix.tested_on, strict=True))
    found = ScoreMatrix.from_rows(kept, matrix.tasks, only, tested_on)
    shown = Evidence(
        evidence.tasks,
        found,
        answered,
        (),
        evidence.general_rows,
        evidence.margins,
        f"{name} {other}",
    )
    return other, found, shown
