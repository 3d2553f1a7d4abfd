"""Methods that have adapters of their own: two in a recipe are refused, one acts beside others."""

from __future__ import annotations

from itertools import combinations_with_replacement
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import write_recipe
from torch import Tensor

import perdure
from perdure.errors import UsageError
from perdure.methods import registry
from perdure.prepare import load_recipe, prepare
from perdure.protocol.method import refuse_clashes
from perdure.recipe.schema import MethodSpec
from perdure.run import Run

pytestmark = pytest.mark.unit


def owners() -> list[str]:
    """All built-in methods that add adapters, by what they say of themselves."""
    files = Path(registry.__file__).parent.glob("[!_]*.py")
    names = sorted(file.stem for file in files if file.stem not in ("registry",))
    made = registry.build(MethodSpec(name=name) for name in names)
    found = zip(names, made, strict=True)
    return [name for name, m in found if m.adapters or m.requires.adapters is not None]


def test_a_method_file_that_adds_adapters_says_so() -> None:
    """Else the walk over all pairs would pass it by."""
    folder = Path(registry.__file__).parent
    adding = {file.stem for file in folder.glob("*.py") if "ctx.adapters." in file.read_text()}
    assert adding <= set(owners())
    assert set(owners()) == {*adding, "lora_sequence"}  # whose learner adds them


@pytest.mark.parametrize("pair", list(combinations_with_replacement(owners(), 2)), ids="+".join)
@pytest.mark.parametrize("ordered", [False, True])
def test_two_of_them_are_refused_by_name(pair: tuple[str, str], ordered: bool) -> None:
    both = registry.build(MethodSpec(name=name) for name in pair)
    with pytest.raises(UsageError) as caught:
        refuse_clashes(both, ordered)
    assert caught.value.what.startswith(f"method: {pair[0]} and {pair[1]} both have adapters")
    assert caught.value.remedy == ("drop one",)


@pytest.mark.parametrize("pair", [("lcia", "olora"), ("moelora", "lcia")])
def test_a_recipe_with_both_is_refused_without_its_model(
    pair: tuple[str, str], tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    path = write_recipe(tmp_path, tmp_path / "empty", model__tuning="lora", method=list(pair))
    with pytest.raises(UsageError, match=f"{pair[0]} and {pair[1]} both have adapters"):
        prepare(load_recipe(path))


def test_one_of_them_goes_with_other_methods() -> None:
    for name in owners():
        others = ("lwf", "replay", "rewind")
        made = registry.build(MethodSpec(name=n) for n in (name, *others))
        refuse_clashes(made)  # raises nothing
        assert sum(m.adapters or m.requires.adapters is not None for m in made) == 1


@pytest.mark.parametrize("owner", owners())
def test_what_holds_weights_needs_tasks_that_train_the_same(owner: str) -> None:
    """Its penalty would be of no weight, and it would do nothing without a word."""
    holding = [n for n in registry.names() if registry.load(n).requires.same_weights]
    assert holding == ["ewc"]
    made = registry.build(MethodSpec(name=n) for n in (*holding, owner))
    if owner == "moelora":  # its one adapter learns every task
        refuse_clashes(made)
        return
    with pytest.raises(
        UsageError, match=f"ewc holds weights .* with {owner} no later task"
    ) as told:
        refuse_clashes(made, ordered=True)
    assert told.value.remedy == ("drop ewc: it would do nothing",)


@pytest.mark.train
@pytest.mark.parametrize(
    ("owner", "other", "term"),
    [
        ("olora", {"name": "replay", "buffer_size": 8}, "replay"),
        ("moelora", {"name": "lwf"}, "lwf"),
    ],
)
def test_both_act_where_one_of_them_learns_beside_another(
    owner: str, other: dict[str, Any], term: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    def learned(*methods: Any) -> tuple[Run, dict[str, Tensor]]:
        """A run of two tasks, and its weights by folder and name."""
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        path = write_recipe(
            folder, tiny_model_dir, method=list(methods), model__tuning="lora", general=None,
            train={"learning_rate": 2e-2, "max_steps": 3, "batch_size": 4, "precision": "fp32",
                   "log_steps": 1},
            gauges={"every": 0}, scoring={"max_test_rows": 2},
        )  # fmt: skip
        run = Run.create(folder / "run", load_recipe(path))
        perdure.learn(run.recipe, run)
        files = (run.path / "checkpoints/task-2/model").rglob("adapter_model.safetensors")
        return run, {f"{f.parent.name}/{n}": w for f in files for n, w in load_file(f).items()}

    run, both = learned(owner, other)
    (_, alone), (_, without) = learned(owner), learned(other)
    assert set(both) == set(alone) > set(without)
    own = set(alone) - set(without)  # the second adapter, or the routers
    assert any(bool(both[n].any()) for n in own)
    assert any(not torch.equal(both[n], alone[n]) for n in own)
    assert any(not torch.equal(both[n], w) for n, w in without.items())
    last = [row for row in run.log_rows() if row["task"] == "count"][-1]
    assert last[f"method/{term}"] > 0
    assert owner != "olora" or last["method/overlap"] > 0
