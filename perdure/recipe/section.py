"""Base of the recipe's sections: typed, frozen, and wrong keys or values told all at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from perdure.recipe.mistakes import Key, Mistake, leaves_of


class Judge(Protocol):
    """What the rest of the product knows of a recipe: formats, metrics, streams, methods.

    The recipe imports none of them; who reads a recipe hands a judge in.
    """

    def mistakes(self, section: Section) -> Iterator[Mistake]:
        """What is wrong in a section whose keys are right; keys are relative to it."""

    def method(self, item: Any) -> tuple[Any, list[Mistake]]:
        """A `MethodSpec` with all options of an entry of `method`, None where it is wrong."""

    def defaults(self, data: dict[str, Any]) -> Mapping[str, Any]:
        """Values of keys that a recipe leaves out, by its tasks' kind."""

    def of_data(self, data: dict[str, Any]) -> Iterator[Mistake]:
        """What is wrong in a recipe's whole data, whatever is in it: what is not installed."""


class NumbersAreNumbers(BaseModel):
    """Base of all that is read from a recipe: true is not taken for the number 1.

    Python and pydantic take it, so `learning_rate: true` would be a rate of 1.0.
    """

    @field_validator("*", mode="before")
    @classmethod
    def _no_booleans(cls, value: Any, info: ValidationInfo) -> Any:
        field = cls.model_fields[info.field_name or ""]
        leaves = leaves_of(field.annotation)
        if bool not in leaves and leaves & {int, float}:
            about = field.description or ""
            found = [Mistake(m.key, m.what, about) for m in _booleans(value, ())]
            if found:
                raise mistakes_error(found)
        return value


def _booleans(value: Any, key: Key) -> Iterator[Mistake]:
    if isinstance(value, bool):
        yield Mistake(key, f"must be a number, not {str(value).lower()}")
    elif isinstance(value, list | tuple | dict):
        for part, item in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _booleans(item, (*key, part))


class Section(NumbersAreNumbers):
    """Base of all sections: typed, frozen, an unknown key is an error.

    `mistakes` yields what is wrong between keys, each at its own key; the judge in pydantic's
    validation context adds what the section alone cannot know.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, coerce_numbers_to_str=True, allow_inf_nan=False
    )

    def mistakes(self) -> Iterator[Mistake]:
        yield from ()

    @model_validator(mode="before")
    @classmethod
    def _empty_sections(cls, data: Any) -> Any:
        """A section whose keys are all commented out reads as null; it means the defaults."""
        if not isinstance(data, dict):
            return data
        sections = {name for name, field in cls.model_fields.items() if field.default_factory}
        return {k: v for k, v in data.items() if v is not None or k not in sections}

    @model_validator(mode="after")
    def _consistent(self, info: ValidationInfo) -> Section:
        found = list(self.mistakes())
        if info.context is not None:
            found += info.context.mistakes(self)
        if found:
            raise mistakes_error(found)
        return self


def mistakes_error(found: Sequence[Mistake]) -> PydanticCustomError:
    """One pydantic error that carries several mistakes; `mistakes_in` takes them apart again."""
    text = "; ".join(".".join(map(str, m.key)) + ": " + m.what for m in found)
    return PydanticCustomError("mistakes", "{text}", {"text": text, "mistakes": tuple(found)})
