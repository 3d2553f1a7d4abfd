"""What is known of one optimizer step, as a method sees it."""

from __future__ import annotations

from dataclasses import dataclass, field

from perdure.protocol.method import Phase


@dataclass(frozen=True)
class Step:
    """Facts of the step that is being made; a new one for each micro-batch, never changed.

    Attributes:
        index: optimizer steps done in this phase; in `after_step`, the one just made included.
        phase: the phase being trained.
        per_epoch: optimizer steps in which each row that is trained on is seen once.
        micro_batch: which micro-batch of the step this is on this process, from 0.
        micro_batches: micro-batches of the step in all, over all processes.
    """

    index: int = 0
    phase: Phase = field(default_factory=Phase)
    per_epoch: int = 1
    micro_batch: int = 0
    micro_batches: int = 1
