"""Pools of adapters as page, terminal, `--json` and the tables of a comparison show them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from perdure.reports.caps import listed, listed_words
from perdure.reports.colours import STEPS
from perdure.reports.format import DASH, between, count, number, plain, significant, titled
from perdure.reports.pool_shown import confusion_cut, shown_of
from perdure.reports.pools import NONE_FITS, Confusion, Cost, Placed, Pool, pool_of

if TYPE_CHECKING:
    from rich.table import Table

    from perdure.reports.data import RunView

DIGITS = 3
INTRO = (
    "Each request is answered by the adapter of the group that its instruction fits; the router is "
    "told neither its task nor its answer. Right is the adapter that learned the request’s task."
)
ACCURACY = (
    "Routing accuracy: the share of requests that fit a group and are answered by the right "
    "adapter. Its interval is over different instructions, as requests of one instruction are all "
    "routed alike."
)
COST = (
    "What routing costs: the score with the right adapter given less the score as served, row by "
    "row; in nats a token for perplexities. Means are over tasks whose scores run from 0 to 1. "
    "Its interval is over test rows, with instructions as they are worded here."
)
FALLBACK = {
    "base": "the base model answered them",
    "nearest": "the adapter of the nearest group answered them",
    "last": "the adapter of the newest group answered them",
}


@dataclass(frozen=True)
class Figure:
    """A column of a comparison: a heading, the figure as text, and its interval."""

    title: str
    text: str
    interval: str = ""


def overview(pool: Pool | None) -> list[Figure]:
    """What a comparison shows of a run; dashes where it has no pool, or it was not measured."""
    routing = None if pool is None else pool.routing
    mean = None if pool is None else pool.mean
    size = None if pool is None else pool.size
    ends = None if routing is None else routing.interval
    over = "" if routing is None else f", {_instructions(routing.instructions)}"
    cost = None if mean is None else mean.cost
    return [
        Figure(
            "routing accuracy ↑",
            DASH if ends is None else number(ends.value, DIGITS),
            "" if ends is None else between(ends.low, ends.high, DIGITS) + over,
        ),
        Figure(
            "fit no group",
            DASH if routing is None or not routing.known else f"{routing.none} of {routing.known}",
        ),
        Figure("base model", number(None if mean is None else mean.base, DIGITS)),
        Figure("as served ↑", number(None if mean is None else mean.routed, DIGITS)),
        Figure("right adapter given ↑", number(None if mean is None else mean.right, DIGITS)),
        Figure(
            "routing costs ↓",
            DASH if cost is None else number(cost.value, DIGITS),
            "" if cost is None else between(cost.low, cost.high, DIGITS, sign=True),
        ),
        Figure(
            "adapters",
            DASH if size is None else f"{size.adapters:g}",
            "" if size is None else f"{size.versions:g} version{'' if size.versions == 1 else 's'}",
        ),
        Figure("parameters", count(None if size is None else size.parameters)),
        Figure("on disk", DASH if size is None else disk(size.bytes)),
    ]


SHORT = ("routing accuracy ↑", "routing costs ↓", "adapters", "on disk")
"""Those of `overview` that stand in the rounded table of a comparison."""


def shortened(pool: Pool | None) -> list[Figure]:
    """Those of `overview` that a rounded table has room for."""
    return [figure for figure in overview(pool) if figure.title in SHORT]


def _instructions(many: int) -> str:
    return f"{many} instruction{'' if many == 1 else 's'}"


def disk(size: float) -> str:
    """Bytes as a folder's size is shown: `17.2 kB`, `4.61 MB`."""
    for unit, least in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= least:
            return f"{significant(size / least)} {unit}"
    return f"{size:.0f} bytes"


# --- a run's own tables


def group_cells(one: Placed) -> list[str]:
    """Group, adapter, what was done, and how near it and the next group were."""
    return [
        one.group,
        one.adapter,
        "opened" if one.opened else "continued",
        near(one.nearest),
        near(one.runner_up),
    ]


def near(group: tuple[str, float] | None) -> str:
    return DASH if group is None else f"{group[0]} {number(group[1])}"


GROUP_HEADS = ("group", "adapter", "group was", "nearest before", "runner-up")


def cost_cells(one: Cost) -> list[str]:
    """Base model, as served, right adapter, and the cost with its interval."""
    show = (lambda value: number(value, DIGITS)) if one.counted else significant
    ends = between(one.cost.low, one.cost.high, DIGITS, sign=True)
    unit = " nats" if one.nats else ""
    return [show(one.base), show(one.routed), show(one.right),
            number(one.cost.value, DIGITS) + unit, ends]  # fmt: skip


COST_HEADS = ("base model", "as served", "right adapter given", "routing costs")


def fallback_words(pool: Pool) -> str:
    """What happened to requests that fit no group; empty where all fit one."""
    routing = pool.routing
    if routing is None or not any(row.counts[-1] for row in pool.confusion.rows):
        return ""
    said = f"{NONE_FITS}: these requests are unlike every group"
    said += f"; {FALLBACK[pool.fallback]}" if pool.fallback in FALLBACK else ""
    if routing.none_right:
        said += (
            f" (the right adapter all the same for {routing.none_right} of the {routing.none} "
            "that are of learned tasks, which the accuracy does not count)"
        )
    return said


# --- --json and tables


def numbers(run: RunView) -> dict[str, Any] | None:
    """For `--json`; None where nothing is routed."""
    pool = pool_of(run)
    if pool is None:
        return None

    def cost(one: Cost) -> dict[str, Any]:
        ends = one.cost
        said = {"task": one.task, "base": one.base, "routed": one.routed, "right": one.right}
        unit = "nats" if one.nats else "score"
        return {**said, "cost": ends.value, "low": ends.low, "high": ends.high, "unit": unit}

    def group(found: tuple[str, float] | None) -> dict[str, Any] | None:
        return None if found is None else {"group": found[0], "similarity": found[1]}

    mean = None if pool.mean is None else {k: v for k, v in cost(pool.mean).items() if k != "task"}
    return {
        "grouping": [
            {
                "task": one.task,
                "group": one.group,
                "adapter": one.adapter,
                "opened": one.opened,
                "nearest": group(one.nearest),
                "runner_up": group(one.runner_up),
            }
            for one in pool.grouping
        ],
        "routing": None if pool.routing is None else pool.routing.numbers(),
        "fallback": pool.fallback or None,
        "confusion": {
            "columns": list(pool.confusion.columns),
            "rows": [
                {
                    "task": row.task,
                    "right": None if row.right is None else pool.confusion.columns[row.right],
                    "counts": list(row.counts),
                }
                for row in pool.confusion.rows
            ],
        },
        "costs": [cost(one) for one in pool.costs],
        "mean": mean,
        "size": asdict(pool.size),
    }


CSV = (
    "routing_accuracy", "routing_accuracy_low", "routing_accuracy_high",
    "routing_cost", "routing_cost_low", "routing_cost_high", "right_adapter_accuracy",
    "pool_adapters", "pool_versions", "pool_parameters", "pool_bytes",
)  # fmt: skip


def csv_cells(pool: Pool | None) -> list[float | None]:
    """The columns `CSV`, None where unknown."""
    routing = None if pool is None else pool.routing
    ends = None if routing is None else routing.interval
    mean = None if pool is None else pool.mean
    cells: list[float | None] = []
    for found in (ends, None if mean is None else mean.cost):
        cells += [None] * 3 if found is None else [found.value, found.low, found.high]
    cells.append(None if mean is None else mean.right)
    return cells + ([None] * 4 if pool is None else list(asdict(pool.size).values()))


# --- the page


def sections(runs: Sequence[RunView]) -> dict[str, Any]:
    """For the page: all runs with a pool side by side, and the tables of each."""
    found = [(slot, run, pool) for slot, run in enumerate(runs) if (pool := pool_of(run))]
    return {
        "intro": INTRO,
        "notes": (ACCURACY, COST),
        "heads": [_capital(figure.title) for figure in overview(None)],
        "rows": [
            {"label": run.label, "slot": slot, "figures": overview(pool)}
            for slot, run, pool in found
        ],
        "group_heads": [_capital(head) for head in GROUP_HEADS],
        "cost_heads": [_capital(head) for head in COST_HEADS],
        "runs": [_section(slot, run, pool) for slot, run, pool in found],
    }


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _section(slot: int, run: RunView, pool: Pool) -> dict[str, Any]:
    whole = [] if pool.mean is None or len(pool.costs) < 2 else [pool.mean]
    costs, asked = [*listed(pool.costs), *whole], shown_of(pool.confusion)
    return {
        "label": run.label,
        "slot": slot,
        "grouping": [
            {"task": one.task, "cells": group_cells(one)} for one in listed(pool.grouping)
        ],
        "grouping_cut": listed_words(len(pool.grouping)),
        "confusion_cut": confusion_cut(pool.confusion),
        "costs_cut": listed_words(len(pool.costs)),
        "unlike": "" if pool.alike else "Other seeds grouped these tasks otherwise.",
        "columns": asked.columns,
        "confusion": [_row(asked, i) for i in range(len(asked.rows))],
        "fallback": fallback_words(pool),
        "costs": [
            {"task": one.task, "cells": cost_cells(one)[:-1], "interval": cost_cells(one)[-1]}
            for one in costs
        ],
    }


def _row(confusion: Confusion, number_of: int) -> dict[str, Any]:
    row = confusion.rows[number_of]
    total = sum(row.counts)
    return {
        "task": row.task,
        "cells": [
            {
                "text": str(one) if one else "",
                "step": round(one / total * (STEPS - 1)),
                "right": column == row.right,
            }
            for column, one in enumerate(row.counts)
        ],
        "share": number(row.share),
    }


# --- the terminal


WIDE = 140
"""Columns of a terminal from which on an overview has a line for each method."""


def tables(runs: Sequence[RunView], width: int = 80) -> Iterator[Table | str]:
    """For the terminal: an overview, and for each run its groups, who answered, and costs.

    Args: width: of the terminal; in a narrow one each method is a column of the overview, and many
        adapters are lists.
    """
    found = [(run, pool) for run in runs if (pool := pool_of(run)) is not None]
    if not found:
        return
    yield _overview_table(found, width)
    for said in (ACCURACY, COST):
        yield said
    for run, pool in found:
        yield _table(
            f"{run.label}: where each task was learned",
            ("task", *GROUP_HEADS),
            [[one.task, *group_cells(one)] for one in listed(pool.grouping)],
            listed_words(len(pool.grouping)),
        )
        if not pool.alike:
            yield f"{run.label}: other seeds grouped these tasks otherwise"
        yield _confusion_table(run, pool, width)
        if said := fallback_words(pool):
            yield f"{run.label}: {said}"
        if pool.costs:
            rows = [[one.task, *_joined(cost_cells(one))] for one in listed(pool.costs)]
            title = f"{run.label}: what routing costs, task by task"
            yield _table(title, ("task", *COST_HEADS), rows, listed_words(len(pool.costs)))


def _joined(cells: Sequence[str]) -> list[str]:
    *first, cost, ends = cells
    return [*first, f"{cost}\n{ends}" if ends else cost]


def _overview_table(found: Sequence[tuple[RunView, Pool]], width: int) -> Table:
    lines = [["method", *(figure.title for figure in overview(None))]]
    for run, pool in found:
        cells = [f"{f.text}\n{f.interval}" if f.interval else f.text for f in overview(pool)]
        lines.append([run.label, *cells])
    if width < WIDE:
        lines = [list(line) for line in zip(*lines, strict=True)]
    return _table("Adapters and routing", lines[0], lines[1:])


def _confusion_table(run: RunView, pool: Pool, width: int) -> Table:
    """A column for each adapter; where they have no room, each task with those that answered it."""
    from rich.cells import cell_len

    found, cut = shown_of(pool.confusion), confusion_cut(pool.confusion)
    title = f"{run.label}: which adapter answered the requests of each task"
    heads, rows, listing = ("requests of", *found.columns, "right share"), [], []
    for row in found.rows:
        counts = list(enumerate(row.counts))
        cells = [f"[{n}]" if at == row.right else (str(n) if n else "") for at, n in counts]
        rows.append([row.task, *cells, number(row.share)])
        right = DASH if row.right is None else found.columns[row.right]
        most = sorted(((at, n) for at, n in counts if n), key=lambda one: -one[1])
        by = "\n".join(f"{found.columns[at]}: {n}" for at, n in most)
        listing.append([row.task, right, number(row.share), by])
    # Three signs stand between two columns, and one at each end.
    if sum(3 + max(map(cell_len, one)) for one in zip(heads, *rows, strict=True)) - 1 <= width:
        return _table(f"{title} ([right one])", heads, rows, cut)
    return _table(title, ("requests of", "right adapter", "right share", "answered by"), listing,
                  cut)  # fmt: skip


def _table(title: str, heads: Sequence[str], rows: Sequence[Sequence[str]], cut: str = "") -> Table:
    table = titled(title)
    table.caption, table.caption_justify = cut or None, "left"
    for place, head in enumerate(heads):
        table.add_column(plain(head), justify="right" if place else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(plain, row))
    return table
