"""When a task is saved beside `save.steps`: each so many minutes, and when a signal ends all."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from perdure import stopping
from perdure.errors import task_named
from perdure.processes import largest, world_size

if TYPE_CHECKING:
    from perdure.engine.session import TaskSession

LOOK = 1.0
"""Seconds between two looks at what the other processes were told: each is a collective call."""


class SaveOrStop(TrainerCallback):
    """Saves each so many minutes; at a signal, saves and ends the training of the phase.

    All processes do so at the same step. It comes behind callbacks that end a phase for good.

    Args:
        session: of the task, for messages.
        device: where numbers of several processes are compared.
        minutes: between two checkpoints; None: at signals alone.
        every: only steps that are a multiple of it can be gone on from.
        saves: whether the model can be saved inside a task at all.
    """

    def __init__(
        self,
        session: TaskSession,
        device: torch.device,
        *,
        minutes: float | None = None,
        every: int = 1,
        saves: bool = True,
    ) -> None:
        self.session, self.device = session, device
        self.seconds = None if minutes is None else 60 * minutes
        self.every, self.saves = every, saves
        self.saved = self.looked = 0.0
        self.look_at = self.looked_at = 0
        self.said = ""
        """What was saved when a signal ended the training; "" if none did."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.saved = self.looked = time.monotonic()
        self.look_at = self.looked_at = state.global_step

    def on_save(self, *_: Any, **__: Any) -> None:
        self.saved = time.monotonic()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        number, due = self._told(state.global_step, state.max_steps)
        if not (number or due) or state.global_step % self.every:
            return
        if control.should_training_stop and state.global_step < state.max_steps:
            return  # the phase is over, and would go on from a checkpoint of this step
        control.should_save = self.saves
        if not number:
            return
        stopping.want(number)
        control.should_training_stop = control.should_log = True
        task = task_named(self.session.task.name)
        at = f"step {state.global_step} of {state.max_steps} of {task}"
        self.said = f"saved after {at}"
        if not self.saves:
            self.said = f"at {at}; a sharded model is saved after each task only"

    def _told(self, step: int, steps: int) -> tuple[int, bool]:
        """The signal that came and whether a checkpoint is due, the same on all processes."""
        if step < min(self.look_at, steps):
            return 0, False
        now = time.monotonic()
        spent = (now - self.looked) / max(1, step - self.looked_at)
        due = self.seconds is not None and now - self.saved >= self.seconds
        told = (stopping.wanted(), float(due), spent)
        number, any_due, slowest = largest(told, device=self.device)
        self.looked, self.looked_at, self.look_at = now, step, step + 1
        if world_size() > 1:  # one process alone asks nobody, and looks at each step
            self.look_at = step + max(1, int(LOOK / max(slowest, 1e-9)))
        return int(number), bool(any_due)
