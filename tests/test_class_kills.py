"""A run of classes that is killed at any moment, and resumed, ends with equal scores and weights.

The moments are drawn with a seed among all that a whole run has: each sync, each rename and each
logged step. Before every other resume the cache of features is damaged: it is made again.
"""

from __future__ import annotations

import json
import os
import random
import signal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from class_runs import save_encoder, write_class_recipe, write_classes
from safetensors.torch import load_file
from tiny_runs import fork_server
from typer.testing import CliRunner

import perdure
from perdure.cli import app
from perdure.run import Run

pytestmark = pytest.mark.process
MOMENTS = int(os.environ.get("PERDURE_KILLS", "6"))
"""How often it is killed; PERDURE_KILLS=20 is the whole test."""


def learn(out: Path, recipe: Path, die_at: int | None = None, count: Path | None = None) -> None:
    """Begin or go on; die by SIGKILL at the moment of this number, or write how many there were."""
    torch.set_num_threads(1)
    run = Run.open(out) if out.exists() else Run.create(out, perdure.load_recipe(recipe))
    passed = [0]

    def watched(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def call(*args: Any, **options: Any) -> Any:
            passed[0] += 1
            if passed[0] == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **options)

        setattr(owner, name, call)

    for owner, name in ((os, "fsync"), (os, "replace"), (os, "rename"), (run, "log")):
        watched(owner, name)
    perdure.learn(run.recipe, run)
    if count is not None:
        count.write_text(str(passed[0]))


def in_a_process(*args: Any) -> int | None:
    process = fork_server().Process(target=learn, args=args)
    process.start()
    process.join(250)
    code: int | None = process.exitcode
    return code


def end_of(run: Path) -> tuple[Any, ...]:
    scores = [(s["after"], s["task"], s["score"], s["measures"]) for s in Run.open(run).scores()]
    rows = [[item["prediction"] for item in Run.open(run).items(3, f"task {k}")] for k in (1, 2, 3)]
    folder = run / "checkpoints/task-3/model"
    weights = [(folder / f"{part}.safetensors").read_bytes() for part in ("body", "heads")]
    return scores, rows, weights


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, int]:
    """Recipe and run of SEQ* with replay that nobody killed, and how many moments it had."""
    folder = tmp_path_factory.mktemp("kills")
    recipe = write_class_recipe(
        folder, save_encoder(folder / "model"), save={"steps": 2},
        method=[{"name": "seq_star", "warmup_epochs": 1}, {"name": "replay", "ratio": 0.5}],
    )  # fmt: skip
    write_classes(folder, train=4, test=2)
    assert in_a_process(folder / "run", recipe, None, folder / "count") == 0
    return recipe, folder / "run", int((folder / "count").read_text())


@pytest.mark.timeout(1200)
def test_killed_at_random_moments(whole: tuple[Path, Path, int], tmp_path: Path) -> None:
    recipe, straight, moments = whole
    end = end_of(straight)
    assert moments > 100
    drawn = random.Random(20).sample(range(2, moments - 5), MOMENTS)
    began = 0
    for number, moment in enumerate(drawn):
        out = tmp_path / f"run-{moment}"
        assert in_a_process(out, recipe, moment) == -signal.SIGKILL, moment
        began += out.exists()
        damaged = sorted(out.glob("cache/features/*/*.npy")) if number % 2 else []
        for file in damaged:
            data = bytearray(file.read_bytes())
            data[-1] ^= 1
            file.write_bytes(data)
        learn_again(out, recipe)
        assert end_of(out) == end, f"moment {moment} of {moments}"
    assert began > MOMENTS / 2


def learn_again(out: Path, recipe: Path) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    run = Run.open(out) if out.exists() else Run.create(out, perdure.load_recipe(recipe))
    try:
        perdure.learn(run.recipe, run)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("after", [1, 2, 3])
def test_each_checkpoint_is_scored_as_recorded(whole: tuple[Path, Path, int], after: int) -> None:
    told = CliRunner().invoke(app, ["eval", str(whole[1]), "--after", str(after), "--json"])
    assert told.exit_code == 0, told.output
    found = json.loads(told.stdout)["scores"]
    assert [s["task"] for s in found] == [f"task {k}" for k in range(1, after + 1)]
    for line in found:
        assert line["score"] == line["recorded"]
    recorded = {(s["after"], s["task"]): s["measures"] for s in Run.open(whole[1]).scores()}
    for line in found:
        assert line["measures"] == recorded[after, line["task"]]


def test_old_heads_are_those_of_their_own_checkpoints(whole: tuple[Path, Path, int]) -> None:
    found = [
        load_file(whole[1] / f"checkpoints/task-{k}/model/heads.safetensors") for k in (1, 2, 3)
    ]
    for earlier, later in pairwise(found):
        assert all(torch.equal(later[name], earlier[name]) for name in earlier)
