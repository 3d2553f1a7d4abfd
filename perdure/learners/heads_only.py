"""The trainer of a phase in which heads alone learn: steps on features instead of texts.

`transformers.Trainer` costs several milliseconds a step beside the model, a head one. So this one
keeps all of it (arguments, optimizer, schedule, callbacks, checkpoints, resume) but the loop over
an epoch, which takes the same rows in the same order, and calls the same hooks. Both give the same
weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from perdure.learners.training import PhaseTrainer
from perdure.models.weights import trainable


class HeadsTrainer(PhaseTrainer):
    """See the module. `features` and `labels` are set right after it is built.

    Attributes:
        features: (rows, width) of the rows that are trained on; labels: (rows,).
    """

    features: Tensor
    labels: Tensor
    control: Any
    current_gradient_accumulation_steps: int

    def _run_epoch(self, **of: Any) -> None:
        """One pass over the rows; a resumed one begins where its checkpoint stands."""
        epoch, model, parts = of["epoch"], of["model"], self.args.gradient_accumulation_steps
        begin = 0
        resumed = of["resume_from_checkpoint"]
        if epoch == of["epochs_trained"] and resumed is not None:
            begin = of["steps_trained_in_current_epoch"] // parts
            self._load_rng_state(resumed)
        self.sampler.set_epoch(epoch)
        order = torch.tensor(list(self.sampler))
        learned = list(trainable(model).values())
        model.train()
        norm = rate = None
        size = self.args.per_device_train_batch_size
        for step in range(begin, of["num_update_steps_per_epoch"]):
            rows = order[step * parts * size : (step + 1) * parts * size].split(size)
            items = torch.tensor(sum(map(len, rows)))
            self.current_gradient_accumulation_steps = len(rows)
            self.control = self.callback_handler.on_step_begin(self.args, self.state, self.control)
            for number, some in enumerate(rows, 1):
                self.accelerator.gradient_state._set_sync_gradients(number == len(rows))
                self._tr_loss += self.training_step(model, self._inputs(some), items)
                if number < len(rows):
                    self.control = self.callback_handler.on_substep_end(
                        self.args, self.state, self.control
                    )
            most = self.args.max_grad_norm or float("inf")
            norm = nn.utils.clip_grad_norm_(learned, most)
            self.control = self.callback_handler.on_pre_optimizer_step(
                self.args, self.state, self.control
            )
            self.optimizer.step()
            self.control = self.callback_handler.on_optimizer_step(
                self.args, self.state, self.control
            )
            rate = self._get_learning_rate()
            self.lr_scheduler.step()
            self.optimizer.zero_grad()
            self.state.global_step += 1
            self.state.epoch = epoch + (step + 1) / of["num_update_steps_per_epoch"]
            self.control = self.callback_handler.on_step_end(self.args, self.state, self.control)
            self._tell(of, norm, rate)
            if self.control.should_epoch_stop or self.control.should_training_stop:
                break
        self.control = self.callback_handler.on_epoch_end(self.args, self.state, self.control)
        self._tell(of, norm, rate)

    def _tell(self, of: dict[str, Any], norm: Tensor | None, rate: float | None) -> None:
        self._maybe_log_save_evaluate(
            self._tr_loss, norm, of["model"], of["trial"], of["epoch"],
            of["ignore_keys_for_eval"], of["start_time"], learning_rate=rate,
        )  # fmt: skip

    def _inputs(self, rows: Tensor) -> dict[str, Tensor]:
        ones = torch.ones(len(rows), 1, dtype=torch.long)
        labels = self.labels[rows]
        return {
            "features": self.features[rows],
            "labels": labels,
            "input_ids": ones,
            "attention_mask": ones,
        }

    def training_step(self, model: nn.Module, inputs: Any, items: Any = None) -> Tensor:
        with self.compute_loss_context_manager():
            loss: Tensor = self.compute_loss(model, inputs, num_items_in_batch=items)
        loss.backward()
        self.finite = torch.isfinite(loss.detach()) & self.finite
        return loss.detach()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        self.session.count_tokens(len(inputs["labels"]))
        taken = {k: inputs[k] for k in ("features", "labels")}
        out = model(**taken, num_items_in_batch=num_items_in_batch)
        return (out.loss, out) if return_outputs else out.loss
