"""How much of the right answer's character n-grams an answer has, and it of the answer's: chrF.

    q = (1 + beta^2) P R / (beta^2 P + R)

P and R: mean precision and recall of n-grams of 1 to `char_order` characters, and of up to
`word_order` words. Source: Popović 2015 (chrF), 2017 (chrF++: word_order 2); computed by sacrebleu
for each sentence by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib.metadata import version
from typing import Any

from pydantic import Field

from perdure.rewards.base import Reward, RewardConfig, Sample


@cache
def _metric(char_order: int, word_order: int, beta: int) -> Any:
    from sacrebleu.metrics.chrf import CHRF

    return CHRF(char_order=char_order, word_order=word_order, beta=beta)


def sentence_chrf(
    answer: str, right: str, char_order: int = 6, word_order: int = 0, beta: int = 2
) -> float:
    """chrF of one answer, 0 to 1; with the defaults chrF2, in which recall weighs twice."""
    found = _metric(char_order, word_order, beta).sentence_score(answer, [right])
    return float(found.score) / 100.0


class ChrfConfig(RewardConfig):
    char_order: int = Field(6, gt=0, description="longest n-grams of characters")
    word_order: int = Field(0, ge=0, description="longest n-grams of words; 2: chrF++")
    beta: int = Field(2, gt=0, description="how much more recall weighs than precision")


class Chrf(Reward):
    Config = ChrfConfig
    config: ChrfConfig

    def __init__(self, config: ChrfConfig) -> None:
        super().__init__(config)
        self._options = (config.char_order, config.word_order, config.beta)
        self.version = f"1, sacrebleu {version('sacrebleu')}"

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        return [sentence_chrf(s.parsed.answer, s.target, *self._options) for s in samples]
