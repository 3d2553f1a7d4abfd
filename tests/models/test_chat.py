"""Rows as token ids: what a prompt that is too long loses, in training and in scoring alike."""

from __future__ import annotations

import logging
import re
from datetime import date
from typing import Any

import pytest
import torch

from perdure.engine.rows import SPLITS, encode_stream, told_of_rows
from perdure.errors import DataError
from perdure.models.chat import IGNORE, Encoder
from perdure.scoring import score_task
from perdure.streams.task import Task, TaskStream
from perdure.testing import make_tokenizer

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


TOO_LONG = {"prompt": SHORT["prompt"], "answer": " ".join(f"far{i}" for i in range(60))}
THOUGHT = {**SHORT, "answer": "<think>up</think>blue"}
OPENED = {**SHORT, "prefill": "<answer>"}


@pytest.mark.parametrize("template", ["auto", "none"])
def test_rows_together_are_encoded_as_each_alone(tiny: tuple[Any, Any], template: str) -> None:
    """Rows that are plain, too long, twice there, or take another way are all as by themselves."""
    rows = [SHORT, LONG, TOO_LONG, THOUGHT, OPENED, dict(SHORT), {**LONG, "answer": "blue"}]
    alone, together = (Encoder(tiny[1], template, 60, 50) for _ in range(2))
    together.answer_ids("blue")  # a label, which is kept
    found = together.encode_together(rows)
    for row, one in zip(rows, found, strict=True):
        if isinstance(one, DataError):
            with pytest.raises(DataError, match=re.escape(one.what)):
                alone.encode_and_tell(row)
        else:
            assert one == alone.encode_and_tell(row)
    assert [isinstance(one, DataError) for one in found] == [row is TOO_LONG for row in rows]
    assert found[0] is found[5]
    assert together.encode_together([]) == []


def test_a_row_that_the_template_refuses_is_told_alone(tiny: tuple[Any, Any]) -> None:
    template = (
        "{% for m in messages %}{% if 'sky' in m.content %}{{ raise_exception('no sky') }}"
        "{% endif %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    )
    first, refused, last = Encoder(tiny[1], template).encode_together([LONG, SHORT, LONG])
    assert isinstance(refused, DataError)
    assert "no sky" in refused.what
    assert first == last == Encoder(tiny[1], template).encode_and_tell(LONG)


def test_what_takes_a_while_tells_how_many_rows_are_done(
    tiny: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("perdure.engine.rows.TOGETHER", 2)
    told: list[tuple[Any, ...]] = []

    class Shown:
        def doing(self, *said: Any) -> None:
            told.append(said)

    task = Task("colour", [LONG, SHORT, LONG], [], [SHORT, LONG], "exact_match")
    for moment in (60.0, -1.0):  # a short check says nothing
        monkeypatch.setattr("perdure.engine.rows.MOMENT", moment)
        shown = told_of_rows(Shown(), "mine", 5)
        encode_stream(TaskStream((task,)), Encoder(tiny[1]), None, shown)
    assert told == [("mine", "checking", "rows", done, 5) for done in (2, 4)]
    assert told_of_rows(None, "mine", 5) is None


def test_how_many_prompts_are_cut_is_told(
    tiny: tuple[Any, Any], caplog: pytest.LogCaptureFixture
) -> None:
    task = Task("colour", [LONG, SHORT, LONG], [], [SHORT, LONG], "exact_match")
    with caplog.at_level(logging.WARNING):
        encode_stream(TaskStream((task,)), Encoder(tiny[1], "auto", 60, 50), 512)
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


@pytest.mark.parametrize("around", ["$A", "<|endoftext|> $A", "$A <|endoftext|>", "a $A"])
def test_a_texts_special_tokens_are_those_of_the_tokenizer(around: str) -> None:
    """A text is tokenized once for both forms, also where they cannot be told apart."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = make_tokenizer()
    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<|endoftext|>", "a")]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=around, special_tokens=ids
    )
    encoder = Encoder(tokenizer)
    for text in ("The import statement", " a", "a", "", "<|endoftext|> x"):
        for most in (None, 3):
            whole = tokenizer(text)["input_ids"][:most]
            bare = tokenizer(text, add_special_tokens=False)["input_ids"][:most]
            assert encoder.encode_text(text, most, special=True)["input_ids"] == whole
            assert encoder.encode_text(text, most) == {"input_ids": bare, "labels": bare}


def test_kept_rows_are_found_by_content_and_as_datasets(tiny: tuple[Any, Any]) -> None:
    """Of several splits, in any order."""
    encoder, fresh = Encoder(tiny[1]), Encoder(tiny[1])
    task = Task("colour", [LONG, SHORT, LONG], [], [{**SHORT, "answer": "green"}], "exact_match")
    encode_stream(TaskStream((task,)), encoder, 512)
    assert len(encoder.kept) == 4
    assert [len(encoder.kept.dataset(("colour", split))) for split in SPLITS] == [3, 0, 1]
    asked = [task.test[0], LONG, SHORT, SHORT]
    found = encoder.kept.select(asked)
    assert found is not None
    assert list(found[0]) == [fresh.encode(row) for row in asked]
    assert found[1] == [len(fresh.encode(row)["input_ids"]) for row in asked]
    assert encoder.kept.find(LONG) == fresh.encode(LONG)
    assert encoder.kept.select([LONG, {**LONG, "answer": "no"}]) is None
    assert encoder.kept.select([fresh.encode(LONG)]) is None


def test_another_day_forgets_what_was_encoded(tiny: tuple[Any, Any]) -> None:
    template = "{{ strftime_now('%d') }}" + str(tiny[1].chat_template)
    encoder = Encoder(tiny[1], template)
    encoder.pin(date(2026, 3, 4))
    encode_stream(TaskStream((Task("colour", [SHORT], [], [SHORT], "exact_match"),)), encoder, 512)
    before = encoder.encode(SHORT)
    encoder.pin(date(2026, 3, 4))
    assert encoder.kept.find(SHORT) == before
    encoder.pin(date(2026, 3, 5))
    assert encoder.kept.find(SHORT) is None
    assert encoder.encode(SHORT) != before
