"""What a run must find as it was when it goes on: recipe, rows, general text, base model.

`pinned.json` keeps the recipe's values and the sha256 of the base model's files from the moment at
which learning began, and stream.json the versions of the tasks' rows.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perdure.errors import RunError
from perdure.files import now, write_atomic
from perdure.models.pin import files_of
from perdure.processes import barrier, broadcast, rank
from perdure.seals import sha256

if TYPE_CHECKING:
    from perdure.recipe.schema import Recipe
    from perdure.run.directory import Run
    from perdure.streams.task import Task, TaskStream

FILE = "pinned.json"


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
                "put the old state back, or begin a new run",
                "to go on with a mixture of both, which the report will say: "
                f"perdure resume {run.path} --accept-changes",
            ),
        )
    if rank() == 0:
        if changes:
            run.note("\n".join(["changes accepted:", *changes]))
            before = run.environment().get("accepted_changes", [])
            told = [{"time": now(), "changes": changes}]
            run.set_facts({"accepted_changes": [*before, *told]})
        found = json.loads(wanted)
        write_atomic(run.path / "stream.json", json.dumps(found.pop("stream"), indent=1))
        run.set_facts({"general_text": found.pop("general_text")})
        write_atomic(run.path / FILE, json.dumps(found, indent=1))
    barrier()


def _facts(run: Run, recipe: Recipe, stream: TaskStream) -> dict[str, Any]:
    return {
        "recipe": values_of(recipe),
        "files": files_of(recipe.model) | _own_code(recipe),
        "stream": [_fact(task) for task in stream],
        "general_text": stream.general.version,
    }


def _fact(task: Task) -> dict[str, str]:
    # Runs of an older Perdure, which learned all their tasks, have no such key.
    way = {} if task.learn == "sft" else {"learn": task.learn}
    return {"name": task.name, "version": task.version, **way}


def _own_code(recipe: Recipe) -> dict[str, str]:
    """Files of the user's own methods and metrics, which decide the result as the recipe does."""
    places = [spec.file for spec in recipe.methods if spec.file]
    places += [task.metric.rpartition(":")[0] for task in recipe.stream.tasks if task.metric]
    files = sorted({Path(place) for place in places if place.endswith(".py")})
    return {f"own code, {file.name}": sha256(file) for file in files if file.is_file()}


def _changes(run: Run, wanted: Mapping[str, Any]) -> Iterator[str]:
    """What differs from what was noted; nothing where nothing was."""
    since = "since this run began"
    if before := run.stream_facts():
        now = wanted["stream"]
        if len(before) != len(now):
            yield f"began with {len(before)} tasks, now there are {len(now)}"
        for old, new in zip(before, now, strict=False):
            if (old["name"], old["version"]) != (new["name"], new["version"]):
                yield (
                    f"the rows of task {old['name']} have changed {since} "
                    f"(version {old['version']}, now {new['version']})"
                )
    text = run.environment().get("general_text")
    if text is not None and text != wanted["general_text"]:
        yield (
            f"the general text has changed {since} (version {text}, now {wanted['general_text']})"
        )
    noted = pinned(run)
    yield from recipe_changes(noted, wanted["recipe"])
    files = noted.get("files", {})
    for name in sorted(files.keys() | wanted["files"].keys()) if files else ():
        if name not in wanted["files"]:
            yield f"{name}: is gone {since}"
        elif name not in files:
            yield f"{name}: is new {since}"
        elif files[name] != wanted["files"][name]:
            yield f"{name}: has other bytes {since}"


def recipe_changes(noted: Mapping[str, Any], recipe: Mapping[str, Any]) -> Iterator[str]:
    """What differs between the recipe that was noted and `flat` values of one."""
    # A key that a later Perdure has and the pinned recipe has not is no change of the user's.
    for key, old in noted.get("recipe", {}).items():
        new = recipe.get(key)
        if new != old:
            yield f"recipe: {key} was {json.dumps(old)} when this run began, now {json.dumps(new)}"


def pinned(run: Run) -> dict[str, Any]:
    """What was noted when the run began: `recipe` and `files`; empty of an older Perdure's.

    Raises:
        RunError: it is damaged.
    """
    path = run.path / FILE
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:  # not begun yet, or begun by an older Perdure
        return {}
    except ValueError as error:
        raise RunError(f"{path}: damaged: {error}", "put it back from a copy") from error
    return found if isinstance(found, dict) else {}


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
