"""The `transformers.Trainer` that Perdure's own learner runs: the same optimisation, less waste.

It differs from a plain Trainer in five ways, none of which changes the objective:
- the head runs on the positions that predict a label only (prompts are two thirds of a chat row);
- rows of like length share a batch, in an order that depends on seed and epoch alone, so that a
  resumed run sees the same batches;
- an epoch's last batch is filled up from the epoch's start, so that any number of processes and
  micro-batches sees the same global batches;
- extra rows of methods run in one pass with the task's rows (`perdure.learners.packing`);
- a loss that is not finite stops the run before anything is saved.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import Trainer, TrainerCallback

from perdure.errors import TrainingError
from perdure.files import seal, unseal
from perdure.learners.context import Context, seed_of
from perdure.learners.encoding import IGNORE, ROWS
from perdure.learners.packing import EncodedRow, Packed, Packer, heads_at, packer_of
from perdure.learners.passes import takes_positions
from perdure.learners.rows_apart import attends_by_rows, takes_rows
from perdure.learners.weights import is_sharded, put
from perdure.models.restore import load_weights

_SORTED_TOGETHER = 2
"""Global batches sorted by length at a time. More would leave less padding, but where length goes
with the label, as in questions by topic, each batch would hold one label and teach little."""


class EpochSampler(Sampler[int]):
    """Row numbers of one epoch: shuffled, grouped by length, in whole global batches.

    Args:
        lengths: tokens of each row.
        batch_size: rows of an optimizer step over all processes and micro-batches.
        seed: with the epoch's number it decides the order.
    """

    def __init__(self, lengths: Sequence[int], batch_size: int, seed: int) -> None:
        self.lengths, self.batch_size, self.seed, self.epoch = lengths, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(len(self.lengths) / self.batch_size) * self.batch_size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(seed_of(self.seed, "epoch", self.epoch))
        order: list[int] = torch.randperm(len(self.lengths), generator=generator).tolist()
        order = (order * math.ceil(len(self) / len(order)))[: len(self)]
        size = self.batch_size * _SORTED_TOGETHER
        batches = []
        for start in range(0, len(order), size):
            chunk = sorted(order[start : start + size], key=lambda i: -self.lengths[i])
            batches += [
                chunk[i : i + self.batch_size] for i in range(0, len(chunk), self.batch_size)
            ]
        for k in torch.randperm(len(batches), generator=generator).tolist():
            yield from batches[k]


class PerdureTrainer(Trainer):
    """See the module. `ctx` and `sampler` are set by the learner right after it is built."""

    ctx: Context
    sampler: EpochSampler

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.head_is_exact = takes_positions(self.model)
        self.packer: Packer | None = None
        self.looked = False  # for how this model takes packs
        self._apart = ExitStack()  # the attention that packs need, while training
        self.finite: Tensor | bool = True

    def _bare_model(self) -> nn.Module:
        host: Any = self.model
        model: nn.Module = host.get_base_model() if hasattr(host, "get_base_model") else host
        return model

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        return self.sampler

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        self.ctx.tokens += inputs["attention_mask"].sum()
        inputs = {k: v for k, v in inputs.items() if k != ROWS}
        if self.head_is_exact:
            targets = nn.functional.pad(inputs["labels"][:, 1:], (0, 1), value=IGNORE)
            keep = targets != IGNORE
            inputs = {**inputs, "logits_to_keep": keep, "shift_labels": targets[keep]}
        return super().compute_loss(
            model, inputs, return_outputs, num_items_in_batch=num_items_in_batch
        )

    def packed(self, inputs: Mapping[str, Any], extra: Sequence[EncodedRow]) -> Packed | None:
        """The micro-batch's rows and `extra` for one pass; None where this model takes none.

        The model is tried once: its rows in a pack must not see one another.
        """
        bare = self._bare_model()
        if not self.looked or (self._by_rows and not takes_rows(bare)):
            self.packer, self.looked = packer_of(self.ctx, extra), True
            self._apart.enter_context(attends_by_rows(bare, self._by_rows))
        if self.packer is None:
            return None
        rows = inputs[ROWS]
        self.ctx.tokens += sum(len(row["input_ids"]) for row in (*rows, *extra))
        return self.packer(rows, extra, extra_logits=any(m.reads.logits for m in self.ctx.methods))

    @property
    def _by_rows(self) -> bool:
        return self.packer is not None and self.packer.by == "rows"

    def packed_loss(
        self, model: nn.Module, packed: Packed, items: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The task rows' loss, as in any other step, and the logits of task and extra rows."""
        sizes = [part.heads.stop - part.heads.start for part in (packed.main, packed.extra)]
        parts: list[Tensor] = []

        def loss_of(outputs: Any, labels: Tensor, num_items_in_batch: Any = None) -> Tensor:
            parts.extend(outputs.logits.flatten(0, 1).split(sizes))
            bare: Any = self._bare_model()
            found: Tensor = bare.loss_function(
                logits=parts[0],
                labels=None,
                vocab_size=parts[0].shape[-1],
                num_items_in_batch=num_items_in_batch,
                shift_labels=labels,
            )
            return found

        host: Any = self
        host.compute_loss_func = loss_of
        try:
            with heads_at(self._bare_model(), packed.keep):
                inputs = {**packed.inputs, "labels": packed.main.labels}
                loss = super().compute_loss(model, inputs, False, items)
        finally:
            host.compute_loss_func = None
        return loss, parts[0], parts[1]

    def train(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().train(*args, **kwargs)
        finally:
            self._apart.close()
            self.packer, self.looked = None, False

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        loss: Tensor = super().training_step(*args, **kwargs)
        self.finite = torch.isfinite(loss) & self.finite  # read when logging: no wait in a step
        return loss

    def refuse_nan(self) -> None:
        """Raise `TrainingError` if a loss since the last look was not finite."""
        if not bool(self.finite):
            raise TrainingError(
                f"task {self.ctx.task.name}: the loss is not finite at step "
                f"{self.state.global_step} (learning rate {self.args.learning_rate:g})",
                (
                    "lower train.learning_rate, or set train.precision: fp32",
                    "nothing saved is lost",
                ),
            )

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        self.refuse_nan()
        # A folder of this name left by a run that was killed must not count while it changes.
        if self.is_world_process_zero():
            unseal(Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}")
        super()._save_checkpoint(model, trial)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        folder, host = Path(resume_from_checkpoint), self.ctx.model
        if (folder / "model.safetensors").exists() and not is_sharded(host):
            # The trainer passes over tensors that some families save under other names
            # (experts of a mixture), and only warns of it.
            put(host, load_weights(host, folder))


class Watch(TrainerCallback):
    """Tells display and log how training goes, seals checkpoints, and checks what must hold."""

    def __init__(
        self,
        trainer: PerdureTrainer,
        on_row: Callable[[Mapping[str, Any]], None],
        facts: Mapping[str, Any],
    ) -> None:
        self.trainer, self.on_row, self.facts = trainer, on_row, facts
        self.started = self.seen_at_start = 0.0
        self.first_step = 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self.started, self.first_step = time.monotonic(), state.global_step
        self.trainer.ctx.tokens = 0
        host = self.trainer
        wrapped = isinstance(host.model_wrapped, nn.parallel.DistributedDataParallel)
        if host.accelerator.num_processes > 1 and not (
            wrapped or is_sharded(self.trainer.ctx.model) or host.is_deepspeed_enabled
        ):
            raise TrainingError("the processes do not share the model: their weights would drift")

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        if not logs or "loss" not in logs:
            return
        norm = logs.get("grad_norm")
        if norm is not None and not math.isfinite(norm):  # the weights are spoilt already
            self.trainer.finite = False
        self.trainer.refuse_nan()
        spent = time.monotonic() - self.started
        done = state.global_step - self.first_step
        tokens = float(self.trainer.ctx.tokens) * self.trainer.accelerator.num_processes
        self.on_row(
            {
                **self.facts,
                "step": state.global_step,
                "steps": state.max_steps,
                "loss": logs["loss"],
                "learning_rate": logs.get("learning_rate"),
                "gradient_norm": logs.get("grad_norm"),
                "tokens_per_second": round(tokens / spent, 1),
                "seconds_left": round(spent / done * (state.max_steps - state.global_step), 1),
                "memory_mb": peak_memory_mb(),
                **{k: v for k, v in logs.items() if k.startswith(("method/", "gauge/"))},
            }
        )

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        host = self.trainer
        host.accelerator.wait_for_everyone()  # the other processes' random states are in it too
        if host.is_world_process_zero():
            folder = Path(args.output_dir)
            seal(folder / f"checkpoint-{state.global_step}", {"step": state.global_step})
            rotate(folder, keep=2)

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.trainer.refuse_nan()


def rotate(folder: Path, keep: int) -> None:
    """Remove all but the newest `keep` checkpoints; each is unsealed before it goes."""
    import shutil

    found = [p for p in folder.glob("checkpoint-*") if p.name[11:].isdigit()]
    for old in sorted(found, key=lambda p: int(p.name[11:]))[:-keep]:
        unseal(old)
        shutil.rmtree(old)


def peak_memory_mb() -> int:
    """Highest memory of this process so far: on the GPU where there is one, else resident."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20)
    import resource

    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)
