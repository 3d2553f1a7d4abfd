"""A trainer of a `transformers` classifier: its rows, its classes, and what it cannot do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from perdure.engine.trainer_rows import TrainerRows
from perdure.errors import UsageError
from perdure.models.anatomy import unwrapped
from perdure.protocol.labels import class_of
from perdure.protocol.method import Method, name_of

if TYPE_CHECKING:
    from transformers import Trainer

    from perdure.engine.session import TaskSession

_BATCH = 32


class ClassRows(TrainerRows):
    """As `TrainerRows`, of rows that have one class each: `labels` is its number."""

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        batch = self.batch(index)
        mask = batch.get("attention_mask")
        real = slice(None) if mask is None else mask[0].bool()
        row = {"input_ids": batch["input_ids"][0][real].tolist(), "labels": int(batch["labels"][0])}
        types = batch.get("token_type_ids")
        if torch.is_tensor(types) and types.any():  # of pairs; else they are the model's default
            row["token_type_ids"] = types[0][real].tolist()
        return row

    def check_labels(self, found: Mapping[str, Any]) -> None:
        labels = found["labels"]
        if labels.dim() != 1 or labels.is_floating_point():
            raise UsageError(
                f"the trainer's labels are no classes: their shape is {tuple(labels.shape)}, their "
                f"type {labels.dtype}",
                "a row has one label, the number of its class",
            )

    def _may_be_packed(self) -> bool:
        return False


class RowEncoder:
    """Gives back rows, which are encoded already."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        found = getattr(tokenizer, "pad_token_id", None)
        self.pad_id = 0 if found is None else int(found)

    def encode(self, row: Mapping[str, Any]) -> dict[str, Any]:
        return dict(row)


def is_classifier(model: Any) -> bool:
    """Whether a `transformers` model, wrapped or not, gives a row one class."""
    return "ForSequenceClassification" in type(unwrapped(model)).__name__


def refuse_for_classes(trainer: Trainer, methods: Sequence[Method]) -> None:
    """Raise `UsageError` for what cannot be done on this classifier, before rows are read."""
    config = unwrapped(trainer.model).config
    kind = config.problem_type or "single_label_classification"
    if config.num_labels < 2 or kind != "single_label_classification":
        who = ", ".join(name_of(m) for m in methods)
        raise UsageError(
            f"attach: {who}: the model predicts {config.num_labels} labels as {kind}, and methods "
            "read the class of a row",
            "num_labels of 2 or more and problem_type single_label_classification",
        )
    for method in methods:
        who = f"attach: {name_of(method)}"
        if method.requires.texts:
            raise UsageError(
                f"{who}: it replays general texts, of which a classifier predicts nothing",
                "use perdure run, where gere holds states on them with label_weight: 0",
            )
        if method.halves:
            raise UsageError(
                f"{who}: mix: half leaves half of the batch to kept rows, and the batch is the "
                "trainer's own",
                "write mix: on top, or use perdure run",
            )
        try:
            method.check([str(i) for i in range(config.num_labels)])
        except UsageError as error:
            raise UsageError(f"{who}: {error.what}", error.remedy) from error


def refuse_unscaled(trainer: Trainer, session: TaskSession, methods: Sequence[Method]) -> None:
    """Raise `UsageError` where each micro-batch's loss counts as a whole step's.

    Some classifiers take the step's number of labels and pass over it, so that the trainer adds up
    the micro-batches' means; the methods' losses would be that much too small beside it.
    """
    host: Any = trainer
    wholes = trainer.args.gradient_accumulation_steps
    if wholes == 1 or not host.model_accepts_loss_kwargs or host.compute_loss_func is not None:
        return
    row = next(iter(session.task.train))
    batch = {k: v for k, v in session.batch_of([row]).items() if not k.startswith("_")}
    model: Any = session.model
    training = model.training
    with torch.no_grad():
        model.eval()
        one, two = (float(model(**batch, num_items_in_batch=n).loss) for n in (1, 2))
        model.train(training)
    if abs(one - 2 * two) > 1e-3 * abs(one):
        raise UsageError(
            f"attach: {', '.join(name_of(m) for m in methods)}: {type(unwrapped(model)).__name__} "
            f"passes over num_items_in_batch, so that a step is the sum of its {wholes} "
            "micro-batches, not their mean",
            "set trainer.model_accepts_loss_kwargs = False before attach, or "
            "gradient_accumulation_steps=1",
        )


def classes_in(rows: Sequence[Mapping[str, Any]]) -> tuple[int, ...]:
    """Numbers of the classes that rows have, in order."""
    return tuple(sorted({c for row in rows if (c := class_of(row)) is not None}))


@torch.no_grad()
def accuracy(session: TaskSession, rows: Sequence[Mapping[str, Any]]) -> float:
    """Share of rows whose class has the highest logit."""
    right = count = 0
    for start in range(0, len(rows), _BATCH):
        seen = session.forward([dict(row) for row in rows[start : start + _BATCH]])
        right += int((seen.logits.argmax(-1) == seen.labels).sum())
        count += len(seen.labels)
    return right / max(count, 1)
