"""Whether an answer is a copy of its source, which a metric may pay well: then nothing is earned.

    0 if chrF(answer, source) >= most and chrF(right answer, source) < most, else 1

A right answer that is itself as good as its source (a name, a number) is no copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from pydantic import Field

from perdure.rewards.base import Reward, RewardConfig, Sample
from perdure.rewards.chrf import sentence_chrf


@lru_cache(maxsize=4096)
def _of_right(right: str, source: str) -> float:
    """chrF of a right answer with its source; a group's completions share both."""
    return sentence_chrf(right, source)


def is_copy(answer: str, right: str, source: str, most: float = 0.9) -> bool:
    """Whether an answer, but not the right one, is as its source."""
    return sentence_chrf(answer, source) >= most > _of_right(right, source)


class CopyingConfig(RewardConfig):
    most: float = Field(0.9, gt=0, le=1, description="chrF with the source that makes it a copy")


class Copying(Reward):
    role = "guard"
    Config = CopyingConfig
    config: CopyingConfig

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        most = self.config.most
        return [
            float(not is_copy(sample.parsed.answer, sample.target, sample.source, most))
            for sample in samples
        ]
