"""REINFORCE++ (Hu et al. 2025, arXiv 2501.03262): advantages against the whole batch, no group.

TRL has none; its loss takes an advantage for each token, which this gives. What methods take off
the reward of each token, such as a KL (equation 5 there), is computed where completions are
sampled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from perdure.engine.completions import labelled_batch, trained_tokens
from perdure.models.weights import evaluating
from perdure.protocol.batch import ForwardOutput
from perdure.protocol.method import name_of

EPSILON = 1e-8


def reinforce_advantages(
    rewards: Tensor,
    mask: Tensor,
    penalties: Tensor | None = None,
    total: Callable[[Tensor], Tensor] = lambda values: values,
) -> Tensor:
    """Advantages by REINFORCE++: each token's return to go, whitened over the batch's tokens.

    A completion's reward stands at its last token, minus `penalties` at each (such as beta times
    k1 of the KL); the discount is 1. Whitened: minus the mean, times 1 / sqrt(var + 1e-8), with
    the unbiased variance.

    Args:
        rewards: (completions,).
        mask: (completions, tokens), 1 where a token is the completion's own.
        penalties: (completions, tokens); None: zero.
        total: sums a tensor over all processes.

    Returns: (completions, tokens); 0 outside of `mask`.
    """
    mask = mask.to(rewards.dtype)
    at = torch.zeros_like(mask) if penalties is None else -penalties * mask
    last = mask.sum(-1).long().clamp(min=1) - 1
    at = at.scatter_add(1, last.unsqueeze(1), (rewards * (mask.sum(-1) > 0)).unsqueeze(1))
    returns = at.flip(-1).cumsum(-1).flip(-1) * mask
    count, summed = total(torch.stack([mask.sum(), returns.sum()]))
    mean = summed / count.clamp(min=1)  # no token at all: every completion is masked
    spread = total((((returns - mean) * mask) ** 2).sum()) / (count - 1).clamp(min=1)
    return (returns - mean) * torch.rsqrt(spread + EPSILON) * mask


@torch.no_grad()
def penalties(trainer: Any, sampled: Mapping[str, Any]) -> Tensor | None:
    """What the trainer's methods take off the reward of each token, by the weights that sampled.

    As of a term of a loss, the mean over all tokens is logged as `method/NAME`, without its weight.

    Args: sampled: the batch that a `trl.GRPOTrainer` makes of completions.

    Returns: (completions, tokens), 0 outside of what is trained on; None: no method takes any.
    """
    methods = [m for m in getattr(trainer, "methods", ()) if m.uses("penalties")]
    if not methods:
        return None
    ctx, ids = trainer.session.context, sampled["completion_ids"]
    found = torch.zeros(ids.shape, device=ids.device)
    means = torch.zeros(1 + len(methods), device=ids.device)  # tokens, and each one's sum
    weights = dict.fromkeys(map(name_of, methods), 0.0)
    size = trainer.args.per_device_train_batch_size
    for start in range(0, len(found), size):
        part = {
            name: value[start : start + size]
            for name, value in sampled.items()
            if torch.is_tensor(value) and value.dim()
        }
        trained, batch = trained_tokens(part), labelled_batch(part)
        main = ForwardOutput(trainer.model, batch)
        with evaluating(trainer.model):
            log_probs = trainer._get_per_token_logps_and_entropies(
                trainer.model, batch["input_ids"], batch["attention_mask"], ids.shape[1]
            )[0]
        main.given = main.drawn = log_probs[trained]
        means[0] += trained.sum()
        for number, method in enumerate(methods, 1):
            taken = method.penalties(ctx, main)
            if taken is not None:
                weights[name_of(method)], each = taken
                found[start : start + size][trained] += taken[0] * each.to(found.dtype)
                means[number] += each.sum()
    count, *sums = trainer.accelerator.reduce(means, reduction="sum").tolist()
    for (name, weight), value in zip(weights.items(), sums, strict=True):
        trainer.session.log(name, value / max(1.0, count))
        trainer.session.log(f"{name}_weight", weight)
    return found
