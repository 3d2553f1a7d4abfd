"""Base models: from the hub, a local folder or a GGUF file; full fine-tuning or LoRA.

    load_base(model, precision=...)   a recipe's base model and tokenizer
    load_saved(path)                  what a run (or anyone else) saved, full or adapter
    save_model(model, ...)            weights, tokenizer and where the base came from
    load_weights(model, folder)       saved weights by the model's own parameter names
    inspect_base(model)               what it is, without loading weights
    choose_precision("auto")          "fp32" or "bf16", by what this machine is faster at

Importing this package loads no torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from perdure.lazy import lazily

if TYPE_CHECKING:
    from perdure.models.adapters import attach_lora as attach_lora
    from perdure.models.adapters import save_model as save_model
    from perdure.models.inspect import ModelFacts as ModelFacts
    from perdure.models.inspect import inspect_base as inspect_base
    from perdure.models.load import load_base as load_base
    from perdure.models.load import load_saved as load_saved
    from perdure.models.load import load_tokenizer as load_tokenizer
    from perdure.models.precision import Speed as Speed
    from perdure.models.precision import choose_precision as choose_precision
    from perdure.models.precision import measure_speed as measure_speed
    from perdure.models.restore import load_weights as load_weights

_HOME = {
    "attach_lora": "adapters",
    "save_model": "adapters",
    "ModelFacts": "inspect",
    "inspect_base": "inspect",
    "load_base": "load",
    "load_saved": "load",
    "load_tokenizer": "load",
    "load_weights": "restore",
    "Speed": "precision",
    "choose_precision": "precision",
    "measure_speed": "precision",
}

__all__ = sorted(_HOME)


__getattr__ = lazily(__name__, _HOME)
