"""O-LoRA: its overlap by hand, and a run with two active adapters that is killed and goes on."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import scores, write_recipe
from torch import Tensor

import perdure
from perdure.methods.olora import OLoRA, overlap
from perdure.prepare import prepare
from perdure.protocol.method import Method, MethodConfig
from perdure.run import Run
from perdure.seals import is_sealed

STEPS = 4


@pytest.mark.unit
def test_the_overlap_by_hand() -> None:
    old = torch.tensor([[1.0, 0.0, 2.0], [0.0, -1.0, 1.0]])
    new = torch.tensor([[0.0, 3.0, 0.5]])
    # rows: 1*0 + 0*3 + 2*0.5 = 1, and -3 + 0.5 = -2.5
    assert float(overlap(old, new)) == 3.5
    assert float(overlap(old, new, square=True)) == 7.25
    assert float(overlap(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 5.0]]))) == 0


@pytest.mark.unit
def test_the_overlap_against_a_loop() -> None:
    maker = torch.Generator().manual_seed(0)
    old, new = torch.randn(4, 9, generator=maker), torch.randn(3, 9, generator=maker)
    slow = [sum(float(x) * float(y) for x, y in zip(a, b, strict=True)) for a in old for b in new]
    assert float(overlap(old, new)) == pytest.approx(sum(map(abs, slow)), rel=1e-5)
    assert float(overlap(old, new, True)) == pytest.approx(sum(x * x for x in slow), rel=1e-5)


class Stops(Method):
    """Ends the process's part of a run in task `at[0]` after step `at[1]`, as Ctrl-C would."""

    at: tuple[int, int] | None = None

    def after_step(self, ctx: Any) -> None:
        if self.at == (ctx.task_index, ctx.step.index):
            raise KeyboardInterrupt


def recipe_of(folder: Path, model: Path, **changes: Any) -> Path:
    return write_recipe(
        folder,
        model,
        model__tuning="lora",
        method={"name": "olora", "lam": 0.05, "l2": 0.01},
        train={"learning_rate": 2e-2, "max_steps": STEPS, "batch_size": 4, "precision": "fp32"},
        save={"steps": 1},
        gauges={"every": 0},
        **changes,
    )


def go(recipe: Path, out: Path, at: tuple[int, int] | None = None) -> Run:
    """Learn with O-LoRA; stopped `at` a step of a task, and gone on."""
    run = Run.create(out, perdure.load_recipe(recipe))
    for stop in (at, None) if at else (None,):
        go_on(run, stop)
    return Run.open(out)


def go_on(run: Run, at: tuple[int, int] | None = None) -> None:
    stops = Stops(MethodConfig())
    stops.at = at
    ready = prepare(run.recipe)
    ready = replace(ready, methods=(*ready.methods, stops))
    try:
        perdure.learn(run.recipe, run, prepared=ready)
    except KeyboardInterrupt:
        assert at is not None
    else:
        assert at is None, "it was to be stopped, and was not"


def adapters_of(folder: Path) -> dict[str, Tensor]:
    """All adapters of a checkpoint, by file and name."""
    files = sorted(folder.rglob("adapter_model.safetensors"))
    return {f"{f.parent.name}/{n}": w for f in files for n, w in load_file(f).items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(w, b[n]) for n, w in a.items())


@pytest.fixture(scope="module")
def whole(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("olora")
    return go(recipe_of(folder, tiny_model_dir), folder / "run")


@pytest.mark.train
def test_old_adapters_stay_and_the_new_one_is_trained(whole: Run) -> None:
    first, last = (whole.path / f"checkpoints/task-{n}/model" for n in (1, 2))
    assert json.loads((last / "perdure_adapters.json").read_text()) == {
        "names": ["default", "task2"], "active": ["default", "task2"], "trained": ["task2"],
    }  # fmt: skip
    assert not (first / "perdure_adapters.json").exists()
    old, after = (load_file(f / "adapter_model.safetensors") for f in (first, last))
    assert same(old, after)
    new = load_file(last / "task2/adapter_model.safetensors")
    assert any(bool(w.any()) for n, w in new.items() if "lora_B" in n)
    facts = {(f["task"], f["name"]): f["value"] for f in whole.facts()}
    assert facts["colour", "trained_parameters"] == facts["count", "trained_parameters"]
    assert facts["count", "trained_parameters"] == sum(w.numel() for w in new.values())
    rows = [row for row in whole.log_rows() if "method/overlap" in row]
    assert {row["task"] for row in rows} == {"count"}
    assert all(row["method/overlap_weight"] == pytest.approx(0.05) for row in rows)


@pytest.mark.train
def test_its_adapters_are_planned(whole: Run) -> None:
    from perdure.methods.olora import OLoRA, OLoRAConfig
    from perdure.prepare import run_stream

    made, stream = OLoRA(OLoRAConfig()), run_stream(whole)
    assert made.adapter_counts(stream) == {"colour": (1, 1, 0), "count": (2, 2, 1)}
    assert made.adapter_counts(stream, 1) == {"count": (2, 2, 1)}
    home = whole.path / "checkpoints/task-2"
    kept = [*home.rglob("adapter_model.safetensors"), *home.glob("first/*.safetensors")]
    assert len(kept) == 3  # two adapters, and the second one's first values


@pytest.mark.train
@pytest.mark.parametrize("at", [(0, 2), *((1, step) for step in range(1, STEPS + 1))])
def test_killed_at_any_step_it_ends_with_the_same_weights(
    whole: Run, tiny_model_dir: Path, tmp_path: Path, at: tuple[int, int]
) -> None:
    again = go(recipe_of(tmp_path, tiny_model_dir), tmp_path / "run", at)
    assert again.state == "finished"
    for task in (1, 2):
        model = f"checkpoints/task-{task}/model"
        assert same(adapters_of(whole.path / model), adapters_of(again.path / model))
    assert scores(whole.path) == scores(again.path)


@pytest.mark.train
def test_a_run_that_lost_its_last_task_goes_on_from_both_lists(whole: Run, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(whole.path, copy)
    shutil.rmtree(copy / "checkpoints/task-2")
    (copy / "finished").unlink()
    lines = (copy / "scores.jsonl").read_text().splitlines()
    kept = [line for line in lines if json.loads(line)["after"] < 2]
    (copy / "scores.jsonl").write_text("\n".join(kept) + "\n")
    go_on(Run.open(copy))
    model = "checkpoints/task-2/model"
    assert same(adapters_of(whole.path / model), adapters_of(copy / model))


@pytest.mark.train
def test_a_saved_run_is_loaded_and_scored_as_the_sum(
    whole: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    from perdure.commands.evaluate import evaluate
    from perdure.models import load_saved

    model, _ = load_saved(whole.path)
    assert list(model.peft_config) == model.active_adapters == ["default", "task2"]
    assert not any(p.requires_grad for p in model.parameters())
    evaluate(whole.path, None, None, as_json=True)
    found = json.loads(capsys.readouterr().out)["scores"]
    assert len(found) == 2
    assert all(row["score"] == row["recorded"] for row in found)
    ids = torch.tensor([[5, 6, 7, 8]])
    both = model(ids).logits.detach()
    model.base_model.set_adapter(["default"])
    assert float((both - model(ids).logits).abs().max()) > 1e-3
    model.base_model.set_adapter(["default", "task2"])

    again, _ = load_saved(whole.path, trainable=True)
    trained = {n for n, p in again.named_parameters() if p.requires_grad}
    assert trained
    assert all(".task2." in n for n in trained)


@pytest.mark.train
def test_merged_it_is_the_sum_and_repair_refuses_it(whole: Run, tmp_path: Path) -> None:
    from perdure.errors import ModelError
    from perdure.models import load_saved
    from perdure.models.export import export
    from perdure.repair.path import load_line

    ids = torch.tensor([[5, 6, 7, 8]])
    merged, _ = load_saved(export(whole.path, tmp_path / "merged", "merged", "float32"))
    both = load_saved(whole.path)[0](ids).logits
    torch.testing.assert_close(merged(ids).logits, both, atol=1e-4, rtol=1e-4)
    plain = export(whole.path, tmp_path / "peft", "peft")
    assert load_saved(plain)[0].active_adapters == ["default", "task2"]
    base = whole.recipe.model.path
    with pytest.raises(ModelError, match="holds 2 adapters, default and task2") as told:
        load_line(base, str(whole.path))
    assert "--to merged" in str(told.value.remedy)


@pytest.mark.train
def test_one_adapter_of_several_is_loaded_by_its_folder(whole: Run) -> None:
    from perdure.models import load_saved

    folder = whole.path / "checkpoints/task-2/model/task2"
    model, tokenizer = load_saved(folder)
    assert list(model.peft_config) == ["default"]
    saved = load_file(folder / "adapter_model.safetensors")
    own = {n.replace(".default.", "."): p for n, p in model.named_parameters() if "lora_" in n}
    assert same({n: p.detach() for n, p in own.items()}, saved)
    assert tokenizer.chat_template == load_saved(whole.path)[1].chat_template


@pytest.mark.train
def test_a_model_without_an_adapter_is_refused_before_it_is_loaded(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    from perdure.errors import UsageError

    path = write_recipe(tmp_path, tiny_model_dir, method={"name": "olora"})
    recipe = perdure.load_recipe(path)
    with pytest.raises(UsageError, match=r"olora works on adapters, and .*model\.tuning.* is full"):
        prepare(recipe)


@pytest.mark.unit
def test_it_keeps_nothing_of_its_own() -> None:
    assert OLoRA.saved == ()
    assert not OLoRA.grows


@pytest.mark.train
def test_an_adapter_that_did_not_change_is_one_file(whole: Run) -> None:
    """With the limit for small files lowered, on a copy of the sealed folders' manifests."""
    from perdure import seals

    before, last = (whole.path / f"checkpoints/task-{n}" for n in (1, 2))
    assert is_sealed(before)
    with pytest.MonkeyPatch.context() as patch:
        for limit in ("CHUNK", "WORTH_A_LINK"):
            patch.setattr(seals, limit, 1024, raising=False)
        seals.share(before, last)
    name = "model/adapter_model.safetensors"
    assert (before / name).samefile(last / name)
    assert not (last / "model/task2/adapter_model.safetensors").samefile(last / name)
