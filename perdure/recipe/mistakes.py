"""What is wrong in a document, and where: the key, the reason, the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

Key = tuple[str | int, ...]


@dataclass(frozen=True)
class Mistake:
    """One thing wrong in a document, at `key`."""

    key: Key
    what: str
    remedy: str = ""


def near(word: str, known: Sequence[str]) -> str:
    """A 'did you mean' for a misspelt name, or nothing if no known name is near."""
    lower = {name.lower(): name for name in known}
    close = difflib.get_close_matches(str(word).lower(), list(lower), n=1, cutoff=0.55)
    return f'did you mean "{lower[close[0]]}"?' if close else ""
