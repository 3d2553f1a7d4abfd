"""The head runs where a kind's labels stand: in Perdure's trainer, extra passes and teachers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from perdure.engine.forward import head_options
from perdure.engine.session import TaskSession
from perdure.engine.trainer import PerdureTrainer
from perdure.models.chat import Encoder
from perdure.protocol.batch import LABELS_AT, ROWS, HostRows, collate
from perdure.protocol.method import Method, MethodConfig, Requires
from perdure.streams.task import Task

pytestmark = pytest.mark.unit

TAGS = [
    {"input_ids": [5, 6, 7], "labels": [2, -100, 4], "_labels_at": "own"},
    {"input_ids": [8, 9], "labels": [3, 1], "_labels_at": "own"},
]
PLACES = ([0, 0, 1, 1], [0, 2, 0, 1])
"""Row and column of each label of the rows."""
LABELS = torch.tensor([2, 4, 3, 1])


class Teacher(Method):
    requires = Requires(logits=True, teacher="previous")


class Keeps(nn.Module):
    """Takes the positions at which its head runs, as causal language models do."""

    def forward(self, input_ids: Tensor, logits_to_keep: Any = 0) -> None: ...


def by_hand(model: Any) -> Tensor:
    """Logits at the labels' own positions, (4, vocabulary), from a pass over the whole batch."""
    batch = collate(TAGS, 0)
    with torch.no_grad():
        logits = model(batch["input_ids"], batch["attention_mask"]).logits
    return logits[PLACES]


@pytest.fixture
def session(tiny: Any, tmp_path: Path) -> TaskSession:
    model, tokenizer = tiny
    task = Task("tags", TAGS, (), (), "exact_match")
    return TaskSession(
        model.eval(), Encoder(tokenizer), task, methods=[Teacher(MethodConfig())], cache=tmp_path
    )


@pytest.mark.parametrize(
    ("at", "kept"),
    [
        ("own", [[True, False, True], [True, True, False]]),
        ("next", [[False, True, False], [True, False, False]]),
    ],
)
def test_positions_that_the_head_is_told(at: str, kept: Any) -> None:
    batch = {**collate(TAGS, 0), LABELS_AT: at}
    assert head_options(Keeps(), batch, logits=True)["logits_to_keep"].tolist() == kept
    assert head_options(Keeps(), batch, logits=False) == {"logits_to_keep": 1}


def test_of_one_label_a_row_the_head_is_told_nothing() -> None:
    batch = collate([{"input_ids": [5, 6], "labels": 1}], 0)
    assert head_options(Keeps(), batch, logits=True) == {}
    assert head_options(Keeps(), batch, logits=False) == {}


def test_labels_that_the_trainer_has_moved_are_not_moved_again() -> None:
    batch = {"input_ids": torch.ones(1, 3), "shift_labels": torch.tensor([[4, -100, 5]])}
    found = head_options(Keeps(), {**batch, LABELS_AT: "next"}, logits=True)
    assert found["logits_to_keep"].tolist() == [[True, False, True]]


@pytest.mark.train
def test_an_extra_pass_and_a_teacher(session: TaskSession) -> None:
    with torch.no_grad():
        seen = session.forward(TAGS)
        again = session.frozen("previous")(seen.batch)
    assert seen.labels.tolist() == again.labels.tolist() == LABELS.tolist()
    torch.testing.assert_close(seen.logits, by_hand(session.model))
    torch.testing.assert_close(again.logits, by_hand(session.model))


@pytest.mark.train
def test_perdures_trainer(session: TaskSession, tmp_path: Path) -> None:
    args = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    model: Any = session.model
    trainer = PerdureTrainer(model=model, args=args)
    trainer.session = session
    batch = {**collate(TAGS, 0), ROWS: HostRows(TAGS), "_for_methods": 3}
    expected = nn.functional.cross_entropy(by_hand(model), LABELS)
    with torch.no_grad():
        torch.testing.assert_close(trainer.compute_loss(model, batch), expected)
