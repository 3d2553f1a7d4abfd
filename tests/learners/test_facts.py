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
    # Means over the steps since the last line, of those that logged it; the last step has a line.
    rows = [
        (r["after"], r["step"], r["method/number"], r.get("method/odd")) for r in run.log_rows()
    ]
    assert rows == [
        (1, 2, 1.5, 1.0), (1, 4, 3.5, 3.0), (1, 5, 5.0, 5.0),
        (2, 2, 6.5, 7.0), (2, 4, 8.5, 9.0), (2, 5, 10.0, None),
    ]  # fmt: skip
    told = [fact for fact in run.facts() if fact["name"].startswith("method/")]
    assert told == [
        {"after": after, "task": task, "name": name, "value": value}
        for after, task in ((1, "colour"), (2, "count"))
        for name, value in (("method/share", 0.373041), ("method/largest", 2.5))
    ]
    log = (run.path / "perdure.log").read_text()
    assert "task colour: method/share 0.373041" in log


class OnlyAtTheEnd(Method):
    """Has none of the hooks around a step."""

    def phases(self, ctx: Any) -> Any:
        ctx.log("planned", torch.tensor(3.0))
        return super().phases(ctx)

    def end_task(self, ctx: Any) -> None:
        ctx.log("share", torch.tensor(0.5))


def test_whatever_hooks_a_method_has_what_it_logs_arrives(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = perdure.load_recipe(
        write_recipe(
            tmp_path, tiny_model_dir, gauges={"every": 0}, general=None, train__max_steps=2,
            train__log_steps=1,
        )
    )  # fmt: skip
    monkeypatch.setattr(
        "perdure.methods.registry.build", lambda specs: [OnlyAtTheEnd(MethodConfig())]
    )
    run = Run.create(tmp_path / "run", recipe)
    perdure.learn(recipe, run)
    told = [(r["after"], r["step"], r.get("method/planned")) for r in run.log_rows()]
    assert told == [(1, 1, 3.0), (1, 2, None), (2, 1, 3.0), (2, 2, None)]
    assert [f["value"] for f in run.facts() if f["name"] == "method/share"] == [0.5, 0.5]


class InAPass(Method):
    """Logs what it is told by hand: a loss, and tensors of each step, of the task's begin."""

    def begin_task(self, ctx: Any) -> None:
        ctx.log("begin", torch.tensor(7.0))
        ctx.log("begin_number", 8.0)

    def loss(self, ctx: Any, main: Any, extra: Any) -> Any:
        ctx.log("seen", torch.tensor(float(ctx.step.index + 1)))
        return {"term": torch.tensor(10.0 * (ctx.step.index + 1))}


@pytest.mark.parametrize("micro", [4, 2])
def test_the_steps_after_the_last_line_have_one(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, micro: int
) -> None:
    recipe = perdure.load_recipe(
        write_recipe(
            tmp_path, tiny_model_dir, gauges={"every": 0}, general=None,
            train__max_steps=6, train__log_steps=4, train__micro_batch_size=micro,
        )
    )  # fmt: skip
    monkeypatch.setattr("perdure.methods.registry.build", lambda specs: [InAPass(MethodConfig())])
    run = Run.create(tmp_path / "run", recipe)
    perdure.learn(recipe, run)
    lines = {(r["after"], r["step"]): r for r in run.log_rows()}
    assert list(lines) == [(1, 4), (1, 6), (2, 4), (2, 6)]
    for after in (1, 2):
        first, last = lines[after, 4], lines[after, 6]
        assert (first["method/seen"], first["method/term"]) == (2.5, 25.0)  # of steps 1 to 4
        assert (last["method/seen"], last["method/term"]) == (5.5, 55.0)  # of steps 5 and 6
        assert (first["method/begin"], first["method/begin_number"]) == (7.0, 8.0)
        assert not any(name.startswith("method/begin") for name in last)
        assert last["loss"] - last["task_loss"] == pytest.approx(55.0, abs=1e-3)
    assert [(fact["after"], fact["name"]) for fact in run.facts()] == [
        (after, name) for after in (1, 2) for name in ("trained_parameters", "seconds")
    ]


class Killed(Exception):
    pass


@pytest.mark.parametrize("log_steps", [1, 3])
def test_what_a_task_begins_with_is_logged_once_though_it_is_resumed(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log_steps: int
) -> None:
    """Stopped before the line of step 5 or 6; it goes on from step 4, or step 2."""
    recipe = perdure.load_recipe(
        write_recipe(
            tmp_path, tiny_model_dir, gauges={"every": 0}, general=None, save={"steps": 2},
            train__max_steps=6, train__log_steps=log_steps,
        )
    )  # fmt: skip
    monkeypatch.setattr("perdure.methods.registry.build", lambda specs: [InAPass(MethodConfig())])
    for stop_at in (5 if log_steps == 1 else 3, None):
        run = (
            Run.open(tmp_path / "run") if stop_at is None else Run.create(tmp_path / "run", recipe)
        )
        log = run.log

        def log_or_stop(line: Any, log: Any = log, stop_at: Any = stop_at) -> None:
            if (line["after"], line["step"]) == (2, stop_at):
                raise Killed
            log(line)

        run.log = log_or_stop  # type: ignore[method-assign]
        if stop_at is None:
            perdure.learn(recipe, run)
        else:
            with pytest.raises(Killed):
                perdure.learn(recipe, run)
    text = (run.path / "perdure.log").read_text()
    assert f"from checkpoint-{4 if log_steps == 1 else 2}" in text
    for name in ("begin", "begin_number"):
        where = [(r["after"], r["step"]) for r in run.log_rows() if f"method/{name}" in r]
        assert where == [(1, log_steps), (2, log_steps)]


def test_a_fact_recorded_again_counts_once(tiny_model_dir: Path, tmp_path: Path) -> None:
    recipe = perdure.load_recipe(write_recipe(tmp_path, tiny_model_dir))
    run = Run.create(tmp_path / "run", recipe)
    assert run.facts() == []
    run.record_fact(1, "colour", "method/rewind_factor", 0.4)
    run.record_fact(1, "colour", "method/rewind_factor", 0.5)
    run.record_fact(2, "count", "method/rewind_factor", 0.6)
    assert [(f["after"], f["value"]) for f in run.facts()] == [(1, 0.5), (2, 0.6)]
