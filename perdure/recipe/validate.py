"""Validate a recipe's data and find every mistake in one go.

pydantic checks what holds between keys only in a section whose keys are right. So the data is
validated again with each mistake repaired as it was probably meant (a misspelt key renamed, a
wrong value taken out, a missing one stood in for), until nothing new turns up. The repaired data
is never used for anything else.
"""

from __future__ import annotations

import copy
import re
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from perdure.errors import PerdureError
from perdure.recipe.mistakes import Key, Mistake, near
from perdure.recipe.schema import MethodSpec, Recipe

_STAND_INS: dict[str, Any] = {
    "model": {"path": "stand-in"},
    "path": "stand-in",
    "train": "stand-in.csv",
    "stream": {"tasks": [{"name": "stand-in", "train": "stand-in.csv"}]},
    "method": "sequential",
}
"""What takes the place of a required key that is missing or wrong, to see what else is."""


@dataclass(frozen=True)
class _Finding:
    """A mistake and how to repair it: the key or value that was probably meant, if one is near."""

    mistake: Mistake
    key_meant: str = ""
    value_meant: str = ""
    between_keys: bool = False


def validate(data: Mapping[str, Any]) -> tuple[Recipe | None, list[Mistake]]:
    """Validate plain data; returns the recipe if nothing is wrong, and all that is."""
    work: Any = copy.deepcopy(dict(data))
    found: dict[Key, Mistake] = {}
    lost: set[Key] = set()  # values taken out, whose meaning is unknown
    while True:
        try:
            recipe = Recipe.model_validate(work)
        except ValidationError as error:
            before = copy.deepcopy(work)
            for finding in list(_findings(error, work)):
                mistake = finding.mistake
                if mistake.key in found:  # what was put there did not help
                    finding = _Finding(mistake, between_keys=finding.between_keys)
                if not (finding.between_keys and _rests_on(mistake, lost)):
                    found.setdefault(mistake.key, mistake)
                if _repair(work, finding) and not finding.between_keys:
                    lost.add(mistake.key)
            if work == before:
                return None, list(found.values())
        else:
            return (None if found else recipe), list(found.values())


def _rests_on(mistake: Mistake, lost: set[Key]) -> bool:
    """Whether a mistake between keys names one whose value was taken out, so may be no mistake."""
    named = set(re.findall(r"\w+", mistake.what))
    return any(key[-1] in named and mistake.key[: len(key) - 1] == key[:-1] for key in lost)


def read_methods(value: Any) -> tuple[tuple[MethodSpec, ...], list[Mistake]]:
    """One method or a list, each a name or `{name: ..., option: ...}`, checked against its Config.

    Keys of the mistakes are relative to the recipe's `method`.
    """
    many = isinstance(value, list | tuple)
    specs: list[MethodSpec] = []
    found: list[Mistake] = []
    for i, item in enumerate(value if many else [value]):
        spec, wrong = _read_method(item)
        at: Key = (i,) if many else ()
        found += [Mistake((*at, *m.key), m.what, m.remedy) for m in wrong]
        if spec is not None:
            specs.append(spec)
    if many and not value:
        found.append(Mistake((), "the list is empty", "write method: {name: sequential}"))
    return tuple(specs), found


def _read_method(item: Any) -> tuple[MethodSpec | None, list[Mistake]]:
    from perdure.methods import registry

    if isinstance(item, str):
        item = {"name": item}
    elif isinstance(item, MethodSpec):
        item = {"name": item.name, **item.options}
    if not isinstance(item, dict):
        return None, [Mistake((), "must be a name, or a name and options")]
    options = dict(item)
    name = options.pop("name", None)
    if not isinstance(name, str):
        return None, [Mistake((), "has no name", "write method: {name: sequential}")]
    if name not in (known := registry.names()):
        hint = " ".join(filter(None, [near(name, known), "all of them: perdure methods"]))
        return None, [Mistake(("name",), f'no method is called "{name}"', hint)]
    try:
        schema = registry.load(name).Config
        config = schema.model_validate(options)
    except ValidationError as error:
        return None, [finding.mistake for finding in _findings(error, options, schema)]
    except PerdureError as error:
        return None, [Mistake(("name",), error.what, " ".join(error.remedy))]
    return MethodSpec(name=name, options=config.model_dump(mode="json")), []


def _findings(
    error: ValidationError, data: Any, model: type[BaseModel] = Recipe
) -> Iterator[_Finding]:
    """pydantic's errors in our words, at keys that the data has."""
    problems = error.errors(include_url=False)
    meant = set()
    for problem in problems:
        if problem["type"] == "extra_forbidden":
            known = list(_fields(model, problem["loc"][:-1]))
            hint = near(str(problem["loc"][-1]), known)
            key_meant = _quoted(hint)
            meant.add((*problem["loc"][:-1], key_meant))
            mistake = Mistake(
                problem["loc"],
                "unknown key",
                hint or f"known here: {', '.join(known) or 'no option'}",
            )
            yield _Finding(mistake, key_meant=key_meant)
    for problem in problems:
        loc, kind, value = problem["loc"], problem["type"], problem["input"]
        key = loc if kind == "missing" else _existing(loc, data)
        field = _fields(model, key[:-1]).get(str(key[-1])) if key else None
        about = field.description or "" if field else ""
        if kind == "extra_forbidden" or (kind == "missing" and loc in meant):
            continue
        if kind == "mistakes":
            for inner in problem["ctx"]["mistakes"]:
                mistake = Mistake((*loc, *inner.key), inner.what, inner.remedy)
                yield _Finding(mistake, value_meant=_quoted(inner.remedy), between_keys=True)
        elif kind == "missing":
            yield _Finding(Mistake(loc, "is required and missing", about))
        elif kind == "literal_error":
            expected = problem["ctx"]["expected"].replace(" or ", ", ")
            choices = [choice.strip("' ") for choice in expected.split(",")]
            hint = near(str(value), choices)
            mistake = Mistake(key, f"{_show(value)} is none of {', '.join(choices)}", hint)
            yield _Finding(mistake, value_meant=_quoted(hint))
        elif kind in ("model_type", "model_attributes_type", "dict_type"):
            yield _Finding(Mistake(key, "must be a section of `key: value` lines", about))
        elif kind == "string_pattern_mismatch":
            what = f"{_show(value)} must be letters, digits, spaces and . + - _ only"
            yield _Finding(Mistake(key, what))
        else:
            what = problem["msg"].partition(", unable")[0]
            what = what.replace("Input should be", "must be").replace("a valid ", "a ")
            quote = kind == "string_type" and isinstance(value, bool | int | float)
            what = f"{what}, not {_show(value)}"
            yield _Finding(Mistake(key, what, "write it in quotes" if quote else about))


def _quoted(hint: str) -> str:
    """The name that a 'did you mean' suggests."""
    return hint.split('"')[1] if hint.startswith("did you mean") else ""


def _show(value: Any) -> str:
    if isinstance(value, str):
        return f'"{value}"'
    if value is None or isinstance(value, bool):
        return {None: "nothing", True: "true", False: "false"}[value]
    return repr(value)


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


def _repair(data: Any, finding: _Finding) -> bool:
    """Change the data to what was probably meant; returns whether a value was just taken out."""
    key = finding.mistake.key
    is_task = key[:-1] == ("stream", "tasks")
    if key and isinstance(key[-1], int) and not is_task and key[-2] != "method":
        key = key[:-1]  # of a list with a wrong item nothing is kept: an empty place may be wrong
    section, last = data, key[-1] if key else ""
    for part in key[:-1]:
        try:
            section = section[part]
        except (LookupError, TypeError):
            return True
    if isinstance(section, list) and isinstance(last, int) and last < len(section):
        name = f"stand-in-{last}"
        section[last] = {"name": name, "train": "stand-in.csv"} if is_task else "sequential"
        return True
    if not isinstance(section, dict):
        return True
    if last not in section:
        if last == "name":
            section[last] = "stand-in-" + "-".join(str(part) for part in key[:-1])
        elif last in _STAND_INS:
            section[last] = copy.deepcopy(_STAND_INS[str(last)])
        return False
    value = section.pop(last)
    if finding.key_meant:
        section.setdefault(finding.key_meant, value)
    elif finding.value_meant and isinstance(value, str):
        section[last] = finding.value_meant
    elif key[0] == "method" and last == "name":
        section.clear()  # whose options these are is unknown
        section["name"] = _STAND_INS["method"]
    else:
        return True
    return False
