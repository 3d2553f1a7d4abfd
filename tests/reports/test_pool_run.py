"""A tiny run whose requests are routed, and what its figures say: `perdure run`, eval and audit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import write_recipe
from typer.testing import CliRunner

from perdure.cli import app
from perdure.models import load_saved
from perdure.models.adapter_lists import showing
from perdure.models.chat import Encoder
from perdure.prepare import run_stream
from perdure.reports import numbers
from perdure.reports.data import views
from perdure.run import Run
from perdure.scoring.score import score_task

pytestmark = pytest.mark.train

COLOUR, COUNT, NEITHER = "Name the colour.", "How many are there?", "Sing something, please."
ASKED = (COUNT, COUNT, COLOUR, COLOUR, COLOUR, NEITHER)
"""The test rows of `count`, a task without an instruction: what users write decides."""


def recipe_of(folder: Path, model: Path) -> Path:
    """Two tasks of one answer each, which the tiny model finds less likely than the other label;
    three requests of the second one are worded as the first's instruction."""
    path = write_recipe(
        folder,
        model,
        model__tuning="lora",
        method={"name": "lcia", "decay": 0.5, "start": "fresh"},
        train={"learning_rate": 2e-2, "max_steps": 8, "batch_size": 4, "precision": "fp32"},
        gauges={"every": 0},
    )
    for split in ("train", "validation", "test"):
        rows = [json.loads(line) for line in (folder / f"colour-{split}.jsonl").open()][:8]
        _write(folder / f"colour-{split}.jsonl", [row | {"label": "y"} for row in rows])
        asked = ASKED if split == "test" else (COUNT,) * 8
        _write(folder / f"count-{split}.jsonl", [{"text": s, "label": "q"} for s in asked])
    said = json.loads(path.read_text())
    colour, count = said["stream"]["tasks"]
    colour |= {"instruction": COLOUR, "labels": ["x", "y"]}
    count |= {"labels": ["p", "q"]}
    path.write_text(json.dumps(said))
    return path


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def perdure(*args: str) -> str:
    done = CliRunner().invoke(app, list(args), catch_exceptions=False)
    assert done.exit_code in (0, 1, 3), done.output
    return done.stdout


@pytest.fixture(scope="module")
def shown(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, str]:
    folder = tmp_path_factory.mktemp("routed")
    said = perdure("run", str(recipe_of(folder, tiny_model_dir)), "--out", str(folder / "run"))
    return Run.open(folder / "run"), said


def test_a_run_says_who_answered_what_that_cost_and_how_large_the_pool_is(
    shown: tuple[Run, str],
) -> None:
    run, said = shown
    pool = numbers.of_run(views([run])[0])["pool"]
    assert [(g["task"], g["adapter"], g["opened"]) for g in pool["grouping"]] == [
        ("colour", "colour@1", True), ("count", "count@1", True),
    ]  # fmt: skip
    assert pool["grouping"][1]["nearest"]["group"] == "colour"
    assert pool["confusion"]["columns"] == ["colour@1", "count@1", "none fits"]
    assert pool["confusion"]["rows"] == [
        {"task": "colour", "right": "colour@1", "counts": [8, 0, 0]},
        {"task": "count", "right": "count@1", "counts": [3, 2, 1]},
        {"task": "general text", "right": None, "counts": [0, 0, 4]},
    ]
    routing = pool["routing"]
    assert (routing["right"], routing["known"], routing["fit_none"]) == (10, 14, 1)
    assert routing["instructions"] == 3
    assert pool["size"]["adapters"] == pool["size"]["versions"] == 2
    model = run.path / "checkpoints/task-2/serving"
    model = model if model.is_dir() else run.path / "checkpoints/task-2/model"
    files = [f for name in ("colour@1", "count@1") for f in (model / name).glob("adapter_*")]
    assert pool["size"]["bytes"] == sum(file.stat().st_size for file in files)
    assert pool["size"]["parameters"] > 0

    page = (run.path / "report.html").read_text("utf-8")
    for text in ("Adapters and routing", "Routing accuracy ↑", "0.714", "count@1", "none fits"):
        assert text in page
    for text in ("routing accuracy ↑", "0.714", "colour@1", "[2]"):
        assert text in said


def test_with_the_right_adapter_rows_score_what_it_scores_alone(shown: tuple[Run, str]) -> None:
    run, _ = shown
    model, tokenizer = load_saved(run.path)
    stream = run_stream(run)
    count = stream.tasks[1]
    with showing(model, ["count@1"]):
        alone = score_task(model, Encoder(tokenizer), count, batch_size=4)
    items = run.items(2, "count")
    right = [item.get("right_score", item["score"]) for item in items]
    print([i["prediction"] for i in alone.items], [i["prediction"] for i in items])
    assert right == [item["score"] for item in alone.items] == [1.0] * 6
    assert [item["score"] for item in items] == [1, 1, 0, 0, 0, 0]
    # Only rows that another adapter answered went through the model again.
    assert ["right_score" in item for item in items] == [name != COUNT for name in ASKED]
    assert [item["prompt"] for item in items] == list(ASKED)
    assert "instruction" not in items[0]  # the prompt itself
    assert {item["instruction"] for item in run.items(2, "colour")} == {COLOUR}
    assert all("right_score" not in item for item in run.items(2, "colour"))
    assert all("right" not in item for item in run.items(1, "count"))  # not learned yet
    assert {item["right"] for item in run.items(1, "colour")} == {"colour@1"}
    cost = numbers.of_run(views([run])[0])["pool"]["costs"][1]
    assert cost["right"] == alone.score
    assert cost["cost"] == pytest.approx(4 / 6)
    assert cost["low"] <= cost["cost"] <= cost["high"]


def test_eval_says_that_it_routed_and_how_well(shown: tuple[Run, str]) -> None:
    run, _ = shown
    told = " ".join(perdure("eval", str(run.path)).split())
    assert "10 of 14 requests were routed to the adapter of their task: accuracy 0.714" in told
    found = json.loads(perdure("eval", str(run.path), "--json"))
    assert found["routing"]["accuracy"] == pytest.approx(10 / 14)
    assert found["routing"]["fit_none"] == 1


def test_an_audit_says_that_what_is_served_is_routed_and_how_well(
    shown: tuple[Run, str], tiny_model_dir: Path
) -> None:
    run, _ = shown
    recipe = str(run.path.parent / "recipe.yaml")
    args = ("audit", str(tiny_model_dir), str(run.path), "--tasks", recipe, "--max-drop", "0.5")
    told = " ".join(perdure(*args).split())
    assert "tuned: 9 of 11 requests were routed to the adapter of their task" in told
    found = json.loads(perdure(*args, "--json"))
    assert found["routing"]["right"] == 9  # of each repeated row one
    one = json.loads(perdure(*args, "--json", "--adapter", "count"))
    assert one["routing"] is None  # one adapter answered all
