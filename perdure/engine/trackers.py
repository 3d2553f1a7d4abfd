"""What TensorBoard, Weights & Biases, MLflow and trackio get: one run over the whole stream.

`transformers` starts counting steps anew with each trainer, and knows nothing of a score matrix.
One set of its reporting callbacks lives as long as the stream; steps go on from task to task, and
each row of the score matrix is one more log entry.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from perdure.errors import UsageError


class Trackers(TrainerCallback):
    """Passes a trainer's events on to the trackers in `report_to`, with steps made continuous."""

    def __init__(self, report_to: Sequence[str], main_process: bool) -> None:
        try:
            found = get_reporting_integration_callbacks(list(report_to))
            self.callbacks = [c() for c in found]
        except Exception as error:  # each integration raises its own when its package is missing
            raise UsageError(
                f"train.report_to: {error}", "install the tracker or drop it"
            ) from error
        self.offset, self.main_process = 0, main_process

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        for callback in self.callbacks:
            callback.on_train_begin(args, self._moved(state), control, **kwargs)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        for callback in self.callbacks:
            callback.on_log(args, self._moved(state), control, logs=dict(logs or {}), **kwargs)

    def task_done(self, steps: int) -> None:
        self.offset += steps

    def scores(self, args: Any, values: Mapping[str, float]) -> None:
        """Report one row of the score matrix, e.g. `{"score/topic": 0.8}`."""
        state = TrainerState(global_step=self.offset)
        state.is_world_process_zero = self.main_process
        for callback in self.callbacks:
            callback.on_log(args, state, TrainerControl(), logs=dict(values))

    def close(self, args: Any) -> None:
        state = TrainerState(global_step=self.offset)
        state.is_world_process_zero = self.main_process
        for callback in self.callbacks:
            callback.on_train_end(args, state, TrainerControl())

    def _moved(self, state: TrainerState) -> TrainerState:
        moved = copy.copy(state)
        moved.global_step = state.global_step + self.offset
        return moved
