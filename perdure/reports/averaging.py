"""What an average of the weights did, task by task: the weight on the old average, and how far it
moved beside the weights of training.

A share of steps out of range says little by itself: a weight of 0.02 is no averaging, one of 0.9999
is weights that hardly move, and both may be in range at every step.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any

from perdure.errors import printable
from perdure.reports.caps import listed, listed_words
from perdure.reports.facts import MISSING
from perdure.reports.format import DASH, significant, titled

if TYPE_CHECKING:
    from rich.table import Table

    from perdure.reports.data import RunView

BEGIN = "method/averaging_"
DECILES = tuple(f"{10 * i} %" for i in range(1, 10))
INTRO = (
    "The weight that the old average got, over the steps of a task and over tensors: the value "
    "below which 10 %, 20 %, ... of them lie. Near 0 nothing is averaged, near 1 the average "
    "hardly moves. How far average and weights of training moved is an L2 distance from where "
    "the task began, estimated from a part of the elements; below the average’s way stands its "
    "share of the weights’."
)


@dataclass(frozen=True)
class Averaged:
    """Of one task, means over seeds; nan where it was not recorded."""

    task: str
    out: float
    """Share of steps and tensors whose weight was out of range."""
    deciles: tuple[float, ...]
    moved: float
    moved_raw: float

    @property
    def share(self) -> float:
        """How far the average moved, as a share of the way of the weights of training."""
        return self.moved / self.moved_raw if self.moved_raw else MISSING


def tasks(run: RunView) -> list[Averaged]:
    """Each task of which an average was recorded, in order; empty without one."""
    found = []
    every = [_figures(one) for one in run.members]
    for after, task in enumerate(run.tasks, start=1):
        figures = [own for one in every if (own := one.get(after))]
        if figures:

            def mean(name: str, figures: Sequence[dict[str, float]] = figures) -> float:
                return fmean(one.get(name, MISSING) for one in figures)

            deciles = tuple(mean(f"decile_{i}") for i in range(1, 10))
            found.append(
                Averaged(task.name, mean("out_share"), deciles, mean("moved"), mean("moved_raw"))
            )
    return found


def _figures(run: RunView) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = {}
    for fact in run.facts:
        if (name := str(fact["name"])).startswith(BEGIN):
            found.setdefault(fact["after"], {})[name.removeprefix(BEGIN)] = float(fact["value"])
    return found


def weight(value: float) -> str:
    """A weight in [0, 1], with the digits that tell it from 1: `0.990`, `0.99995`."""
    if math.isnan(value):
        return DASH
    if value in (0.0, 1.0):
        return f"{value:.0f}"
    digits = max(3, 1 - round(math.log10(1 - value))) if value < 1 else 3
    return f"{value:.{min(digits, 7)}f}"


def _share(value: float) -> str:
    return DASH if math.isnan(value) else f"{100 * value:.3g} %"


def numbers(run: RunView) -> list[dict[str, Any]]:
    """The same for `--json`: a line for each task."""
    return [
        {
            "task": one.task,
            "out_of_range": one.out,
            "deciles": list(one.deciles),
            "moved": one.moved,
            "moved_raw": one.moved_raw,
        }
        for one in tasks(run)
    ]


def cells(one: Averaged) -> list[str]:
    """A task's row: share out of range, nine deciles, both ways, and the one's share."""
    return [
        _share(one.out),
        *(weight(value) for value in one.deciles),
        significant(one.moved),
        significant(one.moved_raw),
        _share(one.share),
    ]


def _row(one: Averaged) -> dict[str, Any]:
    out, *deciles, moved, raw, share = cells(one)
    return {"task": one.task, "out": out, "deciles": deciles, "moved": moved, "raw": raw,
            "share": share}  # fmt: skip


def sections(runs: Sequence[RunView]) -> list[dict[str, Any]]:
    """For the page: a table for each run with an average."""
    return [
        {
            "label": run.label,
            "slot": slot,
            "rows": [_row(one) for one in listed(found)],
            "cut": listed_words(len(found)),
        }
        for slot, run in enumerate(runs)
        if (found := tasks(run))
    ]


def tables(runs: Sequence[RunView]) -> Iterator[Table]:
    """For the terminal: a table for each run with an average."""
    from rich.text import Text

    for run in runs:
        if found := tasks(run):
            said = f"{run.label}: weight on the old average, and how far it moved"
            table = titled(said)
            table.add_column("task", overflow="fold")
            for heading in ("out of range", "deciles of the weight", "moved", "weights moved"):
                table.add_column(heading, justify="right", overflow="fold")
            for one in listed(found):
                out, *deciles, moved, raw, share = cells(one)
                row = (out, " ".join(deciles), f"{moved} ({share})", raw)
                table.add_row(Text(printable(one.task)), *map(Text, row))
            if cut := listed_words(len(found)):
                table.caption, table.caption_justify = f"{run.label}: {cut}", "left"
            yield table
