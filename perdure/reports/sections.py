"""The page's sections as data: each function digests the runs for one part of the template."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from perdure.reports import (
    caps,
    charts,
    classes,
    findings,
    format,
    maps,
    ranking,
    telling,
    words,
)
from perdure.reports.data import LEVELS, SUMMARY, RunView, TaskFacts
from perdure.reports.format import number, percent, signed, significant
from perdure.reports.left_out import left_out_of_means, why
from perdure.streams.kinds import PERPLEXITY


def facts(runs: Sequence[RunView]) -> list[tuple[str, str]]:
    """The line under the headline: base model, tasks, seed, when."""
    found: list[tuple[str, list[str]]] = [
        ("Base model", [_base_name(run) for run in runs]),
        ("Stream", [_stream(run) for run in runs]),
        ("Tasks", [str(len(run.tasks)) for run in runs]),
        ("Tuning", [_nested(run, "model", "tuning") for run in runs]),
        ("Seed", [_nested(run, "seed") for run in runs]),
        ("Started", [str(run.environment.get("started", ""))[:10] for run in runs]),
    ]
    return [(k, ", ".join(dict.fromkeys(v for v in vs if v))) for k, vs in found if any(vs)]


def _nested(run: RunView, *keys: str) -> str:
    value: Any = run.recipe
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return "" if value is None else str(value)


def _stream(run: RunView) -> str:
    name = _nested(run, "stream", "name") or "own data"
    # What the scores are of; a key that was left out means another one for classes than for text.
    scenario = run.scenario or _nested(run, "stream", "scenario") or "task-incremental"
    return f"{name}, {scenario}"


def _base_name(run: RunView) -> str:
    path = _nested(run, "model", "path")
    if package := _PACKAGE.search(path):
        return f"package:{package[1]}"
    # A hub id is shown whole; of a file or folder, its own name says enough here.
    is_file = path.endswith(".gguf") or path.startswith(("/", ".", "~")) or "\\" in path
    return path.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1] if is_file else path


_PACKAGE = re.compile(r"[\\/](?:site|dist)-packages[\\/]([^\\/]+)[\\/]")
"""A folder or a file of a package: `package:NAME` once its place was looked up."""


def retention(runs: Sequence[RunView]) -> dict[str, Any] | None:
    """Bars from base to end and on to what was known in between; None where a mean is missing."""
    rows: list[dict[str, Any]] = []
    for slot, run in enumerate(runs):
        learned, end = run.summary("learning_accuracy"), run.summary("average_accuracy")
        base = _average(run, 0)
        if learned is None or end is None or base is None:
            return None
        rows.append(
            {
                "label": run.label,
                "slot": slot,
                "base": base,
                "learned": learned,
                "end": end,
                "low": min(base, end),
                "high": max(base, end),
            }
        )
    top: float = max(max(r["learned"], r["end"], r["base"]) for r in rows)
    marks = charts.score_ticks(top)
    high = marks[-1]
    shown = [{"share": mark / high, "label": charts.tick_label(mark)} for mark in marks]
    return {"rows": rows, "high": high, "ticks": shown}


def _average(run: RunView, after: int) -> float | None:
    from perdure.scoring.matrix import ScoreMissing

    try:
        return float(run.matrix.average_accuracy(after))
    except ScoreMissing:
        return None


def _digits(runs: Sequence[RunView]) -> int:
    return format.digits_for(min((t.rows for run in runs for t in run.tasks), default=0))


def summary(runs: Sequence[RunView]) -> dict[str, Any]:
    """The table of methods: the figures of `SUMMARY`, then general ability before and after."""
    digits = _digits(runs) + 1
    best = {key: ranking.best(runs, key) for key in (*(row[0] for row in SUMMARY), ranking.GENERAL)}
    columns = [
        {"title": title, "better": "higher is better" if up else "lower is better", "what": what}
        for _, title, up, what in SUMMARY
    ]
    general_columns = any(run.general for run in runs)
    rows = []
    others = [run.other for run in runs if run.other is not None]
    best_other = {key: ranking.best(others, key) if len(others) == len(runs) else None
                  for key in best}  # fmt: skip
    shown = [(slot, one) for slot, run in enumerate(runs) for one in classes.both(run)]
    for slot, run in shown:
        first = run is runs[slot]
        at = best if first else best_other
        cells = []
        for key, _, _, _ in SUMMARY:
            change = key not in LEVELS
            show = signed if change and key != "forgetting" else number
            cells.append(
                {
                    "text": show(run.summary(key), digits),
                    "interval": words.figure_interval(run, key, digits, sign=change),
                    "parts": words.mixed_parts(run, key, digits - 1),
                    "sd": words.spread_words(run, key, digits),
                    "cells": words.cells_words(run, key) or classes.undefined(run, key),
                    "sample": classes.by_sample(run, digits) if key == LEVELS[0] else [],
                    "best": at[key] == slot,
                }
            )
        before, after = run.general_before, run.general_after
        rows.append(
            {
                "label": run.label,
                "told": run.told,
                "scenario": run.scenario,
                "first": first,
                "slot": slot,
                "cells": cells,
                "before": significant(before),
                "after": significant(after),
                "change": percent(after / before - 1) if before > 0 else format.DASH,
                "interval": words.general_interval(run),
                "verdict": words.general_verdict(run),
                "best": first and best[ranking.GENERAL] == slot,
            }
        )
    left_out = caps.named(left_out_of_means(runs))
    return {
        "columns": columns,
        "rows": rows,
        "general": general_columns,
        "left_out": left_out,
        "why_left_out": why(runs),
        "other_units": not all(
            all((*run.matrix.in_shares, *run.matrix.higher_is_better)) for run in runs
        ),
    }


def task_charts(runs: Sequence[RunView]) -> list[charts.Chart]:
    """Each task's score over time, one line a method; accuracies share one axis. Of a long stream a
    few tasks have a chart."""
    tasks = telling.tasks(runs, caps.CURVES, caps.MOST_MAPPED)
    shared = charts.score_axis(
        [v for t in tasks if _on_shared_axis(t) for run in runs for v in run.over_time(t.name)]
    )
    drawn = []
    for task in tasks:
        series = [
            (r.label, slot, r.over_time(task.name))
            for slot, r in enumerate(runs)
            if r.position(task.name)
        ]
        axis = (
            shared
            if _on_shared_axis(task)
            else charts.value_axis([v for _, _, values in series for v in values])
        )
        places = {run.position(task.name) for run in runs} - {None}
        drawn.append(
            charts.over_tasks(
                title=task.name,
                note=maps.metric_words(task),
                series=series,
                axis=axis,
                show=format.printer(task),
                y_title="score" if task.bounded else maps.metric_words(task).partition(",")[0],
                # Runs in different orders learn it at different places: then no line is right.
                learned=[(p, "learned") for p in places if p] if len(places) == 1 else (),
            )
        )
    return drawn


def _on_shared_axis(task: TaskFacts) -> bool:
    return task.higher_is_better and task.bounded


def changes(runs: Sequence[RunView]) -> list[dict[str, Any]]:
    """Task by task: base, just learned, at the end, and the change since learned. Of a long stream
    some tasks are told."""
    groups = []
    every = [{found.task.name: found for found in findings.findings(run)} for run in runs]
    for task in telling.tasks(runs, caps.LISTED, caps.MOST_LISTED):
        rows = []
        for slot, run in enumerate(runs):
            found = every[slot].get(task.name)
            if found is None:
                continue
            show = format.printer(task)
            last = found.kept == "last"
            rows.append(
                {
                    "label": run.label,
                    "slot": slot,
                    "base": show(found.base),
                    "learned": show(found.learned),
                    "final": show(found.final),
                    "unread": _unread(run, found),
                    "change": format.DASH if last else words.change_words(task, found.since),
                    "interval": words.interval_words(task, found.since),
                    "against": words.change_words(task, found.against),
                    "against_interval": words.interval_words(task, found.against),
                    "gained": _gained(found),
                    "kept": found.kept,
                    "kept_words": "" if found.since is None else words.outcome_words(found.since),
                    "below": found.against is not None and found.against.outcome == "lost",
                    "complete": run.complete,
                }
            )
        groups.append(
            {"task": task.name, "metric": maps.metric_words(task), "n": task.rows, "rows": rows}
        )
    return groups


def _unread(run: RunView, found: findings.Finding) -> dict[str, str]:
    """Beside each score of a tagged task, the share of texts in which no answer could be read."""
    task, said = found.task.name, {}
    learned = None if found.only_scored else run.learned_at(task)
    for name, after in (("base", 0), ("learned", learned), ("final", run.done)):
        shares = [] if after is None else [one.unread.get((after, task)) for one in run.members]
        known = [share for share in shares if share is not None]
        said[name] = f"{sum(known) / len(known):.0%} not read" if known else ""
    return said


def _gained(found: findings.Finding) -> str:
    if found.gain is None:
        return "only scored" if found.only_scored else ""
    said = words.gain_words(found.gain)
    if found.after:
        by = words.change_words(found.task, found.gain)
        ends = words.interval_words(found.task, found.gain)
        said = f"{by}{f' ({ends})' if ends else ''} from where {found.after} left it: "
        said += words.gain_words(found.gain).replace("learned", "improved")
    return f"{said}; {found.goes_on} goes on from it" if found.goes_on else said


def has_base(runs: Sequence[RunView]) -> bool:
    """Whether the untouched base model has a score; a head that is not there yet has none."""
    bare = all(run.scenario for run in runs)
    return not bare or any(not math.isnan(r.score(0, t.name)) for r in runs for t in r.tasks)


def general(runs: Sequence[RunView]) -> charts.Chart | None:
    series = [(run.label, slot, run.general) for slot, run in enumerate(runs) if run.general]
    if not series:
        return None
    values = [v for _, _, line in series for v in line]
    axis = charts.value_axis(values)
    return charts.over_tasks(
        title="Perplexity on general text",
        note="lower is better" + (", logarithmic" if axis.log else ""),
        series=series,
        axis=axis,
        show=significant,
        y_title=PERPLEXITY.label,
    )


def unseen(runs: Sequence[RunView]) -> list[tuple[str, str, str, str]]:
    """Scores on tasks outside the stream: (method, task, after, score)."""
    return [
        (member.label, task, charts.after_words(after), significant(score))
        for run in runs
        for member in run.members
        for task, after, score in member.unseen
    ]
