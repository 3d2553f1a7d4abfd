"""MoELoRA: a layer of experts by hand, and runs that go on with their routers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import scores, write_recipe
from torch import nn

import perdure
from perdure import testing
from perdure.errors import ModelError, UsageError
from perdure.methods.moelora import MoELoRA
from perdure.models import adapter_lists, load_saved
from perdure.models.adapters import attach_lora
from perdure.models.experts import Experts, numbers, split, weighed
from perdure.prepare import prepare
from perdure.recipe.schema import LoraConfig
from perdure.run import Run


@pytest.mark.unit
def test_weights_by_hand() -> None:
    inner, weights = torch.tensor([[1.0, 2.0, 3.0, 4.0]]), torch.tensor([[0.25, 0.75]])
    assert weighed(inner, weights).tolist() == [[0.25, 0.5, 2.25, 3.0]]


@pytest.mark.unit
def test_the_first_matrix_by_hand() -> None:
    first = nn.Linear(2, 2, bias=False)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0]]))
        made = Experts(first, 2)
        made.router.copy_(torch.tensor([[0.0, 0.0], [torch.log(torch.tensor(3.0)), 0.0]]))
    # x = (1, 2): the router says 0 and ln 3, so a quarter and three quarters
    torch.testing.assert_close(made(torch.tensor([1.0, 2.0])), torch.tensor([0.25, 1.5]))
    assert made.weight is first.weight


@pytest.mark.train
def test_a_layer_against_a_loop_over_experts(tiny: Any) -> None:
    model = attach_lora(tiny[0], LoraConfig(r=6, alpha=9)).eval()
    layer = model.base_model.model.model.layers[1].mlp.up_proj
    split(model, "default", 3)
    assert numbers(model) == {"default": 3}
    maker = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=maker))
        a, b = layer.lora_A["default"], layer.lora_B["default"].weight
        x = torch.randn(2, 5, 64, generator=maker)
        slow = layer.base_layer(x)
        for e in range(3):
            part = slice(2 * e, 2 * e + 2)
            share = (x @ a.router.T).softmax(-1)[..., e : e + 1]
            slow = slow + 1.5 * share * (x @ a.weight[part].T @ b[:, part].T)
        torch.testing.assert_close(layer(x), slow, rtol=1e-4, atol=1e-4)
    split(model, "default", 3)  # it is split so already
    with pytest.raises(UsageError, match="has 3 experts"):
        split(model, "default", 2)
    adapter_lists.add(model, "other")
    with pytest.raises(UsageError, match="has rank 6, which cannot be split among 4"):
        split(model, "other", 4)


@pytest.mark.train
def test_with_one_expert_it_is_plain_lora_and_with_more_it_is_not(tiny_model_dir: Path) -> None:
    def learn(folder: Path, kind: Any, options: Any) -> Any:
        return testing.learned_in_a_run(folder, kind, options, tuning="lora")

    plain = learn(tiny_model_dir, None, {})
    assert testing.check_switched_off(tiny_model_dir, MoELoRA, plain, learn) is None
    some = learn(tiny_model_dir, MoELoRA, {"experts": 4})
    routers = {n for n in some if n.endswith("router")}
    assert some.keys() - plain.keys() == routers
    assert len(routers) == 21
    assert any(not torch.equal(w, some[n]) for n, w in plain.items())


@pytest.mark.train
def test_a_saved_run_is_loaded_with_its_routers_and_scored_alike(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from perdure.commands.evaluate import evaluate
    from perdure.models.export import export

    path = write_recipe(
        tmp_path, tiny_model_dir, method={"name": "moelora"}, model__tuning="lora",
        train__max_steps=4, train__learning_rate=2e-2, gauges={"every": 0},
    )  # fmt: skip
    recipe = perdure.load_recipe(path)
    run = Run.create(tmp_path / "run", recipe)
    perdure.learn(recipe, run)
    model, _ = load_saved(run.path)
    assert numbers(model) == {"default": 4}
    saved = load_file(run.path / "checkpoints/task-2/model/adapter_model.safetensors")
    own = {n.replace(".default", ""): p for n, p in model.named_parameters() if "lora_" in n}
    assert saved.keys() == own.keys()
    assert all(torch.equal(p, saved[n]) for n, p in own.items())
    assert not any(p.requires_grad for p in model.parameters())
    first = load_file(run.path / "checkpoints/task-2/first/default.safetensors")
    name = next(n for n in first if n.endswith("router"))
    assert not torch.equal(first[name], dict(model.named_parameters())[name])  # it has learned
    evaluate(run.path, None, None, as_json=True)
    found = json.loads(capsys.readouterr().out)["scores"]
    assert {r["task"]: r["score"] for r in found} == {
        task: scores(run.path)[2, task] for task in ("colour", "count")
    }
    with pytest.raises(ModelError, match="weighs the adapter's experts"):
        export(run.path, tmp_path / "merged", "merged", "float32")
    facts = {(f["task"], f["name"]): f["value"] for f in run.facts()}
    assert facts["count", "trained_parameters"] == sum(w.numel() for w in saved.values())


@pytest.mark.train
def test_interrupted_it_goes_on_to_the_same_weights(tiny_model_dir: Path) -> None:
    assert testing.check_whole_runs(tiny_model_dir, MoELoRA) is None


@pytest.mark.train
def test_a_rank_that_cannot_be_split_is_refused_before_weights_are_loaded(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    path = write_recipe(
        tmp_path, tiny_model_dir, method={"name": "moelora", "experts": 3}, model__tuning="lora"
    )
    with pytest.raises(UsageError, match=r"model\.lora\.r: 8 cannot be split into the 3 equal"):
        prepare(perdure.load_recipe(path))
