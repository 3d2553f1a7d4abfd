"""Where a causal language model keeps its parts: decoder, layers, head, attention window."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from typing import Any

from torch import nn

from perdure.errors import UsageError
from perdure.recipe.mistakes import Mistake


def decoder_of(model: nn.Module) -> nn.Module:
    """The stack under the head: its output's first element is the final norm's output."""
    found: nn.Module = model.get_decoder()  # type: ignore[operator]
    return found


def head_of(model: nn.Module) -> nn.Module | None:
    """The head, or of a `transformers` classifier the layer that makes its logits; None: not known.

    The first is what `get_output_embeddings` says.
    """
    host: Any = unwrapped(model)
    found = host.get_output_embeddings() if hasattr(host, "get_output_embeddings") else None
    if found is not None:
        return found
    for name in ("classifier", "score", "classification_head"):
        if isinstance(part := getattr(host, name, None), nn.Module):
            return [m for m in part.modules() if isinstance(m, nn.Linear)][-1]
    return None


def layers_of(model: nn.Module) -> nn.ModuleList:
    """The decoder's layers, whatever the family calls them.

    Raises:
        AttributeError: the decoder has no list of layers that we know.
    """
    decoder = decoder_of(model)
    inside = (getattr(decoder, name, None) for name in ("encoder", "transformer"))  # of encoders
    for host in (decoder, *inside):
        for name in ("layers", "layer", "h", "blocks", "block"):
            if isinstance(found := getattr(host, name, None), nn.ModuleList):
                return found
    raise AttributeError(f"{type(decoder).__name__} has no list of layers")


def check_layers(model: nn.Module, layers: Sequence[int]) -> None:
    """Raise `UsageError` where the model has not so many layers, or one is named twice.

    -1 is the final norm's output, -2 the last layer but one.
    """
    if tuple(layers) in ((), (-1,)):
        return
    for mistake in layer_mistakes(layers, len(layers_of(model))):
        raise UsageError(f"method: layers: {mistake.what}", mistake.remedy)


def layer_mistakes(layers: Sequence[int], count: int) -> Iterator[Mistake]:
    """What is wrong with `layers` of a model that has `count`, at an option's key of that name."""
    wrong = [k for k in layers if not -count <= k < count]
    if wrong:
        what = f"the model has no layer {wrong[0]}"
        remedy = f"its layers are 0 to {count - 1}, and -1, the output of the final norm"
        yield Mistake(("layers",), what, remedy)
    elif len({k if k == -1 else k % count for k in layers}) < len(layers):
        yield Mistake(("layers",), "a layer is named twice", f"-{count} is 0, and so on")


def takes_positions(model: nn.Module) -> bool:
    """Whether the head can be run on chosen positions only (`logits_to_keep`)."""
    host: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # type: ignore[operator]
    return "logits_to_keep" in inspect.signature(host.forward).parameters


def unwrapped(model: nn.Module) -> Any:
    """Return the `transformers` model, the one inside where peft wraps it."""
    inner: Any = model
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


_UNLIMITED = 1 << 30


def window(config: Any) -> int:
    """The smallest window or chunk of tokens that any layer sees."""
    config = config.get_text_config()
    sizes = [_UNLIMITED]
    for name, value in config.to_dict().items():
        if re.search("window|chunk", name) and not re.search("layers|feed_forward|pattern", name):
            values = value if isinstance(value, list | tuple) else [value]
            sizes += [v for v in values if isinstance(v, int) and v > 1]
    return min(sizes)
