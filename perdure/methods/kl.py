"""Keep the policy near a reference model: a KL on the very tokens that are being learned.

Of the tokens of an answer (by reinforcement: of a completion) the model's log-probability is
compared with that of the base model, or of the model as the last task left it. This is the penalty
of GRPO and of R1-T1, as a method: it composes with all others, in a recipe and on a trainer of
one's own, and equals TRL's `beta` on the same completions.
Paper: GRPO, Shao et al. 2024 (arXiv 2402.03300), equation 4; the estimators: J. Schulman,
"Approximating KL divergence" (2020). Read: trl 1.16.0, GRPOTrainer._compute_loss.

    L = L(task) + beta * mean over label tokens of k,  d = log p_reference - log p
    term: reward   R_t = R [t is the last token] - beta * k_t, of REINFORCE++ (arXiv 2501.03262)
    k1 = -d;  k2 = d^2 / 2;  k3 = exp(d) - d - 1;  k3_ratio = k3 * p / p_sampling
Departs: nothing. The gradient of k3 is that of the forward KL; times the ratio, with gradient, it
is that of the reverse KL. That of k1 alone is 0 in expectation over samples: k1 is for watching.
Cost: a forward pass a step without gradient. With an adapter and reference: base nothing is kept;
else a copy of the trainable weights.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from perdure.errors import UsageError
from perdure.protocol.method import Method, MethodConfig, Requires
from perdure.recipe.mistakes import Mistake

if TYPE_CHECKING:
    from torch import Tensor

    from perdure.protocol.batch import ForwardOutput
    from perdure.protocol.context import Context


class KLConfig(MethodConfig):
    beta: float = Field(0.001, ge=0, description="weight of the KL")
    estimator: Literal["k1", "k2", "k3", "k3_ratio"] = Field(
        "k3", description="what estimates the KL of a token; k3_ratio has the reverse KL's gradient"
    )
    reference: Literal["base", "previous"] = Field(
        "base", description="the base model, or the model as the last task left it"
    )
    term: Literal["loss", "reward"] = Field(
        "loss",
        description="reward: of reinforce++, taken off each token's reward, and no term of a loss",
    )

    def mistakes(self) -> Iterator[Mistake]:
        if self.term == "reward" and self.estimator == "k3_ratio":
            what = "is k3 with term: reward, where the model is the one that samples"
            yield Mistake(("estimator",), what, "write k3, or k1, the paper's")


def kl_of_tokens(
    log_probs: Tensor, reference: Tensor, sampling: Tensor, estimator: str = "k3"
) -> Tensor:
    """An estimate of the KL from the reference for each token, from the token alone.

    Args: log_probs, reference, sampling: (tokens,) in nats, of the model, of the reference, and of
        the model that sampled the token, of which `k3_ratio` alone makes use.
    Returns: (tokens,) in nats; k2, k3 and k3_ratio are never below 0.
    """
    d = reference - log_probs
    if estimator == "k1":
        return -d
    if estimator == "k2":
        return d.square() / 2
    k3 = d.exp() - d - 1
    return k3 * (log_probs - sampling).exp() if estimator == "k3_ratio" else k3


class KL(Method):
    Config = KLConfig
    config: KLConfig
    reference_kl = True
    example_options: ClassVar = {"beta": 5.0, "estimator": "k2"}
    noop_options: ClassVar = {"beta": 0}

    def __init__(self, config: KLConfig) -> None:
        super().__init__(config)
        self.requires = Requires(logits=True, teacher=config.reference)

    def uses(self, hook: str) -> bool:
        idle = "loss" if self.config.term == "reward" else "penalties"
        return hook != idle and super().uses(hook)

    def check(self, classes: Sequence[str]) -> None:
        super().check(classes)
        if classes:
            raise UsageError(
                "method: kl compares the log-probabilities of text, and these tasks have classes: "
                "of a new class the reference knows nothing",
                "use lwf or derpp, which hold the old classes",
            )

    def penalties(self, ctx: Context, main: ForwardOutput) -> tuple[float, Tensor]:
        return self.config.beta, self._of_tokens(ctx, main)

    def _of_tokens(self, ctx: Context, main: ForwardOutput) -> Tensor:
        reference = ctx.frozen(self.config.reference, log_probs=True)(main.batch).log_probs
        sampling, estimator = main.sampling_log_probs, self.config.estimator
        return kl_of_tokens(main.log_probs, reference, sampling, estimator)

    def loss(
        self, ctx: Context, main: ForwardOutput, extra: ForwardOutput | None
    ) -> Mapping[str, Tensor]:
        term = main.token_mean(self._of_tokens(ctx, main))
        ctx.log("kl", term.detach())
        return {"kl": self.config.beta * term}
