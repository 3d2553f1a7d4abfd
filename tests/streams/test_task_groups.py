"""`group:`: rows that belong together carry it, stay in one split, and are refused by name."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from perdure.errors import RecipeError
from perdure.recipe.data import StreamConfig, TaskConfig
from perdure.streams import Task, build_stream

pytestmark = pytest.mark.unit


def table(path: Path, rows: int, passage: Any = lambda i: f"p{i // 5}") -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label", "passage", "part"])
        for i in range(rows):
            writer.writerow([f"question {i}", "ab"[i % 2], passage(i), i % 2])


def built(folder: Path, **task: Any) -> Task:
    values = {"name": "t", "format": "labels", "train": "train.csv", **task}
    stream = StreamConfig(tasks=[TaskConfig(**values)])
    return build_stream(stream, None, folder, 0).tasks[0]


def test_rows_carry_their_group_and_one_of_several_columns(tmp_path):
    table(tmp_path / "train.csv", 60)
    table(tmp_path / "test.csv", 20)
    task = built(tmp_path, test="test.csv", group="passage")
    assert [row["group"] for row in task.test] == [f"p{i // 5}" for i in range(20)]
    task = built(tmp_path, test="test.csv", group="{passage} {part}")
    assert [row["group"] for row in task.test][:3] == ["p0 0", "p0 1", "p0 0"]


def test_a_task_without_group_keeps_its_rows_and_its_version(tmp_path):
    table(tmp_path / "train.csv", 60)
    task = built(tmp_path)
    assert {key for row in (*task.train, *task.test) for key in row} == {"prompt", "answer"}
    assert task.version == "e72d19f266bc"  # as it was before tasks had a group
    assert built(tmp_path, group="passage").version != task.version


def test_a_group_stays_in_one_split(tmp_path):
    table(tmp_path / "train.csv", 200)
    task = built(tmp_path, group="passage")
    splits = [{row["group"] for row in rows} for rows in (task.train, task.validation, task.test)]
    assert all(splits)
    assert not (splits[0] & splits[1])
    assert not (splits[0] & splits[2])
    assert not (splits[1] & splits[2])
    alone = built(tmp_path)
    passages = [
        {int(row["prompt"][0]["content"].split()[1]) // 5 for row in rows}
        for rows in (alone.train, alone.test)
    ]
    assert passages[0] & passages[1]  # without it they are torn apart


def test_an_empty_cell_belongs_to_no_other_row(tmp_path):
    table(tmp_path / "train.csv", 60)
    table(tmp_path / "test.csv", 10, lambda i: "" if i < 4 else "p")
    task = built(tmp_path, test="test.csv", group="passage")
    assert [row.get("group") for row in task.test] == [None] * 4 + ["p"] * 6


def test_a_line_without_the_key_belongs_to_no_other_row(tmp_path):
    lines = [
        {"text": f"question {i}", "label": "ab"[i % 2]} | ({"passage": 7} if i % 3 else {})
        for i in range(12)
    ]
    table(tmp_path / "train.csv", 60)
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    task = built(tmp_path, test="test.jsonl", group="passage")
    assert [row.get("group") for row in task.test] == [None, "7", "7"] * 4


def test_a_column_that_is_not_there_is_told_with_those_that_are(tmp_path):
    table(tmp_path / "train.csv", 60)
    with pytest.raises(RecipeError) as caught:
        built(tmp_path, group="pasage")
    text = str(caught.value)
    assert text.startswith("task t: group: ")
    assert 'train.csv has no column "pasage"' in text
    assert 'did you mean "passage"?' in text


def test_braces_that_do_not_pair_are_a_mistake_of_the_recipe():
    with pytest.raises(ValidationError, match="braces do not pair"):
        TaskConfig(name="t", train="train.csv", group="{passage")
