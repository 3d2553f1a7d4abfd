"""Trackers get the losses, the methods' own losses and the score matrix, as one run."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_runs import run, write_recipe

from perdure.files import read_lines

pytestmark = pytest.mark.process


def test_tensorboard_gets_losses_and_scores_with_steps_that_go_on(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "events"))
    path = write_recipe(
        tmp_path, tiny_model_dir, method={"name": "replay"}, train__report_to=["tensorboard"]
    )
    run(["run", str(path), "--out", str(tmp_path / "run")])
    events = {}
    for file in sorted((tmp_path / "events").glob("events*")):
        found = accumulator.EventAccumulator(str(file)).Reload()
        for tag in found.Tags()["scalars"]:
            events.setdefault(tag, []).extend((e.step, e.value) for e in found.Scalars(tag))
    steps = [step for step, _ in sorted(events["train/loss"])]
    assert steps == list(range(1, 25))  # twelve steps a task
    replayed = [step for step, _ in events["train/method/replay"]]
    assert sorted(replayed) == list(range(13, 25))
    table = {
        (line["after"], line.get("task")): line["score"]
        for line in read_lines(tmp_path / "run" / "scores.jsonl")
    }
    for task in ("colour", "count"):
        for after, (step, value) in enumerate(sorted(events[f"train/score/{task}"])):
            assert step == 12 * after
            assert value == pytest.approx(table[after, task], abs=1e-6)


def test_a_tracker_that_is_not_installed_is_told_before_training(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    path = write_recipe(tmp_path, tiny_model_dir, train__report_to=["swanlab"])
    output = run(["run", str(path), "--out", str(tmp_path / "run")], code=2)
    assert "train.report_to" in output
    assert "swanlab" in output.lower()
