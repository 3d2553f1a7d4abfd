"""One matrix that every method file meets; a new file is in it by a line in `two_tasks.ACTIVE`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import two_tasks
from tiny_runs import finish, start_call, write_recipe
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from two_tasks import ACTIVE, OWN_ROWS, SILENT, made, train

from perdure.methods import registry

pytestmark = pytest.mark.train

ATTACHED = sorted(set(ACTIVE) - OWN_ROWS)
Weights = dict[str, Tensor]


def weights(model: Any) -> Weights:
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def same(a: Weights, b: Weights, tolerance: float = 0.0) -> None:
    assert a.keys() == b.keys()
    for name, value in a.items():
        torch.testing.assert_close(
            value, b[name], rtol=0, atol=tolerance, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.fixture(scope="module")
def both_tasks(
    tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Weights]:
    """Learn both tasks with a method; returns the weights, and keeps them for the next asker."""

    @cache
    def run(name: str | None, on: bool = True, micro: int = 8) -> Weights:
        model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
        tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
        out = tmp_path_factory.mktemp("both")
        chosen = [] if name is None else [made(name, (ACTIVE if on else SILENT)[name])]
        for index in (0, 1):
            train(model, tokenizer, out, chosen, index, micro)
        return weights(model)

    return run


def test_every_method_is_in_the_matrix() -> None:
    assert set(registry.names()) == set(ACTIVE) == set(SILENT)


@pytest.mark.parametrize("name", ATTACHED)
def test_switched_off_it_changes_nothing(both_tasks: Any, name: str) -> None:
    same(both_tasks(name, False), both_tasks(None))


@pytest.mark.parametrize("name", sorted(set(ATTACHED) - {"sequential"}))
def test_switched_on_it_changes_something_and_not_by_how_the_batch_is_split(
    both_tasks: Any, name: str
) -> None:
    whole, plain = both_tasks(name), both_tasks(None)
    assert max(float((whole[n] - plain[n]).abs().max()) for n in plain) > 1e-4
    for micro in (4, 1):
        same(both_tasks(name, micro=micro), whole, 2e-6)


@pytest.mark.parametrize("name", ATTACHED)
def test_its_state_on_disk_is_all_it_needs(tiny: Any, tmp_path: Path, name: str) -> None:
    from perdure.engine.method_state import load_methods, save_methods

    model, tokenizer = tiny
    method = made(name, ACTIVE[name])
    train(model, tokenizer, tmp_path, [method], 0)
    save_methods(tmp_path / "state", [method])
    twin, restored = copy.deepcopy(model), made(name, ACTIVE[name])
    load_methods(tmp_path / "state", [restored], twin)
    train(model, tokenizer, tmp_path, [method], 1)
    train(twin, tokenizer, tmp_path, [restored], 1)
    same(weights(twin), weights(model))
    assert repr(method.state_dict()) == repr(restored.state_dict())


@pytest.mark.process
def test_two_processes_learn_the_same(
    both_tasks: Any, tiny_model_dir: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    finish(start_call(two_tasks.main, str(tiny_model_dir), str(tmp_path), processes=2))
    for name in ATTACHED:
        same(load_file(tmp_path / f"{name}.safetensors"), both_tasks(name), 2e-6)


# --- in whole runs, by Perdure's own learner


@pytest.fixture
def learned(tiny_model_dir: Path, tmp_path: Path) -> Callable[..., Any]:
    """Run a recipe of two tasks with a method and return the run."""

    def run(name: str, options: dict[str, Any], **changes: Any) -> Any:
        from perdure import Run, learn, load_recipe

        folder = tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}"
        changes = {"train__epochs": 0.5, "scoring__max_test_rows": 4, **changes}
        recipe = load_recipe(
            write_recipe(folder, tiny_model_dir, method={"name": name, **options}, **changes)
        )
        run = Run.create(folder / "run", recipe)
        learn(recipe, run)
        return run

    return run


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("name", sorted(ACTIVE))
def test_whole_runs_with_full_and_lora_tuning(learned: Any, name: str, tuning: str) -> None:
    run = learned(name, ACTIVE[name], model__tuning=tuning)
    assert run.state == "finished"
    assert len(run.scores()) == 9  # two tasks and general ability, after 0, 1 and 2 tasks
    losses = [row["loss"] for row in run.log_rows()]
    assert losses
    assert all(0 < loss < 50 for loss in losses)


def test_joint_trains_on_more_rows_in_the_second_task(learned: Any) -> None:
    run = learned("joint", {}, train__epochs=1)
    steps = [max(r["step"] for r in run.log_rows() if r["after"] == i) for i in (1, 2)]
    assert steps == [6, 12]


@pytest.mark.parametrize("micro", [1, 2])
def test_joint_does_not_depend_on_how_the_batch_is_split(learned: Any, micro: int) -> None:
    from safetensors.torch import load_file

    def weights_of(**changes: Any) -> Weights:
        options = {"train__epochs": 0.25, "train__optimizer": "sgd", **changes}
        return load_file(learned("joint", {}, **options).checkpoint(2) / "model/model.safetensors")

    same(weights_of(), weights_of(train__micro_batch_size=micro), 1e-5)
