"""How far a tuned model's predictions moved from its base, on texts that the base writes itself.

    KL(base || tuned) = mean over the tokens of a text of  sum over v of  p(v) (log p(v) - log q(v))

with p of the base and q of the tuned model after the same tokens. The texts are samples from p
(temperature 1, nothing cut off), so no data is needed, and a token's whole distribution enters, so
that little noise is left. It starts where a user would: inside a user's turn of the chat template,
or at the beginning of a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from perdure.errors import ModelError
from perdure.models.generate import Sample
from perdure.models.weights import evaluating
from perdure.processes import Progress


def token_kl(base: Tensor, tuned: Tensor) -> Tensor:
    """KL from base to tuned at each position, in nats, computed in fp32.

    Args:
        base, tuned: logits, (tokens, vocab). Ids that only `tuned` has are tokens added to it,
            which the base never predicts; ids that only `base` has must be padding of its matrix.
    Returns: (tokens,), at least 0.
    """
    size = min(base.shape[-1], tuned.shape[-1])
    log_p = base.float().log_softmax(-1)[..., :size]
    log_q = tuned.float().log_softmax(-1)[..., :size]
    return (log_p.exp() * (log_p - log_q)).sum(-1).clamp_min(0.0)


def sampled_kl(
    base: nn.Module,
    tuned: nn.Module,
    samples: Sequence[Sample],
    *,
    pad_id: int = 0,
    vocabulary: int | None = None,
    batch_size: int = 8,
    on_progress: Progress | None = None,
) -> list[float]:
    """Mean KL a token from base to tuned on each sample, in nats, with what is active in both.

    Returns: one number a sample, at least 0.
    Raises:
        ModelError: the tuned model predicts fewer tokens than the base's tokenizer has, or one of
            the two gives NaN.
    """
    found: list[float] = []
    with evaluating(base), evaluating(tuned), torch.no_grad():
        for at in range(0, len(samples), batch_size):
            part = samples[at : at + batch_size]
            ours, theirs = _logits(base, part, pad_id), _logits(tuned, part, pad_id)
            if vocabulary is not None and theirs.shape[-1] < vocabulary:
                raise ModelError(
                    f"the tuned model predicts {theirs.shape[-1]} tokens, the base's tokenizer "
                    f"has {vocabulary}",
                    "were they made from the same base? leave KL out: their texts do not compare",
                )
            for row, sample in enumerate(part):
                # The logits at position t predict token t + 1.
                span = slice(sample.given - 1, len(sample.ids) - 1)
                kl = token_kl(ours[row, span], theirs[row, span].to(ours.device))
                value = float(kl.double().mean())
                if value != value:
                    raise ModelError(
                        "KL from base to tuned is NaN: one of the models predicts no numbers",
                        "are its weights damaged?",
                    )
                found.append(value)
            if on_progress is not None:
                on_progress(len(found), len(samples))
    return found


def _logits(model: Any, samples: Sequence[Sample], pad_id: int) -> Tensor:
    """(samples, seq, vocab), padded on the right, where a causal model does not look."""
    width = max(len(s.ids) for s in samples)
    ids = [s.ids + [pad_id] * (width - len(s.ids)) for s in samples]
    mask = [[1] * len(s.ids) + [0] * (width - len(s.ids)) for s in samples]
    device = next(model.parameters()).device
    out = model(
        input_ids=torch.tensor(ids, device=device),
        attention_mask=torch.tensor(mask, device=device),
        use_cache=False,
    )
    return out.logits
