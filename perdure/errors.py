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

import re
import shlex
import unicodedata
from collections import Counter
from collections.abc import Sequence

SHOWN = 10
"""So many mistakes of one file are written out; of the rest only the number is."""
ALIKE = 3
"""A mistake that more rows of one file share is written once, with the places of so many."""
EVERY = "to list them all: perdure run RECIPE --all-mistakes"
_ROW = re.compile(r"(.+?(?::| row ))(\d+)(: .+)", re.DOTALL)
"""A message about a row of a file: "FILE:LINE: ..." or "SOURCE: row N: ..."."""
_QUOTED = 80
_LINE = 2_000
"""No line of a message is longer: whatever is quoted in it, its beginning and end are seen."""


def brief(text: object, most: int = _QUOTED) -> str:
    """What was found in data or a recipe, fit to be quoted in a message.

    A long text is cut, and signs that no screen shows as they are (escape sequences, line ends,
    half characters) are written as Python writes them.
    """
    said = str(text)
    cut = said[:most]
    if not cut.isprintable():
        cut = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in cut)
    return cut if len(said) <= most else f"{cut}... ({len(said):,} characters)"


def one_line(remedy: Sequence[str]) -> str:
    """What an error says to do, where there is room for one line only."""
    return "; ".join(remedy).replace("?; ", "? ")


def task_named(name: str) -> str:
    """`task NAME` for a message; a name that begins with that word is enough by itself: task 5."""
    return name if re.match(r"task(?![^\W\d_])", name, re.IGNORECASE) else f"task {name}"


def typed(command: str, *words: object) -> str:
    """A command of Perdure's with paths in it, fit to be pasted: `perdure report 'runs/my shop'`.

    What begins with a dash and is no option of ours (`--out`) is a path of the current folder.
    """
    said = [f"./{word}" if re.match("-(?!-[a-z])", word) else word for word in map(str, words)]
    return shlex.join(["perdure", command, *said])


def resume_command(run: object) -> str:
    """The command by which a run goes on, as it is typed: `perdure resume 'runs/my shop'`."""
    return typed("resume", run)


def printable(text: str) -> str:
    """Text without what steers a terminal: each such character is shown as \ufffd.

    These are control characters but newline and tab, halves of surrogate pairs, and marks that
    reorder what is read; what joins emoji or letters stays.
    """
    if text.isprintable():
        return text
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
        source: the file it is about, and `kind`, what sort of mistake it is: a long list of
            mistakes is cut short for each.
    """

    exit_code = 1

    def __init__(
        self, what: str, remedy: str | Sequence[str] = (), source: str = "", kind: str = ""
    ) -> None:
        self.what, self.source, self.kind = what, source, kind
        self.remedy = (remedy,) if isinstance(remedy, str) else tuple(remedy)
        super().__init__(what)

    def __str__(self) -> str:
        text = printable("\n".join([self.what, *(f"  {line}" for line in self.remedy)]))
        return text if len(text) <= _LINE else "\n".join(map(_cut_line, text.split("\n")))


class UsageError(PerdureError):
    """The command line, a recipe or its data is wrong; found before any weight is loaded."""

    exit_code = 2


class RecipeError(UsageError):
    """A recipe's mistakes, all of them, each as one `PerdureError` with its own line.

    Args: most: so many of one file are written out; None writes out all.
    """

    def __init__(self, mistakes: Sequence[PerdureError], most: int | None = SHOWN) -> None:
        self.mistakes = tuple(mistakes)
        text = "\n".join(map(str, _shortened(self.mistakes, most)))
        super().__init__(text, "nothing was loaded or written")

    def whole(self) -> RecipeError:
        """The same error with every mistake written out."""
        return RecipeError(self.mistakes, None)


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


def _cut_line(line: str) -> str:
    if len(line) <= _LINE:
        return line
    return f"{line[: _LINE // 2]} ... ({len(line):,} characters) ... {line[-_LINE // 4 :]}"


def _shortened(mistakes: Sequence[PerdureError], most: int | None) -> list[PerdureError]:
    """The first `most` mistakes of each file and kind, and how many more there are.

    One that many rows share is written once.
    """
    if most is None:
        return list(mistakes)
    mistakes = _once(mistakes)
    total = Counter((mistake.source, mistake.kind) for mistake in mistakes)
    seen: Counter[tuple[str, str]] = Counter()
    shown: list[PerdureError] = []
    for mistake in mistakes:
        group = (mistake.source, mistake.kind)
        if seen[group] < most:
            shown.append(mistake)
        elif seen[group] == most:
            like = " like these" if mistake.kind else ""
            what = f"{mistake.source or 'here'}: and {total[group] - most:,} more mistakes{like}"
            shown.append(PerdureError(what, EVERY))
        seen[group] += 1
    return shown


def _once(mistakes: Sequence[PerdureError]) -> list[PerdureError]:
    """Mistakes, of which those that many rows share are one, with their number and first places."""
    rows: dict[tuple[str, ...], list[str]] = {}
    keys: list[tuple[str, ...]] = []
    for number, mistake in enumerate(mistakes):
        found = _ROW.fullmatch(mistake.what)
        parts = (found[1], found[3]) if found else (mistake.what, str(number))
        keys.append((mistake.source, mistake.kind, *parts, *mistake.remedy))
        places = rows.setdefault(keys[-1], [])
        if (place := found[2] if found else "") not in places:  # a file may be read for two splits
            places.append(place)
    shown: list[PerdureError] = []
    told: set[tuple[str, ...]] = set()
    for mistake, key in zip(mistakes, keys, strict=True):
        alike = rows[key]
        if len(alike) <= ALIKE:
            shown.append(mistake)
        elif key not in told:
            told.add(key)
            also = f"so it is in {len(alike):,} rows: {', '.join(alike[:ALIKE])}, ..."
            remedy = (*mistake.remedy, also)
            shown.append(PerdureError(mistake.what, remedy, mistake.source, mistake.kind))
    return shown
