"""Reinforcement teaches: a model from scratch translates Velan better by its rewards alone.

Three seeds of `perdure run`: a warm-up that ends once sampled answers are good enough, then sixty
steps of `learn: rl`. With the rewards of a group dealt to its completions at random nothing may be
gained, so that it is not the steps themselves, or the prompts, that help.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from perdure.cli import app
from perdure.learners.rollouts import Judge

pytestmark = [pytest.mark.real, pytest.mark.timeout(1200)]  # two minutes, alone
SEEDS = (0, 1, 2)
GROUP, ROWS = 8, 200


def language() -> Any:
    file = Path(__file__).parents[2] / "benchmarks" / "velan.py"
    spec = importlib.util.spec_from_file_location("velan", file)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    sys.modules["velan"] = found  # its dataclass looks itself up there
    spec.loader.exec_module(found)
    return found


def save_model(folder: Path, words: list[str], seed: int) -> None:
    """Two layers, hidden 96, of random weights, and a tokenizer of whole words."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    tags = ["<think>", "</think>", "<answer>", "</answer>"]
    every = dict.fromkeys(["<pad>", "<end>", "<unk>", *tags, "the", "is", ";", *words])
    vocabulary = {word: number for number, word in enumerate(every)}
    tokens = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex("</?(?:think|answer)>"), "isolated"),
            pre_tokenizers.WhitespaceSplit(),
        ]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=tokens, eos_token="<end>", pad_token="<pad>", unk_token="<unk>",
        padding_side="left",
    )  # fmt: skip
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_recipe(folder: Path, seed: int) -> Path:
    velan = language()
    words = velan.new_words(random.Random(100 + seed))
    save_model(folder / "model", [*velan.WORDS, *words.values()], seed)
    test = velan.rows(ROWS, 1, fixed=words)
    used = [row["source"] for row in test]
    splits = {"test": test}
    for name, count, number in (("held", 64, 2), ("prompts", 480, 3), ("warm", 6400, 4)):
        splits[name] = velan.rows(count, 10 * seed + number, fixed=words, without=used)
        used += [row["source"] for row in splits[name]] if name == "held" else []
    for name, rows in splits.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {
        "format": "translation", "direction": "en-x-velan", "answer": "tagged", "metric": "chrf",
        "instruction": "{source}", "max_new_tokens": 64, "validation": "held.jsonl",
    }  # fmt: skip
    until = {"reach": {"format": 0.8, "chrf": [0.4, 0.6]}, "every": 10, "rows": 64}
    recipe = {
        "seed": seed,
        "model": {"path": "model", "chat_template": "none"},
        "gauges": {"every": 0},
        "stream": {
            "tasks": [
                {**task, "name": "warm-up", "train": "warm.jsonl", "test_of": "velan",
                 "until": until},
                {**task, "name": "velan", "train": "prompts.jsonl", "test": "test.jsonl",
                 "learn": "rl"},
            ]
        },
        "method": "sequential",
        "train": {"batch_size": 32, "learning_rate": 3e-3, "max_steps": 300, "precision": "fp32",
                  "log_steps": 10},
        "rl": {"rewards": ["format", "chrf", "length", "repetition"], "group": GROUP,
               "batch_size": 8 * GROUP, "max_steps": 60, "learning_rate": 5e-4},
        "scoring": {"batch_size": 64},
    }  # fmt: skip
    file = folder / "velan.yaml"
    file.write_text(json.dumps(recipe))
    return file


def run(file: Path, out: Path) -> Path:
    result = CliRunner().invoke(app, ["run", str(file), "--out", str(out)])
    assert result.exit_code == 0, result.output
    return out


def after_warm_up(folder: Path, name: str, **changes: Any) -> Path:
    """Another run of the second task alone, from the weights that the warm-up left."""
    recipe = json.loads((folder / "velan.yaml").read_text())
    recipe["stream"]["tasks"] = recipe["stream"]["tasks"][1:]
    recipe["model"]["path"] = "run/checkpoints/task-1/model"
    file = folder / f"{name}.yaml"
    file.write_text(json.dumps({**recipe, **changes}))
    return run(file, folder / name)


def gains(out: Path, after: int) -> np.ndarray:
    """What the last task changed the chrF of each test row by, from -1 to 1.

    Args: after: tasks learned before and with it.
    """
    warm, end = (
        [json.loads(line) for line in (out / "items" / f"after-{k}-velan.jsonl").open()]
        for k in (after - 1, after)
    )
    assert [item["id"] for item in warm] == [item["id"] for item in end]
    assert len(warm) == ROWS
    return np.array([b["score"] - a["score"] for a, b in zip(warm, end, strict=True)])


def interval(values: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of the mean, by resampling rows."""
    rng = np.random.default_rng(0)
    means = values[rng.integers(0, len(values), (2000, len(values)))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a folder for each seed, in which `run` is its run of both tasks."""
    folder = tmp_path_factory.mktemp("velan")
    for seed in SEEDS:
        (folder / str(seed)).mkdir()
        run(write_recipe(folder / str(seed), seed), folder / str(seed) / "run")
    return folder


def test_rewards_teach(learned: Path) -> None:
    found = [gains(learned / str(seed) / "run", 2) for seed in SEEDS]
    print([round(float(one.mean()), 4) for one in found], interval(np.concatenate(found)))
    assert min(one.mean() for one in found) > 0
    assert interval(np.concatenate(found))[0] > 0


def test_the_reward_rises_with_gere_at_its_usual_weight(learned: Path) -> None:
    """From 0.58 to 0.74 (without it: 0.60 to 0.71). At supervised learning's weight of 100 the
    margin takes up the clipped gradient, and the reward gets from 0.56 to 0.62."""
    out = after_warm_up(learned / "0", "gere", method="gere", general={"source": "none"})
    lines = [json.loads(line) for line in (out / "log.jsonl").open()]
    rewards = [line["rl/reward"] for line in lines]
    print(rewards)
    assert all(line["method/gere_margin"] > 0 for line in lines)
    assert np.mean(rewards[-2:]) > np.mean(rewards[:2]) + 0.03


def test_shuffled_rewards_teach_nothing(learned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng, reward = random.Random(0), Judge.reward

    def shuffled(self: Judge, *args: Any, **kwargs: Any) -> list[float]:
        values = reward(self, *args, **kwargs)
        dealt = []
        for start in range(0, len(values), GROUP):
            group = values[start : start + GROUP]
            dealt += rng.sample(group, len(group))
        return dealt

    monkeypatch.setattr(Judge, "reward", shuffled)
    # A minute is saved here: the other two seeds fell as far, by 66 to 70 points.
    seeds = SEEDS if os.environ.get("PERDURE_VELAN") == "all" else SEEDS[:1]
    found = [gains(after_warm_up(learned / str(seed), "shuffled"), 1) for seed in seeds]
    print([round(float(one.mean()), 4) for one in found], interval(np.concatenate(found)))
    assert interval(np.concatenate(found))[0] <= 0
