"""The learner of text: supervised fine-tuning on answers, with any methods around it.

It turns a task into gradient steps and owns what scale needs: a new trainer for each phase, the
global batch split over processes and micro-batches, precision, checkpoints inside a task, and
scoring. It does not know which method is at work.
"""

from __future__ import annotations

import errno
import logging
import math
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, TrainingArguments

from perdure.engine.attach import attach, serving
from perdure.engine.batching import split_batch, steps_of
from perdure.engine.callbacks import GaugeCallback, ProgressCallback
from perdure.engine.method_state import STATE, give_weights, load_methods, save_methods
from perdure.engine.rows import check_rows
from perdure.engine.sampler import EpochSampler
from perdure.engine.session import TaskSession
from perdure.engine.trackers import Trackers
from perdure.engine.trainer import PerdureTrainer
from perdure.errors import TrainingError, UsageError
from perdure.files import newest_sealed
from perdure.learners.measuring import Measuring
from perdure.models.chat import recipe_encoder
from perdure.models.weights import empty_like, is_sharded, put, trainable, whole_weights
from perdure.processes import barrier, processes, rank
from perdure.protocol.batch import ROWS, HostRows, collate
from perdure.protocol.method import Method
from perdure.protocol.step import Phase
from perdure.run import Run
from perdure.scoring.gauges import Gauges, exceeded, rewound
from perdure.streams.task import Row, TaskStream

if TYPE_CHECKING:
    from perdure.recipe.schema import Recipe


class GenerationLearner(Measuring):
    """Fine-tunes a causal language model on prompt-and-answer rows and scores it.

    Args:
        model: as loaded, not wrapped; tokenizer: its own.
        precision: "fp32", or "bf16" (autocast; weights and optimizer stay fp32).
        display: see `perdure.reports.terminal.Display`.
    """

    kind = "generation"

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        stream: TaskStream,
        methods: Sequence[Method],
        recipe: Recipe,
        run: Run,
        display: Any,
        precision: str,
    ) -> None:
        self.model, self.stream, self.methods = model, stream, methods
        self.recipe, self.run, self.display, self.precision = recipe, run, display, precision
        self.encoder = recipe_encoder(tokenizer, recipe)
        self.state = processes()
        if torch.cuda.is_available() and not is_sharded(model):
            model.to(self.state.device)
        self.trackers = Trackers(recipe.train.report_to, self.state.is_main_process)
        self.micro_batch, self.accumulation = split_batch(recipe, self.state.num_processes)
        limit = getattr(model.config, "max_position_embeddings", None)
        check_rows(stream, self.encoder, limit)
        if is_sharded(model) and any(m.requires.teacher for m in methods):
            raise UsageError(
                "method: a frozen copy of the model is not available when its weights are sharded",
                "leave out model.fsdp_size, or take a method without a teacher",
            )
        self._session = self._session_of(0)
        self._gauges: Gauges | None = None
        if self.state.num_processes > 1:
            how = "sharded" if is_sharded(model) else "copied"
            self._note(f"weights {how} over {self.state.num_processes} processes")

    # --- learning

    def fit(self, index: int) -> None:
        """Learn the task number `index`, going on from its newest sealed checkpoint if any."""
        session = self._session = self._session_of(index)
        with _disk_full_is_told(self.run.path):
            gauges, budget = self._gauges_of(session), self.recipe.stop_when
            for method in self.methods:
                method.begin_task(session.context)
            before = (
                session.snapshot() if budget is not None and budget.action == "rewind" else None
            )
            phases = self._phases(session)
            starts = {p.start for p in phases}
            previous = session.snapshot() if "previous" in starts else {}
            for phase in phases:
                if phase.start != "current":
                    put(self.model, previous if phase.start == "previous" else self._base_weights())
                self._train(session, phase)
            if gauges is not None and budget is not None and before is not None:
                share, weights = rewound(gauges, session, budget, before)
                give_weights(self.model, weights)
                session.log("budget_share", share)
                if share < 1:
                    now = ", ".join(f"{k} {v:.3g}" for k, v in gauges.read(session).items())
                    self._tell(f"task {session.task.name}: {share:.0%} of its update kept: {now}")
            for method in self.methods:
                give_weights(self.model, method.end_task(session.context))
            told = session.take_logged()  # there is no log line any more to go with
            for name, value in told.items():
                self._note(f"task {session.task.name}: {name} {value:g}")
            self._track(told)

    def _gauges_of(self, session: TaskSession) -> Gauges | None:
        if not self.recipe.gauges.every:
            return None
        if self._gauges is None:
            self._gauges = Gauges(self.recipe.gauges, self.stream, session)
        return self._gauges

    def _train(self, session: TaskSession, phase: Phase) -> None:
        folder = self.run.path / "work" / f"task-{session.task_index + 1}" / phase.name
        rows: list[Row] = list(session.task.train)
        for method in self.methods:
            rows = method.train_data(session.context, rows)
        session.begin_phase(phase, len(rows))
        encoded = [self.encoder.encode(row) for row in rows]
        with frozen_parameters(self.model, phase.freeze):
            trainer = self._trainer(session, phase, encoded, folder)
            found = newest_sealed(folder)
            self._note(
                f"task {session.task.name}, phase {phase.name}: {len(encoded)} rows, "
                f"{trainer.args.max_steps} steps" + (f", from {found.name}" if found else "")
            )
            if found is not None and _step_of(found) >= trainer.args.max_steps:
                # Resuming a finished training makes one more step: take its result as it is.
                trainer._load_from_checkpoint(str(found))
            else:
                trainer.train(resume_from_checkpoint=str(found) if found else None)
            self.trackers.task_done(trainer.args.max_steps)
        barrier()
        # What comes after (Fisher values, interpolation) must not pay for the optimizer's moments.
        trainer.optimizer = trainer.lr_scheduler = None
        trainer.accelerator.free_memory()
        session.leave()
        del trainer
        _forget_trainer(self.model)

    def _trainer(
        self, session: TaskSession, phase: Phase, encoded: list[dict[str, Any]], folder: Path
    ) -> PerdureTrainer:
        train = self.recipe.train
        steps = steps_of(self.recipe, len(encoded), phase.epochs)
        _forget_trainer(self.model)
        args = TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=self.micro_batch,
            gradient_accumulation_steps=self.accumulation,
            max_steps=steps,
            learning_rate=train.learning_rate,
            lr_scheduler_type=train.schedule,
            warmup_steps=math.ceil(train.warmup * steps),
            weight_decay=train.weight_decay,
            max_grad_norm=train.max_grad_norm,
            optim=train.optimizer,
            bf16=self.precision == "bf16",
            activation_checkpointing=train.gradient_checkpointing,
            use_cpu=not torch.cuda.is_available(),
            logging_steps=train.log_steps,
            logging_nan_inf_filter=False,
            save_strategy="steps" if self.recipe.save.steps else "no",
            save_steps=self.recipe.save.steps or 500,
            seed=self.recipe.seed,
            data_seed=self.recipe.seed,
            remove_unused_columns=False,
            dataloader_pin_memory=torch.cuda.is_available(),
            disable_tqdm=True,
            report_to="none",
            ddp_find_unused_parameters=False,
        )
        pad = self.encoder.pad_id
        trainer = PerdureTrainer(
            model=self.model,
            args=args,
            train_dataset=encoded,
            data_collator=lambda rows: {**collate(rows, pad), ROWS: HostRows(rows)},
            processing_class=self.encoder.tokenizer,
        )
        trainer.session = session
        trainer.sampler = EpochSampler(
            [len(row["input_ids"]) for row in encoded],
            self.recipe.train.batch_size,
            self.recipe.seed,
        )
        attach(trainer, *self.methods, session=session)
        facts = {"after": session.task_index + 1, "task": session.task.name, "phase": phase.name}
        trainer.remove_callback(PrinterCallback)
        trainer.add_callback(ProgressCallback(trainer, self._on_row, facts))
        if (gauges := self._gauges_of(session)) is not None:
            every, budget = self.recipe.gauges.every, self.recipe.stop_when
            trainer.add_callback(
                GaugeCallback(
                    session,
                    partial(gauges.read, session),
                    partial(exceeded, budget),
                    every,
                    budget is not None and budget.action == "stop",
                    self._tell,
                )
            )
        trainer.add_callback(self.trackers)
        return trainer

    def _on_row(self, row: Mapping[str, Any]) -> None:
        if rank() != 0:
            return
        self.run.log(row)
        shown = ("task", "step", "steps", "loss", "tokens_per_second", "seconds_left")
        self.display.training(self.run.methods_name, *(row[key] for key in shown))

    def _note(self, text: str) -> None:
        if rank() == 0:
            self.run.note(text)

    def _tell(self, text: str) -> None:
        """Note what the user must not miss: in the run's log, and at once."""
        self._note(text)
        if rank() == 0:
            logging.getLogger("perdure").warning("%s", text)

    def _phases(self, session: TaskSession) -> Sequence[Phase]:
        for method in self.methods:
            if type(method).phases is not Method.phases:
                phases = method.phases(session.context)
                if len({p.name for p in phases}) < len(phases):
                    raise UsageError("method: two phases of a task have the same name")
                return phases
        return (Phase(),)

    def _session_of(self, index: int) -> TaskSession:
        return TaskSession(
            self.model,
            self.encoder,
            self.stream.tasks[index],
            methods=self.methods,
            task_index=index,
            tasks_seen=self.stream.tasks[:index],
            general=self.stream.general,
            seed=self.recipe.seed,
            batch_size=self.recipe.train.batch_size,
            cache=self.run.path / "cache",
            base=self._base_weights if index else None,
            autocast=self._autocast,
            stream_tokens=self._stream_tokens,
            tell=partial(self.display.doing, self.run.methods_name),
            score=lambda task, rows: self._score_task(replace(task, test=rows)).score,
            packs=True,
            processes=(self.state.process_index, self.state.num_processes),
        )

    def _stream_tokens(self) -> int:
        """Tokens of all tasks' rows over all steps, from each task's first rows."""
        total = 0.0
        for task in self.stream:
            some = [len(self.encoder.encode(row)["input_ids"]) for row in task.train[:64]]
            steps = steps_of(self.recipe, len(task.train))
            total += steps * self.recipe.train.batch_size * sum(some) / max(1, len(some))
        return round(total)

    def _base_weights(self) -> dict[str, Tensor]:
        """The untouched base model's values of the trainable parameters."""
        from perdure.models import load_base

        names = set(trainable(self.model))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.recipe.seed)
            base, _ = load_base(self.recipe.model, precision=self.precision)
        device = next(self.model.parameters()).device
        return {n: p.detach().to(device) for n, p in base.named_parameters() if n in names}

    # --- saving

    def save(self, after: int) -> None:
        """Seal the weights and the methods' state after `after` tasks; drop what they replace."""
        with _disk_full_is_told(self.run.path):
            sealing = self.run.sealing(after) if rank() == 0 else nullcontext(Path())
            with sealing as folder:
                self._save_weights(folder / "model")
                save_methods(folder / STATE, self.methods, rank() == 0)
                if any(type(m).serving is not Method.serving for m in self.methods):
                    with serving(self._session.context, self.methods) as served:
                        if served:
                            self._save_weights(folder / "serving")
            barrier()
            if rank() == 0:
                self.run.drop_work()
                if self.recipe.save.tasks == "last":
                    self.run.drop_checkpoints_before(after)

    def _save_weights(self, folder: Path) -> None:
        from perdure.models import save_model

        sharded = is_sharded(self.model)
        weights = whole_weights(self.model) if sharded else None
        if rank() == 0:
            # A sharded model would gather its weights again, and wait for all processes to ask.
            model = empty_like(self.model) if sharded else self.model
            save_model(model, self.encoder.tokenizer, folder, self.recipe.model, weights)

    def restore(self) -> int:
        """Go on from the newest sealed checkpoint; returns how many tasks it has learned."""
        from perdure.models import load_weights

        learned, folder = self.run.last_checkpoint()
        if folder is not None:
            growing = [m for m in self.methods if m.grows]
            for index in range(learned if growing else 0):
                session = self._session_of(index)
                for method in growing:
                    method.begin_task(session.context)
            put(self.model, load_weights(self.model, folder / "model"))
            load_methods(folder / STATE, self.methods, self.model)
            self._session = self._session_of(learned - 1)
            done = {(r["after"], r["phase"]): r["steps"] for r in self.run.log_rows()}
            steps = [n for (after, _), n in done.items() if after <= learned]
            self.trackers.task_done(sum(steps))
        return learned

    def finish(self) -> None:
        if self.trackers.callbacks:
            folder = str(self.run.path / "trackers")
            self.trackers.close(TrainingArguments(folder, report_to="none"))
        if rank() == 0:
            self.run.finish()


@contextmanager
def frozen_parameters(model: nn.Module, pattern: str) -> Iterator[None]:
    """Parameters whose name `pattern` finds get no updates inside the block.

    Raises:
        TrainingError: it finds none, or all.
    """
    if not pattern:
        yield
        return
    before = trainable(model)
    chosen = {n: p for n, p in before.items() if re.search(pattern, n)}
    if not chosen or len(chosen) == len(before):
        which = "no parameter" if not chosen else "every parameter"
        raise TrainingError(f"the phase freezes {pattern!r}, which matches {which}")
    for p in chosen.values():
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in chosen.values():
            p.requires_grad_(True)


def _forget_trainer(model: nn.Module) -> None:
    """Remove what a trainer leaves on a model, which the next one would build on.

    A mark that it is wrapped already turns DDP off without a word, and each patch of `forward`
    nests deeper.
    """
    for name in ("_is_accelerate_prepared", "forward", "_original_forward"):
        model.__dict__.pop(name, None)
    config: Any = getattr(model, "config", None)
    if config is not None:
        config.use_cache = True


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rsplit("-", 1)[1])


@contextmanager
def _disk_full_is_told(path: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        full_disk = getattr(error, "errno", None) == errno.ENOSPC or "No space left" in str(error)
        if not full_disk:
            raise
        free = shutil.disk_usage(path).free // 2**20
        raise TrainingError(
            f"{path}: no space left on the disk ({free} MB free)",
            (
                "free some, then go on with: perdure resume " + str(path),
                "or keep fewer checkpoints: save.tasks: last",
            ),
        ) from error
