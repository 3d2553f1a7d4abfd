"""The log of a trainer with methods: each term by its name, beside the task's own loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from accelerate.utils import gather_object
from torch import Tensor

from perdure.engine.completions import Completions
from perdure.engine.session import TaskSession
from perdure.protocol.batch import ForwardOutput
from perdure.protocol.method import Method


class TermLog:
    """What `Attached` logs; mixed in front of a trainer's own class."""

    methods: Sequence[Method]
    session: TaskSession
    accelerator: Any
    term_sums: dict[str, Any]
    added_sums: dict[str, Any]
    steps_noted: float
    step_sums: dict[str, tuple[Any, int]]
    task_sum: Any

    def forget_terms(self) -> None:
        """Begin a line of the log."""
        self.term_sums, self.added_sums, self.step_sums = {}, {}, {}
        self.steps_noted, self.task_sum = 0.0, 0.0

    def scaled_for_accumulation(self, items: Any) -> bool:
        """Whether the trainer's loss is already a share of the whole step (see Trainer)."""
        host: Any = self
        if host.loss_is_scaled_for_ga is not None:
            return bool(host.loss_is_scaled_for_ga)
        counted = host.model_accepts_loss_kwargs and items is not None
        return counted or host.compute_loss_func is not None

    def note_task(self, loss: Tensor, items: Any, main: ForwardOutput) -> None:
        """Keep the task's own loss, which the trainer logs only with all terms added to it.

        As the terms are: its share of the step, which is a mean over the step's micro-batches.
        """
        passes = 1 if self.scaled_for_accumulation(items) else self.session.accumulation
        share = loss.detach() / passes
        self.task_sum = self.task_sum + share
        main.trained = share * self.session.accumulation

    def note(self, terms: Mapping[str, Tensor]) -> None:
        """Keep each term as it is logged: unscaled where its method logged it under its name."""
        passes = self.session.accumulation  # of this step; an epoch's last one may have fewer
        self.steps_noted += 1 / passes
        logged = {**terms, **self.session.take_watched()}
        for sums, values in ((self.term_sums, logged), (self.added_sums, terms)):
            for name, value in values.items():  # on the device until it is logged
                sums[name] = sums.get(name, 0.0) + value.detach() / passes

    def note_step(self) -> None:
        """Take over tensors that were logged outside of a pass, by `begin_task`, `gradients` or
        `after_step`: whole values, not a micro-batch's share of a step's mean.
        """
        for name, value in self.session.take_watched().items():
            total, count = self.step_sums.get(name, (0.0, 0))
            self.step_sums[name] = total + value, count + 1

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        # The summary at the end has what was logged after the last line.
        if "loss" in logs or "train_loss" in logs:
            if self.methods:  # equal on all processes, which then average together
                logs.update(self._mean_terms())
                self.forget_terms()
            logs.update(self.session.take_logged())
        super().log(logs, *args, **kwargs)  # type: ignore[misc]

    def _mean_terms(self) -> dict[str, float]:
        """Each named loss and what was logged once a step: the mean over the steps since the last
        log, of each step over its micro-batches, and over processes.

        A term has its weight beside it: what it was multiplied by in the loss, over these steps.
        `task_loss` and all terms times their weights are the loss; a name without is no term.
        """
        mine = {f"method/{n}": float(v) / self.steps_noted for n, v in self.term_sums.items()}
        mine |= {f"method/{n}": float(v) / count for n, (v, count) in self.step_sums.items()}
        if isinstance(self, Completions):
            mine |= self.shares.take()
        if self.steps_noted:
            mine["task_loss"] = float(self.task_sum) / self.steps_noted
        added = {f"method/{n}": float(v) / self.steps_noted for n, v in self.added_sums.items()}
        if self.accelerator.num_processes > 1:
            everyone = gather_object([(mine, added)])
            mine, added = (
                {n: sum(one[k].get(n, 0.0) for one in everyone) / len(everyone) for n in keys}
                for k, keys in enumerate((mine, added))
            )
        # Of a term that is 0 nobody knows the weight, and it does not matter.
        return mine | {f"{n}_weight": v / mine[n] for n, v in added.items() if mine[n]}
