"""What the protocol must carry for methods to come: adapters a task with routing, attention maps,
weights that are served, phases that start elsewhere, rewritten data. Each is a few lines here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import scores, write_recipe
from word_router import AdapterPerTask, known

from perdure.learners import build
from perdure.learners.listener import Folders
from perdure.loop import learn
from perdure.prepare import load_recipe
from perdure.protocol.method import Method, MethodConfig, Requires
from perdure.protocol.step import Phase
from perdure.recipe.schema import MethodSpec
from perdure.run import Run
from perdure.streams import build_stream

pytestmark = pytest.mark.train


def go(
    monkeypatch: pytest.MonkeyPatch, recipe: Path, out: Path, *methods: Method, resume: bool = False
) -> Run:
    """Run a recipe with method objects made here, as if they had come by entry point."""
    monkeypatch.setattr("perdure.methods.registry.build", lambda specs: list(methods))
    run = Run.open(out) if resume else Run.create(out, load_recipe(recipe))
    learn(run.recipe, run)
    return run


def test_an_adapter_for_each_task_chosen_at_test_time(
    monkeypatch: pytest.MonkeyPatch, pool: Run, tmp_path: Path
) -> None:
    found = scores(pool.path)
    # The first task's adapter is not touched by the second: nothing of it can be forgotten.
    assert found[1, "colour"] == found[2, "colour"]
    before = [item["score"] for item in pool.items(1, "colour")]
    assert before == [item["score"] for item in pool.items(2, "colour")]
    for name, adapter in (("colour", "default"), ("count", "task1")):
        items = pool.items(2, name)
        assert {(i["adapter"], i["similarity"], i["why"]) for i in items} == {
            (adapter, 1.0, f"it says {name}")
        }
    assert {item["adapter"] for item in pool.items(1, "count")} == {"base"}

    # Killed after the first task, it finds both adapters again.
    copy = tmp_path / "run"
    shutil.copytree(pool.path, copy)
    shutil.rmtree(copy / "checkpoints" / "task-2")
    (copy / "finished").unlink()
    lines = (copy / "scores.jsonl").read_text().splitlines()
    kept = [line for line in lines if json.loads(line)["after"] < 2]
    (copy / "scores.jsonl").write_text("\n".join(kept) + "\n")
    with known():
        go(monkeypatch, pool.path / "none.yaml", copy, AdapterPerTask(), resume=True)
    assert scores(copy) == found


class Maps(Method):
    """Looks at attention maps and hidden states of its extra rows."""

    requires = Requires(attentions=True, hidden=(0, -1))

    def __init__(self) -> None:
        super().__init__(MethodConfig())
        self.shapes: set[tuple[Any, ...]] = set()

    def replay(self, ctx: Any) -> Any:
        return ctx.draw(ctx.general_rows(6, 12)[0], 2)

    def loss(self, ctx: Any, main: Any, extra: Any) -> Mapping[str, Any]:
        for seen in (main, extra):
            assert len(seen.attentions) == 3
            rows, heads, width, other = seen.attentions[0].shape
            self.shapes.add((rows == len(seen.mask), heads, width == other == seen.mask.shape[1]))
            total = seen.attentions[1].sum(-1)[seen.mask.unsqueeze(1).expand(-1, heads, -1)]
            torch.testing.assert_close(total, torch.ones_like(total))
        return {"maps": extra.row_mean(extra.attentions[0].square().mean((1, 2, 3)))}


def test_attention_maps_reach_a_method(
    monkeypatch: pytest.MonkeyPatch, tiny_model_dir: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, tiny_model_dir, train__max_steps=1)
    method = Maps()
    run = go(monkeypatch, recipe, tmp_path / "run", method)
    assert method.shapes == {(True, 4, True)}
    assert all(row["method/maps"] > 0 for row in run.log_rows())


class Phased(Method):
    """A warm-up that trains the head alone, then a phase from the base model; serves an average."""

    saved = ("mean",)

    def __init__(self) -> None:
        super().__init__(MethodConfig())
        self.mean: dict[str, torch.Tensor] = {}
        self.seen: list[tuple[str, int, bool]] = []

    def phases(self, ctx: Any) -> Sequence[Phase]:
        return (Phase("warm", epochs=0.5, freeze=r"layers\."), Phase("main", start="base"))

    def train_data(self, ctx: Any, data: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [{**row, "answer": row["answer"].upper()} for row in data]

    def after_step(self, ctx: Any) -> None:
        params = {n: p for n, p in ctx.model.named_parameters() if p.requires_grad}
        layers = any("layers." in n for n in params)
        self.seen.append((ctx.step.phase.name, ctx.step.index, layers))
        for n, p in params.items():
            self.mean[n] = p.detach().clone() if n not in self.mean else self.mean[n].lerp(p, 0.5)

    def serving(self, ctx: Any) -> Mapping[str, Any] | None:
        return self.mean or None


class Twice(Method):
    def __init__(self) -> None:
        super().__init__(MethodConfig())
        self.epochs: set[int] = set()

    def train_data(self, ctx: Any, data: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [*data, *data]

    def after_step(self, ctx: Any) -> None:
        self.epochs.add(ctx.step.per_epoch)


def test_an_epoch_counts_the_rows_that_methods_add(
    monkeypatch: pytest.MonkeyPatch, tiny_model_dir: Path, tmp_path: Path
) -> None:
    method = Twice()
    recipe = write_recipe(tmp_path, tiny_model_dir, train__epochs=1)
    run = go(monkeypatch, recipe, tmp_path / "run", method)
    assert method.epochs == {row["steps"] for row in run.log_rows()} == {12}


def test_phases_data_and_served_weights(
    monkeypatch: pytest.MonkeyPatch, tiny_model_dir: Path, tmp_path: Path
) -> None:
    from perdure.models import load_saved

    recipe = write_recipe(tmp_path, tiny_model_dir, train__epochs=1)
    method = Phased()
    run = go(monkeypatch, recipe, tmp_path / "run", method)
    assert method.seen[:9] == [("warm", s, False) for s in (1, 2, 3)] + [
        ("main", s, True) for s in range(1, 7)
    ]
    assert {(r["phase"], r["steps"]) for r in run.log_rows()} == {("warm", 3), ("main", 6)}
    # What ships is what was scored: the average, not the last step.
    shipped, _ = load_saved(run.path)
    trained = run.path / "checkpoints" / "task-2" / "model"
    last, _ = load_saved(trained)
    name = "model.layers.0.self_attn.q_proj.weight"
    got = dict(shipped.named_parameters())[name]
    torch.testing.assert_close(got, method.mean[name])
    assert not torch.equal(got, dict(last.named_parameters())[name])


def test_a_frozen_model_is_the_base_or_the_previous_one(
    monkeypatch: pytest.MonkeyPatch, tiny_model_dir: Path, tmp_path: Path
) -> None:
    class Compare(Method):
        def __init__(self, teacher: str) -> None:
            super().__init__(MethodConfig())
            self.requires, self.gaps = Requires(teacher=teacher, logits=True), []

        def loss(self, ctx: Any, main: Any, extra: Any) -> Mapping[str, Any]:
            old = ctx.frozen(self.requires.teacher)(main.batch)
            assert not old.logits.requires_grad
            self.gaps.append((ctx.task_index, float((old.logits - main.logits).abs().max())))
            return {}

    recipe = write_recipe(tmp_path, tiny_model_dir, train__max_steps=2)
    for teacher, second_starts_equal in (("base", False), ("previous", True)):
        method = Compare(teacher)
        go(monkeypatch, recipe, tmp_path / teacher, method)
        (t0, first), (_, moved), (t1, second), _ = method.gaps
        assert (t0, t1) == (0, 1)
        assert first < 1e-5 < 1e-3 < moved
        assert (second < 1e-5) == second_starts_equal


def test_adapter_off_is_the_base_for_lora(
    monkeypatch: pytest.MonkeyPatch, tiny_model_dir: Path, tmp_path: Path
) -> None:
    recipe = write_recipe(tmp_path, tiny_model_dir, model__tuning="lora")
    loaded = load_recipe(recipe)
    stream = build_stream(loaded.stream, loaded.general, loaded.folder, 0)
    folders = Folders.below(tmp_path / "run")
    learner = build(loaded, stream, methods=(), precision="fp32", folders=folders)
    ctx = learner._session_of(0).context
    rows = [ctx.encode(row) for row in stream.tasks[0].train[:3]]
    base = ctx.forward(rows).logits.detach()  # B of a new adapter is 0: still the base
    flags = {n: p.requires_grad for n, p in learner.model.named_parameters()}
    with torch.no_grad():
        for p in [p for p in ctx.model.parameters() if p.requires_grad]:
            p.add_(0.3)
    assert (ctx.forward(rows).logits - base).abs().max() > 1e-2
    off = ctx.frozen("base")(ctx.forward(rows).batch)
    torch.testing.assert_close(off.logits, base)
    assert flags == {n: p.requires_grad for n, p in learner.model.named_parameters()}
    assert MethodSpec(name="sequential", options={}) == loaded.methods[0]
