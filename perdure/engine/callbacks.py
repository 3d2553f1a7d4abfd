"""Callbacks of a training: progress and sealed checkpoints, and the gauges' budget."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import TrainerCallback

from perdure.errors import TrainingError, task_named
from perdure.files import numbered
from perdure.models.weights import is_sharded
from perdure.seals import Sealer, seal, share, unseal

if TYPE_CHECKING:
    from perdure.engine.careful import CarefulTrainer
    from perdure.engine.session import TaskSession


LOGGED = ("method/", "gauge/", "rl/", "until/")
"""What names of figures begin with that a line of the log has beside its own."""


class MethodEvents(TrainerCallback):
    """Tells the methods of `perdure.engine.attach` of each step, epoch and begin of training."""

    def __init__(self, host: Any) -> None:
        self.host = host

    def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.host.accelerator.optimizer_step_was_skipped:
            return
        self.host.session.end_step(state.global_step + 1)  # the trainer counts it a moment later
        with torch.no_grad():
            for method in self.host.methods:
                method.after_step(self.host.session.context)
            self.host.note_step()

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.host.note_step()  # what `begin_task` logged

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        self.host.session.begin_epoch()


class GaugeCallback(TrainerCallback):
    """Reads the gauges every so many steps and at the last one; past a budget, ends the phase.

    Args:
        read: gives the gauges' figures by name.
        over: of such figures, the names of those that are over their budget.
        every: steps between two readings.
        stops: whether a figure over its budget ends the phase.
        warn: told, in one line, why a phase ended.
    """

    def __init__(
        self,
        session: TaskSession,
        read: Callable[[], Mapping[str, float]],
        over: Callable[[Mapping[str, float]], list[str]],
        every: int,
        stops: bool,
        warn: Callable[[str], None],
    ) -> None:
        self.session, self.read, self.over = session, read, over
        self.every, self.stops, self.warn = every, stops, warn

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self.every and state.global_step < state.max_steps:
            return
        found = self.read()
        for name, value in found.items():
            self.session.log(name, value, group="gauge")
        over = self.over(found)
        if self.stops and over:
            told = ", ".join(f"{name} {found[name]:.3g}" for name in over)
            what = (
                f"stopped at step {state.global_step} of {state.max_steps}: {told} is over budget"
            )
            self.warn(f"{task_named(self.session.task.name)}: {what}")
            control.should_training_stop = True
            control.should_log = True  # of the steps since the last line
            # Resumed from a checkpoint of this very step, training would go on past it.
            control.should_save = False


class ProgressCallback(TrainerCallback):
    """Tells display and log how training goes, seals checkpoints, and checks what must hold.

    Args: spent: gives what the task has cost so far, which its checkpoints keep.
    """

    def __init__(
        self,
        trainer: CarefulTrainer,
        on_row: Callable[[Mapping[str, Any]], None],
        facts: Mapping[str, Any],
        spent: Callable[[], Mapping[str, float]],
    ) -> None:
        self.trainer, self.on_row, self.facts, self.spent = trainer, on_row, facts, spent
        self.started = self.seen_at_start = 0.0
        self.first_step = 0
        self.sealer = Sealer()

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.started, self.first_step = time.monotonic(), state.global_step
        self.trainer.session.restart_count()
        host = self.trainer
        wrapped = isinstance(host.model_wrapped, nn.parallel.DistributedDataParallel)
        if host.accelerator.num_processes > 1 and not (
            wrapped or is_sharded(self.trainer.session.model) or host.is_deepspeed_enabled
        ):
            raise TrainingError("the processes do not share the model: their weights would drift")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step >= state.max_steps:  # else what came after the last line is lost
            control.should_log = True

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if not logs or "loss" not in logs:
            return
        norm = logs.get("grad_norm")
        if norm is not None and not math.isfinite(norm):  # the weights are spoilt already
            self.trainer.finite = False
        self.trainer.refuse_nan()
        spent = time.monotonic() - self.started
        done = state.global_step - self.first_step
        tokens = float(self.trainer.session.tokens) * self.trainer.accelerator.num_processes
        self.on_row(
            {
                **self.facts,
                "step": state.global_step,
                "steps": state.max_steps,
                "loss": logs["loss"],
                # Without a method's term the trained loss is the task's own.
                "task_loss": logs.get("task_loss", logs["loss"]),
                "learning_rate": logs.get("learning_rate"),
                "gradient_norm": logs.get("grad_norm"),
                "tokens_per_second": round(tokens / spent, 1),
                "seconds_left": round(spent / done * (state.max_steps - state.global_step), 1),
                "memory_mb": peak_memory_mb(),
                **{k: v for k, v in logs.items() if k.startswith(LOGGED)},
            }
        )

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        host = self.trainer
        host.accelerator.wait_for_everyone()  # the other processes' random states are in it too
        if host.is_world_process_zero():
            folder, step = Path(args.output_dir), state.global_step
            said = {"step": step, "spent": self.spent()}

            def settle() -> None:
                seal(folder / f"checkpoint-{step}", said)
                before = [path for number, path in numbered(folder, "checkpoint-") if number < step]
                if before:  # adapters that are not trained in this task are the same files
                    share(before[-1], folder / f"checkpoint-{step}")
                rotate(folder, keep=2)

            self.sealer.begin(folder / f"checkpoint-{step}", settle)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.sealer.wait()
        self.trainer.refuse_broken()


def rotate(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints; each is unsealed before it goes."""
    import shutil

    for _, old in numbered(folder, "checkpoint-")[:-keep]:
        unseal(old)
        shutil.rmtree(old)


def peak_memory_mb() -> int:
    """Highest memory of this process so far: on the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20)
    import resource

    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)
