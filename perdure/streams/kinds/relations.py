"""Two entities in a text, as it is written in data and with markers around them.

    Ann works for [E21] Acme [E22] .

A row's text holds all four markers once: "[E11] head [E12]" and "[E21] tail [E22]". In data an
entity is

    "Acme"                              its name; where that is there several times, the first
    ["acme", "Q17", [[3]]]              as in FewRel: name, number, tokens of each mention
    {"text": ..., "indices": [[3]]}     the same in a data set of the hub
    [3, 4], {"start": 3, "end": 4}      from where to where (without the last): tokens where the
                                        text is a list of tokens, else characters
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from perdure.errors import brief
from perdure.streams.cells import CellError, EmptyCell, as_text, is_empty

HEAD, TAIL = ("[E11]", "[E12]"), ("[E21]", "[E22]")
MARKERS = (*HEAD, *TAIL)
_AS = "[E11] head [E12] and [E21] tail [E22] stand once each"


class Relation(NamedTuple):
    """A marked text taken apart.

    Attributes:
        head, tail: the entities' names.
        left, middle, right: the text before the first marker, from it to the last one, and after.
    """

    head: str
    tail: str
    left: str
    middle: str
    right: str


def has_markers(text: str) -> bool:
    """Whether a text has any of the four."""
    return any(marker in text for marker in MARKERS)


def unmarked(text: str) -> str:
    """The text without its markers, each with the blank between it and its entity, if any."""
    for first, last in (HEAD, TAIL):
        text = text.replace(f"{first} ", "").replace(f" {last}", "")
        text = text.replace(first, "").replace(last, "")
    return text


def relation(text: str) -> Relation:
    """Take a marked text apart.

    Raises:
        CellError: a marker is missing, there twice, or not where it belongs.
    """
    for marker in MARKERS:
        if (count := text.count(marker)) != 1:
            how = "is missing" if not count else f"is there {count} times"
            raise CellError(f"the entity marker {marker} {how}", _AS)
    at = {marker: text.index(marker) for marker in MARKERS}
    for first, last in (HEAD, TAIL):
        if at[first] > at[last]:
            raise CellError(f"the entity marker {last} stands before {first}", _AS)
    (_, end), (start, _) = sorted(((at[a], at[b]) for a, b in (HEAD, TAIL)))
    if start < end:
        raise CellError("the two entities overlap", "mark two that do not")
    begin, stop = min(at.values()), max(at.values()) + len(MARKERS[0])
    names = [text[at[a] + len(a) : at[b]].strip() for a, b in (HEAD, TAIL)]
    for name, pair in zip(names, (HEAD, TAIL), strict=True):
        if not name:
            raise CellError(f"there is no entity between {pair[0]} and {pair[1]}", _AS)
    return Relation(names[0], names[1], text[:begin], text[begin:stop], text[stop:])


def marked(values: Mapping[str, Any], tokens: str, head: str, tail: str) -> str:
    """The text of a record with markers around its entities.

    Args: tokens, head, tail: the data's columns; a text that has markers needs no other column.

    Raises:
        CellError: there is no such entity in the text, or markers are wrong.
        EmptyCell: nothing in a cell.
    """
    cell = _of_json(values.get(tokens))
    if isinstance(cell, Sequence) and not isinstance(cell, str):
        words = [as_text(word, tokens) if not is_empty(word) else "" for word in cell]
        if not words:
            raise EmptyCell(f'"{tokens}" is empty', "fill it in, or take the row out")
        text, ends = "", list[tuple[int, int]]()
        for word in words:
            text += " " * bool(ends)
            ends.append((len(text), len(text) + len(word)))
            text += word
        spans = ends
    else:
        text = as_text(values.get(tokens), tokens)
        spans = None
    if has_markers(text):
        relation(text)
        return text
    places = []
    for column in (head, tail):
        if column not in values:
            raise CellError(
                f'no "{brief(column)}", and the text has no markers',
                "name the columns of both entities (columns: {head: ..., tail: ...}), or mark "
                f"them in the text: {_AS}",
            )
        places.append(_span(values[column], text, spans, column))
    first, second = sorted(zip(places, (HEAD, TAIL), strict=True))
    if first[0][1] > second[0][0]:
        raise CellError("the two entities overlap", "name two that do not")
    for (start, end), (opens, closes) in (second, first):
        text = f"{text[:start]}{opens} {text[start:end]} {closes}{text[end:]}"
    relation(text)
    return text


def _of_json(cell: Any) -> Any:
    """A list or object that a CSV cell holds as JSON; anything else as it is."""
    if isinstance(cell, str) and cell.lstrip()[:1] in ("[", "{"):
        try:
            return json.loads(cell)
        except ValueError:
            return cell
    return cell


def _span(
    cell: Any, text: str, spans: list[tuple[int, int]] | None, column: str
) -> tuple[int, int]:
    """From which to which character an entity goes."""
    cell = _of_json(cell)
    name: Any = cell
    if isinstance(cell, Mapping):
        name = cell.get("text", cell.get("name"))
        if cell.get("indices"):
            return _tokens(cell["indices"], text, spans, column)
        if "start" in cell and "end" in cell:
            return _from_to(cell["start"], cell["end"], text, spans, column)
    elif isinstance(cell, Sequence) and not isinstance(cell, str):
        parts = list(cell)
        if parts and isinstance(parts[-1], Sequence) and not isinstance(parts[-1], str):
            listed = parts[-1] if isinstance(parts[0], str) else parts
            return _tokens(listed, text, spans, column)
        if len(parts) == 2 and all(isinstance(p, int) for p in parts):
            return _from_to(parts[0], parts[1], text, spans, column)
        name = parts[0] if parts else None
    name = as_text(name, column).strip()
    for flags in (0, re.IGNORECASE):
        if found := re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, flags):
            return found.span()
    raise CellError(
        f'the entity "{brief(name)}" of "{brief(column)}" is not in the text',
        "write it as it is there, or from where to where it goes",
    )


def _tokens(
    mentions: Any, text: str, spans: list[tuple[int, int]] | None, column: str
) -> tuple[int, int]:
    """The first mention of several, each the numbers of its tokens."""
    first = mentions[0] if mentions and isinstance(mentions[0], Sequence) else mentions
    if not first or not all(isinstance(n, int) for n in first):
        raise CellError(f'"{brief(column)}" has no token numbers: {brief(mentions)}')
    if spans is None:
        raise CellError(
            f'"{brief(column)}" has numbers of tokens, and the text is no list of tokens',
            "give the column of the tokens: columns: {tokens: ...}",
        )
    return _from_to(min(first), max(first) + 1, text, spans, column)


def _from_to(
    start: Any, end: Any, text: str, spans: list[tuple[int, int]] | None, column: str
) -> tuple[int, int]:
    most, what = (len(text), "characters") if spans is None else (len(spans), "tokens")
    whole = isinstance(start, int) and isinstance(end, int)
    if not whole or not 0 <= start < end <= most:
        raise CellError(
            f'"{brief(column)}" goes from {brief(start)} to {brief(end)}, and the text has '
            f"{most} {what}",
            "both are counted from 0, and the last one is the first behind the entity",
        )
    return (start, end) if spans is None else (spans[start][0], spans[end - 1][1])
