"""Capture what methods ask for from a forward pass, by forward hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn

from perdure.models.anatomy import decoder_of, head_of, layers_of, takes_positions
from perdure.models.chat import IGNORE
from perdure.protocol.batch import ForwardOutput, batch_labels_at, batch_targets
from perdure.protocol.method import Requires


def head_is_cut(model: nn.Module, batch: Mapping[str, Any]) -> bool:
    """Whether the head runs on a batch's label positions only: where it can be told positions, and
    the labels have some."""
    return takes_positions(model) and batch_labels_at(batch) != "row"


def head_options(model: nn.Module, batch: Mapping[str, Any], logits: bool) -> dict[str, Any]:
    """Arguments that run the head on a batch's label positions only, or hardly at all."""
    if not head_is_cut(model, batch):
        return {}
    return {"logits_to_keep": batch_targets(batch) != IGNORE if logits else 1}


def computing(
    model: nn.Module, autocast: Callable[[], AbstractContextManager[Any]]
) -> dict[str, str]:
    """What rounding depends on beside the weights: the type computed in, and the attention."""
    first, host = next(model.parameters()), cast(Any, model)
    with autocast():
        kind = first.device.type
        mixed = torch.is_autocast_enabled(kind)
        dtype = torch.get_autocast_dtype(kind) if mixed else first.dtype
    return {"dtype": str(dtype), "attention": str(host.config._attn_implementation)}


def _first(output: Any) -> Tensor:
    if hasattr(output, "last_hidden_state"):
        output = output.last_hidden_state
    found: Tensor = output[0] if isinstance(output, (tuple, list)) else output
    return found


@contextmanager
def capture(
    model: nn.Module, reads: Sequence[Requires], into: ForwardOutput
) -> Iterator[ForwardOutput]:
    """Keep, by forward hooks, what `reads` names of the next forward pass of `model`.

    Hooks see tensors in the graph, once, also under activation checkpointing, packing and heads
    fused into the loss. Only the first forward inside the block is kept.
    """
    handles = []
    hidden: dict[int, Tensor] = {}
    into.hidden = hidden
    layers = sorted({k for r in reads for k in r.hidden})
    need_logits = any(r.logits for r in reads)

    def keep_last(_: nn.Module, __: Any, output: Any) -> None:
        if into.last is None:
            into.last = _first(output)
            if -1 in layers:
                hidden[-1] = into.last

    def keep_head(_: nn.Module, args: tuple[Tensor, ...], output: Any) -> None:
        if into.head is None:
            into.head, into.read = output, args[0]

    if need_logits or -1 in layers:
        handles.append(decoder_of(model).register_forward_hook(keep_last))
    if need_logits and (head := head_of(model)) is not None:
        handles.append(head.register_forward_hook(keep_head))
    for k in layers:
        if k != -1:
            handles.append(
                layers_of(model)[k].register_forward_hook(
                    lambda _, __, out, k=k: hidden.setdefault(k, _first(out))
                )
            )
    try:
        yield into
    finally:
        for handle in handles:
            handle.remove()
