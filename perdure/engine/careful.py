"""What every trainer of Perdure's takes care of, whatever its loss is.

A loss that is not finite stops the run before anything is saved; a checkpoint is unsealed while it
is written; the weights that are loaded are those that were saved, adapters with their lists.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Trainer

from perdure.engine.session import TaskSession
from perdure.errors import TrainingError, task_named
from perdure.failures import at
from perdure.models.adapter_lists import holder, use_saved, write_lists
from perdure.models.restore import load_weights
from perdure.models.weights import is_sharded, local, put, trainable
from perdure.seals import unseal

BROKEN = ("probability tensor contains", "device-side assert")
"""How torch says, on a CPU and on a GPU, that it cannot draw from what is no distribution."""


class CarefulTrainer(Trainer):
    """See the module. `session` is set by the learner right after it is built."""

    session: TaskSession

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.finite: Tensor | bool = True

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss: Tensor = super().training_step(*args, **kwargs)
        self.finite = torch.isfinite(loss) & self.finite  # read when logging: no wait in a step
        return loss

    def refuse_nan(self) -> None:
        """Raise `TrainingError` if a loss since the last look was not finite."""
        if not bool(self.finite):
            raise self._not_finite("the loss is not finite at")

    def refuse_broken(self) -> None:
        """The same before weights are kept: an update may break them though the loss was finite."""
        self.refuse_nan()
        for name, weight in trainable(self.session.model).items():
            if not bool(torch.isfinite(local(weight)).all()):
                raise self._not_finite(f"the weights of {name} are not finite after")

    def _not_finite(self, what: str) -> TrainingError:
        return TrainingError(
            f"{task_named(self.session.task.name)}: {what} step {self.state.global_step} "
            f"(learning rate {self.args.learning_rate:g})",
            (
                "lower train.learning_rate, or set train.precision: fp32",
                "nothing saved is lost",
            ),
        )

    @contextmanager
    def sampling(self) -> Iterator[None]:
        """Around what has the model write within its training, between two lines of the log: with
        weights that are broken torch fails to draw a token, before a look at the loss tells it.

        Raises:
            TrainingError: a loss before it, or what the model predicts, is not finite.
        """
        self.refuse_nan()
        try:
            yield
        except RuntimeError as error:
            if not any(words in str(error) for words in BROKEN):
                raise
            raise self._not_finite("the model's predictions are not finite after") from error

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.refuse_broken()
        # A folder of this name left by a run that was killed must not count while it changes.
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        if self.is_world_process_zero():
            unseal(folder)
        with at(folder):
            super()._save_checkpoint(model, trial)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        super()._save(output_dir, state_dict)
        # The trainer saves adapters, and not which of them are active.
        if output_dir is not None and self.args.should_save:
            write_lists(self.session.model, Path(output_dir))

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """A tied weight is saved once, and is not missing by its other name."""
        tied = getattr(self.session.model, "all_tied_weights_keys", ())
        missing = [name for name in load_result.missing_keys if name not in tied]
        found = load_result._replace(missing_keys=missing)
        super()._issue_warnings_after_load(found)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder, host = Path(resume_from_checkpoint), self.session.model
        if holder(host) is host and not is_sharded(host):
            # The trainer would make one adapter the only active one, and train what a phase froze.
            put(host, load_weights(host, folder))
            use_saved(host, folder, kept=True)
            return
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if (folder / "model.safetensors").exists() and not is_sharded(host):
            # The trainer passes over tensors that some families save under other names
            # (experts of a mixture), and only warns of it.
            put(host, load_weights(host, folder))
