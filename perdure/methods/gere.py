"""Replay general texts and hold the hidden states on them within the base model's intervals.

Before the first task the base model's states on a few hundred general texts are distilled to
"low, middle, high" of each neuron; in every step some of these texts are trained on as text, and
a state that leaves the interval it was in at the start is pushed back. No task data is kept.
Paper: GeRe, Zhang et al. 2025 (arXiv 2508.04676); read: abstract and the official code
Qznan/GeRe (34d74f5), not the equations, so no equation number is given here.

    L = CE(task) + 1/B * sum over general rows of (label_weight * CE_row + weight * TM_row)
    TM = sum of e / number of e > 0,  e = distance of state x to (n, p), (-inf, n) or (p, inf),
    whichever held the base's state h;  n, p = mean -+ k * std over all general tokens
Departs: per row where the code pools a micro-batch and halves its CE, so that the gradient does
not depend on the micro-batch (equal to the code at micro-batch 1; B counts general rows too); the
task's CE stays as the trainer makes it; variance in two fp64 passes, where one fp32 pass can give
NaN; a keyed cache; two bits a neuron instead of fp32 states, which give the same loss bit for bit.
Cost: forward and backward over `insert` texts a step; once a forward over all texts; on disk
tokens * hidden / 4 bytes (l1, l2: 4 bytes a value).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

import torch
from pydantic import Field

from perdure.errors import UsageError
from perdure.methods._distill import distance, row_means
from perdure.methods._states import StateCache, base_states
from perdure.methods.base import Method, MethodConfig, Reads

if TYPE_CHECKING:
    from torch import Tensor

    from perdure.learners.context import Context
    from perdure.learners.passes import Pass, Rows


class GeReConfig(MethodConfig):
    loss: Literal["margin", "label", "l1", "l2"] = Field(
        "margin",
        description="beside the texts' CE: threshold margin, nothing, or distance of states",
    )
    weight: float | Literal["dynamic"] = Field(
        100.0, description="weight of the states' term; dynamic: as large as the CE, detached"
    )
    label_weight: float = Field(1.0, ge=0, description="weight of the general texts' CE")
    k: float = Field(1.0, gt=0, description="half width of the middle interval in deviations")
    layers: tuple[int, ...] = Field((-1,), description="layers held, averaged; -1: final norm")
    reduction: Literal["violating", "elements", "tokens"] = Field(
        "violating", description="what the margin is averaged over"
    )
    insert: int = Field(4, gt=0, description="general rows in each optimizer step")
    samples: int = Field(1000, gt=0, description="general texts used, from the first")
    max_tokens: int = Field(563, gt=1, description="tokens kept of each text")


def margin(x: Tensor, flags: Tensor, mask: Tensor, n: Tensor, p: Tensor, over: str) -> Tensor:
    """Threshold margin of each row.

    Args:
        x, flags: states now, and `_states.flags` of the base's, (batch, seq, hidden).
        mask: real positions, (batch, seq); n, p: thresholds, (hidden,) fp32.
        over: violating | elements | tokens.
    Returns: (batch,)
    """
    inf = float("inf")
    low = torch.where(flags == 1, -inf, torch.where(flags == 0, n, p))
    high = torch.where(flags == 2, inf, torch.where(flags == 0, p, n))
    x = x.float()
    e = (torch.relu(x - high) + torch.relu(low - x)) * mask.unsqueeze(-1)
    if over == "violating":
        return e.sum((1, 2)) / ((e != 0).sum((1, 2)) + 1e-8)
    tokens = mask.sum(1).clamp(min=1)
    return e.sum((1, 2)) / (tokens if over == "tokens" else tokens * x.shape[-1])


def state_weight(weight: float | str, ce: Tensor, term: Tensor) -> Tensor | float:
    """The fixed weight, or the one that makes weight * term as large as ce; no gradient."""
    return ce.detach() / (term.detach() + 1e-8) if weight == "dynamic" else float(weight)


class GeRe(Method):
    Config = GeReConfig
    config: GeReConfig
    saved = ("base",)
    needs_general = True

    def __init__(self, config: GeReConfig) -> None:
        super().__init__(config)
        self.reads = Reads(hidden=() if config.loss == "label" else config.layers, logits=True)
        self.base = ""  # fingerprint of the model that was distilled
        self._rows: Rows | None = None
        self._cache: StateCache | None = None

    def begin_task(self, ctx: Context) -> None:
        c = self.config
        texts = [ctx.encode_text(t, c.max_tokens) for t in ctx.general.replay[: c.samples]]
        rows = [row for row in texts if len(row["input_ids"]) > 1]
        if not rows:
            raise UsageError(
                "gere: there is no general text to replay", "add `general:` to the recipe"
            )
        self._rows = ctx.rows([{**row, "_text": i} for i, row in enumerate(rows)])
        if c.loss != "label":
            coded = c.loss == "margin"
            self._cache = base_states(ctx, rows, c.layers, c.k, coded, self.base)
            self.base = self._cache.about["model"]

    def replay(self, ctx: Context) -> Rows | None:
        return None if self._rows is None else ctx.draw(self._rows, self.config.insert)

    def loss(self, ctx: Context, main: Pass, extra: Pass | None) -> Mapping[str, Tensor]:
        if extra is None:
            return {}
        c, share = self.config, self.config.insert / (ctx.batch_size + self.config.insert)
        rows = len(extra.mask)
        ce = row_means(extra.nll, extra.row_of, rows)
        found = {"gere_label": share * c.label_weight * extra.row_mean(ce)}
        if (cache := self._cache) is not None:
            held = [self._term(cache, layer, extra) for layer in c.layers]
            term = torch.stack(held).mean(0)
            found[f"gere_{c.loss}"] = share * extra.row_mean(
                state_weight(c.weight, ce, term) * term
            )
        return found

    def _term(self, cache: StateCache, layer: int, extra: Pass) -> Tensor:
        x, mask = extra.hidden[layer], extra.mask
        base = cache.batch(extra.extra("_text"), layer, mask)
        if self.config.loss == "margin":
            return margin(x, base, mask, *cache.limits(layer, x.device), self.config.reduction)
        return distance(x, base, mask, 1 if self.config.loss == "l1" else 2)
