"""Is the right answer in a text, whatever stands around it? What an exact match is too strict for.

Only words count (`perdure.streams.words`): case, punctuation and white space do not, and
neither does what stands before and after. A text that names two labels names none, since it could
have listed them all. Not understood: "not robots" names robots.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from perdure.streams.words import words


def lenient_match(text: str, answer: str) -> float:
    """Return 1.0 if the words of `answer` stand in `text`, in order and side by side, else 0.0.

    An answer without a word (signs only) is found where both are the same but for white space.
    """
    found = _places(words(text), words(answer))
    return float(bool(found) or _bare(text) == _bare(answer))


def named_label(
    text: str, labels: Sequence[str], names: Mapping[str, str] | None = None
) -> str | None:
    """Return the one label that `text` names, or None if it names none or several.

    A name inside a longer one does not count: "day of rest" names no label "rest" if it is a
    label itself.

    Args:
        names: other spelling -> label, for example a recipe's `label_names`.
    """
    spelled = {label: label for label in labels} | {
        name: label for name, label in (names or {}).items() if label in labels
    }
    for name, label in spelled.items():
        if _bare(name) == _bare(text):
            return label
    said = words(text)
    places = [
        (start, start + len(words(name)), label)
        for name, label in spelled.items()
        for start in _places(said, words(name))
    ]
    whole = {
        label
        for start, end, label in places
        if not any(a <= start and end <= b and b - a > end - start for a, b, _ in places)
    }
    return whole.pop() if len(whole) == 1 else None


def _places(said: Sequence[str], wanted: Sequence[str]) -> list[int]:
    """Where `wanted` begins in `said`; nowhere if it is empty."""
    if not wanted:
        return []
    size = len(wanted)
    return [i for i in range(len(said) - size + 1) if list(said[i : i + size]) == list(wanted)]


def _bare(text: str) -> str:
    return " ".join(text.casefold().split())
