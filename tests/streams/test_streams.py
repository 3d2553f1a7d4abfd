"""Data from real files in every format; each way that data can be wrong, by its exact message."""

from __future__ import annotations

import json
import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from perdure.errors import SHOWN, DataError, RecipeError
from perdure.prepare import load_recipe
from perdure.recipe.data import FILE_TYPES, StreamConfig, TaskConfig
from perdure.recipe.general import GeneralConfig
from perdure.streams import STREAMS, Sizes, TaskStream, build_stream, cells, rows, sources
from perdure.streams import build as build_module
from perdure.streams.named import demo
from perdure.streams.tables import shown

pytestmark = pytest.mark.unit

TOPICS = ("fish", "bird", "tree")
FORTY = [{"text": f"sentence {i} of forty", "label": TOPICS[i % 3]} for i in range(40)]


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    """Write records in the format of the path's ending."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), "utf-8")
    elif path.suffix == ".parquet":
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(pyarrow.Table.from_pylist(records), path)
    else:
        import csv

        with path.open("w", newline="", encoding="utf-8") as file:
            delimiter = "\t" if path.suffix == ".tsv" else ","
            writer = csv.DictWriter(file, list(records[0]), delimiter=delimiter)
            writer.writeheader()
            writer.writerows(records)
    return path


def build(folder: Path, seed: int = 0, **task: Any) -> TaskStream:
    """Build a stream of one task, "animal"; `train` is train.csv unless given."""
    config = TaskConfig(**{"name": "animal", "train": "train.csv", **task})
    return build_stream(StreamConfig(tasks=[config]), None, folder, seed)


def mistakes(folder: Path, **task: Any) -> str:
    """Return the error's text without the line that every RecipeError ends in."""
    with pytest.raises(RecipeError) as caught:
        build(folder, **task)
    assert caught.value.exit_code == 2
    assert all(isinstance(mistake, DataError) for mistake in caught.value.mistakes)
    text = str(caught.value)
    assert text.endswith("\n  nothing was loaded or written")
    return text.removesuffix("\n  nothing was loaded or written")


def said(row: dict[str, Any]) -> str:
    return row["prompt"][-1]["content"]


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # messages name paths relative to the working folder


# ---- what is read ----


@pytest.mark.parametrize("ending", [".jsonl", ".csv", ".tsv", ".parquet"])
def test_every_file_format_gives_the_same_rows(tmp_path: Path, ending: str) -> None:
    records = [
        {"question": 'comma, "quote"\nand line', "class": "fish"},
        {"question": "Größe 日本", "class": "bird"},
    ]
    write(tmp_path / f"train{ending}", records)
    columns = {"text": "question", "label": "class"}
    path = f"train{ending}"
    (task,) = build(
        tmp_path, format="labels", train=path, test=path, validation=path, columns=columns
    )
    assert task.train == [
        {"prompt": [{"role": "user", "content": records[0]["question"]}], "answer": "fish"},
        {"prompt": [{"role": "user", "content": "Größe 日本"}], "answer": "bird"},
    ]
    assert task.labels == ("bird", "fish")
    assert (task.metric, task.higher_is_better) == ("label_likelihood", True)


def test_endings_and_columns_are_those_the_recipe_knows() -> None:
    assert tuple(sources.FORMATS) == FILE_TYPES


def test_prompt_format_with_instruction(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", [{"prompt": f"{i} plus 1", "answer": i + 1} for i in range(9)])
    (task,) = build(tmp_path, instruction="Add.", max_new_tokens=4)
    row = next(row for row in task.train if row["answer"] == "3")
    assert row["prompt"] == [
        {"role": "system", "content": "Add."},
        {"role": "user", "content": "2 plus 1"},
    ]
    assert (task.metric, task.labels, task.max_new_tokens) == ("exact_match", (), 4)


def test_chat_takes_the_last_assistant_message_as_answer(tmp_path: Path) -> None:
    def messages(*pairs: str) -> list[dict[str, str]]:
        roles = ["system", "user", "assistant", "user", "assistant", "user"]
        return [{"role": r, "content": c} for r, c in zip(roles, pairs, strict=False)]

    turns = messages("Be kind.", "Hi", "Hello", "Name?", "Ada", "Thanks")
    write(tmp_path / "train.jsonl", [{"messages": turns}])
    write(tmp_path / "test.csv", [{"messages": json.dumps(turns[:3])}])
    (task,) = build(
        tmp_path,
        format="chat",
        train="train.jsonl",
        test="test.csv",
        validation="test.csv",
        instruction="Talk.",
    )
    first = {"role": "system", "content": "Talk.\n\nBe kind."}
    assert task.train == [{"prompt": [first, *turns[1:4]], "answer": "Ada"}]
    assert task.test == [{"prompt": [first, turns[1]], "answer": "Hello"}]
    (every,) = build(tmp_path, format="chat", train="train.jsonl", test="test.csv",
                     validation="test.csv", instruction="Talk.", train_on="all")  # fmt: skip
    assert every.train == [{"prompt": [first, turns[1]], "answer": "Hello"}, *task.train]
    assert every.test == task.test


@pytest.mark.parametrize("form", ["prompt", "labels"])
def test_train_on_all_needs_a_conversation(form: str) -> None:
    from perdure.streams import kinds

    (found,) = kinds.mistakes(TaskConfig(name="a", format=form, train="a.csv", train_on="all"))
    assert (found.key, found.what) == (("train_on",), f"has no effect with format: {form}")


CALL = {"type": "function", "function": {"name": "look", "arguments": {"at": "sky"}}}
CALLING = [
    {"role": "user", "content": "The sky?"},
    {"role": "assistant", "content": None, "tool_calls": [CALL], "reasoning_content": None},
    {"role": "tool", "content": "blue", "name": "look", "tool_calls": None},
    {"role": "assistant", "content": "Blue.", "tool_calls": None, "thinking": "It said so."},
]


def test_calls_thoughts_and_tools_of_a_conversation_are_kept(tmp_path: Path) -> None:
    rows = [
        {"messages": CALLING, "tools": json.dumps([{"type": "function"}])},
        {"messages": CALLING},
    ]
    write(tmp_path / "a.jsonl", rows)
    prompt = [
        CALLING[0],
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "blue", "name": "look"},
    ]
    last = {"prompt": prompt, "answer": "Blue.", "turn": {"reasoning_content": "It said so."}}
    (task,) = build(tmp_path, format="chat", train="a.jsonl", test="a.jsonl",
                    validation="a.jsonl")  # fmt: skip
    assert task.train == [{**last, "tools": [{"type": "function"}]}, last]
    (every,) = build(tmp_path, format="chat", train="a.jsonl", test="a.jsonl",
                     validation="a.jsonl", train_on="all")  # fmt: skip
    first = {"prompt": prompt[:1], "answer": "", "turn": {"tool_calls": [CALL]}}
    assert every.train[2:] == [first, last]
    assert every.test == task.test


def test_a_column_of_tools_that_is_named_must_be_there(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"messages": CALLING, "functions": [{"type": "function"}]}] * 4)
    sources = {"format": "chat", "train": "a.jsonl", "test": "a.jsonl", "validation": "a.jsonl"}
    (task,) = build(tmp_path, **sources, columns={"tools": "functions"})
    assert task.train[0]["tools"] == [{"type": "function"}]
    with pytest.raises(RecipeError, match='has no column "function"'):
        build(tmp_path, **sources, columns={"tools": "function"})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"function_call": {"name": "f"}}, "message 2 has function_call, which is not read"),
        ({"tool_calls": "look"}, "message 2: tool_calls is no list"),
        ({"role": "user", "tool_calls": [CALL]}, "message 2 has tool_calls, but only the assist"),
    ],
)
def test_what_is_not_read_of_a_message_is_refused(
    tmp_path: Path, changes: dict[str, Any], told: str
) -> None:
    turns = [CALLING[0], {"role": "assistant", "content": "ok", **changes}]
    write(tmp_path / "a.jsonl", [{"messages": turns}, {"messages": CALLING, "tools": "look"}])
    with pytest.raises(RecipeError) as error:
        build(tmp_path, format="chat", train="a.jsonl", test="a.jsonl")
    assert f'a.jsonl:1: "messages": {told}' in str(error.value)
    assert 'a.jsonl:2: "tools" is no JSON' in str(error.value)


def test_label_names_replace_what_the_data_says(tmp_path: Path) -> None:
    records = [{"text": f"text {i}", "label": float(i % 2)} for i in range(20)]
    write(tmp_path / "train.parquet", records)
    (task,) = build(
        tmp_path, format="labels", train="train.parquet", label_names={"0": "no", "1": "yes"}
    )
    assert task.labels == ("no", "yes")
    assert {row["answer"] for row in task.train} == {"no", "yes"}


def test_a_text_made_of_several_columns(tmp_path: Path) -> None:
    """Of several cells some may be empty; braces of the text itself are written twice."""
    records = [
        {"premise": "It rains.", "hypothesis": "It is wet.", "n": 1.0, "label": "yes"},
        {"premise": "It rains.", "hypothesis": "", "n": 2.0, "label": "no"},
    ]
    write(tmp_path / "train.parquet", records)
    (task,) = build(
        tmp_path, format="labels", train="train.parquet", test="train.parquet",
        validation_share=0, columns={"text": "{n} {{a}}: {premise}\nSo: {hypothesis}"},
    )  # fmt: skip
    assert [said(row) for row in task.train] == [
        "1 {a}: It rains.\nSo: It is wet.",
        "2 {a}: It rains.\nSo: ",
    ]


def test_mistakes_of_a_text_made_of_several_columns(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", [{"a": "x", "b": "y", "label": "1"},
                                   {"a": " ", "b": "", "label": "2"},
                                   {"a": "", "b": "z", "label": "2"}])  # fmt: skip
    two = {"format": "labels", "test": "train.csv", "validation": "train.csv"}
    (task,) = build(tmp_path, columns={"text": "{a} {b}"}, **two)
    assert [said(row) for row in task.train] == ["x y", " z"]
    assert mistakes(tmp_path, format="labels", columns={"text": "It says {a}"}) == (
        'task animal: train: "1" is the only label\n  there is nothing to tell apart'
    )
    assert mistakes(tmp_path, format="labels", columns={"text": "{a} {bb} {c}"}) == (
        'task animal: columns.text: train.csv has no column "bb"\n'
        '  did you mean "b"?\n  columns there are: a, b, label\n'
        'task animal: columns.text: train.csv has no column "c"\n'
        "  columns there are: a, b, label"
    )


def test_byte_order_mark_blank_lines_and_windows_line_ends(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_bytes(
        "\ufeffprompt,answer\r\na,1\r\n\r\nb,2\r\nc,3\r\n".encode()
    )
    (tmp_path / "test.jsonl").write_bytes('\ufeff{"prompt": "d", "answer": "4"}\r\n\r\n'.encode())
    (task,) = build(tmp_path, test="test.jsonl", validation_share=0)
    assert [said(row) for row in task.train] == ["a", "b", "c"]
    assert [said(row) for row in task.test] == ["d"]
    assert task.validation == []


# ---- splits ----


def test_derived_splits_share_nothing_and_are_those_of_the_seed(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", FORTY)
    (task,) = build(tmp_path, format="labels")
    parts = [{said(row) for row in part} for part in (task.train, task.validation, task.test)]
    assert [len(part) for part in parts] == [28, 4, 8]  # 40 rows: 0.2 test, 0.1 validation
    assert parts[0] | parts[1] | parts[2] == {record["text"] for record in FORTY}
    assert build(tmp_path, format="labels").tasks[0] == task
    (other,) = build(tmp_path, format="labels", seed=1)
    assert {said(row) for row in other.test} != parts[2]


def test_derived_test_rows_do_not_depend_on_caps_or_row_order(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", FORTY)
    write(tmp_path / "back.csv", FORTY[::-1])
    (task,) = build(tmp_path, format="labels")
    (small,) = build(tmp_path, format="labels", max_train_rows=6, max_test_rows=3)
    (back,) = build(tmp_path, format="labels", train="back.csv")
    assert (len(small.train), len(small.test)) == (6, 3)
    assert all(row in task.train for row in small.train)
    assert all(row in task.test for row in small.test)
    assert sorted(map(said, back.test)) == sorted(map(said, task.test))
    write(tmp_path / "validation.csv", FORTY[:2])
    (given,) = build(tmp_path, format="labels", validation="validation.csv")
    assert given.test == task.test


def test_rows_of_one_prompt_stay_on_one_side(tmp_path: Path) -> None:
    records = [{"prompt": f"Prompt {i // 4}", "answer": str(i)} for i in range(40)]
    write(tmp_path / "train.csv", records)
    (task,) = build(tmp_path)
    prompts = [set(map(said, part)) for part in (task.train, task.validation, task.test)]
    assert sum(map(len, prompts)) == len(set.union(*prompts)) == 10


def test_cap_keeps_the_first_of_a_seeded_shuffle_in_file_order(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", FORTY)
    write(tmp_path / "test.csv", FORTY[:9])

    def texts(most: int | None) -> list[str]:
        task = build(tmp_path, format="labels", test="test.csv", max_test_rows=most).tasks[0]
        return [said(row) for row in task.test]

    everything, five, three = texts(None), texts(5), texts(3)
    assert everything == [record["text"] for record in FORTY[:9]]
    assert set(three) < set(five) < set(everything)
    assert five != everything[:5]
    assert five == [text for text in everything if text in five]


def test_a_test_row_that_is_trained_on_is_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path / "train.csv", FORTY)
    write(tmp_path / "test.csv", [{"text": "new", "label": "fish"}, FORTY[4]])
    with caplog.at_level(logging.WARNING, logger="perdure"):
        build(tmp_path, format="labels", test="test.csv", validation="test.csv")
    assert caplog.messages == [
        "task animal: 1 of 2 test rows have a prompt that is trained on (the first: test.csv:3, "
        "as train.csv:6), 1 of them equal in everything; the score of these rows shows memory, "
        "not skill",
        "task animal: 1 of 2 validation rows have a prompt that is trained on (the first: "
        "test.csv:3, as train.csv:6), 1 of them equal in everything; what methods measure on "
        "these rows shows memory, not skill",
        "task animal: 2 of 2 test rows have a prompt of the validation rows (the first: "
        "test.csv:2, as test.csv:2), 2 of them equal in everything; what a method chooses by "
        "these rows is not judged by others",
    ]


def test_version_changes_with_the_rows(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", FORTY)
    before = build(tmp_path, format="labels").tasks[0].version
    write(tmp_path / "train.csv", [*FORTY[:-1], {"text": "changed", "label": "fish"}])
    after = build(tmp_path, format="labels").tasks[0].version
    assert before != after
    assert len(before) == 12


def test_order(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", FORTY)
    tasks = [TaskConfig(name=n, train="train.csv", format="labels") for n in ("a", "b", "c")]
    stream = StreamConfig(tasks=tasks, order=["c", "a", "b"])
    assert [task.name for task in build_stream(stream, None, tmp_path, 0)] == ["c", "a", "b"]
    with pytest.raises(RecipeError, match='the task "b" is left out'):
        build_stream(StreamConfig(tasks=tasks, order=["c", "a"]), None, tmp_path, 0)
    with pytest.raises(RecipeError, match='no task is called "languag"\n  did you mean "language"'):
        build_stream(StreamConfig(name="demo", order=["languag"]), None, tmp_path, 0)


# ---- what can be wrong ----


def test_broken_json_names_the_line(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"prompt": "a", "answer": "1"}\n{"prompt": "b" "answer"}\n')
    assert mistakes(tmp_path, train="t.jsonl") == (
        "t.jsonl:2: broken JSON: Expecting ',' delimiter (column 16)\n"
        "  each line is one JSON object"
    )


def test_a_json_array_is_one_mistake(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('[\n  {"prompt": "a"},\n  {"prompt": "b"}\n]\n')
    assert mistakes(tmp_path, train="t.jsonl").count("t.jsonl:") == 1
    (tmp_path / "t.jsonl").write_text('["a"]\n')
    assert mistakes(tmp_path, train="t.jsonl") == (
        "t.jsonl:1: not a JSON object but a list\n"
        '  each line is one object, {"column": "cell", ...}'
    )


def test_a_tab_is_named_as_no_screen_shows_it(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("prompt\tanswer\na\tb\tc\n")
    assert mistakes(tmp_path, train="t.tsv") == (
        "t.tsv:2: 3 cells, but the header has 2\n  put cells with a tab in quotes"
    )


def test_csv_mistakes_name_the_line(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text('prompt,answer\n"two\nlines",1\nb,2,3\n"open,4\n')
    assert mistakes(tmp_path) == (
        "train.csv:4: 3 cells, but the header has 2\n"
        '  put cells with "," in quotes\n'
        "train.csv:5: broken CSV: unexpected end of data\n"
        '  a quote inside a quoted cell is written twice: "say ""hi"""'
    )
    (tmp_path / "train.csv").write_text("prompt,answer\na,b\nc\n")
    assert mistakes(tmp_path) == (
        'train.csv:3: 1 cells, but the header has 2\n  add what is missing: a row has 1 times ","'
    )
    (tmp_path / "train.csv").write_text("prompt,answer,answer\na,b,c\n")
    assert mistakes(tmp_path).startswith("train.csv:1: column twice in the header: answer")


def test_not_utf_8_names_the_line(tmp_path: Path) -> None:
    remedy = "save the file as UTF-8, or name the task's `encoding`"
    broken = "prompt,answer\nä,b\ngrüße,c\n".encode() + b"gr\xfcn,d\n"
    (tmp_path / "train.csv").write_bytes(broken)
    assert mistakes(tmp_path) == f"train.csv:4: not UTF-8: byte 0xfc\n  {remedy}"


def test_no_parquet_file(tmp_path: Path) -> None:
    (tmp_path / "t.parquet").write_text("prompt,answer\n")
    assert mistakes(tmp_path, train="t.parquet").startswith(
        "t.parquet: not a readable Parquet file: "
    )


@pytest.mark.parametrize("content", ["", "text,label\n", "\n\n"])
def test_empty_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "train.csv").write_text(content)
    assert mistakes(tmp_path, format="labels") == (
        "train.csv: empty: no rows\n  one row for each example is needed"
    )


def test_missing_file_names_the_near_one(tmp_path: Path) -> None:
    write(tmp_path / "trains.csv", FORTY)
    assert mistakes(tmp_path) == 'train.csv: no such file\n  did you mean "trains.csv"?'
    (tmp_path / "train.csv").mkdir()
    assert mistakes(tmp_path).startswith("train.csv: is a folder, not a file")


def test_missing_column_lists_those_there_are(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", [{"question": "a", "topic": "b"}] * 3)
    columns = {"text": "questoin", "label": "topic"}
    assert mistakes(tmp_path, format="labels", columns=columns) == (
        'task animal: columns.text: train.csv has no column "questoin"\n'
        '  did you mean "question"?\n'
        "  columns there are: question, topic"
    )
    assert mistakes(tmp_path, format="labels", columns={"label": "topic"}).endswith(
        "\n  name it in the recipe: columns: {text: your-column}"
    )


def test_column_missing_in_one_row(tmp_path: Path) -> None:
    write(tmp_path / "t.jsonl", [{"prompt": "a", "answer": "b"}, {"prompt": "c", "reply": "d"}])
    assert mistakes(tmp_path, train="t.jsonl") == (
        't.jsonl:2: no "answer", which other rows have\n  has: prompt, reply'
    )


def test_label_outside_the_declared_set(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", [*FORTY[:3], {"text": "x", "label": "fisch"}])
    assert mistakes(tmp_path, format="labels", labels=["fish", "bird", "tree"]) == (
        'train.csv:5: label "fisch" is not one of the declared labels\n'
        '  did you mean "fish"?\n'
        "  declared labels: fish, bird, tree"
    )


def test_test_label_that_training_never_shows(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", FORTY)
    write(tmp_path / "test.csv", [{"text": "x", "label": "stone"}])
    assert mistakes(tmp_path, format="labels", test="test.csv") == (
        'test.csv:2: label "stone" is not one of the labels of the training split\n'
        "  labels of the training split: bird, fish, tree"
    )


def test_value_without_a_label_name(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", [{"text": "x", "label": "2"}, {"text": "y", "label": "0"}])
    assert mistakes(tmp_path, format="labels", label_names={"0": "no", "1": "yes"}) == (
        'train.csv:2: label "2" is not in label_names\n  those there are: 0, 1'
    )


def test_a_single_label(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", [{"text": str(i), "label": "a"} for i in range(9)])
    assert mistakes(tmp_path, format="labels") == (
        'task animal: train: "a" is the only label\n  there is nothing to tell apart'
    )


def test_empty_prompts_and_answers_name_file_and_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    records = [
        {"prompt": " ", "answer": "a"},
        {"prompt": "b", "answer": ""},
        {"prompt": "c", "answer": None},
        {"prompt": ["d"], "answer": "e"},
        {"prompt": "f", "answer": float("nan")},
        {"prompt": "\ud800", "answer": "g"},
    ]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    with caplog.at_level(logging.WARNING, logger="perdure"):
        found = mistakes(tmp_path, train="t.jsonl").split("\n")
    assert [line for line in found if line[0] != " "] == [
        't.jsonl:4: "prompt" is a list, not text',
        't.jsonl:6: "prompt" has half a character (a lone surrogate)',
    ]
    assert caplog.messages == [
        "task animal: 4 of 6 rows are left out, as there is nothing in them "
        '(the first: t.jsonl:1: "prompt" is empty)'
    ]


@pytest.mark.parametrize(
    ("messages", "what"),
    [
        ([], '"messages" is no list of messages'),
        ("{", '"messages" is no JSON: '),
        ([{"role": "user"}], '"messages": message 1 has no role and content'),
        (
            [{"role": "usr", "content": "a"}],
            '"messages": message 1: role "usr" is unknown\n  did you mean "user"?',
        ),
        ([{"role": "user", "content": "a"}], '"messages" has no message of the assistant'),
        (
            [{"role": "assistant", "content": "a"}],
            '"messages" has no message of the user before the answer',
        ),
        (
            [{"role": "user", "content": "a"}, {"role": "assistant", "content": ""}],
            '"messages, message 2" is empty',
        ),
    ],
)
def test_broken_conversations(tmp_path: Path, messages: Any, what: str) -> None:
    write(tmp_path / "t.jsonl", [{"messages": messages}])
    assert mistakes(tmp_path, format="chat", train="t.jsonl").startswith(f"t.jsonl:1: {what}")


@pytest.mark.parametrize("content", ["", " \n", None, []])
def test_an_empty_system_turn_is_to_be_left_out(
    tmp_path: Path, content: Any, caplog: pytest.LogCaptureFixture
) -> None:
    empty = {"messages": [{"role": "system", "content": content}, ASKED, SAID]}
    write(tmp_path / "t.jsonl", [empty, empty])
    assert mistakes(tmp_path, format="chat", train="t.jsonl") == (
        't.jsonl:1: "messages, message 1" is empty\n'
        "  so it is in each row: leave the empty system turn out"
    )
    write(tmp_path / "t.jsonl", [empty, {"messages": [ASKED, SAID]}])
    with caplog.at_level(logging.WARNING, logger="perdure"):
        mistakes(tmp_path, format="chat", train="t.jsonl")
    assert '"messages, message 1" is empty: leave the empty system turn out)' in caplog.text


def test_too_few_rows_to_split(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", [{"prompt": "a", "answer": "b"}])
    assert mistakes(tmp_path) == (
        "task animal: train: 1 rows are too few to set some aside for testing\n"
        "  give `test` and `validation`, or more training rows"
    )


@pytest.mark.parametrize(
    ("rows", "what"),
    [
        ([("a", "b", "")] * 24, "all 24 rows are the same: none can"),
        ([("a", "b", ""), ("a", "c", "")], "all 2 rows ask the same: none can"),
        ([("a", "b", "x"), ("c", "d", "x")], "all 2 rows are of one group: none can"),
        ([("a", "b", ""), ("a", "b", ""), ("c", "d", "")], "3 rows are 2 different rows, too few"),
        ([("a", "b", "x"), ("c", "d", "x"), ("e", "f", "y")], "3 rows are 2 groups, too few"),
    ],
)
def test_rows_that_are_too_much_alike_to_split(
    tmp_path: Path, rows: list[tuple[str, ...]], what: str
) -> None:
    names = ("prompt", "answer", "book")
    write(tmp_path / "train.csv", [dict(zip(names, row, strict=True)) for row in rows])
    grouped = {"group": "book"} if rows[0][2] else {}
    more = "rows of more groups" if grouped else "more rows that differ"
    end = "be set aside for testing" if "none can" in what else "to set some aside for testing"
    assert mistakes(tmp_path, **grouped) == (
        f"task animal: train: {what} {end}\n  give `test` and `validation`, or {more}"
    )


def test_many_mistakes_of_one_file_are_counted(tmp_path: Path) -> None:
    write(tmp_path / "t.jsonl", [{"prompt": ["a"], "answer": "b"}] * 25)
    text = mistakes(tmp_path, train="t.jsonl")
    assert text.startswith('t.jsonl:1: "prompt" is a list')
    assert text.count('"prompt" is a list') == 1  # the same in each row
    assert text.endswith("  so it is in 25 rows: 1, 2, 3, ...")
    write(tmp_path / "l.csv", [{"text": "a", "label": f"x{n}"} for n in range(25)])
    text = mistakes(tmp_path, train="l.csv", format="labels", labels=["a", "b"])
    assert text.count("is not one of the declared labels") == SHOWN
    assert text.endswith(
        "l.csv: and 15 more mistakes\n  to list them all: perdure run RECIPE --all-mistakes"
    )
    with pytest.raises(RecipeError) as caught:
        build(tmp_path, train="t.jsonl")
    assert str(caught.value.whole()).count('"prompt" is a list') == 25


def test_all_mistakes_of_all_files_at_once_with_the_recipes_lines(tmp_path: Path) -> None:
    write(tmp_path / "a.csv", [{"prompt": "a", "answer": ""}])
    (tmp_path / "b.jsonl").write_text("{\n")
    write(tmp_path / "c.csv", [{"question": "a", "answer": "b"}])
    (tmp_path / "g.txt").write_text("one text only\n")
    (tmp_path / "recipe.yaml").write_text(
        "model: {path: none}\n"
        "method: sequential\n"
        "stream:\n"
        "  tasks:\n"
        "    - {name: a, train: a.csv}\n"
        "    - {name: b, train: b.jsonl}\n"
        "    - name: c\n"
        "      train: c.csv\n"
        "      columns: {prompt: questio}\n"
        "general: {source: g.txt}\n"
    )
    recipe = load_recipe("recipe.yaml")
    with pytest.raises(RecipeError) as caught:
        build_stream(recipe.stream, recipe.general, recipe.folder, recipe.seed)
    assert [mistake.what for mistake in caught.value.mistakes] == [
        'a.csv:2: "answer" is empty',
        "b.jsonl:1: broken JSON: Expecting property name enclosed in double quotes (column 2)",
        'recipe.yaml:9: stream.tasks.2.columns.prompt: c.csv has no column "questio"',
        "general.held_out_rows: 32 texts wanted, but g.txt has 1 for it",
        "general.replay_rows: 64 texts wanted, but g.txt has 0 for it",
    ]


# ---- general text ----


@pytest.mark.parametrize("ending", ["txt", "jsonl"])
def test_general_text_of_a_file(tmp_path: Path, ending: str) -> None:
    texts = [f"paragraph {i}\nof two lines" for i in range(9)]
    (tmp_path / "g.txt").write_text("\n\n".join([*texts, texts[0]]))
    write(tmp_path / "g.jsonl", [{"body": text} for text in [*texts, texts[0], ""]])
    write(tmp_path / "train.csv", FORTY)
    stream = StreamConfig(tasks=[TaskConfig(name="a", train="train.csv", format="labels")])

    def general(replay: int) -> Any:
        config = GeneralConfig(
            source=f"g.{ending}", column="body", replay_rows=replay, held_out_rows=4
        )
        return build_stream(stream, config, tmp_path, 0).general

    text = general(5)
    assert sorted(text.replay + text.held_out) == texts
    assert (len(text.replay), len(text.held_out)) == (5, 4)
    assert general(2).held_out == text.held_out
    assert general(2).replay == text.replay[:2]
    with pytest.raises(RecipeError, match=r"replay_rows: 6 texts wanted, but g\.\w+ has 5"):
        general(6)


def general_of(folder: Path, **options: Any) -> Any:
    write(folder / "train.csv", FORTY)
    stream = StreamConfig(tasks=[TaskConfig(name="a", train="train.csv", format="labels")])
    return build_stream(stream, GeneralConfig(**options), folder, 0).general


@pytest.mark.parametrize("ending", ["txt", "jsonl"])
def test_general_text_in_another_encoding(
    tmp_path: Path, ending: str, caplog: pytest.LogCaptureFixture, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    texts = [f"Größe – wirklich schön, C’est très bien fait {i}" for i in range(6)]
    text = "\n\n".join(texts)
    if ending == "jsonl":
        text = "".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in texts)
    (tmp_path / f"g.{ending}").write_bytes(text.encode("cp1252"))
    sizes = {"source": f"g.{ending}", "replay_rows": 4, "held_out_rows": 2}
    found = general_of(tmp_path, **sizes)
    assert sorted(found.replay + found.held_out) == texts
    (told,) = [m for m in caplog.messages if "recognised" in m]
    assert told.startswith(f"g.{ending}: read as cp1252 (")
    assert told.endswith("if that is wrong, give general's `encoding`")
    caplog.clear()
    assert general_of(tmp_path, **sizes, encoding="cp1252") == found
    assert not [m for m in caplog.messages if "recognised" in m]
    damaged = "Größe, schön über\n".encode() + b"gr\xfcn\n"
    (tmp_path / f"g.{ending}").write_bytes(damaged)
    with pytest.raises(RecipeError, match="save the file as UTF-8, or name general's `encoding`"):
        general_of(tmp_path, **sizes)


def test_general_text_is_measured_on_another_source(tmp_path: Path) -> None:
    mine, theirs = [f"mine {i}" for i in range(6)], [f"theirs {i}" for i in range(4)]
    (tmp_path / "mine.txt").write_text("\n\n".join([*mine, theirs[0]]))
    (tmp_path / "theirs.txt").write_text("\n\n".join(theirs))
    sizes = {"held_out_source": "theirs.txt", "held_out_rows": 4}
    text = general_of(tmp_path, source="mine.txt", replay_rows=6, **sizes)
    assert sorted(text.replay) == mine  # what is measured on is not replayed
    assert sorted(text.held_out) == theirs
    assert text.source.endswith("mine.txt; measured on " + shown(tmp_path / "theirs.txt"))
    only = general_of(tmp_path, source="none", **sizes)
    assert (only.replay, sorted(only.held_out)) == ((), theirs)
    with pytest.raises(RecipeError, match=r"held_out_rows: 5 texts wanted, but .* has 4 for it"):
        general_of(tmp_path, source="none", **{**sizes, "held_out_rows": 5})


@pytest.mark.parametrize(
    "options",
    [
        {}, {"source": "owner/texts", "split": "test"}, {"held_out_source": "pydoc"},
        {"source": "a/b.txt"}, {"source": "none", "held_out_source": "b.jsonl"},
        {"source": "a.txt", "split": "train"},  # as a run writes it out
        {"held_out_source": "a.txt", "encoding": "cp1252"},
        {"source": "none", "tasks": ["arc_easy"], "group": "passage"},
    ],
)  # fmt: skip
def test_a_source_of_general_text_is_taken(options: dict[str, Any]) -> None:
    assert list(GeneralConfig(**options).mistakes()) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"source": "data/texts.csv"}, 'source: "data/texts.csv" is no source of text'),
        ({"held_out_source": "o/texts"}, 'held_out_source: "o/texts" is no source of text'),
        ({"source": "a.txt", "subset": "en"}, "subset: has no effect without a hub data set"),
        ({"encoding": "cp1252"}, "encoding: has no effect: no source is a file"),
        ({"source": "a.txt", "encoding": "cp1525"}, 'cp1525" is no encoding of text that Python'),
        ({"group": "passage"}, "group: has no effect without tasks"),
        (
            {"held_out_source": "a.txt", "held_out_rows": 0},
            "held_out_source: has no effect with held_out_rows: 0",
        ),
    ],
)
def test_a_source_of_general_text_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError) as caught:
        GeneralConfig(**options)
    assert words in str(caught.value)


def test_general_text_of_a_hub_data_set(tmp_path: Path) -> None:
    """A folder is read by the same call; of its files no more rows than are asked for."""
    (tmp_path / "owner/texts").mkdir(parents=True)
    (tmp_path / "owner/old").mkdir()
    (tmp_path / "owner/old/old.py").write_text("import datasets\n")  # as sets were made before
    rows = [{"body": f"text {i}"} for i in range(40)]
    write(tmp_path / "owner/texts/train.jsonl", [*rows, rows[0], {"body": ""}])
    sizes = {"source": "owner/texts", "column": "body", "replay_rows": 6, "held_out_rows": 3}
    text = general_of(tmp_path, **sizes)
    every = {*text.replay, *text.held_out}
    assert (len(text.replay), len(text.held_out), len(every)) == (6, 3, 9)
    assert every <= {row["body"] for row in rows}
    assert every != {row["body"] for row in rows[:9]}  # drawn, not the first
    assert general_of(tmp_path, **sizes) == text
    assert text.source == "owner/texts"
    for changes, words in (
        ({"column": "txt"}, 'data set "owner/texts" has no column "txt"'),
        ({"split": "test"}, 'data set "owner/texts", split test: Bad split: test'),
        ({"source": "ada/none"}, 'general.source: data set "ada/none": the hub cannot be reached'),
        (
            {"source": "owner/old"},
            "split train: Dataset scripts are no longer supported, but found "
            "old.py\n  take a copy of it as Parquet",
        ),
        ({"replay_rows": 90}, "general.replay_rows: 90 texts wanted, but owner/texts has 37"),
    ):
        with pytest.raises(RecipeError) as caught:
            general_of(tmp_path, **{**sizes, **changes})
        assert words in str(caught.value)


def test_texts_of_the_hub_are_drawn_once(
    tmp_path: Path, monkeypatch: Any, caplog: pytest.LogCaptureFixture
) -> None:
    import datasets

    asked: list[str] = []

    def load(name: str, *_: Any, **options: Any) -> Any:
        assert options["streaming"]
        asked.append(name)
        return datasets.Dataset.from_list(
            [{"text": f"text {i}"} for i in range(60)]
        ).to_iterable_dataset()

    monkeypatch.setattr(datasets, "load_dataset", load)
    monkeypatch.setenv("PERDURE_CACHE", str(tmp_path / "cache"))
    hub = {"source": "owner/set-1.0", "held_out_rows": 5}
    few = general_of(tmp_path, replay_rows=4, **hub)
    assert general_of(tmp_path, replay_rows=4, **hub) == few
    assert asked == ["owner/set-1.0"]
    many = general_of(tmp_path, replay_rows=20, **hub)
    assert many.held_out == few.held_out  # however many are replayed
    assert many.replay[:4] == few.replay
    assert general_of(tmp_path, replay_rows=0, held_out_source="pydoc", source="owner/set-1.0")
    # A cache that is damaged is made again, with a line that says so.
    for file in (tmp_path / "cache" / "texts").glob("*.jsonl"):
        file.write_text(file.read_text().replace("text 1", "text X"))
    caplog.clear()
    before = len(asked)
    assert general_of(tmp_path, replay_rows=4, **hub) == few
    assert len(asked) == before + 1
    assert ".jsonl: damaged, so it is made again" in caplog.text
    assert general_of(tmp_path, replay_rows=4, **hub) == few
    assert len(asked) == before + 1


def test_a_run_finds_its_general_text_again(tmp_path: Path, monkeypatch: Any) -> None:
    from perdure.run import Run

    here = tmp_path / "here"
    (here / "owner/texts").mkdir(parents=True)
    write(here / "owner/texts/train.jsonl", [{"text": f"text {i}"} for i in range(9)])
    (here / "measured.txt").write_text("one\n\ntwo")
    write(here / "train.csv", FORTY)
    general = (
        "{source: owner/texts, held_out_source: measured.txt, replay_rows: 3, held_out_rows: 2}"
    )
    (here / "recipe.yaml").write_text(
        "model: {path: ada/none}\nmethod: sequential\n"
        "stream: {tasks: [{name: a, train: train.csv, format: labels}]}\n"
        f"general: {general}\n"
    )
    recipe = load_recipe(here / "recipe.yaml")
    first = build_stream(recipe.stream, recipe.general, recipe.folder, 0).general
    assert sorted(first.held_out) == ["one", "two"]
    Run.create(tmp_path / "run", recipe)
    monkeypatch.chdir(tmp_path)
    again = Run.open(tmp_path / "run").recipe
    text = build_stream(again.stream, again.general, again.folder, 0).general
    assert (text.replay, text.held_out) == (first.replay, first.held_out)
    named = load_recipe(here / "recipe.yaml", ["general.source=owner/set-1.0"], check_files=False)
    assert named.general.source == "owner/set-1.0"
    with pytest.raises(RecipeError, match=r"held_out_source: no such file: measure.txt"):
        load_recipe(here / "recipe.yaml", ["general.held_out_source=measure.txt"])


def test_general_text_of_python_is_disjoint() -> None:
    text = demo.pydoc_texts(0)
    assert min(len(text.replay), len(text.held_out)) >= 64
    paragraphs = [
        {paragraph for piece in side for paragraph in piece.split("\n\n")}
        for side in (text.replay, text.held_out)
    ]
    assert not paragraphs[0] & paragraphs[1]
    assert demo.pydoc_texts(0) == text
    assert demo.pydoc_texts(1) != text


# ---- built-in streams ----

READERS = {
    "questions": demo.chatterbot_questions,
    "languages": demo.chatterbot_languages,
    "names": demo.cldr_names,
    "codes": demo.cldr_codes,
}


@pytest.mark.parametrize("name", READERS)
def test_a_reader_deals_every_text_to_one_split(name: str) -> None:
    splits = READERS[name](0)
    texts = [" ".join(said(row).casefold().split()) for part in splits for row in part]
    assert len(texts) == len(set(texts))
    assert len(splits.train) > 2 * len(splits.test) > 4 * len(splits.validation) > 0
    assert READERS[name](0) == splits
    assert READERS[name](1) != splits


def test_built_in_rows_are_what_they_say() -> None:
    def answers(splits: demo.Splits) -> dict[str, str]:
        return {said(row): row["answer"] for part in splits for row in part}

    assert answers(demo.cldr_names(0))["Germany"] == "Deutschland"
    assert answers(demo.chatterbot_languages(0))["Wie geht es dir?"] == "German"
    assert answers(demo.chatterbot_questions(0))["who wrote frankenstein"] == "books"


@pytest.mark.parametrize("name", ["demo"])
def test_a_built_in_stream_is_complete(name: str) -> None:
    description, builder = STREAMS[name]
    stream = builder(0, Sizes(train=40, validation=8, test=20, replay=5, held_out=3))
    assert description
    assert stream.name == name
    assert (len(stream.general.replay), len(stream.general.held_out)) == (5, 3)
    for task in stream:
        assert (len(task.train), len(task.validation), len(task.test)) == (40, 8, 20)
        assert task.source
        train = set(map(said, task.train))
        assert not train & {said(row) for row in [*task.test, *task.validation]}
        assert {row["answer"] for row in task.train} <= set(task.labels) or not task.labels
    learned = {row["answer"] for task in stream for row in task.train}
    assert all(set(task.labels) <= learned for task in stream)  # no word that nobody teaches
    built = build_stream(StreamConfig(name=name), None, Path(), 0)
    assert built == builder(0, None)


def check_rows(stream: TaskStream, own: Sequence[Sequence[str]], count: int) -> None:
    for task, labels in zip(stream, own, strict=True):
        assert (len(task.train), len(task.validation), len(task.test)) == (count, 24, 60)
        assert task.metric == "label_likelihood"
        counts = [[row["answer"] for row in task.train].count(label) for label in labels]
        assert sum(counts) == count
        assert min(counts) >= 0.5 * count / len(labels)
        assert max(len(said(row)) for row in task.train) <= demo.DEMO_CHARACTERS


def test_the_demo_has_enough_short_balanced_rows_with_one_set_of_answers() -> None:
    """Among its own words alone a task that was forgotten may still look learned."""
    stream = demo.demo(0, Sizes(train=144, validation=24, test=60))
    kinds = ("country", "language", "currency", "date")
    check_rows(stream, [demo.FEW_LANGUAGES, kinds], 144)
    assert [task.name for task in stream] == ["language", "kind"]
    assert {task.labels for task in stream} == {(*demo.FEW_LANGUAGES, *kinds)}


def test_three_tasks_have_enough_short_balanced_rows() -> None:
    stream = demo.three_tasks(0, Sizes(train=144, validation=24, test=60))
    check_rows(stream, [task.labels for task in stream], 144)
    assert [task.name for task in stream] == ["topic", "language", "kind"]
    assert [len(task.labels) for task in stream] == [5, 8, 4]


@pytest.mark.process
def test_rows_are_the_same_under_another_hash_seed(tmp_path: Path) -> None:
    write(tmp_path / "train.csv", FORTY)
    program = (
        "import hashlib; from pathlib import Path\n"
        "from perdure.recipe.data import StreamConfig, TaskConfig\n"
        "from perdure.streams import build_stream\n"
        "own = StreamConfig(tasks=[TaskConfig(name='a', train='train.csv', format='labels')])\n"
        "for stream in (own, StreamConfig(name='demo')):\n"
        "    text = repr(build_stream(stream, None, Path(), 0))\n"
        "    print(hashlib.sha256(text.encode()).hexdigest())\n"
    )
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1


# ---- hub data sets ----


def test_data_set_folder_through_datasets(tmp_path: Path) -> None:
    """A folder is read by the same call as a hub data set, class names included."""
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=list(TOPICS))}
    )
    numbered = [{**record, "label": TOPICS.index(record["label"])} for record in FORTY]
    data = datasets.Dataset.from_list(numbered, features=features)
    (tmp_path / "animals").mkdir()
    data.to_parquet(tmp_path / "animals" / "train.parquet")
    (task,) = build(tmp_path, format="labels", dataset="animals", train="train")
    assert task.labels == tuple(sorted(TOPICS))
    by_text = {record["text"]: record["label"] for record in FORTY}
    assert all(by_text[said(row)] == row["answer"] for row in [*task.train, *task.test])
    for keys in (TOPICS, ("0", "1", "2"), ("0", "bird", "2")):  # names, numbers, some of both
        names = {key: f"a {topic}" for key, topic in zip(keys, TOPICS, strict=True)}
        (named,) = build(
            tmp_path, format="labels", dataset="animals", train="train", label_names=names
        )
        assert named.labels == ("a fish", "a bird", "a tree")
        assert all(f"a {by_text[said(row)]}" == row["answer"] for row in named.train)
    few = {"1": "a", "2": "b"}
    assert 'row 1: label "fish" is not in label_names\n  those there are: 1, 2' in mistakes(
        tmp_path, format="labels", dataset="animals", train="train", label_names=few
    )
    assert mistakes(tmp_path, format="labels", dataset="animals", train="trian").startswith(
        'task animal: train: data set "animals", split trian: Unknown split "trian".'
    )


def test_classes_that_are_called_by_numbers(tmp_path: Path) -> None:
    """Called "1" to "3", numbered 0 to 2: keys that are all names are names, others numbers."""
    stars = cells.ClassName(("1", "2", "3"), 0)
    assert (stars, stars.number, pickle.loads(pickle.dumps(stars)).classes) == (
        "1", 0, ("1", "2", "3")
    )  # fmt: skip
    words = ("bad", "fair", "good")
    for first in (0, 1):
        names = {str(i): word for i, word in enumerate(words, first)}
        assert [
            cells.answer_of(cells.ClassName(("1", "2", "3"), i), str(i + 1), names)
            for i in range(3)
        ] == list(words)


@pytest.mark.parametrize(
    ("caps", "train", "test"),
    [
        ({}, None, None),
        ({"max_train_rows": 3}, None, None),  # its test and validation rows come from it too
        ({"max_train_rows": 3, "test": "test"}, None, None),
        ({"max_train_rows": 3, "test": "test", "validation_share": 0}, 60, None),
        ({"max_train_rows": 3, "max_validation_rows": 2, "max_test_rows": 1}, 120, None),
        (
            {"max_train_rows": 3, "validation": "dev", "test": "test", "max_test_rows": 1},
            60,
            20,
        ),
    ],
)
def test_rows_that_are_enough(caps: dict[str, Any], train: int | None, test: int | None) -> None:
    task = TaskConfig(name="a", dataset="owner/set", **{"train": "train", **caps})
    assert rows.enough_rows(task, "train") == train
    if "test" in caps:
        assert rows.enough_rows(task, "test") == test


def test_of_a_large_set_of_the_hub_no_more_rows_are_read_than_are_enough(
    tmp_path: Path, monkeypatch: Any
) -> None:
    large = [{"text": f"row {i}", "label": TOPICS[i % 3]} for i in range(1, 401)]
    (tmp_path / "set").mkdir()
    write(tmp_path / "set" / "train.parquet", large)
    read: list[Any] = []
    monkeypatch.setattr(
        build_module,
        "to_rows",
        lambda table, *rest: read.append(table) or rows.to_rows(table, *rest),
    )
    caps = {"max_train_rows": 3, "max_validation_rows": 1, "max_test_rows": 2}
    wanted = {"format": "labels", "dataset": "set", "train": "train", **caps}
    (task,) = build(tmp_path, **wanted)
    (again,) = build(tmp_path, **wanted)
    (other,) = build(tmp_path, seed=1, **wanted)
    assert [len(table.records) for table in read] == [120, 120, 120]
    # Each is the row that its place says.
    for record in read[0].records:
        assert record.place == f'data set "set", train: row {record.values["text"][4:]}'
    spread = [int(record.values["text"][4:]) for record in read[0].records]
    assert spread == sorted(set(spread))
    assert min(spread) < 40
    assert max(spread) > 360
    assert (len(task.train), len(task.validation), len(task.test)) == (3, 1, 2)
    assert task == again
    assert task.version != other.version
    build(tmp_path, format="labels", dataset="set", train="train")
    assert len(read[-1].records) == 400


def test_empty_rows_of_a_hub_data_set_are_left_out_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its user cannot mend it, unlike a file."""
    records = [*FORTY, {"text": " ", "label": "bird"}, {"text": "a text", "label": None}]
    (tmp_path / "animals").mkdir()
    write(tmp_path / "animals" / "train.parquet", records)
    with caplog.at_level(logging.WARNING, logger="perdure"):
        (task,) = build(tmp_path, format="labels", dataset="animals", train="train")
    assert caplog.messages == [
        "task animal: 2 of 42 rows are left out, as there is nothing in them "
        '(the first: data set "animals", train: row 41: "text" is empty)'
    ]
    kept = [said(row) for row in [*task.train, *task.validation, *task.test]]
    assert sorted(kept) == sorted(record["text"] for record in FORTY)
    (tmp_path / "none").mkdir()
    write(tmp_path / "none" / "train.parquet", [{"text": "", "label": t} for t in TOPICS])
    assert mistakes(tmp_path, format="labels", dataset="none", train="train") == (
        'data set "none", train: row 1: "text" is empty\n'
        "  so it is in each row: name another column, or split"
    )


def test_hub_not_reachable(tmp_path: Path) -> None:
    """Offline as conftest.py sets it; both splits are named, the hub is asked once."""
    assert mistakes(tmp_path, format="labels", dataset="ada/none", train="train", test="test") == (
        'task animal: train: data set "ada/none": the hub cannot be reached: '
        "Couldn't reach 'ada/none' on the Hub (OfflineModeIsEnabled)\n"
        "  HF_HUB_OFFLINE is set: unset it to allow the download\n"
        "  or give local files instead of `dataset`: train: FILE.jsonl\n"
        'task animal: test: data set "ada/none": the hub cannot be reached: '
        "Couldn't reach 'ada/none' on the Hub (OfflineModeIsEnabled)\n"
        "  HF_HUB_OFFLINE is set: unset it to allow the download\n"
        "  or give local files instead of `dataset`: train: FILE.jsonl"
    )


# ---- contents in parts

ASKED = {
    "role": "user",
    "content": [{"type": "text", "text": "Is it"}, {"type": "text", "text": "fine?"}],
}
SAID = {"role": "assistant", "content": [{"type": "text", "text": "good"}]}


def test_texts_of_parts_are_one_text(tmp_path: Path) -> None:
    """Joined as transformers' own server joins them; the parts are kept for the template."""
    plain = [{"role": "user", "content": "Is it fine?"}, {"role": "assistant", "content": "good"}]
    write(tmp_path / "a.jsonl", [{"messages": turns} for turns in ([ASKED, SAID], plain)])
    (task,) = build(tmp_path, format="chat", train="a.jsonl", test="a.jsonl",
                    validation="a.jsonl")  # fmt: skip
    first, second = task.train
    assert [turn["content"] for turn in first["prompt"]] == ["Is it fine?"]
    assert first["prompt"][0]["parts"] == ["Is it", "fine?"]
    assert (first["answer"], first["turn"]) == ("good", {"parts": ["good"]})
    assert "parts" not in second["prompt"][0]
    assert "turn" not in second


@pytest.mark.parametrize(
    ("part", "what"),
    [
        ({"type": "image_url", "image_url": {"url": "x"}}, 'has a part of the type "image_url"'),
        ({"type": "image"}, 'has a part of the type "image"'),
        ({"text": "a"}, "a part of its content has no type"),
        ("a", "a part of its content has no type"),
        ({"type": "text"}, "a part of the type text has no text"),
    ],
)
def test_other_parts_are_named_with_file_and_row(tmp_path: Path, part: Any, what: str) -> None:
    bad = {"role": "user", "content": [{"type": "text", "text": "Look"}, part]}
    write(tmp_path / "t.jsonl", [{"messages": [ASKED, SAID]}, {"messages": [bad, SAID]}])
    told = mistakes(tmp_path, format="chat", train="t.jsonl")
    assert told.startswith('t.jsonl:2: "messages": message 1')
    assert what in told


@pytest.mark.unit
def test_labels_of_a_task_that_is_only_scored_are_its_test_rows(tmp_path: Path) -> None:
    from perdure.prepare import load_recipe, stream_of

    (tmp_path / "test.csv").write_text("text,label\ngood,yes\nbad,no\nfine,yes\n")
    task = "{name: seen, format: labels, learn: none, test: test.csv}"
    (tmp_path / "r.yaml").write_text(
        f"model: {{path: org/x}}\nmethod: sequential\nstream: {{tasks: [{task}]}}\n"
    )
    (found,) = stream_of(load_recipe(tmp_path / "r.yaml"))
    assert found.labels == ("no", "yes")
    assert (len(found.train), len(found.test)) == (0, 3)
