"""From a YAML file and overrides to a `Recipe`, with the place of every mistake."""

from __future__ import annotations

import importlib.util
import os
import re
import typing
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from perdure.consent import given, trusting
from perdure.errors import RecipeError, brief
from perdure.paths import NoPathError, no_file, settled
from perdure.recipe.data import SPLITS, located
from perdure.recipe.general import FILE_ENDINGS, SOURCES, is_task_file
from perdure.recipe.mistakes import QUOTE, Key, Mistake, is_text, near, show
from perdure.recipe.packaged import packaged_model
from perdure.recipe.schema import Recipe, Tracker
from perdure.recipe.section import Judge
from perdure.recipe.validate import validate
from perdure.recipe.yaml import COMMAND_LINE, Document, read, write

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_PACKAGES = {"comet_ml": "comet-ml"}
LONG = 300
"""Characters of a path that a message shows."""


def load(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    check_files: bool = True,
    tasks_only: bool = False,
    judge: Judge | None = None,
    renew: Callable[[dict[str, Any]], None] | None = None,
    defaults: Mapping[str, Any] | None = None,
    given_anew: Mapping[str, Any] | None = None,
) -> Recipe:
    """Read a recipe and validate it; see `perdure.load_recipe`.

    Args:
        judge: knows formats, metrics, streams and methods; None: names are taken as they are.
        renew: rewrites the data of a run's recorded recipe in place, before anything else looks
            at it; such a recipe's own `trust_remote_code` does not count.
        defaults: values of keys that the recipe leaves out.
        given_anew: sections that stand in place of the recipe's; their mistakes are not at its
            lines, but the command line's.

    Raises:
        RecipeError: all mistakes, each with its line.
    """
    path = Path(path)
    document = read(path)
    data = document.data
    if renew is not None:
        renew(data)
    taken_over = set(defaults or ()) - set(data) if given_anew is None else set(data)
    for key, section in (given_anew or {}).items():
        document.put(key, section)
    _fill(data, defaults or {})
    _name_general_tasks(document)
    found = list(_override(document, overrides))
    if not any(text.startswith("rl") for text in overrides):
        _leave_out_rl(data, taken_over)
    _name_general_tasks(document)
    if judge is not None and renew is None:
        _fill(data, judge.defaults(data))
    if tasks_only:
        data.setdefault("model", {"path": "none"})
        data.setdefault("method", "sequential")
    data.setdefault("name", re.sub(r"[^\w.+-]+", "-", path.stem).strip("-.+")[:80] or "recipe")
    folder = path.resolve().parent
    missing = list(_resolve_paths(document, folder))
    found += _former(data)
    # A run directory's own recipe is no word for its code: it may come from anywhere.
    with trusting(data.get("trust_remote_code") is True and renew is None):
        if check_files:
            found += [*missing, *_missing_trackers(data)]
            if judge is not None:
                found += judge.of_data(data)
        recipe, wrong = validate(data, judge)
        trusted = given()
    found += _changed_by_yaml(document)
    found += list(_not_told(found, wrong, document))
    if found or recipe is None:
        raise RecipeError(document.errors(found))
    recipe = recipe.model_copy(update={"trust_remote_code": trusted})
    recipe._folder = folder
    recipe._places = partial(_place, document, ())
    recipe._lists_methods = isinstance(data.get("method"), list)
    recipe.stream._places = partial(_place, document, ("stream",))
    for i, task in enumerate(recipe.stream.tasks):
        task._places = partial(_place, document, ("stream", "tasks", i))
    if recipe.stream.data is not None:
        recipe.stream.data._places = partial(_place, document, ("stream", "data"))
    return recipe


def _fill(data: dict[str, Any], defaults: Mapping[str, Any]) -> None:
    """Put in what is missing, also inside a section that is there in part."""
    for key, value in defaults.items():
        if isinstance(data.get(key), dict) and isinstance(value, Mapping):
            _fill(data[key], value)
        else:
            data.setdefault(key, value)


def _former(data: dict[str, Any]) -> Iterator[Mistake]:
    """Keys that were moved to another section."""
    model = data.get("model")
    if isinstance(model, dict) and "trust_remote_code" in model:
        what = "is a key of the recipe now, for all code that it names"
        remedy = f"write trust_remote_code: {str(model['trust_remote_code']).lower()} at the top"
        yield Mistake(("model", "trust_remote_code"), what, remedy)


def _changed_by_yaml(document: Document) -> Iterator[Mistake]:
    """Numbers and dates where text belongs, which would not come out as they were written."""
    for key, text in document.written.items():
        value: Any = document.data
        try:
            for part in key:
                value = value[part]
        except (LookupError, TypeError):
            continue  # it has been replaced since
        if isinstance(value, int | float) and not isinstance(value, bool) and is_text(Recipe, key):
            what = f"YAML reads {brief(text)} as the number {value}"
            yield Mistake(key, what, _in_quotes(text))
    for key, text in document.written_keys.items():
        if len(key) > 1 and is_text(Recipe, key[:-1]):
            yield Mistake(key, f"YAML reads {brief(text)} as {show(key[-1])}", _in_quotes(text))


def _not_told(
    found: Sequence[Mistake], wrong: Sequence[Mistake], document: Document
) -> Iterator[Mistake]:
    """Mistakes of pydantic's at keys of which nothing is told yet, with values as written."""
    told = {_spelt(mistake.key) for mistake in found}
    texts = {_spelt(key): text for key, text in document.written.items()}
    renamed = {_spelt(key[:-1]) for key in document.written_keys}  # pydantic names their keys anew
    for mistake in wrong:
        key, remedy = _spelt(mistake.key), mistake.remedy
        text = texts.get(key, "")
        if text and (remedy == QUOTE or mistake.what.endswith("not nothing")):
            remedy = _in_quotes(text)
        elif remedy == QUOTE and renamed & {key, key[:-1]}:
            continue
        if key not in told:
            yield Mistake(mistake.key, mistake.what, remedy)


def _spelt(key: Key) -> tuple[str, ...]:
    return tuple(part for part in map(str, key) if part != "[key]")


def _in_quotes(text: str) -> str:
    return f'{QUOTE}: "{brief(text)}"'


def _place(document: Document, section: Key, key: str) -> str:
    parts = (int(part) if part.isdecimal() else part for part in key.split(".") if part)
    return document.place((*section, *parts))


def _name_general_tasks(document: Document) -> None:
    """Write `general: [mmlu]` as the section that it stands for; each task keeps its line."""
    tasks = document.data.get("general")
    if isinstance(tasks, list) and tasks:
        document.data["general"] = {"source": "none", "tasks": tasks}
        for i in range(len(tasks)):
            if (line := document.lines.pop(("general", i), None)) is not None:
                document.lines["general", "tasks", i] = line


def _override(document: Document, overrides: Sequence[str]) -> Iterator[Mistake]:
    """Apply the overrides; a new method's name goes first, so that its options stay its own."""
    data = document.data
    for text in sorted(overrides, key=lambda o: not o.startswith(("method=", "method.name="))):
        if text.startswith("method.name=") and isinstance(data.get("method"), str):
            data["method"] = {"name": data["method"]}
        before = data["method"].get("name") if isinstance(data.get("method"), dict) else None
        if mistake := document.override(text):
            yield mistake
        elif text.startswith("method.name=") and data["method"]["name"] != before:
            data["method"] = {"name": data["method"]["name"]}


def _resolve_paths(document: Document, folder: Path) -> Iterator[Mistake]:
    """Make the paths in the data absolute, and say which of them lead nowhere."""

    def resolve(key: Key) -> tuple[Path | None, Mistake] | None:
        text = _at(document.data, key)
        if not isinstance(text, str) or not text:
            return None
        base = Path.cwd() if document.line(key) == COMMAND_LINE else folder
        try:
            path = settled(text, base)
        except NoPathError as error:
            return None, Mistake(key, f'"{brief(text)}" {error}', "write the path of a file")
        try:
            others = os.listdir(path.parent)
        except OSError:
            others = []
        hint = _way_to(text, base) or near(path.name, others)
        hint = hint or f"relative paths start from {base}"
        return path, Mistake(key, f"no such file: {brief(text, LONG)}", hint)

    def put(key: Key, path: Path) -> None:
        section: Any = document.data
        for part in key[:-1]:
            section = section[part]
        section[key[-1]] = str(path)

    tasks = _tasks(document.data)
    for names, name, at in _own_code(document.data):
        if isinstance(text := names[name], str):
            if document.line(at) == COMMAND_LINE:
                text = located(text, Path.cwd())
            names[name] = located(text, folder)
    _locate_reach(document, folder)
    keys: list[Key] = [
        key
        for at, task in tasks
        if task.get("dataset") is None
        for split in SPLITS
        for key in _files_of((*at, split), task.get(split))
    ]
    keys += [("general", "tasks", i) for i in range(len(_harness_tasks(document.data)))]
    keys += [("general", "source"), ("general", "held_out_source"), ("stream", "folder")]
    methods = document.data.get("method")
    if isinstance(methods, list):
        keys += [("method", i, "file") for i in range(len(methods))]
    elif isinstance(methods, dict):
        keys.append(("method", "file"))
    for key in [*keys, ("model", "chat_template"), ("model", "path")]:
        if (found := resolve(key)) is None:
            continue
        path, nowhere = found
        section, text = key[0], _at(document.data, key)
        if path is None:
            yield nowhere
            continue
        if section == "model" and (packaged := packaged_model(text)):
            path, wrong = packaged
            put(key, path)
            if wrong:
                yield Mistake(key, *wrong)
            continue
        if section == "model" and key[-1] == "path" and not _is_local(text, path):
            if not _HUB_ID.fullmatch(text):
                yield Mistake(key, f'"{brief(text)}" is no file, folder or hub id', nowhere.remedy)
            continue
        if key == ("general", "source") and text not in SOURCES and path.is_dir():
            # A folder is read as a hub data set would be.
            put(key, path)
            continue
        by_ending = Path(text).suffix.lower() not in FILE_ENDINGS
        is_name = not is_task_file(text) if "tasks" in key else by_ending
        if (section == "general" and is_name) or text in ("auto", "none"):
            continue  # a name, not a path; the section's own check knows them
        put(key, path)
        why, folders = no_file(path), key[-1] in ("path", "folder")
        if why == "no such file":
            yield nowhere
        elif why and not (folders and path.is_dir()):
            yield Mistake(key, f"{why}: {brief(text, LONG)}", "write the path of a file")


def _way_to(text: str, base: Path) -> str:
    """Why a path leads nowhere, where its spelling tells: a link, a variable, another system's."""
    written = Path(text).expanduser()
    if (base / written).is_symlink():
        return f"it is a link to {os.readlink(base / written)}, which does not exist"
    if "$" in text:
        return "variables are not replaced in a recipe; ~ is the home folder"
    if "\\" in text and os.sep == "/":
        return "write / between folders, not \\"
    if written.is_absolute() and not written.parent.is_dir():
        return f"there is no folder {brief(str(written.parent), LONG)}"
    return ""


def _at(data: Any, key: Key) -> Any:
    """What stands at a key; None where nothing does."""
    try:
        for part in key:
            data = data[part]
    except (LookupError, TypeError):
        return None
    return data


def _leave_out_rl(data: dict[str, Any], taken_over: Collection[str]) -> None:
    """Not take over a run's `rl` where its further tasks are all learned in another way."""
    if "rl" in taken_over and all(task.get("learn") != "rl" for _, task in _tasks(data)):
        data.pop("rl", None)


def _locate_reach(document: Document, folder: Path) -> None:
    """Name a user's own rewards in tasks' `until` by their file, each at its line."""
    for at, task in _tasks(document.data):
        until = task.get("until")
        asked: Any = until.get("reach") if isinstance(until, dict) else None
        reach: dict[Any, Any] = asked if isinstance(asked, dict) else {}
        for name in list(reach):
            if not isinstance(name, str) or (path := located(name, folder)) == name:
                continue
            reach[path] = reach.pop(name)
            if (line := document.lines.pop((*at, "until", "reach", name), None)) is not None:
                document.lines[(*at, "until", "reach", path)] = line


def _own_code(data: dict[str, Any]) -> Iterator[tuple[Any, Any, Key]]:
    """Where names may stand that lead to the user's own functions: what holds one, at which index
    or key, and the recipe's key."""
    for at, task in _tasks(data):
        if "metric" in task:
            yield task, "metric", (*at, "metric")
    rl = data.get("rl")
    rewards = rl.get("rewards") if isinstance(rl, dict) else None
    for i, reward in enumerate(rewards if isinstance(rewards, list) else ()):
        if isinstance(reward, str):
            yield rewards, i, ("rl", "rewards", i)
        elif isinstance(reward, dict) and "name" in reward:
            yield reward, "name", ("rl", "rewards", i, "name")


def _files_of(key: Key, source: Any) -> list[Key]:
    """The keys of a split's files: its own, or one for each file that is aligned by lines."""
    return [(*key, column) for column in source] if isinstance(source, dict) else [key]


def _is_local(text: str, path: Path) -> bool:
    return path.exists() or text.endswith(".gguf") or text.startswith((".", "/", "~"))


def _harness_tasks(data: dict[str, Any]) -> list[Any]:
    """The entries of `general.tasks`, whatever they are."""
    general = data.get("general")
    tasks = general.get("tasks") if isinstance(general, dict) else None
    return tasks if isinstance(tasks, list) else []


def _tasks(data: dict[str, Any]) -> list[tuple[Key, dict[str, Any]]]:
    """The sections of `stream.tasks` and `stream.data` with their keys, whatever is in them."""
    stream = data.get("stream")
    stream = stream if isinstance(stream, dict) else {}
    tasks = stream.get("tasks")
    found: list[tuple[Key, Any]] = [
        (("stream", "tasks", i), task)
        for i, task in enumerate(tasks if isinstance(tasks, list) else [])
    ]
    found.append((("stream", "data"), stream.get("data")))
    return [(key, task) for key, task in found if isinstance(task, dict)]


def _missing_trackers(data: dict[str, Any]) -> Iterator[Mistake]:
    train = data.get("train")
    names = train.get("report_to") if isinstance(train, dict) else None
    for i, name in enumerate(names if isinstance(names, list) else []):
        if name in typing.get_args(Tracker) and importlib.util.find_spec(name) is None:
            remedy = f"pip install {_PACKAGES.get(name, name)}"
            yield Mistake(("train", "report_to", i), f"{name} is not installed", remedy)


def dump_recipe(recipe: Recipe) -> str:
    """YAML that `load_recipe` reads back equal; every value is written, defaults too."""
    return write(recipe_data(recipe))


def recipe_data(recipe: Recipe) -> dict[str, Any]:
    """A recipe as it would be written: plain data with every value, defaults too."""
    data = recipe.model_dump(mode="json", exclude_none=True)
    if recipe.model.tuning == "full":
        del data["model"]["lora"]
    methods = [
        {"name": spec.name, **({"file": spec.file} if spec.file else {}), **options}
        for spec, options in ((s, s.model_dump(mode="json")["options"]) for s in recipe.method)
    ]
    data["method"] = methods[0] if len(methods) == 1 else methods
    return data
