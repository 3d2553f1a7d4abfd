"""A run's lines of scores.jsonl, read once however often they are asked for."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from perdure.run.sums import lines_of

Cell = tuple[Any, Any, Any]
"""What a line is of: its kind, `after`, and task, None of general texts."""


@dataclass(frozen=True)
class Scored:
    """The lines that are as they were written; of a cell that was scored again the last."""

    lines: Sequence[dict[str, Any]]
    """Without the sums of their rows. Nobody changes them."""
    sums: Mapping[Cell, str]
    """The sha256 of the file of a score's rows, where it has one."""
    broken: Sequence[int]
    """Numbers of the lines that are not as they were written."""
    tasks: frozenset[str]
    """All that were scored."""


def cell_of(line: Mapping[str, Any]) -> Cell:
    return line.get("kind"), line.get("after"), line.get("task")


def read_scored(run: Path) -> Scored:
    """Read a run's scores; each line's own sum is checked.

    Args: run: the run's directory.
    """
    lines, broken = lines_of(run, "scores")
    last: dict[Cell, dict[str, Any]] = {}
    sums: dict[Cell, str] = {}
    for line in lines:
        for name in ("task", "metric", "kind"):  # the same few in a million lines
            if isinstance(text := line.get(name), str):
                line[name] = sys.intern(text)
        cell = cell_of(line)
        last[cell] = line
        if (said := line.pop("items", None)) is not None:
            sums[cell] = said
        else:
            sums.pop(cell, None)
    tasks = frozenset(task for _, _, task in last if task is not None)
    return Scored([*last.values()], sums, broken, tasks)


class Reader:
    """Reads a run's scores again only where scores.jsonl has changed since."""

    def __init__(self, run: Path) -> None:
        self._run, self._stamp = run, (-1, -1, -1)
        self._found = Scored([], {}, [], frozenset())

    def __call__(self) -> Scored:
        file = self._run / "scores.jsonl"
        stamp = (-1, -1, -1)
        if file.is_file():
            said = file.stat()
            stamp = (said.st_size, said.st_mtime_ns, said.st_ino)
        if stamp != self._stamp:
            self._found, self._stamp = read_scored(self._run), stamp
        return self._found
