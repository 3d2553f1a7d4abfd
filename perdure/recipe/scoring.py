"""Recipe sections of what is measured: scores after each task, and gauges while one is learned."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from perdure.recipe.mistakes import Mistake
from perdure.recipe.section import Section

MAX_DROP, MAX_LOSS_RISE = 0.02, 0.05
"""Changes for the worse that are allowed, unless the user says another: of a score from 0 to 1, and
of a loss in nats a token."""

PROMPTS_AT_ONCE, TEXTS_AT_ONCE, TOKENS_AT_ONCE = 16, 64, 8192
"""Rows in a pass of scoring: of prompts, whose logits have the whole vocabulary, and of classes."""

Probe = Literal["linear", "cosine", "prototype", "cosine_prototype"]


class ScoringConfig(Section):
    batch_size: int | None = Field(
        None,
        gt=0,
        description=f"rows scored at once per process; if missing {PROMPTS_AT_ONCE}, and of "
        f"classes {TEXTS_AT_ONCE} or as many as have {TOKENS_AT_ONCE:,} tokens",
    )
    max_test_rows: int | None = Field(
        None, gt=0, description="score this many rows a task at most, of each label about as many"
    )
    max_drop: float = Field(
        MAX_DROP, gt=0, lt=1, description="a task is kept if shown to drop by less, as a share"
    )
    max_loss_rise: float = Field(
        MAX_LOSS_RISE, gt=0, description="general text is kept if shown to rise by less, in nats"
    )
    probes: list[Probe] = Field(
        default_factory=list,
        description="classifiers fitted afresh on the features after each task, of classes alone",
    )

    @property
    def prompts_at_once(self) -> int:
        return self.batch_size or PROMPTS_AT_ONCE

    def texts_at_once(self, longest: int) -> int:
        return self.batch_size or max(1, min(TEXTS_AT_ONCE, TOKENS_AT_ONCE // max(1, longest)))


class GaugesConfig(Section):
    every: int = Field(50, ge=0, description="steps between two looks at how far it moved; 0: none")
    texts: int = Field(
        4,
        ge=0,
        le=10_000,
        description="general texts whose states are compared; without any, the base's own",
    )
    rows: int = Field(
        8, gt=0, le=10_000, description="rows of the task whose predictions are compared"
    )


class StopConfig(Section):
    flip_share: float | None = Field(
        None, gt=0, le=1, description="most states that may leave their interval, as a share"
    )
    kl: float | None = Field(None, gt=0, description="most KL from the base, nats an answer token")
    action: Literal["stop", "rewind"] = Field(
        "stop", description="stop: end the task there; rewind: take its update back till it fits"
    )

    def mistakes(self) -> Iterator[Mistake]:
        if self.flip_share is None and self.kl is None:
            yield Mistake((), "names no budget", "give kl or flip_share, or leave it out")
