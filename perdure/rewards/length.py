"""Whether an answer is about as long as the right one: too short and too long ones earn no quality.

    g = 1 if least <= characters of the answer / characters of the right answer <= most else 0

Without it a very short answer is safe, and a rambling one finds some n-grams of the right one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pydantic import Field

from perdure.recipe.mistakes import Mistake
from perdure.rewards.base import Reward, RewardConfig, Sample


def length_ratio(answer: str, right: str) -> float | None:
    """Characters of the answer for each one of the right answer; None where that has none."""
    return len(answer) / len(right) if right else None


class LengthConfig(RewardConfig):
    least: float = Field(1 / 3, ge=0, description="smallest ratio to the right answer's length")
    most: float = Field(2.0, gt=0, description="largest ratio to the right answer's length")

    def mistakes(self) -> Iterator[Mistake]:
        if not self.least <= 1 <= self.most:
            what = "refuses answers that are as long as the right one"
            yield Mistake(("least" if self.least > 1 else "most",), what, "let 1 lie between both")


class Length(Reward):
    role = "gate"
    Config = LengthConfig
    config: LengthConfig

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        ratios = [length_ratio(sample.parsed.answer, sample.target) for sample in samples]
        least, most = self.config.least, self.config.most
        return [None if ratio is None else float(least <= ratio <= most) for ratio in ratios]
