"""What a kind of task gives its learner: five things, and hooks with defaults."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from perdure.engine.batching import steps_of
from perdure.engine.sampler import EpochSampler
from perdure.errors import UsageError
from perdure.learners.training import PhaseTrainer, RatedTrainer, arguments
from perdure.models.adapter_lists import add_saved, read_first, use_saved
from perdure.models.weights import empty_like, is_sharded, put, trainable, whole_weights
from perdure.processes import Progress, rank
from perdure.protocol.batch import ROWS, HostRows, collate

if TYPE_CHECKING:
    from perdure.engine.session import TaskSession
    from perdure.protocol.labels import Classes
    from perdure.protocol.step import Phase
    from perdure.recipe.schema import Recipe
    from perdure.scoring import GeneralScore, TaskScore
    from perdure.scoring.gauges import Gauges
    from perdure.scoring.lm_eval import HarnessScore
    from perdure.streams.task import Row, Task, TaskStream


class KindHooks:
    """The half of a learner that a kind overrides; `perdure.learners.base` has the other half.

    Rows of token ids need `load`, `encode` and `score_task`; other rows `collate` and `trainer`
    too.
    """

    kind: str = ""
    pad_id: int = 0
    packs: bool = False
    """Whether extra rows of methods may run in one pass with the task's, where the model lets
    them: only models whose rows attend to nothing but earlier tokens."""
    objectives: tuple[str, ...] = ("task",)
    """What a phase may have as its objective."""
    trainer_class: type[PhaseTrainer] = PhaseTrainer

    model: nn.Module
    tokenizer: Any
    stream: TaskStream
    recipe: Recipe
    precision: str
    micro_batch: int
    accumulation: int
    rows_a_step: int
    """The task's rows in an optimizer step: the batch, or half of it where kept rows fill it up; by
    reinforcement its completions."""
    born: dict[str, Tensor]
    prepared_encoder: Any

    @classmethod
    def load(cls, recipe: Recipe, precision: str) -> tuple[Any, Any]:
        """Load the base model and its tokenizer. What is drawn is drawn with the recipe's seed."""
        from perdure.methods import registry
        from perdure.models import load_base
        from perdure.protocol.method import Method

        # What routes names the base that its adapters are for.
        kinds = map(registry.kind_of, recipe.methods)
        routes = any(kind.router is not Method.router for kind in kinds)
        return load_base(recipe.model, precision=precision, noted=routes)

    def encode(self, row: Row) -> dict[str, Any]:
        """Return `{"input_ids": [...], "labels": ...}`; see `protocol.labels.label_places`.

        A row that has `input_ids` is encoded already and comes back as it is.
        """
        raise NotImplementedError

    def collate(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Tensor]:
        """Return a batch of encoded rows: what the model's `forward` takes, by name."""
        return collate(rows, self.pad_id)

    def score_task(self, task: Task, progress: Progress | None) -> TaskScore | None:
        """Score `task.test`; None where there is nothing to score with before it was learned."""
        raise NotImplementedError

    def score_mixed(
        self, task: Task, adapters: Sequence[str], progress: Progress | None
    ) -> TaskScore | None:
        """Score `task.test` with an adapter for each row, by name, all in the same batches; None
        where this task's rows are to be scored adapter by adapter."""
        return None

    answer: str = "answer"
    """What an answer is called where rows without one are answered."""

    def predict(self, rows: Sequence[Row], task: Task, within: Task | None) -> list[dict[str, Any]]:
        """Answer rows without labels, in their order.

        Args:
            task: whose form the rows have.
            within: the task whose answers alone compete; None: all that were learned.

        Returns: `text` and the answer of each row, as `perdure.predictor.Predictor` says.
        """
        raise UsageError(
            f"predict: the learner of kind {self.kind} does not answer rows without labels",
            "its package would have to give it `predict`",
        )

    @classmethod
    def load_saved(cls, folder: Path, recipe: Recipe, precision: str) -> tuple[Any, Any] | None:
        """Load the model and tokenizer that `save_weights` left in `folder`, to score them.

        None: the base model is loaded, and grows and takes the saved weights as on a resume.
        """
        return None

    @classmethod
    def make_encoder(cls, tokenizer: Any, recipe: Recipe) -> Any:
        """What tokenizes rows for a model loaded with its tokenizer; None: `encode` does it all."""
        return None

    def encoded(self, rows: Sequence[Row]) -> tuple[Sequence[dict[str, Any]], list[int]]:
        """Encode the rows of a phase.

        Returns: the rows to train on, in their order, and the tokens of each.
        """
        found = [self.encode(row) for row in rows]
        return found, [len(row["input_ids"]) for row in found]

    def trainer(self, task: Task, rows: Sequence[Row], phase: Phase, folder: Path) -> RatedTrainer:
        """Make the trainer of a phase of a task, ready but for its methods.

        Args:
            task: its `learn` says how, where the kind has several ways.
            rows: what to train on, not encoded yet.
            folder: for its checkpoints.
        """
        encoded, lengths = self.encoded(rows)
        args = arguments(
            self.recipe,
            folder,
            steps=steps_of(self.recipe, len(encoded), phase.epochs, self.rows_a_step),
            micro_batch=self.micro_batch,
            accumulation=self.accumulation,
            bf16=self.precision == "bf16",
        )
        made = self.trainer_class(
            model=self.model,
            args=args,
            train_dataset=encoded,
            data_collator=lambda rows: {**self.collate(rows), ROWS: HostRows(rows)},
            processing_class=self.tokenizer,
        )
        # What a phase holds comes first: of several patterns that find a name the first one counts.
        held: dict[str, float] = {phase.hold: 0.0} if phase.hold else {}
        made.rates, made.packs = {**held, **self.rates(self.model)}, self.packs
        made.sampler = EpochSampler(lengths, self.rows_a_step, self.recipe.seed)
        return made

    def layout(self, index: int) -> Classes | None:
        """Return which columns of the logits are old and which seen in task number `index`; None
        where labels are tokens."""
        return None

    def rates(self, model: nn.Module) -> Mapping[str, float | Mapping[str, float]]:
        """Return learning rates by a regular expression over parameter names; or a mapping of the
        optimizer's options, `lr` and `weight_decay`."""
        return {}

    def begin_task(self, index: int) -> None:
        """Add the modules that task number `index` needs, under new names.

        What is drawn depends on seed and task alone. A resumed run calls it again for each task
        learned before, in order, and then puts the saved weights in.
        """

    def general(self) -> Mapping[str | None, Callable[[], GeneralScore | HarnessScore]]:
        """Return what measures general ability, each to be called for its score.

        By name of an lm-eval task; None is perplexity on ordinary text.
        """
        return {}

    def looking(self) -> AbstractContextManager[Any]:
        """Entered while all tasks are scored with the same weights, for what they may share."""
        return nullcontext()

    def more_scores(self, after: int, done: Collection[Any]) -> Iterable[Any]:
        """Lines of scores.jsonl beside those of tasks and general ability; see `scored`."""
        return ()

    def passes(self) -> Mapping[str, int]:
        """Counts that grow while the learner works, by name: lines and facts say by how much."""
        return {}

    def make_gauges(self, session: TaskSession) -> Gauges | None:
        """Make the gauges of a run; None for a kind that has none. `session`: of the first task."""
        return None

    def check(self) -> None:
        """Raise a `PerdureError` for what cannot be learned, before anything is."""
        has = type(self)
        asked = self.stream.general.held_out or (self.recipe.general and self.recipe.general.tasks)
        if asked and has.general is KindHooks.general:
            raise UsageError(
                f"general: tasks of kind {self.kind} have no measure of general ability",
                "leave general out of the recipe",
            )
        if self.recipe.stop_when is not None and has.make_gauges is KindHooks.make_gauges:
            raise UsageError(
                f"stop_when: tasks of kind {self.kind} have no gauges", "leave stop_when out"
            )

    @property
    def encoder(self) -> Any:
        """What encodes rows for methods: `encode`, `encode_text`, `pad_id`, `tokenizer`."""
        return self

    def encode_text(
        self, text: str, max_tokens: int | None = None, special: bool = False
    ) -> dict[str, Any]:
        """Encode plain text, every token a label, for methods that replay general text."""
        raise UsageError(
            f"method: tasks of kind {self.kind} cannot be learned along with general text",
            "take a method that needs none; see perdure methods",
        )

    def saved_weights(self, folder: Path) -> dict[str, Tensor]:
        """What `save_weights` wrote, by the names of the model's own parameters."""
        from perdure.models import load_weights

        return load_weights(self.model, folder)

    def save_weights(self, folder: Path) -> None:
        """Save the model as it is, so that it can be loaded without Perdure. All processes call."""
        from perdure.models import save_model

        sharded = is_sharded(self.model)
        weights = whole_weights(self.model) if sharded else None
        if rank() == 0:
            # A sharded model would gather its weights again, and wait for all processes to ask.
            model = empty_like(self.model) if sharded else self.model
            save_model(model, self.tokenizer, folder, self.recipe.model, weights)

    @contextmanager
    def births(self) -> Iterator[None]:
        """Keep the first values of parameters that are added inside."""
        before = set(dict(self.model.named_parameters()))
        yield
        for name, parameter in self.model.named_parameters():
            if name not in before:
                self.born[name] = parameter.detach().cpu().clone()

    def take_saved(self, folder: Path) -> None:
        """Have what `save_weights` wrote: all adapters, their lists and first values too."""
        add_saved(self.model, folder)
        put(self.model, self.saved_weights(folder))
        use_saved(self.model, folder)
        self.born |= read_first(folder.parent)

    def base_weights(self) -> dict[str, Tensor]:
        """The trainable parameters before the first task: the base model's own values, and new
        modules' as they were first drawn."""
        names = set(trainable(self.model))
        base, _ = drawn(partial(self.load, self.recipe, self.precision), self.recipe.seed)
        device = next(self.model.parameters()).device
        own = {n: p.detach().to(device) for n, p in base.named_parameters() if n in names}
        return own | {n: w.to(device) for n, w in self.born.items() if n in names}


def drawn(make: Callable[[], Any], seed: int) -> Any:
    """What `make` returns; what it draws at random depends on `seed` alone and moves no other."""
    with torch.random.fork_rng(devices=[]):  # weights are drawn on the CPU
        torch.manual_seed(seed)
        return make()
