"""What a generated text says: all of it, or what stands between its tags.

Scores, predictions and rewards read by one parser (`perdure.streams.tagged`), so that none of them
takes a text for an answer that another does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from perdure.streams.tagged import parse_tagged

if TYPE_CHECKING:
    from perdure.models.generate import Written

PROBLEM = "problem"
"""The key of an item that says why no answer could be read, "" where one was."""


@dataclass(frozen=True)
class Reading:
    """What was read: the answer, "" where the text has none; `said` is what an item keeps beside it
    (`raw`, `reasoning` and `problem`), nothing where the answer is the text."""

    answer: str
    said: Mapping[str, Any] = field(default_factory=dict)


def read(written: Written, answer: str, prefilled: bool) -> Reading:
    """Read what a model wrote.

    Args:
        answer: how, `Task.answer`.
        prefilled: the prompt ended in an opened reasoning.
    """
    if answer == "plain":
        return Reading(written.text)
    found = parse_tagged(written.whole, prefilled=prefilled, truncated=written.truncated)
    said = {"raw": written.whole, "reasoning": found.thinking, PROBLEM: found.problem}
    return Reading(found.answer, said)


def failures(items: Sequence[Mapping[str, Any]]) -> float | None:
    """The share of items in which no answer could be read; None where none was looked for."""
    if not items or any(PROBLEM not in item for item in items):
        return None
    return sum(bool(item[PROBLEM]) for item in items) / len(items)
