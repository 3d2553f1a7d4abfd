"""What a model writes: experts with router losses, models that ignore padding, saved settings."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from perdure.models import load_base, save_model
from perdure.models.chat import Encoder
from perdure.models.export import export
from perdure.models.generate import batches_alike, generate, sample_texts
from perdure.recipe.schema import ModelConfig
from perdure.scoring import score_task
from perdure.streams.task import Task

pytestmark = pytest.mark.train

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14], [20, 21, 22, 23]]


def tiny_of(family: str, vocabulary: int, **more: Any) -> Any:
    sizes = {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "context_length": 64,
        "pad_token_id": 0, "eos_token_id": None, "bos_token_id": None,
    }  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model(family, vocab_size=vocabulary, **{**sizes, **more})
        return AutoModelForCausalLM.from_config(config).eval()


@pytest.mark.parametrize(
    ("family", "sizes"),
    [
        ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
        ("qwen3_moe", {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}),
    ],
)
def test_experts_with_a_router_loss_are_scored_by_what_they_write(
    tiny: Any, family: str, sizes: dict[str, int]
) -> None:
    tokenizer = tiny[1]
    model = tiny_of(family, len(tokenizer), output_router_logits=True, **sizes)
    encoder = Encoder(tokenizer)
    alone = [generate(model, encoder, [p], max_new_tokens=5)[0] for p in PROMPTS]
    assert generate(model, encoder, PROMPTS, max_new_tokens=5) == alone
    rows = [
        {"prompt": [{"role": "user", "content": "word " * n}], "answer": "x"} for n in (1, 4, 9)
    ]
    task = Task("t", train=rows, validation=(), test=rows, metric="exact_match", max_new_tokens=4)
    assert len(score_task(model, encoder, task).items) == 3
    assert len(sample_texts(model, encoder, texts=4, tokens=4, starts=PROMPTS)) == 4
    assert model.config.output_router_logits is True  # training has its balancing loss


def test_a_model_that_ignores_padding_gets_prompts_one_at_a_time(
    tiny: Any, caplog: pytest.LogCaptureFixture
) -> None:
    tokenizer = tiny[1]
    model = tiny_of("rwkv", len(tokenizer))
    encoder = Encoder(tokenizer)
    rows = [
        {"prompt": [{"role": "user", "content": "word " * n}], "answer": "x"} for n in (1, 4, 9)
    ]
    task = Task("t", train=rows, validation=(), test=rows, metric="exact_match", max_new_tokens=6)
    with caplog.at_level(logging.WARNING, "perdure"):
        found = [score_task(model, encoder, task).items for _ in range(2)]
    told = [r.getMessage() for r in caplog.records if "one at a time" in r.getMessage()]
    assert told == [
        "RwkvForCausalLM writes otherwise in a batch than alone: prompts go one at a time, which "
        "is slower"
    ]
    alone = [generate(model, encoder, [encoder.prompt_ids(r)], max_new_tokens=6)[0] for r in rows]
    for items in found:
        assert [item["prediction"] for item in items] == alone


@pytest.mark.parametrize("family", ["llama", "gpt_neox", "qwen2"])
def test_others_are_trusted(tiny: Any, family: str, caplog: pytest.LogCaptureFixture) -> None:
    model = tiny_of(family, len(tiny[1]))
    assert batches_alike(model, Encoder(tiny[1]), PROMPTS)
    assert batches_alike(model.to(torch.bfloat16), Encoder(tiny[1]), PROMPTS)
    assert not caplog.records


def test_saved_models_have_their_bases_generation_settings(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny_model_dir, base)
    settings = {
        "do_sample": True, "temperature": 0.6, "top_p": 0.9, "top_k": 30, "eos_token_id": [2, 0],
        "repetition_penalty": 1.1,
    }  # fmt: skip
    (base / "generation_config.json").write_text(json.dumps(settings))
    config = ModelConfig(path=str(base))
    model, tokenizer = load_base(config)
    assert model.generation_config.do_sample is False  # what is computed is greedy
    save_model(model, tokenizer, tmp_path / "saved", config)
    again, tokenizer = load_base(ModelConfig(path=str(tmp_path / "saved")))
    save_model(again, tokenizer, tmp_path / "twice", config)
    export(tmp_path / "saved", tmp_path / "exported")
    for name in ("saved", "twice", "exported"):
        found = json.loads((tmp_path / name / "generation_config.json").read_text())
        found.pop("transformers_version", None)
        assert found == settings
