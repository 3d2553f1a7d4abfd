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
from perdure.cli import app
from perdure.models import rendering

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
    file = run / "environment.json"
    known = json.loads(file.read_text())
    assert known["template_date"] == "2024-07-26"
    now(monkeypatch, 2031)
    for row in scored(run):
        assert row["score"] == pytest.approx(row["recorded"], rel=1e-6)
    file.write_text(json.dumps({**known, "template_date": ""}))  # so that the test can fail
    assert any(abs(row["score"] / row["recorded"] - 1) > 1e-5 for row in scored(run))
