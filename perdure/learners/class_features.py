"""The half of the learner of classes that spares passes of the body.

While no parameter of the body learns, a text's feature is the same at each look: it is computed
once, heads learn on it (`perdure.learners.heads_only`), scores and probes read it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from perdure.errors import task_named
from perdure.learners.base import Learner
from perdure.learners.heads_only import HeadsTrainer
from perdure.learners.probing import Probing
from perdure.learners.training import PhaseTrainer
from perdure.models.configuration import has_dropout
from perdure.models.features import Features, state_key
from perdure.models.random_state import forked_rng, seed_of
from perdure.models.tokens import rules_of
from perdure.models.weights import evaluating, fingerprint, is_sharded, local
from perdure.processes import Progress, over_ranks, summed
from perdure.streams.task import Row, Task, shown

if TYPE_CHECKING:
    from perdure.models.prepared_classes import PreparedClasses
    from perdure.protocol.step import Phase


class BodyFeatures(Learner):
    """See the module; `perdure.learners.classification.ClassificationLearner` is the whole."""

    @property
    def classes(self) -> dict[str, int]:
        """Each class's number, which is its column."""
        raise NotImplementedError

    @property
    def reader(self) -> PreparedClasses:
        """Turns a row's text into token ids."""
        raise NotImplementedError

    features: Features | None = None
    """Those of the body as it is, while it stays."""
    _features_body = ""
    """The fingerprint of the body that they are of."""
    _printed: tuple[int, str] | None = None
    """How often the body was written to, and its fingerprint then."""
    _moves = False
    """Whether the body learns in the phase at hand."""
    _logits_known: dict[str, Tensor] | None = None
    """By text, between a task's end and the next one's first phase: figures of texts of no class
    ask for the rows that are scored after them. None at other times, as weights may change."""
    _logits_of: object = None
    """The weights that these were computed under."""

    def trainer(self, task: Task, rows: Sequence[Row], phase: Phase, folder: Path) -> PhaseTrainer:
        """Where no parameter of the body learns, a trainer of heads on features."""
        model: Any = self.model
        self.features = None  # of the weights as they were
        learns = any(p.requires_grad for p in model.body.parameters())
        drops = not phase.frozen_eval and has_dropout(model.body.config)
        self._state += learns
        self._moves = learns
        if not learns and any(m.requires.texts for m in self.methods):
            self.listener.warn(
                f"{task_named(task.name)}, phase {phase.name}: the body is frozen, so states on "
                "general texts stay as they are, and there is nothing to hold"
            )
        if learns or drops:
            return super().trainer(task, rows, phase, folder)
        texts = [row["text"] for row in rows]
        if self._look_inside():
            self._asked(texts)
            return super().trainer(task, rows, phase, folder)
        features = self._features_now()
        features.add(texts)
        self._asked(texts, features)
        self._use(features)
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
        """Where probes are fitted, scores and probes share one pass of each text, unless dropout
        is on in the probes' own."""
        before, of = self.features, self._features_body
        if self.recipe.scoring.probes and not self._drops_when_probed:
            # Of the newest adapter, where tasks have their own.
            self._use(self._features_now())
        try:
            yield
        finally:
            self.features, self._features_body = before, of

    def more_scores(self, after: int, done: Collection[Any]) -> Iterable[Any]:
        """The lines of the recipe's probes."""
        if not self.recipe.scoring.probes:
            return ()
        gone = [task.name for task in self.stream if not task.train_kept]
        if gone:
            self.listener.note(f"no probes: the training rows of {gone[0]} are not kept")
            return ()
        model: Any = self.model
        drops = self._drops_when_probed
        features = self._features_now(drops) if drops else self.features or self._features_now()
        for task in self.stream:
            tested = shown(task, self.recipe.scoring.max_test_rows)
            self._asked([row["text"] for row in (*task.train, *tested)], features, drops)
        return self._probing.lines(after, len(model.owners), features.folder.name, features, done)

    @cached_property
    def _probing(self) -> Probing:
        scoring = self.recipe.scoring
        return Probing(
            scoring.probes, self.stream.tasks, self.classes, self.recipe.seed, scoring.max_test_rows
        )

    def passes(self) -> Mapping[str, int]:
        """Texts that the body read, and those that it had to: each once for each state of the
        weights, and those that it learns from; of all processes together, a collective call."""
        model: Any = self.model
        device = next(model.parameters()).device
        counts = torch.tensor([model.body_passes, model.learning_passes], device=device)
        read, learning = summed(counts).tolist()
        return {"body_passes": read, "body_passes_needed": learning + self._needed}

    _state, _needed = 0, 0

    @cached_property
    def _known(self) -> set[tuple[int, bool, str]]:
        return set()

    @cached_property
    def _drops_when_probed(self) -> bool:
        model: Any = self.model
        return any(m.drops_when_probed for m in self.methods) and has_dropout(model.body.config)

    def _asked(
        self, texts: Sequence[str], features: Features | None = None, drops: bool = False
    ) -> None:
        """Count texts whose features are needed for the first time in this state of the weights."""
        found = features or self.features
        new = {(self._state, drops, text) for text in texts} - self._known
        self._known.update(new)
        self._needed += sum(found is None or not found.is_from_file(text) for *_, text in new)

    def finish(self) -> None:
        """As of every learner; says how many passes the body made."""
        counts = self.passes()
        self.listener.note(
            f"the body read {counts['body_passes']} texts, {counts['body_passes_needed']} needed"
        )
        super().finish()

    def _use(self, features: Features | None) -> None:
        """Take features in place of passes, as long as the body is the one that they are of."""
        self.features, self._features_body = features, self._body_print

    @property
    def _body_print(self) -> str:
        """The body's fingerprint, computed again after each phase and each write to it."""
        model: Any = self.model
        writes = sum(p._version for p in model.body.parameters())
        if self._printed is None or self._printed[0] != writes:
            self._printed = writes, fingerprint(model.body)
        return self._printed[1]

    @property
    def _stays(self) -> bool:
        """Whether the body is the one that the features are of: a method may take weights back."""
        return self._body_print == self._features_body

    def _look_inside(self) -> bool:
        """Whether a method looks at the body's states, or at a body of other weights."""
        reads = [method.requires for method in self.methods]
        if any(r.hidden or r.attentions or r.teacher == "base" for r in reads):
            return True
        compares = any(r.teacher == "previous" for r in reads) and self._session.task_index > 0
        return compares and not self._session.as_before("body.")

    def _features_now(self, drops: bool = False) -> Features:
        """The features of the body as it is; with its dropout on, drawn from the recipe's seed."""
        model: Any = self.model
        key = state_key(
            weights=self._body_print,
            template=[self.reader.template, self.reader.of_relations],
            max_length=self.reader.limit,
            truncate=self.reader.truncate,
            tokenizer=self._tokenizer_key,
            side="right",
            pooling=model.pooling,
            precision=self.precision,
            drops=self.recipe.seed if drops else None,
        )
        if key not in self._kept:
            folder = self.folders.cache / "features" / key
            self._kept[key] = Features(folder, partial(self._run_body, drops=drops))
        return self._kept[key]

    @cached_property
    def _tokenizer_key(self) -> str:
        return state_key(rules=rules_of(self.tokenizer))

    @cached_property
    def _kept(self) -> dict[str, Features]:
        return {}

    @torch.no_grad()
    def _run_body(self, texts: Sequence[str], drops: bool = False) -> Tensor:
        """Features of texts, in their order; one pass of the body a text."""
        model: Any = self.model
        rows = [self.reader.encode({"text": text}) for text in texts]
        with evaluating(model), self.autocast(), forked_rng(model.device):
            if drops:
                torch.manual_seed(seed_of(self.recipe.seed, "dropout of probes", texts[0]))
                model.body.train()
            return self._in_batches(
                [{**row, "labels": 0} for row in rows],
                lambda batch: model.features(
                    batch["input_ids"], batch["attention_mask"], batch.get("entity_starts")
                ),
                partial(self.listener.progress, "reading", "texts"),
            )

    @torch.no_grad()
    def _logits(
        self, rows: Sequence[Row], progress: Progress | None, tasks: Collection[int] | None = None
    ) -> Tensor:
        """Logits of rows in their order, (rows, columns).

        Args: tasks: whose classes are asked for, None all: others may have -inf, where they would
            take passes of their own.
        """
        model: Any = self.model
        with evaluating(model):
            if self.features is not None and self._stays:
                texts = [row["text"] for row in rows]
                self.features.add(texts)
                logits: Tensor = model.heads(self.features.of(texts).to(model.device))
                return logits.float().cpu()
            known = self._known_logits()
            new = {row["text"]: self.encode(row) for row in rows if row["text"] not in known}
            if new:
                found = self._in_batches(
                    [*new.values()], lambda batch: model(**batch).logits, progress
                )
                known.update(zip(new, found, strict=True))
            return torch.stack([known[row["text"]] for row in rows])

    def _known_logits(self) -> dict[str, Tensor]:
        """What is known under the weights as they are: another tensor may stand in one's place, as
        an average that is served, and a write is counted."""
        if self._logits_known is None:
            return {}
        model: Any = self.model
        weights = [(local(w).data_ptr(), w._version) for w in model.parameters()]
        # Decided by all processes together, as they share what has to be read.
        if int(summed(torch.tensor(int(weights != self._logits_of), device=model.device))):
            self._logits_of, self._logits_known = weights, {}
        return self._logits_known

    def _in_batches(
        self,
        encoded: Sequence[Mapping[str, Any]],
        run: Callable[[dict[str, Tensor]], Tensor],
        progress: Progress | None,
        apart: bool = False,
    ) -> Tensor:
        """What `run` gives for encoded rows, longest first, back in their order, on the host.

        All processes have the same rows and share the batches, unless they are `apart`: a process
        then has rows of its own.
        """
        order = sorted(range(len(encoded)), key=lambda i: -len(encoded[i]["input_ids"]))
        device = next(self.model.parameters()).device
        batches: list[list[int]] = []
        while len(order) > (start := sum(map(len, batches))):
            longest = len(encoded[order[start]]["input_ids"])
            batches.append(order[start : start + self.recipe.scoring.texts_at_once(longest)])

        def work(some: list[int]) -> Tensor:
            batch = self.collate([encoded[i] for i in some])
            del batch["labels"]
            return run({k: v.to(device) for k, v in batch.items()}).float().cpu()

        def done(count: int) -> None:
            if progress is not None:
                progress(sum(map(len, batches[:count])), len(encoded))

        outs = over_ranks(
            batches, work, accelerator=None if apart else self.state, on_progress=done,
            evenly=is_sharded(self.model),
        )  # fmt: skip
        found = {i: row for some, out in zip(batches, outs, strict=True)
                 for i, row in zip(some, out, strict=True)}  # fmt: skip
        return torch.stack([found[i] for i in range(len(encoded))])
