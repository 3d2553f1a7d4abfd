"""Train on general texts along with every new batch, so that general ability is practised on.

One fixed set of texts, the user's or written by the base model, serves all tasks; no task data is
kept. `gere`, `gere_kl`, `gere_distance` and `gere_official` add a term to it, on this file's class.
Paper: GeRe, Zhang et al. 2025 (arXiv 2508.04676), where it is the baseline of replay alone; read:
abstract and the official code Qznan/GeRe (34d74f5).

    L = CE(task) + 1/B * sum over general rows of label_weight * CE_row
Departs: B counts the step's task and general rows, whatever the micro-batch; the code averages a
micro-batch's two cross entropies (`gere_official`).
Cost: forward and backward over `insert` texts a step, in the task's own pass.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field
from torch import Tensor

from perdure.engine.general_texts import GIVEN, SHARE, refuse_other_texts
from perdure.mechanisms.distances import loud, state_weight
from perdure.mechanisms.state_cache import note
from perdure.protocol.method import Method, MethodConfig, Requires

if TYPE_CHECKING:
    from perdure.protocol.batch import EncodedRows, ForwardOutput
    from perdure.protocol.context import BaseStates, Context
    from perdure.streams.task import TaskStream


class GeneralReplayConfig(MethodConfig):
    label_weight: float = Field(1.0, ge=0, description="weight of the general texts' CE")
    insert: int = Field(4, gt=0, le=10_000, description="general rows in each optimizer step")
    samples: int = Field(1000, gt=0, description="general texts used, from the first")
    own_share: float = Field(
        SHARE, gt=0, description="without general text: tokens sampled, over those trained on"
    )
    max_tokens: int = Field(563, gt=1, description="tokens kept of each text")


class GeneralReplay(Method):
    """Also the base of the methods that hold something of the base model on general texts.

    They override `held`, and ask for the base model's states in `begin_task`.
    """

    Config = GeneralReplayConfig
    config: GeneralReplayConfig
    example_options: ClassVar = {"max_tokens": 12, "insert": 3}
    noop_options: ClassVar = {"max_tokens": 12, "label_weight": 0}
    saved = ("base", "texts", "given")
    name: ClassVar[str] = "general_replay"
    special_tokens = False
    """Whether the tokenizer's special tokens go around the user's texts."""

    def __init__(self, config: GeneralReplayConfig) -> None:
        super().__init__(config)
        # The head runs on general tokens only where a term asks for it.
        self.requires = Requires(logits=config.label_weight > 0, texts="labels")
        self.base = ""  # fingerprint of the model that was distilled first; "": none was
        self.texts = ""  # file of the texts that were sampled from it; "" if they were given
        self.given = False  # whether the user gave the texts
        self._rows: list[dict[str, Any]] | None = None

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Also compares with the texts of a task that has begun already, as it has where a trainer
        of one's own resumes.

        Raises:
            UsageError: they are others than those that the state was made with.
        """
        # A state of an older Perdure does not say `given`; texts that were sampled have a name.
        state = {"given": not state.get("texts"), **state}
        if self._rows is not None:
            refuse_other_texts(self.name, state, self.state_dict())
        super().load_state_dict(state)

    def begin_task(self, ctx: Context) -> None:
        c = self.config
        kept = self.texts or (GIVEN if self.given else "")
        rows, self.texts = ctx.general_rows(
            c.samples, c.max_tokens, special=self.special_tokens, kept=kept, share=c.own_share
        )
        self.given = not self.texts
        if self.given and len(rows) < c.samples:
            note("%s: %d general texts are there, of samples: %d", self.name, len(rows), c.samples)
        self._rows = [{**row, "_text": i} for i, row in enumerate(rows)]

    def told_of(self, stream: TaskStream) -> Iterable[str]:
        c = self.config.model_dump()
        given = None if c.get("loss") == "label" else c.get("weight")
        return loud(given, {task.learn for task in stream})

    def base_states(
        self, ctx: Context, kind: str, previous: bool = False, **how: Any
    ) -> BaseStates:
        """What the base model computes on the texts, or (`previous`) the last task's model."""
        known = "" if previous else self.base
        states = ctx.base_states(
            self._rows or (), kind, previous=previous, known=known, who=self.name, **how
        )
        self.base = self.base or states.about["model"]
        return states

    def replay(self, ctx: Context) -> EncodedRows | None:
        if self._rows is None:
            return None
        first, last = self.drawn(ctx)
        return ctx.draw(self._rows, last - first, first=first)

    def drawn(self, ctx: Context) -> tuple[int, int]:
        """First and last of this step's numbers in an endless draw of texts."""
        first = ctx.step.index * self.config.insert
        return first, first + self.config.insert

    def loss(
        self, ctx: Context, main: ForwardOutput, extra: ForwardOutput | None
    ) -> Mapping[str, Tensor]:
        if extra is None:
            return {}
        share = extra.step_rows / (ctx.batch_size + extra.step_rows)
        losses = {}
        if (weight := self.config.label_weight) > 0:
            term = extra.row_mean(extra.row_nll)
            ctx.log("gere_label", term.detach())
            losses["gere_label"] = share * weight * term
        held = self.held(ctx, extra)
        return losses | {f"gere_{k}": share * extra.row_mean(v) for k, v in held.items()}

    def held(self, ctx: Context, extra: ForwardOutput) -> Mapping[str, Tensor]:
        """What stands beside a general row's CE, weighted, by name, each (rows,)."""
        return {}

    def weight_of(
        self, ctx: Context, extra: ForwardOutput, name: str, term: Tensor,
        given: float | str | None, limit: float | None = None,
    ) -> Tensor | float:  # fmt: skip
        """The weight of each row's `term`, (rows,); both are logged, the term before any weight."""
        ctx.log(f"gere_{name}", extra.row_mean(term.detach()))
        ce = extra.row_nll if given == "dynamic" else term
        found = state_weight(given, ce, term, limit, ctx.task.learn)
        if isinstance(found, Tensor):
            ctx.log("gere_weight", extra.row_mean(found))
        return found
