"""`perdure run` and `perdure resume`."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perdure import peers
from perdure.errors import (
    PerdureError,
    RecipeError,
    UsageError,
    brief,
    printable,
    resume_command,
    typed,
)
from perdure.failures import cause_of
from perdure.prepare import load_recipe
from perdure.recipe.schema import Recipe
from perdure.recipe.section import Section
from perdure.reports.output import emit, first_process, summary, working
from perdure.run import Run
from perdure.run.pins import new_place
from perdure.run.place import refused

if TYPE_CHECKING:
    from perdure.plan import Plan
    from perdure.prepare import Prepared


def run(
    path: Path,
    overrides: Sequence[str],
    out: Path | None,
    check: bool,
    as_json: bool,
    all_mistakes: bool = False,
) -> None:
    """Learn a recipe's tasks; all that can be wrong is looked for before weights are loaded."""
    try:
        _run(path, overrides, out, check, as_json)
    except RecipeError as error:
        raise error.whole() if all_mistakes else error from error


def _run(
    path: Path, overrides: Sequence[str], out: Path | None, check: bool, as_json: bool
) -> None:
    from perdure.plan import plan
    from perdure.prepare import prepare
    from perdure.reports import make_display

    recipe = load_recipe(path, overrides)
    target = out or free_name(recipe)
    display: Any = make_display(json=as_json)
    with beginning(check):
        no_place = refused(target) if first_process() else None
        if no_place is not None and not check:
            raise no_place
        with working(), display, _placed(recipe):
            ready = prepare(recipe, display=display)
        if check:
            with working():
                planned = plan(
                    recipe,
                    ready.stream,
                    ready.encoder,
                    ready.model,
                    micro_batch=ready.micro_batch,
                    precision=ready.precision,
                    lm_eval_tasks=ready.lm_eval_tasks,
                )
            tell_of_plan(planned, recipe, ready, target, no_place, as_json)
            return
        for lack in refusals(recipe, ready):
            raise lack
        made = Run.create(target, recipe)
    if first_process() and not as_json:
        display.message(f"run directory: {made.path}")
    with working(made.path):
        from perdure.loop import learn

        with display:
            learn(recipe, made, display=display, prepared=ready)
    finish(made, as_json)


def beginning(check: bool) -> AbstractContextManager[None]:
    """Of several processes, end all soon after one died before there is a run to go on with."""
    return nullcontext() if check else peers.watched("run the command again")


def tell_of_plan(
    planned: Plan,
    recipe: Recipe,
    ready: Prepared,
    target: Path,
    no_place: PerdureError | None,
    as_json: bool,
) -> None:
    """Print what a run would take, and why it would not begin or may not end here.

    What is wrong here and now alone, as the recipe is right, is told on stderr too.

    Args: target: the run's directory; no_place: why it cannot be made there.
    """
    from perdure.learners.room import too_large

    lacking = [str(why) for why in refusals(recipe, ready, no_place)]
    facts = (recipe, ready.stream, ready.encoder, ready.model, target, planned.learned)
    doubts = [*too_large(*facts)] if first_process() else []
    if as_json:
        emit({**planned.to_dict(), "refused_here": lacking, "may_be_too_large": doubts})
    else:
        but = [f"the run would be refused here: {lack.splitlines()[0]}" for lack in lacking]
        show(planned, but + ["it may be too large for this machine"] * bool(doubts))
    for why in lacking:
        print(f"but the run would be refused: {why}", file=sys.stderr)
    for told in doubts:
        print(f"but it may be too large: {told}", file=sys.stderr)


def refusals(
    recipe: Recipe, ready: Prepared, no_place: PerdureError | None = None
) -> Iterator[PerdureError]:
    """Why a run would not begin here and now, although its recipe is right."""
    from perdure.learners.room import lacks

    if no_place is not None:
        yield no_place
    yield from lacks(recipe, ready.stream, ready.encoder, ready.model)


@contextmanager
def _placed(recipe: Recipe) -> Iterator[None]:
    """Put file and line before a message that begins with a recipe's key."""
    try:
        yield
    except RecipeError as error:
        told = [(m, _with_place(recipe, m.what)) for m in error.mistakes]
        if all(what is None for _, what in told):
            raise
        known = [PerdureError(what or m.what, m.remedy, m.source, m.kind) for m, what in told]
        raise RecipeError(known) from error
    except UsageError as error:
        if (what := _with_place(recipe, error.what)) is None:
            raise
        remedy = (*error.remedy, "nothing was loaded or written")
        raise type(error)(what, remedy) from error


def _with_place(recipe: Recipe, what: str) -> str | None:
    """A message that begins with a recipe's key, with file and line; None for any other one."""
    key, colon, rest = what.partition(": ")
    first, _, below = key.partition(".")
    if not colon or first not in Recipe.model_fields or re.search(r"[ :]", key):
        return None
    section = getattr(recipe, first)
    known = type(section).model_fields if isinstance(section, Section) else ()
    if below and known and below.partition(".")[0] not in known:  # a file called train.jsonl
        return None
    return f"{recipe.place(key)}: {rest}"


@contextmanager
def _moved(run: Run) -> Iterator[None]:
    """Say where a run that goes on is told the new place of its files."""
    try:
        yield
    except UsageError as error:
        if "no such f" in str(error):
            then = f"then go on with: {resume_command(run.path)}"
            error.remedy = (*error.remedy, new_place(run), then)
        raise


def resume(path: Path, as_json: bool, accept_changes: bool = False) -> None:
    """Go on with a run that was interrupted; a finished one is only shown."""
    from perdure.reports import make_display, write_report

    made = Run.open(path)
    if made.state == "finished":
        if first_process():
            told: Any = make_display(json=as_json)
            more = typed("extend", path, "RECIPE")
            told.message(f"{path}: is finished; to learn more tasks: {more}")
            page = made.path / "report.html"
            try:
                write_report([made], page)
            except OSError as error:  # a finished run may lie where nothing can be written
                what = cause_of(error.errno or 0).what
                elsewhere = typed("report", path, "--out", "FILE.html")
                told.message(f"{page}: {what}, so it stays as it was; elsewhere: {elsewhere}")
    else:
        with working(path):
            from perdure.loop import learn

            display: Any = make_display(json=as_json)
            with display, _moved(made):
                learn(made.recipe, made, display=display, accept_changes=accept_changes)
    finish(made, as_json)


def finish(made: Run, as_json: bool) -> None:
    from perdure.reports import score_table

    if not first_process():
        return
    page = made.path / "report.html"  # written by `learn`
    if as_json:
        emit({**summary(made), "report": str(page)})
        return
    score_table([made])
    print(f"report: {page}")


def free_name(recipe: Recipe) -> Path:
    """runs/NAME-TIME, with a number behind it if two begin in the same second."""
    # File systems count bytes, of which a letter may take four: 255 in all, with a number behind.
    short = recipe.name.replace(" ", "-").encode()[:200].decode(errors="ignore")
    name = f"{short}-{time.strftime('%Y%m%d-%H%M%S')}"
    path, number = Path("runs") / name, 2
    while path.exists():
        path, number = Path("runs") / f"{name}-{number}", number + 1
    return path


def _number(found: int | None) -> str:
    return "-" if found is None else f"{found:,}"


def _sizes(plan: Plan) -> str:
    if plan.parameters is None:
        return ""
    # Where heads learn alone for a part of the steps, the body stays there.
    most = "at most " if any(task.head_steps for task in plan.tasks) else ""
    return f"{plan.parameters:,} parameters, {most}{plan.trainable:,} trained, "


def _classes(plan: Plan) -> list[str]:
    """What a table was cut into, and which of the classes compete."""
    from perdure.reports.scenarios import MEANING

    parts = [(task.task, task.classes) for task in plan.tasks if task.classes]
    if not parts:
        return []
    count = len({name for _, names in parts for name in names})
    meaning = MEANING.get(plan.scenario, "")  # another package's kind may have others
    told = [f"{count} classes, {plan.scenario}" + (f": {meaning}" if meaning else "")]
    for task, names in parts:
        rest = f" and {len(names) - 12} more" if len(names) > 12 else ""
        told.append(f"  {task}: {', '.join(map(brief, names[:12]))}{rest}")
    return told


def _adapters(plan: Plan) -> list[str]:
    """What a method's adapters take, where it has more than the recipe's one."""
    from perdure.reports import format

    found = [t for t in plan.tasks if t.adapters is not None and t.adapters_kept is not None]
    most = max((t.adapters or 0 for t in found), default=0)
    if most < 2 or plan.trainable is None:
        return []
    kept, disk = found[-1].adapters_kept, format.memory(plan.adapters_mb or 0)
    return [
        f"adapters of {plan.trainable:,} numbers each: at most {most} in memory, one of them "
        f"trained; {kept} after the last task; {disk} on the disk, with all versions that are "
        "kept and their first values"
    ]


def _told_of_steps(plan: Plan) -> Iterator[str]:
    for task in plan.tasks:
        if task.until and task.steps:
            yield f"{task.task}: at most {task.steps:,} steps, as until may end it before"
        if task.completions:
            each = task.completions // max(1, task.steps)
            yield (
                f"{task.task}: learned from rewards: {task.completions:,} completions, "
                f"{each:,} a step; tokens and time as if each were as long as it may be"
            )
            if task.prompts is not None and task.prompts > task.train_rows:
                yield (
                    f"{task.task}: a step takes {task.prompts:,} prompts, and there are "
                    f"{task.train_rows:,}: some come more than once in each; lower rl.batch_size "
                    f"to {task.train_rows * each // task.prompts:,}, or give more rows"
                )


def _label(name: str) -> str:
    """A metric's name, and what people call it where that says more: a mean of sentences' chrF is
    no corpus score."""
    from perdure.streams.kinds import known_metric

    found = known_metric(name)
    plain = name.replace("_", " ")
    return name if found is None or found.label.lower() == plain else f"{name} ({found.label})"


def _estimate(plan: Plan) -> tuple[str, ...]:
    from perdure.reports import format

    if plan.seconds is None:
        return (f"time and memory of tasks of kind {plan.kind} are not known beforehand; methods:",)
    new = len(plan.tasks) - plan.learned
    if plan.body_passes is None and plan.learned:
        scored = f"with {new} scorings of every old task and {new + 2} of every new one"
    elif plan.body_passes is None:
        scored = f"with {new + 1} scorings of every task"
    else:
        heads = sum(task.head_steps or 0 for task in plan.tasks)
        steps = sum(task.steps for task in plan.tasks)
        scored = (
            f"the body reads {plan.body_passes:,} texts; {heads:,} of {steps:,} steps move heads "
            "alone"
        )
    return (
        f"about {format.duration(plan.seconds)} in all, {scored}",
        "time and memory: estimates, good to a factor of two, without "
        f"{'lm-eval and ' if plan.general else ''}what methods add:",
    )


def show(plan: Plan, but: Sequence[str] = ()) -> None:
    """Print the plan to stdout; `but`: what stands against its run on this machine."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from perdure.reports import format
    from perdure.reports.output import first_process

    if not first_process():
        return
    console = Console()
    title = f"{plan.recipe}: {', '.join(plan.methods)}"
    table = Table(
        title=Text(printable(title)), title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False
    )
    table.add_column("task", overflow="fold")
    for heading in ("rows*", "longest", "tokens", "steps", "time", "memory"):
        table.add_column(heading, justify="right", overflow="fold")
    for t in plan.tasks:
        table.add_row(
            Text(printable(t.task)),
            f"{t.train_rows:,}/ {t.validation_rows:,}/ {t.test_rows:,}"
            if t.train_rows > 99_999  # on two lines, where one has no room
            else f"{t.train_rows:,}/{t.validation_rows:,}/{t.test_rows:,}",
            _number(t.longest),
            _number(t.train_tokens),
            f"{t.steps:,}",
            "-" if t.train_seconds is None else format.duration(t.train_seconds),
            "-" if t.memory_mb is None else format.memory(t.memory_mb),
        )
    console.print(table)
    known = ", ".join(t.task for t in plan.tasks[: plan.learned])
    scored: dict[str, list[str]] = {}
    for t in plan.tasks:
        scored.setdefault(t.metric, []).append(t.task)
    valid = f"recipe and data are valid{', but ' * bool(but)}{'; '.join(but)}"
    for line in (
        "* to learn/validate/test; longest: a row's tokens; tokens: trained on, in all epochs",
        *([f"learned already, and only scored: {known}"] if plan.learned else []),
        *_classes(plan),
        *_told_of_steps(plan),
        *(f"scored by {_label(name)}: {', '.join(names)}" for name, names in scored.items()),
        *([f"general ability by lm-eval: {', '.join(plan.general)}"] if plan.general else []),
        f"{plan.model}: {_sizes(plan)}{plan.precision}, {plan.processes} process(es)",
        *_adapters(plan),
        *_estimate(plan),
        *(f"  {cost}" for cost in plan.costs),
        *plan.told,
        f"{valid}; no weight was loaded, nothing was written",
    ):
        console.print(Text(printable(line)), soft_wrap=True)
