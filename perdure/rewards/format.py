"""Whether the answer can be read: tags in order, reasoning and answer there, not cut.

R1-T1 (arXiv 2502.19735) pays 0.2 for it, the default weight; see `perdure.streams.tagged` for what
the released reader takes and this one does not. A reasoning that is nothing but the answer is none.
With `leak` it may quote only so much of the answer:

    leak = length of the longest text that reasoning and answer share / length of the answer
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import SequenceMatcher

from pydantic import Field

from perdure.rewards.base import Reward, RewardConfig, Sample
from perdure.streams.words import words


def leaked(thinking: str, answer: str) -> float:
    """Share of the answer that the reasoning quotes in one piece, 0 to 1; in characters."""
    matcher = SequenceMatcher(None, thinking, answer, autojunk=False)
    found = matcher.find_longest_match()
    return found.size / len(answer) if answer else 0.0


class FormatConfig(RewardConfig):
    leak: float | None = Field(
        None, ge=0, lt=1, description="largest share of the answer that the reasoning may quote"
    )


class Format(Reward):
    role = "format"
    Config = FormatConfig
    config: FormatConfig

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        return [float(self._readable(sample)) for sample in samples]

    def _readable(self, sample: Sample) -> bool:
        parsed = sample.parsed
        if parsed.problem or sample.answer == "plain":
            return not parsed.problem
        if (said := words(parsed.thinking)) == words(parsed.answer) and said:
            return False
        most = self.config.leak
        return most is None or leaked(parsed.thinking, parsed.answer) <= most
