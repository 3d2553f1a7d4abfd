"""The trainer of one phase: its arguments, learning rates by parameter, and its traces removed."""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from transformers import TrainingArguments

from perdure.engine.careful import CarefulTrainer
from perdure.engine.trainer import PerdureTrainer
from perdure.errors import RunError
from perdure.failures import reading
from perdure.files import numbered
from perdure.processes import barrier, broadcast, rank
from perdure.seals import MANIFEST, damaged, unseal

if TYPE_CHECKING:
    from perdure.engine.packing import EncodedRow, Packed
    from perdure.recipe.schema import Recipe


class RatedTrainer(CarefulTrainer):
    """A trainer with a learning rate for some parameters.

    Attributes:
        rates: regular expression over parameter names -> learning rate of what it finds, or the
            optimizer's options, `lr` and `weight_decay`; the schedule scales the rate as it does
            the recipe's. The first that finds a name counts.
    """

    rates: Mapping[str, float | Mapping[str, float]] = {}

    def create_optimizer(self, model: Any = None) -> Any:
        if self.optimizer is None:
            regroup(super().create_optimizer(model), self.model, self.rates)
        return self.optimizer

    def _get_learning_rate(self) -> float:
        """The rate to log: the recipe's own, or where none of its parameters learn, that of the
        first ones that do."""
        rates, host = [super()._get_learning_rate()], cast(Any, self)
        if not self.is_deepspeed_enabled and hasattr(host.lr_scheduler, "get_last_lr"):
            rates = host.lr_scheduler.get_last_lr()
        learn = [
            (float(rate), "rate_of" in group)
            for group, rate in zip(host.optimizer.param_groups, rates, strict=False)
            if group["params"] and group.get("initial_lr", rate)
        ]
        first = min(learn, key=lambda one: one[1], default=(float(rates[0]), False))
        return first[0]


class PhaseTrainer(RatedTrainer, PerdureTrainer):
    """Perdure's trainer with learning rates by parameter, and packs only where wanted.

    Attributes:
        packs: whether extra rows may run in one pass with the task's.
    """

    packs: bool = False

    def packed(self, inputs: Mapping[str, Any], extra: Sequence[EncodedRow]) -> Packed | None:
        return super().packed(inputs, extra) if self.packs else None


def regroup(
    optimizer: torch.optim.Optimizer,
    model: nn.Module,
    rates: Mapping[str, float | Mapping[str, float]],
) -> None:
    """Give parameters that a pattern finds groups of their own with that learning rate."""
    names = {p: n for n, p in model.named_parameters()}
    for pattern, rate in rates.items():
        for group in list(optimizer.param_groups):
            if "rate_of" in group:
                continue
            found = [p for p in group["params"] if re.search(pattern, names[p])]
            if not found:
                continue
            ids = {id(p) for p in found}
            group["params"] = [p for p in group["params"] if id(p) not in ids]
            own = dict(rate) if isinstance(rate, Mapping) else {"lr": rate}
            if not group["weight_decay"]:  # biases and norms have none
                own.pop("weight_decay", None)
            options = {k: v for k, v in group.items() if k != "params"} | own
            optimizer.add_param_group({**options, "params": found, "rate_of": pattern})


def arguments(
    recipe: Recipe,
    folder: Path,
    *,
    steps: int,
    micro_batch: int,
    accumulation: int,
    bf16: bool,
    of: type[TrainingArguments] = TrainingArguments,
    **more: Any,
) -> TrainingArguments:
    """The arguments of a phase of `steps` optimizer steps that saves to `folder`.

    Args: of: their class; more: what that class takes besides.
    """
    train = recipe.train
    return of(
        output_dir=str(folder),
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=accumulation,
        max_steps=steps,
        learning_rate=train.learning_rate,
        lr_scheduler_type=train.schedule,
        warmup_steps=math.ceil(train.warmup * steps),
        weight_decay=train.weight_decay,
        max_grad_norm=train.max_grad_norm,
        optim=train.optimizer,
        bf16=bf16,
        activation_checkpointing=train.gradient_checkpointing,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=train.log_steps,
        logging_nan_inf_filter=False,
        save_strategy="steps" if recipe.save.steps else "no",
        save_steps=recipe.save.steps or 500,
        seed=recipe.seed,
        data_seed=recipe.seed,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        disable_tqdm=True,
        report_to="none",
        ddp_find_unused_parameters=False,
        **more,
    )


def forget_trainer(model: nn.Module) -> None:
    """Remove what a trainer leaves on a model, which the next one would build on.

    A mark that it is wrapped already turns DDP off without a word, and each patch of `forward`
    nests deeper.
    """
    inner: Any = model
    below = inner.get_base_model() if hasattr(inner, "get_base_model") else model
    for host in (model, below):
        for name in ("_is_accelerate_prepared", "forward", "_original_forward"):
            host.__dict__.pop(name, None)
    config: Any = getattr(model, "config", None)
    if config is not None:
        config.use_cache = True


def newest_whole(folder: Path, warn: Callable[[str], None]) -> Path | None:
    """The newest checkpoint inside a task that is as it was written; None if there is none.

    One that is not is removed, and told: the task goes on from the one before it. All processes
    call it, and the first one looks.

    Raises:
        RunError: its files are those that were written, but cannot be read.
    """
    while True:
        # A torso, which a killed process left, has no manifest.
        kept = [p for _, p in numbered(folder, "checkpoint-") if (p / MANIFEST).exists()]
        if not kept:
            return None
        file = broadcast(damaged(kept[-1]) if rank() == 0 else "")
        if not file:
            with reading(kept[-1], f"delete the folder {kept[-1]}: the run goes on from before it"):
                json.loads((kept[-1] / "trainer_state.json").read_text("utf-8"))
            return kept[-1]
        older = kept[-2].name if kept[1:] else "its beginning"
        warn(f"{file}: damaged: it is not what was written, so the task goes on from {older}")
        if rank() == 0:
            unseal(kept[-1])
            shutil.rmtree(kept[-1])
        barrier()


def step_of(checkpoint: Path) -> int:
    """The optimizer steps that a checkpoint inside a task stands for, by its folder's name."""
    return int(checkpoint.name.rsplit("-", 1)[1])


@contextmanager
def pickles_refused(folder: Path | None) -> Iterator[None]:
    """Tell of a file in a checkpoint that would run code; torch reads plain values alone.

    Raises:
        RunError: there is one. Nothing of it was run.
    """
    try:
        yield
    except UnpicklingError as error:
        raise RunError(
            f"{folder}: holds a pickle with more than tensors in it, which is not read, as it "
            "could run code",
            f"delete the folder {folder}: the run goes on from the checkpoint before it",
        ) from error
