"""Find rewards by name: one file each in this folder, other packages', and a user's own.

names()          every reward there is
describe(name)   its first docstring line
load(name)       its class, or a user's function as one: "module:function"
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any, ClassVar

from perdure.errors import UsageError
from perdure.recipe.mistakes import near
from perdure.recipe.offers import class_of, load_offer, offered_twice, offers, own_object, owner
from perdure.rewards.base import Reward, RewardConfig, Sample

__all__ = ["GROUP", "built_in", "describe", "load", "names"]

GROUP = "perdure.rewards"
_FOLDER = Path(__file__).parent
_OTHER = ("__init__", "base", "compose", "of_recipe", "registry")


def built_in() -> list[str]:
    """Names of Perdure's own rewards, sorted."""
    return sorted(path.stem for path in _FOLDER.glob("*.py") if path.stem not in _OTHER)


def names() -> list[str]:
    """Names of all rewards, built in and third parties', sorted."""
    return sorted({*built_in(), *(point.name for point in offers(GROUP))})


def describe(name: str) -> str:
    """First line of a built-in reward's docstring, read without importing it."""
    tree = ast.parse((_FOLDER / f"{name}.py").read_text(encoding="utf-8"))
    return (ast.get_docstring(tree) or "").partition("\n")[0]


def load(name: str) -> type[Reward]:
    """Import a reward and return its class.

    Raises:
        UsageError: no reward has this name (the nearest is suggested), two have it, or what
            another package or the user offers is no reward.
        ConsentError: a reward of the user's own, whose code may not run.
    """
    if ":" in name:
        found, _ = own_object(name, "reward")
        return _as_reward(found, name)
    offered = [point for point in offers(GROUP) if point.name == name]
    if len(offered) + (name in built_in()) > 1:
        owners = ["perdure"] * (name in built_in()) + [owner(point) for point in offered]
        raise offered_twice("reward", name, owners)
    if offered:
        return _as_reward(load_offer(offered[0], "reward"), _place(offered[0]))
    if name not in built_in():
        known = names()
        hint = near(name, known) or "or write your own as module:function"
        raise UsageError(f'"{name}" is none of {", ".join(known)}', hint)
    return class_of(importlib.import_module(f"perdure.rewards.{name}"), Reward)


def _place(point: EntryPoint) -> str:
    return f"reward {point.name!r} of {owner(point)}: {point.value}"


def _as_reward(found: Any, place: str) -> type[Reward]:
    if inspect.isclass(found) and issubclass(found, Reward):
        return found
    if inspect.isclass(found) or not callable(found):
        raise UsageError(
            f"{place} is neither a Reward nor a function",
            "write a function of samples that returns as many numbers in [0, 1]",
        )
    return _of_function(found)


def _of_function(function: Callable[[Sequence[Sample]], Sequence[float | None]]) -> type[Reward]:
    """A quality reward without options whose values a function gives; its version is a hash of the
    file that the function stands in."""
    try:  # the whole file: what the function calls is most often beside it
        source = Path(inspect.getfile(function)).read_bytes()
    except (OSError, TypeError):  # it has none to read
        source = repr(function).encode()
    digest = hashlib.sha256(source).hexdigest()[:12]

    class OfFunction(Reward):
        Config: ClassVar[type[RewardConfig]] = RewardConfig
        version = digest

        def __call__(self, samples: Sequence[Sample]) -> Sequence[float | None]:
            return function(samples)

    OfFunction.__doc__ = inspect.getdoc(function)
    return OfFunction
