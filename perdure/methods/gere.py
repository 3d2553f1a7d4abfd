"""Replay general texts and hold the hidden states on them within the base model's intervals.

Before the first task the base model's states on up to a thousand general texts are distilled to
"low, middle, high" of each neuron; in every step some of these texts are trained on as text, and
a state that leaves the interval it was in at the start is pushed back. No task data is kept.
Paper: GeRe, Zhang et al. 2025 (arXiv 2508.04676); read: abstract and the official code
Qznan/GeRe (34d74f5), not the equations, so no equation number is given here.

    L = CE(task) + 1/B * sum over general rows of (label_weight * CE_row + weight * TM_row)
    TM = sum of e / number of e > 0,  e = distance of state x to (n, p), (-inf, n) or (p, inf),
    whichever held the base's state h;  n, p = mean -+ k * std over all general tokens
Departs: per row where the code pools a micro-batch and halves its CE, so that the gradient does
not depend on the micro-batch (equal to the code at micro-batch 1; B counts general rows too); the
task's CE stays as the trainer makes it; variance in two fp64 passes; general rows come on top of
the batch, so that an epoch has no more steps for them. `official: true` is the code's behaviour in
all but the last of these; with one task row in a micro-batch each general row counts as another
micro-batch, as there, where nothing is halved.
Cost: forward and backward over `insert` texts a step, in the task's own pass; once a forward over
all texts; on disk tokens * hidden / 4 bytes a layer (kl: 8 * kl_top bytes a token; l1, l2: 4 bytes
a value).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch
from pydantic import Field, model_validator

from perdure.engine.general_texts import GIVEN, SHARE
from perdure.mechanisms import state_cache
from perdure.mechanisms.distances import (
    distance,
    kl_of_largest,
    micro_loss,
    state_weight,
)
from perdure.mechanisms.margin import averaged, outside
from perdure.protocol.method import Method, MethodConfig, Requires

if TYPE_CHECKING:
    from torch import Tensor

    from perdure.protocol.batch import EncodedRows, ForwardOutput
    from perdure.protocol.context import BaseStates, Context

KINDS = {"margin": "codes", "kl": "logits", "l1": "states", "l2": "states"}
OFFICIAL = {
    "mix": "concat",
    "scope": "micro",
    "stats": "one_pass_fp32",
    "kl_mask": False,
}
"""What `official: true` sets where the recipe does not say otherwise."""


class GeReConfig(MethodConfig):
    loss: Literal["margin", "label", "kl", "l1", "l2"] = Field(
        "margin",
        description="beside the texts' CE: threshold margin, nothing, KL or distance of states",
    )
    weight: float | Literal["dynamic"] = Field(
        100.0, description="weight of that term; dynamic: as large as the CE, detached"
    )
    weight_max: float | None = Field(None, gt=0, description="upper limit of a dynamic weight")
    label_weight: float = Field(1.0, ge=0, description="weight of the general texts' CE")
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
        "row", description="row: a mean over rows; micro: pooled in each micro-batch, CE halved"
    )
    stats: Literal["two_pass", "one_pass_fp32"] = Field(
        "two_pass", description="how the deviations are computed"
    )
    mix: Literal["insert", "concat"] = Field(
        "insert", description="insert: so many rows a step; concat: each text once an epoch"
    )
    insert: int = Field(4, gt=0, description="general rows in each optimizer step")
    samples: int = Field(1000, gt=0, description="general texts used, from the first")
    own_share: float = Field(
        SHARE, gt=0, description="without general text: tokens sampled, over those trained on"
    )
    max_tokens: int = Field(563, gt=1, description="tokens kept of each text")
    add_special_tokens: bool = Field(
        False, description="put the tokenizer's special tokens around texts"
    )
    kl_temperature: float = Field(2.0, gt=0, description="both predictions are softened by it")
    kl_mask: bool = Field(True, description="false: padded positions count in the mean, as zero")
    kl_t2: bool = Field(False, description="multiply by the temperature's square")
    kl_top: int = Field(64, gt=0, description="largest logits kept; all others are one outcome")
    official: bool = Field(False, description="defaults of the official code where it deviates")

    @model_validator(mode="before")
    @classmethod
    def _as_official(cls, data: Any) -> Any:
        return {**OFFICIAL, **data} if isinstance(data, dict) and data.get("official") else data

    @model_validator(mode="after")
    def _goes_together(self) -> GeReConfig:
        if self.scope == "micro" and self.label_weight != 1:
            raise ValueError("label_weight has no effect with scope: micro, where it is 1")
        if self.weight_max is not None and self.weight != "dynamic":
            raise ValueError("weight_max has no effect without weight: dynamic")
        if self.loss != "margin" and self.noise_floor != 0:
            raise ValueError(f"noise_floor has no effect with loss: {self.loss}")
        for name in ("weight", "noise_floor"):
            if isinstance(value := getattr(self, name), float) and value < 0:
                raise ValueError(f"{name} is below 0")
        return self


class GeRe(Method):
    Config = GeReConfig
    config: GeReConfig
    saved = ("base", "texts")

    def __init__(self, config: GeReConfig) -> None:
        super().__init__(config)
        held = config.loss in ("margin", "l1", "l2")
        # The head runs on general tokens only where a term asks for their predictions.
        predicted = config.label_weight > 0 or config.loss == "kl" or config.scope == "micro"
        self.requires = Requires(
            hidden=config.layers if held else (), logits=predicted or config.weight == "dynamic"
        )
        if config.official:
            set_by = {name: getattr(config, name) for name in OFFICIAL}
            state_cache.note("gere: official: true, so %s", set_by)
        self.base = ""  # fingerprint of the model that was distilled first
        self.texts = ""  # file of the texts that were sampled from it; "" if they were given
        self._rows: list[dict[str, Any]] | None = None
        self._cache: BaseStates | None = None
        self._floor: dict[int, float] = {}

    def begin_task(self, ctx: Context) -> None:
        c = self.config
        kept = self.texts or (GIVEN if self.base or self._rows else "")
        rows, self.texts = ctx.general_rows(
            c.samples, c.max_tokens, special=c.add_special_tokens, kept=kept,
            share=c.own_share,
        )  # fmt: skip
        if not self.texts and len(rows) < c.samples:
            state_cache.note(
                "gere: %d general texts are there, of samples: %d", len(rows), c.samples
            )
        self._rows = [{**row, "_text": i} for i, row in enumerate(rows)]
        self._cache = None
        if c.loss != "label":
            known = self.base if c.teacher == "base" else ""
            self._cache = ctx.base_states(
                rows, KINDS[c.loss], layers=c.layers, k=c.k, one_pass=c.stats == "one_pass_fp32",
                top=c.kl_top, temperature=c.kl_temperature, previous=c.teacher != "base",
                known=known, who="gere",
            )  # fmt: skip
            self.base = self.base or self._cache.about["model"]
        if self._cache is not None and c.loss == "margin":
            noise = self._cache.noise
            self._floor = {
                k: noise[str(k)]["largest"] if c.noise_floor == "measured" else c.noise_floor
                for k in c.layers
            }
            for name in ("flipped", "largest"):
                ctx.log(f"gere_noise_{name}", noise[str(c.layers[-1])][name])

    # --- a step

    def replay(self, ctx: Context) -> EncodedRows | None:
        if self._rows is None:
            return None
        first, last = self._drawn(ctx)
        return ctx.draw(self._rows, last - first, first=first)

    def _drawn(self, ctx: Context) -> list[int]:
        """First and last of this step's numbers in an endless draw of texts."""
        if self.config.mix == "insert":
            return [s * self.config.insert for s in (ctx.step.index, ctx.step.index + 1)]
        # Each text once an epoch, spread evenly over its steps.
        texts = len(self._rows or ())
        return [s * texts // ctx.step.per_epoch for s in (ctx.step.index, ctx.step.index + 1)]

    def loss(
        self, ctx: Context, main: ForwardOutput, extra: ForwardOutput | None
    ) -> Mapping[str, Tensor]:
        c = self.config
        if c.scope == "micro":
            return self._micro(ctx, main, extra)
        if extra is None:
            return {}
        rows = len(extra.mask)
        count = extra.step_rows
        share = count / (ctx.batch_size + count)
        found: dict[str, Tensor] = {}
        ce = extra.mask.new_zeros(rows, dtype=torch.float32)
        if self.requires.logits:
            ce = extra.row_nll
        if c.label_weight > 0:
            found["gere_label"] = share * c.label_weight * extra.row_mean(ce)
        if c.loss != "label":
            term = self._term(ctx, extra)
            weight = state_weight(c.weight, ce, term, c.weight_max)
            found[f"gere_{c.loss}"] = share * extra.row_mean(weight * term)
            ctx.log("gere_term", extra.row_mean(term.detach()))
            if torch.is_tensor(weight):
                ctx.log("gere_weight", extra.row_mean(weight))
        return found

    def _term(self, ctx: Context, extra: ForwardOutput, pooled: bool = False) -> Tensor:
        """The term of each general row, (rows,); `pooled`: the margin as if they were one."""
        if self.config.loss == "kl":
            return self._kl(extra)
        of_layers = [self._of_states(ctx, k, extra, pooled) for k in self.config.layers]
        return torch.stack(of_layers).mean(0)

    def _of_states(self, ctx: Context, layer: int, extra: ForwardOutput, pooled: bool) -> Tensor:
        assert self._cache is not None
        c, x, mask = self.config, extra.hidden[layer], extra.mask
        base = self._cache.aligned(extra, layer)
        if c.loss != "margin":
            return distance(x, base, mask, 1 if c.loss == "l1" else 2)
        n, p = self._cache.limits(layer, x.device)
        total, count, flips = outside(x, base, mask, n, p, self._floor[layer])
        if layer == c.layers[-1]:
            every = mask.sum(1).clamp(min=1) * x.shape[-1]
            seen = {"elements": total, "violating": count, "flips": flips}
            for name, value in seen.items():
                ctx.log(f"gere_{name}", extra.row_mean(value.detach() / every))
        if pooled:
            total, count, mask = total.sum()[None], count.sum()[None], mask.reshape(1, -1)
        return averaged(total, count, mask, x.shape[-1], c.reduction)

    def _kl(self, extra: ForwardOutput) -> Tensor:
        assert self._cache is not None
        c = self.config
        each = kl_of_largest(extra.logits, *self._cache.largest(extra), c.kl_temperature)
        each = each * c.kl_temperature**2 if c.kl_t2 else each
        return extra.per_row(each, padded=not c.kl_mask)

    def _micro(
        self, ctx: Context, main: ForwardOutput, extra: ForwardOutput | None
    ) -> Mapping[str, Tensor]:
        """Terms that turn the trainer's loss into the code's: means over this micro-batch only."""
        c = self.config
        ce_task = main.nll.mean()
        mine = main.token_mean(main.nll)  # what the trainer adds for these rows
        share = 1.0
        if alone := len(main.mask) == 1:
            # There each general row is a micro-batch too, and all micro-batches count alike.
            tasks, (first, last) = ctx.step.micro_batches, self._drawn(ctx)
            share = tasks / (tasks + last - first)
        if extra is None:
            return {"gere_scope": share * ce_task - mine}
        ce = extra.row_nll if alone else extra.nll.mean()
        weight: Tensor | float = 0.0
        term = torch.zeros_like(ce)
        if c.loss != "label":
            term = self._term(ctx, extra, pooled=not alone)
            term = term if alone else term.mean()
            weight = state_weight(c.weight, ce if alone else (ce_task + ce) / 2, term, c.weight_max)
        whole = micro_loss(None if alone else ce_task, ce, term, weight).sum()
        whole = whole + ce_task if alone else whole
        held = (weight * term).sum()
        ctx.log("gere_label", share * (whole - held - ce_task if alone else ce / 2).detach())
        return {"gere_scope": share * (whole - held) - mine, f"gere_{c.loss}": share * held}
