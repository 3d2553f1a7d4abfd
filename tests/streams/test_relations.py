"""Relation rows: entities in all forms that data has them in, and markers that are wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import RecipeError
from perdure.recipe.data import DataConfig, StreamConfig
from perdure.streams import TaskStream, build_stream
from perdure.streams.cells import CellError
from perdure.streams.kinds.relations import marked, relation, unmarked

pytestmark = pytest.mark.unit

WORDS = ["Ann", "Lee", "works", "for", "Acme", ",", "as", "Ann", "said", "."]
TEXT = " ".join(WORDS)
MARKED = "[E11] Ann Lee [E12] works for [E21] Acme [E22] , as Ann said ."


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def of(tokens: Any, head: Any, tail: Any) -> str:
    return marked({"tokens": tokens, "h": head, "t": tail}, "tokens", "h", "t")


@pytest.mark.parametrize(
    ("tokens", "head", "tail"),
    [
        (WORDS, ["ann lee", "Q1", [[0, 1], [7]]], ["acme", "Q2", [[4]]]),  # FewRel
        (WORDS, {"text": "x", "type": "Q1", "indices": [[0, 1]]}, {"indices": [[4]]}),  # its hub
        (WORDS, [0, 2], [4, 5]),
        (WORDS, [[0, 1]], [[4]]),
        (WORDS, "Ann Lee", "acme"),
        (TEXT, [0, 7], [18, 22]),
        (TEXT, {"start": 0, "end": 7}, {"start": 18, "end": 22}),
        (TEXT, "Ann Lee", {"name": "Acme"}),
        (json.dumps(WORDS), "[0, 2]", '["acme", "Q2", [[4]]]'),  # in cells of a CSV file
        (TEXT, "[0, 7]", '{"start": 18, "end": 22}'),
    ],
)
def test_an_entity_in_each_form(tokens: Any, head: Any, tail: Any) -> None:
    assert of(tokens, head, tail) == MARKED


def test_a_marked_text_taken_apart() -> None:
    found = relation(MARKED)
    assert (found.head, found.tail) == ("Ann Lee", "Acme")
    assert (found.left, found.right) == ("", " , as Ann said .")
    assert found.left + found.middle + found.right == MARKED
    assert unmarked(MARKED) == TEXT
    close = "[E11]Ann Lee[E12] works for [E21]Acme[E22]."  # as some corpora mark them
    assert unmarked(close) == "Ann Lee works for Acme."
    assert relation(close)[:2] == ("Ann Lee", "Acme")
    turned = of(WORDS, [4, 5], [0, 2])
    assert turned == "[E21] Ann Lee [E22] works for [E11] Acme [E12] , as Ann said ."
    found = relation(turned)
    assert (found.head, found.tail, unmarked(turned)) == ("Acme", "Ann Lee", TEXT)
    assert of(MARKED, None, None) == MARKED  # marked already: no other column is read
    assert marked({"text": MARKED}, "text", "head", "tail") == MARKED
    # A name is a word of its own, and the first one that is.
    assert of("Annex of Ann and Bo", "Ann", "Bo").startswith("Annex of [E11] Ann [E12]")


@pytest.mark.parametrize(
    ("text", "what"),
    [
        (MARKED.replace("[E12] ", ""), "the entity marker [E12] is missing"),
        (MARKED + " [E21]", "the entity marker [E21] is there 2 times"),
        ("[E12] a [E11] and [E21] b [E22]", "the entity marker [E12] stands before [E11]"),
        ("[E11] a [E21] b [E22] c [E12]", "the two entities overlap"),
        ("[E11] [E12] and [E21] b [E22]", "there is no entity between [E11] and [E12]"),
    ],
)
def test_markers_that_are_wrong(text: str, what: str) -> None:
    with pytest.raises(CellError) as caught:
        of(text, None, None)
    assert caught.value.what == what
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("tokens", "head", "tail", "what"),
    [
        (TEXT, "Bob", "Acme", 'the entity "Bob" of "h" is not in the text'),
        (WORDS, [0, 11], [4, 5], '"h" goes from 0 to 11, and the text has 10 tokens'),
        (TEXT, [7, 7], [18, 22], '"h" goes from 7 to 7, and the text has'),
        (TEXT, ["ann", "Q1", [[0]]], "Acme", '"h" has numbers of tokens, and the text is no list'),
        (WORDS, ["ann", "Q1", [[]]], "Acme", '"h" has no token numbers'),
        (WORDS, [0, 5], [4, 5], "the two entities overlap"),
        (WORDS, "", "Acme", '"h" is empty'),
        (WORDS, 3.5, "Acme", 'the entity "3.5" of "h" is not in the text'),
        ([], "Ann", "Acme", '"tokens" is empty'),
    ],
)
def test_entities_that_are_not_there(tokens: Any, head: Any, tail: Any, what: str) -> None:
    with pytest.raises(CellError) as caught:
        of(tokens, head, tail)
    assert caught.value.what.startswith(what)


# ---- as a stream

ROWS = [
    {"tokens": [f"In{i}", "Ann", "met", "Bob"], "h": ["ann", "Q1", [[1]]], "t": "Bob",
     "relation": f"r{i % 4}"}
    for i in range(24)
]  # fmt: skip
COLUMNS = {"head": "h", "tail": "t", "label": "relation"}


def build(rows: list[dict[str, Any]], **data: Any) -> TaskStream:
    Path("train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"train": "train.jsonl", "format": "relations", "columns": COLUMNS, "tasks": 2}
    config = StreamConfig(data=DataConfig(**{**options, **data}))
    return build_stream(config, None, Path(), 0)


def test_a_stream_of_relations() -> None:
    stream = build(ROWS)
    assert [task.labels for task in stream] == [("r0", "r1"), ("r2", "r3")]
    row = next(row for row in stream.tasks[0].train if row["label"] == "r0")
    assert row["text"].endswith("[E11] Ann [E12] met [E21] Bob [E22]")
    assert {key: row[key] for key in ("head", "tail", "label")} == {
        "head": "Ann", "tail": "Bob", "label": "r0"
    }  # fmt: skip
    assert stream.scenario == "class-incremental"


def test_a_table_of_texts_with_names() -> None:
    lines = [f"In{i} Ann met Bob,Ann,Bob,r{i % 4}" for i in range(24)]
    Path("table.csv").write_text("\n".join(["sentence,head,tail,label", *lines]))
    stream = build(ROWS, train="table.csv", columns={"tokens": "sentence"})
    assert [task.labels for task in stream] == [("r0", "r1"), ("r2", "r3")]
    assert "[E11] Ann [E12] met [E21] Bob [E22]" in stream.tasks[1].test[0]["text"]


def test_wrong_rows_are_named_by_file_and_line() -> None:
    rows = [dict(row) for row in ROWS]
    rows[2]["t"] = "Bo"
    rows[5]["tokens"] = "[E11] Ann [E12] met [E21] Bob"
    rows[7]["tokens"] = "[E11] Ann [E12] met [E21] Bob [E22], [E11] Ann"
    del rows[8]["h"]
    with pytest.raises(RecipeError) as caught:
        build(rows)
    assert [mistake.what for mistake in caught.value.mistakes] == [
        'train.jsonl:3: the entity "Bo" of "t" is not in the text',
        "train.jsonl:6: the entity marker [E22] is missing",
        "train.jsonl:8: the entity marker [E11] is there 2 times",
        'train.jsonl:9: no "h", which other rows have',
    ]
    with pytest.raises(RecipeError, match=r'train.jsonl:1: no "head", and the text has no markers'):
        build(ROWS, columns={"label": "relation"})
    with pytest.raises(RecipeError) as caught:
        build(ROWS, columns={"head": "h", "tail": "tt", "label": "relation"})
    assert 'columns.tail: train.jsonl has no column "tt"' in str(caught.value)
