"""The learner of text: supervised fine-tuning of a causal language model on answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

from perdure.engine.rows import encode_stream
from perdure.engine.session import TaskSession
from perdure.errors import UsageError, task_named
from perdure.learners.base import Learner
from perdure.models.chat import Encoder, recipe_encoder
from perdure.processes import Progress
from perdure.scoring.gauges import Gauges
from perdure.streams.task import Row, Task

if TYPE_CHECKING:
    from pathlib import Path

    from perdure.learners.training import RatedTrainer
    from perdure.protocol.step import Phase
    from perdure.recipe.schema import Recipe
    from perdure.scoring import GeneralScore, TaskScore
    from perdure.scoring.lm_eval import HarnessScore


class GenerationLearner(Learner):
    """Fine-tunes a causal language model on prompt-and-answer rows and scores it."""

    kind = "generation"
    packs = True

    @classmethod
    def load_saved(cls, folder: Path, recipe: Recipe, precision: str) -> tuple[Any, Any] | None:
        """Load a saved model alone: the base of full weights may be gone."""
        from perdure.models import load_saved

        return load_saved(folder, precision=precision)

    @classmethod
    def make_encoder(cls, tokenizer: Any, recipe: Recipe) -> Encoder:
        """What reads rows with the saved model's own chat template."""
        return recipe_encoder(tokenizer, recipe)

    @cached_property
    def encoder(self) -> Encoder:
        """Turns rows into token ids by the model's chat template."""
        return self.prepared_encoder or recipe_encoder(self.tokenizer, self.recipe)

    @property
    def pad_id(self) -> int:  # type: ignore[override]
        """The tokenizer's padding token."""
        return self.encoder.pad_id

    def check(self) -> None:
        """Raise `RecipeError` where a row is longer than the recipe or the model allows."""
        config: Any = self.model.config
        if self.prepared_encoder is None:
            most = getattr(config, "max_position_embeddings", None)
            encode_stream(self.stream, self.encoder, most)

    def encoded(self, rows: Sequence[Row]) -> tuple[Sequence[dict[str, Any]], list[int]]:
        """The rows as they were kept when the recipe was prepared, where they are the stream's."""
        kept = self.encoder.kept.select(rows)
        if kept is None:  # a method has made rows of its own, or encoded them
            return super().encoded(rows)
        dataset: Any = kept[0]
        return dataset, kept[1]

    def encode(self, row: Row) -> dict[str, Any]:
        """Encode prompt and answer; labels are the answer's tokens, -100 on the prompt."""
        return self.encoder.encode(row)

    def encode_text(
        self, text: str, max_tokens: int | None = None, special: bool = False
    ) -> dict[str, Any]:
        """Encode plain text, every token a label."""
        return self.encoder.encode_text(text, max_tokens, special)

    def trainer(self, task: Task, rows: Sequence[Row], phase: Phase, folder: Path) -> RatedTrainer:
        """Supervised, on the rows' answers, or by reinforcement, on what the model writes."""
        made = self._made(task, rows, phase, folder)
        if task.until is not None:
            from perdure.learners.until import Until

            made.add_callback(
                Until(
                    made,
                    self.encoder,
                    task,
                    task.until,
                    seed=self.recipe.seed,
                    note=self.listener.note,
                    warn=self.listener.warn,
                )
            )
        return made

    def _made(self, task: Task, rows: Sequence[Row], phase: Phase, folder: Path) -> RatedTrainer:
        if task.learn != "rl":
            return super().trainer(task, rows, phase, folder)
        from perdure.learners.rl import rl_trainer

        if phase.hold:
            raise UsageError(
                f"method: {task_named(task.name)} is learned by reinforcement, where no part of "
                "the model is held",
                "take another method",
            )
        return rl_trainer(
            self.model,
            self.encoder,
            self.recipe.of_task(task.learn),
            task,
            rows,
            phase,
            folder,
            split=(self.micro_batch, self.accumulation),
            bf16=self.precision == "bf16",
            note=self.listener.note,
            warn=self.listener.warn,
        )

    def score_task(self, task: Task, progress: Progress | None) -> TaskScore | None:
        """Score a task's test rows by its metric."""
        return self._scored(task, progress)

    def score_mixed(
        self, task: Task, adapters: Sequence[str], progress: Progress | None
    ) -> TaskScore | None:
        """Score by what the model writes, each row by its adapter; None for other metrics."""
        from perdure.streams.kinds import metric

        return (
            self._scored(task, progress, adapters) if metric(task.metric).needs == "text" else None
        )

    def _scored(
        self, task: Task, progress: Progress | None, adapters: Sequence[str] | None = None
    ) -> TaskScore:
        from perdure.scoring import score_task

        return score_task(
            self.model,
            self.encoder,
            task,
            batch_size=self.recipe.scoring.prompts_at_once,
            accelerator=self.state,
            on_progress=progress,
            adapters=adapters,
        )

    def predict(self, rows: Sequence[Row], task: Task, within: Task | None) -> list[dict[str, Any]]:
        """Answer prompts as the task's metric reads its answers: by label, or by writing; each
        answer says which adapter gave it, where there is a router."""
        from perdure.scoring.routed import Routed, each_by_adapter, said_of
        from perdure.scoring.score import answer_rows

        router = self.router
        choices = None if router is None else Routed(router).choose([r["prompt"] for r in rows])
        answered = partial(
            answer_rows,
            self.model,
            self.encoder,
            task,
            batch_size=self.recipe.scoring.prompts_at_once,
            accelerator=self.state,
        )
        with self.autocast():
            found = each_by_adapter(self.model, choices, rows, answered)
        if choices is None:
            return found
        return [{**one, **said_of(choice)} for one, choice in zip(found, choices, strict=True)]

    def general(self) -> Mapping[str | None, Callable[[], GeneralScore | HarnessScore]]:
        """Perplexity on held-out general text, and the recipe's lm-eval tasks."""
        from perdure.streams import lm_eval_tasks

        found: dict[str | None, Callable[[], GeneralScore | HarnessScore]] = {}
        if self.stream.general.held_out:
            found[None] = self._general_text
        if self.lm_eval_tasks is None:
            self.lm_eval_tasks = lm_eval_tasks.load(self.recipe.general)
        for name, loaded in self.lm_eval_tasks.items():
            found[name] = partial(self._lm_eval, name, loaded)
        return found

    def _general_text(self) -> GeneralScore:
        from perdure.scoring import general_loss

        with self.autocast():
            return general_loss(
                self.model,
                self.encoder,
                self.stream.general.held_out,
                max_tokens=self.recipe.general.max_tokens if self.recipe.general else 128,
                batch_size=self.recipe.scoring.prompts_at_once,
                accelerator=self.state,
                routed=self.routed,
            )

    def _lm_eval(self, name: str, loaded: Any) -> HarnessScore:
        from perdure.scoring import lm_eval

        return lm_eval.score(
            self.model,
            self.tokenizer,
            name,
            loaded,
            limit=self.recipe.general.limit if self.recipe.general else None,
            group=self.recipe.general.group if self.recipe.general else None,
            batch_size=self.recipe.scoring.prompts_at_once,
            precision=self.precision,
            accelerator=self.state,
            on_progress=partial(self.listener.progress, "scoring", name),
            routed=self.routed,
        )

    def make_gauges(self, session: TaskSession) -> Gauges:
        """Gauges of how far the model's states and predictions are from the base model's."""
        return Gauges(self.recipe.gauges, self.stream, session)
