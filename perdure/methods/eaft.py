"""Learn less from tokens on which the model is sure: each token's loss times its entropy.

A token that the model confidently predicts otherwise ("confident conflict") makes the largest
and most destructive gradient; weighting by the normalised entropy of the model's own prediction,
which is near 0 there, takes it out. No extra pass and no stored data.
Paper: Entropy-Adaptive Fine-Tuning, Diao et al. 2026 (arXiv 2601.02151), the loss as printed in
the README of the official code, PRIS-CV/EAFT; its equation number was not seen.

    L = mean over answer tokens of w * nll,  w = (H_20 / ln 20)^alpha, detached
    H_20 = entropy of the 20 largest probabilities, renormalised to sum to 1
Departs: divides by ln 20 = 2.9957, where the official code has 3.0 (0.14% less weight).
Cost: a top-20 of the logits at answer positions; nothing is kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import torch
from pydantic import Field

from perdure.protocol.method import Method, MethodConfig, Requires

if TYPE_CHECKING:
    from torch import Tensor

    from perdure.protocol.batch import ForwardOutput
    from perdure.protocol.context import Context


class EAFTConfig(MethodConfig):
    top: int = Field(20, ge=2, description="tokens of the prediction whose entropy is taken")
    alpha: float = Field(1.0, ge=0, description="exponent of the weight; 0 is plain fine-tuning")


@torch.no_grad()
def entropy_weight(logits: Tensor, top: int = 20, alpha: float = 1.0) -> Tensor:
    """Normalised entropy of the `top` likeliest tokens, in [0, 1]; (tokens, vocab) -> (tokens,).

    A logit of -inf is no candidate."""
    top = min(top, logits.shape[-1])
    p = logits.float().topk(top, dim=-1).values.softmax(-1)  # renormalised
    entropy = torch.special.entr(p).sum(-1)  # 0 where p is
    there = logits.isfinite().sum(-1).clamp(min=2, max=max(2, top))
    return (entropy / there.log()).clamp(0, 1) ** alpha


class EAFT(Method):
    Config = EAFTConfig
    config: EAFTConfig
    requires = Requires(logits=True, cross_entropy="learn the task by sft, or use kl or gere")
    noop_options: ClassVar = {"alpha": 0}

    def loss(
        self, ctx: Context, main: ForwardOutput, extra: ForwardOutput | None
    ) -> Mapping[str, Tensor]:
        weight = entropy_weight(main.competing, self.config.top, self.config.alpha)
        # The learner's own mean of nll stays; adding (w - 1) * nll makes it a mean of w * nll.
        return {"eaft": main.token_mean((weight - 1) * main.nll)}
