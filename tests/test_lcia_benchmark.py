"""What benchmarks/lcia.py and its routing part compute by themselves; their lines are Perdure's."""

from __future__ import annotations

import importlib.util
import json
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import write_recipe

import perdure
from perdure.mechanisms.averaged import Averaged
from perdure.prepare import prepare
from perdure.run import Run

pytestmark = pytest.mark.unit
FOLDER = Path(__file__).parents[1] / "benchmarks"


def script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look there
    spec.loader.exec_module(module)
    return module


def test_every_task_is_reworded_and_no_tested_wording_is_learned() -> None:
    file = FOLDER / "lcia_rewordings.json"
    assert file.stat().st_size <= 30_000
    said = json.loads(file.read_text(encoding="utf-8"))
    assert len(said["tasks"]) == 9
    assert len({task["group"] for task in said["tasks"].values()}) == 5
    every = []
    for task in said["tasks"].values():
        assert len(task["train"]) >= 4
        assert len(task["test"]) >= 4
        every += [*task["train"], *task["test"]]
    away = [*said["strangers"]["calibration"], *said["strangers"]["test"]]
    assert len(said["strangers"]["test"]) >= 20
    every += [wording for wording, _ in away]
    assert len({" ".join(text.casefold().split()) for text in every}) == len(every)


def test_the_decay_that_moves_a_share_of_the_way_lies_between_those_followed() -> None:
    lcia = script("lcia")
    curve = [1 - k / 24 for k in range(25)]  # DECAYS[k] moves so far
    for k in (0, 7, 24):
        assert lcia.decay_at(curve[k], curve) == pytest.approx(lcia.DECAYS[k], abs=1e-9)
    half = lcia.decay_at((curve[8] + curve[9]) / 2, curve)
    assert half == pytest.approx(1 - 2**-4.25)
    assert lcia.DECAYS[8] < half < lcia.DECAYS[9]
    assert lcia.decay_at(1.5, curve) == 0.0  # it cannot move farther than the weights


def test_the_answer_is_no_unless_the_interval_says_otherwise() -> None:
    said = script("lcia").answer
    assert said("line", 0.01, 0.2).startswith("line: yes")
    assert "not shown" in said("line", -0.01, 0.2)
    assert "fixed decay" in said("line", -0.2, -0.01)


def test_entries_of_a_product_stand_for_all_of_it() -> None:
    products = script("lcia")._products
    weights = {"x.lora_A.w": torch.ones(2, 3), "x.lora_B.w": torch.ones(4, 2)}
    # Each of the 12 entries of B A is 2.
    assert float(products(weights).norm()) == pytest.approx((12 * 4) ** 0.5)
    draws = torch.Generator().manual_seed(0)
    weights = {
        "x.lora_A.w": torch.randn(3, 40, generator=draws),
        "x.lora_B.w": torch.randn(50, 3, generator=draws),
    }
    whole = float((weights["x.lora_B.w"] @ weights["x.lora_A.w"]).norm())
    assert float(products(weights).norm()) == pytest.approx(whole, rel=0.15)


@pytest.mark.train
def test_ways_of_a_fixed_decay_are_known_without_a_run_of_it(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    """What is followed for `DECAYS[8]` is what `fixed` with this decay did in the same run."""
    lcia = script("lcia")
    path = write_recipe(
        tmp_path, tiny_model_dir, model__tuning="lora", general__source="none",
        method={"name": "ema", "decay": lcia.DECAYS[8]}, train__max_steps=4,
    )  # fmt: skip
    recipe = perdure.load_recipe(path)
    ready = prepare(recipe)
    assert isinstance(ready.methods[0], Averaged)
    lcia.Watched(ready.methods[0])
    run = Run.create(tmp_path / "run", recipe)
    perdure.learn(recipe, run, prepared=ready)
    curve = [lcia._mean_fact(run, f"averaging_fixed_{k}") for k in range(len(lcia.DECAYS))]
    assert curve[8] == pytest.approx(lcia._share_moved(run), rel=1e-4)
    assert curve[0] == pytest.approx(1.0)
    assert all(a >= b for a, b in pairwise(curve))
    assert lcia.decay_at(lcia._share_moved(run), curve) == pytest.approx(lcia.DECAYS[8], abs=1e-4)
    assert 0 < lcia._mean_fact(run, "averaging_products") < 0.5


# --- routing


class Letters:
    """An encoder whose vectors are (a's, b's) of a text, of length 1."""

    def vectors(self, texts: list[str]) -> Any:
        found = np.array([[text.count("a"), text.count("b")] for text in texts], np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True)


def test_a_centroid_is_the_mean_of_a_groups_texts() -> None:
    found = script("lcia_routing").Centroids(Letters(), {"left": ["a", "aab"], "right": ["b"]})
    cosines = found.index(["left", "right"])(["aaa", "b", "left"])
    middle = (np.array([1, 0]) + np.array([2, 1]) / 5**0.5) / 2
    middle /= np.linalg.norm(middle)
    wanted = [[middle[0], 0], [middle[1], 1], [1, middle[1]]]
    np.testing.assert_allclose(cosines, wanted, atol=1e-6)


def test_an_interval_of_a_share_by_hand() -> None:
    low, high = script("lcia_routing").wilson(0.5, 10)
    # (0.5 + 3.8415 / 20 -+ 1.96 sqrt(0.025 + 3.8415 / 400)) / (1 + 0.38415)
    assert (round(low, 4), round(high, 4)) == (0.2366, 0.7634)
    assert script("lcia_routing").wilson(0.0, 54)[0] == 0.0
