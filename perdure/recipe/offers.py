"""What other packages offer by entry points, and what a user's own `module:function` leads to."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import sys
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from perdure.consent import demand
from perdure.errors import UsageError, brief
from perdure.paths import no_file
from perdure.recipe.mistakes import near

T = TypeVar("T")

__all__ = ["load_offer", "offered_twice", "offers", "own_object", "owner"]

_files: dict[tuple[str, int], ModuleType] = {}


def offers(group: str) -> list[EntryPoint]:
    """The entry points of a group, of all packages that are installed."""
    folders = [Path(folder).absolute() for folder in sys.path]
    return _installed(group, tuple((f, f.stat().st_mtime_ns) for f in folders if f.exists()))


@lru_cache(maxsize=8)
def _installed(group: str, folders: tuple[tuple[Path, int], ...]) -> list[EntryPoint]:
    """As `entry_points`, which reads a file of every package, as long as `folders` are the same.

    An installation changes the time of the folder that it adds to.
    """
    return list(entry_points(group=group))


def load_offer(point: EntryPoint, what: str) -> Any:
    """What an entry point leads to.

    Args: what: it is, in a word, for the message.

    Raises:
        UsageError: it cannot be imported.
    """
    try:
        return point.load()
    except Exception as error:  # whatever another package's code raises
        raise UsageError(
            f"{what} {point.name!r} of {owner(point)} cannot be imported: "
            f"{type(error).__name__}: {error}",
            f"update or uninstall {owner(point)}",
        ) from error


def owner(point: EntryPoint) -> str:
    """The package that offers it."""
    return point.dist.name if point.dist is not None else point.module.partition(".")[0]


def offered_twice(what: str, name: str, owners: list[str]) -> UsageError:
    """The error that two packages offer one name."""
    return UsageError(
        f"{what} {name!r} is offered more than once: {', '.join(owners)}",
        "uninstall one, or ask its author for another name",
    )


def own_object(name: str, what: str) -> tuple[Any, str]:
    """What a user's own name leads to, and its short name.

    Args:
        name: "module:function" or "path/to/file.py:function"; a file that has changed is read
            again.
        what: what it is to be, in a word, for the message.

    Raises:
        UsageError: there is no such module, file or function, or it cannot be imported.
        ConsentError: the user has not said that its code may run.
    """
    place, _, attribute = name.rpartition(":")
    demand(f"{place}: is Python code")
    module = _file(Path(place), what) if place.endswith(".py") else _module(place)
    short = f"{Path(place).stem}:{attribute}" if place.endswith(".py") else name
    functions = [n for n, v in vars(module).items() if inspect.isfunction(v) and n[0] != "_"]
    if not hasattr(module, attribute):
        known = f"it has {', '.join(functions)}" if functions else "it has no function"
        raise UsageError(
            f'{place} has no function "{attribute}"', near(attribute, functions) or known
        )
    return getattr(module, attribute), short


def _module(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:  # whatever the user's code raises
        if isinstance(error, ModuleNotFoundError) and error.name == name.partition(".")[0]:
            raise UsageError(
                f'there is no module "{name}"',
                f"put {name.replace('.', '/')}.py beside the recipe, or install its package",
            ) from None
        raise _broken(name, error) from error


def _file(path: Path, what: str) -> ModuleType:
    """The module in a file; read again only if the file has changed."""
    if why := no_file(path):
        raise UsageError(f"{why}: {brief(path, 300)}", f"a {what}'s own file is needed")
    key = (str(path.resolve()), path.stat().st_mtime_ns)
    if key not in _files:
        spec = importlib.util.spec_from_file_location(f"perdure_own_{path.stem}", path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.path.insert(0, str(path.parent))  # what it imports may lie beside it
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # whatever the user's code raises
            raise _broken(str(path), error) from error
        finally:
            sys.path.remove(str(path.parent))
        _files[key] = module
    return _files[key]


def class_of(module: ModuleType, base: type[T]) -> type[T]:
    """The subclass of `base` that a module of one defines itself."""
    return next(
        thing
        for thing in vars(module).values()
        if inspect.isclass(thing)
        and issubclass(thing, base)
        and thing.__module__ == module.__name__
    )


def _broken(place: str, error: Exception) -> UsageError:
    return UsageError(f"{place} cannot be imported: {type(error).__name__}: {error}")
