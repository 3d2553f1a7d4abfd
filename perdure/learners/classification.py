"""The learner of classes: a body with a head for each task, scored by one forward pass.

Both answers come from the same logits: all learned classes compete (class-incremental), or those
of the row's own task (task-incremental). The stream's scenario says which of them is the score,
and within which of them training's cross-entropy runs; the other one is recorded beside it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from perdure.errors import UsageError
from perdure.learners.base import Learner
from perdure.learners.heads_only import HeadsTrainer
from perdure.learners.probing import Probing
from perdure.learners.training import PhaseTrainer
from perdure.methods import registry
from perdure.models.classifier import (
    Classifier,
    Heads,
    class_means,
    views,
)
from perdure.models.classifier_files import load_classifier_weights, save_classifier
from perdure.models.configuration import has_dropout, is_decoder, pooling_of, read_config
from perdure.models.features import TEXT, Features, state_key
from perdure.models.load import load_body
from perdure.models.prepared_classes import PreparedClasses, class_encoder
from perdure.models.weights import evaluating, fingerprint
from perdure.processes import Progress, rank
from perdure.protocol.method import Method
from perdure.scoring.score import TaskScore
from perdure.streams.kinds.classes import ACCURACY, AMONG_ALL, WITHIN_TASK
from perdure.streams.rows import row_key
from perdure.streams.task import Row, Task

if TYPE_CHECKING:
    from perdure.engine.session import TaskSession
    from perdure.protocol.step import Phase
    from perdure.recipe.schema import Recipe

HEADS = r"^heads\."
MEANS = ("prototypes", "normalized prototypes")


def needs_language_head(recipe: Recipe) -> bool:
    """Whether a phase of a method has a decoder write text, and the recipe's model is one."""
    wanted = {method.requires.language_head for method in registry.build(recipe.methods)}
    return "must" in wanted or (
        "decoder" in wanted and is_decoder(read_config(recipe.model, causal=False))
    )


class ClassificationLearner(Learner):
    """Trains a classifier whose head grows with each task, and scores it."""

    kind = "classification"
    objectives = ("task", "lm", *MEANS)
    features: Features | None = None
    """Those of the body as it is, while it stays."""

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
        """Raise `UsageError` for more classes than were allocated beforehand."""
        super().check()
        model: Any = self.model
        model.within = self.stream.scenario == "task-incremental"
        head = self.recipe.model.head
        if head.preallocate == "all" and not model.heads.classes:
            model.heads.allocate(len(self.classes))
        elif isinstance(head.preallocate, int) and 0 < head.preallocate < len(self.classes):
            raise UsageError(
                f"model.head.preallocate: {head.preallocate}: the stream has {len(self.classes)} "
                "classes",
                "write a higher number, or all, or 0: heads grow by themselves",
            )

    def begin_task(self, index: int) -> None:
        """Add a head for the classes of the task that no earlier one has."""
        model: Any = self.model
        new = [name for name, task in self.stream.classes.items() if task == index]
        model.grow(len(new), index)

    def _train(self, session: TaskSession, phase: Phase) -> None:
        """As any learner; what the model computes is the phase's objective until its end."""
        model: Any = self.model
        if phase.objective in MEANS:
            self._place_means(session, phase)
            return
        model.objective, model.frozen_eval = phase.objective, phase.frozen_eval
        try:
            super()._train(session, phase)
        finally:
            model.objective, model.frozen_eval = "task", True

    @torch.no_grad()
    def _place_means(self, session: TaskSession, phase: Phase) -> None:
        """Set the weights of each class that has rows, and whose head is not frozen, to the mean of
        their features."""
        rows: list[Row] = list(session.task.train)
        for method in self.methods:
            rows = method.train_data(session.context, rows)
        self.listener.note(f"task {session.task.name}: {phase.objective} of {len(rows)} rows")
        texts, model = [row["text"] for row in rows], cast(Classifier, self.model)
        self.features = self._features_now()
        self.features.add(texts)
        labels = torch.tensor([self.classes[row["label"]] for row in rows])
        means, counts = class_means(
            self.features.of(texts), labels, model.heads.classes, phase.objective != MEANS[0]
        )
        stays = [bool(phase.freeze and re.search(phase.freeze, f"heads.parts.{k}.weight"))
                 for k, size in enumerate(model.heads.sizes) for _ in range(size)]  # fmt: skip
        model.heads.place(means, (counts > 0) & ~torch.tensor(stays))

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
                "among_all": names[every],
                "within_task": names[own_guess],
            }
            for row, guess, every, own_guess, answer in zip(
                rows, chosen, among_all, within, right, strict=True
            )
        ]

        def share(found: Sequence[int]) -> float:
            return sum(a == b for a, b in zip(found, right, strict=True)) / len(right)

        beside = {AMONG_ALL: share(among_all)} if model.within else {WITHIN_TASK: share(within)}
        return TaskScore(share(chosen), ACCURACY.name, True, items, beside)

    # --- features of a body that stays

    def trainer(self, task: Task, rows: Sequence[Row], phase: Phase, folder: Path) -> PhaseTrainer:
        """Where no parameter of the body learns, a trainer of heads on features."""
        model: Any = self.model
        self.features = None  # of the weights as they were
        drops = not phase.frozen_eval and has_dropout(model.body.config)
        learns = any(p.requires_grad for p in model.body.parameters())
        self._state += learns
        if learns or drops:
            return super().trainer(task, rows, phase, folder)
        texts = [row["text"] for row in rows]
        if self._look_inside():
            self._asked(texts)
            return super().trainer(task, rows, phase, folder)
        features = self._features_now()
        features.add(texts)
        self._asked(texts, features)
        self.features = features
        if self.state.num_processes > 1:
            return super().trainer(task, rows, phase, folder)
        self.trainer_class = HeadsTrainer
        try:
            made: Any = super().trainer(task, rows, phase, folder)
        finally:
            del self.trainer_class
        made.features = features.of(texts)
        made.labels = torch.tensor([self.classes[row["label"]] for row in rows])
        return cast(PhaseTrainer, made)

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Where probes are fitted, scores and probes share one pass of each text."""
        before = self.features
        # A method that routes rows changes the body between them.
        routes = any(type(method).route is not Method.route for method in self.methods)
        if self.recipe.scoring.probes and not routes:
            self.features = self._features_now()
        try:
            yield
        finally:
            self.features = before

    def more_scores(self, after: int, done: Collection[Any]) -> Iterable[Any]:
        """The lines of the recipe's probes."""
        if not self.recipe.scoring.probes:
            return ()
        gone = [task.name for task in self.stream if not task.train_kept]
        if gone:
            self.listener.note(f"no probes: the training rows of {gone[0]} are not kept")
            return ()
        model: Any = self.model
        features = self.features or self._features_now()
        for task in self.stream:
            tested = list(task.test)[: self.recipe.scoring.max_test_rows]
            self._asked([row["text"] for row in (*task.train, *tested)], features)
        return self._probing.lines(after, len(model.owners), features.folder.name, features, done)

    @cached_property
    def _probing(self) -> Probing:
        scoring = self.recipe.scoring
        return Probing(
            scoring.probes, self.stream.tasks, self.classes, self.recipe.seed, scoring.max_test_rows
        )

    def passes(self) -> Mapping[str, int]:
        """Texts that the body read, and those that it had to: each once for each state of the
        weights, and those that it learns from."""
        model: Any = self.model
        learning = model.learning_passes
        return {"body_passes": model.body_passes, "body_passes_needed": learning + self._needed}

    _state, _needed = 0, 0

    @cached_property
    def _known(self) -> set[tuple[int, str]]:
        return set()

    def _asked(self, texts: Sequence[str], features: Features | None = None) -> None:
        """Count texts whose features are needed for the first time in this state of the weights."""
        found = features or self.features
        new = {(self._state, text) for text in texts} - self._known
        self._known.update(new)
        files = set() if found is None else found.from_file
        self._needed += sum(text not in files for _, text in new)

    def finish(self) -> None:
        """As of every learner; says how many passes the body made."""
        counts = self.passes()
        self.listener.note(
            f"the body read {counts['body_passes']} texts, {counts['body_passes_needed']} needed"
        )
        super().finish()

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
