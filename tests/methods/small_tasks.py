"""Two small tasks and general texts for tests of methods."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from perdure.streams.task import Task

GENERAL = [
    "The import statement finds a module and binds names in the local scope.",
    "A lambda expression yields a function object, as a def statement does.",
    "Comparisons can be chained arbitrarily, and each is evaluated at most once.",
    "The del statement removes a binding from a namespace.",
    "Strings are immutable sequences of code points.",
    "An empty class body needs pass.",
]


def task_of(name: str, words: Sequence[str]) -> Task:
    rows = [
        {"prompt": [{"role": "user", "content": f"{name} {i} {w}"}], "answer": w}
        for i, w in enumerate(words)
    ]
    return Task(name, rows, rows[:4], rows[4:8], "exact_match")


FIRST = task_of("colour", ["red", "blue", "deep green", "red"] * 4)
SECOND = task_of("count", ["one", "two", "twenty two", "one"] * 4)


def general_method(kind: str = "gere", **options: Any) -> Any:
    """A method that replays general texts, by its name, with few texts of few tokens."""
    from perdure.methods import registry

    given = {"max_tokens": 12, "samples": len(GENERAL), **options}
    return registry.load(kind)(registry.load_config(kind, given))
