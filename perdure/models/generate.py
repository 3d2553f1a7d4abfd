"""Texts that a model writes: greedy answers to prompts, and plain samples of its own."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from perdure.models.anatomy import unwrapped
from perdure.models.chat import Encoder
from perdure.models.random_state import forked_rng
from perdure.models.weights import evaluating
from perdure.processes import Progress

if TYPE_CHECKING:
    from collections.abc import Iterator


_MARK = "PerdureUserTurn"


@dataclass(frozen=True)
class Sample:
    """A text that a model wrote: `ids` are all its token ids, the first `given` are the start."""

    ids: list[int]
    given: int


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
    stops = stop_ids(inner, encoder)
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
    with forked_rng(device), evaluating(model), torch.no_grad(), generating_with(inner, settings):
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


def generate(
    model: nn.Module,
    encoder: Encoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    synced: bool = False,
) -> list[str]:
    """Return the texts that greedy decoding writes after each prompt, one batch.

    Prompts are padded on the left. Decoding ends with the token that ends an answer, the
    tokenizer's or the model's end of sequence. The model's own generation settings (sampling,
    penalties) do not count.

    Args:
        prompts: token ids, at least one each.
        synced: keep all processes in step, as sharded models need.
    """
    from transformers import GenerationConfig

    base = unwrapped(model)
    width = max(len(prompt) for prompt in prompts)
    gaps = [width - len(prompt) for prompt in prompts]
    ids = [[encoder.pad_id] * gap + list(p) for gap, p in zip(gaps, prompts, strict=True)]
    mask = [[0] * gap + [1] * (width - gap) for gap in gaps]
    settings = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=max_new_tokens,
        use_cache=True,
        pad_token_id=encoder.pad_id,
        eos_token_id=stop_ids(base, encoder) or None,
    )
    with generating_with(base, settings), torch.no_grad():
        out = model.generate(  # type: ignore[operator]
            input_ids=torch.tensor(ids, device=base.device),
            attention_mask=torch.tensor(mask, device=base.device),
            generation_config=settings,
            synced_gpus=synced,
        )
    texts = encoder.tokenizer.batch_decode(out[:, width:].tolist(), skip_special_tokens=True)
    # An end of several ordinary tokens is no stop token: it is cut off here.
    return [(t.split(encoder.end)[0] if encoder.end else t).strip() for t in texts]


@contextmanager
def generating_with(base: Any, settings: Any) -> Iterator[None]:
    """Let `settings` be the model's, so that nothing is filled in from its own ones."""
    had, use_cache = base.generation_config, base.config.use_cache
    base.generation_config = settings
    try:
        yield
    finally:
        base.generation_config, base.config.use_cache = had, use_cache


def stop_ids(base: Any, encoder: Encoder) -> list[int]:
    found: set[int] = set()
    if encoder.end:
        end = encoder.tokenizer(encoder.end, add_special_tokens=False)["input_ids"]
        found |= set(end) if len(end) == 1 else set()
    own = getattr(base.generation_config, "eos_token_id", None)
    found |= set(own) if isinstance(own, list | tuple) else {own}  # type: ignore[arg-type]
    found.add(encoder.tokenizer.eos_token_id)
    return sorted(token for token in found if token is not None)
