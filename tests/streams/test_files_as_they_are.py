"""Files as spreadsheets and people write them: what is recognised, left out, counted and told."""

from __future__ import annotations

import gzip
import hashlib
import json
import logging
import os
import pickle
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from perdure.audit.score_files import Wanted, read_scores
from perdure.commands.route import requests_in
from perdure.errors import DataError, RecipeError, UsageError
from perdure.extension import _file as extension_file
from perdure.recipe.data import StreamConfig, TaskConfig
from perdure.recipe.general import GeneralConfig
from perdure.streams import TaskStream, build_stream, kinds
from perdure.streams.cells import folded
from perdure.streams.task import PlacedRow, Task, place_of
from perdure.streams.text_files import DecodingError, decode, find_delimiter
from perdure.streams.text_files import told as recognised
from perdure.streams.unlabelled import Unlabelled

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.WARNING, logger="perdure")
    return caplog


def build(seed: int = 0, **keys: Any) -> TaskStream:
    """A stream of one labelled task on train.csv of the current folder."""
    config = TaskConfig(**{"name": "a", "train": "train.csv", "format": "labels", **keys})
    return build_stream(StreamConfig(tasks=[config]), None, Path(), seed)


def whole(**keys: Any) -> Task:
    """The task of which all rows are in each split, so that none is held out."""
    train = keys.get("train", "train.csv")
    return build(**{"test": train, "validation": train, **keys}).tasks[0]


def mistakes(**keys: Any) -> list[str]:
    with pytest.raises(RecipeError) as caught:
        build(**keys)
    return str(caught.value.whole()).split("\n")[:-1]


def pairs(task: Task) -> list[tuple[str, str]]:
    return [(row["prompt"][-1]["content"], row["answer"]) for row in task.train]


# ---- delimiter


@pytest.mark.parametrize(
    ("name", "sign", "words"),
    [
        ("train.csv", ";", "a semicolon"), ("train.csv", "\t", "a tab"),
        ("train.csv", "|", "a bar"), ("train.tsv", ",", "a comma"),
    ],
)  # fmt: skip
def test_the_delimiter_is_recognised_and_told_once(
    told: pytest.LogCaptureFixture, name: str, sign: str, words: str
) -> None:
    """Also where texts are full of another one."""
    lines = [f"Review{sign}Rating", f'"One, two; three|four"{sign}good', f"All bad{sign}bad"]
    Path(name).write_text("\n".join(lines) + "\n")
    task = whole(train=name, columns={"text": "Review", "label": "Rating"})
    assert pairs(task) == [("One, two; three|four", "good"), ("All bad", "bad")]
    assert told.messages[0] == (
        f"{name}: cells separated by {words}, as recognised; if that is wrong, give the task's "
        "`delimiter`"
    )
    assert sum("as recognised" in line for line in told.messages) == 1


def test_a_cell_may_be_as_long_as_a_document() -> None:
    """Python's own reader takes 131,072 characters, unless it is told otherwise."""
    import csv

    csv.field_size_limit(131_072)
    long = "word, " * 50_000
    Path("t.csv").write_text(f'text,label\n"{long}",a\nb,c\nd,e\n')
    assert (long, "a") in pairs(whole(train="t.csv"))


def test_a_usual_file_is_read_as_ever_and_nothing_is_told(told: pytest.LogCaptureFixture) -> None:
    Path("train.csv").write_text("text,label\na; b; c,x;y\nd; e; f,x;z\n")
    assert [label for _, label in pairs(whole())] == ["x;y", "x;z"]
    assert not any("recognised" in line for line in told.messages)


def test_a_key_names_the_delimiter(told: pytest.LogCaptureFixture) -> None:
    Path("train.csv").write_text("text:label\na,b;c:x\nd:y\n")
    assert pairs(whole(delimiter=":")) == [("a,b;c", "x"), ("d", "y")]
    Path("train.csv").write_text("text\tlabel\na\tx\nd\ty\n")
    for tab in ("tab", "\\t", "\t"):
        assert pairs(whole(delimiter=tab)) == [("a", "x"), ("d", "y")]
    assert not any("recognised" in line for line in told.messages)


def test_a_first_line_that_names_the_delimiter_for_excel(told: pytest.LogCaptureFixture) -> None:
    Path("train.csv").write_bytes(b"\xef\xbb\xbfsep=;\r\ntext;label\r\na;x\r\nb;y;z\r\nc;y\r\n")
    assert mistakes()[0] == "train.csv:4: 3 cells, but the header has 2"


def test_where_the_columns_are_misspelt_the_header_still_decides() -> None:
    assert find_delimiter("Review;Rating\na;b\n", ",", ("text",)).delimiter == ";"
    assert find_delimiter("Review, long;Rating\na;b\n", ",", ("Rating",)).delimiter == ";"
    assert find_delimiter("text\na, b\n", ",", ("text",)).delimiter == ","
    assert find_delimiter("", ",", ("text",)).delimiter == ","
    Path("train.csv").write_text("Review;Rating\na;b\n")
    assert "  columns there are: Review, Rating" in mistakes()


def test_a_header_of_one_cell_is_told_with_the_key() -> None:
    Path("train.csv").write_text("text:label\na:b\n")
    assert "  the header is one cell: name what separates the cells, `delimiter`" in mistakes()


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"delimiter": ";;"}, "delimiter: ';;' is no single sign that can separate cells"),
        ({"encoding": "cp1525"}, 'encoding: "cp1525" is no encoding of text that Python knows'),
        ({"encoding": "hex"}, 'encoding: "hex" is no encoding of text that Python knows'),
        ({"delimiter": ";", "train": "a.jsonl"}, "delimiter: has no effect: it is of files ending"),
        ({"encoding": "utf-8", "dataset": "a/b"}, "encoding: has no effect: it is of files ending"),
    ],
)
def test_keys_that_say_nothing_are_refused(keys: dict[str, str], words: str) -> None:
    with pytest.raises(ValueError, match=next(iter(keys))) as caught:
        TaskConfig(**{"name": "a", "train": "a.csv", **keys})
    assert words in str(caught.value)


# ---- encoding

SENTENCES = {
    "cp1252": "Größe – wirklich schön;gut\nC’est très bien fait;bon\n",
    "cp1250": "Zażółć gęślą jaźń, źle;dobre\nŁódź jest piękna;bad\n",
    "cp1251": "Хороший товар, берите;да\nПлохой товар;нет\n",
    "cp932": "これは良い商品ですから買います;良い\n悪いですね、とても残念です;悪い\n" * 4,
    "gb18030": "这个产品很好，我很喜欢;好\n质量很差，不推荐购买;坏\n" * 4,
    "utf-16": "Größe – wirklich schön;gut\n日本;bon\n",
    "utf-16-le": "Größe – wirklich schön;gut\nC’est très bien fait;bon\n",
}


@pytest.mark.parametrize("encoding", SENTENCES)
def test_the_encoding_is_recognised(told: pytest.LogCaptureFixture, encoding: str) -> None:
    text = "text;label\n" + SENTENCES[encoding]
    Path("train.csv").write_bytes(text.encode(encoding))
    expected = [tuple(line.split(";")) for line in SENTENCES[encoding].splitlines()]
    assert pairs(whole()) == expected
    if encoding == "utf-16":  # its byte order mark says so: it is no guess
        assert "read as" not in told.messages[0]
    else:
        assert f"train.csv: read as {encoding} (" in told.messages[0]
        assert "cells separated by a semicolon, as recognised" in told.messages[0]
        assert told.messages[0].endswith("give the task's `encoding` and `delimiter`")
    Path("again.csv").write_bytes(text.encode(encoding))
    told.clear()
    assert pairs(whole(train="again.csv", encoding=encoding, delimiter=";")) == expected
    assert not any("recognised" in line for line in told.messages)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_plain_letters_in_utf_16_without_a_mark_are_no_utf_8_full_of_nuls(
    encoding: str, told: pytest.LogCaptureFixture
) -> None:
    Path("train.csv").write_bytes("text,label\nfine,good\npoor,bad\n".encode(encoding))
    assert pairs(whole()) == [("fine", "good"), ("poor", "bad")]
    assert f"train.csv: read as {encoding}, as recognised" in told.messages[0]
    assert decode(b"one\0two \0 three") == ("one\0two \0 three", "")


def test_json_lines_and_text_in_another_encoding() -> None:
    Path("train.jsonl").write_bytes(
        '{"text": "Größe – schön", "label": "größer"}\n{"text": "b", "label": "c"}\n'.encode(
            "cp1252"
        )
    )
    assert pairs(whole(train="train.jsonl"))[0] == ("Größe – schön", "größer")


def test_damaged_utf_8_is_not_taken_for_something_else() -> None:
    """One broken byte among good ones: all other letters would come out wrong."""
    raw = "Größe, schön\nüber\n".encode() + b"gr\xfcn\n"
    with pytest.raises(DecodingError, match="not UTF-8: byte 0xfc") as caught:
        decode(raw)
    assert caught.value.line == 3
    with pytest.raises(DecodingError, match="not utf-8: byte 0xfc"):
        decode(raw, "UTF-8")
    assert decode(raw, "latin-1")[0].endswith("grün\n")


def test_an_encoding_that_is_named_and_wrong() -> None:
    Path("train.csv").write_bytes("text,label\na,b\nÄ,c\n".encode("utf-16"))
    assert mistakes(encoding="ascii")[:2] == [
        "train.csv:1: not ascii: byte 0xff",
        "  name the right `encoding`",
    ]


# ---- empty rows: one rule


def test_an_empty_row_is_left_out_and_counted_whatever_the_source(
    tmp_path: Path, told: pytest.LogCaptureFixture
) -> None:
    import pyarrow
    from pyarrow import parquet

    records = [
        {"text": "a", "label": "x"}, {"text": "", "label": "x"}, {"text": "b", "label": None},
        {"text": " ", "label": " "}, {"text": "c", "label": "y"},
    ]  # fmt: skip
    lines = ["text,label", "a,x", ",x", "b,", " , ", "c,y"]
    Path("a.csv").write_text("\n".join(lines))
    Path("a.tsv").write_text("\n".join(lines).replace(",", "\t"))
    Path("a.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    Path("set").mkdir()
    for path in ("a.parquet", "set/train.parquet"):
        parquet.write_table(pyarrow.Table.from_pylist(records), path)
    places = {
        "a.csv": "a.csv:3", "a.tsv": "a.tsv:3", "a.jsonl": "a.jsonl:2",
        "a.parquet": "a.parquet: row 2", "train": 'data set "set", train: row 2',
    }  # fmt: skip
    for train, place in places.items():
        told.clear()
        task = whole(train=train, **({"dataset": "set"} if train == "train" else {}))
        assert pairs(task) == [("a", "x"), ("c", "y")]
        assert told.messages[0] == (
            "task a: 3 of 5 rows are left out, as there is nothing in them "
            f'(the first: {place}: "text" is empty)'
        )


def test_rows_of_a_spreadsheet_without_anything_in_them(told: pytest.LogCaptureFixture) -> None:
    """Columns without a name, cells behind the last one, and objects without keys."""
    Path("train.csv").write_text("text;label;;\na;x;;\n;;;\n;\n\nb;y;;note\n")
    assert pairs(whole()) == [("a", "x"), ("b", "y")]
    assert "2 of 4 rows are left out" in told.messages[1]
    Path("t.jsonl").write_text('{"text": "a", "label": "x"}\n{}\n{"text": "b", "label": "y"}\n')
    told.clear()
    assert pairs(whole(train="t.jsonl")) == [("a", "x"), ("b", "y")]
    assert told.messages[0] == (
        "task a: 1 of 3 rows are left out, as there is nothing in them (the first: t.jsonl:2: the "
        "row is empty)"
    )


# ---- places, and rows that are there twice


def test_rows_carry_where_they_were_read_through_splits_and_caps() -> None:
    Path("train.csv").write_text("text,label\n" + "".join(f"t{i},l{i % 3}\n" for i in range(60)))
    (task,) = build(max_train_rows=20)
    rows = [*task.train, *task.validation, *task.test]
    assert len(rows) > 20
    for row in rows:
        number = int(row["prompt"][-1]["content"][1:])
        assert place_of(row) == f"train.csv:{number + 2}"


def test_a_rows_place_is_no_part_of_it() -> None:
    row = {"prompt": [{"role": "user", "content": "a"}], "answer": "b"}
    placed = PlacedRow(row, "a.csv:2")
    assert (placed, repr(placed), json.dumps(placed)) == (row, repr(row), json.dumps(row))
    again = pickle.loads(pickle.dumps(placed))
    assert (again, place_of(again), place_of({**placed})) == (row, "a.csv:2", "")


@pytest.mark.parametrize(
    ("seed", "caps", "version", "whole_hash"),
    [
        (0, {}, "d8f5eaa85fc8", "ccaa22a64fc5"),
        (0, {"max_train_rows": 6, "max_test_rows": 3}, "d086d2973adc", "f739905ff421"),
        (1, {}, "00e0b7d68b3c", "8a30e19c794c"),
        (1, {"max_train_rows": 6, "max_test_rows": 3}, "23111792ef6b", "f29ee1589024"),
        (2, {}, "a21ec23015ad", "61a738bdb317"),
        (2, {"max_train_rows": 6, "max_test_rows": 3}, "bddafa146e0a", "1dbbad219bf4"),
    ],
)
def test_splits_and_draws_stay_as_they_were(
    seed: int, caps: dict[str, int], version: str, whole_hash: str
) -> None:
    """Values of version 0.1 before files were recognised: same seed, same rows, same order."""
    topics = ("fish", "bird", "tree")
    lines = (f"sentence {i} of forty,{topics[i % 3]}\n" for i in range(40))
    Path("train.csv").write_text("text,label\n" + "".join(lines))
    (task,) = build(seed, **caps)
    rows = repr([task.train, task.validation, task.test])
    assert task.version == version
    assert hashlib.sha256(rows.encode()).hexdigest()[:12] == whole_hash


def test_rows_that_are_there_twice_are_counted(told: pytest.LogCaptureFixture) -> None:
    Path("train.csv").write_text("text,label\na,x\nb,y\na,x\nA,x\na,y\nb,y\n")
    Path("test.csv").write_text("text,label\nb,y\na,z\nc,x\nc,x\n")
    build(test="test.csv", validation_share=0, labels=["x", "y", "z"])
    assert told.messages == [
        "task a: 4 of 6 train rows have the prompt of an earlier one (the first: train.csv:4, as "
        "train.csv:2), 2 of them equal in everything; each is used as often as it is there",
        "task a: 1 of 4 test rows have the prompt of an earlier one (the first: test.csv:5, as "
        "test.csv:4), 1 of them equal in everything; each is used as often as it is there",
        "task a: 2 of 4 test rows have a prompt that is trained on (the first: test.csv:2, as "
        "train.csv:3), 1 of them equal in everything; the score of these rows shows memory, "
        "not skill",
    ]


# ---- labels

FORMS = ["caf\u00e9", "cafe\u0301", "caf\u00e9\u200b", "\ufeffcaf\u00e9", "caf\u00e9\u00a0"]


def test_labels_are_compared_as_they_look() -> None:
    assert {folded(form) for form in FORMS} == {"caf\u00e9"}
    assert folded("good  day") == folded("good\u00a0day") == folded("good \u200bday") == "good day"
    assert folded("Good") != folded("good")


def test_one_label_in_several_forms_is_one_label(told: pytest.LogCaptureFixture) -> None:
    """The form that most rows have; of two that are as frequent, the shorter."""
    Path("train.jsonl").write_text(
        "".join(
            json.dumps({"text": f"t{i}", "label": label}) + "\n"
            for i, label in enumerate([*FORMS, "tea", "good  day", "good day", "good  day"])
        )
    )
    task = whole(train="train.jsonl")
    assert task.labels == ("caf\u00e9", "good  day", "tea")
    assert [answer for _, answer in pairs(task)] == ["caf\u00e9"] * 5 + ["tea"] + ["good  day"] * 3
    assert told.messages[0].startswith(
        "task a: labels that are written in several ways, which look alike, are read as one: "
    )


def test_declared_labels_are_found_in_every_form() -> None:
    lines = (json.dumps({"text": f"t{i}", "label": form}) + "\n" for i, form in enumerate(FORMS))
    Path("train.jsonl").write_text("".join(lines))
    task = whole(train="train.jsonl", labels=["cafe\u0301", "tea"])
    assert {answer for _, answer in pairs(task)} == {"cafe\u0301"}
    task = whole(train="train.jsonl", label_names={"cafe\u0301": "coffee", "t": "tea"})
    assert {answer for _, answer in pairs(task)} == {"coffee"}
    config = TaskConfig(name="a", train="a.csv", format="labels", labels=[*FORMS[:2], "tea"])
    (mistake,) = kinds.mistakes(config)
    assert mistake.key == ("labels", 1)
    assert mistake.what == "\"cafe\u0301\" looks the same as another label: 'caf\\xe9'"


def test_a_label_that_differs_only_in_case_is_named(told: pytest.LogCaptureFixture) -> None:
    Path("train.csv").write_text("text,label\na,good\nb,Good\nc,bad\n")
    assert mistakes(labels=["good", "bad"]) == [
        'train.csv:3: label "Good" is not one of the declared labels: it differs only in case '
        'from "good"',
        "  write both alike, or map it: label_names: {Good: good}",
    ]
    assert mistakes(label_names={"good": "+", "bad": "-"}) == [
        'train.csv:3: label "Good" is not in label_names: it differs only in case from "good"',
        "  write both alike, or list it in label_names too",
    ]
    told.clear()
    assert whole().labels == ("Good", "bad", "good")
    assert told.messages[0] == (
        'task a: the labels "Good" and "good" differ only in case and count as two; if they are '
        "one, map one to the other in label_names"
    )


def test_label_names_need_not_repeat_labels_that_already_are() -> None:
    Path("train.csv").write_text("text,label\na,cards\nb,Cards\nc,Travel\nd,travel\ne,cash\n")
    names = {"Cards": "cards", "Travel": "travel"}
    assert 'train.csv:6: label "cash" is not in label_names' in mistakes(label_names=names)
    task = whole(label_names=names, labels=["cards", "travel", "cash"])
    assert [answer for _, answer in pairs(task)] == ["cards", "cards", "travel", "travel", "cash"]
    Path("train.csv").write_text("text,label\na,yes\nb,no\n")
    task = whole(label_names={"yes": "no", "no": "yes"})  # what is listed counts first
    assert [answer for _, answer in pairs(task)] == ["no", "yes"]


def test_a_label_that_is_not_seen_is_empty(told: pytest.LogCaptureFixture) -> None:
    Path("train.csv").write_text("text,label\na,x\nb,\u200b\nc,y\n", "utf-8")
    assert pairs(whole()) == [("a", "x"), ("c", "y")]
    assert "1 of 3 rows are left out" in told.messages[0]


# ---- messages


def test_what_messages_quote_of_data_is_cut() -> None:
    huge = "x" * 1_000_000
    records = [
        {"text": "a", "label": huge},
        {"text": "b", "label": "good"},
        {"text": "c", "label": "bad"},
    ]
    Path("t.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    for keys in (
        {"labels": ["good", "bad"]}, {"labels": ["good", "y" * 100_000]},
        {"label_names": {"good": "g", "y" * 100_000: "b"}}, {"columns": {"text": "z" * 100_000}},
    ):  # fmt: skip
        lines = mistakes(train="t.jsonl", **keys)
        assert max(map(len, lines)) <= 2000
        if "columns" not in keys:
            assert f't.jsonl:1: label "{"x" * 80}... (1,000,000 characters)"' in lines[0]
    Path("t.jsonl").write_text(json.dumps({"text": "a", huge: "b"}) + "\n")
    assert max(map(len, mistakes(train="t.jsonl"))) < 2000
    Path("train.csv").write_text(f"{huge},{huge}\na,b\n")
    with pytest.raises(RecipeError) as caught:
        build()
    assert len(str(caught.value)) < 2000


def test_what_messages_quote_of_data_is_plain_text() -> None:
    """No escape sequence reaches the terminal."""
    Path("train.csv").write_text("text,label\na,\x1b]0;owned\x07\x1b[2J\nb,good\nc,bad\n")
    assert mistakes(labels=["good", "bad"])[0] == (
        r'train.csv:2: label "\x1b]0;owned\x07\x1b[2J" is not one of the declared labels'
    )


@pytest.mark.parametrize("encoding", [None, "latin-1", "utf-8"])
@pytest.mark.parametrize(
    ("raw", "what", "remedy"),
    [
        (gzip.compress(b'{"text": "a"}\n', mtime=0), "a gzip archive", "unpack it first"),
        (
            b"PK\x03\x04\x14\x00\x06\x00",
            "a zip archive or a spreadsheet",
            "export the sheet as CSV",
        ),
        (b"PAR1\x15\x04", "a Parquet file", "give it the ending .parquet"),
    ],
)
def test_a_file_that_is_no_text_says_what_it_is(
    raw: bytes, what: str, remedy: str, encoding: str | None
) -> None:
    """Whatever it is called: latin-1 would take every byte of it for a letter."""
    with pytest.raises(DecodingError, match=f"no text, but {what}") as caught:
        decode(raw, encoding)
    assert remedy in caught.value.remedy


def table(**columns: Any) -> None:
    parquet.write_table(pyarrow.table(columns), "train.parquet")


def test_cells_of_parquet_that_python_has_no_value_for() -> None:
    texts, labels = ["a", "b"], ["x", "y"]
    far = pyarrow.array([0, 10**17], pyarrow.timestamp("ms"))
    table(text=texts, label=labels, when=far)
    wrong = "\n".join(mistakes(train="train.parquet"))
    assert wrong.startswith('train.parquet: row 2: "when" cannot be read: ')
    assert "mend the cell, or leave the column out" in wrong
    no_text = pyarrow.array([b"a", b"\xff"]).cast(pyarrow.string(), safe=False)
    table(text=no_text, label=labels)
    wrong = "\n".join(mistakes(train="train.parquet"))
    assert wrong.startswith('train.parquet: row 2: "text" cannot be read: ')


def test_a_column_that_parquet_has_twice() -> None:
    """As a CSV file's header: which of them is meant nobody knows."""
    twice = pyarrow.table([["a"], ["b"], ["x"]], names=["text", "text", "label"])
    parquet.write_table(twice, "train.parquet")
    wrong = "\n".join(mistakes(train="train.parquet"))
    assert wrong.startswith("train.parquet: column twice: text\n  rename one of them")


@pytest.mark.parametrize(
    ("value", "kind"), [(date(2020, 1, 1), "a date"), (Decimal(1), "a Decimal"), (b"a", "bytes")]
)
def test_cells_that_are_no_text_have_a_remedy_that_helps(value: Any, kind: str) -> None:
    table(text=["a"], label=[value])
    wrong = "\n".join(mistakes(train="train.parquet"))
    assert f'"label" is {kind}, not text\n  write the column as text' in wrong


def test_what_is_recognised_of_a_file_without_keys_has_its_own_remedy() -> None:
    """Rows to answer have no recipe whose keys could settle it."""
    assert recognised("a.csv", delimiter=";", whose="").endswith(
        "save it with commas between cells"
    )
    assert recognised("a.csv", "read as cp1252", whose="").endswith("save it as UTF-8")
    both = recognised("a.csv", "read as cp1252", ";", whose="")
    assert both.endswith("save it as UTF-8 with commas between cells")


ODD = "one\u2028two\u2029three\x85four"
"""Signs at which Python's `splitlines` breaks a line, and which stand inside sentences."""


def test_a_line_ends_at_a_line_feed_whoever_reads_it(tmp_path: Path) -> None:
    text = f"{ODD}\x0bfive\x0csix"
    for ending, separator in ((".csv", ","), (".tsv", "\t")):
        lines = [f"text{separator}label", f"{text}{separator}a", f"{text} 2{separator}b"]
        Path(f"train{ending}").write_text("\n".join(lines) + "\n", encoding="utf-8")
        assert pairs(whole(train=f"train{ending}")) == [(text, "a"), (f"{text} 2", "b")]
    rows = [{"text": f"{ODD} {i}", "label": "ab"[i % 2], "score": 1.0, "id": str(i)}
            for i in range(8)]  # fmt: skip
    written = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    Path("train.jsonl").write_text(written, encoding="utf-8")
    texts = [str(row["text"]) for row in rows]
    assert [text for text, _ in pairs(whole(train="train.jsonl"))] == texts
    general = GeneralConfig(source="train.jsonl", replay_rows=4, held_out_rows=4)
    task = TaskConfig(name="a", train="train.jsonl", format="labels")
    found = build_stream(StreamConfig(tasks=[task]), general, Path(), 0).general
    assert found is not None
    assert sorted({*found.replay, *found.held_out}) == texts
    requests = requests_in(Path("train.jsonl"))
    assert [request[-1]["content"] for request in requests] == texts
    (scores,) = read_scores(Path("train.jsonl"), Wanted()).values()
    assert len(scores.items) == 8
    Path("more.txt").write_text("\n".join([text, text]) + "\n", encoding="utf-8")
    asked = Unlabelled(task).of_file(Path("more.txt"))
    assert [row["prompt"][-1]["content"] for row in asked if row is not None] == [text, text]


def test_a_pipe_is_no_file_whoever_reads_it() -> None:
    """Of a recipe's paths see tests/whole_recipes.py, of predict's and a recipe's own theirs."""
    os.mkfifo("pipe.jsonl")
    with pytest.raises(DataError, match=r"^pipe\.jsonl: is a pipe, not a file"):
        requests_in(Path("pipe.jsonl"))
    with pytest.raises(UsageError, match=r"^--data pipe\.jsonl: is a pipe, not a file"):
        extension_file(Path("pipe.jsonl"))
