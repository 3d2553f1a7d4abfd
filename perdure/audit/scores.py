"""The audit's test on scores that another harness wrote: items matched by id. No torch here.

    result = audit_scores("base/samples.jsonl", "tuned/samples.jsonl", max_drop=0.02)

A harness gives the same id to the same question; where it also writes what was asked (lm-eval's
hashes, Inspect's input), that must agree. An item that only one file has is left out, which could
hide a change of its own share: so at most a tenth of the allowed drop may be missing.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from perdure.audit.measure import Measure
from perdure.audit.plan import Margins, check_alpha
from perdure.audit.result import AuditResult, flips, judge
from perdure.audit.score_files import Item, TaskItems, Wanted, read_scores
from perdure.errors import DataError, task_named
from perdure.recipe.mistakes import near
from perdure.recipe.scoring import MAX_DROP
from perdure.scoring.intervals import group_numbers, shared_alpha

MISSING = 0.1
"""Share of the allowed drop that items without a partner may make up."""


def audit_scores(
    base: str | Path,
    tuned: str | Path,
    *,
    max_drop: float = MAX_DROP,
    alpha: float = 0.05,
    metric: str | None = None,
    group: str | None = None,
    fail_fast: bool = False,
    seed: int = 0,
) -> AuditResult:
    """Test whether scores of the same items dropped by less than a margin, task by task.

    Args:
        base, tuned: a file of lm-eval's samples, of Inspect's, or of a line an item; or a folder
            of them (`perdure.audit.score_files`).
        max_drop: allowed drop of a task's mean score, which is 0 to 1.
        alpha: bound on the probability that any verdict is wrong.
        metric, group: as in `Wanted`; items with the same prompt are one group in any case.
        fail_fast: stop at the first task that is lost.
        seed: of the bootstrap.
    Raises:
        UsageError: a margin or `alpha` out of range.
        DataError: a file cannot be read as scores, or the two do not hold the same items.
    """
    started = time.perf_counter()
    margins = Margins(max_drop, 1.0, None)
    check_alpha(alpha)
    wanted = Wanted(metric, group)
    ours = read_scores(Path(base).expanduser(), wanted)
    theirs = read_scores(Path(tuned).expanduser(), wanted)
    _check_tasks(ours, theirs, str(base), str(tuned))
    found: list[Measure] = []
    flipped: list[dict[str, Any]] = []
    for name in ours:
        pairs, notes = _matched(name, ours[name], theirs[name], margins.max_drop)
        labels = [one.group if one.group is not None else other.group for _, one, other in pairs]
        measure = judge(
            name,
            "task",
            ours[name].metric,
            np.array([one.score for _, one, _ in pairs]),
            np.array([other.score for _, _, other in pairs]),
            margin=margins.max_drop,
            alpha=shared_alpha(alpha, len(ours)),
            groups=group_numbers(labels, [one.prompt for _, one, _ in pairs]),
            note="; ".join(notes),
            seed=seed,
        )
        found.append(measure)
        flipped += flips(
            name,
            [_as_scored(key, one, one) for key, one, _ in pairs],
            [_as_scored(key, one, other) for key, one, other in pairs],
        )
        if fail_fast and measure.verdict == "lost":
            break
    return AuditResult(
        str(base),
        str(tuned),
        alpha=alpha,
        judged=len(ours),
        seed=seed,
        identical_weights=False,
        measures=tuple(found),
        flips=tuple(flipped),
        skipped=tuple(list(ours)[len(found) :]),
        seconds=time.perf_counter() - started,
    )


def _check_tasks(
    ours: Mapping[str, TaskItems], theirs: Mapping[str, TaskItems], base: str, tuned: str
) -> None:
    for here, there, file, other in ((ours, theirs, tuned, base), (theirs, ours, base, tuned)):
        for name in here:
            if name not in there:
                known = ", ".join(there)
                raise DataError(
                    f"{file}: no {task_named(name)}, which {other} has",
                    [*filter(None, [near(name, list(there))]), f"tasks there are: {known}"],
                )
            if here[name].metric != there[name].metric:
                raise DataError(
                    f"{task_named(name)}: {here[name].file} has {here[name].metric}, "
                    f"{there[name].file} has {there[name].metric}",
                    "name one with --metric",
                )


def _matched(
    name: str, ours: TaskItems, theirs: TaskItems, max_drop: float
) -> tuple[list[tuple[str, Item, Item]], list[str]]:
    """Items that both have, (id, base, tuned), and what is to be said about them."""
    both = [key for key in ours.items if key in theirs.items]
    alone = [
        (file.file, [key for key in file.items if key not in other.items])
        for file, other in ((ours, theirs), (theirs, ours))
    ]
    missing = sum(len(keys) for _, keys in alone)
    told = "; ".join(
        f"{len(keys)} of {len(file_items)} items only in {file} (the first: {keys[0]})"
        for (file, keys), file_items in zip(alone, (ours.items, theirs.items), strict=True)
        if keys
    )
    allowed = MISSING * max_drop
    if not both or missing > allowed * (len(both) + missing):
        raise DataError(
            f"{task_named(name)}: {told}",
            f"items in one file only may be {allowed:.2%} of them, a tenth of --max-drop: "
            "score both models on the same items",
        )
    pairs = [(key, ours.items[key], theirs.items[key]) for key in both]
    for key, one, other in pairs:
        for check, value in one.checks.items():
            if other.checks.get(check, value) != value:
                raise DataError(
                    f"{other.place}: item {key} has another {check} than {one.place}",
                    "the two files are about different questions: another data set or version?",
                )
    notes = [told] if missing else []
    differ = sum(one.prompt != other.prompt for _, one, other in pairs)
    if differ:
        notes.append(f"the prompts of {differ} items differ, as by another template")
    return pairs, notes


def _as_scored(key: str, asked: Item, said: Item) -> dict[str, Any]:
    """An item as `flips` takes it."""
    return {
        "id": key,
        "score": said.score,
        "prediction": said.prediction,
        "answer": asked.answer,
        "prompt": asked.prompt or key,
    }
