"""What a run must find as it was when it goes on: recipe, rows, general text, base model.

`pinned.json` keeps the recipe's values and the sha256 of the base model's files from the moment at
which learning began, and stream.json the versions of the tasks' rows.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perdure.errors import RunError, resume_command, task_named
from perdure.files import now, write_atomic
from perdure.models.pin import base_files, files_of, template_files
from perdure.processes import barrier, broadcast, rank
from perdure.run.sums import read_checked, with_check
from perdure.seals import sha256

if TYPE_CHECKING:
    from perdure.recipe.schema import Recipe
    from perdure.run.directory import Run
    from perdure.streams.task import TaskStream

FILE = "pinned.json"
SINCE = "since this run began"


def pin(run: Run, recipe: Recipe, stream: TaskStream, accept_changes: bool = False) -> None:
    """Note what the run rests on when it begins; when it goes on, refuse what has changed.

    All processes call it.

    Args: accept_changes: note the changes for the report, and go on with them.

    Raises:
        RunError: something has changed since the run began: each change is named.
    """
    wanted = json.dumps(_facts(run, recipe, stream) if rank() == 0 else None)
    changes: list[str] = json.loads(
        broadcast(json.dumps(list(_changes(run, json.loads(wanted))) if rank() == 0 else []))
    )
    if changes and not accept_changes:
        raise RunError(
            "\n".join(f"{run.path}: {change}" for change in changes),
            (
                *_moved(run, changes),
                "put the old state back, or begin a new run",
                "to go on with a mixture of both, which the report will say: "
                f"{resume_command(run.path)} --accept-changes",
            ),
        )
    if rank() == 0:
        note_accepted(run, changes)
        found = json.loads(wanted)
        run.pin_stream(found.pop("stream"))
        run.set_facts({"general_text": found.pop("general_text")})
        write_atomic(run.path / FILE, json.dumps(with_check(found), indent=1))
    barrier()


def refuse_changes(
    run: Run,
    *,
    accept: bool,
    base: bool = True,
    template: bool = True,
    recipe: bool = True,
    stream: TaskStream | None = None,
) -> list[str]:
    """Compare what a run rests on with what it pinned, where it is read but does not go on.

    All processes call it.

    Args:
        accept: return the changes, and refuse none.
        base, template: of the base model's files those are read, or the recipe's template is.
        recipe: its values, and files of the user's own code.
        stream: the run's own rows, where they were read again.

    Returns: what has changed, in words; nothing where nothing was pinned.

    Raises:
        RunError: something has changed, and `accept` is false.
    """
    changes: list[str] = json.loads(
        broadcast(
            json.dumps(list(_since(run, base, template, recipe, stream)) if rank() == 0 else [])
        )
    )
    if changes and not accept:
        raise RunError(
            "\n".join(f"{run.path}: {change}" for change in changes),
            (
                *_moved(run, changes),
                "put the old state back, or go on all the same: --accept-changes",
            ),
        )
    return changes


def new_place(run: Run) -> str:
    """How a run is told where files lie that were moved."""
    return f"what was moved: write its new place into {run.path / 'recipe.yaml'}"


def _moved(run: Run, changes: Sequence[str]) -> Iterator[str]:
    """What to do where files are gone that may only lie elsewhere."""
    if any(change.endswith(f"is gone {SINCE}") for change in changes):
        yield new_place(run)


def _since(
    run: Run, base: bool, template: bool, recipe: bool, stream: TaskStream | None
) -> Iterator[str]:
    noted, model = pinned(run), run.recipe.model
    before = noted.get("files", {})
    if stream is not None:
        yield from _other_rows(run.stream_facts(), _versions(stream))
    if recipe:
        yield from recipe_changes(noted, values_of(run.recipe))
    if not before:
        return
    for read, mark, files in (
        (base, "base model, ", base_files),
        (template, "chat template, ", template_files),
        (recipe, "own code, ", lambda _: _own_code(run.recipe)),
    ):
        if read:
            known = {name: said for name, said in before.items() if name.startswith(mark)}
            yield from _other_files(known, files(model))


def rows_since(run: Run, recipe: Recipe, stream: TaskStream) -> list[str]:
    """What has changed of a run's rows and general text where another recipe reads them again.

    They are the run's own where that recipe writes them as the run's does, with the same seed:
    other rows may well have a task of the same name.
    """
    mine, theirs = run.recipe, recipe
    if mine.seed != theirs.seed:
        return []
    known = {task["name"]: task for task in run.stream_facts()}
    written = [(t.name, t.model_dump()) for t in mine.stream.tasks]
    same = {t.name for t in theirs.stream.tasks if (t.name, t.model_dump()) in written}
    if mine.stream.model_dump() == theirs.stream.model_dump():
        same = set(known)
    found: list[str] = []
    for task in _versions(stream):
        if task["name"] in same & known.keys():
            found += _other_rows([known[task["name"]]], [task])
    if mine.general is not None and mine.general == theirs.general:
        found += _other_text(run, stream.general.version)
    return found


def note_accepted(run: Run, changes: Sequence[str]) -> None:
    """Note changes that the user has accepted, for the report; nothing where there are none."""
    if changes:
        run.note("\n".join(["changes accepted:", *changes]))
        run.set_facts({"accepted_changes": accepted(run, changes)})


def accepted(run: Run, changes: Sequence[str]) -> list[dict[str, Any]]:
    """All changes that were accepted in a run so far, and these now."""
    before: list[dict[str, Any]] = run.environment().get("accepted_changes", [])
    return [*before, *([{"time": now(), "changes": [*changes]}] if changes else [])]


def _facts(run: Run, recipe: Recipe, stream: TaskStream) -> dict[str, Any]:
    return {
        "recipe": values_of(recipe),
        "files": files_of(recipe.model) | _own_code(recipe),
        "stream": _versions(stream),
        "general_text": stream.general.version,
    }


def _versions(stream: TaskStream) -> list[dict[str, str]]:
    # Runs of an older Perdure, which learned all their tasks, have no `learn`.
    return [
        {"name": task.name, "version": task.version}
        | ({} if task.learn == "sft" else {"learn": task.learn})
        | ({"test_of": task.test_of} if task.test_of else {})
        for task in stream
    ]


def _own_code(recipe: Recipe) -> dict[str, str]:
    """Files of the user's own methods and metrics, which decide the result as the recipe does."""
    places = [spec.file for spec in recipe.methods if spec.file]
    places += [task.metric.rpartition(":")[0] for task in recipe.stream.tasks if task.metric]
    files = sorted({Path(place) for place in places if place.endswith(".py")})
    return {f"own code, {file.name}": sha256(file) for file in files if file.is_file()}


def _changes(run: Run, wanted: Mapping[str, Any]) -> Iterator[str]:
    """What differs from what was noted; nothing where nothing was."""
    yield from _other_rows(run.stream_facts(), wanted["stream"])
    yield from _other_text(run, wanted["general_text"])
    noted = pinned(run)
    yield from recipe_changes(noted, wanted["recipe"])
    if files := noted.get("files", {}):
        yield from _other_files(files, wanted["files"])


def _other_text(run: Run, now: str) -> Iterator[str]:
    text = run.environment().get("general_text")
    if text is not None and text != now:
        yield f"the general text has changed {SINCE} (version {text}, now {now})"


def _other_rows(
    before: Sequence[Mapping[str, str]], now: Sequence[Mapping[str, str]]
) -> Iterator[str]:
    if before and len(before) != len(now):
        yield f"began with {len(before)} tasks, now there are {len(now)}"
    for old, new in zip(before, now, strict=False):
        if (old["name"], old.get("version")) != (new["name"], new["version"]):
            yield (
                f"the rows of {task_named(old['name'])} have changed {SINCE} "
                f"(version {old.get('version')}, now {new['version']})"
            )


def _other_files(before: Mapping[str, str], now: Mapping[str, str]) -> Iterator[str]:
    for name in sorted(before.keys() | now.keys()):
        if name not in now:
            yield f"{name}: is gone {SINCE}"
        elif name not in before:
            yield f"{name}: is new {SINCE}"
        elif before[name] != now[name]:
            yield f"{name}: has other bytes {SINCE}"


def recipe_changes(noted: Mapping[str, Any], recipe: Mapping[str, Any]) -> Iterator[str]:
    """What differs between the recipe that was noted and `flat` values of one."""
    # A key that a later Perdure has and the pinned recipe has not is no change of the user's.
    for key, old in noted.get("recipe", {}).items():
        new = recipe.get(key)
        if new != old and not _only_moved(noted, key, old, new):
            yield f"recipe: {key} was {json.dumps(old)} when this run began, now {json.dumps(new)}"


_PLACES = re.compile(
    r"model\.(path|chat_template)|stream\.folder|general\.(source|held_out_source)"
    r"|stream\.(data|tasks\.\d+)\.(train|validation|test)(\.\w+)?|method\.\d+\.file"
)
"""Keys of files whose content is noted: rows and texts by their versions, others by sha256."""


def _only_moved(noted: Mapping[str, Any], key: str, old: Any, new: Any) -> bool:
    """Whether a key says no more than where a file lies: what is in it is compared by itself.

    Nothing has moved to a place where nothing is: such a path was changed by mistake or damage.
    """
    if not _PLACES.fullmatch(key) or (key[0] == "m" and not noted.get("files")):
        return False
    both = all(isinstance(place, str) and os.path.isabs(place) for place in (old, new))
    return both and os.path.exists(new)


def pinned(run: Run) -> dict[str, Any]:
    """What was noted when the run began: `recipe` and `files`; empty of an older Perdure's.

    Raises:
        RunError: it is damaged.
    """
    path = run.path / FILE
    # There is none where it has not begun yet, or was begun by an older Perdure.
    return read_checked(path) if path.exists() else {}


def values_of(recipe: Recipe) -> dict[str, Any]:
    """A recipe's values by their keys; whose code may run is no part of the result."""
    return _flat(recipe.model_dump(mode="json", exclude={"trust_remote_code"}))


def _flat(data: Any, key: str = "") -> dict[str, Any]:
    """A recipe's values by their keys, as they are written on the command line."""
    pairs = data.items() if isinstance(data, dict) else enumerate(data)
    found: dict[str, Any] = {}
    for name, value in pairs:
        at = f"{key}.{name}" if key else str(name)
        nested = isinstance(value, dict | list) and value
        found |= _flat(value, at) if nested else {at: value}
    return found
