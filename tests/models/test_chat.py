"""Rows as token ids: what a prompt that is too long loses, in training and in scoring alike."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch

from perdure.engine.rows import encode_stream
from perdure.models.chat import IGNORE, Encoder
from perdure.scoring import score_task
from perdure.streams.task import Task, TaskStream

pytestmark = pytest.mark.train

SYSTEM = {"role": "system", "content": "Name the colour."}
LONG = {
    "prompt": [SYSTEM, {"role": "user", "content": " ".join(f"word{i}" for i in range(40))}],
    "answer": "red",
}
SHORT = {"prompt": [SYSTEM, {"role": "user", "content": "the sky"}], "answer": "blue"}


@pytest.mark.parametrize("template", ["auto", "none"])
def test_a_long_prompt_loses_its_middle(tiny: tuple[Any, Any], template: str) -> None:
    tokenizer = tiny[1]
    whole = Encoder(tokenizer, template).prompt_ids(LONG)
    encoder = Encoder(tokenizer, template, max_length=48, max_prompt_length=41)
    assert encoder.prompt_ids(LONG) == whole[:21] + whole[-20:]
    answer = encoder.answer_ids("red")
    assert encoder.encode(LONG) == {
        "input_ids": whole[:21] + whole[-20:] + answer,
        "labels": [IGNORE] * 41 + answer,
    }
    text = tokenizer.decode(encoder.prompt_ids(LONG))
    assert "Name the colour." in text
    assert text.endswith("assistant\n" if template == "auto" else "word39\n")


def test_a_prompt_of_just_the_length_is_left_alone(tiny: tuple[Any, Any]) -> None:
    whole = Encoder(tiny[1]).prompt_ids(SHORT)
    for most, cut in ((len(whole), False), (len(whole) - 1, True)):
        encoder = Encoder(tiny[1], max_prompt_length=most)
        assert encoder.encode_and_tell(SHORT)[1] == cut
        assert (encoder.prompt_ids(SHORT) == whole) != cut
    assert not Encoder(tiny[1]).encode_and_tell(LONG)[1]


def test_how_many_prompts_are_cut_is_told(
    tiny: tuple[Any, Any], caplog: pytest.LogCaptureFixture
) -> None:
    task = Task("colour", [LONG, SHORT, LONG], [], [SHORT, LONG], "exact_match")
    with caplog.at_level(logging.WARNING):
        encode_stream(TaskStream((task,), None), Encoder(tiny[1], "auto", 60, 50), 512)
    assert [record.getMessage() for record in caplog.records] == [
        f"task colour: {n} rows have a prompt of more than 50 tokens: its middle is left out"
        for n in ("2 of 3 train", "1 of 2 test")
    ]


def test_scores_are_of_the_prompts_that_are_trained_on(tiny: tuple[Any, Any]) -> None:
    """The answer's loss after the cut prompt, against plain arithmetic on the encoded row."""
    model, tokenizer = tiny
    encoder = Encoder(tokenizer, "auto", 60, 50)
    task = Task("colour", [], [], [LONG], "perplexity")
    (item,) = score_task(model, encoder, task, batch_size=2).items
    row = encoder.encode(LONG)
    with torch.no_grad():
        loss = model(
            input_ids=torch.tensor([row["input_ids"]]), labels=torch.tensor([row["labels"]])
        ).loss
    assert item["tokens"] == len(row["input_ids"]) - 50
    assert item["loss"] == pytest.approx(float(loss), rel=1e-5)
