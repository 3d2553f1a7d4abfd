"""Put methods on a trainer of `transformers` or `trl`, without changing what it does else.

    trainer = attach(SFTTrainer(model, train_dataset=data), method)
    trainer.train()

The trainer's class becomes `Attached` + its own class, so every override calls the original:

- `compute_loss` runs the extra rows of all methods in one second pass, or together with the
  trainer's own rows where the trainer can (Perdure's can), and adds their named losses;
- `training_step` lets methods change gradients once an optimizer step, before the clip;
- of a `trl.GRPOTrainer` methods see the completions as labels (`perdure.engine.completions`);
- after the step methods look at the result; evaluation swaps in the weights they serve;
- checkpoints carry the methods' state, and resuming loads it.

Gradient accumulation, mixed precision, DDP and FSDP2 stay the trainer's business.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from perdure.engine.callbacks import MethodEvents
from perdure.engine.completions import Completions, learns_by_reinforcement
from perdure.engine.forward import capture, head_is_cut, head_options
from perdure.engine.gradient_shares import GradientShares
from perdure.engine.method_state import STATE, load_methods, save_methods
from perdure.engine.packing import Packed
from perdure.engine.served import serving
from perdure.engine.session import TaskSession
from perdure.engine.term_log import TermLog
from perdure.errors import UsageError
from perdure.failures import at, reading
from perdure.models.random_state import forked_rng
from perdure.models.weights import trainable
from perdure.protocol.batch import (
    LABELS_AT,
    EncodedRows,
    ForwardOutput,
    StepCounts,
    model_inputs,
    real_positions,
)
from perdure.protocol.method import Method, Requires, name_of

if TYPE_CHECKING:
    from transformers import Trainer


def attach(
    trainer: Trainer, *methods: Method, session: TaskSession, compare: bool = False
) -> Trainer:
    """Put `methods` on `trainer` and return it; see `perdure.attach` for the everyday form.

    Args: compare: refuse to resume from a checkpoint that other methods wrote. A run compares its
        recipe instead.
    """
    if isinstance(trainer, Attached):
        raise UsageError(
            "attach: this trainer has methods already", "give all methods in one call of attach"
        )
    touch = [m for m in methods if m.requires.step_gradients or m.uses("gradients")]
    if touch and trainer.is_deepspeed_enabled:
        raise UsageError(
            f"method: {name_of(touch[0])} looks at each step's weights and gradients, which "
            "DeepSpeed keeps elsewhere and frees in its backward",
            "use FSDP2 or DDP instead",
        )
    # `accelerate launch` sets it elsewhere than in the arguments.
    if touch and (trainer.args.fp16 or trainer.accelerator.mixed_precision == "fp16"):
        raise UsageError(
            f"method: {name_of(touch[0])} works with gradients, which fp16 scales by its own "
            "factor, and with steps, which its scaler skips",
            "train in bf16 or fp32",
        )
    plain = [m for m in methods if m.requires.cross_entropy]
    if plain and trainer.args.label_smoothing_factor:
        raise UsageError(
            f"attach: {name_of(plain[0])}: it takes the task's loss for the cross-entropy of its "
            "labels, which label_smoothing_factor makes another one of",
            "leave label_smoothing_factor out",
        )
    copies = [m for m in methods if m.requires.teacher and not _is_the_adapter_off(m, session)]
    if copies and trainer.is_fsdp_enabled:
        raise UsageError(
            f"method: {name_of(copies[0])} compares with a copy of the model, which FSDP2 shards",
            "use DDP instead",
        )
    kinds = (Attached, Completions) if learns_by_reinforcement(trainer) else (Attached,)
    trainer.__class__ = type(type(trainer).__name__, (*kinds, type(trainer)), {})
    host: Any = trainer
    host.methods, host.session, host.compare = methods, session, compare
    host.forget_terms()
    if isinstance(host, Completions):
        host.shares = GradientShares(host)
    session.join(trainer.accelerator)
    if any(m.requires.attentions for m in methods):
        model: Any = session.model
        model.set_attn_implementation("eager")  # the fused kernels keep no attention maps
    trainer.add_callback(MethodEvents(host))
    return trainer


def _is_the_adapter_off(method: Method, session: TaskSession) -> bool:
    return method.requires.teacher == "base" and session.has_adapter


class Attached(TermLog):
    """Mixed in front of a trainer's own class by `attach`."""

    compare: bool
    model: nn.Module
    state: Any
    args: Any

    def training_step(self, model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
        self.session.begin_micro_batch(
            self.state.global_step,
            getattr(self, "current_gradient_accumulation_steps", 1),
            self.args.gradient_accumulation_steps,
            self.state.max_steps,
        )
        loss: Tensor = super().training_step(model, *args, **kwargs)  # type: ignore[misc]
        last = bool(self.accelerator.sync_gradients)
        self.session.end_micro_batch(last)
        if last:
            self._change_gradients()
        return loss

    def _change_gradients(self) -> None:
        active = [m for m in self.methods if m.uses("gradients")]
        if not active:
            return
        params = trainable(self.model)
        with torch.no_grad():
            for method in active:
                for name, gradient in method.gradients(self.session.context, params):
                    params[name].grad = gradient

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        active = [m for m in self.methods if m.uses("loss")]
        parent: Any = super()
        if not model.training or not active:
            return parent.compute_loss(
                model, inputs, return_outputs, num_items_in_batch=num_items_in_batch
            )
        maps = any(m.requires.attentions for m in active)
        drawn = [m.replay(self.session.context) for m in active]
        packed = None if maps else self._packed(inputs, drawn)
        if packed is not None:
            loss, main, extras = self._one_pass(model, packed, drawn, num_items_in_batch)
            self.note_task(loss, num_items_in_batch, main)
            main.batch = self._main_batch(inputs)
            loss = loss + self._total(self._terms(active, main, extras), num_items_in_batch)
            return (loss, None) if return_outputs else loss
        if isinstance(self, Completions):
            batch, counts = self.labelled(inputs)
        else:
            batch, counts = self._main_batch(inputs), self._main_counts(num_items_in_batch)
        main = ForwardOutput(self.model, batch, counts)
        main.exact = getattr(self, "head_is_exact", False) and head_is_cut(self.model, batch)
        # Families differ in how a classifier's head comes to a row's logits: its outputs say it.
        own = self._extra_logits() and self.session.labels_at == "row"
        wanted = return_outputs or maps or own or (main.exact and self._extra_logits())
        with capture(self.model, [m.requires for m in active], main):
            result = parent.compute_loss(
                model,
                {**inputs, "output_attentions": True} if maps else inputs,
                wanted,
                num_items_in_batch=num_items_in_batch,
            )
        outputs: Any
        loss, outputs = result if wanted else (result, None)
        if isinstance(self, Completions):
            self.read_completions(main, inputs)
        self.note_task(loss, num_items_in_batch, main)
        if own or (
            main.exact and self._extra_logits()
        ):  # with all that a family does after its head
            main.head, main.final = outputs.logits, True
        main.attentions = outputs.attentions if outputs is not None and maps else None
        extras, reached = self._extra_passes(model, active, drawn, maps)
        terms = self._terms(active, main, extras)
        if isinstance(self, Completions):
            self.shares.look(loss, terms)
        loss = loss + self._total(terms, num_items_in_batch) + reached
        return (loss, outputs) if return_outputs else loss

    def _main_batch(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """The trainer's batch, which says where its labels stand: Perdure's trainer knows; of
        another `perdure.attach` has seen it."""
        host: Any = self
        at = host.labels_at(inputs) if hasattr(host, "labels_at") else self.session.labels_at
        return {**inputs, LABELS_AT: at}

    def _terms(
        self,
        active: Sequence[Method],
        main: ForwardOutput,
        extras: Sequence[ForwardOutput | None],
    ) -> dict[str, Tensor]:
        """The methods' losses by name."""
        terms: dict[str, Tensor] = {}
        for method, extra in zip(active, extras, strict=True):
            for name, value in method.loss(self.session.context, main, extra).items():
                terms[name] = terms[name] + value if name in terms else value
        self.note(terms)
        return terms

    def _total(self, terms: Mapping[str, Tensor], items: Any) -> Tensor | float:
        """The methods' losses summed, as a share of what this micro-batch adds to the step."""
        if not terms:
            return 0.0
        total = torch.stack(list(terms.values())).sum()
        return total / self.session.accumulation if self.scaled_for_accumulation(items) else total

    def _packed(
        self, inputs: Mapping[str, Any], drawn: Sequence[EncodedRows | None]
    ) -> Packed | None:
        """All rows packed for one pass, where the trainer can do that; see PerdureTrainer."""
        rows = [row for part in drawn for row in part or ()]
        host: Any = self
        found: Packed | None = (
            host.packed(inputs, rows) if rows and hasattr(host, "packed") else None
        )
        return found

    def _one_pass(
        self, model: nn.Module, packed: Packed, drawn: Sequence[EncodedRows | None], items: Any
    ) -> tuple[Tensor, ForwardOutput, list[ForwardOutput | None]]:
        """Task rows and all methods' rows in one forward pass; the task's loss, and the passes."""
        host: Any = super()
        whole = ForwardOutput(self.model, packed.inputs)
        reads = [Requires(hidden=k) for k in {m.requires.hidden for m in self.methods}]
        with capture(self.model, reads, whole):
            loss, logits, others = host.packed_loss(model, packed, items)
        main = packed.main.of(whole, logits, self._main_counts(items))
        spoken = others if self._extra_logits() else None
        return loss, main, _shares(packed.extra.of(whole, spoken, None), drawn)

    def _extra_logits(self) -> bool:
        return any(m.requires.logits for m in self.methods)

    def _extra_passes(
        self,
        model: nn.Module,
        active: Sequence[Method],
        drawn: Sequence[EncodedRows | None],
        maps: bool,
    ) -> tuple[list[ForwardOutput | None], Tensor | float]:
        """Run the rows of all methods in one forward pass; give each method its own part.

        Also a zero to add to the loss. Under FSDP2 all processes must go back through equally many
        passes, but no term may depend on one whose rows only fill up a process's batch.
        """
        rows = [row for part in drawn if part is not None for row in part]
        if not rows:
            return [None] * len(active), 0.0
        session = self.session
        batch = session.batch_of(rows)
        session.count_tokens(real_positions(batch).sum())
        whole = ForwardOutput(self.model, batch, rows=rows)
        # The main pass's dropout must not depend on whether there are extra rows.
        with forked_rng(session.device), capture(self.model, [m.requires for m in active], whole):
            micro = session.step.micro_batch
            torch.manual_seed(session.seed + 1000 * self.state.global_step + micro)
            out = model(
                **model_inputs(batch),
                **head_options(self.model, batch, self._extra_logits()),
                **({"output_attentions": True} if maps else {}),
            )
        whole.attentions = out.attentions if maps else None
        whole.exact = head_is_cut(self.model, batch)
        if self._extra_logits():
            whole.head, whole.final = out.logits, True
        fills = any(part is not None and part.fills for part in drawn)
        return _shares(whole, drawn), 0.0 * out.logits.sum() if fills else 0.0

    def _main_counts(self, items: Any) -> StepCounts | None:
        if items is None:
            return None
        world = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return StepCounts(None, items, None, self.session.accumulation * world)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        with serving(self.session.context, self.methods):
            return super().evaluation_loop(*args, **kwargs)  # type: ignore[misc]

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # First, as the trainer writes its own state last of all: what it can resume from has ours.
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        with at(folder):
            save_methods(folder / STATE, self.methods, self.accelerator.is_main_process)
        super()._save_checkpoint(model, trial)  # type: ignore[misc]

    def _load_best_model(self) -> None:
        super()._load_best_model()  # type: ignore[misc]
        # A method that serves other weights was measured with those of that step.
        load_methods(Path(self.state.best_model_checkpoint) / STATE, self.methods, self.model)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        # First, so that what other methods wrote is refused before any weight is loaded.
        with reading(folder, f"delete the folder {folder}, and go on from the one before it"):
            if folder.is_dir():
                load_methods(folder / STATE, self.methods, self.model, self.compare)
            super()._load_from_checkpoint(resume_from_checkpoint, model)  # type: ignore[misc]
        if _has_logged(folder):  # what `begin_task` logs stands in a line of before
            self.session.take_facts()


def _has_logged(checkpoint: Path) -> bool:
    """Whether a line of the log was written before this checkpoint of a trainer."""
    path = checkpoint / TRAINER_STATE_NAME
    if not path.exists():
        return False
    return any("loss" in line for line in TrainerState.load_from_json(str(path)).log_history)


def _shares(
    whole: ForwardOutput, drawn: Sequence[EncodedRows | None]
) -> list[ForwardOutput | None]:
    """Each method's own rows of a pass over the rows of all; None: it has none here."""
    there = [part for part in drawn if part is not None]
    parts = iter(whole.split([len(p) for p in there], [p.counts for p in there]))
    own = [None if part is None else next(parts) for part in drawn]
    return [
        None if part is None or part.fills else seen for part, seen in zip(drawn, own, strict=True)
    ]
