"""An old run's recipe is read as the method of today that does the same, with its old values."""

from __future__ import annotations

from typing import Any

import pytest
from synthetic_runs import make_run

from perdure import Run
from perdure.recipe.yaml import write
from perdure.run.old_recipes import renewed

pytestmark = pytest.mark.unit

OLD: dict[str, Any] = {
    "name": "gere", "loss": "margin", "weight": 100.0, "label_weight": 1.0, "k": 1.0,
    "layers": [-1], "reduction": "violating", "noise_floor": 0.0, "teacher": "base",
    "scope": "row", "stats": "two_pass", "mix": "insert", "insert": 3, "samples": 1000,
    "own_share": 0.06, "max_tokens": 563, "add_special_tokens": False, "kl_temperature": 2.0,
    "kl_mask": True, "kl_t2": False, "kl_top": 64, "official": False,
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "name", "holds"),
    [
        ({}, "gere", {"weight": 100.0, "insert": 3, "k": 1.0}),
        ({"loss": "kl", "kl_top": 8}, "gere_kl", {"weight": 100.0, "top": 8, "insert": 3}),
        ({"loss": "l1"}, "gere_distance", {"norm": "l1", "weight": 100.0, "noise_floor": 0.0}),
        ({"loss": "l2", "weight": 1.0}, "gere_distance", {"norm": "l2", "weight": 1.0}),
        ({"loss": "label"}, "general_replay", {"label_weight": 1.0, "insert": 3}),
        (
            {"official": True, "scope": "micro", "mix": "concat", "stats": "one_pass_fp32",
             "kl_mask": False},
            "gere_official", {"scope": "micro", "mix": "concat", "stats": "one_pass_fp32"},
        ),
        ({"stats": "one_pass_fp32"}, "gere_official", {"scope": "row", "mix": "insert"}),
    ],
)  # fmt: skip
def test_an_old_entry_is_the_method_of_today(
    changes: dict[str, Any], name: str, holds: dict[str, Any]
) -> None:
    from perdure.methods.registry import load_config

    found = renewed({**OLD, **changes})
    assert found.pop("name") == name
    assert holds.items() <= found.items()
    assert load_config(name, found)  # every value is one that the method of today takes
    assert renewed({"name": name, **found}) == {"name": name, **found}


def test_an_old_run_opens_with_it(tmp_path: Any) -> None:
    run = make_run(tmp_path / "run", "gere")
    text = (run.path / "recipe.yaml").read_text().replace('method: "gere"\n', "")
    (run.path / "recipe.yaml").write_text(text + write({"method": {**OLD, "loss": "kl"}}))
    (spec,) = Run.open(run.path).recipe.methods
    assert (spec.name, spec.options["temperature"]) == ("gere_kl", 2.0)
    assert Run.open(run.path).methods_name == "gere_kl"


def test_a_new_recipe_with_old_options_is_told_what_to_write(
    tmp_path: Any, tiny_model_dir: Any
) -> None:
    from tiny_runs import write_recipe

    from perdure import load_recipe
    from perdure.errors import RecipeError

    path = write_recipe(tmp_path, tiny_model_dir, method={"name": "gere", "loss": "kl", "k": 1})
    with pytest.raises(RecipeError) as error:
        load_recipe(path)
    assert f"{path}:1: method.loss: is no option of gere any more" in str(error.value)
    assert "write method: {name: gere_kl" in str(error.value)
