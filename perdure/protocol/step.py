"""A phase of a task's training, and what is known of one optimizer step."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Phase:
    """One training of a task: its own trainer, optimizer and schedule."""

    name: str = "main"
    epochs: float | None = None
    """Epochs of this phase; None means the recipe's `train.epochs`."""
    start: str = "current"
    """Weights to start from: "current", "base", or "previous" (before this task)."""
    freeze: str = ""
    """Regular expression over parameter names; a parameter that it finds gets no update."""
    hold: str = ""
    """Regular expression over parameter names; one that it finds has the learning rate 0: its
    gradient is computed, and counts in the norm that gradients are clipped to."""
    objective: str = "task"
    """What is learned: "task", the kind's own loss; or, of classes, "lm" (a decoder writes the
    class's name behind the text), "prototypes" or "normalized prototypes" (a class's weights become
    the mean of its rows' features, each of length 1 in the latter; no gradient)."""
    frozen_eval: bool = True
    """Whether a body that learns nothing in this phase has no dropout either."""


@dataclass(frozen=True)
class Step:
    """Facts of the step that is being made; a new one for each micro-batch, never changed.

    Attributes:
        index: optimizer steps done in this phase; in `after_step`, the one just made included.
        phase: the phase being trained.
        per_epoch: optimizer steps in which each row that is trained on is seen once.
        micro_batch: which micro-batch of the step this is on this process, from 0.
        micro_batches: micro-batches of the step in all, over all processes.
        total: optimizer steps of the phase in all; 0: not known.
        whole: micro-batches of a step that has all its rows, where an epoch's last one may have
            fewer; 0: as many as this one.
    """

    index: int = 0
    phase: Phase = field(default_factory=Phase)
    per_epoch: int = 1
    micro_batch: int = 0
    micro_batches: int = 1
    whole: int = 0
    total: int = 0
