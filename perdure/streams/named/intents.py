"""A named stream of classes: what people ask a bank, a shop, a travel agency, a phone company, a
calendar and a house, in short English sentences that were written for Perdure.

They lie beside this file, in intents.jsonl: 24 intents with 22 training and 12 test sentences each,
no sentence twice. A task is one place to ask, with four intents. No test sentence is a training
sentence with another name in it; they are other ways to ask for the same.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from perdure.streams.kinds.classes import ACCURACY, KIND
from perdure.streams.task import GeneralText, Row, Task, TaskStream

FILE = Path(__file__).with_suffix(".jsonl")
VALIDATION = 2
"""Training sentences of each intent that are set aside for methods that look at them."""
SOURCE = "sentences written for Perdure"


def intents(
    seed: int, train: int | None = None, validation: int | None = None, test: int | None = None
) -> TaskStream:
    """Build the stream: six tasks of four intents each, all of which compete once learned.

    Args:
        seed: draws the validation rows and the order of the rows.
        train, validation, test: rows a task at most; None: all 80, 8 and 48.

    Returns: rows alternate between a task's intents, so that `rows[:n]` is balanced.
    """
    found: dict[str, dict[str, dict[str, list[str]]]] = {}
    for line in FILE.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        splits = found.setdefault(row["task"], {}).setdefault(row["label"], {})
        splits.setdefault(row["split"], []).append(row["text"])
    tasks = []
    for name, classes in found.items():
        learned = {label: _shuffled(splits["train"], seed) for label, splits in classes.items()}
        rest = {label: texts[VALIDATION:] for label, texts in learned.items()}
        aside = {label: texts[:VALIDATION] for label, texts in learned.items()}
        asked = {label: _shuffled(splits["test"], seed) for label, splits in classes.items()}
        tasks.append(
            Task(
                name,
                _in_turn(rest)[:train],
                _in_turn(aside)[:validation],
                _in_turn(asked)[:test],
                metric=ACCURACY.name,
                kind=KIND.name,
                labels=tuple(classes),
                source=SOURCE,
            )
        )
    return TaskStream(tuple(tasks), GeneralText(), KIND.scenarios[0], "intents")


def _in_turn(texts: dict[str, list[str]]) -> list[Row]:
    """The first text of each class, then the second, and so on; all have as many."""
    return [
        {"text": text, "label": label}
        for some in zip(*texts.values(), strict=True)
        for label, text in zip(texts, some, strict=True)
    ]


def _shuffled(texts: list[str], seed: int) -> list[str]:
    """In an order that depends on the seed and the texts alone, in any process."""
    return sorted(texts, key=lambda text: hashlib.sha256(f"{seed}/{text}".encode()).digest())
