"""A task's `until`: what its sampled answers must reach for its training to end."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from perdure.recipe.mistakes import Mistake
from perdure.recipe.section import Section


class UntilConfig(Section):
    """Training ends at the first look at which all that is listed is reached."""

    reach: dict[str, float | list[float]] = Field(
        description="reward: least mean of sampled answers, or [least, most]"
    )
    every: int = Field(5, gt=0, description="steps between two looks")
    rows: int = Field(
        32, gt=0, description="validation rows (else training rows) answered at a look"
    )

    def bounds(self, name: str) -> tuple[float, float | None]:
        """The least that a reward must reach, and the most that leaves room to learn."""
        value = self.reach[name]
        return (value[0], value[1]) if isinstance(value, list) else (value, None)

    def mistakes(self) -> Iterator[Mistake]:
        if not self.reach:
            yield Mistake(("reach",), "names no reward", "for example {format: 0.8, chrf: 0.4}")
        for name, value in self.reach.items():
            values = value if isinstance(value, list) else [value]
            if isinstance(value, list) and len(value) != 2:
                yield Mistake(("reach", name), "must be one number, or [least, most]")
            elif not all(0 <= one <= 1 for one in values) or sorted(values) != values:
                what = "must be from 0 to 1, the least first"
                yield Mistake(("reach", name), what)
