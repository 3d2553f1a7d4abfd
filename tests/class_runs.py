"""Small classifiers and streams of classes, for tests of mechanics.

A word of each text decides its class, so that a random body learns something; nothing here says
anything about learning.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

CLASSES = ("red", "blue", "cold", "warm", "fast", "slow")
WORDS = ("xq", "zk", "vv", "jj", "ww", "pp")


def save_encoder(folder: Path, name: str = "bert", dropout: float = 0.1) -> Path:
    """A body of two layers with random weights, and a tokenizer, as a folder."""
    import torch
    from small_tokenizer import make_tokenizer
    from transformers import AutoConfig, AutoModel

    tokenizer = make_tokenizer()
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    if name == "bert":
        sizes |= {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = AutoModel.from_config(AutoConfig.for_model(name, **sizes))
    body.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def save_decoder(folder: Path, name: str = "llama", tied: bool = False) -> Path:
    """A decoder of two layers with its language-model head, random, and a tokenizer."""
    import torch
    from small_tokenizer import make_tokenizer
    from transformers import AutoConfig, AutoModelForCausalLM

    tokenizer = make_tokenizer()
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128,
        "tie_word_embeddings": tied, "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    if name == "gpt2":
        renamed = {
            "hidden_size": "n_embd", "num_hidden_layers": "n_layer",
            "num_attention_heads": "n_head", "max_position_embeddings": "n_positions",
        }  # fmt: skip
        sizes = {renamed.get(key, key): value for key, value in sizes.items()}
        sizes |= {"n_inner": sizes.pop("intermediate_size"), "embd_pdrop": 0.0, "attn_pdrop": 0.0,
                  "resid_pdrop": 0.0}  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **sizes))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_classes(folder: Path, train: int = 8, test: int = 4, classes: int = 6) -> None:
    """Files train.jsonl, validation.jsonl and test.jsonl with so many rows of each class."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", train), ("validation", 2), ("test", test)):
        rng = random.Random(split)
        rows = [
            {"text": f"{WORDS[k]} {split} {i}{' word' * rng.randrange(5)}", "label": CLASSES[k]}
            for k in range(classes)
            for i in range(count)
        ]
        rng.shuffle(rows)
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_class_recipe(folder: Path, model: Path, **changes: Any) -> Path:
    """Three tasks of two classes; `changes` are keys like `train__epochs`."""
    write_classes(folder)
    recipe: dict[str, Any] = {
        "model": {"path": str(model), "pooling": "mean", "head": {"learning_rate": 1e-2}},
        "stream": {
            "data": {
                **{split: f"{split}.jsonl" for split in ("train", "validation", "test")},
                "tasks": [list(CLASSES[i : i + 2]) for i in (0, 2, 4)],
            }
        },
        "method": {"name": "seq_star", "warmup_epochs": 1},
        "train": {"learning_rate": 1e-3, "epochs": 2, "batch_size": 4, "precision": "fp32"},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            recipe.setdefault(section, {})[name] = value
        else:
            recipe[section] = value
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    return path


def weights(run: Path, after: int = 3) -> dict[str, Any]:
    """Tensors of body, adapters and heads that a run saved after so many tasks."""
    from safetensors.torch import load_file

    files = (run / f"checkpoints/task-{after}/model").glob("*.safetensors")
    return {name: tensor for file in files for name, tensor in load_file(file).items()}
