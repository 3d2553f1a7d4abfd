"""Prompts that open the answer's reasoning: one in training, in scoring and at a server."""

from __future__ import annotations

import copy
import functools
from typing import Any

import pytest
from chat_templates import FAMILIES, Family

from perdure.engine.rows import encode_stream
from perdure.errors import RecipeError
from perdure.models.chat import IGNORE, Encoder
from perdure.models.generate import Written, written
from perdure.scoring.reading import failures, read
from perdure.streams.tagged import TAGS
from perdure.streams.task import Task, TaskStream
from perdure.testing import make_tokenizer

pytestmark = pytest.mark.unit

ANSWER = "<think>dog is Hund</think>\n<answer>der Hund</answer>"
BEHIND = ANSWER.removeprefix("<think>")


@functools.cache
def trained() -> Any:
    return make_tokenizer()


def of_family(family: Family) -> Any:
    """A tokenizer with the family's template and special tokens."""
    found = copy.deepcopy(trained())
    eos = family.eos or "<|im_end|>"
    names = [*family.special, eos, family.end.strip()]
    found.add_special_tokens({"additional_special_tokens": list(dict.fromkeys(names))})
    found.eos_token = eos
    if family.special:
        found.bos_token = family.special[0]
    found.chat_template = family.text
    return found


def asked(answer: str = ANSWER, prefill: str | None = "<think>") -> dict[str, Any]:
    row = {"prompt": [{"role": "user", "content": "the dog"}], "answer": answer}
    return row if prefill is None else {**row, "prefill": prefill}


def texts(encoder: Encoder, row: dict[str, Any]) -> tuple[str, str]:
    """Prompt and answer of the encoded row, decoded; what is trained on is the answer."""
    whole = encoder.encode(row)
    count = whole["labels"].count(IGNORE)
    prompt, answer = whole["input_ids"][:count], whole["input_ids"][count:]
    assert whole["labels"][count:] == answer
    assert prompt == encoder.prompt_ids(row)  # scoring and predicting ask this
    assert (prompt, answer) == encoder.parts(row)
    decode = encoder.tokenizer.decode
    return decode(prompt), decode(answer)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompt_is_what_a_server_sends_and_the_prefill(name: str) -> None:
    family = FAMILIES[name]
    tokenizer = of_family(family)
    encoder = Encoder(tokenizer)
    sent = tokenizer.apply_chat_template(
        asked()["prompt"], tokenize=False, add_generation_prompt=True
    )
    if name == "chatml without a generation prompt":
        sent += "<|im_start|>assistant\n"  # what stands before answers in whole conversations
    opened = sent if sent.rstrip().endswith("<think>") else sent + "<think>"
    prompt, answer = texts(encoder, asked())
    assert prompt == opened
    assert prompt.count("<think>") == 1
    assert answer == BEHIND + encoder.end
    # A row that is only scored has no reasoning, and the same prompt.
    assert encoder.prompt_ids(asked("der Hund")) == encoder.prompt_ids(asked())
    assert encoder.prefilled(asked())


def test_a_template_that_opens_the_block_is_known_without_a_prefill() -> None:
    encoder = Encoder(of_family(FAMILIES["deepseek r1"]))
    prompt, answer = texts(encoder, asked(prefill=""))
    assert prompt.endswith("<think>\n")
    assert answer == BEHIND + encoder.end
    assert encoder.prefilled(asked(prefill=""))


def test_a_template_with_an_empty_block_has_none_before_a_tagged_answer() -> None:
    encoder = Encoder(of_family(FAMILIES["qwen 3"]))
    prompt, answer = texts(encoder, asked(prefill=""))
    assert prompt.endswith("<|im_start|>assistant\n")
    assert answer == ANSWER + encoder.end
    assert not encoder.prefilled(asked(prefill=""))
    # The same for a row whose answer has no reasoning, as a test row may be.
    assert encoder.prompt_ids(asked("der Hund", "")) == encoder.prompt_ids(asked(prefill=""))
    plain, _ = texts(encoder, asked("der Hund", None))
    assert plain.endswith("<think>\n\n</think>\n\n")


@pytest.mark.parametrize("bos", [False, True])
def test_a_prefill_without_a_template(bos: bool) -> None:
    tokenizer = copy.deepcopy(trained())
    encoder = Encoder(tokenizer, "none")
    if bos:
        tokenizer.bos_token = "<|im_start|>"
        encoder._bos = [tokenizer.bos_token_id]
    prompt, answer = texts(encoder, asked())
    assert prompt == "<|im_start|>" * bos + "the dog\n<think>"
    assert answer == BEHIND + tokenizer.eos_token
    prompt, answer = texts(encoder, asked("der Hund", "Sure: "))
    assert (prompt[-6:], answer) == ("Sure: ", "der Hund" + tokenizer.eos_token)


def test_rows_that_differ_in_the_prefill_alone_are_kept_apart() -> None:
    encoder = Encoder(copy.deepcopy(trained()))
    rows = [asked(), asked(prefill=""), asked(prefill=None)]
    stream = TaskStream((Task("mt", rows, (), (), "exact_match"),))
    plain = [encoder.encode(row)["labels"] for row in rows]
    encode_stream(stream, encoder, None)
    assert [encoder.encode(row)["labels"] for row in rows] == plain
    assert plain[0] != plain[1]  # the same tokens, and fewer of them are learned


# --- tags that a tokenizer holds as special tokens


def special() -> Any:
    found = copy.deepcopy(trained())
    found.add_special_tokens({"additional_special_tokens": [*found.all_special_tokens, *TAGS]})
    return found


def test_tags_that_are_special_tokens_are_refused_where_they_are_read() -> None:
    def stream(answer: Any) -> TaskStream:
        return TaskStream((Task("mt", [asked()], (), (), "exact_match", answer=answer),))

    with pytest.raises(RecipeError) as error:
        encode_stream(stream("tagged"), Encoder(special()), None)
    told = "task mt: answer: tagged: </answer> is a special token of the model's tokenizer"
    assert told in str(error.value)
    encode_stream(stream("plain"), Encoder(special()), None)
    ordinary = copy.deepcopy(trained())
    ordinary.add_tokens(list(TAGS))  # as Qwen's tokenizers have them: tokens, and not special
    encode_stream(stream("tagged"), Encoder(ordinary), None)


def test_decoding_keeps_all_that_was_written_but_the_end() -> None:
    encoder = Encoder(special())
    ids = encoder.tokenizer(BEHIND)["input_ids"]
    end, pad = encoder.tokenizer.eos_token_id, encoder.pad_id
    found = written(encoder, [*ids, end, pad, pad], [end])
    assert found == Written("dog is Hund\nder Hund", BEHIND, False)
    cut = written(encoder, ids[:-1], [end])
    assert cut.truncated
    assert cut.whole == BEHIND.removesuffix("</answer>")
    assert written(encoder, [end], [end]) == Written("", "", False)


def test_an_end_of_several_tokens_ends_a_text_too() -> None:
    tokenizer = copy.deepcopy(trained())

    class Ended(Encoder):
        end = "\n\n##"  # type: ignore[assignment]

    ended = Ended(tokenizer, "none")
    ids = tokenizer(f"der Hund{Ended.end} more")["input_ids"]
    assert written(ended, ids, []) == Written("der Hund", "der Hund", False)
    assert written(ended, tokenizer("der Hund")["input_ids"], []).truncated


# --- reading


@pytest.mark.parametrize(
    ("whole", "prefilled", "truncated", "answer", "problem"),
    [
        (ANSWER, False, False, "der Hund", ""),
        (BEHIND, True, False, "der Hund", ""),
        (ANSWER, True, False, "", "tag_sequence"),
        (BEHIND, False, False, "", "tag_sequence"),
        (ANSWER, False, True, "", "truncated"),
        ("der Hund", False, False, "", "tag_sequence"),
        ("<think></think><answer>der Hund</answer>", False, False, "", "empty_think"),
    ],
)
def test_a_text_that_cannot_be_read_is_an_empty_answer_with_its_reason(
    whole: str, prefilled: bool, truncated: bool, answer: str, problem: str
) -> None:
    found = read(Written("as it is", whole, truncated), "tagged", prefilled)
    thought = "" if problem else "dog is Hund"
    assert found.answer == answer
    assert found.said == {"raw": whole, "reasoning": thought, "problem": problem}
    plain = read(Written("as it is", whole, truncated), "plain", prefilled)
    assert (plain.answer, plain.said) == ("as it is", {})


def test_the_share_of_failures_by_hand() -> None:
    assert failures([{"problem": ""}, {"problem": "truncated"}, {"problem": ""}]) == 1 / 3
    assert failures([{"score": 1.0}]) is None
    assert failures([]) is None
