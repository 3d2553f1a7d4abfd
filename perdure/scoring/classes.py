"""What became of single classes: which answers went where at each step, and what a class lost.

Read from the rows that a run keeps: `answer` is a row's class, the guess the class that it was
taken for while all learned classes competed.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

Pair = tuple[str, str]
"""A test row's class, and the class it was taken for."""


@dataclass(frozen=True)
class Confusion:
    """Where test rows went after a step, each a share; None where there are no such rows.

    Of rows of classes learned before this step: `right`, `other_old` (taken for another old class)
    and `as_new` (for a class of this step) add up to 1. Of rows of this step's classes: `as_old`.
    """

    right: float | None
    other_old: float | None
    as_new: float | None
    as_old: float | None


def confusion(pairs: Iterable[Pair], new: Collection[str]) -> Confusion:
    """Count where rows went.

    Args:
        pairs: of all learned classes' test rows.
        new: the classes that this step brought; all others are old.
    """
    old_rows = new_rows = right = as_new = as_old = 0
    for answer, guess in pairs:
        if answer in new:
            new_rows += 1
            as_old += guess not in new
        else:
            old_rows += 1
            right += guess == answer
            as_new += guess in new
    return Confusion(
        right / old_rows if old_rows else None,
        (old_rows - right - as_new) / old_rows if old_rows else None,
        as_new / old_rows if old_rows else None,
        as_old / new_rows if new_rows else None,
    )


@dataclass(frozen=True)
class ClassLoss:
    """One class: its share right just after it was learned and at the end; `most` is the class it
    is taken for most often at the end where it is not right, empty where it always is."""

    name: str
    task: str
    learned: float
    end: float
    rows: int
    most: str = ""

    @property
    def loss(self) -> float:
        return self.learned - self.end


def losses(
    first: Mapping[str, Sequence[Pair]], last: Mapping[str, Sequence[Pair]]
) -> list[ClassLoss]:
    """Each class's loss from just learned to the end, the largest first; equal ones by name.

    Args:
        first: by task, the rows as they were scored when it was just learned; last: at the end.
            A task or a class that one of them lacks is left out.
    """
    found = []
    for task, pairs in last.items():
        before, after = _by_class(first.get(task, ())), _by_class(pairs)
        for name, guesses in after.items():
            if name not in before:
                continue
            wrong = [guess for guess in guesses if guess != name]
            most = max(sorted(set(wrong)), key=wrong.count, default="")
            found.append(
                ClassLoss(
                    name,
                    task,
                    _share(before[name], name),
                    _share(guesses, name),
                    len(guesses),
                    most,
                )
            )
    return sorted(found, key=lambda one: (-one.loss, one.name))


def _by_class(pairs: Iterable[Pair]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for answer, guess in pairs:
        found.setdefault(answer, []).append(guess)
    return found


def _share(guesses: Sequence[str], name: str) -> float:
    return sum(guess == name for guess in guesses) / len(guesses)
