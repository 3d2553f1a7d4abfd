"""Whether an answer is in the language that was asked for: else nothing is earned.

First the script: letters of the right answer's language must be at least 0.6 of what they are in
the right answer, and letters of scripts of which neither the source nor the right answer has any
at most 0.1 of all. Of an answer of 8 words or more at most 0.3 more may stand in the source than of
the right answer: a text that is translated by half is no translation. Then the words, by py3langid
(Barbaresi; after Lui and Baldwin 2012), which gives the same answer twice: the answer is cut into
pieces of 8 words or more, a shorter one is one piece, and it is refused if in a piece another
language is `odds` times as likely as the right one:

    max over the others p(language | piece) > odds * p(right language | piece)

A short text is likely in many languages and so rarely refused. Languages that the
identifier takes for one another count as one (Bosnian, Croatian and Serbian; Indonesian and Malay;
Chinese and Wu). Where the right answer would be refused itself, the words are not looked at.
Traditional and simplified Chinese are not told apart.

Measured by `benchmarks/rewards.py` on the 1,997 lines of NTREX-128 with py3langid 0.4.0, in per
cent of the lines. Refused: right translations, each judged without knowing that it is right
(knowing it, none is). Passed: the English source as it is, and translations whose second half is
English. "3 words" is of the first three words (six characters of Chinese and Japanese) of each
line; there the reward `copying` refuses what passes here.

          refused   3 words   passed: English   3 words   half English
    fr        0.1       2.4               0.5      23.1            7.5
    de        0.3       0.9               1.0      19.8            7.8
    es        0.3       2.4               0.5      18.5            7.1
    id        0.3       1.0               0.6      15.3            8.3
    zh        3.0       4.6               0.0       1.3            0.2
    ja        0.7       3.5               0.0       0.5            0.2
    ru        0.2       1.5               0.1       0.3            1.3

For a language that nobody knows, such as a made-up one, `not_from: source` looks at the answer's
words alone: 0 if the share of them that stand in the source is above `most` and above that of the
right answer.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from functools import cache, lru_cache
from importlib.metadata import version
from itertools import pairwise
from typing import Any, Literal

from pydantic import Field

from perdure.errors import UsageError
from perdure.recipe.mistakes import Mistake
from perdure.rewards.base import Direction, Reward, RewardConfig, Sample, language_of
from perdure.streams.languages import Language
from perdure.streams.words import words

SCRIPT_SHARE = 0.6
FOREIGN_SHARE = 0.1
MIXED_SHARE = 0.3
PIECE = 8
"""Words: long enough to tell languages, short enough that a half of a sentence is a piece."""
_ALIKE = ({"bs", "hr", "sr"}, {"id", "ms"}, {"zh", "wuu"})
_CALLED = {"nb": "no", "prs": "fa"}
"""Our codes, where py3langid has another one."""
_HAN = ("CJK", "IDEOGRAPHIC")
_SCRIPTS = {
    "Hans": _HAN,
    "Hant": _HAN,
    "Jpan": (*_HAN, "HIRAGANA", "KATAKANA"),
    "Hang": ("HANGUL", *_HAN),
    "Arab": ("ARABIC",),
    "Armn": ("ARMENIAN",),
    "Avst": ("AVESTAN",),
    "Beng": ("BENGALI",),
    "Cans": ("CANADIAN",),
    "Cyrl": ("CYRILLIC",),
    "Deva": ("DEVANAGARI",),
    "Ethi": ("ETHIOPIC",),
    "Geor": ("GEORGIAN",),
    "Grek": ("GREEK",),
    "Gujr": ("GUJARATI",),
    "Guru": ("GURMUKHI",),
    "Hebr": ("HEBREW",),
    "Khmr": ("KHMER",),
    "Knda": ("KANNADA",),
    "Laoo": ("LAO",),
    "Latn": ("LATIN",),
    "Mlym": ("MALAYALAM",),
    "Mtei": ("MEETEI",),
    "Mymr": ("MYANMAR",),
    "Nkoo": ("NKO",),
    "Olck": ("OL",),
    "Orya": ("ORIYA",),
    "Sinh": ("SINHALA",),
    "Taml": ("TAMIL",),
    "Telu": ("TELUGU",),
    "Tfng": ("TIFINAGH",),
    "Thaa": ("THAANA",),
    "Thai": ("THAI",),
    "Tibt": ("TIBETAN",),
    "Yiii": ("YI",),
}
"""What the Unicode names of a script's letters begin with, by ISO 15924."""


@lru_cache(maxsize=16_384)
def script_of(letter: str) -> str:
    """The script of a letter, as its Unicode name begins: "LATIN"; "" of what is in none."""
    first, *rest = unicodedata.name(letter, "").partition("-")[0].split() or [""]
    if first in ("FULLWIDTH", "HALFWIDTH") and rest:
        first = rest[0]
    return first if any(first in names for names in _SCRIPTS.values()) else ""


def scripts_in(text: str) -> Counter[str]:
    """How many letters of each script a text has."""
    found = Counter(script_of(character) for character in text if character.isalpha())
    del found[""]
    return found


def in_script(answer: str, right: str, source: str, script: str) -> bool:
    """Whether an answer is written in a script (ISO 15924) as much as the right one is."""
    expected, found = _SCRIPTS[script], scripts_in(answer)
    total = found.total()
    if not total:
        return True  # numbers and signs
    share = sum(found[name] for name in expected) / total
    of_right = scripts_in(right)
    usual = sum(of_right[name] for name in expected) / of_right.total() if of_right else 1.0
    at_home = {*expected, *of_right, *scripts_in(source)}
    foreign = sum(count for name, count in found.items() if name not in at_home) / total
    return share >= SCRIPT_SHARE * usual and foreign <= FOREIGN_SHARE


def pieces(text: str) -> list[str]:
    """A text in pieces of about `PIECE` words and never less, unless it is shorter itself."""
    found = text.split()
    parts = max(1, len(found) // PIECE)
    ends = [len(found) * part // parts for part in range(parts + 1)]
    return [" ".join(found[start:end]) for start, end in pairwise(ends)]


@cache
def _identifier() -> Any:
    """The identifier, with probabilities that allow for a text's length.

    Raises:
        UsageError: it is not installed.
    """
    try:
        from py3langid.langid import MODEL_FILE, LanguageIdentifier
    except ImportError as error:
        raise UsageError(
            "reward language needs the package py3langid, which is not installed",
            'pip install "perdure[translation]", or write {name: language, identify: false}',
        ) from error
    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)


def label_of(language: Language) -> str:
    """The identifier's label of a language; "" if it does not know it.

    Raises:
        UsageError: the identifier is not installed.
    """
    label = _CALLED.get(language.code, language.code)
    return label if label in _identifier().labels else ""


@lru_cache(maxsize=65_536)
def worst_odds(text: str, label: str) -> float:
    """How many times likelier than its language another is in some piece of a text.

    Args: label: the identifier's label of the language that the text should be in.
    """
    alike = next((group for group in _ALIKE if label in group), {label})
    return max(_odds(piece, alike) for piece in pieces(text))


def _odds(text: str, alike: Collection[str]) -> float:
    right, other = 1e-30, 0.0
    for label, probability in _identifier().rank(text):
        if label in alike:
            right = max(right, probability)
        elif label != "zxx":  # what is no language: numbers, addresses
            other = max(other, probability)
    return other / right


def share_from(answer: str, source: str) -> float:
    """Share of an answer's words that stand in its source, 0 to 1; 0 for no words."""
    said, there = words(answer), set(words(source))
    return sum(word in there for word in said) / len(said) if said else 0.0


def mixes_in(answer: str, right: str, source: str) -> bool:
    """Whether an answer of some length has many more of its source's words than the right one."""
    long_enough = len(words(answer)) >= PIECE
    share = share_from(answer, source)
    return long_enough and share > share_from(right, source) + MIXED_SHARE


class LanguageConfig(RewardConfig):
    identify: bool = Field(True, description="look at the words too; false: at the script alone")
    odds: float = Field(10.0, gt=1, description="so much likelier another language must be")
    not_from: Literal["source"] | None = Field(
        None, description="for a language that nobody knows: look at the source's words instead"
    )
    most: float = Field(
        0.5, gt=0, lt=1, description="with not_from: share of words that may be the source's"
    )

    def mistakes(self) -> Iterator[Mistake]:
        for key in ("identify", "odds"):
            if self.not_from and getattr(self, key) != type(self).model_fields[key].default:
                yield Mistake((key,), "has no effect with not_from", "leave it out")
        if not self.identify and self.odds != 10.0:
            yield Mistake(("odds",), "has no effect with identify: false", "leave it out")
        if not self.not_from and self.most != 0.5:
            yield Mistake(("most",), "has no effect without not_from", "leave it out")


class LanguageGuard(Reward):
    role = "guard"
    Config = LanguageConfig
    config: LanguageConfig

    def __init__(self, config: LanguageConfig) -> None:
        super().__init__(config)
        if config.identify and not config.not_from:
            _identifier()
            self.version = f"1, py3langid {version('py3langid')}"

    def check(self, directions: Collection[Direction]) -> Iterator[Mistake]:
        if self.config.not_from:
            return
        own = "leave this reward out, or write {name: language, not_from: source}"
        if not self.config.identify:
            for source, target in directions:
                if source and target and source.script == target.script:
                    what = f"{source.name} and {target.name} are not told apart by their script"
                    yield Mistake(("identify",), what, "leave identify: false out")
        targets = {target.tag if target else "": target for _, target in directions}
        for tag, target in sorted(targets.items()):
            if target is None:
                what = "there are rows that do not say the language of their answer"
                yield Mistake((), what, f"format: translation does; else {own}")
            elif not target.script:
                yield Mistake((), f"{target.name} ({tag}) is a language that nobody knows", own)
            elif self.config.identify and not label_of(target):
                what = f"py3langid does not know {target.name} ({tag})"
                alone = "write {name: language, identify: false}, which looks at the script alone"
                yield Mistake((), what, f"{alone}; or {own}")

    def __call__(self, samples: Sequence[Sample]) -> list[float | None]:
        return [float(self._right(sample)) for sample in samples]

    def _right(self, sample: Sample) -> bool:
        answer, right, source = sample.parsed.answer, sample.target, sample.source
        if self.config.not_from:
            share = share_from(answer, source)
            return share <= self.config.most or share <= share_from(right, source)
        language = language_of(sample.target_lang)
        if language is None or not language.script:
            name = sample.target_lang or "no language"
            raise UsageError(f"the row's target_lang is {name}, of which no script is known")
        if not in_script(answer, right, source, language.script):
            return False
        if mixes_in(answer, right, source):
            return False
        if not self.config.identify:
            return True
        label, most = label_of(language), self.config.odds
        return worst_odds(answer, label) <= most or worst_odds(right, label) > most
