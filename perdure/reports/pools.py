"""A pool of adapters as a run's newest scores tell of it: groups, routing, what it costs, its size.

    grouping     where each task was learned, and how near that and the next group were
    confusion    which adapter answered the requests of each task; those that fit none apart
    costs        the score as served beside the one with the right adapter given: paired rows
    size         adapters, versions, parameters, bytes

Everything comes from the run directory: facts of the tasks' ends, and the scored rows. Accuracy is
that of `perdure.scoring.routing_figures`. Of several seeds counts are summed and figures are means,
with the wider end of two intervals, as all other figures have it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import TYPE_CHECKING, Any

import numpy as np

from perdure.reports.evidence import DRAWS
from perdure.reports.facts import MISSING, TaskFacts
from perdure.reports.seeds import wider
from perdure.run.item_files import groups_of
from perdure.run.pool import POOL
from perdure.scoring.change import of_items, pooled_values
from perdure.scoring.matrix import ScoreMatrix
from perdure.scoring.resampling import Column, Interval, resample
from perdure.scoring.routing_figures import RoutingFigures, figures, fits

if TYPE_CHECKING:
    from perdure.reports.data import RunView

FACT = "method/"
NONE_FITS = "none fits"
GENERAL = "general text"
Items = Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Placed:
    """Where a task was learned. `nearest` and `runner_up` are groups that were there before, with
    their similarity; None where there was none, or none was recorded."""

    task: str
    group: str
    adapter: str
    """The version that this task made."""
    opened: bool
    nearest: tuple[str, float] | None
    runner_up: tuple[str, float] | None


@dataclass(frozen=True)
class Answered:
    """How many requests of a task each column's adapter answered; `right` is its column."""

    task: str
    counts: tuple[int, ...]
    right: int | None

    @property
    def share(self) -> float:
        """Of its requests those that the right adapter answered; nan where none is right."""
        total = sum(self.counts)
        return self.counts[self.right] / total if self.right is not None and total else MISSING


@dataclass(frozen=True)
class Confusion:
    """Columns are adapters, and last those requests that fit none, whoever answered them."""

    columns: tuple[str, ...]
    rows: tuple[Answered, ...]


@dataclass(frozen=True)
class Cost:
    """A task's score by the base model, as served, and with the right adapter given.

    `cost` is by how much worse it is as served, positive where routing costs something: in the
    score's unit, or in nats a token.
    """

    task: str
    base: float
    routed: float
    right: float
    cost: Interval
    nats: bool = False
    counted: bool = True
    """Whether it is part of the mean over tasks: its score runs from 0 to 1."""


@dataclass(frozen=True)
class Size:
    """Of the adapters that answer, without one that no group has."""

    adapters: float
    versions: float
    parameters: float
    bytes: float


@dataclass(frozen=True)
class Pool:
    """See the module; `routing` is None where no request was routed yet."""

    grouping: tuple[Placed, ...]
    alike: bool
    """Whether all seeds grouped the tasks so."""
    fallback: str
    routing: RoutingFigures | None
    confusion: Confusion
    costs: tuple[Cost, ...]
    mean: Cost | None
    """Over the tasks that count; None where there is none."""
    size: Size


def pool_of(run: RunView) -> Pool | None:
    """The pool of a run, or of the runs of several seeds; None where nothing is routed."""
    if "pool" not in run.memo:  # a page asks for it in several places
        found = [one for member in run.members if (one := _of_one(member)) is not None]
        known = found if len(found) == len(run.members) else []
        run.memo["pool"] = (_merged(known) if len(known) > 1 else known[0]) if known else None
    pool: Pool | None = run.memo["pool"]
    return pool


def _of_one(run: RunView) -> Pool | None:
    lines = {
        fact["after"]: fact["value"]
        for fact in run.facts
        if fact["name"] == POOL and fact["after"] <= len(run.tasks)
    }
    if not lines:
        return None
    newest = lines[run.done] if run.done in lines else lines[max(lines)]
    rows = {task.name: run.evidence.rows(run.done, task.name) for task in run.tasks}
    costs, mean = _costs(run, rows)
    return Pool(
        grouping=tuple(_grouping(run, lines)),
        alike=True,
        fallback=str(newest.get("router", {}).get("fallback", "")),
        routing=figures(item for items in rows.values() for item in items),
        confusion=_confusion(_adapters(newest), {**rows, **_general_rows(run)}),
        costs=costs,
        mean=mean,
        size=_size(newest),
    )


# --- groups and size


def _grouping(run: RunView, lines: Mapping[int, Mapping[str, Any]]) -> list[Placed]:
    found = []
    for after, task in enumerate(run.tasks, start=1):
        line = lines.get(after) or lines[max(lines)]
        home = next((g for g in line.get("groups", ()) if task.name in g["tasks"]), None)
        if home is None:  # only scored, or not learned yet
            continue
        facts = {
            str(fact["name"]).removeprefix(FACT): float(fact["value"])
            for fact in run.facts
            if fact["after"] == after and str(fact["name"]).startswith(FACT)
        }
        opened = facts.get("group_opened", float(home["tasks"][0] == task.name))
        found.append(
            Placed(
                task.name,
                home["name"],
                home["adapter"],
                bool(opened),
                _named(facts, "nearest_group/"),
                _named(facts, "runner_up_group/"),
            )
        )
    return found


def _named(facts: Mapping[str, float], begin: str) -> tuple[str, float] | None:
    """The group that a fact of this kind names, and its value."""
    found = [(n.removeprefix(begin), value) for n, value in facts.items() if n.startswith(begin)]
    return found[0] if found else None


def _adapters(line: Mapping[str, Any]) -> list[str]:
    """Those that may answer: of groups, or, without a codebook, all."""
    if "groups" in line:
        return [group["adapter"] for group in line["groups"]]
    return [one["name"] for one in line["adapters"]]


def _size(line: Mapping[str, Any]) -> Size:
    names = _adapters(line)
    own = [one for one in line["adapters"] if one["name"] in names]
    return Size(
        len(names),
        sum(map(_version, names)),
        sum(one["parameters"] for one in own),
        sum(one["bytes"] for one in own),
    )


def _version(adapter: str) -> int:
    """The version in an adapter's name, as a codebook writes it; 1 where it has none."""
    number = adapter.rpartition("@")[2]
    return int(number) if "@" in adapter and number.isdecimal() else 1


# --- who answered


def _general_rows(run: RunView) -> dict[str, Items]:
    """General texts and items of lm-eval's tasks, whose requests are routed too."""
    names = [None, *(task.name for task, _ in run.general_tasks)]
    found = {GENERAL if n is None else n: run.evidence.general_rows(run.done, n) for n in names}
    known = {task.name for task in run.tasks}
    return {name: rows for name, rows in found.items() if name not in known}


def _confusion(adapters: Sequence[str], rows: Mapping[str, Items]) -> Confusion:
    routed = {task: [i for i in items if "adapter" in i] for task, items in rows.items()}
    others = (i["adapter"] for items in routed.values() for i in items if fits(i))
    columns = (*dict.fromkeys([*adapters, *others]), NONE_FITS)
    found = []
    for task, items in routed.items():
        if not items:
            continue
        at = [columns.index(i["adapter"] if fits(i) else NONE_FITS) for i in items]
        right = items[0].get("right")
        counts = tuple(at.count(column) for column in range(len(columns)))
        found.append(Answered(task, counts, columns.index(right) if right in columns else None))
    return Confusion(columns, tuple(found))


# --- what it costs


def _costs(run: RunView, rows: Mapping[str, Items]) -> tuple[tuple[Cost, ...], Cost | None]:
    """Each task's, of those that an adapter has learned, and their mean."""
    known = [
        task
        for task in run.tasks
        if rows[task.name] and all("right" in item for item in rows[task.name])
    ]
    bounded = [task for task in known if task.bounded]
    found, ends = [], _paired(run, bounded, rows)
    of_task = {task.name: interval for task, interval in zip(bounded, ends[0], strict=True)}
    for task in known:
        items = rows[task.name]
        nats = not task.bounded and all("loss" in item for item in items)
        shares = run.matrix.in_shares[run.matrix.tasks.index(task.name)]
        found.append(
            Cost(
                task.name,
                run.score(0, task.name),
                run.score(run.done, task.name),
                _with_right(items, nats),
                of_task[task.name] if task.bounded else _unbounded(run, task, items, nats),
                nats,
                task.bounded and shares,
            )
        )
    counted = [one for one in found if one.counted]
    if not counted or ends[1] is None:
        return tuple(found), None
    base, served, right = (
        fmean(getattr(one, key) for one in counted) for key in ("base", "routed", "right")
    )
    return tuple(found), Cost("mean over tasks", base, served, right, ends[1])


def _right(item: Mapping[str, Any], key: str) -> float:
    """An item's score or loss with the right adapter: its own where that one answered."""
    return float(item.get(f"right_{key}", item[key]))


def _with_right(items: Items, nats: bool) -> float:
    if not nats:
        return fmean(_right(item, "score") for item in items)
    tokens = sum(item["tokens"] for item in items)
    loss = math.fsum(_right(item, "loss") * item["tokens"] for item in items) / tokens
    return math.exp(loss) if loss < 700 else math.inf


def _paired(
    run: RunView, tasks: Sequence[TaskFacts], rows: Mapping[str, Items]
) -> tuple[list[Interval], Interval | None]:
    """Of tasks whose scores have limits the cost of each, and the mean over those that count.

    Each row is compared with itself; tasks are drawn apart, as in all figures of a score matrix.
    """
    if not tasks:
        return [], None
    names, last = [task.name for task in tasks], len(tasks)
    shares = [run.matrix.in_shares[run.matrix.tasks.index(name)] for name in names]
    matrix, columns = ScoreMatrix(names, in_shares=shares), []
    for number, task in enumerate(tasks):
        items, span = rows[task.name], task.top - task.low
        more = [_right(item, "score") - float(item["score"]) for item in items]
        cells = np.full((last + 1, len(items)), np.nan)
        cells[last] = task.sign * np.asarray(more)
        means = cells.mean(1)
        matrix.record(last, task.name, float(means[last]))
        columns.append(Column(means, len(items), cells, -span, span, number + 1, groups_of(items)))
    found = resample(matrix, columns)
    each = [
        Interval(
            float(columns[j].scores[last]), float(found.low[last, j]), float(found.high[last, j])
        )
        for j in range(last)
    ]
    drawn = found.figures.get("average_accuracy")
    return each, None if drawn is None else drawn.interval()


def _unbounded(run: RunView, task: TaskFacts, items: Items, nats: bool) -> Interval:
    """The same of a score without limits, with the assumptions that such changes have elsewhere."""
    key, margins = ("loss" if nats else "score"), run.evidence.margins
    worse = np.array([float(item[key]) - _right(item, key) for item in items])
    if nats:
        worse = pooled_values(worse, np.array([item["tokens"] for item in items], np.float64))
    elif task.higher_is_better:
        worse = -worse
    found = of_items(worse, margins.max_loss_rise, groups=groups_of(items), draws=DRAWS)
    return Interval(found.mean, found.low, found.high)


# --- several seeds


def _merged(pools: Sequence[Pool]) -> Pool:
    first = pools[0]
    same = [[(one.task, one.group, one.opened) for one in pool.grouping] for pool in pools]
    means = [pool.mean for pool in pools if pool.mean is not None]
    tasks = [c.task for c in first.costs if all(c.task in {o.task for o in p.costs} for p in pools)]
    sizes = {k: fmean(getattr(pool.size, k) for pool in pools) for k in Size.__annotations__}
    return replace(
        first,
        alike=all(one == same[0] for one in same),
        routing=_merged_routing([p.routing for p in pools if p.routing is not None]),
        confusion=_summed([pool.confusion for pool in pools]),
        costs=tuple(_merged_cost([_cost(pool, task) for pool in pools]) for task in tasks),
        mean=_merged_cost(means) if len(means) == len(pools) else None,
        size=Size(**sizes),
    )


def _cost(pool: Pool, task: str) -> Cost:
    return next(one for one in pool.costs if one.task == task)


def _merged_cost(costs: Sequence[Cost]) -> Cost:
    means = {k: fmean(getattr(one, k) for one in costs) for k in ("base", "routed", "right")}
    ends = wider([one.cost.value for one in costs], [one.cost for one in costs])
    assert ends is not None
    return replace(costs[0], **means, cost=ends)  # type: ignore[arg-type]


def _merged_routing(found: Sequence[RoutingFigures]) -> RoutingFigures | None:
    if not found:
        return None
    ends = [one.interval for one in found if one.interval is not None]
    counts = ("requests", "known", "right", "none", "none_right")
    summed = {key: sum(getattr(one, key) for one in found) for key in counts}
    interval = wider([one.value for one in ends], ends) if len(ends) == len(found) else None
    most = max(one.instructions for one in found)
    return replace(found[0], **summed, instructions=most, interval=interval)


def _summed(found: Sequence[Confusion]) -> Confusion:
    columns = tuple(
        name
        for name in dict.fromkeys(name for one in found for name in one.columns)
        if name != NONE_FITS
    )
    columns = (*columns, NONE_FITS)
    rows = []
    for task in dict.fromkeys(row.task for one in found for row in one.rows):
        mine = [(one, row) for one in found for row in one.rows if row.task == task]
        counts = tuple(
            sum(row.counts[one.columns.index(name)] for one, row in mine if name in one.columns)
            for name in columns
        )
        names = {None if row.right is None else one.columns[row.right] for one, row in mine}
        name = names.pop() if len(names) == 1 else None
        rows.append(Answered(task, counts, None if name is None else columns.index(name)))
    return Confusion(columns, tuple(rows))
