"""A finished run goes on: a new run directory that begins where the old one ended.

    recipe = extension_recipe(run, "next.yaml")        # or data="may.csv"
    longer = extend(run, recipe, "runs/shop-may")
    plan_extension(run, recipe)                        # before that: rows, time, what is told
    learn(recipe, longer)

The new run holds the old one's last checkpoint with all that its methods remember, its scores and
test rows, and what was computed once; task numbers go on. The old run stays as it is.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from perdure.consent import trusting
from perdure.errors import RecipeError, RunError, UsageError, resume_command, typed
from perdure.files import write_atomic
from perdure.paths import no_file
from perdure.prepare import Prepared, prepare, recipe_judge, run_stream, stream_of
from perdure.recipe import load
from perdure.recipe.data import FILE_TYPES, DataConfig, TaskConfig
from perdure.recipe.load import recipe_data
from perdure.recipe.mistakes import near
from perdure.recipe.schema import Recipe
from perdure.recipe.yaml import ON_COMMAND_LINE
from perdure.run.damage import verify
from perdure.run.directory import Run
from perdure.run.kept import kept_general, kept_tasks
from perdure.run.old_recipes import renew
from perdure.run.pins import accepted, refuse_changes
from perdure.run.sums import with_check
from perdure.seals import write_sealed
from perdure.streams.growing import refuse_classes
from perdure.streams.kinds import format_of, kind
from perdure.streams.named.find import table_like

if TYPE_CHECKING:
    from perdure.plan import Plan

SAME = ("model", "method", "general", "seed", "order_matters")
"""Keys that an extension takes from its run; the rest of a recipe may be new."""


def extension_recipe(
    run: Run,
    path: str | Path | None = None,
    overrides: Sequence[str] = (),
    *,
    data: str | Path | None = None,
) -> Recipe:
    """The recipe of an extension: that of the run with other tasks.

    Args:
        path: a recipe that holds only what is new, the `stream` above all.
        data: in its place a file shaped like the last task that was learned; rows are set aside
            for scores and validation by its shares.

    Raises:
        RecipeError: all mistakes, each with its line.
        UsageError: neither or both are given, or the run's last task has no section to copy.
    """
    if (path is None) == (data is None):
        raise UsageError(
            "extend: give either a recipe with the new tasks or --data FILE",
            typed("extend", run.path, "next.yaml"),
        )
    if path is None:
        new = _shaped_like_the_last(run, _file(Path(str(data))))
        path, judge = run.path / "recipe.yaml", recipe_judge()
        found = load.load(path, overrides, judge=judge, renew=renew, given_anew=new)
    else:
        recorded = recipe_data(run.recipe)
        for key in ("stream", "name", "trust_remote_code"):
            recorded.pop(key, None)
        found = load.load(path, overrides, judge=recipe_judge(), defaults=recorded)
    found = _same_in(found, run, path, overrides)
    scenario = found.stream.scenario or run.recipe.stream.scenario
    stream = found.stream.model_copy(update={"scenario": scenario})
    return found.model_copy(update={"stream": stream})


def _file(data: Path) -> Path:
    """The file that is given as data, which is there."""
    if what := no_file(data.expanduser()):
        there = data.expanduser().parent
        here = [p.name for p in there.iterdir() if p.is_file()] if there.is_dir() else []
        hint = near(data.name, here) or f"give a file of rows: {' '.join(FILE_TYPES)}"
        raise UsageError(f"--data {data}: {what}", hint)
    return data


def _given(key: str, overrides: Sequence[str]) -> str | None:
    """The key of the first override that changes this key, or one below it."""
    names = (text.partition("=")[0].strip() for text in overrides)
    return next((name for name in names if name.split(".")[0] == key), None)


def _same_in(recipe: Recipe, run: Run, path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    wrong = []
    for key in SAME:
        if getattr(recipe, key) != getattr(run.recipe, key):
            where = recipe.place(key)
            if (given := _given(key, overrides)) is not None:
                where = f"{ON_COMMAND_LINE}: {given}"
            source = "the command line" if where.startswith(ON_COMMAND_LINE) else path
            wrong.append(
                UsageError(
                    f"{where}: an extension keeps the run's own {key}",
                    f"leave it out of {source}: it is taken from {run.path}",
                )
            )
    if recipe.scoring.max_test_rows != run.recipe.scoring.max_test_rows:
        wrong.append(
            UsageError(
                f"{recipe.place('scoring.max_test_rows')}: an extension scores the run's own rows",
                "leave it out: scores over other rows could not be compared",
            )
        )
    scenario = recipe.stream.scenario
    if scenario is not None and scenario != _scenario(run):
        wrong.append(
            UsageError(
                f"{recipe.place('stream.scenario')}: an extension keeps the run's own scenario, "
                f"{_scenario(run)}",
                "leave it out: old and new scores could not be compared",
            )
        )
    if wrong:
        raise RecipeError(wrong)
    return recipe


def _scenario(run: Run) -> str:
    """Which answers compete in a run."""
    said = run.recipe.stream.scenario
    return said or kind(kept_tasks(run, 1)[0].kind).scenarios[0]


def _shaped_like_the_last(run: Run, data: Path) -> dict[str, Any]:
    stream = run.recipe.stream
    # A name such as "may (2)" is usual for a file, and none for a task: "may 2".
    task = " ".join(re.sub(r"[^\w.+-]+", " ", data.stem)[:70].split()).lstrip(".+-") or "new"
    name = f"{run.recipe.name}-{task.replace(' ', '-')}"
    if (table := _table(run)) is not None:
        section = table.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
        for key in _OF_THE_OLD_TABLE:
            section.pop(key, None)
        section |= {"task": task, "train": str(data.expanduser().resolve()), "tasks": 1}
        return {"name": name, "stream": {"data": section}}
    if not stream.tasks:
        raise UsageError(
            f"extend: {run.path} learned a built-in stream, so --data has no task to be like",
            f"write a recipe with the new task: {typed('extend', run.path, 'next.yaml')}",
        )
    order = stream.order or [task.name for task in stream.tasks]
    tasks = {task.name: task for task in stream.tasks}
    learned = [tasks[name] for name in order if tasks[name].learn != "none"]
    if not learned:
        raise UsageError(
            f"extend: {run.path} learned no task, so --data has none to be like",
            f"write a recipe with the new task: {typed('extend', run.path, 'next.yaml')}",
        )
    last = learned[-1]
    if last.dataset is not None:
        raise UsageError(
            f"extend: the last task of {run.path} is a hub data set, and {data} is a file",
            f"write a recipe with the new task: {typed('extend', run.path, 'next.yaml')}",
        )
    section = last.model_dump(mode="json", exclude_none=True)
    for key in ("validation", "test", "test_of"):
        section.pop(key, None)
    section |= {"name": task, "train": str(data.expanduser().resolve())}
    return {"name": name, "stream": {"tasks": [section]}}


_OF_THE_OLD_TABLE = (
    "name", "validation", "test", "dataset", "subset", "tasks", "by", "task", "order",
    "order_seed", "repeat", "labels", "max_train_rows", "max_validation_rows", "max_test_rows",
    "no_class", "dev_from",
)  # fmt: skip
"""Keys of a table or task that say nothing of another file."""


def _table(run: Run) -> DataConfig | TaskConfig | None:
    """The section whose form a further table of classes has; None for tasks of another kind."""
    stream = run.recipe.stream
    if stream.data is not None and stream.data.train is not None:
        return stream.data
    last = next(iter(kept_tasks(run, len(run.stream_facts()))[-1:]), None)
    if last is None or last.kind != "classification":
        return None
    for task in stream.tasks:
        if task.name == last.name:
            return task
    return table_like(stream.name)


class Ready(NamedTuple):
    """What is known of an extension before it is made: the names of the tasks that its run learned,
    changes that were accepted there, and the rows."""

    old: list[str]
    known: list[dict[str, Any]]
    prepared: Prepared


def prepare_extension(
    run: Run, recipe: Recipe, *, accept_changes: bool = False, display: Any = None
) -> Ready:
    """Read the rows of an extension; nothing is made, and no weight is loaded.

    Raises: as `extend`, but for `out`; and as `perdure.prepare.prepare`.
    """
    old, known = _may_extend(run, recipe, accept_changes)
    stream = run_stream(run, recipe)
    return Ready(old, known, prepare(recipe, stream=stream, display=display, today=run.today))


def extend(
    run: Run,
    recipe: Recipe,
    out: str | Path,
    *,
    accept_changes: bool = False,
    ready: Ready | None = None,
) -> Run:
    """Make the run directory of an extension; nothing is learned yet, and `run` stays as it is.

    Args: ready: what `prepare_extension` found, where the caller has read the rows already.

    Raises:
        RunError: the run is not finished, damaged, or rests on a base model that has changed since;
            or `out` exists.
        UsageError: a new task has the name of an old one.
    """
    old, known = ready[:2] if ready else _may_extend(run, recipe, accept_changes)
    facts: dict[str, Any] = {
        "extends": {"run": str(run.path.resolve()), "tasks": len(old), "names": old}
    }
    facts |= {"accepted_changes": known} if known else {}
    return Run.create(out, recipe, lambda draft: _fill(run, draft, len(old), facts))


def plan_extension(run: Run, recipe: Recipe, ready: Ready | None = None) -> Plan:
    """What an extension would take, and what its methods would do with the new tasks by what they
    remember of the old ones; no weight of the model is loaded and nothing is written.

    Args: ready: as for `extend`.

    Raises: as `prepare_extension`.
    """
    from torch import nn

    from perdure.engine.method_state import STATE, load_methods
    from perdure.plan import plan

    old, _, prepared = ready or prepare_extension(run, recipe)
    _, folder = run.last_checkpoint()
    with trusting(recipe.trust_remote_code):
        if folder is not None:
            load_methods(folder / STATE, prepared.methods, nn.Module())
        return plan(
            recipe,
            prepared.stream,
            prepared.encoder,
            prepared.model,
            micro_batch=prepared.micro_batch,
            precision=run.environment().get("precision") or prepared.precision,
            lm_eval_tasks=prepared.lm_eval_tasks,
            learned=len(old),
            methods=prepared.methods,
        )


def _may_extend(
    run: Run, recipe: Recipe, accept_changes: bool
) -> tuple[list[str], list[dict[str, Any]]]:
    """The names of the tasks that a run has learned, and changes that were accepted; see `extend`
    for what is refused."""
    if run.state != "finished":
        raise RunError(
            f"{run.path}: is {run.state}, and only a finished run can be extended",
            "wait for it" if run.state == "running" else resume_command(run.path),
        )
    verify(run)
    kept_tasks(run, len(run.stream_facts()))  # damage is told before anything is made
    kept_general(run)
    old = [task["name"] for task in run.stream_facts()]
    for number, task in enumerate(recipe.stream.tasks):
        if task.name in old:
            raise UsageError(
                f'{task.place("name")}: the run has learned a task "{task.name}" already',
                "give the new task another name, also on the command line: "
                f"stream.tasks.{number}.name=NAME",
            )
    _refuse_classes(run, recipe)
    changed = refuse_changes(run, accept=accept_changes)
    return old, accepted(run, changed)


def _refuse_classes(run: Run, recipe: Recipe) -> None:
    """Read a table of classes, and refuse names and classes that do not go with the run's own."""
    data = recipe.stream.data
    of_classes = data is not None or any(
        format_of(task.format)[0].name == "classification" for task in recipe.stream.tasks
    )
    if not of_classes and recipe.stream.name is None:
        return
    old, new = kept_tasks(run, len(run.stream_facts())), stream_of(recipe)
    known = {task.name for task in old}
    for task in new:
        if task.name in known:
            where = recipe.place("stream.data" if data is not None else "stream")
            raise UsageError(
                f'{where}: the run has learned a task "{task.name}" already',
                "give the new tasks another name, for example stream.data.task=june",
            )
    refuse_classes(recipe, old, new.tasks)


def _fill(run: Run, draft: Path, learned: int, facts: Mapping[str, Any]) -> None:
    """Copy what an extension goes on from; large files that never change are linked."""
    environment = json.loads((draft / "environment.json").read_text("utf-8"))
    known = run.environment()
    kept: dict[str, Any] = {
        k: known[k] for k in ("precision", "general_text", "template_date") if k in known
    }
    whole = with_check({**environment, **kept, **facts})
    write_atomic(draft / "environment.json", json.dumps(whole, indent=2))
    for name in ("scores.jsonl", "log.jsonl", "facts.jsonl"):
        if (run.path / name).exists():
            shutil.copy2(run.path / name, draft / name)
    for name in ("items", "data", "cache"):
        if (run.path / name).exists():
            shutil.copytree(run.path / name, draft / name, copy_function=_linked)
    recipe = (run.path / "recipe.yaml").read_text("utf-8")
    write_sealed(draft / "data" / f"recipe-{learned:03}.yaml", recipe)
    last = f"checkpoints/task-{learned}"
    shutil.copytree(run.path / last, draft / last, copy_function=_linked)


def _linked(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, target)
