"""The learner of classes: a body with a head for each task, scored by one forward pass.

Both answers come from the same logits: all learned classes compete (class-incremental), or those
of the row's own task (task-incremental). The stream's scenario says which of them is the score,
and within which of them training's cross-entropy runs; the other one is recorded beside it.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from perdure.errors import task_named
from perdure.learners.adapter_logits import AdapterLogits
from perdure.learners.kind import drawn
from perdure.learners.listener import Fitted
from perdure.learners.no_class import no_class_figures
from perdure.methods import registry
from perdure.models.chat import IGNORE
from perdure.models.classifier import Classifier, views
from perdure.models.classifier_files import load_classifier_weights, save_classifier
from perdure.models.configuration import is_decoder, pooling_of, read_config
from perdure.models.features import TEXT
from perdure.models.heads import Heads, class_means
from perdure.models.load import load_body
from perdure.models.prepared_classes import PreparedClasses, class_encoder
from perdure.models.random_state import seed_of
from perdure.models.weights import trainable
from perdure.processes import Progress, rank
from perdure.protocol.labels import Classes, classes_of
from perdure.scoring.answers import ranked
from perdure.scoring.score import TaskScore
from perdure.streams.growing import refuse_beyond
from perdure.streams.kinds.classes import ACCURACY, AMONG_ALL, WITHIN_TASK
from perdure.streams.rows import row_key
from perdure.streams.task import Row, Task

if TYPE_CHECKING:
    from perdure.engine.session import TaskSession
    from perdure.protocol.step import Phase
    from perdure.recipe.schema import Recipe

logger = logging.getLogger("perdure")
HEADS = r"^heads\."
MEANS = ("prototypes", "normalized prototypes")


def needs_language_head(recipe: Recipe) -> bool:
    """Whether a phase of a method has a decoder write text, and the recipe's model is one."""
    wanted = {method.requires.language_head for method in registry.build(recipe.methods)}
    return "must" in wanted or (
        "decoder" in wanted and is_decoder(read_config(recipe.model, causal=False))
    )


class ClassificationLearner(AdapterLogits):
    """Trains a classifier whose head grows with each task, and scores it."""

    kind = "classification"
    objectives = ("task", "lm", *MEANS)

    @classmethod
    def load(cls, recipe: Recipe, precision: str) -> tuple[Any, Any]:
        """A body, with the head that writes text only where a method needs that of a decoder, and
        no class yet; LoRA stands in the body."""
        language = None
        if writes := needs_language_head(recipe):
            language, tokenizer = load_body(recipe.model, language=writes)
            body = language.base_model
        else:
            body, tokenizer = load_body(recipe.model)
        pooling = pooling_of(body.config, recipe.model.pooling)
        width = body.config.hidden_size * (2 if pooling == "entity_starts" else 1)
        head = recipe.model.head
        if recipe.model.tuning == "lora":
            from perdure.models.adapters import attach_lora

            body = attach_lora(body, recipe.model.lora, task_type="FEATURE_EXTRACTION")
        kept = head.preallocate if isinstance(head.preallocate, int) else 0
        heads = Heads(width, head.type, head.scale, head.learn_scale, kept)
        return Classifier(body, pooling, heads, language=language), tokenizer

    @cached_property
    def classes(self) -> dict[str, int]:
        """Each class's number, which is its column."""
        return {name: number for number, name in enumerate(self.stream.classes)}

    @cached_property
    def reader(self) -> PreparedClasses:
        """Turns a row's text into token ids; what was prepared knows the stream's rows already."""
        found: PreparedClasses = self.prepared_encoder or self.make_encoder(
            self.tokenizer, self.recipe
        )
        return found

    @classmethod
    def make_encoder(cls, tokenizer: Any, recipe: Recipe) -> PreparedClasses:
        """What tokenizes rows for a model loaded with its tokenizer."""
        return class_encoder(recipe, tokenizer)

    @property
    def pad_id(self) -> int:  # type: ignore[override]
        return self.reader.pad_id

    def check(self) -> None:
        """As any learner; then allocate heads that are wanted for all classes beforehand."""
        super().check()
        model: Any = self.model
        model.within = self.stream.scenario == "task-incremental"
        head = self.recipe.model.head
        if head.preallocate == "all" and not model.heads.classes:
            seed = seed_of(self.recipe.seed, "allocate")
            drawn(lambda: model.heads.allocate(len(self.classes)), seed)
        refuse_beyond(self.recipe, len(self.classes))
        reserve = model.heads.reserve
        named = () if reserve is None else reserve.named_parameters()
        self._first_reserve = {n: p.detach().cpu().clone() for n, p in named}

    def fit(self, index: int) -> Fitted:
        """As any learner; then tell texts of its classes from texts of no class, if there are."""
        fitted = super().fit(index)
        if self.stream.tasks[index].learn == "none":
            return fitted
        self._logits_known = {}
        started, counts = time.monotonic(), self.passes()
        with self.serving(), self.autocast():
            found = no_class_figures(self.stream, index + 1, self._learned_logits)
        self.track(found)
        facts = dict(fitted.facts)
        facts["seconds"] = round(facts["seconds"] + time.monotonic() - started, 2)
        for name, count in self.passes().items():  # the texts were read for these figures
            facts[name] = facts[name] + count - counts[name]
        return replace(fitted, facts={**facts, **found})

    def _learned_logits(self, rows: Sequence[Row]) -> Tensor:
        """Logits of rows over the learned classes, of figures beside the scores."""
        model: Any = self.model
        self._asked([row["text"] for row in rows])
        return self._logits(rows, None)[:, : model.heads.classes]

    def begin_task(self, index: int) -> None:
        """Add a head for the classes of the task that no earlier one has, and before it the task's
        own adapter where a method wants one."""
        model: Any = self.model
        homes = self.stream.classes
        new = [name for name, task in homes.items() if task == index]
        wanted = [m.requires.adapters for m in self.methods if m.requires.adapters is not None]
        if new and wanted:
            model.add_adapter(index, wanted[0])
        own = self.stream.tasks[index].labels
        model.grow(len(new), index, [self.classes[name] for name in own if homes[name] < index])

    def _train(self, session: TaskSession, phase: Phase) -> None:
        """As any learner; what the model computes is the phase's objective until its end."""
        model: Any = self.model
        self._logits_known = None
        if phase.objective in MEANS:
            self._place_means(session, phase)
            return
        model.objective, model.frozen_eval = phase.objective, phase.frozen_eval
        try:
            super()._train(session, phase)
        finally:
            model.objective, model.frozen_eval = "task", True
            if self._moves:
                self._printed = None  # optimizers that are fused count no write

    @torch.no_grad()
    def _place_means(self, session: TaskSession, phase: Phase) -> None:
        """Set the weights of each class that has rows, and whose head is not frozen, to the mean of
        their features."""
        rows: list[Row] = list(session.task.train)
        for method in self.methods:
            rows = method.train_data(session.context, rows)
        self.listener.note(
            f"{task_named(session.task.name)}: {phase.objective} of {len(rows)} rows"
        )
        texts, model = [row["text"] for row in rows], cast(Classifier, self.model)
        features = self._features_now()
        features.add(texts)
        self._asked(texts, features)
        self._use(features)
        labels = torch.tensor([self.classes[row["label"]] for row in rows])
        means, counts = class_means(
            features.of(texts), labels, model.heads.classes, phase.objective != MEANS[0]
        )
        stays = [bool(phase.freeze and re.search(phase.freeze, f"heads.parts.{k}.weight"))
                 for k, size in enumerate(model.heads.sizes) for _ in range(size)]  # fmt: skip
        model.heads.place(means, (counts > 0) & ~torch.tensor(stays))

    def layout(self, index: int) -> Classes:
        """The learned columns by what competes; see `perdure.protocol.labels.Classes`."""
        model: Any = self.model
        return classes_of(model.owners, index, model.apart, model.again)

    def encode_text(
        self, text: str, max_tokens: int | None = None, special: bool = False
    ) -> dict[str, Any]:
        """A general text as tokens of no class, for methods that hold states on it."""
        ids = self.tokenizer(text, add_special_tokens=True)["input_ids"]
        most = int(self.tokenizer.model_max_length)
        return {"input_ids": ids[: min(most, max_tokens or most)], "labels": IGNORE}

    def base_weights(self) -> dict[str, Tensor]:
        """As any learner's; of heads that were cut from a reserve the reserve's first values, not
        what it had learned as negatives by then."""
        found, at = super().base_weights(), 0
        model: Any = self.model
        for number, size in enumerate([*model.heads.sizes, model.heads.reserved]):
            last = number == len(model.heads.sizes)
            for name, first in self._first_reserve.items():
                whole = f"heads.reserve.{name}" if last else f"heads.parts.{number}.{name}"
                if size:  # a scale is no class's own
                    own = first[at : at + size] if first.ndim else first
                    found[whole] = own.to(model.device)
            at += size
        own = set(trainable(model))
        return {n: w for n, w in found.items() if n in own}

    def rates(self, model: nn.Module) -> Mapping[str, Mapping[str, float]]:
        """The heads learn at a rate, and with a weight decay, of their own."""
        head = self.recipe.model.head
        return {HEADS: {"lr": head.learning_rate, "weight_decay": head.weight_decay}}

    def encoded(self, rows: Sequence[Row]) -> tuple[Sequence[dict[str, Any]], list[int]]:
        """Rows as the phase's objective reads them: with their class's number, or its name."""
        model: Any = self.model
        if model.objective != "lm":
            return super().encoded(rows)
        found = [self.reader.encode_answer(row) for row in rows]
        return found, [len(row["input_ids"]) for row in found]

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
        if (
            self.features is not None
            and self._stays
            and all(self.features.has(row.get(TEXT, "")) for row in rows)
        ):
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
        rows, known = list(task.test), model.select == "oracle"  # other tasks' adapters stay idle
        logits = self._logits(rows, progress, self._tasks_of(task.labels) if known else None)
        among_all, within = (found.tolist() for found in views(logits, model.owners, own))
        self._asked([row["text"] for row in rows])
        names, right = list(self.classes), [self.classes[row["label"]] for row in rows]
        chosen = within if model.within else among_all
        items = [
            {
                "id": row_key(row),
                "score": float(guess == answer),
                "prediction": names[guess],
                "answer": row["label"],
                "prompt": row["text"],
                **({} if known else {"among_all": names[every]}),
                "within_task": names[own_guess],
            }
            for row, guess, every, own_guess, answer in zip(
                rows, chosen, among_all, within, right, strict=True
            )
        ]

        def share(found: Sequence[int]) -> float:
            return sum(a == b for a, b in zip(found, right, strict=True)) / len(right)

        beside = {AMONG_ALL: share(among_all)} if model.within else {WITHIN_TASK: share(within)}
        beside = {} if known else beside
        return TaskScore(share(chosen), ACCURACY.name, True, items, beside)

    def _tasks_of(self, names: Sequence[str]) -> set[int]:
        """The tasks whose heads have these classes."""
        model: Any = self.model
        return {model.owners[self.classes[name]] for name in names}

    answer = "class"

    def predict(self, rows: Sequence[Row], task: Task, within: Task | None) -> list[dict[str, Any]]:
        """The class of each row with its share of the softmax, and the three best."""
        model: Any = self.model
        learned = list(self.classes)[: model.heads.classes]
        names = learned if within is None else list(within.labels)
        with self.autocast():  # what stands for the label is not looked at
            labelled = [{**row, "label": learned[0]} for row in rows]
            logits = self._logits(labelled, None, self._tasks_of(names))
        if cut := sum(row["text"] in self.reader.cut for row in rows):
            logger.warning("%d of %d texts have %s", cut, len(rows), self.reader.cut_told)
        columns = logits[:, [self.classes[name] for name in names]]
        return [
            {"text": row["text"], **ranked(self.answer, names, line)}
            for row, line in zip(rows, columns, strict=True)
        ]
