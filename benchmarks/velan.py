"""Velan, a made-up language: short English sentences and their translation, as many as wanted.

    the red dog sees the small cat   ->   dog red cat small sees, each as an invented word

Twenty nouns, ten verbs and eight adjectives have a word of two open syllables each; a clause is
noun, its adjective, second noun, its adjective, verb; "and" joins two clauses. With one map of
words a model can learn the words; with a fresh map for each row it must read the glossary that
stands in the prompt, so that new words can be translated too.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

NOUNS = (
    "dog", "cat", "bird", "fish", "tree", "house", "river", "stone", "child", "king",
    "horse", "door", "ship", "book", "bread", "star", "wolf", "field", "road", "friend",
)  # fmt: skip
VERBS = (
    "sees",
    "finds",
    "follows",
    "helps",
    "likes",
    "hears",
    "carries",
    "paints",
    "loses",
    "needs",
)
ADJECTIVES = ("red", "small", "old", "cold", "happy", "dark", "quick", "quiet")
WORDS = (*NOUNS, *VERBS, *ADJECTIVES, "and")
CONSONANTS, VOWELS = "bdfgklmnprstvz", "aeiou"


def new_words(rng: random.Random) -> dict[str, str]:
    """An invented word for each English one, all different."""
    found: list[str] = []
    while len(found) < len(WORDS):
        word = "".join(rng.choice(CONSONANTS) + rng.choice(VOWELS) for _ in range(2))
        if word not in found:
            found.append(word)
    return dict(zip(WORDS, found, strict=True))


@dataclass(frozen=True)
class Sentence:
    """A sentence of one or several clauses: its English, and its words in Velan's order."""

    english: str
    order: tuple[str, ...]

    def velan(self, words: dict[str, str]) -> str:
        return " ".join(words[word] for word in self.order)

    def reasoning(self, words: dict[str, str]) -> str:
        """Word for word, in the order of the translation."""
        return " ; ".join(f"{word} is {words[word]}" for word in self.order)


def sentence(rng: random.Random, clauses: int = 1) -> Sentence:
    english: list[str] = []
    order: list[str] = []
    for number in range(clauses):
        first, second = rng.sample(NOUNS, 2)
        verb = rng.choice(VERBS)
        one, two = (rng.choice(ADJECTIVES) if rng.random() < 0.6 else "" for _ in range(2))
        if number:
            english.append("and")
            order.append("and")
        english += [w for w in ("the", one, first, verb, "the", two, second) if w]
        order += [w for w in (first, one, second, two, verb) if w]
    return Sentence(" ".join(english), tuple(order))


def rows(
    count: int,
    seed: int,
    *,
    fixed: dict[str, str] | None = None,
    fresh_share: float = 0.0,
    clauses: Sequence[int] = (1,),
    glossary: bool = False,
    without: Sequence[str] = (),
) -> list[dict[str, Any]]:
    """Rows of a translation task: source, target, reasoning, and a glossary where asked for.

    Args:
        fixed: the words of rows that share one map.
        fresh_share: the share of rows with a map of their own.
        clauses: how many a sentence may have.
        without: sources that no row may have, such as those of the other split.
    """
    rng = random.Random(seed)
    found: list[dict[str, Any]] = []
    seen = set(without)
    while len(found) < count:
        one = sentence(rng, rng.choice(clauses))
        if one.english in seen:
            continue
        seen.add(one.english)
        own = fixed is None or rng.random() < fresh_share
        words = new_words(rng) if own else fixed
        assert words is not None
        row = {
            "source": one.english,
            "target": one.velan(words),
            "reasoning": one.reasoning(words),
        }
        if glossary:
            needed = [*dict.fromkeys(one.order)]
            others = [w for w in WORDS if w not in needed]
            listed = [*needed, *rng.sample(others, rng.randint(0, 3))]
            rng.shuffle(listed)
            row["glossary"] = "; ".join(f"{word} = {words[word]}" for word in listed)
        found.append(row)
    return found
