"""What benchmarks/r1t1.py computes by itself: rows, recipes, times, and intervals of its arms."""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import perdure
from perdure.learners.rollouts import Judge

pytestmark = pytest.mark.unit
FOLDER = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def script() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(FOLDER)
        for name in ("velan", "benchmark_r1t1"):  # dataclasses look there for their module
            patch.delitem(sys.modules, name, raising=False)
        spec = importlib.util.spec_from_file_location("benchmark_r1t1", FOLDER / "r1t1.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, spec.name, module)
        spec.loader.exec_module(module)
        yield module


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.open()]


def test_each_arm_has_a_recipe_and_they_share_their_rows(
    script: Any, tiny_model_dir: Path, tmp_path: Path
) -> None:
    wanted = argparse.Namespace(out=tmp_path, model=str(tiny_model_dir))
    found = {}
    for name in script.ARMS:
        steps = 3 if name == "sft" else 0
        recipe = perdure.load_recipe(script._write(name, 1, steps, wanted))
        warm, task = recipe.stream.tasks
        assert warm.until is not None
        assert (warm.test_of, warm.learn) == ("velan", "sft")
        assert warm.answer == task.answer
        found[name] = (task.learn, task.answer, warm.until.reach)
    good = {"format": 0.8, "chrf": [0.4, 0.6]}
    assert found == {
        "rl": ("rl", "tagged", good),
        "sft": ("sft", "tagged", good),
        "rl without reasoning": ("rl", "plain", good),
        "rl from chrF .2": ("rl", "tagged", {"chrf": [0.15, 0.3]}),
        "rl shuffled": ("rl", "tagged", good),
    }
    rows = {file.stem: rows_of(file) for file in (tmp_path / "rows-1").glob("*.jsonl")}
    size = script.SMALL
    assert {name: len(each) for name, each in rows.items()} == {
        "test": size.test, "held": size.held, "prompts": size.prompts, "warm": size.warm,
        "sft": 24,
    }  # fmt: skip
    tested = {row["source"] for row in rows["test"]}
    assert not any(row["source"] in tested for name in ("warm", "sft") for row in rows[name])
    maps = [row["glossary"] for each in rows.values() for row in each]
    assert len(set(maps)) == len(maps)  # each row has words of its own
    wanted = argparse.Namespace(out=tmp_path / "long", model="", rl_steps=150)
    perdure.load_recipe(script._write("rl", 1, 0, wanted))
    assert len(rows_of(tmp_path / "long" / "rows-1" / "prompts.jsonl")) == 2 * 150


def line(second: int, **more: Any) -> dict[str, Any]:
    return {"time": f"2026-01-01T00:{second // 60:02}:{second % 60:02}Z", **more}


def test_a_steps_seconds_leave_out_looks_and_pauses(script: Any) -> None:
    lines = [line(0), line(7), line(40, **{"until/chrf": 0.1}), line(46), line(54), line(900)]
    assert script.step_seconds(lines) == pytest.approx((7 + 6 + 8) / 3)
    assert script.step_seconds(lines[:1]) == 0.0


def test_steps_that_a_killed_run_made_twice_count_once(script: Any) -> None:
    lines = [line(second, step=step) for second, step in ((0, 1), (7, 2), (90, 2), (97, 3))]
    assert script.once(lines) == [lines[0], lines[2], lines[3]]


def test_intervals_are_of_the_mean(script: Any) -> None:
    assert script.interval(np.full(80, 3.0)) == (3.0, 3.0)
    values = np.random.default_rng(1).normal(5, 20, 80)
    low, high = script.interval(values)
    half = 1.96 * values.std() / 80**0.5
    assert low == pytest.approx(values.mean() - half, abs=1)
    assert high == pytest.approx(values.mean() + half, abs=1)


def test_shuffled_rewards_stay_in_their_group(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    given = [float(number) for number in range(64)]
    monkeypatch.setattr(Judge, "reward", lambda self: list(given))
    judge: Any = object.__new__(Judge)
    with script._shuffled(0):
        dealt = judge.reward()
    assert dealt != given
    for start in range(0, 64, script.GROUP):
        assert sorted(dealt[start : start + script.GROUP]) == given[start : start + script.GROUP]
    assert judge.reward() == given  # as before
