"""The stream of intents: what its file holds, and how it is dealt."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest

from perdure.recipe.data import StreamConfig
from perdure.streams import STREAMS, Sizes, build_stream
from perdure.streams.kinds.classes import question
from perdure.streams.named.intents import FILE, intents

pytestmark = pytest.mark.unit

TASKS = ["bank", "shop", "travel", "phone", "calendar", "home"]


def test_the_file_is_small_and_has_enough_different_sentences() -> None:
    rows = [json.loads(line) for line in FILE.read_text(encoding="utf-8").splitlines()]
    assert FILE.stat().st_size <= 200_000
    counts = Counter((row["task"], row["label"], row["split"]) for row in rows)
    assert {split: {n for (*_, s), n in counts.items() if s == split} for *_, split in counts} == {
        "train": {22},
        "test": {12},
    }
    assert len({row["label"] for row in rows}) == 24
    letters = {"".join(c for c in row["text"].casefold() if c.isalnum()) for row in rows}
    assert len(letters) == len(rows)
    assert max(len(row["text"].split()) for row in rows) <= 16


@pytest.mark.parametrize("seed", [0, 7])
def test_every_sentence_is_in_one_split_and_classes_take_turns(seed: int) -> None:
    stream = intents(seed)
    assert [task.name for task in stream] == TASKS
    assert stream.scenario == "class-incremental"
    assert len(stream.classes) == 24
    texts = [question(row) for task in stream for s in (task.train, task.validation, task.test)
             for row in s]  # fmt: skip
    assert len(set(texts)) == len(texts) == 24 * 34
    for task in stream:
        assert (len(task.train), len(task.validation), len(task.test)) == (80, 8, 48)
        for part in (task.train, task.validation, task.test):
            for start in range(0, len(part), 4):
                assert tuple(row["label"] for row in part[start : start + 4]) == task.labels


def test_the_seed_draws_and_sizes_cut() -> None:
    assert intents(0) == intents(0)
    assert intents(0).tasks[0].train != intents(1).tasks[0].train
    tests = [{row["text"] for row in intents(seed).tasks[0].test} for seed in (0, 1)]
    assert tests[0] == tests[1]  # test sentences stay test sentences
    about, build = STREAMS["intents"]
    cut = build(0, Sizes(train=12, validation=4, test=8)).tasks[2]
    assert "six tasks" in about
    assert (len(cut.train), len(cut.validation), len(cut.test)) == (12, 4, 8)
    assert list(cut.train) == list(intents(0).tasks[2].train[:12])
    assert build_stream(StreamConfig(name="intents"), None, Path(), 0) == build(0, None)
