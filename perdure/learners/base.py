"""What all learners share: a task turned into gradient steps, with any methods around it.

A learner owns what scale needs: phases with a trainer each, the global batch split over processes
and micro-batches, precision, checkpoints inside a task, restoring, gauges, trackers, freezing, and
the order in which memory is given back. It knows neither a run directory nor a display: it returns
what it found, and tells a `Listener` how it goes. It does not know which method is at work either.

A kind of task is a subclass that gives five things, of which the last two have a default for rows
of token ids:

    load        the model and its tokenizer
    encode      a row as token ids and labels
    score_task  a task's score, or None before the task was learned
    collate     encoded rows as a batch
    trainer     which trainer runs, with `rates` for parameters that learn at a rate of their own

Where its model grows with each task, `begin_task` adds the modules. How a task is learned is the
task's word (`Task.learn`, one of its kind's `ways`), so that one stream may mix ways: `trainer` is
given the task.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, TrainingArguments

from perdure import stopping
from perdure.engine.attach import attach
from perdure.engine.batching import drawn_rows, epoch_rows, halved, split_batch, steps_of
from perdure.engine.callbacks import GaugeCallback, ProgressCallback
from perdure.engine.method_state import STATE, give_weights, load_methods, save_methods
from perdure.engine.saving import SaveOrStop
from perdure.engine.served import ending, serving
from perdure.engine.session import TaskSession
from perdure.engine.trackers import Trackers
from perdure.errors import UsageError, task_named
from perdure.failures import reading
from perdure.learners.freezing import frozen_parameters
from perdure.learners.kind import KindHooks, drawn
from perdure.learners.listener import Fitted, Folders, Listener, Silent
from perdure.learners.routing import Routing
from perdure.learners.scores import Key, Line, scored
from perdure.learners.spent import Spent
from perdure.learners.training import (
    RatedTrainer,
    forget_trainer,
    newest_whole,
    pickles_refused,
    step_of,
)
from perdure.models.adapter_lists import write_first
from perdure.models.random_state import seed_of
from perdure.models.weights import is_sharded, put, trainable
from perdure.processes import barrier, processes, rank
from perdure.protocol.method import Method
from perdure.protocol.step import Phase
from perdure.scoring.gauges import exceeded, rewound
from perdure.seals import verify
from perdure.streams.task import Gone

if TYPE_CHECKING:
    from perdure.recipe.schema import Recipe
    from perdure.scoring.gauges import Gauges
    from perdure.streams.task import Row, TaskStream


class Learner(Routing, KindHooks):
    """Learns the tasks of a stream, one after the other, and scores them. Subclass it for a kind.

    Args:
        model: as loaded, not wrapped; tokenizer: its own.
        precision: "fp32", or "bf16" (autocast; weights and optimizer stay fp32).
        folders: where caches, checkpoints inside a task and trackers' files go.
        listener: hears how it goes; None is silent.
        encoder: tokenized the stream's rows before and keeps them; None: none did.
        batch_split, lm_eval_tasks: as of `perdure.learners.build`.

    Raises:
        UsageError: the recipe asks for something that this kind, or this model, does not have.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        stream: TaskStream,
        methods: Sequence[Method],
        recipe: Recipe,
        precision: str,
        folders: Folders,
        listener: Listener | None = None,
        encoder: Any = None,
        batch_split: tuple[int, int] | None = None,
        lm_eval_tasks: Mapping[str, Any] | None = None,
    ) -> None:
        self.prepared_encoder, self.lm_eval_tasks = encoder, lm_eval_tasks
        self.model, self.tokenizer, self.stream, self.methods = model, tokenizer, stream, methods
        self.recipe, self.precision, self.folders = recipe, precision, folders
        self.listener: Listener = listener or Silent()
        self.state = processes()
        self._to_device()
        self.trackers = Trackers(recipe.train.report_to, self.state.is_main_process)
        split = batch_split or split_batch(recipe, self.state.num_processes)
        self.micro_batch, self.accumulation = self.whole_split = split
        self.rows_a_step = recipe.train.batch_size
        self.check()
        if is_sharded(model) and any(m.requires.teacher for m in methods):
            raise UsageError(
                "method: a frozen copy of the model is not available when its weights are sharded",
                "leave out model.fsdp_size, or take a method without a teacher",
            )
        self.born: dict[str, Tensor] = {}
        self._moved: dict[str, int] = {}  # elements of the parameters that a task trained
        self._spent = Spent(self.passes)
        self._session = self._session_of(0)
        self._gauges: Gauges | None = None
        for said in filter(None, (method.says for method in methods)):
            self.listener.note(said)
        if self.state.num_processes > 1:
            how = "sharded" if is_sharded(model) else "copied"
            self.listener.note(f"weights {how} over {self.state.num_processes} processes")

    # --- learning

    def fit(self, index: int) -> Fitted:
        """Learn the task number `index`, going on from its newest sealed checkpoint if any."""
        if self.stream.tasks[index].learn == "none":
            self.listener.note(f"{task_named(self.stream.tasks[index].name)}: is only scored")
            return Fitted()
        self._spent, self._moved = Spent(self.passes), {}
        with stopping.at_once():  # what methods prepare is kept in caches, or soon made again
            self._grow(index)
            self._split(index)
            session = self._session = self._session_of(index)
            gauges, budget = self._gauges_of(session), self.recipe.stop_when
            self._begin(session)
        before = session.snapshot() if budget is not None and budget.action == "rewind" else None
        phases = self._phases(session)
        starts = {p.start for p in phases}
        previous = session.snapshot() if "previous" in starts else {}
        for phase in phases:
            if phase.start != "current":
                put(self.model, previous if phase.start == "previous" else self.base_weights())
            self._train(session, phase)
        serve, others = ending(self.methods)
        for method in serve:
            give_weights(self.model, method.end_task(session.context))
        if gauges is not None and budget is not None and before is not None:
            share, weights = rewound(gauges, session, budget, before)
            give_weights(self.model, weights)
            session.log("budget_share", share)
            if share < 1:
                now = ", ".join(f"{k} {v:.3g}" for k, v in gauges.read(session).items())
                self.listener.warn(
                    f"{task_named(session.task.name)}: {share:.0%} of its update kept: {now}"
                )
        for method in others:
            give_weights(self.model, method.end_task(session.context))
        facts = session.take_facts() | {
            "trained_parameters": float(sum(self._moved.values())),
            **self._spent.now(),
        }
        self.track(facts)
        return Fitted(facts)

    def _grow(self, index: int) -> None:
        """Have `begin_task` add its modules; their first values are part of the base weights."""
        with self.births():
            drawn(lambda: self.begin_task(index), seed_of(self.recipe.seed, "begin_task", index))
        self._to_device()

    def _begin(self, session: TaskSession) -> None:
        """Have the methods prepare, those that add adapters first."""
        with self.births():
            for method in sorted(self.methods, key=lambda m: not m.adapters):
                method.begin_task(session.context)

    def _split(self, index: int) -> None:
        """Leave half of the batch to kept rows where a method wants that, and there are some."""
        halves = bool(self._learned(index)) and any(m.halves for m in self.methods)
        own = self.recipe.of_task(learn := self.stream.tasks[index].learn)
        world = self.state.num_processes
        whole = split_batch(own, world, learn) if learn == "rl" else self.whole_split
        self.rows_a_step = own.train.batch_size // (2 if halves else 1)
        self.micro_batch, self.accumulation = halved(*whole) if halves else whole

    def _to_device(self) -> None:
        if torch.cuda.is_available() and not is_sharded(self.model):
            self.model.to(self.state.device)

    def _gauges_of(self, session: TaskSession) -> Gauges | None:
        if self._gauges is None and self.recipe.gauges.every:
            self._gauges = self.make_gauges(session)
        return self._gauges if self.recipe.gauges.every else None

    def _train(self, session: TaskSession, phase: Phase) -> None:
        folder = self.folders.work / f"task-{session.task_index + 1}" / phase.name
        rows: list[Row] = list(session.task.train)
        for method in self.methods:
            rows = method.train_data(session.context, rows)
        session.begin_phase(phase, epoch_rows(self.recipe, session.task, len(rows)))
        with frozen_parameters(self.model, phase.freeze):
            self._moved |= {name: p.numel() for name, p in trainable(self.model).items()
                            if not (phase.hold and re.search(phase.hold, name))}  # fmt: skip
            with stopping.at_once():  # of heads alone, the body may read all texts first
                trainer, saving = self._trainer(session, phase, rows, folder)
            found = newest_whole(folder, self.listener.warn)
            self.listener.note(
                f"{task_named(session.task.name)}, phase {phase.name}: {len(rows)} rows, "
                f"{trainer.args.max_steps} steps" + (f", from {found.name}" if found else "")
            )
            if found is not None:
                self._spent.go_on(found)
            if found is not None and step_of(found) >= trainer.args.max_steps:
                # Resuming a finished training makes one more step: take its result as it is.
                trainer._load_from_checkpoint(str(found))
            else:
                with pickles_refused(found):
                    trainer.train(resume_from_checkpoint=str(found) if found else None)
            if saving.said:
                stopping.raise_if_wanted(saving.said)
            self.trackers.task_done(trainer.args.max_steps)
        barrier()
        # What comes after (Fisher values, interpolation) must not pay for the optimizer's moments.
        trainer.optimizer = trainer.lr_scheduler = None
        trainer.accelerator.free_memory()
        session.leave()
        del trainer
        forget_trainer(self.model)

    def _trainer(
        self, session: TaskSession, phase: Phase, rows: list[Row], folder: Path
    ) -> tuple[RatedTrainer, SaveOrStop]:
        forget_trainer(self.model)
        trainer = self.trainer(session.task, rows, phase, folder)
        trainer.session = session
        attach(trainer, *self.methods, session=session)
        facts = {"after": session.task_index + 1, "task": session.task.name, "phase": phase.name}
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(ProgressCallback(trainer, self.listener.row, facts, self._spent.now))
        if (gauges := self._gauges_of(session)) is not None:
            every, budget = self.recipe.gauges.every, self.recipe.stop_when
            stops = budget is not None and budget.action == "stop"
            read, over = partial(gauges.read, session), partial(exceeded, budget)
            trainer.add_callback(
                GaugeCallback(session, read, over, every, stops, self.listener.warn)
            )
        saving = SaveOrStop(
            session,
            self.state.device,
            minutes=self.recipe.save.minutes,
            every=getattr(trainer.args, "num_iterations", 1),  # where completions are made
            saves=self.recipe.model.fsdp_size <= 1,
        )
        trainer.add_callback(saving)
        trainer.add_callback(self.trackers)
        return trainer, saving

    def _phases(self, session: TaskSession) -> Sequence[Phase]:
        for method in self.methods:
            if type(method).phases is not Method.phases:
                phases = method.phases(session.context)
                if len({p.name for p in phases}) < len(phases):
                    raise UsageError("method: two phases of a task have the same name")
                if unknown := {p.objective for p in phases} - set(self.objectives):
                    raise UsageError(
                        f"method: tasks of kind {self.kind} are not learned by {min(unknown)}",
                        f"a phase's objective is here: {', '.join(self.objectives)}",
                    )
                return phases
        return (Phase(),)

    def _session_of(self, index: int) -> TaskSession:
        return TaskSession(
            self.model,
            self.encoder,
            self.stream.tasks[index],
            methods=self.methods,
            task_index=index,
            tasks_seen=[
                t if t.train_kept else replace(t, train=Gone(t.name))
                for t in map(self.stream.tasks.__getitem__, self._learned(index))
            ],
            general=self.stream.general,
            seed=self.recipe.seed,
            batch_size=self.rows_a_step,
            cache=self.folders.cache,
            base=self.base_weights if index else None,
            autocast=self.autocast,
            stream_tokens=self._stream_tokens,
            tell=self.listener.progress,
            score=self._score_for_methods,
            packs=self.packs,
            collate=self.collate,
            processes=(self.state.process_index, self.state.num_processes),
            classes=self.layout(index),
        )

    def _stream_tokens(self) -> int:
        """Tokens of all tasks' rows over all steps, from each task's first rows."""
        total = 0.0
        for task in self.stream:
            some = [len(self.encode(row)["input_ids"]) for row in task.train[:64]]
            own = self.recipe.of_task(task.learn)
            steps = steps_of(own, len(task.train), batch_size=drawn_rows(own, task.learn))
            total += steps * own.train.batch_size * sum(some) / max(1, len(some))
        return round(total)

    # --- scoring

    def scores(self, after: int, done: Collection[Key] = ()) -> Iterator[Line]:
        """Score all tasks and general ability but what is `done`, with the weights that methods
        serve; yield a line of scores.jsonl and the scored rows each time one is there."""
        return scored(self, after, done)

    @contextmanager
    def serving(self) -> Iterator[bool]:
        """Have the weights that the methods serve in the model; says whether any method serves."""
        with serving(self._session.context, self.methods) as any_served:
            yield any_served

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision of training and scoring."""
        if self.precision != "bf16":
            return nullcontext()
        return torch.autocast(self.state.device.type, torch.bfloat16)

    def track(self, figures: Mapping[str, float]) -> None:
        """Give figures to the recipe's trackers."""
        if self.trackers.callbacks and figures:
            self.trackers.scores(self._tracker_arguments(), figures)

    def _tracker_arguments(self) -> TrainingArguments:
        return TrainingArguments(str(self.folders.trackers), report_to="none")

    # --- saving

    def save(self, folder: Path) -> None:
        """Save weights and the methods' state to `folder`; all processes call it, one writes."""
        self._save_served(folder / "model")
        save_methods(folder / STATE, self.methods, rank() == 0)
        if rank() == 0:
            write_first(self.model, self.born, folder)
        if any(type(m).serving is not Method.serving for m in self.methods):
            with self.serving() as served:
                if served:
                    self._save_served(folder / "serving")

    def _save_served(self, folder: Path) -> None:
        self.save_weights(folder)
        if (router := self.router) is not None and rank() == 0:
            router.save(folder)

    def restore(self, folder: Path, learned: int, steps: int = 0) -> None:
        """Go on from what `save` wrote after `learned` tasks.

        The model grows first as it did while they were learned, so that every weight finds its
        place; adapters are there again by what lies in the checkpoint.

        Args: steps: optimizer steps made so far, from which trackers count on.
        """
        growing = [m for m in self.methods if m.grows]
        for index in self._learned(learned):
            self._grow(index)
            if growing:
                session = self._session_of(index)
                for method in growing:
                    method.begin_task(session.context)
        with reading(folder, f"put it back from a copy, or delete the folder {folder}"):
            self.take_saved(folder / "model")
            load_methods(folder / STATE, self.methods, self.model)
        self.refuse_other_base(folder / "model")
        self._session = self._session_of(learned - 1)
        self.trackers.task_done(steps)

    def _learned(self, after: int) -> list[int]:
        return [i for i, task in enumerate(self.stream.tasks[:after]) if task.learn != "none"]

    def show(self, model: Path, learned: int) -> None:
        """Have the weights that were saved in `model` after `learned` tasks, to score them: the
        methods' state is not needed, nor is there anything to go on with."""
        verify(model.parent, "put it back from a copy, or score another checkpoint")
        for index in self._learned(learned):
            self._grow(index)
        self.take_saved(model)

    def finish(self) -> None:
        """Close the trackers."""
        if self.trackers.callbacks:
            self.trackers.close(self._tracker_arguments())
