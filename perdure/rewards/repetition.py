"""Whether an answer says the same again and again: then its quality earns nothing.

    repetition = 1 - different pairs of neighbouring words / all such pairs
    g = 0 if repetition > most and > that of the right answer, else 1

Words are runs of letters and digits, in scripts without blanks each character
(`perdure.streams.words`).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from pydantic import Field

from perdure.rewards.base import Reward, RewardConfig, Sample
from perdure.streams.words import words


def repetition(text: str) -> float:
    """Share of a text's pairs of words that came before, 0 to 1; 0 for less than two words."""
    pairs = list(pairwise(words(text)))
    return 1 - len(set(pairs)) / len(pairs) if pairs else 0.0


class RepetitionConfig(RewardConfig):
    most: float = Field(0.5, ge=0, lt=1, description="share of pairs that may have come before")


class Repetition(Reward):
    role = "gate"
    Config = RepetitionConfig
    config: RepetitionConfig

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        return [float(not self._repeats(sample)) for sample in samples]

    def _repeats(self, sample: Sample) -> bool:
        found = repetition(sample.parsed.answer)
        return found > self.config.most and found > repetition(sample.target)
