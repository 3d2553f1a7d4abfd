"""What a method logs at a task's end, or as a tensor after a step, is data in the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import write_recipe

import perdure
from perdure.protocol.method import Method, MethodConfig
from perdure.run import Run


class Telling(Method):
    """Has no loss and replays nothing; it only logs."""

    def __init__(self) -> None:
        super().__init__(MethodConfig())
        self.steps = 0

    def after_step(self, ctx: Any) -> None:
        self.steps += 1
        ctx.log("number", torch.tensor(float(self.steps)))
        if self.steps % 2:
            ctx.log("odd", torch.tensor(float(self.steps)))

    def end_task(self, ctx: Any) -> None:
        ctx.log("share", 0.373041)
        ctx.log("largest", torch.tensor(2.5))


@pytest.mark.parametrize("micro", [4, 2])
def test_both_arrive(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, micro: int
) -> None:
    recipe = perdure.load_recipe(
        write_recipe(
            tmp_path, tiny_model_dir, gauges={"every": 0}, general=None,
            train__max_steps=5, train__log_steps=2, train__micro_batch_size=micro,
        )
    )  # fmt: skip
    monkeypatch.setattr("perdure.methods.registry.build", lambda specs: [Telling()])
    run = Run.create(tmp_path / "run", recipe)
    perdure.learn(recipe, run)
    # Means over the steps since the last line, of those that logged it; the fifth step has no line.
    rows = [(r["after"], r["step"], r["method/number"], r["method/odd"]) for r in run.log_rows()]
    assert rows == [(1, 2, 1.5, 1.0), (1, 4, 3.5, 3.0), (2, 2, 6.5, 7.0), (2, 4, 8.5, 9.0)]
    assert run.facts() == [
        {"after": after, "task": task, "name": name, "value": value}
        for after, task in ((1, "colour"), (2, "count"))
        for name, value in (("method/share", 0.373041), ("method/largest", 2.5))
    ]
    log = (run.path / "perdure.log").read_text()
    assert "task colour: method/share 0.373041" in log


def test_a_fact_recorded_again_counts_once(tiny_model_dir: Path, tmp_path: Path) -> None:
    recipe = perdure.load_recipe(write_recipe(tmp_path, tiny_model_dir))
    run = Run.create(tmp_path / "run", recipe)
    assert run.facts() == []
    run.record_fact(1, "colour", "method/rewind_factor", 0.4)
    run.record_fact(1, "colour", "method/rewind_factor", 0.5)
    run.record_fact(2, "count", "method/rewind_factor", 0.6)
    assert [(f["after"], f["value"]) for f in run.facts()] == [(1, 0.5), (2, 0.6)]
