"""`model.max_prompt_length` in a whole run, and in all that reads the model afterwards."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import write_recipe
from typer.testing import CliRunner

from perdure.audit import audit
from perdure.cli import app
from perdure.diagnose.measurements import Measured
from perdure.loop import learn
from perdure.prepare import load_recipe
from perdure.repair.path import load_line
from perdure.run import Run
from perdure.streams import build_stream
from perdure.streams.task import Task

pytestmark = pytest.mark.train

MOST = 24


@pytest.fixture(scope="module")
def run(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run over rows of which every fourth is far longer than the prompts may be."""
    folder = tmp_path_factory.mktemp("long")
    lengths = {"model__max_prompt_length": MOST, "train__max_length": 40}
    path = write_recipe(folder, tiny_model_dir, **lengths)
    for file in folder.glob("*.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        for row in rows[::4]:
            row["text"] += " long" * 60
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    recipe = load_recipe(path, ["train.max_steps=2"])
    made = Run.create(folder / "run", recipe)
    learn(recipe, made)
    return made


def task_of(run: Run) -> Task:
    recipe = run.recipe
    return build_stream(recipe.stream, None, recipe.folder, recipe.seed).tasks[0]


def lengths(task: Task, encoder: Any) -> list[int]:
    return [len(encoder.prompt_ids(row)) for row in task.test]


def test_eval_repeats_the_scores_of_the_run(run: Run) -> None:
    result = CliRunner().invoke(app, ["eval", str(run.path), "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)["scores"]
    assert [row["task"] for row in found] == ["colour", "count"]
    for row in found:
        assert row["score"] == pytest.approx(row["recorded"], abs=1e-6)


def test_audit_diagnosis_and_repair_read_prompts_as_the_run_did(run: Run) -> None:
    """Each takes the length from what was saved beside the model."""
    task, base = task_of(run), run.recipe.model.path
    line = load_line(base, str(run.path))
    own = line.tokenizer.chat_template
    reading = audit.reading_of(run.path, line.tokenizer, None)
    assert reading == {"chat_template": own, "max_prompt_length": MOST, "variables": {}}
    assert audit.reading_of(base, line.tokenizer, None) == {"chat_template": own}
    assert max(lengths(task, line.encoder())) == MOST
    side = Measured(line.model, line.tokenizer, **reading)
    assert max(lengths(task, side.encoder)) == MOST
    # Examples in front of a prompt would lose their middle: there the prompt is whole.
    assert side.longest(task) > MOST + 60
    asked: list[int] = []
    whole = side._whole.prompt_ids
    side._whole.prompt_ids = lambda row: (asked.append(len(found := whole(row))), found)[1]
    side.with_shots(replace(task, test=task.test[:2]), "label_likelihood", task.train[1:3])
    assert max(asked) > MOST + 60


def test_a_run_from_before_the_key_is_read(run: Run) -> None:
    path = run.path / "recipe.yaml"
    text = path.read_text()
    assert f"max_prompt_length: {MOST}" in text
    try:
        lines = [line for line in text.splitlines() if "max_prompt_length" not in line]
        path.write_text("\n".join(lines) + "\n")
        assert Run.open(run.path).recipe.model.max_prompt_length is None
    finally:
        path.write_text(text)
