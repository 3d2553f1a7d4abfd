"""Run directories of many tasks with invented numbers, written by the product's own classes.

Nothing here was learned: a stream of a thousand tasks is too long for a benchmark, and what is
measured on it (`scale.py`, `tests/reports/test_long_streams.py`) is how it is read and shown.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from unittest import mock

from perdure.files import now
from perdure.recipe.schema import Recipe
from perdure.run import Run, item_files
from perdure.run.sums import with_check

Kept = Literal["all", "few", "none"]
"""Whose scored rows are written: of all cells, or of those that a report of a long stream reads:
of each task those before, just before and just after it was learned, and those at the end."""
STEPS = 6
TEXTS = 16


def answers(folder: Path, tasks: int, rows: int = 20, kept: Kept = "all") -> Run:
    """A run of tasks whose answers are written: each is scored after each, so T (T + 1) cells.

    Of five tasks one is hardly forgotten and one is forgotten at once.
    """
    names = [f"skill {i + 1}" for i in range(tasks)]
    own = [
        {"name": name, "format": "prompt", "train": f"{name}.jsonl", "max_new_tokens": 8}
        for name in names
    ]
    recipe = _recipe(folder, {"stream": {"tasks": own}, "method": {"name": "sequential"}})

    def score(after: int, j: int) -> float:
        if after <= j:
            return 0.1
        return 0.1 + 0.8 * (0.999, 0.99, 0.97, 0.9, 0.5)[j % 5] ** (after - 1 - j)

    with _begun(folder, recipe, names) as (run, lines):
        for after in range(tasks + 1):
            for j, name in enumerate(names):
                right = round(score(after, j) * rows)
                line = {"kind": "task", "after": after, "task": name, "metric": "exact_match",
                        "higher_is_better": True, "score": right / rows, "rows": rows,
                        "seconds": 0.5}  # fmt: skip
                shown = kept == "all" or (kept == "few" and _read(after, j, tasks))
                lines.append(_line(run, line, _answered(name, right, rows) if shown else []))
            line = {"kind": "general", "after": after, "metric": "perplexity", "tokens": 1024,
                    "loss": 3.0 + 0.5 * after / tasks, "seconds": 1.0,
                    "score": math.exp(3.0 + 0.5 * after / tasks)}  # fmt: skip
            texts = [{"id": f"text-{k}", "loss": line["loss"], "tokens": 64} for k in range(TEXTS)]
            lines.append(_line(run, line, texts))
    return run


def classes(
    folder: Path,
    tasks: int,
    each: int = 5,
    rows: int = 20,
    kept: Kept = "all",
    probes: bool = False,
) -> Run:
    """A run of a table cut into tasks of `each` classes: a class is scored once it was learned."""
    names = [f"task {i + 1}" for i in range(tasks)]
    table = {"train": "intents.csv", "columns": {"text": "text", "label": "label"}, "tasks": tasks}
    recipe = _recipe(folder, {"stream": {"data": table}, "method": {"name": "seq_star"}})
    labels = [[f"class_{i * each + k}" for k in range(each)] for i in range(tasks)]
    with _begun(folder, recipe, names) as (run, lines):
        for after in range(tasks + 1):
            for j, name in enumerate(names[:after]):
                share = (0.999, 0.99, 0.97, 0.9, 0.5)[j % 5] ** (after - 1 - j)
                right = round(0.9 * share * rows)
                line = {"kind": "task", "after": after, "task": name, "metric": "accuracy",
                        "higher_is_better": True, "score": right / rows, "rows": rows,
                        "seconds": 0.2, "measures": {"accuracy": right / rows,
                        "accuracy_within_task": 1.0}, "body_passes": rows}  # fmt: skip
                shown = kept == "all" or (kept == "few" and _read(after, j, tasks))
                items = _classed(labels[j], labels[after - 1], right, rows) if shown else []
                lines.append(_line(run, line, items))
            for j, name in enumerate(names if probes else ()):
                share = {"linear": {"among_all": 0.9, "within_task": 0.95}}
                fitted = {"all": share} | ({"seen": share} if j < after else {})
                line = {"kind": "probe", "after": after, "task": name, "rows": rows,
                        "fitted_on": fitted, "seconds": 0.1}  # fmt: skip
                lines.append(_line(run, line, []))
    return run


def _recipe(folder: Path, said: dict[str, Any]) -> Recipe:
    found = {"name": "invented", "model": {"path": "HuggingFaceTB/SmolLM2-135M-Instruct"}, **said}
    return Recipe.model_validate(found)


@contextmanager
def _begun(
    folder: Path, recipe: Recipe, names: list[str]
) -> Iterator[tuple[Run, list[dict[str, Any]]]]:
    """A run with its log and facts, whose scores are written at the end, all at once."""
    lines: list[dict[str, Any]] = []
    with mock.patch("os.fsync"):  # an invented run need not outlive a power cut
        run = Run.create(folder, recipe)
        run.pin_stream([{"name": name, "version": "invented"} for name in names])
        os.makedirs(folder / "items")
        yield run, lines
        steps = [
            {"time": now(), "after": i, "task": name, "phase": "main", "step": step,
             "steps": STEPS, "loss": 2.0 / step, "task_loss": 2.0 / step, "learning_rate": 1e-4,
             "tokens_per_second": 900.0, "seconds_left": 1.0, "memory_mb": 900}
            for i, name in enumerate(names, 1) for step in range(1, STEPS + 1)
        ]  # fmt: skip
        facts = [{"after": i, "task": name, "name": "seconds", "value": 9.0}
                 for i, name in enumerate(names, 1)]  # fmt: skip
        for file, found in (("scores", lines), ("log", steps), ("facts", facts)):
            with open(folder / f"{file}.jsonl", "w", encoding="utf-8") as opened:
                opened.writelines(json.dumps(with_check(line)) + "\n" for line in found)
        run.finish()


def _read(after: int, j: int, tasks: int) -> bool:
    return after in (0, j, j + 1, tasks)


def _line(run: Run, line: dict[str, Any], items: list[dict[str, Any]]) -> dict[str, Any]:
    return {**line, "items": item_files.write(run.path, line, items)} if items else line


def _answered(name: str, right: int, rows: int) -> list[dict[str, Any]]:
    return [
        {"id": f"{name}-{k}", "score": float(k < right), "prediction": "yes", "answer": "yes",
         "prompt": f"{name}, question {k}"}
        for k in range(rows)
    ]  # fmt: skip


def _classed(own: list[str], new: list[str], right: int, rows: int) -> list[dict[str, Any]]:
    found = []
    for k in range(rows):
        name = own[k % len(own)]
        guess = name if k < right else new[k % len(new)]
        found.append(
            {"id": f"{name}-{k}", "score": float(guess == name), "prediction": guess,
             "answer": name, "prompt": f"{name}, text {k}", "among_all": guess,
             "within_task": name}
        )  # fmt: skip
    return found
