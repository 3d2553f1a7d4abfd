"""Scoring as a learner does it: with the weights that methods serve, on all processes, recorded."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import TrainingArguments

from perdure.engine.attach import serving
from perdure.engine.session import TaskSession
from perdure.engine.trackers import Trackers
from perdure.models.chat import Encoder
from perdure.processes import rank
from perdure.protocol.method import Method
from perdure.run import Run
from perdure.streams.kinds import PERPLEXITY
from perdure.streams.task import Task, TaskStream

if TYPE_CHECKING:
    from perdure.recipe.schema import Recipe
    from perdure.scoring import GeneralScore, TaskScore


class Measuring:
    """The half of a learner that scores. Mixed into learners whose model generates text."""

    model: nn.Module
    stream: TaskStream
    methods: Sequence[Method]
    recipe: Recipe
    run: Run
    display: Any
    encoder: Encoder
    trackers: Trackers
    precision: str
    state: Any
    _session: TaskSession

    def score(self, after: int) -> None:
        """Score every task and general ability with the weights that are served; record it."""
        done = {(s["kind"], s.get("task")) for s in self.run.scores() if s["after"] == after}
        figures: dict[str, float] = {}
        with serving(self._session.context, self.methods):
            for task in self.stream:
                if ("task", task.name) in done:
                    continue
                started = time.monotonic()
                result = self._score_task(task)
                line = {
                    "kind": "task",
                    "after": after,
                    "task": task.name,
                    "metric": result.metric,
                    "higher_is_better": result.higher_is_better,
                    **result.recorded,
                    "score": result.score,
                    "rows": len(result.items),
                    "seconds": round(time.monotonic() - started, 2),
                }
                figures[f"score/{task.name}"] = result.score
                self._record(line, result.items)
            if self.stream.general.held_out and ("general", None) not in done:
                started = time.monotonic()
                general = self._general()
                line = {
                    "kind": "general",
                    "after": after,
                    "metric": PERPLEXITY.name,
                    "score": general.perplexity,
                    "loss": general.loss,
                    "tokens": general.tokens,
                    "seconds": round(time.monotonic() - started, 2),
                }
                figures["score/general_perplexity"] = general.perplexity
                self._record(line, ())
            figures |= self._score_harness(
                after, {task for kind, task in done if kind == "general"}
            )
        self._track(figures)

    def _score_task(self, task: Task) -> TaskScore:
        from perdure.scoring import score_task

        shown = list(task.test)[: self.recipe.scoring.max_test_rows]
        task = replace(task, test=shown)
        for method in self.methods:
            if (adapters := method.route(self._session.context, shown)) is not None:
                return self._score_routed(task, adapters)
        with self._autocast():
            return score_task(
                self.model,
                self.encoder,
                task,
                batch_size=self.recipe.scoring.batch_size,
                accelerator=self.state,
                on_progress=lambda done, total: self.display.scoring(
                    self.run.methods_name, task.name, done, total
                ),
            )

    def _score_routed(self, task: Task, adapters: Sequence[str]) -> TaskScore:
        """Score each row with the adapter chosen for it."""
        from perdure.scoring import score_task
        from perdure.scoring.score import pooled

        model: Any = self.model
        active = model.active_adapter
        parts: list[TaskScore] = []
        try:
            for name in sorted(set(adapters)):
                model.set_adapter(name)
                rows = [r for r, a in zip(task.test, adapters, strict=True) if a == name]
                with self._autocast():
                    parts.append(
                        score_task(
                            self.model,
                            self.encoder,
                            replace(task, test=rows),
                            batch_size=self.recipe.scoring.batch_size,
                            accelerator=self.state,
                        )
                    )
        finally:
            model.set_adapter(active)
        items = [item for part in parts for item in part.items]
        return replace(parts[0], score=pooled(task.metric, items), items=items)

    def _general(self) -> GeneralScore:
        from perdure.scoring import general_loss

        with self._autocast():
            return general_loss(
                self.model,
                self.encoder.tokenizer,
                self.stream.general.held_out,
                max_tokens=self.recipe.general.max_tokens if self.recipe.general else 128,
                batch_size=self.recipe.scoring.batch_size,
                accelerator=self.state,
            )

    def _score_harness(self, after: int, done: Collection[str | None]) -> dict[str, float]:
        """Score and record lm-eval's tasks that are not `done`; returns figures for trackers."""
        from perdure.scoring import lm_eval
        from perdure.streams import lm_eval_tasks

        figures: dict[str, float] = {}
        general = self.recipe.general
        for name, loaded in lm_eval_tasks.load(general).items():
            if name in done:
                continue
            line = lm_eval.line(
                self.model,
                self.encoder.tokenizer,
                name,
                loaded,
                after=after,
                limit=general.limit if general else None,
                batch_size=self.recipe.scoring.batch_size,
                precision=self.precision,
                accelerator=self.state,
                on_progress=partial(self.display.scoring, self.run.methods_name, name),
            )
            figures[f"score/general_{name}"] = line["score"]
            self._record(line, ())
        return figures

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.precision != "bf16":
            return nullcontext()
        return torch.autocast(self.state.device.type, torch.bfloat16)

    def _record(self, line: Mapping[str, Any], items: Sequence[Mapping[str, Any]]) -> None:
        if rank() == 0:
            self.run.record(line, items)

    def _track(self, figures: Mapping[str, float]) -> None:
        if self.trackers.callbacks and figures:
            folder = str(self.run.path / "trackers")
            self.trackers.scores(TrainingArguments(folder, report_to="none"), figures)
