"""Texts that a model writes: greedy answers to prompts, and plain samples of its own."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from perdure.models.anatomy import unwrapped
from perdure.models.chat import Encoder
from perdure.models.random_state import forked_rng
from perdure.models.weights import evaluating
from perdure.processes import Progress

if TYPE_CHECKING:
    from collections.abc import Iterator


logger = logging.getLogger(__name__)
_MARK = "PerdureUserTurn"


@dataclass(frozen=True)
class Written:
    """What a model wrote behind a prompt.

    `text` is the text of an answer: without special tokens and without blanks around it. `whole`
    has all that was written but padding and what ends an answer, so special tokens are in it.
    `truncated`: nothing ended it but the limit of tokens.
    """

    text: str
    whole: str
    truncated: bool


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
    batch_size = min(batch_size, texts)
    if batch_size > 1 and not batches_alike(model, encoder, every):
        batch_size = 1
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
    adapters: Sequence[str] | None = None,
) -> list[str]:
    """Return the texts that greedy decoding writes after each prompt, one batch.

    Prompts are padded on the left. Decoding ends with the token that ends an answer, the
    tokenizer's or the model's end of sequence. The model's own generation settings (sampling,
    penalties) do not count.

    Args:
        prompts: token ids, at least one each.
        synced: keep all processes in step, as sharded models need.
        adapters: the adapter of each prompt, by name (`perdure.models.adapter_lists.BASE`: none);
            None: those that are active. The model is in evaluation mode.
    """
    found = generate_whole(
        model,
        encoder,
        prompts,
        max_new_tokens=max_new_tokens,
        synced=synced,
        adapters=adapters,
    )
    return [one.text for one in found]


def generate_whole(
    model: nn.Module,
    encoder: Encoder,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    synced: bool = False,
    adapters: Sequence[str] | None = None,
) -> list[Written]:
    """As `generate`, with all that was written and whether it was ended."""
    out, _ = _greedy(model, encoder, prompts, max_new_tokens, synced, adapters=adapters)
    stops = stop_ids(unwrapped(model), encoder)
    return [written(encoder, ids, stops) for ids in out.tolist()]


def written(encoder: Encoder, ids: Sequence[int], stops: Sequence[int]) -> Written:
    """The token ids behind a prompt as text, up to the first that stops.

    Args: stops: those of `stop_ids`. Padding stands behind one of them only.
    """
    ends = [k for k, token in enumerate(ids) if token in stops]
    kept = list(ids[: ends[0]] if ends else ids)
    decode = encoder.tokenizer.decode
    # An end of several ordinary tokens is no stop token: it is cut off here.
    whole, ended, _ = _parted(decode(kept, skip_special_tokens=False), encoder.end)
    text, _, _ = _parted(decode(list(ids), skip_special_tokens=True), encoder.end)
    return Written(text.strip(), whole, not ends and not ended)


def _parted(text: str, end: str) -> tuple[str, str, str]:
    return text.partition(end) if end else (text, "", "")


def _greedy(
    model: nn.Module,
    encoder: Encoder,
    prompts: Sequence[Sequence[int]],
    tokens: int,
    synced: bool,
    scores: bool = False,
    adapters: Sequence[str] | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """The ids written after each prompt, (prompts, written), and the logits of each step, each
    (prompts, vocab), where `scores` asks for them."""
    from transformers import GenerationConfig

    base = unwrapped(model)
    width = max(len(prompt) for prompt in prompts)
    gaps = [width - len(prompt) for prompt in prompts]
    ids = [[encoder.pad_id] * gap + list(p) for gap, p in zip(gaps, prompts, strict=True)]
    mask = [[0] * gap + [1] * (width - gap) for gap in gaps]
    settings = GenerationConfig(
        do_sample=False,
        num_beams=1,
        max_new_tokens=tokens,
        use_cache=True,
        pad_token_id=encoder.pad_id,
        eos_token_id=stop_ids(base, encoder) or None,
        return_dict_in_generate=True,
        output_logits=scores,
    )
    with generating_with(base, settings), torch.no_grad():
        out = model.generate(  # type: ignore[operator]
            input_ids=torch.tensor(ids, device=base.device),
            attention_mask=torch.tensor(mask, device=base.device),
            generation_config=settings,
            synced_gpus=synced,
            **({} if adapters is None else {"adapter_names": list(adapters)}),
        )
    return out.sequences[:, width:], list(out.logits or ()) if scores else []


def batches_alike(
    model: nn.Module,
    encoder: Encoder,
    prompts: Sequence[Sequence[int]],
    *,
    synced: bool = False,
) -> bool:
    """Whether a model writes the same after a prompt in a padded batch as after it alone.

    It is tried on two prompts of unequal length, once a model; recurrent ones that ignore the
    mask do not. If not, that is said once, and prompts have to go one at a time.
    """
    base = unwrapped(model)
    if base not in _alike:
        long = list(max(prompts, key=len)[-_TRIED:])
        long = long if len(long) > 1 else long * 2
        short = list(min(prompts, key=len)[-(len(long) // 2) :])
        with evaluating(model):
            pair = _greedy(model, encoder, [long, short], _STEPS, synced, scores=True)
            alone = [
                _greedy(model, encoder, [p], _STEPS, synced, scores=True) for p in (long, short)
            ]
        _alike[base] = all(_close(pair, one, row) for row, one in enumerate(alone))
        if not _alike[base]:
            logger.warning(
                "%s writes otherwise in a batch than alone: prompts go one at a time, which is "
                "slower",
                type(base).__name__,
            )
    return _alike[base]


_TRIED, _STEPS = 32, 4  # tokens of a prompt, and tokens that are written, in a trial
_alike: WeakKeyDictionary[nn.Module, bool] = WeakKeyDictionary()


def _close(pair: tuple[Tensor, list[Tensor]], alone: tuple[Tensor, list[Tensor]], row: int) -> bool:
    """Whether a row of a batch has the logits that it has alone, as long as both write the same."""
    for step, (both, one) in enumerate(zip(pair[1], alone[1], strict=False)):
        together, apart = both[row].float(), one[0].float()
        spread = (apart - apart.mean()).norm()
        if not (together - apart).norm() <= 0.1 * spread:  # rounding is far below, in bf16 too
            return False
        if pair[0][row, step] != alone[0][0, step]:
            return True  # two tokens that are as good as equally likely
    return True


def cut_at_end(
    encoder: Encoder, ids: Sequence[int], stops: Sequence[int]
) -> tuple[list[int], bool]:
    """What was written behind a prompt, up to and with what ends it, and whether anything does.

    Also where the end of an answer is of several ordinary tokens, which no single token tells.

    Args: stops: those of `stop_ids`.
    """
    first = next((k for k, token in enumerate(ids) if token in stops), None)
    kept = list(ids) if first is None else list(ids[: first + 1])

    def ends(count: int) -> bool:
        return encoder.end in encoder.tokenizer.decode(kept[:count], skip_special_tokens=False)

    if len(encoder.end_ids) > 1 and ends(len(kept)):
        return kept[: bisect_left(range(len(kept)), True, key=ends)], True
    return kept, first is not None


class _AtEnd:
    """Tells `transformers` that a row of a batch has written all these tokens one after another."""

    def __init__(self, end_ids: Sequence[int]) -> None:
        self.end_ids = torch.tensor(end_ids)
        self.given: int | None = None  # tokens of the prompts

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        size, width = len(self.end_ids), input_ids.shape[1]
        self.given = width - 1 if self.given is None else self.given
        if width - self.given < size:
            return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        return (input_ids[:, -size:] == self.end_ids.to(input_ids.device)).all(-1)


@contextmanager
def stopping_at(base: Any, end_ids: Sequence[int]) -> Iterator[None]:
    """Let a model stop where it has written an end of several ordinary tokens."""
    if len(end_ids) < 2:
        yield
        return
    own = base.generate

    def generate(*args: Any, **kwargs: Any) -> Any:
        return own(*args, stopping_criteria=[_AtEnd(end_ids)], **kwargs)

    base.generate = generate
    try:
        yield
    finally:
        del base.generate


@contextmanager
def generating_with(base: Any, settings: Any) -> Iterator[None]:
    """Let `settings` be the model's, so that nothing is filled in from its own ones."""
    had, use_cache = base.generation_config, base.config.use_cache
    base.generation_config = settings
    try:
        with without_router_losses(base):
            yield
    finally:
        base.generation_config, base.config.use_cache = had, use_cache


@contextmanager
def without_router_losses(base: Any) -> Iterator[None]:
    """A mixture of experts without its balancing loss, which transformers works out wrongly where
    a model writes a batch of several prompts."""
    name = "output_router_logits"
    owners = {id(c): c for c in (base.config, base.config.get_text_config())}
    on = [c for c in owners.values() if getattr(c, name, False)]
    for config in on:
        setattr(config, name, False)
    try:
        yield
    finally:
        for config in on:
            setattr(config, name, True)


def stop_ids(base: Any, encoder: Encoder) -> list[int]:
    found: set[int] = set()
    if len(encoder.end_ids) == 1:
        found |= set(encoder.end_ids)
    own = getattr(base.generation_config, "eos_token_id", None)
    found |= set(own) if isinstance(own, list | tuple) else {own}  # type: ignore[arg-type]
    found.add(encoder.tokenizer.eos_token_id)
    return sorted(token for token in found if token is not None)
