"""Prompt and answer are what a chat template gives for the whole conversation, token by token."""

from __future__ import annotations

import copy
import functools
import json
import logging
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pytest
from chat_templates import FAMILIES, Family
from tokenizers import AddedToken

from perdure.engine.rows import encode_stream
from perdure.errors import DataError, ModelError, RecipeError
from perdure.models.chat import IGNORE, Encoder
from perdure.scoring import score_task
from perdure.streams.task import GeneralText, Task, TaskStream
from perdure.testing import make_tokenizer

pytestmark = pytest.mark.unit
TEXTS = {"plain": ("Judge it.", "Is it fine?", "good"),
         "padded": ("Judge it.\n", " Is it fine? \n", " good \n")}  # fmt: skip
EARLIER = ({"role": "user", "content": "And the sea?"}, {"role": "assistant", "content": "deep"})


@pytest.fixture
def tokenizer() -> Any:
    return copy.deepcopy(trained())


@functools.cache
def trained() -> Any:
    return make_tokenizer()


def of_family(family: Family) -> Any:
    """A tokenizer with the family's special tokens."""
    found = copy.deepcopy(trained())
    eos = family.eos or "<|im_end|>"
    names = [*family.special, eos, family.end.strip()]
    found.add_special_tokens({"additional_special_tokens": list(dict.fromkeys(names))})
    found.eos_token = eos
    if family.special:
        found.bos_token = family.special[0]
    found.chat_template = family.text
    return found


def conversation(system: bool, turns: int, texts: str) -> tuple[list[dict[str, str]], str]:
    instruction, question, answer = TEXTS[texts]
    prompt = [{"role": "system", "content": instruction}] if system else []
    prompt += [dict(turn) for _ in range(turns - 1) for turn in EARLIER]
    return [*prompt, {"role": "user", "content": question}], answer


def rendered(family: Family, tokenizer: Any, prompt: list[dict[str, str]], answer: str) -> Any:
    """The tokens of the template's own rendering of a finished conversation."""
    system = prompt[0]["role"] == "system"
    asked = prompt
    if system and not family.system:
        text = f"{prompt[0]['content'].strip()}\n{prompt[1]['content']}"
        asked = [{"role": "user", "content": text}, *prompt[2:]]
    whole = tokenizer.apply_chat_template(
        [*asked, {"role": "assistant", "content": answer}], tokenize=False
    )
    if family.header is not None:  # what a server sends, and the answer behind it
        sent = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        assert sent.endswith(family.header)
        whole = sent + answer + family.end
    return tokenizer(whole, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("texts", TEXTS)
@pytest.mark.parametrize("turns", [1, 3])
@pytest.mark.parametrize("system", [False, True])
@pytest.mark.parametrize("name", FAMILIES)
def test_tokens_are_those_of_the_template(name: str, system: bool, turns: int, texts: str) -> None:
    family = FAMILIES[name]
    tokenizer = of_family(family)
    encoder = Encoder(tokenizer)
    prompt, answer = conversation(system, turns, texts)
    wanted = rendered(family, tokenizer, prompt, answer)
    row = encoder.encode({"prompt": prompt, "answer": answer})
    end = tokenizer(family.end, add_special_tokens=False)["input_ids"]
    # The template may write more behind the end of the turn, which the model never writes.
    assert row["input_ids"] == wanted[: len(row["input_ids"])]
    assert row["input_ids"][-1] == end[-1]
    assert end[-1] not in wanted[len(row["input_ids"]) :]
    learned = [i for i, label in zip(row["input_ids"], row["labels"], strict=True)
               if label != IGNORE]  # fmt: skip
    trimmed, whole_answer = answer.strip() + family.end, answer + family.end
    assert tokenizer.decode(learned).strip() in (trimmed.strip(), whole_answer.strip())
    assert row["labels"][-1] == end[-1]  # the end of the turn is trained


@functools.cache
def reader() -> Any:
    """A model with room for every family's tokens."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(trained()) + 64, hidden_size=16, intermediate_size=16,
            num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=512,
            pad_token_id=0, bos_token_id=None, eos_token_id=None,
        )  # fmt: skip
        return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("name", FAMILIES)
def test_what_is_scored_is_the_templates_own(name: str) -> None:
    """What the model reads while each metric scores a row, against the template's rendering."""
    family = FAMILIES[name]
    tokenizer, model = of_family(family), reader()
    encoder = Encoder(tokenizer)
    prompt, answer = conversation(True, 3, "plain")
    row = {"prompt": prompt, "answer": answer}
    whole = rendered(family, tokenizer, prompt, answer)
    whole = whole[: len(encoder.encode(row)["input_ids"])]
    given = whole[: encoder.encode(row)["labels"].count(IGNORE)]
    read: list[list[int]] = []

    def note(_: Any, __: Any, inputs: dict[str, Any]) -> None:
        read.extend(inputs["input_ids"].tolist())

    hook = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        for metric, wanted in (
            ("perplexity", whole[:-1]),  # of the last token only its likelihood is asked
            ("label_likelihood", whole[:-1]),
            ("exact_match", given),
        ):
            labels = (answer, "bad") if metric == "label_likelihood" else ()
            task = Task("t", [row], [], [row], metric, labels=labels, max_new_tokens=2)  # type: ignore[arg-type]
            read.clear()
            score_task(model, encoder, task)
            # Labels' own tokens follow in the same row, each behind the one prompt.
            assert any(ids[: len(wanted)] == wanted for ids in read), metric
    finally:
        hook.remove()


def test_there_are_twenty() -> None:
    assert len(FAMILIES) >= 20


# --- the cases that failed


def text_of(tokenizer: Any, encoder: Encoder, row: dict[str, Any]) -> tuple[str, str]:
    encoded = encoder.encode(row)
    count = encoded["labels"].count(IGNORE)
    ids = encoded["input_ids"]
    return tokenizer.decode(ids[:count]), tokenizer.decode(ids[count:])


def asked(*turns: tuple[str, str], answer: str = "good") -> dict[str, Any]:
    return {"prompt": [{"role": r, "content": c} for r, c in turns], "answer": answer}


FINE = asked(("user", "Is it fine?"))


def test_f2_a_trimmed_system_turn_stays_one(tokenizer: Any) -> None:
    trims = (
        "{% for m in messages %}{{ '<h>' + m.role + '</h>' + m.content | trim + '<end>' }}"
        "{% endfor %}{% if add_generation_prompt %}<h>assistant</h>{% endif %}"
    )
    row = asked(("system", "Judge it.\n"), ("user", "It works."))
    assert text_of(tokenizer, Encoder(tokenizer, trims), row) == (
        "<h>system</h>Judge it.<end><h>user</h>It works.<end><h>assistant</h>", "good<end>",
    )  # fmt: skip


def test_f2_a_dropped_system_turn_is_kept_though_the_user_says_its_words(tokenizer: Any) -> None:
    drops = FAMILIES["a template that drops the system turn"].text
    row = asked(("system", "Judge it."), ("user", "Judge it. Now."))
    prompt, _ = text_of(tokenizer, Encoder(tokenizer, drops), row)
    assert (
        prompt == "<|im_start|>user\nJudge it.\nJudge it. Now.<|im_end|>\n<|im_start|>assistant\n"
    )


def test_a_folded_system_turn_goes_to_the_user(tokenizer: Any) -> None:
    drops = FAMILIES["a template that drops the system turn"].text
    row = asked(("system", "Judge."), ("assistant", "Hello."), ("user", "Now."))
    prompt, _ = text_of(tokenizer, Encoder(tokenizer, drops), row)
    assert "<|im_start|>assistant\nHello.<|im_end|>\n<|im_start|>user\nJudge.\nNow." in prompt


def test_f3_a_template_without_a_generation_prompt(tokenizer: Any) -> None:
    bare = FAMILIES["chatml without a generation prompt"].text
    assert text_of(tokenizer, Encoder(tokenizer, bare), FINE) == (
        "<|im_start|>user\nIs it fine?<|im_end|>\n<|im_start|>assistant\n", "good<|im_end|>",
    )  # fmt: skip


def test_f4_a_blank_before_the_answer_belongs_to_it() -> None:
    family = FAMILIES["deepseek v2"]
    tokenizer = of_family(family)
    assert text_of(tokenizer, Encoder(tokenizer), FINE) == (
        "<|bos|>User: Is it fine?\n\nAssistant:", " good<|eos|>",
    )  # fmt: skip


@pytest.mark.parametrize("thinking", [None, True, False])
def test_f5_an_empty_think_block_is_in_the_prompt(tokenizer: Any, thinking: bool | None) -> None:
    variables = {} if thinking is None else {"enable_thinking": thinking}
    encoder = Encoder(tokenizer, FAMILIES["qwen 3"].text, variables=variables)
    row = asked(("user", "Hi"), ("assistant", "<think>\nso\n</think>\n\nhey"), ("user", "Fine?"))
    assert text_of(tokenizer, encoder, row) == (
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nhey<|im_end|>\n"
        "<|im_start|>user\nFine?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n",
        "good<|im_end|>",
    )


def test_f5_an_open_think_block_is_what_a_server_sends(caplog: pytest.LogCaptureFixture) -> None:
    tokenizer = of_family(FAMILIES["deepseek r1"])
    encoder = Encoder(tokenizer)
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert text_of(tokenizer, encoder, FINE) == (
                "<|bos|><|User|>Is it fine?<|Assistant|><think>\n", "good<|eos|>",
            )  # fmt: skip
    (told,) = [r.getMessage() for r in caplog.records]
    assert "begins an answer by '<|Assistant|>' in a finished conversation" in told
    assert "by '<|Assistant|><think>\\n' where an answer is asked for" in told


def stream_of(**rows: Any) -> TaskStream:
    return TaskStream((Task("faq", rows["train"], (), rows.get("test", ()), "exact_match"),))


def test_f7_a_conversation_that_is_refused_is_named() -> None:
    tokenizer = of_family(FAMILIES["mistral"])
    twice = asked(("user", "a"), ("user", "b"))
    with pytest.raises(RecipeError) as error:
        encode_stream(stream_of(train=[FINE, twice, FINE], test=[twice]), Encoder(tokenizer), None)
    first, second = (str(m) for m in error.value.mistakes)
    assert first.startswith(
        "task faq: train row 2: the model's chat template refuses this conversation: "
        "Conversation roles must alternate"
    )
    assert second.startswith("task faq: test row 1: ")


@pytest.mark.train
def test_f7_a_check_names_file_and_row(tmp_path: Path, tiny_model_dir: Path) -> None:
    from tiny_runs import write_recipe
    from typer.testing import CliRunner

    from perdure.cli import app

    user, said = {"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}
    good, bad = [user, said], [user, user, said]
    lines = [json.dumps({"messages": turns}) for turns in (good, bad, good, bad)]
    (tmp_path / "talk.jsonl").write_text("\n".join(lines))
    (tmp_path / "own.jinja").write_text(FAMILIES["mistral"].text)
    tasks = [{"name": "talk", "format": "chat",
              **dict.fromkeys(("train", "validation", "test"), "talk.jsonl")}]  # fmt: skip
    path = write_recipe(
        tmp_path, tiny_model_dir, stream={"tasks": tasks}, model__chat_template="own.jinja"
    )
    done = CliRunner().invoke(app, ["run", str(path), "--check"])
    assert done.exit_code == 2
    for number in (2, 4):
        assert (
            f"talk.jsonl:{number}: the model's chat template refuses this conversation: "
            "Conversation roles must alternate" in done.output
        )
    assert "talk.jsonl:3" not in done.output


def test_a_role_that_is_left_out_is_refused(tokenizer: Any) -> None:
    only = (
        "{% for m in messages %}{% if m.role in ('user', 'assistant') %}{{ m.role + ': ' + "
        "m.content + '\\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}assistant: "
        "{% endif %}"
    )
    row = asked(("user", "a"), ("tool", "42"), ("user", "b"))
    with pytest.raises(DataError, match="a turn of the role tool is left out by"):
        Encoder(tokenizer, only).encode(row)


WITH_PARTS = (
    "{% for m in messages %}{{ '<' + m.role + '>' }}{% if m.content is string %}"
    "{{ m.content }}{% else %}{% for p in m.content %}{{ '[' + p.text | trim + ']' }}"
    "{% endfor %}{% endif %}{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
PARTS = {
    "prompt": [{"role": "user", "content": "Is it  fine?", "parts": ["Is it ", "fine?"]}],
    "answer": "very good",
    "turn": {"parts": ["very", "good"]},
}


@pytest.mark.parametrize("written", ["jinja", "json"])
def test_parts_are_rendered_as_the_template_does(tokenizer: Any, written: str) -> None:
    """One that takes lists writes them; for one that takes texts they are joined by blanks."""
    encoder = Encoder(tokenizer, WITH_PARTS)
    whole = [
        {"role": turn["role"], "content": [{"type": "text", "text": t} for t in turn["parts"]]}
        for turn in (*PARTS["prompt"], {"role": "assistant", **PARTS["turn"]})
    ]
    wanted = tokenizer.apply_chat_template(whole, chat_template=WITH_PARTS, tokenize=False)
    prompt, answer = text_of(tokenizer, encoder, PARTS)
    assert (
        prompt + answer
        == wanted
        == ("<user>[Is it][fine?]<|im_end|><assistant>[very][good]<|im_end|>")
    )
    content = "m.content | tojson if m.content is not string else m.content"
    texts = FAMILIES["chatml without a generation prompt"].text
    if written == "json":
        texts = texts.replace("m.content", f"({content})").replace(
            "message['content']", f"({content.replace('m.content', 'message.content')})"
        )
    assert text_of(tokenizer, Encoder(tokenizer, texts), PARTS) == (
        "<|im_start|>user\nIs it  fine?<|im_end|>\n<|im_start|>assistant\n",
        "very good<|im_end|>",
    )
    plain = Encoder(tokenizer, "none")
    assert text_of(tokenizer, plain, PARTS)[0].endswith("Is it  fine?\n")
    assert plain.answer_text(PARTS) == encoder_text(plain)


def encoder_text(encoder: Encoder) -> str:
    return encoder.answer_text({k: v for k, v in PARTS.items() if k != "turn"})


def test_a_folded_system_turn_goes_into_the_first_part(tokenizer: Any) -> None:
    folds = WITH_PARTS.replace(
        "{% for m in messages %}", "{% for m in messages if m.role != 'system' %}", 1
    )
    row = {**PARTS, "prompt": [{"role": "system", "content": "Judge."}, *PARTS["prompt"]]}
    prompt, _ = text_of(tokenizer, Encoder(tokenizer, folds), row)
    assert prompt == "<user>[Judge.\nIs it][fine?]<|im_end|><assistant>"


def test_a_template_that_shows_no_answer_is_refused(tokenizer: Any) -> None:
    with pytest.raises(ModelError, match="does not show an answer"):
        Encoder(tokenizer, "{{ messages[0].content }}").encode(FINE)


def test_g3_a_date_is_pinned() -> None:
    tokenizer = of_family(FAMILIES["llama 3.1 with a date"])
    encoder = Encoder(tokenizer)
    encoder.pin(date(2024, 7, 26))
    assert "Today Date: 26 Jul 2024" in encoder.prompt_text(FINE)
    assert encoder.today == date(2024, 7, 26)
    encoder.pin(date(2025, 1, 2))
    assert "Today Date: 02 Jan 2025" in encoder.prompt_text(FINE)


def test_g3_a_date_in_any_form_is_pinned(tokenizer: Any) -> None:
    """The form may be a variable, and the library's own function is never called."""
    template = (
        "{% set form = '%A, %-d %B %Y, %j %H:%M' %}{% set day = strftime_now(form) %}"
        "{{ '\\n' + day + '|' }}" + FAMILIES["chatml"].text
    )
    encoder = Encoder(tokenizer, template)
    encoder.pin(date(2024, 7, 6))
    assert encoder.prompt_text(FINE).startswith("\nSaturday, 6 July 2024, 188 00:00|<|im_start|>")


def test_g4_special_tokens_in_data_are_told(
    tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    strange = asked(("user", "<|im_end|>\n<|im_start|>assistant\nX"))
    ends = asked(("user", "a"), answer="b<|im_end|>")
    with caplog.at_level(logging.WARNING):
        stream = stream_of(train=[FINE, strange, ends], test=[strange])
        encode_stream(stream, Encoder(tokenizer), None)
    (told,) = [r.getMessage() for r in caplog.records]
    assert told == (
        "task faq: train row 2: its own text holds the special token '<|im_end|>', which the "
        "model reads as such: a turn may end or begin there; so do 3 rows in all, 2 of them in the "
        "prompt and 1 in the answer"
    )


def test_a_nul_in_data_is_told_once(tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    rows = [FINE, asked(("user", "a\0")), asked(("user", "a"), answer="b\0")]
    with caplog.at_level(logging.WARNING):
        encode_stream(stream_of(train=rows), Encoder(tokenizer), None)
    (told,) = [r.getMessage() for r in caplog.records]
    assert told == (
        "task faq: train row 2: its text holds a NUL character, which nobody sees and the model "
        "reads; so do 2 rows in all"
    )


def test_g4_rows_that_two_tasks_share_are_counted_once(
    tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A task that is scored on another's test rows (`test_of`) has no rows of its own there."""
    stream = stream_of(train=[FINE], test=[asked(("user", "a<|im_end|>"))])
    first = stream.tasks[0]
    warm = replace(first, name="warm", test_of=first.name)
    with caplog.at_level(logging.WARNING):
        encode_stream(replace(stream, tasks=(warm, first)), Encoder(tokenizer), None)
    (told,) = [r.getMessage() for r in caplog.records]
    assert told.startswith("task faq: test row 1: ")
    assert "so do 1 rows in all" in told


def test_g4_general_texts_with_special_tokens_are_told(
    tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    texts = ("plain", "a<|im_end|>" + "b" * 100, "c<|im_start|>")
    general = GeneralText(texts[:2], texts[2:], "web.txt")
    stream = replace(stream_of(train=[FINE]), general=general)
    with caplog.at_level(logging.WARNING):
        encode_stream(stream, Encoder(tokenizer), None)
    (told,) = [r.getMessage() for r in caplog.records]
    assert told == (
        f"general.source: web.txt: the text 'a<|im_end|>{'b' * 49}...' holds the special token "
        "'<|im_end|>', which the model reads as such; so do 2 texts in all"
    )


def test_g4_a_label_with_a_special_token_is_told(
    tokenizer: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Also one that no row bears, and a token that is only marked as special, as Llama 3's are."""
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.add_tokens([AddedToken("<|turn|>", special=True)])
    assert "<|turn|>" not in tokenizer.all_special_tokens
    stream = stream_of(train=[FINE])
    labelled = replace(stream.tasks[0], labels=("good", "bad<|turn|>", "<|turn|>"))
    with caplog.at_level(logging.WARNING):
        encode_stream(replace(stream, tasks=(labelled,)), Encoder(tokenizer), None)
    (told,) = [r.getMessage() for r in caplog.records]
    assert told == (
        "task faq: the label 'bad<|turn|>' holds the special token '<|turn|>', which the model "
        "reads as such; so do 2 labels in all"
    )


# --- thoughts, calls of tools, tools


TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": {"at": "sky"}}}
AS_TEXT = {**CALL, "function": {"name": "look", "arguments": '{"at": "sky"}'}}
CALLED = [
    {"role": "user", "content": "The sky?"},
    {"role": "assistant", "content": "", "tool_calls": [CALL]},
    {"role": "tool", "content": "blue"},
]
TAKES_TEXT = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.name + ' ' + c.function.arguments }}"
    "{% endfor %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def whole_of(tokenizer: Any, row: dict[str, Any], **changes: Any) -> str:
    turn = {"role": "assistant", "content": row["answer"], **row.get("turn", {}), **changes}
    return str(
        tokenizer.apply_chat_template(
            [*row["prompt"], turn], tools=row.get("tools"), tokenize=False
        )
    )


@pytest.mark.parametrize(
    "row",
    [
        asked(("user", "Hi"), answer="<think>\nso\n</think>\n\nhey"),
        {**asked(("user", "Hi"), answer="hey"), "turn": {"reasoning_content": "so"}},
        {**asked(("user", "The sky?"), answer=""), "turn": {"tool_calls": [CALL]}, "tools": TOOLS},
        {**asked(("user", "The sky?"), answer="So:"), "turn": {"tool_calls": [CALL, CALL]}},
        {"prompt": CALLED, "answer": "Blue.", "tools": TOOLS},
    ],
)
def test_all_parts_of_a_conversation_are_rendered(tokenizer: Any, row: dict[str, Any]) -> None:
    tokenizer.chat_template = FAMILIES["qwen 3"].text
    prompt, answer = text_of(tokenizer, Encoder(tokenizer), row)
    assert prompt + answer + "\n" == whole_of(tokenizer, row)
    sent = tokenizer.apply_chat_template(
        row["prompt"], tools=row.get("tools"), tokenize=False, add_generation_prompt=True
    )
    assert prompt in (sent, sent + "<think>\n\n</think>\n\n")
    for part in ("look", "sky") if "tool_calls" in row.get("turn", {}) else ():
        assert part in answer


def test_arguments_that_are_a_text_are_those_of_an_object(tokenizer: Any) -> None:
    """OpenAI writes them so; servers make an object of it, unless the template wants a text."""
    row = asked(("user", "The sky?"), answer="")
    for template in (FAMILIES["qwen 3"].text, TAKES_TEXT):
        encoder = Encoder(tokenizer, template)
        one, other = ({**row, "turn": {"tool_calls": [call]}} for call in (CALL, AS_TEXT))
        assert encoder.encode(one) == encoder.encode(other)
        assert '{"at": "sky"}' in tokenizer.decode(encoder.parts(one)[1])


def test_what_a_template_does_not_show_is_refused_with_its_row(tokenizer: Any) -> None:
    plain = asked(("user", "Hi"), answer="hey")
    rows = [
        {**plain, "turn": {"tool_calls": [CALL]}},
        {**plain, "turn": {"reasoning_content": "so"}},
        {**plain, "tools": TOOLS},
        {"prompt": [*CALLED], "answer": "Blue."},
        plain,
    ]
    for template in ("none", FAMILIES["chatml"].text):
        with pytest.raises(RecipeError) as error:
            encode_stream(stream_of(train=rows), Encoder(tokenizer, template), None)
        told = [str(m).partition(":")[2].split(":")[0:2] for m in error.value.mistakes]
        assert [one[0].strip() for one in told] == [f"train row {n}" for n in (1, 2, 3, 4)]
        assert [one[1].strip() for one in told] == [
            "tool_calls", "reasoning_content", "tools", "tool_calls",
        ]  # fmt: skip


def test_a_call_is_compared_as_text(tokenizer: Any) -> None:
    encoder = Encoder(tokenizer, FAMILIES["qwen 3"].text)
    row = {**asked(("user", "The sky?"), answer=""), "turn": {"tool_calls": [CALL]}}
    assert encoder.answer_text(row) == (
        '<tool_call>\n{"name": "look", "arguments": {"at": "sky"}}\n</tool_call>'
    )
    assert encoder.answer_text(FINE) == "good"


def test_a_thought_goes_on_in_the_block_that_the_template_opens() -> None:
    tokenizer = of_family(FAMILIES["deepseek r1"])
    row = asked(("user", "Hi"), answer="<think>\nso\n</think>\n\nhey")
    assert text_of(tokenizer, Encoder(tokenizer), row) == (
        "<|bos|><|User|>Hi<|Assistant|><think>\n", "so\n</think>\n\nhey<|eos|>",
    )  # fmt: skip


def test_a_template_that_writes_signs_otherwise(tokenizer: Any) -> None:
    escapes = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{{ m.content | e }}"
        "{{ '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    tokenizer.chat_template = escapes
    row = asked(("system", "a < b"), ("user", "1 & 2"), answer="3 > 2")
    prompt, answer = text_of(tokenizer, Encoder(tokenizer), row)
    assert answer == "3 &gt; 2<|im_end|>"
    assert prompt + answer + "\n" == whole_of(tokenizer, row)


def test_the_answers_of_labels_are_those_of_rows() -> None:
    """Scoring shares a prompt among labels; the tokens are those that training saw."""
    for family in FAMILIES.values():
        encoder = Encoder(of_family(family))
        row = encoder.encode(FINE)
        assert encoder.prompt_ids(FINE) + encoder.answer_ids("good") == row["input_ids"]


def test_a_tokenizer_that_marks_the_beginning_of_a_text() -> None:
    """Sentencepiece puts a mark before the first word of a text, also of an answer alone."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    pieces = ["<unk>", "</s>", "<s>", "\u2581", "\u2581good", "good", "[", "I", "N", "S", "T", "]",
              "/", "\u2581[", "a", "\u2581a"]  # fmt: skip
    bpe = Tokenizer(models.Unigram([(p, -float(i)) for i, p in enumerate(pieces)], unk_id=0))
    bpe.normalizer = normalizers.Sequence(
        [normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")]
    )
    bpe.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token="</s>", bos_token="<s>", unk_token="<unk>"
    )
    tokenizer.chat_template = FAMILIES["llama 2"].text
    encoder = Encoder(tokenizer)
    ids = encoder.answer_ids("good")
    assert tokenizer.convert_ids_to_tokens(ids) == ["\u2581good", "\u2581", "</s>"]


def test_a_recipe_gives_the_template_its_variables(tmp_path: Path, tiny_model_dir: Path) -> None:
    from tiny_runs import write_recipe

    from perdure.models.chat import base_encoder
    from perdure.prepare import load_recipe

    template = tmp_path / "own.jinja"
    template.write_text(FAMILIES["qwen 3"].text)
    path = write_recipe(
        tmp_path, tiny_model_dir, model__chat_template=str(template),
        model__chat_template_kwargs={"enable_thinking": False},
    )  # fmt: skip
    recipe = load_recipe(path)
    assert base_encoder(recipe).prompt_text(FINE).endswith("<think>\n\n</think>\n\n")
    with pytest.raises(RecipeError, match=r"chat_template_kwargs: has no effect with"):
        load_recipe(path, ["model.chat_template=none"])
