"""`perdure eval` and `perdure audit`: measure models that are trained already."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perdure.errors import RunError, UsageError, printable, task_named
from perdure.learners.listener import Folders, Silent
from perdure.prepare import Prepared, load_recipe, prepare, run_stream, stream_of
from perdure.recipe.schema import Recipe
from perdure.reports.output import emit, first_process, working
from perdure.run import Run
from perdure.run.damage import verify, verify_scores
from perdure.run.item_files import groups_of
from perdure.run.pins import note_accepted, refuse_changes
from perdure.scoring.resampling import mean_interval
from perdure.scoring.routing_figures import figures
from perdure.streams.kinds import known_metric

if TYPE_CHECKING:
    from perdure.streams import TaskStream


def evaluate(
    path: Path,
    tasks: Path | None,
    after: int | None,
    as_json: bool,
    accept_changes: bool = False,
) -> None:
    """Score a run's model again, or on tasks of another recipe, which then join the run's scores.

    lm-eval's tasks in the recipe's `general` are scored too, perplexity is not.

    A score that the run has already is shown beside the new one and never replaced.
    """
    from perdure.reports import make_display

    run = Run.open(path)
    # Without a number it is the last model that is meant: it must be there, and whole.
    # Its weights are read and checked when they are loaded.
    verify(run, weights=False) if after is None else verify_scores(run)
    recipe = run.recipe if tasks is None else load_recipe(tasks, tasks_only=True)
    stream = run_stream(run) if tasks is None else stream_of(recipe)
    if tasks is not None:
        _refuse_names(run, stream)
        _refuse_settings(run, recipe)
    learned, _ = run.last_checkpoint()
    after = learned if after is None else after
    names = {("task", task.name) for task in stream if not task.test_of}
    names |= {("general", task) for task in (recipe.general.tasks if recipe.general else ())}
    if names - _recorded(run, after).keys():
        with run.lock():  # what could not be recorded is not scored for hours first
            pass
    display = make_display(json=as_json)
    with working(), display:
        changes = refuse_changes(
            run,
            accept=accept_changes,
            base=after == 0 or run.recipe.model.tuning == "lora",
            stream=stream if tasks is None else None,
        )
        # Each recipe's word covers what that recipe names.
        # Probes need training rows, which are not read here.
        scoring = run.recipe.scoring.model_copy(update={"probes": []})
        of_general = {
            "general": recipe.general,
            "trust_remote_code": recipe.trust_remote_code,
            "scoring": scoring,
        }
        scored = run.recipe.model_copy(update=of_general)
        found = _score(run, prepare(scored, stream=stream, training=False), after, display)
    recorded = _recorded(run, after)
    rows = []
    routing = figures(item for line, items in found if line["kind"] == "task" for item in items)
    new = [(s, items) for s, items in found if (s["kind"], s["task"]) not in recorded]
    with run.lock() if new else nullcontext():
        if first_process() and new:
            note_accepted(run, changes)
            for line, items in new:
                run.record(line, items)
    for line, items in found:
        key = (line["kind"], line["task"])
        rows.append({**line, "recorded": recorded.get(key), **interval(line, items)})
    if as_json:
        more: dict[str, Any] = {"accepted_changes": changes} if changes else {}
        more |= {} if routing is None else {"routing": routing.numbers()}
        emit({"run": str(run.path), "after": after, "scores": rows, **more})
    elif first_process():
        _table(run, after, rows)
        if routing is not None:
            print(printable(routing.words()))


def _recorded(run: Run, after: int) -> dict[tuple[str, str | None], float]:
    """The scores that a run has after so many tasks."""
    lines = [line for line in run.scores() if line["after"] == after and "score" in line]
    return {(line["kind"], line.get("task")): line["score"] for line in lines}


class _Shown(Silent):
    """Shows how far the scoring has come."""

    def __init__(self, display: Any, methods: str) -> None:
        self.display, self.methods = display, methods

    def progress(self, verb: str, what: str, done: int, total: int) -> None:
        self.display.scoring(self.methods, what, done, total)


def _score(
    run: Run, ready: Prepared, after: int, display: Any
) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
    from perdure import learners
    from perdure.models.chat import Encoder
    from perdure.models.told import template_told

    folder = run.checkpoint(after) if after else None
    if after and folder is None:
        kept = run.checkpoints()
        raise RunError(
            f"{run.path}: has no model after {after} tasks",
            f"it has: 0 (the base){''.join(f', {k}' for k in kept)}",
        )
    if folder is not None:
        served = folder / "serving"
        folder = served if served.is_dir() else folder / "model"
    learner = learners.build_saved(
        ready.recipe,
        ready.stream,
        folder,
        after,
        precision=str(run.environment().get("precision", "fp32")),
        folders=Folders.below(run.path),
        listener=_Shown(display, run.methods_name),
        today=run.today,
        lm_eval_tasks=ready.lm_eval_tasks,
    )
    if isinstance(encoder := learner.encoder, Encoder):
        told = template_told(encoder, learner.tokenizer.chat_template, "the run's")
        display.message(f"{run.methods_name}: rows are read with {told}")
    # Perplexity on general text is measured by the run alone.
    lines = learner.scores(after, {("general", None)})
    return [(line, [dict(item) for item in items]) for line, items in lines]


def interval(line: dict[str, Any], items: list[dict[str, Any]]) -> dict[str, float | None]:
    """A score's 95 % interval, `low` and `high`, over its rows or their groups.

    None for both where rows are not known, or where scores have no limits (perplexity) or none
    that is known: of lm-eval's metrics nothing says what a row's score may be, so those count as
    shares of 1 whose rows all lie within 0 and 1.
    """
    # lm-eval's metrics are its own, whatever they are called.
    known = None if line.get("kind") == "general" else known_metric(line["metric"])
    low, high = (known.low, known.high) if known is not None else (0.0, 1.0)
    low, high = float(line.get("low", low)), float(line.get("high", high))
    told = known is not None or "high" in line
    shares = told or all(0 <= item["score"] <= 1 for item in items)
    if not items or not shares or not math.isfinite(high - low):
        return {"low": None, "high": None}
    found = mean_interval([item["score"] for item in items], low, high, groups_of(items))
    return {"low": found.low, "high": found.high}


def _refuse_names(run: Run, stream: TaskStream) -> None:
    """A task of another recipe under a name that the run knows would spoil its scores."""
    own = {task["name"] for task in run.stream_facts()}
    if both := sorted(own & {task.name for task in stream}):
        raise UsageError(
            f"{task_named(both[0])}: the run has a task of this name already",
            "give it another name in the recipe of --tasks; to score the run's own tasks again, "
            "leave --tasks out",
        )


def _refuse_settings(run: Run, other: Recipe) -> None:
    """An lm-eval task that the run scores by other settings would be shown beside them."""
    mine, theirs = run.recipe.general, other.general
    if mine is None or theirs is None:
        return
    both = [task for task in mine.tasks if task in theirs.tasks]
    if both and (mine.limit, mine.num_fewshot) != (theirs.limit, theirs.num_fewshot):
        raise UsageError(
            f"general.tasks: {both[0]}: the run scores it with another limit or num_fewshot",
            "take the run's, or leave the task out of the recipe of --tasks",
        )


def _table(run: Run, after: int, rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=f"{printable(str(run.path))} after {after} tasks", title_justify="left")
    for heading in ("task", "metric", "score", "95 % interval", "as recorded", "rows"):
        table.add_column(heading)
    for row in rows:
        before = "" if row["recorded"] is None else f"{row['recorded']:.4f}"
        ends = "" if row["low"] is None else f"{row['low']:.4f} to {row['high']:.4f}"
        score = f"{row['score']:.4f}"
        cells = (row["task"], row["metric"], score, ends, before, str(row["rows"]))
        table.add_row(*(Text(printable(cell)) for cell in cells))
    Console().print(table)
