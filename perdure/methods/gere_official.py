"""Replay general texts as the code published with GeRe does, down to what looks like an accident.

For comparisons with published numbers: losses pooled in each micro-batch with the cross entropies
halved, each text once an epoch, statistics in one pass of fp32, a KL that counts padding. Each of
these is an option; `gere`, `gere_kl` and `gere_distance` are the methods as one would want them.
Paper: GeRe, Zhang et al. 2025 (arXiv 2508.04676); the official code Qznan/GeRe (34d74f5).

    L = (CE_task + CE_general) / 2 + weight * term, of a micro-batch with both kinds of rows
    L = CE_task, of one without general rows
    term: of all states of the micro-batch, sum of e / number of e > 0 (`gere`), or another `loss`
Departs: general rows come on top of the batch, so that an epoch has no more steps for them; with
one task row in a micro-batch each general row counts as another micro-batch, as in the code, where
nothing is halved. l1 and l2 are in the paper and not in the code.
Cost: as `gere`, `gere_kl` or `gere_distance`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from perdure.mechanisms.distances import distance, kl_of_largest, micro_loss, state_weight
from perdure.mechanisms.margin import averaged, outside
from perdure.methods.general_replay import GeneralReplay, GeneralReplayConfig
from perdure.protocol.method import Requires
from perdure.recipe.mistakes import Mistake

if TYPE_CHECKING:
    from perdure.protocol.batch import ForwardOutput
    from perdure.protocol.context import Context

KINDS = {"margin": "codes", "kl": "logits", "l1": "states", "l2": "states"}


class GeReOfficialConfig(GeneralReplayConfig):
    loss: Literal["margin", "label", "kl", "l1", "l2"] = Field(
        "margin", description="beside the texts' CE: margin, nothing, KL or distance of states"
    )
    weight: float | Literal["dynamic"] = Field(
        100.0, description="weight of that term; dynamic: as large as the CE, detached"
    )
    weight_max: float | None = Field(None, gt=0, description="upper limit of a dynamic weight")
    k: float = Field(1.0, gt=0, description="half width of the middle interval in deviations")
    layers: tuple[int, ...] = Field(
        (-1,), min_length=1, description="layers held, averaged; -1: final norm"
    )
    reduction: Literal["violating", "elements", "tokens"] = Field(
        "violating", description="what the margin is averaged over"
    )
    noise_floor: float | Literal["measured"] = Field(
        0.0, description="distances up to this count as none; measured: what rounding alone gives"
    )
    teacher: Literal["base", "previous"] = Field(
        "base", description="whose states are held: the base model's, or the last task's"
    )
    scope: Literal["row", "micro"] = Field(
        "micro", description="row: a mean over rows; micro: pooled in each micro-batch, CE halved"
    )
    stats: Literal["two_pass", "one_pass_fp32"] = Field(
        "one_pass_fp32", description="how the deviations are computed"
    )
    mix: Literal["insert", "concat"] = Field(
        "concat", description="insert: so many rows a step; concat: each text once an epoch"
    )
    add_special_tokens: bool = Field(
        False, description="put the tokenizer's special tokens around texts"
    )
    kl_temperature: float = Field(2.0, gt=0, description="both predictions are softened by it")
    kl_mask: bool = Field(False, description="false: padded positions count in the mean, as zero")
    kl_t2: bool = Field(False, description="multiply by the temperature's square")
    kl_top: int = Field(64, gt=0, description="largest logits kept; all others are one outcome")

    def mistakes(self) -> Iterator[Mistake]:
        if self.scope == "micro" and self.label_weight != 1:
            yield Mistake(("label_weight",), "has no effect with scope: micro, where it is 1")
        if self.weight_max is not None and self.weight != "dynamic":
            yield Mistake(("weight_max",), "has no effect without weight: dynamic")
        if self.loss != "margin" and self.noise_floor != 0:
            yield Mistake(("noise_floor",), f"has no effect with loss: {self.loss}")
        for name in ("weight", "noise_floor"):
            if isinstance(value := getattr(self, name), float) and value < 0:
                yield Mistake((name,), "is below 0")


class GeReOfficial(GeneralReplay):
    Config, name = GeReOfficialConfig, "gere_official"
    config: GeReOfficialConfig
    example_options: ClassVar = {"max_tokens": 12, "scope": "row"}
    noop_options: ClassVar = {"max_tokens": 12, "scope": "row", "weight": 0, "label_weight": 0}

    def __init__(self, config: GeReOfficialConfig) -> None:
        super().__init__(config)
        c = config
        predicted = c.label_weight > 0 or c.loss == "kl" or c.scope == "micro"
        held = c.layers if c.loss in ("margin", "l1", "l2") else ()
        self.requires = Requires(hidden=held, logits=predicted or c.weight == "dynamic")
        self.special_tokens = c.add_special_tokens

    def begin_task(self, ctx: Context) -> None:
        super().begin_task(ctx)
        c = self.config
        if c.loss == "label":
            return
        self.states = self.base_states(
            ctx, KINDS[c.loss], c.teacher == "previous", layers=c.layers, k=c.k,
            one_pass=c.stats == "one_pass_fp32", top=c.kl_top, temperature=c.kl_temperature,
        )  # fmt: skip
        if c.loss == "margin":
            noise = self.states.noise
            self.floor = {
                k: noise[str(k)]["largest"] if c.noise_floor == "measured" else c.noise_floor
                for k in c.layers
            }
            for name in ("flipped", "largest"):
                ctx.log(f"gere_noise_{name}", noise[str(c.layers[-1])][name])

    def drawn(self, ctx: Context) -> tuple[int, int]:
        if self.config.mix == "insert":
            return super().drawn(ctx)
        # Each text once an epoch, spread evenly over its steps.
        texts, steps = len(self._rows or ()), ctx.step.per_epoch
        return ctx.step.index * texts // steps, (ctx.step.index + 1) * texts // steps

    # --- a step

    def loss(
        self, ctx: Context, main: ForwardOutput, extra: ForwardOutput | None
    ) -> Mapping[str, Tensor]:
        if self.config.scope == "row":
            return super().loss(ctx, main, extra)
        # Terms that turn the trainer's loss into the code's: what it adds for these rows goes.
        whole = self._alone if len(main.mask) == 1 else self._pooled
        losses = whole(ctx, main, extra)
        return losses | {"gere_scope": losses["gere_scope"] - main.token_mean(main.nll)}

    def _pooled(
        self, ctx: Context, main: ForwardOutput, extra: ForwardOutput | None
    ) -> dict[str, Tensor]:
        """The code's loss of a micro-batch of several task rows, and the held part of it."""
        ce_task = main.nll.mean()  # ()
        if extra is None:
            return {"gere_scope": ce_task}
        ce = extra.nll.mean()  # ()
        term, weight = self._term_and_weight(ctx, extra, (ce_task + ce) / 2, pooled=True)  # ()
        held = weight * term  # ()
        ctx.log("gere_label", (ce / 2).detach())
        self._log_unscaled(ctx, term)
        whole = micro_loss(ce_task, ce, term, weight)  # ()
        return {"gere_scope": whole - held} | self._named(held)

    def _alone(
        self, ctx: Context, main: ForwardOutput, extra: ForwardOutput | None
    ) -> dict[str, Tensor]:
        """The same with one task row: each general row is a micro-batch too, all count alike."""
        ce_task = main.nll.mean()  # ()
        tasks, (first, last) = ctx.step.micro_batches, self.drawn(ctx)
        share = tasks / (tasks + last - first)
        if extra is None:
            return {"gere_scope": share * ce_task}
        ce = extra.row_nll  # (rows,)
        term, weight = self._term_and_weight(ctx, extra, ce, pooled=False)  # (rows,)
        held = (weight * term).sum()  # ()
        whole = micro_loss(None, ce, term, weight).sum() + ce_task  # ()
        ctx.log("gere_label", share * (whole - held - ce_task).detach())
        self._log_unscaled(ctx, share * term.sum())
        return {"gere_scope": share * (whole - held)} | self._named(share * held)

    def _log_unscaled(self, ctx: Context, term: Tensor) -> None:
        if self.config.loss != "label":
            ctx.log(f"gere_{self.config.loss}", term.detach())

    def _named(self, held: Tensor) -> dict[str, Tensor]:
        """What is held on the texts; with their labels alone nothing is."""
        return {} if self.config.loss == "label" else {f"gere_{self.config.loss}": held}

    def _term_and_weight(
        self, ctx: Context, extra: ForwardOutput, ce: Tensor, pooled: bool
    ) -> tuple[Tensor, Tensor | float]:
        c = self.config
        if c.loss == "label":
            return torch.zeros_like(ce), 0.0
        term = self.term(ctx, extra, pooled)
        term = term.mean() if pooled else term
        return term, state_weight(c.weight, ce, term, c.weight_max)

    def held(self, ctx: Context, extra: ForwardOutput) -> Mapping[str, Tensor]:
        c = self.config
        if c.loss == "label":
            return {}
        term = self.term(ctx, extra)
        return {c.loss: self.weight_of(ctx, extra, c.loss, term, c.weight, c.weight_max) * term}

    def term(self, ctx: Context, extra: ForwardOutput, pooled: bool = False) -> Tensor:
        """The term of each general row, (rows,); `pooled`: the margin as if they were one."""
        c = self.config
        if c.loss == "kl":
            each = kl_of_largest(extra.logits, *self.states.largest(extra), c.kl_temperature)
            each = each * c.kl_temperature**2 if c.kl_t2 else each  # (tokens,)
            return extra.per_row(each, padded=not c.kl_mask)
        return torch.stack([self._of_layer(ctx, k, extra, pooled) for k in c.layers]).mean(0)

    def _of_layer(self, ctx: Context, layer: int, extra: ForwardOutput, pooled: bool) -> Tensor:
        c, x, mask = self.config, extra.hidden[layer], extra.mask
        base = self.states.aligned(extra, layer)
        if c.loss != "margin":
            return distance(x, base, mask, 1 if c.loss == "l1" else 2)
        n, p = self.states.limits(layer, x.device)
        total, count, flips = outside(x, base, mask, n, p, self.floor[layer])  # each (rows,)
        if layer == c.layers[-1]:
            every = mask.sum(1).clamp(min=1) * x.shape[-1]
            for name, of_row in (("elements", total), ("violating", count), ("flips", flips)):
                ctx.log(f"gere_{name}", extra.row_mean(of_row.detach() / every))
        if pooled:
            total, count, mask = total.sum()[None], count.sum()[None], mask.reshape(1, -1)
        return averaged(total, count, mask, x.shape[-1], c.reduction)
