"""How far a tuned model's predictions moved from its base, on texts that the base writes itself.

    KL(base || tuned) = mean over the tokens of a text of  sum over v of  p(v) (log p(v) - log q(v))

with p of the base and q of the tuned model after the same tokens. The texts are samples from p
(temperature 1, nothing cut off), so no data is needed, and a token's whole distribution enters, so
that little noise is left. It starts where a user would: inside a user's turn of the chat template,
or at the beginning of a text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from perdure.errors import ModelError
from perdure.learners.context import forked_rng
from perdure.learners.encoding import Encoder
from perdure.scoring.likelihood import unwrapped
from perdure.scoring.ranks import Progress, measuring
from perdure.scoring.scorer import _own_settings, _stops

_MARK = "PerdureUserTurn"


@dataclass(frozen=True)
class Sample:
    """A text that a model wrote: `ids` are all its token ids, the first `given` are the start."""

    ids: list[int]
    given: int


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


def start_of_user_turn(encoder: Encoder) -> list[int]:
    """Token ids up to where a user begins to write; without a template the start of a text."""
    tokenizer = encoder.tokenizer
    if encoder.template is not None:
        text = encoder.prompt_text({"prompt": [{"role": "user", "content": _MARK}], "answer": ""})
        before = text.split(_MARK)[0]
        if before:
            return list(tokenizer(before, add_special_tokens=False)["input_ids"])
    return start_of_text(encoder)


def start_of_text(encoder: Encoder) -> list[int]:
    """The token a text begins with; where the tokenizer has none, the one that ends the last."""
    first = encoder.tokenizer.bos_token_id
    return [first if first is not None else encoder.tokenizer.eos_token_id]


def sample_texts(
    model: nn.Module,
    encoder: Encoder,
    *,
    texts: int,
    tokens: int,
    seed: int = 0,
    batch_size: int = 16,
    starts: Sequence[Sequence[int]] = (),
    past_end: bool = False,
    on_progress: Progress | None = None,
) -> list[Sample]:
    """Let a model write texts from nothing, by plain sampling.

    The same seed and batch size give the same texts on the same machine; the global random state
    is afterwards what it was.

    Args:
        tokens: the most tokens of a text after its start; an end of text or turn ends it earlier.
        starts: token ids that texts begin with, taken in turn; none is where a user's turn begins.
        past_end: go on past an end, as into the answer to a user's turn, until two come in a row.
    Returns: `texts` samples, each at least one token longer than its start.
    """
    from transformers import GenerationConfig

    every = [list(start) for start in starts] or [start_of_user_turn(encoder)]
    inner = unwrapped(model)
    stops = _stops(inner, encoder)
    settings = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        max_new_tokens=tokens,
        pad_token_id=encoder.pad_id,
        eos_token_id=None if past_end else stops or None,
    )
    found: list[Sample] = []
    device = next(model.parameters()).device
    with forked_rng(device), measuring(model), torch.no_grad(), _own_settings(inner, settings):
        torch.manual_seed(seed)
        while len(found) < texts:
            rows = min(batch_size, texts - len(found))
            begun = [every[(len(found) + k) % len(every)] for k in range(rows)]
            width = max(map(len, begun))  # padded on the left: texts go on at the right
            padded = [[encoder.pad_id] * (width - len(s)) + s for s in begun]
            mask = [[0] * (width - len(s)) + [1] * len(s) for s in begun]
            out: Tensor = model.generate(  # type: ignore[operator]
                input_ids=torch.tensor(padded, device=device),
                attention_mask=torch.tensor(mask, device=device),
                generation_config=settings,
            )
            for start, line in zip(begun, out.tolist(), strict=True):
                row = line[width - len(start) :]
                ends = [k for k in range(len(start), len(row)) if row[k] in stops]
                if past_end:
                    ends = [k for k in ends if k + 1 in ends]
                found.append(Sample(row[: ends[0] + 1] if ends else row, len(start)))
            if on_progress is not None:
                on_progress(len(found), texts)
    return found


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
    """Mean KL a token from base to tuned on each sample, in nats.

    Returns: one number a sample, at least 0.
    Raises:
        ModelError: the tuned model predicts fewer tokens than the base's tokenizer has, or one of
            the two gives NaN.
    """
    found: list[float] = []
    with measuring(base), measuring(tuned), torch.no_grad():
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
