"""Find methods by name: one file each in this folder, and other packages' by entry point.

    names()              every method there is
    describe(name)       its first docstring line; imports neither the method nor torch
    load(name)           its class
    build(specs)         the objects that a recipe asks for

A third party's package adds a method without touching Perdure, in its `pyproject.toml`:

    [project.entry-points."perdure.methods"]
    tether = "my_package.tether:Tether"
"""

from __future__ import annotations

import ast
import difflib
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterable, Mapping
from importlib.machinery import SourceFileLoader
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from perdure.consent import demand
from perdure.errors import PerdureError, UsageError, brief, one_line
from perdure.paths import NoPathError, no_file, settled
from perdure.protocol.method import Method, MethodConfig
from perdure.recipe.former import FORMER, entry_of_today, moved_options
from perdure.recipe.mistakes import Mistake, meant, mistakes_in, near, show
from perdure.recipe.offers import class_of
from perdure.recipe.schema import MethodSpec, in_place

__all__ = [
    "build",
    "check",
    "cost",
    "describe",
    "described",
    "kind_of",
    "load",
    "load_config",
    "load_file",
    "names",
]

GROUP = "perdure.methods"
_FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Names of all methods, built in and third parties', sorted."""
    return sorted({*_built_in(), *(point.name for point in _third_party())})


def describe(name: str) -> str:
    """First line of the method's docstring, read from its source without importing it.

    Raises:
        UsageError: no method has this name, or two have it; or a third party's entry point leads
            nowhere, as far as its source shows.
    """
    found = _find(name)
    source = _source(found)
    if source is None:
        assert isinstance(found, EntryPoint)
        if _compiled(found):
            return ""  # it has no source to read
        raise _broken(name, found, f"there is no module {found.module}")
    try:
        tree = ast.parse(source.read_text(encoding="utf-8"))
    except (OSError, ValueError, SyntaxError) as error:
        if isinstance(found, EntryPoint):
            raise _broken(name, found, f"{source}: {error}") from error
        raise
    if isinstance(found, EntryPoint) and not _binds(tree, found.attr.partition(".")[0]):
        raise _broken(name, found, f"{source} has no {found.attr}")
    return (ast.get_docstring(tree) or "").partition("\n")[0]


def described() -> list[tuple[str, str, bool]]:
    """Each method's name, what it is or what is wrong with it, and whether it is whole."""
    every = []
    for name in names():
        try:
            every.append((name, describe(name), True))
        except UsageError as error:
            every.append((name, f"broken: {error.what}; {one_line(error.remedy)}", False))
    return every


def load(name: str) -> type[Method]:
    """Import a method and return its class.

    Raises:
        UsageError: no method has this name (the nearest is suggested), two have it, or a third
            party's entry point does not lead to a `Method`.
    """
    found = _find(name)
    if isinstance(found, EntryPoint):
        try:
            loaded: Any = found.load()
        except Exception as error:  # whatever another package's code raises
            raise _broken(name, found, error) from error
        if not (inspect.isclass(loaded) and issubclass(loaded, Method)):
            raise UsageError(
                f"method {name!r} of {_owner(found)}: {found.value} is no Method",
                "its entry point must name a subclass of perdure.protocol.method.Method",
            )
        return loaded
    return class_of(importlib.import_module(f"perdure.methods.{name}"), Method)


def load_file(path: str | Path) -> type[Method]:
    """Import a Python file and return the one method in it.

    A file that has changed since is imported again.

    Raises:
        UsageError: no such file, it cannot be imported, or there is not just one `Method` in it.
        ConsentError: the user has not said that its code may run.
    """
    remedy = "give the path of a Python file with a method"
    try:
        path = settled(path)
    except NoPathError as error:
        raise UsageError(f'"{brief(path)}" {error}', remedy) from None
    if why := no_file(path):
        raise UsageError(f"{why}: {brief(path, 300)}", remedy)
    demand(f"{path}: is Python code")
    version = hashlib.sha256(f"{path} {path.stat().st_mtime_ns}".encode()).hexdigest()[:12]
    name = f"perdure_file_{version}.{path.stem}"  # ends in the method's name: see `name_of`
    if name not in sys.modules:
        loader = SourceFileLoader(name, str(path))
        spec = importlib.util.spec_from_file_location(name, path, loader=loader)
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            loader.exec_module(module)
        except Exception as error:  # whatever the user's own code raises
            del sys.modules[name]
            what = f"{path}: cannot be imported: {type(error).__name__}: {error}"
            raise UsageError(what, "correct the file") from error
    found = [
        thing
        for thing in vars(sys.modules[name]).values()
        if inspect.isclass(thing) and issubclass(thing, Method) and thing.__module__ == name
    ]
    if len(found) != 1:
        what = f"{path}: has {len(found)} subclasses of Method, not one"
        raise UsageError(what, "a method is one class in one file; see CONTRIBUTING.md")
    return found[0]


def kind_of(spec: MethodSpec) -> type[Method]:
    """The class that a recipe's entry names, by its name or its file."""
    return load(spec.name) if spec.file is None else load_file(spec.file)


def cost(spec: MethodSpec) -> str:
    """The "Cost:" sentence of a method's own description."""
    text = inspect.getdoc(inspect.getmodule(kind_of(spec))) or ""
    found = re.search(r"^Cost: (.+?)(?=\n\S+:|\n\n|\Z)", text, re.S | re.M)
    return (
        f"{spec.name}: {' '.join(found[1].split())}" if found else f"{spec.name}: cost not stated"
    )


def check(spec: MethodSpec) -> tuple[MethodSpec | None, list[Mistake]]:
    """A recipe's entry with all its options, defaults filled in; None, and what is wrong with it.

    Keys of the mistakes are relative to the entry.
    """
    if spec.file is None and spec.name not in (known := names()):
        hint = " ".join(filter(None, [near(spec.name, known), "all of them: perdure methods"]))
        return None, [Mistake(("name",), f'no method is called "{spec.name}"', hint)]
    try:
        kind = kind_of(spec)
    except PerdureError as error:
        key = "name" if spec.file is None else "file"
        return None, [Mistake((key,), error.what, one_line(error.remedy))]
    config, found = _read(kind, spec.options)
    if config is None:
        return None, found
    return spec.model_copy(update={"options": config.model_dump(mode="json")}), []


def _read(
    kind: type[Method], options: Mapping[str, Any]
) -> tuple[MethodConfig | None, list[Mistake]]:
    name = name_of_module(kind)
    if moved_options(name, options):
        return None, _moved(name, options)
    try:
        return kind.Config.model_validate(dict(options)), []
    except ValidationError as error:
        return None, mistakes_in(error, options, kind.Config)


def _moved(name: str, options: Mapping[str, Any]) -> list[Mistake]:
    """That options have moved, with the entry to write, and what else is wrong with them.

    Misspelt names are put right in that entry; wrong values, which are told at their keys, are left
    out of it, so that it can be read.
    """
    first = moved_options(name, options)[0]
    right: dict[str, Any] = {}
    wrong: list[Mistake] = []
    for key, value in options.items():
        if key in FORMER:
            right[key] = value
            continue
        hint = near(key, FORMER)
        wrong.append(Mistake((key,), "unknown key", hint or f"known here: {', '.join(FORMER)}"))
        if hint and meant(hint) not in options:
            right[meant(hint)] = value
    # Its options of then have their values of then in the one method that has them all.
    official = right.pop("official", None)
    if official is not None and not isinstance(official, bool):
        wrong.append(Mistake(("official",), f"must be true or false, not {show(official)}"))
        official = None
    try:
        load("gere_official").Config.model_validate(right)
    except ValidationError as error:
        found = mistakes_in(error, right, load("gere_official").Config)
        found = [m for m in found if "has no effect" not in m.what]
        wrong += found
        for mistake in found:
            near_value = meant(mistake.remedy)
            if near_value and len(mistake.key) == 1:
                right[str(mistake.key[0])] = near_value
            else:
                right.pop(str(mistake.key[0]), None)
    if official is not None:
        right["official"] = official
    entry = entry_of_today(right)
    what = f"is no option of {name} any more"
    return [Mistake((first,), what, in_place(entry), entry), *wrong]


def name_of_module(kind: type[Method]) -> str:
    """The name of a built-in method's class, that of its file; "" for any other."""
    package, _, name = kind.__module__.rpartition(".")
    return name if package == "perdure.methods" else ""


def load_config(kind: str | type[Method], options: Mapping[str, Any]) -> MethodConfig:
    """Validate a method's options, as those of a recipe are.

    Raises:
        UsageError: all wrong options at once, each by its key.
    """
    config, found = _read(load(kind) if isinstance(kind, str) else kind, options)
    if config is None:
        lines = [
            "\n".join([f"{'.'.join(['method', *map(str, m.key)])}: {m.what}", *_under(m.remedy)])
            for m in found
        ]
        raise UsageError("\n".join(lines))
    return config


def _under(remedy: str) -> list[str]:
    return [f"  {remedy}"] if remedy else []


def build(specs: Iterable[MethodSpec]) -> list[Method]:
    """Make the methods that a recipe lists, in its order.

    Raises:
        UsageError: an unknown method or option, with the nearest name.
    """
    kinds = [(kind_of(spec), spec.options) for spec in specs]
    return [kind(load_config(kind, options)) for kind, options in kinds]


def _built_in() -> list[str]:
    stems = (path.stem for path in _FOLDER.glob("*.py"))
    return [stem for stem in stems if not stem.startswith("_") and stem != "registry"]


def _third_party() -> list[EntryPoint]:
    return list(entry_points(group=GROUP))


def _find(name: str) -> str | EntryPoint:
    """The name of a built-in method or the one entry point that offers it."""
    offers = [point for point in _third_party() if point.name == name]
    built_in = name in _built_in()
    if len(offers) + built_in > 1:
        owners = ", ".join(["perdure"] * built_in + [_owner(point) for point in offers])
        raise UsageError(
            f"method {name!r} is offered more than once: {owners}",
            "uninstall one, or ask its author for another name",
        )
    if built_in:
        return name
    if offers:
        return offers[0]
    raise UsageError(
        f"no method is called {name!r}{_near(name, names())}", "all of them: perdure methods"
    )


def _near(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f'; did you mean "{close[0]}"?' if close else ""


def _owner(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.module.partition(".")[0]


def _broken(name: str, point: EntryPoint, why: object) -> UsageError:
    kind = f"{type(why).__name__}: " if isinstance(why, Exception) else ""
    return UsageError(
        f"method {name!r} of {_owner(point)} cannot be imported: {kind}{why}",
        f"update or uninstall {_owner(point)}",
    )


def _binds(tree: ast.Module, name: str) -> bool:
    """Whether a module's source makes the name; where that is not to be seen, it may."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name:
            return True
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id == name:
            return True
        if isinstance(node, ast.alias) and (node.asname or node.name) in (name, "*"):
            return True
    return any(isinstance(n, ast.FunctionDef) and n.name == "__getattr__" for n in tree.body)


def _compiled(point: EntryPoint) -> bool:
    """Whether the module of an entry point is there, but not as a Python source."""
    top, *rest = point.module.split(".")
    spec = importlib.util.find_spec(top)
    if spec is None:
        return False
    if not rest:
        return True
    paths = [Path(folder, *rest) for folder in spec.submodule_search_locations or ()]
    return any(path.is_dir() or any(path.parent.glob(f"{path.name}.*")) for path in paths)


def _source(found: str | EntryPoint) -> Path | None:
    if isinstance(found, str):
        return _FOLDER / f"{found}.py"
    top, *rest = found.module.split(".")
    # Looking up the top package alone runs none of its code; `find_spec("a.b")` would import a.
    spec = importlib.util.find_spec(top)
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.origin and spec.origin.endswith(".py") else None
    for folder in spec.submodule_search_locations or ():
        path = Path(folder, *rest)
        for candidate in (path.with_name(path.name + ".py"), path / "__init__.py"):
            if candidate.exists():
                return candidate
    return None
