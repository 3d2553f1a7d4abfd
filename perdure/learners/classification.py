"""The learner of classes: a body with a head for each task, scored by one forward pass.

Both answers come from the same logits: all learned classes compete (class-incremental), or those
of the row's own task (task-incremental). The stream's scenario says which of them is the score,
and within which of them training's cross-entropy runs; the other one is recorded beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from perdure.errors import UsageError
from perdure.learners.base import Learner
from perdure.learners.heads_only import HeadsTrainer
from perdure.learners.kind import drawn
from perdure.learners.listener import Fitted
from perdure.learners.no_class import no_class_figures
from perdure.learners.training import PhaseTrainer
from perdure.models.class_rows import ClassEncoder, context_of
from perdure.models.classifier import Classifier, Heads, pooling_of, views
from perdure.models.classifier_files import load_classifier_weights, save_classifier
from perdure.models.features import TEXT, Features, state_key
from perdure.models.load import load_body
from perdure.models.random_state import seed_of
from perdure.models.weights import evaluating, fingerprint
from perdure.processes import Progress, rank
from perdure.scoring.answers import ranked
from perdure.scoring.score import TaskScore
from perdure.streams.kinds.classes import ACCURACY, AMONG_ALL, WITHIN_TASK
from perdure.streams.rows import row_key
from perdure.streams.task import Row, Task

if TYPE_CHECKING:
    from perdure.protocol.step import Phase
    from perdure.recipe.schema import Recipe

HEADS = r"^heads\."


class ClassificationLearner(Learner):
    """Trains a classifier whose head grows with each task, and scores it."""

    kind = "classification"
    features: Features | None = None
    """Those of the body as it is, while it stays."""

    @classmethod
    def load(cls, recipe: Recipe, precision: str) -> tuple[Any, Any]:
        """A body without its head, and no class yet; LoRA stands in the body."""
        body, tokenizer = load_body(recipe.model)
        pooling = pooling_of(body.config, recipe.model.pooling)
        width = body.config.hidden_size * (2 if pooling == "entity_starts" else 1)
        head = recipe.model.head
        if recipe.model.tuning == "lora":
            from perdure.models.adapters import attach_lora

            body = attach_lora(body, recipe.model.lora, task_type="FEATURE_EXTRACTION")
        kept = head.preallocate if isinstance(head.preallocate, int) else 0
        heads = Heads(width, head.type, head.scale, head.learn_scale, kept)
        return Classifier(body, pooling, heads), tokenizer

    @cached_property
    def classes(self) -> dict[str, int]:
        """Each class's number, which is its column."""
        return {name: number for number, name in enumerate(self.stream.classes)}

    @cached_property
    def reader(self) -> ClassEncoder:
        """Turns a row's text into token ids."""
        model: Any = self.model
        return ClassEncoder(
            self.tokenizer,
            self.recipe.model.template,
            self.recipe.train.max_length,
            model.pooling,
            context_of(model.config),
        )

    @property
    def pad_id(self) -> int:  # type: ignore[override]
        return self.reader.pad_id

    def check(self) -> None:
        """Raise `UsageError` for more classes than were allocated beforehand."""
        super().check()
        model: Any = self.model
        model.within = self.stream.scenario == "task-incremental"
        head = self.recipe.model.head
        if head.preallocate == "all" and not model.heads.classes:
            seed = seed_of(self.recipe.seed, "allocate")
            drawn(lambda: model.heads.allocate(len(self.classes)), seed)
        elif isinstance(head.preallocate, int) and 0 < head.preallocate < len(self.classes):
            raise UsageError(
                f"model.head.preallocate: {head.preallocate}: the stream has {len(self.classes)} "
                "classes",
                "write a higher number, or all, or 0: heads grow by themselves",
            )

    def fit(self, index: int) -> Fitted:
        """As any learner; then tell texts of its classes from texts of no class, if there are."""
        fitted = super().fit(index)
        if self.stream.tasks[index].learn == "none":
            return fitted
        model: Any = self.model
        with self.serving(), self.autocast():
            found = no_class_figures(
                self.stream,
                index + 1,
                lambda rows: self._logits(rows, None)[:, : model.heads.classes],
            )
        self.track(found)
        return replace(fitted, facts={**fitted.facts, **found})

    def begin_task(self, index: int) -> None:
        """Add a head for the classes of the task that no earlier one has."""
        model: Any = self.model
        new = [name for name, task in self.stream.classes.items() if task == index]
        model.grow(len(new), index)

    def rates(self, model: nn.Module) -> Mapping[str, Mapping[str, float]]:
        """The heads learn at a rate, and with a weight decay, of their own."""
        head = self.recipe.model.head
        return {HEADS: {"lr": head.learning_rate, "weight_decay": head.weight_decay}}

    def encode(self, row: Row) -> dict[str, Any]:
        """Token ids, and the number of the row's class as its one label."""
        if "input_ids" in row:
            return row
        ids = self.reader.encode(row)
        return {**ids, "labels": self.classes[row["label"]], TEXT: row["text"]}

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """A batch, with the entities' places where the feature is read from them, and with the
        features themselves where the body stays and they are known."""
        batch = super().collate(rows)
        if self.features is not None and all(self.features.has(row.get(TEXT, "")) for row in rows):
            batch["features"] = self.features.of([row[TEXT] for row in rows])
        if "entity_starts" in rows[0]:
            batch["entity_starts"] = torch.tensor([row["entity_starts"] for row in rows])
        return batch

    def save_weights(self, folder: Path) -> None:
        """Save body and heads each in a file of its own: a body that stays is stored once."""
        if rank() == 0:
            model: Any = self.model
            save_classifier(model, self.tokenizer, folder, self.recipe.model, list(self.classes))

    def saved_weights(self, folder: Path) -> dict[str, Tensor]:
        """What `save_weights` wrote; every tensor must have its place in the model."""
        return load_classifier_weights(self.model, folder)

    def score_task(self, task: Task, progress: Progress | None) -> TaskScore | None:
        """Score a task's test rows; None before its classes were learned."""
        model: Any = self.model
        own = [self.classes[name] for name in task.labels]
        if max(own) >= model.heads.classes:
            return None
        rows = list(task.test)
        logits = self._logits(rows, progress)
        among_all, within = (found.tolist() for found in views(logits, model.owners, own))
        names, right = list(self.classes), [self.classes[row["label"]] for row in rows]
        chosen = within if model.within else among_all
        items = [
            {
                "id": row_key(row),
                "score": float(guess == answer),
                "prediction": names[guess],
                "answer": row["label"],
                "prompt": row["text"],
                "among_all": names[every],
            }
            for row, guess, every, answer in zip(rows, chosen, among_all, right, strict=True)
        ]

        def share(found: Sequence[int]) -> float:
            return sum(a == b for a, b in zip(found, right, strict=True)) / len(right)

        beside = {AMONG_ALL: share(among_all)} if model.within else {WITHIN_TASK: share(within)}
        return TaskScore(share(chosen), ACCURACY.name, True, items, beside)

    answer = "class"

    def predict(self, rows: Sequence[Row], task: Task, within: Task | None) -> list[dict[str, Any]]:
        """The class of each row with its share of the softmax, and the three best."""
        model: Any = self.model
        learned = list(self.classes)[: model.heads.classes]
        names = learned if within is None else list(within.labels)
        with self.autocast():  # what stands for the label is not looked at
            logits = self._logits([{**row, "label": learned[0]} for row in rows], None)
        columns = logits[:, [self.classes[name] for name in names]]
        return [
            {"text": row["text"], **ranked(self.answer, names, line)}
            for row, line in zip(rows, columns, strict=True)
        ]

    # --- features of a body that stays

    def trainer(self, task: Task, rows: Sequence[Row], phase: Phase, folder: Path) -> PhaseTrainer:
        """Where no parameter of the body learns, a trainer of heads on features."""
        model: Any = self.model
        self.features = None  # of the weights as they were
        if any(p.requires_grad for p in model.body.parameters()) or self._look_inside():
            return super().trainer(task, rows, phase, folder)
        features = self._features_now()
        features.add([row["text"] for row in rows])
        self.features = features
        if self.state.num_processes > 1:
            return super().trainer(task, rows, phase, folder)
        self.trainer_class = HeadsTrainer
        try:
            made: Any = super().trainer(task, rows, phase, folder)
        finally:
            del self.trainer_class
        made.features = features.of([row["text"] for row in rows])
        made.labels = torch.tensor([self.classes[row["label"]] for row in rows])
        return cast(PhaseTrainer, made)

    def _look_inside(self) -> bool:
        """Whether a method looks at the body's states, or at a body of other weights."""
        reads = [method.requires for method in self.methods]
        return any(r.hidden or r.attentions or r.teacher == "base" for r in reads)

    def _features_now(self) -> Features:
        """The features of the body as it is."""
        model: Any = self.model
        key = state_key(
            weights=fingerprint(model.body),
            template=[self.reader.template, self.reader.of_relations],
            max_length=self.reader.limit,
            tokenizer=sorted(self.tokenizer.get_vocab().items()),
            side="right",
            pooling=model.pooling,
            precision=self.precision,
        )
        if key not in self._kept:
            folder = self.folders.cache / "features" / key
            self._kept[key] = Features(folder, self._run_body)
        return self._kept[key]

    @cached_property
    def _kept(self) -> dict[str, Features]:
        return {}

    @torch.no_grad()
    def _run_body(self, texts: Sequence[str]) -> Tensor:
        """Features of texts, in their order; one pass of the body a text."""
        model: Any = self.model
        rows = [self.reader.encode({"text": text}) for text in texts]
        with evaluating(model), self.autocast():
            return self._in_batches(
                [{**row, "labels": 0} for row in rows],
                lambda batch: model.features(
                    batch["input_ids"], batch["attention_mask"], batch.get("entity_starts")
                ),
                partial(self.listener.progress, "reading", "texts"),
            )

    @torch.no_grad()
    def _logits(self, rows: Sequence[Row], progress: Progress | None) -> Tensor:
        """Logits of rows in their order, (rows, columns)."""
        model: Any = self.model
        with evaluating(model):
            if self.features is not None:
                texts = [row["text"] for row in rows]
                self.features.add(texts)
                logits: Tensor = model.heads(self.features.of(texts).to(model.device))
                return logits.float().cpu()
            encoded = [self.encode(row) for row in rows]
            return self._in_batches(encoded, lambda batch: model(**batch).logits, progress)

    def _in_batches(
        self,
        encoded: Sequence[Mapping[str, Any]],
        run: Callable[[dict[str, Tensor]], Tensor],
        progress: Progress | None,
    ) -> Tensor:
        """What `run` gives for encoded rows, longest first, back in their order, on the host."""
        order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i]["input_ids"]))
        size, found = self.recipe.scoring.batch_size, dict[int, Tensor]()
        device = next(self.model.parameters()).device
        for start in range(0, len(order), size):
            some = order[start : start + size]
            batch = self.collate([encoded[i] for i in some])
            del batch["labels"]
            out = run({k: v.to(device) for k, v in batch.items()})
            found |= dict(zip(some, out.float().cpu(), strict=True))
            if progress is not None:
                progress(len(found), len(encoded))
        return torch.stack([found[i] for i in range(len(encoded))])
