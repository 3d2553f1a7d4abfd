"""Names of a package that are imported when they are first used, so that importing it is quick."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazily(package: str, homes: Mapping[str, str]) -> Callable[[str], Any]:
    """A module's `__getattr__` (PEP 562).

    Args: homes: each public name and the submodule of `package` that defines it, which may be
        written with the package in front.
    """

    def attribute(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        home = homes[name].removeprefix(f"{package}.")
        return getattr(import_module(f"{package}.{home}"), name)

    return attribute
