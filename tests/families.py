"""Decoder families with other names for the same parts: small random models."""

from __future__ import annotations

from typing import Any

FAMILIES = ("llama", "qwen2", "gemma2", "gpt_neox", "gpt2")
UNTIED = ("llama", "gpt_neox")


def family(name: str, vocabulary: int = 64, tied: bool | None = None) -> Any:
    """A model of two layers; `tied` says whether head and embedding are one, None: as usual."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes: dict[str, Any] = {
        "vocab_size": vocabulary, "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
    }  # fmt: skip
    if name in ("llama", "qwen2", "gemma2"):
        sizes |= {"num_key_value_heads": 2, "head_dim": 8}
    if name == "gemma2":
        sizes["final_logit_softcapping"] = 0.2  # so low that it is seen in small logits
    if name == "gpt2":
        sizes = {"vocab_size": vocabulary, "n_embd": 32, "n_layer": 2, "n_head": 4,
                 "n_positions": 128, "bos_token_id": 1, "eos_token_id": 2,
                 # Dropout would move states in training, and not when the base was read.
                 "resid_pdrop": 0, "embd_pdrop": 0, "attn_pdrop": 0}  # fmt: skip
    if tied is not None:
        sizes["tie_word_embeddings"] = tied
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **sizes)).eval()
