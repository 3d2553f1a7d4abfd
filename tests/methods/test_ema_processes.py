"""The average of several processes is that of one: each formula of its weight, DDP and FSDP2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import run, write_recipe
from torch import Tensor

from perdure.files import read_lines

pytestmark = pytest.mark.process

PAPER = {"name": "ema", "beta": "paper"}
OFFICIAL = {"name": "ema", "beta": "official", "outside": "clamp"}
LINE = {"name": "ema", "beta": "line", "every": 1, "rho": 1.0}


RATE = 0.7
"""So large that the loss is lowest between the weights and their average in some steps."""


def learned(folder: Path, model: Path, method: Any, *given: str, processes: int = 1) -> Path:
    rate = RATE if method is LINE else 1e-2
    path = write_recipe(
        folder, model, method=method, general=None, gauges={"every": 0},
        scoring={"max_test_rows": 2}, train__max_steps=5, train__log_steps=1,
        train__learning_rate=rate, train__optimizer="sgd",
    )  # fmt: skip
    run(["run", str(path), *given, "--out", str(folder / "run")], processes=processes)
    return folder / "run"


def weights(found: Path, after: int) -> dict[str, Tensor]:
    (path,) = found.glob(f"checkpoints/task-{after}/model/*.safetensors")
    return load_file(path)


def told(found: Path) -> list[tuple[int, str, float]]:
    return [
        (fact["after"], fact["name"], fact["value"])
        for fact in read_lines(found / "facts.jsonl")
        if fact["name"].startswith("method/averaging")
    ]


def same(two: Path, one: Path) -> None:
    for after in (1, 2):
        expected, found = weights(one, after), weights(two, after)
        assert expected.keys() == found.keys()
        for name, w in expected.items():
            torch.testing.assert_close(found[name], w, rtol=0, atol=5e-6)
    rows, others = read_lines(one / "log.jsonl"), read_lines(two / "log.jsonl")
    for a, b in zip(rows, others, strict=True):
        for key in ("loss", "method/averaging_weight", "method/averaging_outside"):
            assert (key in a) is (key in b), key
            assert b.get(key, 0.0) == pytest.approx(a.get(key, 0.0), rel=2e-3, abs=1e-4), key
    for (after, name, value), other in zip(told(one), told(two), strict=True):
        assert other[:2] == (after, name)
        assert other[2] == pytest.approx(value, rel=5e-2, abs=1e-4), name


@pytest.mark.parametrize(
    ("method", "tuning"),
    [(PAPER, "full"), (OFFICIAL, "lora"), (LINE, "full")],
    ids=["paper-full", "official-lora", "line-full"],
)
def test_processes_average_as_one(
    tiny_model_dir: Path, tmp_path: Path, method: Any, tuning: str
) -> None:
    given = f"model.tuning={tuning}"
    one = learned(tmp_path / "one", tiny_model_dir, method, given)
    ddp = learned(
        tmp_path / "ddp", tiny_model_dir, method, given, "train.micro_batch_size=1", processes=2
    )
    if method is LINE:
        solved = [row.get("method/averaging_weight", 0.5) for row in read_lines(one / "log.jsonl")]
        assert any(0.55 < weight < 0.95 for weight in solved), solved
    same(ddp, one)
    fsdp = learned(
        tmp_path / "fsdp", tiny_model_dir, method, given, "model.fsdp_size=2", processes=2
    )
    assert "weights sharded over 2 processes" in (fsdp / "perdure.log").read_text()
    same(fsdp, one)
