"""Base of the recipe's sections: typed, frozen, and wrong keys or values told all at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator
from pydantic_core import PydanticCustomError

from perdure.recipe.mistakes import Mistake


class Section(BaseModel):
    """Base of all sections: typed, frozen, an unknown key is an error.

    `mistakes` yields what is wrong between keys, each at its own key.
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
    def _consistent(self) -> Section:
        if found := list(self.mistakes()):
            raise mistakes_error(found)
        return self


def mistakes_error(found: Sequence[Mistake]) -> PydanticCustomError:
    """One pydantic error that carries several mistakes; `recipe_check` takes them apart again."""
    text = "; ".join(".".join(map(str, m.key)) + ": " + m.what for m in found)
    return PydanticCustomError("mistakes", "{text}", {"text": text, "mistakes": tuple(found)})
