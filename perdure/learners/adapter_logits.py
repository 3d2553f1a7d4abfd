"""The part of the learner of classes that knows adapters of tasks: each head reads its own one's.

What a text's logits are under an adapter that stays is computed once: a text that is scored again
after each task passes the newest adapter alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from perdure.errors import TrainingError
from perdure.learners.class_features import BodyFeatures
from perdure.learners.training import PhaseTrainer
from perdure.models.features import TEXT, Features
from perdure.models.weights import evaluating
from perdure.processes import Progress
from perdure.streams.task import Row, Task

if TYPE_CHECKING:
    from perdure.protocol.step import Phase

Known = dict[str, Tensor]
"""Logits of a task's classes, by text."""


class AdapterLogits(BodyFeatures):
    """See the module; `perdure.learners.classification.ClassificationLearner` is the whole."""

    def trainer(self, task: Task, rows: Sequence[Row], phase: Phase, folder: Path) -> PhaseTrainer:
        """As of every learner; where classes of earlier tasks compete too, with their logits."""
        self._others.clear()
        if self._gives_others:
            # At once and in one order, so that a resumed run computes the same to the bit.
            found = self._old_logits([{TEXT: row["text"], **self.encode(row)} for row in rows])
            self._others.update(zip([row["text"] for row in rows], found, strict=True))
        return super().trainer(task, rows, phase, folder)

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """As of every learner; with the old classes' logits where they compete in training."""
        batch = super().collate(rows)
        if self._gives_others and all(TEXT in row for row in rows):
            for row in rows:
                if row[TEXT] not in self._others:  # alone: no other row of a batch decides its bits
                    self._others[row[TEXT]] = self._old_logits([row], apart=True)[0]
            batch["others"] = torch.stack([self._others[row[TEXT]] for row in rows])
        return batch

    @property
    def _gives_others(self) -> bool:
        model: Any = self.model
        return len(model.adapters) > 1 and not model.apart

    @cached_property
    def _others(self) -> Known:
        """Logits of all classes by text; -inf at those of the adapter at work."""
        return {}

    def _old_logits(self, rows: Sequence[Mapping[str, Any]], apart: bool = False) -> Tensor:
        """Logits of encoded rows under the adapters that are not at work, (rows, columns)."""
        model: Any = self.model
        found = torch.full((len(rows), len(model.owners)), float("-inf"))
        for task in model.adapters.keys() - {model.at_work}:
            found[:, model.columns(task)] = self._under(task, rows, None, apart)
        return found

    @torch.no_grad()
    def _logits(
        self, rows: Sequence[Row], progress: Progress | None, tasks: Collection[int] | None = None
    ) -> Tensor:
        """As of every learner of classes; each head's of its own adapter, where tasks have some."""
        model: Any = self.model
        if not model.adapters:
            return _numbers(super()._logits(rows, progress, tasks))
        found = torch.full((len(rows), len(model.owners)), float("-inf"))
        for task in sorted(model.adapters if tasks is None else tasks):
            known, texts = self._known_of(task), [row["text"] for row in rows]
            new = {row["text"]: row for row in rows if row["text"] not in known}
            if new:
                encoded = [self.encode(row) for row in new.values()]
                known.update(zip(new, self._under(task, encoded, progress), strict=True))
            found[:, model.columns(task)] = torch.stack([known[text] for text in texts])
        return _numbers(found)

    def _known_of(self, task: int) -> Known:
        """What is known under a task's adapter and head as they are; nothing is kept where no
        method is at work, as of a model that only answers."""
        model: Any = self.model
        if not self.methods:
            return {}
        state = model.fingerprint_of(task)
        if task not in self._answers or self._answers[task][0] != state:
            self._answers[task] = state, {}
        return self._answers[task][1]

    @cached_property
    def _answers(self) -> dict[int, tuple[str, Known]]:
        """By task, the state of its adapter and head, and what is known under it."""
        return {}

    @torch.no_grad()
    def _under(
        self,
        task: int,
        encoded: Sequence[Mapping[str, Any]],
        progress: Progress | None,
        apart: bool = False,
    ) -> Tensor:
        """Logits of a task's classes on the features of its own adapter, (rows, its classes)."""
        model: Any = self.model
        columns, self._needed = model.columns(task), self._needed + len(encoded)

        def run(batch: dict[str, Tensor]) -> Tensor:
            ids, mask = batch["input_ids"], batch["attention_mask"]
            features = model.features(ids, mask, batch.get("entity_starts"))
            return cast(Tensor, model.heads(features)[:, columns])

        # Without its text a row has no logits looked up for it.
        bare = [{k: v for k, v in row.items() if k != TEXT} for row in encoded]
        with evaluating(model), model.using(task), self.autocast():
            return self._in_batches(bare, run, progress, apart)

    def _asked(
        self, texts: Sequence[str], features: Features | None = None, drops: bool = False
    ) -> None:
        model: Any = self.model
        if features is not None or not model.adapters:  # else each is counted by adapter
            super()._asked(texts, features, drops)


def _numbers(logits: Tensor) -> Tensor:
    """Logits as they are. The loss of a step is looked at, and not the weights that its update
    leaves: of broken ones every class is as good as any other, and each score would be wrong.

    Raises:
        TrainingError: one of them is no number.
    """
    if bool(logits.isnan().any()):
        raise TrainingError(
            "scoring: the model gives NaN as logits",
            "its weights are broken; lower train.learning_rate, or those of head and body",
        )
    return logits
