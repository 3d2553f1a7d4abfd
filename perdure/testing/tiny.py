"""A tiny model of random weights, its tokenizer, two tasks and general texts; no network."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perdure.streams.kinds import EXACT_MATCH
from perdure.streams.task import Task

CHAT_TEMPLATE = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
GENERAL = [
    "The import statement finds a module and binds names in the local scope.",
    "A lambda expression yields a function object, as a def statement does.",
    "Comparisons can be chained arbitrarily, and each is evaluated at most once.",
    "The del statement removes a binding from a namespace.",
    "Strings are immutable sequences of code points.",
    "An empty class body needs pass.",
]


def task_of(name: str, words: Sequence[str]) -> Task:
    """A task of one row a word, `words` its answers."""
    rows = [
        {"prompt": [{"role": "user", "content": f"{name} {i} {w}"}], "answer": w}
        for i, w in enumerate(words)
    ]
    return Task(name, rows, rows[:4], rows[4:8], EXACT_MATCH.name)


FIRST = task_of("colour", ["red", "blue", "deep green", "red"] * 4)
SECOND = task_of("count", ["one", "two", "twenty two", "one"] * 4)


def make_tokenizer(vocab_size: int = 512) -> Any:
    """A byte-level BPE tokenizer with a ChatML template, trained on the standard library's text."""
    from pydoc_data.topics import topics

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([topics[name] for name in sorted(topics)[:20]], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=special,
        model_max_length=512,
        padding_side="left",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def save_tiny_model(folder: Path) -> Path:
    """Write a 3-layer Llama (hidden 64, vocabulary 512, fp32) of seeded random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).float()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
