"""Every error a user can meet, and the exit code each ends in.

An error is written for the person who made the mistake: what was wrong, where (file, line, key),
and what to write instead. The command line prints `str(error)` after "error: " and exits with
`exit_code`; nothing else decides exit codes.

    PerdureError (1)
    ├── UsageError (2)          wrong arguments or recipe: nothing was loaded or written
    │   ├── RecipeError         all mistakes of a recipe at once, each with its line
    │   ├── DataError           a data file: names file and line or column
    │   └── ModelError          a base model that cannot be used
    ├── RunError (4)            a run directory: exists, locked, damaged
    └── TrainingError (5)       training could not go on: NaN loss, no disk space
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence


def printable(text: str) -> str:
    """Text without what steers a terminal: each such character is shown as \ufffd.

    These are control characters but newline and tab, halves of surrogate pairs, and marks that
    reorder what is read; what joins emoji or letters stays.
    """
    return "".join("\ufffd" if _steers(c) else c for c in text)


def _steers(c: str) -> bool:
    if c in "\n\t" or c.isprintable():
        return False
    return unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in _REORDERING


_REORDERING = "\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"


class PerdureError(Exception):
    """Base of all errors that are a message to the user, not a defect.

    Args:
        what: what was wrong, one line, with the place in front (`file:line: key: ...`).
        remedy: what to do instead; printed indented under it.
    """

    exit_code = 1

    def __init__(self, what: str, remedy: str | Sequence[str] = ()) -> None:
        self.what = what
        self.remedy = (remedy,) if isinstance(remedy, str) else tuple(remedy)
        super().__init__(what)

    def __str__(self) -> str:
        return printable("\n".join([self.what, *(f"  {line}" for line in self.remedy)]))


class UsageError(PerdureError):
    """The command line, a recipe or its data is wrong; found before any weight is loaded."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe's mistakes, all of them, each as one `PerdureError` with its own line."""

    def __init__(self, mistakes: Sequence[PerdureError]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(str(m) for m in mistakes), "nothing was loaded or written")


class DataError(UsageError):
    """A data file cannot be used: missing, empty, broken at a line, wrong columns or labels."""


class ModelError(UsageError):
    """The base model cannot be used: not found, not a causal LM, hub not reachable."""


class RunError(PerdureError):
    """A run directory is in the way, in use by another process, or not what was expected."""

    exit_code = 4


class TrainingError(PerdureError):
    """Training stopped: a loss that is not finite, a full disk. What was saved stays."""

    exit_code = 5
