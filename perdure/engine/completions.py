"""A `trl.GRPOTrainer` as methods see it: the completions that it samples are the labelled tokens.

Its batches have prompts, completions and advantages, and no labels. Here such a batch becomes one
with labels: each token of a completion that the policy is trained on, -100 elsewhere. The
log-probabilities are those of the trainer's own pass, in its graph and at its temperature; and a
mean over label tokens is the one by which the trainer scales its own KL (`beta`), so that a term
with the same weight has the same gradient.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from perdure.engine.fused import FUSED
from perdure.engine.gradient_shares import GradientShares
from perdure.engine.session import TaskSession
from perdure.engine.trainer_rows import TrainerRows
from perdure.errors import UsageError
from perdure.models.chat import IGNORE
from perdure.protocol.batch import LABELS_AT, ForwardOutput, StepCounts
from perdure.protocol.method import Method, name_of

if TYPE_CHECKING:
    from transformers import Trainer

OF_TOKENS = frozenset({"dapo", "cispo", "vespo"})
"""Loss types whose KL is a mean over all completion tokens of the step."""
OF_COMPLETIONS = frozenset({"grpo", "sapo"})
"""Loss types whose KL is a mean over completions of each one's mean."""
OTHERS = frozenset({"bnpo", "dr_grpo", "luspo"})
"""Loss types with a divisor of their own, see `step_counts`."""
KNOWN = OF_TOKENS | OF_COMPLETIONS | OTHERS
PICTURES = ("image", "images")


def learns_by_reinforcement(trainer: Any) -> bool:
    """Whether a trainer is a `trl.GRPOTrainer`; imports nothing."""
    return any(
        kind.__name__ == "GRPOTrainer" and kind.__module__.startswith("trl.")
        for kind in type(trainer).__mro__
    )


def trained_tokens(inputs: Mapping[str, Any]) -> Tensor:
    """Tokens of completions that are trained on, (batch, completion) bool: no padding, nothing that
    a tool wrote."""
    mask: Tensor = inputs["completion_mask"]
    if "tool_mask" in inputs:
        mask = mask * inputs["tool_mask"]
    return mask.bool()


def labelled_batch(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """A batch of a `GRPOTrainer` with labels: `input_ids`, `attention_mask` and `labels`, each
    (batch, prompt + completion); prompts are padded on the left, completions on the right."""
    prompts, completions = inputs["prompt_ids"], inputs["completion_ids"]
    masks = [inputs["prompt_mask"], inputs["completion_mask"]]
    answers = completions.masked_fill(~trained_tokens(inputs), IGNORE)
    return {
        "input_ids": torch.cat([prompts, completions], 1),
        "attention_mask": torch.cat(masks, 1),
        "labels": torch.cat([torch.full_like(prompts, IGNORE), answers], 1),
        LABELS_AT: "next",
        FUSED: True,
    }


def step_counts(trainer: Any, inputs: Mapping[str, Any]) -> StepCounts:
    """What a mean over label tokens divides by, so that it is the trainer's own of a KL.

    See `GRPOTrainer._compute_loss` of trl 1.16.0. The result is divided by the step's micro-batches
    afterwards, and averaged over processes, as all terms are.

    Raises:
        UsageError: of this loss type it is not known.
    """
    kind, trained = trainer.loss_type, trained_tokens(inputs)
    micro = trainer.current_gradient_accumulation_steps
    if kind in OF_TOKENS:
        # Counted over the generation batch and all processes; a step has its share of it.
        step = inputs["num_items_in_batch"] * micro / trainer.args.steps_per_generation
        return StepCounts(None, step, None, micro * trainer.accelerator.num_processes)
    if kind in OF_COMPLETIONS:
        each = trained.sum(1, keepdim=True).clamp(min=1) * len(trained)
        return StepCounts(None, 1, None, weights=(1 / each).expand_as(trained)[trained])
    if kind == "bnpo":
        return StepCounts(None, trained.sum(), None)
    if kind == "dr_grpo":
        return StepCounts(None, len(trained) * trainer.max_completion_length, None)
    if kind == "luspo":
        return StepCounts(None, len(trained), None)
    raise UsageError(*_of_loss_type(kind))


def _of_loss_type(kind: str) -> tuple[str, str]:
    known = ", ".join(sorted(KNOWN))
    return f"loss_type {kind}: how it averages over tokens is not known", f"take one of {known}"


class Completions:
    """Mixed in between `Attached` and the class of a `GRPOTrainer`."""

    loss_type: str
    session: TaskSession
    shares: GradientShares
    policy_log_probs: Tensor | None = None
    """(batch, completion), of the loss that is being computed; None outside of it."""
    awaits_log_probs = False

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        if self.session.step.micro_batch == 0:
            self.shares.begin_step()
        parent: Any = super()
        loss: Tensor = parent.training_step(*args, **kwargs)
        return loss

    def _clip_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        parent: Any = super()
        self.shares.norm = parent._clip_grad_norm(*args, **kwargs)
        return self.shares.norm

    def labelled(self, inputs: Mapping[str, Any]) -> tuple[dict[str, Any], StepCounts | None]:
        """The trainer's batch with labels, and what means over them divide by (None: of this loss
        type it is not known, and no method asks). The next pass is the policy's own."""
        self.awaits_log_probs = True
        counts = step_counts(self, inputs) if self.loss_type in KNOWN else None
        return labelled_batch(inputs), counts

    def read_completions(self, main: ForwardOutput, inputs: Mapping[str, Any]) -> None:
        """Give `main` what the trainer's own pass computed of the completions."""
        found, trained = self.policy_log_probs, trained_tokens(inputs)
        assert found is not None, "the trainer computed no log-probabilities"
        main.given = found[trained]
        drawn = inputs.get("old_per_token_logps")
        main.drawn = None if drawn is None else drawn[trained]
        self.policy_log_probs = None  # its graph is not kept longer than the loss

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        parent: Any = super()
        found = parent._get_per_token_logps_and_entropies(*args, **kwargs)
        if self.awaits_log_probs:
            self.policy_log_probs, self.awaits_log_probs = found[0], False
        return found


class PromptRows(TrainerRows):
    """The rows of a `GRPOTrainer`: prompts, as its dataset has them. None has an answer to learn.

    As many as completions are trained on in an epoch, so that an epoch's steps are counted right:
    each prompt once for each of its completions, and again in each iteration over them.
    """

    def __init__(self, trainer: Any) -> None:
        self.rows: Any = trainer.train_dataset
        args, group = trainer.args, trainer.num_generations
        at_once = args.generation_batch_size // group
        whole = len(self.rows) // at_once * at_once or len(self.rows)  # the rest is left out
        self.repeats = group * trainer.num_iterations
        self.lines = whole * self.repeats
        self._places = None

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        return dict(self.rows[index // self.repeats])


def refusals(methods: Sequence[Method]) -> Iterator[tuple[Method, str, str]]:
    """Methods that cannot work on completions, each with the reason and what to do.

    Also of a recipe: it is asked before any weight is loaded.
    """
    for method in methods:
        asked = method.requires
        if asked.rows or method.needs_validation:
            yield (
                method,
                "it keeps, replays or measures rows of the task with the answers that are learned, "
                "and reinforcement has prompts without one",
                "kl and lwf hold completions, gere and general_replay train on general texts",
            )
        elif asked.cross_entropy:
            yield (
                method,
                "it takes the loss of the task for the cross-entropy of its answers, and "
                "reinforcement has another",
                asked.cross_entropy,
            )
        elif asked.attentions:
            yield (
                method,
                "it reads attention maps, which a GRPOTrainer does not return",
                "use a method that reads hidden states or predictions",
            )


def check_reinforcement(trainer: Trainer, methods: Sequence[Method]) -> None:
    """Ask what methods need of a `GRPOTrainer`, before its first step.

    Raises:
        UsageError: with the method's name, the reason and what to do.
    """
    for method, what, remedy in refusals(methods):
        raise UsageError(f"attach: {name_of(method)}: {what}", remedy)
    host: Any = trainer
    held = [m for m in methods if m.reference_kl]
    if held and host.beta:
        raise UsageError(
            f"attach: {name_of(held[0])}: the trainer has a KL of its own (GRPOConfig beta: "
            f"{host.beta:g}), so that it would count twice",
            "leave beta out of GRPOConfig (0); the method has a beta of the same meaning",
        )
    reading = [m for m in methods if m.uses("loss") and not m.requires.texts]
    if reading and host.loss_type not in KNOWN:
        what, remedy = _of_loss_type(host.loss_type)
        raise UsageError(f"attach: {name_of(reading[0])}: {what}", remedy)
    again = [m for m in methods if m.requires.teacher]
    named = getattr(trainer.train_dataset, "column_names", None) or ()
    if again and any(name in named for name in PICTURES):
        raise UsageError(
            f"attach: {name_of(again[0])}: the prompts hold pictures, which a pass of the frozen "
            "model does not get",
            "train on text alone",
        )


__all__ = [
    "Completions",
    "PromptRows",
    "check_reinforcement",
    "labelled_batch",
    "learns_by_reinforcement",
    "refusals",
    "step_counts",
    "trained_tokens",
]
