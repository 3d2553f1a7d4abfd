"""A template that writes the date writes that of the run's start, also in a later month."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import write_recipe
from typer.testing import CliRunner

from perdure import Run, learn, load_recipe
from perdure.audit.audit import audit
from perdure.cli import app
from perdure.models import rendering
from perdure.streams import build_stream

pytestmark = pytest.mark.train
DATED = (
    "{{ strftime_now('%d %B %Y') + '\\n' }}{% for m in messages %}{{ m.role + ': ' + m.content + "
    "'<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)


def now(monkeypatch: pytest.MonkeyPatch, year: int) -> None:
    class Day(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Day:
            return cls(year, 7, 26)

    monkeypatch.setattr(rendering, "datetime", Day)


def scored(run: Path) -> list[dict[str, Any]]:
    done = CliRunner().invoke(app, ["eval", str(run), "--json"])
    assert done.exit_code == 0, done.output
    found: list[dict[str, Any]] = json.loads(done.stdout)["scores"]
    return found


def test_a_later_score_is_the_recorded_one(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "own.jinja").write_text(DATED)
    path = write_recipe(
        tmp_path, tiny_model_dir, model__chat_template="own.jinja", train__max_steps=1,
        general={"source": "none"},
    )  # fmt: skip
    keys = [f"stream.tasks.{n}.metric=perplexity" for n in range(2)]
    now(monkeypatch, 2024)
    recipe = load_recipe(path, keys)
    run = tmp_path / "run"
    learn(recipe, Run.create(run, recipe))
    assert Run.open(run).environment()["template_date"] == "2024-07-26"
    now(monkeypatch, 2031)
    for row in scored(run):
        assert row["score"] == pytest.approx(row["recorded"], rel=1e-6)
    Run.open(run).set_facts({"template_date": ""})  # so that the test can fail
    assert any(abs(row["score"] / row["recorded"] - 1) > 1e-5 for row in scored(run))
    # An audit reads both models with the prompts of the run's start.
    Run.open(run).set_facts({"template_date": "2024-07-26"})
    stream = build_stream(recipe.stream, recipe.general, recipe.folder, recipe.seed)
    for place in (run, run / "checkpoints" / "task-2", run / "checkpoints" / "task-2" / "model"):
        result = audit(tiny_model_dir, place, stream, measures=("tasks",))
        assert result.template.endswith("; it writes the date of the run's start, 2024-07-26")
        assert len(result.measures) == 2
        for measure in result.measures:
            for after, found in ((0, measure.base), (2, measure.tuned)):
                losses = [item["loss"] for item in Run.open(run).items(after, measure.name)]
                assert found == pytest.approx(sum(losses) / len(losses), rel=1e-5)
