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


# --- whole lines


@pytest.fixture
def call(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Any:  # fmt: skip
    """`call(lcia, "line,both")`: these lines on two small tasks; what was printed."""
    facts = {
        "sst2": {"labels": ["good", "bad"], "instruction": "Is the review good or bad?"},
        "copa": {"labels": ["A", "B"], "instruction": ""},
    }
    data = tmp_path / "data" / "superni_cl"
    for task, said in facts.items():
        (data / task).mkdir(parents=True)
        for split, count in (("train", 16), ("test", 4)):
            rows = [{"text": f"{task} {split} {i}", "label": said["labels"][i % 2]}
                    for i in range(count)]  # fmt: skip
            text = "".join(json.dumps(row) + "\n" for row in rows)
            (data / task / f"{split}.jsonl").write_text(text)
    (data / "tasks.json").write_text(json.dumps(facts))

    def main(lcia: Any, only: str) -> str:
        monkeypatch.setattr(
            sys, "argv",
            ["lcia.py", "--data", str(data.parent), "--out", str(tmp_path / "runs"), "--only", only,
             "--seeds", "0", "--precision", "fp32", "--model", str(tiny_model_dir), "--rows", "8",
             "--test-rows", "4", "--longest", "64"],
        )  # fmt: skip
        assert lcia.main() == 0
        return capsys.readouterr().out

    return main


@pytest.mark.train
def test_a_line_runs_alone_and_only_once(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lcia = script("lcia")
    told = call(lcia, "LoRA in sequence")
    run = Run.open(tmp_path / "runs/five-given/LoRA_in_sequence-0")
    assert run.state == "finished"
    assert [task["name"] for task in run.stream_facts()] == ["sst2", "copa"]
    assert {len(run.items(2, task)) for task in ("sst2", "copa")} == {4}
    assert [p.name for p in run.path.parent.iterdir() if p.is_dir()] == [run.path.name]
    first, table = told.split("\n", 1)
    assert first == "LoRA in sequence, seed 0"
    assert table.startswith("five tasks, order given: sst2, copa. The base model, untrained: ")
    assert f"| LoRA in sequence | 1 (over rows) | {run.matrix().average_accuracy():.3f} (" in table
    monkeypatch.setattr(perdure, "learn", None)  # would be called
    assert call(lcia, "LoRA in sequence") == table


@pytest.mark.train
def test_a_line_that_was_interrupted_goes_on(
    call: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lcia = script("lcia")
    record = Run.record

    def stop(run: Run, line: Any, *given: Any) -> None:
        if line["after"] == 1:
            raise KeyboardInterrupt
        record(run, line, *given)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "record", stop)
        with pytest.raises(KeyboardInterrupt):
            call(lcia, "line")
    run = Run.open(tmp_path / "runs/five-given/line-0")
    assert run.state != "finished"
    rows = run.log_rows()
    assert {row["task"] for row in rows} == {"sst2"}
    told = call(lcia, "line")
    again = Run.open(run.path)
    assert again.state == "finished"
    assert again.log_rows()[: len(rows)] == rows  # what was learned is not learned again
    assert [row["task"] for row in again.log_rows()[len(rows) :]] == ["copa"] * len(rows)
    assert {(s["after"], s["task"]) for s in again.scores()} == {
        (after, task) for after in range(3) for task in ("sst2", "copa")
    }
    assert f"| line | 1 (over rows) | {again.matrix().average_accuracy():.3f} (" in told
    assert "\n| line | 0 | " in told  # of `line` nothing is out of range


@pytest.mark.train
def test_arrow_is_scored_over_the_adapters_of_grouping_alone(call: Any, tmp_path: Path) -> None:
    lcia = script("lcia")
    assert "no finished run" in call(lcia, "Arrow")
    told = call(lcia, "grouping alone,Arrow")
    folder = tmp_path / "runs/five-given"
    run = Run.open(folder / "grouping_alone-0")
    assert {item["adapter"] for item in run.items(2, "sst2")} == {"sst2@1"}
    cells = json.loads((folder / "Arrow-0.json").read_text())
    assert {(after, task): len(scores) for after, found in cells.items()
            for task, scores in found.items()} == {
        ("1", "sst2"): 4, ("2", "sst2"): 4, ("2", "copa"): 4}  # fmt: skip
    assert "\n| Arrow | 1 (over rows) | " in told
    given = json.loads((folder / "grouping_alone-0-given.json").read_text())
    row = told.partition("| routing takes off |\n")[2].split("\n")[1].split(" | ")
    assert (row[0], row[3]) == ("| grouping alone", f"{sum(given.values()) / 2:.3f}")
    # What is missing of it is scored, and no more.
    kept = cells["2"].pop("copa")
    (folder / "Arrow-0.json").write_text(json.dumps(cells))
    again = call(lcia, "Arrow")
    assert again == "Arrow, seed 0, after 2 tasks\n" + told[told.index("five tasks") :]
    assert json.loads((folder / "Arrow-0.json").read_text())["2"]["copa"] == kept


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
