"""Where a row's label stands is known to one function: next token, own position, one a row."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch
from torch import nn

import perdure
from perdure.protocol.batch import (
    LABELS_AT,
    ForwardOutput,
    HostRows,
    batch_labels_at,
    collate,
    label_places,
    labels_at,
    labels_of,
    model_inputs,
    row_targets,
    unlabelled,
)

pytestmark = pytest.mark.unit

NEXT = {"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}
OWN = {"input_ids": [5, 6, 7], "labels": [2, -100, 0], "_labels_at": "own"}
ROW = {"input_ids": [5, 6, 7], "labels": 3}


@pytest.mark.parametrize(
    ("row", "at", "targets", "count"),
    [
        (NEXT, "next", [6, 7, -100], 2),
        (OWN, "own", [2, -100, 0], 2),
        (ROW, "row", [3], 1),
        ({**ROW, "labels": torch.tensor(3)}, "row", [3], 1),
        ({**ROW, "labels": -100}, "row", [-100], 0),
    ],
)
def test_of_a_row(row, at, targets, count):
    assert labels_at(row) == at
    assert list(row_targets(row)) == targets
    assert labels_of(row) == count
    assert labels_of(unlabelled(row)) == 0
    assert labels_at(unlabelled(row)) == at


@pytest.mark.parametrize("row", [NEXT, OWN, ROW])
@pytest.mark.parametrize("by", ["rows", "batch"])
def test_a_batch_agrees_with_its_rows(row, by):
    short = {
        **row,
        "input_ids": [5, 6],
        "labels": row["labels"] if row is ROW else row["labels"][:2],
    }
    rows = [row, short]
    batch = collate(rows, pad_id=0)
    if by == "rows":
        out = ForwardOutput(nn.Linear(1, 1), batch, rows=rows)
    else:  # as in Perdure's own trainer, which has the rows in the batch
        out = ForwardOutput(nn.Linear(1, 1), {**batch, "_rows": HostRows(rows)})
    expected = [label for r in rows for label in row_targets(r) if label != -100]
    assert out.labels.tolist() == expected
    assert out.row_of.bincount(minlength=2).tolist() == [labels_of(r) for r in rows]


def test_logits_of_one_label_a_row():
    rows = [ROW, {**ROW, "labels": -100}, {**ROW, "labels": 1}]
    model = nn.Linear(1, 1)
    model.config = Config()
    out = ForwardOutput(model, collate(rows, 0), rows=rows)
    out.head = torch.arange(12.0).reshape(3, 4)
    torch.testing.assert_close(out.logits, out.head[[0, 2]])
    by_hand = nn.functional.cross_entropy(out.head[[0, 2]], torch.tensor([3, 1]), reduction="none")
    torch.testing.assert_close(out.nll, by_hand)


class Config:
    def get_text_config(self):
        return self


def test_a_batch_that_does_not_say_where_its_labels_stand_is_refused():
    batch = collate([OWN], 0)
    with pytest.raises(ValueError, match="nothing says where the labels of this batch stand"):
        _ = ForwardOutput(nn.Linear(1, 1), batch).labels
    assert ForwardOutput(nn.Linear(1, 1), {**batch, LABELS_AT: "own"}).labels.tolist() == [2, 0]
    with pytest.raises(ValueError, match="unlike places: \\['next', 'own'\\]"):
        batch_labels_at(collate([OWN, NEXT], 0), [OWN, NEXT])
    with pytest.raises(TypeError):
        label_places(batch["labels"])


def test_what_a_row_has_for_each_token_is_in_the_batch():
    rows = [
        {**NEXT, "token_type_ids": [0, 1, 1], "weight": [0.5, 1.0], "_text": [7, 8, 9]},
        {"input_ids": [5], "labels": [-100], "token_type_ids": [1], "weight": [2.0], "_text": [7]},
    ]
    batch = collate(rows, pad_id=3)
    assert set(batch) == {"input_ids", "attention_mask", "labels", "token_type_ids"}
    assert batch["token_type_ids"].tolist() == [[0, 1, 1], [1, 0, 0]]
    given = model_inputs({**batch, "shift_labels": 1, "logits_to_keep": 2, "_rows": 3})
    assert set(given) == {"input_ids", "attention_mask", "token_type_ids"}


def test_a_pass_that_is_cut_cuts_what_has_an_entry_for_each_row():
    rows = [ROW, ROW, {**ROW, "labels": 1}]
    batch = {**collate(rows, 0), "images": torch.arange(3.0), "scale": torch.tensor(2.0)}
    parts = ForwardOutput(nn.Linear(1, 1), batch, rows=rows).split([2, 1], [None, None])
    assert [part.batch["images"].tolist() for part in parts] == [[0, 1], [2]]
    assert [float(part.batch["scale"]) for part in parts] == [2, 2]


def test_tensors_of_a_batch():
    labels = torch.tensor([[-100, 6, 7], [-100, -100, 8]])
    assert label_places(labels, "next").tolist() == [[6, 7, -100], [-100, 8, -100]]
    assert label_places(labels, "own") is labels
    assert label_places(torch.tensor([4, 2]), "row").tolist() == [[4], [2]]


@pytest.mark.unit
def test_nobody_else_knows_where_a_label_stands() -> None:
    """No other module takes labels from the second on."""

    def shifts(source: str) -> list[str]:
        found = []
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.Subscript) or "labels" not in ast.unparse(node.value):
                continue
            if re.search(r"(^|[ (,])1:", ast.unparse(node.slice)):
                found.append(ast.unparse(node))
        return found

    assert shifts('x = batch["labels"][:, 1:]\ny = labels[..., 1:]\nz = labels[1:]') == [
        "batch['labels'][:, 1:]", "labels[..., 1:]", "labels[1:]",
    ]  # fmt: skip
    home = Path(perdure.__file__).parent
    every = {f: found for f in home.rglob("*.py") if (found := shifts(f.read_text("utf-8")))}
    assert set(every) == {home / "models/labels.py"}, every
