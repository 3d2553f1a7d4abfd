"""How many of an answer's word n-grams stand in the right answer: sentence BLEU.

    q = brevity penalty * exp(mean over n of log precision_n)

over the orders n up to 4 that the answer has (`effective_order`: else a perfect answer of three
words is worth 0), smoothed as sacrebleu does for corpora ("exp"). Source: Papineni et al. 2002;
Chen and Cherry 2014; computed by sacrebleu. Words are cut by the language: 13a where blanks stand
between words, else as in `TOKENIZERS`; what cutting a language needs is looked for when a recipe
is loaded.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from functools import cache
from importlib.metadata import version
from typing import Any, Literal

from pydantic import Field

from perdure.errors import UsageError, one_line
from perdure.recipe.mistakes import Mistake
from perdure.rewards.base import Direction, Reward, RewardConfig, Sample, language_of
from perdure.streams.languages import Language

TOKENIZERS = {
    "zh": "zh",
    "yue": "zh",
    "ja": "ja-mecab",
    "ko": "ko-mecab",
    **dict.fromkeys(("th", "lo", "km", "my", "bo", "dz", "shn"), "flores200"),
}
"""How sacrebleu cuts languages in which 13a finds no words; all others: 13a."""
_NEEDED = {
    "ja-mecab": 'pip install "sacrebleu[ja]"',
    "ko-mecab": 'pip install "sacrebleu[ko]"',
    "flores200": "pip install sentencepiece; its model is downloaded once",
}
Tokenizer = Literal["auto", "13a", "intl", "zh", "ja-mecab", "ko-mecab", "flores200", "char"]


@cache
def _metric(tokenizer: str) -> Any:
    """The metric with a tokenizer.

    Raises:
        UsageError: what that needs is not there.
    """
    from sacrebleu.metrics.bleu import BLEU

    try:
        return BLEU(tokenize=tokenizer, effective_order=True)
    except Exception as error:  # a package or a download is missing: each says so in its own way
        first = next((line for line in str(error).splitlines() if line.strip()), str(error))
        what = f"tokenizer {tokenizer} cannot be used: {first.strip()}"
        raise UsageError(what, _NEEDED.get(tokenizer, ())) from error


def sentence_bleu(answer: str, right: str, tokenizer: str = "13a") -> float:
    """BLEU of one answer, 0 to 1.

    Raises:
        UsageError: what the tokenizer needs is not there.
    """
    return float(_metric(tokenizer).sentence_score(answer, [right]).score) / 100.0


class BleuConfig(RewardConfig):
    tokenize: Tokenizer = Field("auto", description="how words are cut; auto: by the language")


class Bleu(Reward):
    Config = BleuConfig
    config: BleuConfig

    def __init__(self, config: BleuConfig) -> None:
        super().__init__(config)
        _metric("13a" if config.tokenize == "auto" else config.tokenize)
        self.version = f"1, sacrebleu {version('sacrebleu')}"

    def tokenizer(self, language: Language | None) -> str:
        """How an answer in this language is cut."""
        if self.config.tokenize != "auto":
            return self.config.tokenize
        return TOKENIZERS.get(language.code, "13a") if language else "13a"

    def check(self, directions: Collection[Direction]) -> Iterator[Mistake]:
        needed = {self.tokenizer(target): target for _, target in directions}
        for tokenizer, target in sorted(needed.items()):
            try:
                _metric(tokenizer)
            except UsageError as error:
                what = f"{target.name}: {error.what}" if target else error.what
                other = "or cut into characters: {name: bleu, tokenize: char}"
                yield Mistake((), what, one_line([*error.remedy, other]))

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        return [
            sentence_bleu(s.parsed.answer, s.target, self.tokenizer(language_of(s.target_lang)))
            for s in samples
        ]
