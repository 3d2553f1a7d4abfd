"""Replay general texts as the code published with GeRe does, down to what looks like an accident.

For comparisons with published numbers: losses pooled in each micro-batch with the cross entropies
halved, each text once an epoch, statistics in one pass of fp32, a KL that counts padding. Each of
these is an option; `gere`, `gere_kl` and `gere_distance` are the methods as one would want them.
Paper: GeRe, Zhang et al. 2025 (arXiv 2508.04676); the official code Qznan/GeRe (34d74f5).

    L = (CE_task + CE_general) / 2 + weight * term, of a micro-batch with both kinds of rows
    L = CE_task, of one without general rows
    term: of all states of the micro-batch, sum of e / number of e > 0 (`gere`), or another `loss`,
          a mean over all its tokens
Departs: general rows come on top of the batch, so that an epoch has no more steps for them; with
one task row in a micro-batch each general row counts as another micro-batch, as in the code.
l1 and l2 are in the paper, not in the code; they have `gere_distance`'s floor.
Cost: as `gere`, `gere_kl` or `gere_distance`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from perdure.mechanisms import distances
from perdure.mechanisms.margin import averaged, outside
from perdure.methods.general_replay import GeneralReplay, GeneralReplayConfig
from perdure.protocol.method import Requires
from perdure.recipe.former import unread
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
    layers: tuple[int, ...] = Field((-1,), min_length=1, description="held; -1: final norm")
    reduction: Literal["violating", "elements", "tokens"] = Field(
        "violating", description="what the margin is averaged over"
    )
    noise_floor: float | Literal["measured"] | None = Field(
        None, description="what counts as no distance; measured: rounding alone; null: see its card"
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
        for name, why in unread(self.model_dump()).items():
            yield Mistake((name,), f"has no effect {why}")
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
        logits = predicted or c.weight == "dynamic"
        instead = "write scope: row" if c.scope == "micro" else ""
        self.requires = Requires(hidden=held, logits=logits, texts="labels", cross_entropy=instead)
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
        margin, noise = c.loss == "margin", self.states.noise
        given = c.noise_floor if c.noise_floor is not None else 0.0 if margin else "measured"
        if c.loss != "kl":
            times = 1.0 if margin else distances.BEYOND
            self.floor = distances.floors(given, noise, c.layers, times)
        if margin:
            for name in ("flipped", "largest"):
                ctx.log(f"gere_noise_{name}", noise[str(c.layers[-1])][name])

    def drawn(self, ctx: Context) -> tuple[int, int]:
        if self.config.mix == "insert":
            return super().drawn(ctx)
        # Each text once an epoch, spread evenly over its steps.
        texts, steps = len(self._rows or ()), ctx.step.per_epoch
        return ctx.step.index * texts // steps, (ctx.step.index + 1) * texts // steps

    def loss(
        self, ctx: Context, main: ForwardOutput, extra: ForwardOutput | None
    ) -> Mapping[str, Tensor]:
        if self.config.scope == "row":
            return super().loss(ctx, main, extra)
        # `gere_scope` turns the trainer's loss of the task's rows into the code's part of them.
        # By how steps are cut: a batch that happens to hold one row, or a pack, is as the others.
        alone = ctx.batch_size <= (ctx.step.whole or ctx.step.micro_batches)
        whole = self._alone if alone else self._pooled
        losses = whole(ctx, main, extra)
        return losses | {"gere_scope": losses["gere_scope"] - main.token_mean(main.nll)}

    def _pooled(
        self, ctx: Context, main: ForwardOutput, extra: ForwardOutput | None
    ) -> dict[str, Tensor]:
        """The parts of the code's loss of a micro-batch of several task rows."""
        ce_task = main.nll.mean()  # ()
        if extra is None:
            return {"gere_scope": ce_task}
        ce = extra.nll.mean()  # ()
        term, weight = self._term_and_weight(ctx, extra, (ce_task + ce) / 2, pool=True)  # ()
        parts = {"gere_scope": ce_task / 2, "gere_label": ce / 2}
        return parts | self._named(weight * term)

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
        term, weight = self._term_and_weight(ctx, extra, ce, pool=False)  # (rows,)
        parts = {"gere_scope": ce_task, "gere_label": ce.sum()}
        parts |= self._named((weight * term).sum())
        return {name: share * part for name, part in parts.items()}

    def _named(self, held: Tensor) -> dict[str, Tensor]:
        """What is held on the texts; with their labels alone nothing is."""
        return {} if self.config.loss == "label" else {f"gere_{self.config.loss}": held}

    def _term_and_weight(
        self, ctx: Context, extra: ForwardOutput, ce: Tensor, pool: bool
    ) -> tuple[Tensor, Tensor | float]:
        """Logged as by the other methods: a mean over the step's general rows, before any weight.
        What is pooled counts for each row of its micro-batch."""
        c, rows = self.config, len(extra.mask)
        ctx.log("gere_label", extra.row_mean(extra.row_nll.detach()))
        if c.loss == "label":
            return torch.zeros_like(ce), 0.0
        term = self.term(ctx, extra, pool).reshape(ce.shape)
        weight = distances.state_weight(c.weight, ce, term, c.weight_max)
        for name, value in ((c.loss, term), ("weight", weight)):
            if isinstance(value, Tensor):
                ctx.log(f"gere_{name}", extra.row_mean(value.detach().expand(rows)))
        return term, weight

    def held(self, ctx: Context, extra: ForwardOutput) -> Mapping[str, Tensor]:
        c = self.config
        if c.loss == "label":
            return {}
        term = self.term(ctx, extra)
        return {c.loss: self.weight_of(ctx, extra, c.loss, term, c.weight, c.weight_max) * term}

    def term(self, ctx: Context, extra: ForwardOutput, pool: bool = False) -> Tensor:
        """The term of each general row, (rows,); `pool`: as if they were one, (1,)."""
        c = self.config
        if c.loss == "kl":
            each = distances.kl_of_largest(
                extra.logits, *self.states.largest(extra), c.kl_temperature
            )
            each = each * c.kl_temperature**2 if c.kl_t2 else each  # (tokens,)
            if pool:
                return each.sum()[None] / max(1, len(each) if c.kl_mask else extra.mask.numel())
            return extra.per_row(each, padded=not c.kl_mask)
        return torch.stack([self._of_layer(ctx, k, extra, pool) for k in c.layers]).mean(0)

    def _of_layer(self, ctx: Context, layer: int, extra: ForwardOutput, pool: bool) -> Tensor:
        c, x, mask = self.config, extra.hidden[layer], extra.mask
        base = self.states.aligned(extra, layer)
        if c.loss != "margin":
            if pool:
                x, base, mask = distances.pooled(x), distances.pooled(base), distances.pooled(mask)
            return distances.distance(x, base, mask, 1 if c.loss == "l1" else 2, self.floor[layer])
        n, p = self.states.limits(layer, x.device)
        total, count, flips = outside(x, base, mask, n, p, self.floor[layer])  # each (rows,)
        if layer == c.layers[-1]:
            every = mask.sum(1).clamp(min=1) * x.shape[-1]
            for name, of_row in (("elements", total), ("violating", count), ("flips", flips)):
                ctx.log(f"gere_{name}", extra.row_mean(of_row.detach() / every))
        if pool:
            total, count, mask = total.sum()[None], count.sum()[None], distances.pooled(mask)
        return averaged(total, count, mask, x.shape[-1], c.reduction)
