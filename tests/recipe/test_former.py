"""Options of `gere` that are other methods' now: refused in a recipe, read from a recorded run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import write_recipe

from perdure import Run, load_recipe
from perdure.errors import RecipeError, UsageError
from perdure.methods import registry

GERE_OF_THEN = {
    "name": "gere", "loss": "margin", "weight": 100.0, "label_weight": 1.0, "k": 1.0,
    "layers": [-1], "reduction": "violating", "noise_floor": 0.0, "teacher": "base",
    "scope": "row", "stats": "two_pass", "mix": "insert", "insert": 4, "samples": 1000,
    "own_share": 0.06, "max_tokens": 563, "add_special_tokens": False, "kl_temperature": 2.0,
    "kl_mask": True, "kl_t2": False, "kl_top": 64, "official": False,
}  # fmt: skip
"""What a run directory recorded of `method: gere`."""
CODE = {"mix": "concat", "scope": "micro", "stats": "one_pass_fp32", "kl_mask": False}


@pytest.mark.unit
@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"loss": "kl", "kl_temperature": 1.0},
         "method.loss: is no option of gere any more\n"
         "  write method: {name: gere_kl, temperature: 1.0}"),
        ({"insert": 2, "loss": "l2", "weight": 3.0},
         "method.loss: is no option of gere any more\n"
         "  write method: {name: gere_distance, insert: 2, norm: l2, weight: 3.0}"),
        ({"loss": "label"},
         "method.loss: is no option of gere any more\n  write method: {name: general_replay}"),
        ({"official": True},
         "method.official: is no option of gere any more\n  write method: {name: gere_official}"),
        ({"loss": "margin", "k": 2.0},
         "method.loss: is no option of gere any more\n  write method: {name: gere, k: 2.0}"),
    ],
)  # fmt: skip
def test_an_option_that_moved_is_refused_with_what_to_write(
    options: dict[str, Any], told: str
) -> None:
    with pytest.raises(UsageError) as error:
        registry.load_config("gere", options)
    assert str(error.value) == told


@pytest.mark.train
def test_a_recipe_is_told_at_its_line(tmp_path: Path, tiny_model_dir: Path) -> None:
    path = write_recipe(tmp_path, tiny_model_dir, method={"name": "gere", "loss": "kl"})
    with pytest.raises(RecipeError) as error:
        load_recipe(path)
    assert str(error.value).startswith(
        f"{path}:1: method.loss: is no option of gere any more\n  write method: {{name: gere_kl}}\n"
    )


@pytest.mark.train
@pytest.mark.parametrize(
    ("then", "name", "now"),
    [
        ({}, "gere", {"weight": 100.0, "k": 1.0, "insert": 4}),
        ({"loss": "label", "insert": 2}, "general_replay", {"insert": 2, "label_weight": 1.0}),
        ({"loss": "kl", "kl_temperature": 1.0, "weight": 5.0}, "gere_kl",
         {"temperature": 1.0, "weight": 5.0, "top": 64}),
        ({"loss": "l1"}, "gere_distance", {"norm": "l1", "weight": 100.0, "noise_floor": 0.0}),
        ({"official": True, **CODE}, "gere_official", {"scope": "micro", "mix": "concat"}),
    ],
)  # fmt: skip
def test_a_recorded_run_is_read_as_the_method_of_today_with_its_values(
    then: dict[str, Any], name: str, now: dict[str, Any], tmp_path: Path, tiny_model_dir: Path
) -> None:
    run = tmp_path / "run"
    path = write_recipe(tmp_path / "old", tiny_model_dir, method={**GERE_OF_THEN, **then})
    run.mkdir()
    shutil.copy(path, run / "recipe.yaml")
    (spec,) = Run.open(run).recipe.methods
    assert spec.name == name
    assert {key: spec.options[key] for key in now} == now
    (method,) = registry.build([spec])
    config = method.config.model_dump(mode="json")
    assert {key: config[key] for key in now} == now
