"""A router for tests: the adapter of the first known word in a prompt; none: the base model."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

FILE = "words.json"


@dataclass(frozen=True)
class Chosen:
    adapter: str | None
    similarity: float
    why: str


class Words:
    """Args: words: a word -> the adapter that answers prompts with it."""

    shown: list[list[Any]] = []
    """All lists that any of them was shown, of this process."""

    def __init__(self, words: dict[str, str]) -> None:
        self.words = dict(words)

    @classmethod
    def load(cls, folder: Path) -> Words:
        return cls(json.loads((folder / FILE).read_text("utf-8")))

    def save(self, folder: Path) -> None:
        (folder / FILE).write_text(json.dumps(self.words), "utf-8")

    def choose(self, prompts: Sequence[Any]) -> list[Chosen]:
        self.shown.append(list(prompts))
        return [self._one(" ".join(turn["content"] for turn in prompt)) for prompt in prompts]

    def _one(self, text: str) -> Chosen:
        for word, adapter in self.words.items():
            if word in text.split():
                return Chosen(adapter, 1.0, f"it says {word}")
        return Chosen(None, 0.0, "no word is known")


@contextmanager
def known() -> Iterator[list[list[Any]]]:
    """Have its file be read as a router's inside; gives what routers are shown meanwhile."""
    from perdure.models import served

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(served.ROUTERS, FILE, "word_router:Words")
        patch.setattr(Words, "shown", [])
        yield Words.shown
