"""What `--json` says of runs: each figure with its interval. The keys are in docs/scores.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from perdure.reports import (
    averaging,
    classes,
    findings,
    general,
    pool_views,
    probed,
    provenance,
    ranking,
    reinforced,
    seeds,
    tradeoff,
)
from perdure.reports.data import SUMMARY, RunView
from perdure.reports.format import apart
from perdure.scoring.change import Change
from perdure.scoring.resampling import Interval

KEYS = tuple(row[0] for row in SUMMARY)


def of_run(view: RunView) -> dict[str, Any]:
    """A run's scores and the figures derived from them; what is missing or not known is None."""
    names = [task.name for task in view.tasks]
    return {
        "run": str(view.path),
        "name": view.name,
        "method": view.method,
        "seed": view.recipe.get("seed"),
        "state": view.state,
        "tasks": names,
        "scores": _cells(view),
        "unseen": [
            {"task": task, "after": after, "score": score} for task, after, score in view.unseen
        ],
        **{key: view.summary(key) for key in KEYS},
        "accuracy_by_sample": view.summary("accuracy_by_sample"),
        "other_scenario": None if view.other is None else _other(view.other),
        **classes.numbers(view),
        "probes": probed.numbers(view),
        "averaging": averaging.numbers(view),
        "reinforced": reinforced.numbers(view),
        "warm_ups": reinforced.warm_up_numbers(view),
        "pool": pool_views.numbers(view),
        "cost": tradeoff.numbers(view),
        "general_perplexity": list(view.general),
        "general_tasks": {
            task.name: {
                "metric": task.metric,
                "scores": list(scores),
                "change": change(general.change_of(view, task)),
            }
            for task, scores in view.general_tasks
        },
        "intervals": _intervals(view),
        "rests_on": {key: rests_on(view, key) for key in KEYS},
        "accepted_changes": [one["change"] for one in provenance.accepted([view])],
    }


def _other(view: RunView) -> dict[str, Any]:
    """The scores and figures of the other scenario, from the same forward pass."""
    return {
        "scenario": view.scenario,
        "scores": _cells(view),
        **{key: view.summary(key) for key in KEYS},
        "accuracy_by_sample": view.summary("accuracy_by_sample"),
        "intervals": {key: _ends(view.evidence.interval(key)) for key in KEYS},
    }


def of_group(view: RunView) -> dict[str, Any]:
    """Runs that differ in their seed alone: mean, standard deviation and interval over seeds."""
    return {
        "label": view.label,
        "method": view.method,
        "seeds": [run.recipe.get("seed") for run in view.members],
        "runs": [str(run.path) for run in view.members],
        "tasks": [task.name for task in view.tasks],
        "scores": _cells(view),
        "figures": {key: figure(view, key) for key in KEYS},
        "other_scenario": None
        if view.other is None
        else {
            "scenario": view.other.scenario,
            "figures": {key: figure(view.other, key) for key in KEYS},
        },
        **classes.numbers(view),
        "probes": probed.numbers(view),
        "averaging": averaging.numbers(view),
        "reinforced": reinforced.numbers(view),
        "warm_ups": reinforced.warm_up_numbers(view),
        "pool": pool_views.numbers(view),
        "cost": tradeoff.numbers(view),
        "general_perplexity": list(view.general),
        "changes": _changes(view),
    }


def of_groups(views: Sequence[RunView]) -> dict[str, Any]:
    """All methods of a comparison, and which of them is best at what (None: none was shown)."""
    best = {key: ranking.best(views, key) for key in (*KEYS, ranking.GENERAL)}
    return {
        "groups": [of_group(view) for view in views],
        "best": {key: None if i is None else views[i].label for key, i in best.items()},
    }


def figure(view: RunView, key: str) -> dict[str, Any]:
    """A summary figure: `mean`, `low`, `high`, and over several seeds `sd`; `seeds` runs."""
    values = [run.summary(key) for run in view.members]
    known = [value for value in values if value is not None]
    ends = view.evidence.interval(key)
    whole = known and len(known) == len(values)
    return {
        "mean": view.summary(key),
        "sd": seeds.spread(known).sd if whole else None,
        **_ends(ends),
        "seeds": len(values),
    }


def _cells(view: RunView) -> list[dict[str, Any]]:
    names = apart([task.name for task in view.tasks], ["after"])
    return [
        {"after": after, **dict(zip(names, row, strict=True))}
        for after, row in enumerate(view.scores.tolist())
    ]


def _intervals(view: RunView) -> dict[str, Any]:
    names = [task.name for task in view.tasks]
    evidence = view.evidence
    return {
        "level": 0.95,
        **{key: _ends(evidence.interval(key)) for key in (*KEYS, "accuracy_by_sample")},
        "scores": [
            {"after": after, **_known(view, after, names)} for after in range(len(names) + 1)
        ],
        "changes": _changes(view),
    }


def _known(view: RunView, after: int, names: Sequence[str]) -> dict[str, Any]:
    """The intervals of a row's cells; of a stream too long to read all rows those that are known
    alone."""
    found = {
        key: view.evidence.cell(after, name)
        for key, name in zip(apart(names, ["after"]), names, strict=True)
    }
    return {k: _ends(v) for k, v in found.items() if v is not None or not view.evidence.large}


def _changes(view: RunView) -> dict[str, Any]:
    """By task the gain by learning it and what was lost since; general text in nats."""
    return {
        "tasks": {
            found.task.name: {
                "learned": change(found.gain),
                "begun_after": found.after or None,
                "since_learned": change(found.since),
                "since_base": change(found.against),
            }
            for found in findings.findings(view)
        },
        "general": change(view.evidence.general_change),
    }


def change(found: Change | None) -> dict[str, Any] | None:
    """A change, more is better, with its interval, the margin and what it means."""
    if found is None:
        return None
    return {
        "mean": found.mean,
        "low": found.low,
        "high": found.high,
        "unit": "nats" if found.nats else "score",
        "margin": found.margin,
        "outcome": found.outcome,
        "gain": found.gain,
        "rows": found.rows,
        "paired": found.paired,
    }


def rests_on(view: RunView, key: str) -> dict[str, Any]:
    """The cells that a figure is made of, and those that it would be made of were they scored; None
    of a stream so long that a figure may rest on a million."""
    if view.evidence.large:
        return {"used": None, "missing": None}
    found = view.matrix.cells(key)
    return {
        "used": [asdict(cell) for cell in found.used],
        "missing": [asdict(cell) for cell in found.missing],
    }


def _ends(found: Interval | None) -> dict[str, Any]:
    return {"low": None, "high": None} if found is None else {"low": found.low, "high": found.high}
