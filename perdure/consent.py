"""Whose code may run: the one place that decides.

A model folder, an adapter, a run directory, a recipe or a data set can bring Python code of its
own. None of it runs without the user's word, `trust_remote_code`: on the command line, as an
argument in Python, or in the recipe that the user runs. A file that came with weights, and the
recipe in a run directory, are no such word. `docs/security.md` says what it covers.

    with trusting(recipe.trust_remote_code):   # whoever has the word, around the work
        demand(f"{path}: is Python code")      # whoever is about to run foreign code
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

from perdure.errors import UsageError

P = ParamSpec("P")
R = TypeVar("R")
FLAG = "--trust-remote-code"
REMEDY = (
    "read that code; if you trust it, say so: trust_remote_code: true at the top of your recipe, "
    f"or {FLAG} on the command line (trust_remote_code=True in Python)"
)
_word: ContextVar[bool] = ContextVar("trust_remote_code", default=False)
_allowed: set[str] = set()
"""What the user has allowed in this process: a recipe's metric is imported when the recipe is read
and asked for again, by the same name, when a task is scored."""


class ConsentError(UsageError):
    """Foreign code would have to run, and the user has not said that it may."""


def given() -> bool:
    """Whether the user's word was given for what is done now."""
    return _word.get()


@contextmanager
def trusting(word: bool) -> Iterator[None]:
    """Inside the block the user's word counts as given, if it is `word` or was given outside."""
    token = _word.set(given() or word)
    try:
        yield
    finally:
        _word.reset(token)


def by_argument(function: Callable[P, R]) -> Callable[P, R]:
    """The function's keyword `trust_remote_code` is the user's word for all that it does."""

    @functools.wraps(function)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        with trusting(bool(kwargs.get("trust_remote_code"))):
            return function(*args, **kwargs)

    return wrapper


def demand(what: str) -> None:
    """Go on only with the user's word.

    Args: what: the code that is about to run, with its place in front: "PATH: is ...".

    Raises:
        ConsentError: the word was not given; nothing of that code was run.
    """
    if given():
        _allowed.add(what)
    elif what not in _allowed:
        raise ConsentError(f"{what}, which was not run", REMEDY)
