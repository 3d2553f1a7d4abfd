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
import importlib
import importlib.util
import inspect
from collections.abc import Iterable, Mapping
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from perdure.errors import UsageError
from perdure.protocol.method import Method, MethodConfig

__all__ = ["build", "describe", "load", "load_config", "names"]

GROUP = "perdure.methods"
_FOLDER = Path(__file__).parent


class Spec(Protocol):
    """What `build` needs of a recipe's entry: a method's name and its options."""

    @property
    def name(self) -> str: ...
    @property
    def options(self) -> Mapping[str, Any]: ...


def names() -> list[str]:
    """Names of all methods, built in and third parties', sorted."""
    return sorted({*_built_in(), *(point.name for point in _third_party())})


def describe(name: str) -> str:
    """First line of the method's docstring, read from its source without importing it.

    Raises:
        UsageError: no method has this name, or two have it.
    """
    source = _source(_find(name))
    if source is None:
        return ""
    doc = ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""
    return doc.partition("\n")[0]


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
        except (ImportError, AttributeError) as error:
            raise UsageError(
                f"method {name!r} of {_owner(found)} cannot be imported: {error}",
                f"update or uninstall {_owner(found)}",
            ) from error
        if not (inspect.isclass(loaded) and issubclass(loaded, Method)):
            raise UsageError(
                f"method {name!r} of {_owner(found)}: {found.value} is no Method",
                "its entry point must name a subclass of perdure.protocol.method.Method",
            )
        return loaded
    module = importlib.import_module(f"perdure.methods.{name}")
    return next(
        thing
        for thing in vars(module).values()
        if inspect.isclass(thing)
        and issubclass(thing, Method)
        and thing.__module__ == module.__name__
    )


def load_config(name: str, options: Mapping[str, Any]) -> MethodConfig:
    """Validate a method's options.

    Raises:
        UsageError: all wrong options at once, an unknown one with the nearest known name.
    """
    schema = load(name).Config
    try:
        return schema(**options)
    except ValidationError as error:
        known = list(schema.model_fields)
        told: dict[str, list[str]] = {}
        for problem in error.errors():
            key = str(problem["loc"][0]) if problem["loc"] else "options"
            if problem["type"] == "extra_forbidden":
                told[f"no option {key!r}{_near(key, known)}"] = []
            else:
                told.setdefault(key, []).append(problem["msg"])  # a union fails once a member
        lines = [
            f"method {name}: {key}" + (f": {'; or '.join(why)}" if why else "")
            for key, why in told.items()
        ]
        remedy = f"options of {name}: {', '.join(known) or 'none'}"
        raise UsageError("\n".join(lines), remedy) from error


def build(specs: Iterable[Spec]) -> list[Method]:
    """Make the methods that a recipe lists, in its order.

    Raises:
        UsageError: an unknown method or option, with the nearest name.
    """
    return [load(spec.name)(load_config(spec.name, spec.options)) for spec in specs]


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
