"""What is wrong in a document, and where: the key, the reason, the remedy."""

from __future__ import annotations

import difflib
import re
import types
import typing
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

from pydantic import BaseModel, ValidationError

from perdure.errors import brief

Key = tuple[str | int, ...]
QUOTE = "write it in quotes"
_COMPARED = 200
"""Signs of a name that are compared with others."""


@dataclass(frozen=True)
class Mistake:
    """One thing wrong in a document, at `key`.

    Attributes: instead: an entry of `method` to write in place of the one that it is about.
    """

    key: Key
    what: str
    remedy: str = ""
    instead: Mapping[str, Any] | None = None


def near(word: str, known: Sequence[str]) -> str:
    """A 'did you mean' for a misspelt name, or nothing if no other known name is near."""
    lower = {name[:_COMPARED].lower(): name for name in known if name != word}
    # Whoever mistyped a name wrote about as much; comparing a whole text would take minutes.
    close = difflib.get_close_matches(str(word)[:_COMPARED].lower(), list(lower), n=1, cutoff=0.55)
    if not close:
        return ""
    return f'did you mean "{brief(lower[close[0]])}"?{_foreign(str(word), lower[close[0]])}'


def _foreign(word: str, known: str) -> str:
    """Which sign of a word only looks like one of ours: nobody sees a Cyrillic letter, or one that
    has no width."""
    if word.isascii() or not known.isascii():
        return ""
    sign = next(sign for sign in word if not sign.isascii())
    name = unicodedata.name(sign, "")
    return f" one sign is U+{ord(sign):04X}{f', {name}' if name else ''}: type it anew"


def mistakes_in(error: ValidationError, data: Any, model: type[BaseModel]) -> list[Mistake]:
    """pydantic's errors in our words, at keys that the data has.

    Args: data: what was validated; model: the section's class.
    """
    problems = error.errors(include_url=False)
    found: list[Mistake] = []
    corrected = set()
    for problem in problems:
        if problem["type"] == "extra_forbidden":
            known = list(_fields(model, problem["loc"][:-1]))
            hint = near(str(problem["loc"][-1]), known)
            corrected.add((*problem["loc"][:-1], meant(hint)))
            hint = hint or f"known here: {', '.join(known) or 'no option'}"
            found.append(Mistake(problem["loc"], "unknown key", hint))
    arms = set()
    for problem in problems:
        loc, kind, value = problem["loc"], problem["type"], problem["input"]
        key = loc if kind == "missing" else _existing(loc, data)
        if key != loc and key in arms:
            continue  # each arm of a union has its own complaint: the first one is enough
        if key != loc:
            arms.add(key)
        field = _fields(model, key[:-1]).get(str(key[-1])) if key else None
        about = field.description or "" if field else ""
        if kind == "extra_forbidden" or (kind == "missing" and loc in corrected):
            continue
        if kind == "mistakes":
            for inner in problem["ctx"]["mistakes"]:
                found.append(Mistake((*loc, *inner.key), inner.what, inner.remedy))
        elif kind == "missing":
            found.append(Mistake(loc, "is required and missing", about))
        elif kind == "literal_error":
            expected = problem["ctx"]["expected"].replace(" or ", ", ")
            choices = [choice.strip("' ") for choice in expected.split(",")]
            what = f"{show(value)} is none of {', '.join(choices)}"
            found.append(Mistake(key, what, near(str(value), choices)))
        elif kind in _SECTIONS:
            found.append(Mistake(key, "must be a section of `key: value` lines", about))
        elif kind == "string_pattern_mismatch":
            what = f"{show(value)} must be letters, digits, spaces and . + - _ only"
            found.append(Mistake(key, f"{what}, and begin with a letter or digit"))
        elif kind == "invalid_key":
            many = "a list" if isinstance(value, tuple) else "a section"
            shown = many if isinstance(value, tuple | Mapping) else show(value)
            what = f"{shown} is no name of a key: names are text"
            found.append(Mistake(loc, what, "put it in quotes; in a number write a point, 0.5"))
        else:
            quote = kind == "string_type" and isinstance(value, bool | int | float | date)
            listed = kind == "tuple_type" and isinstance(value, str | int | float)
            remedy = QUOTE if quote else f"write [{value}]" if listed else about
            found.append(Mistake(key, _plainly(problem), remedy))
    return found


def _plainly(problem: Any) -> str:
    """What pydantic says of a value, in words for who wrote it in a recipe."""
    kind, value, limits = problem["type"], problem["input"], problem.get("ctx", {})
    if kind in _ALONE:
        return _ALONE[kind].format(**limits)
    if kind in _WORDS:
        return f"{_WORDS[kind]}, not {show(value)}"
    # Of a type that no section of Perdure's has: an option of somebody's own method.
    what = problem["msg"].removeprefix("Value error, ").removeprefix("Assertion failed, ")
    if kind in ("value_error", "assertion_error"):
        return str(what)
    what = what.partition(", unable")[0].replace("Input should", "must")
    what = what.removeprefix("Input ")
    what = _AN.sub("an ", what.replace("a valid ", "a "))
    return f"{what}, not {show(value)}"


_SECTIONS = {"model_type", "model_attributes_type", "dataclass_type", "dict_type", "mapping_type"}
_WORDS = {
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "string_type": "must be a string",
    "list_type": "must be a list",
    "tuple_type": "must be a list",
    "set_type": "must be a list",
    "none_required": "must be left empty",
    "path_type": "must be the path of a file",
}
"""Said before the value that was found."""
_ALONE = {
    "int_parsing_size": "has more digits than any number here can have",
    "string_unicode": "has half a character (a lone surrogate): write the character itself",
    "string_too_long": "has more than {max_length} characters",
    "string_too_short": "has fewer than {min_length} characters",
    "too_short": "has {actual_length} entries, and at least {min_length} are needed",
    "too_long": "has {actual_length} entries, and at most {max_length} are allowed",
    "recursion_loop": "contains itself",
}
"""Said without the value."""
_AN = re.compile(r"\ba (?=[aeiou])")


def leaves_of(annotation: Any) -> set[Any]:
    """The plain types in an annotation: `list[int] | None` has int and NoneType."""
    inner = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return {type(value) for value in inner}
    return set().union(*map(leaves_of, inner)) if inner else {annotation}


def is_text(model: type[BaseModel], key: Key) -> bool:
    """Whether a recipe's key, or what a list or mapping at it holds, is text and nothing else."""
    here: Any = model
    for depth, part in enumerate(key):
        if isinstance(part, int):
            continue
        if (field := here.model_fields.get(part)) is None:
            return False
        if (inner := _section_in(field.annotation)) is None or depth == len(key) - 1:
            leaves = leaves_of(field.annotation)
            return str in leaves and not leaves & {int, float, bool}
        here = inner
    return False


def meant(hint: str) -> str:
    """The name that a 'did you mean' suggests; "" where there is none."""
    return hint.split('"')[1] if hint.startswith("did you mean") else ""


def show(value: Any) -> str:
    """A value as a message shows it, cut if it is long."""
    if isinstance(value, str):
        return f'"{brief(value)}"'
    if isinstance(value, date):
        return f"the date {value}"
    if value is None or isinstance(value, bool):
        return {None: "nothing", True: "true", False: "false"}[value]
    return brief(repr(value))


def _existing(loc: Key, data: Any) -> Key:
    """`loc` up to where the data ends: below, pydantic names the arms of a union."""
    for depth, part in enumerate(loc):
        try:
            data = data[part]
        except (LookupError, TypeError):
            return loc[:depth]
    return loc


def _fields(model: type[BaseModel], loc: Key) -> Mapping[str, Any]:
    """The known keys of the section at `loc`."""
    here: Any = model
    for part in loc:
        if isinstance(part, int):
            continue
        if here is None or part not in here.model_fields:
            return {}
        here = _section_in(here.model_fields[part].annotation)
    return here.model_fields if here is not None else {}


def _section_in(annotation: Any) -> type[BaseModel] | None:
    """The section's class in an annotation such as `list[TaskConfig]` or `GeneralConfig | None`."""
    if isinstance(annotation, type) and not isinstance(annotation, types.GenericAlias):
        return annotation if issubclass(annotation, BaseModel) else None
    return next(filter(None, map(_section_in, typing.get_args(annotation))), None)
