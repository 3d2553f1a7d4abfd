"""Train two tasks with one method on the tiny model; `main` does so for all methods in turn.

In several processes `main(MODEL, OUT)` runs as under torchrun. It writes OUT/METHOD.safetensors,
the weights after both tasks.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from perdure.methods import registry
from perdure.testing import make, own_learner, train

METHODS = {n: m for n in registry.names() if not (m := registry.load(n)).classes_only}
"""All methods but those for tasks with classes alone, which test_on_classes.py goes through."""
ACTIVE: dict[str, Mapping[str, Any]] = {n: kind.example_options for n, kind in METHODS.items()}
OWN_ROWS = {name for name, kind in METHODS.items() if own_learner(kind)}


def made(name: str, options: Mapping[str, Any]) -> Any:
    return make(METHODS[name], options)


def main(model_dir: str, out: str) -> None:
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for name, options in ACTIVE.items():
        if name in OWN_ROWS:
            continue
        model = AutoModelForCausalLM.from_pretrained(model_dir)
        tokenizer, method = AutoTokenizer.from_pretrained(model_dir), made(name, options)
        for index in (0, 1):
            train(model, tokenizer, Path(out) / name, [method], index)
        if os.environ.get("RANK", "0") == "0":
            save_file(dict(model.named_parameters()), Path(out) / f"{name}.safetensors")
