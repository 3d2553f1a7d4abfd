"""Options of `gere` that are other methods' now: refused in a recipe, read from a recorded run."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import write_recipe

from perdure import Run, load_recipe
from perdure.errors import RecipeError, UsageError
from perdure.methods import registry
from perdure.prepare import recipe_judge
from perdure.recipe.former import entry_of_today, of_today
from perdure.recipe.schema import read_methods
from perdure.recipe.yaml import inline, parse_value

GERE_OF_THEN = {
    "name": "gere", "loss": "margin", "weight": 100.0, "label_weight": 1.0, "k": 1.0,
    "layers": [-1], "reduction": "violating", "noise_floor": 0.0, "teacher": "base",
    "scope": "row", "stats": "two_pass", "mix": "insert", "insert": 4, "samples": 1000,
    "own_share": 0.06, "max_tokens": 563, "add_special_tokens": False, "kl_temperature": 2.0,
    "kl_mask": True, "kl_t2": False, "kl_top": 64, "official": False,
}  # fmt: skip
"""What a run directory recorded of `method: gere`."""
FAMILY = {"gere", "general_replay", "gere_kl", "gere_distance", "gere_official"}
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


def read(text: str) -> Any:
    """The entries of `method` in the suggestion of a message."""
    suggested = text.rpartition("write method: ")[2].split("\n")[0]
    specs, wrong = read_methods(parse_value(suggested), recipe_judge())
    assert wrong == []
    return specs


@pytest.mark.unit
@pytest.mark.parametrize(
    ("options", "others", "name", "kept"),
    [
        # a wrong value is told, and left out of what is suggested
        ({"loss": "kl", "weight": "much", "insert": 2}, ["method.weight: "], "gere_kl",
         {"insert": 2, "weight": None}),  # null: the usual one
        ({"loss": "margn", "k": 2.0}, ['method.loss: "margn" is none of '], "gere", {"k": 2.0}),
        ({"official": "yes", "loss": "kl"},
         ['method.official: must be true or false, not "yes"'], "gere_kl", {}),
        ({"loss": "kl", "insert": -2}, ["method.insert: must be greater than 0"], "gere_kl",
         {"insert": 4}),
        # a misspelt name is told, and put right
        ({"loss": "kl", "insrt": 2}, ["method.insrt: unknown key"], "gere_kl", {"insert": 2}),
        ({"loss": "kl", "zzz": 2}, ["method.zzz: unknown key"], "gere_kl", {}),
        # what had no effect then is left out
        ({"loss": "label", "weight": 5.0, "k": 2.0}, [], "general_replay", {}),
        ({"official": True, "insert": 2, "kl_top": 8}, [], "gere_official", {"insert": 4}),
    ],
)  # fmt: skip
def test_what_is_suggested_can_be_read_and_all_else_is_told(
    options: dict[str, Any], others: list[str], name: str, kept: dict[str, Any]
) -> None:
    with pytest.raises(UsageError) as error:
        registry.load_config("gere", options)
    text = str(error.value)
    lines = [line for line in text.split("\n") if line.startswith("method.")]
    assert lines[0].endswith(": is no option of gere any more")
    assert len(lines) == 1 + len(others)
    for line, start in zip(lines[1:], others, strict=True):
        assert line.startswith(start)
    (spec,) = read(text)
    assert spec.name == name
    assert {key: spec.options[key] for key in kept} == kept


@pytest.mark.unit
def test_in_a_list_the_other_methods_stay() -> None:
    entries = [
        "replay", {"name": "gere", "loss": "kl", "insert": 2},
        {"name": "ewc", "lam": 5.0, "rows": 3},
    ]  # fmt: skip
    _, (wrong,) = read_methods(entries, recipe_judge())
    assert wrong.key == (1, "loss")
    assert wrong.remedy == (
        "write method: [replay, {name: gere_kl, insert: 2}, {name: ewc, lam: 5.0, rows: 3}]"
    )
    found = read(wrong.remedy)
    assert [spec.name for spec in found] == ["replay", "gere_kl", "ewc"]
    assert (found[1].options["insert"], found[2].options["lam"]) == (2, 5.0)


@pytest.mark.unit
def test_a_value_on_one_line_is_read_back_equal() -> None:
    for value in ("a b", "yes", "1", "x: y", "", "-", 1.5, True, None, [1, [2]], {"a": "#b"},
                  float("inf"), "\u2028", "007"):  # fmt: skip
        assert parse_value(inline({"key": value}))["key"] == value


@pytest.mark.unit
def test_every_form_of_then_is_one_of_today() -> None:
    """In a recorded run, and in what a recipe is told to write."""
    choices: dict[str, tuple[Any, ...]] = {
        "loss": ("margin", "label", "kl", "l1", "l2"), "weight": (100.0, 3.0, "dynamic"),
        "scope": ("row", "micro"), "mix": ("insert", "concat"), "kl_mask": (True, False),
        "noise_floor": (0.0, "measured"), "teacher": ("base", "previous"), "insert": (4, 2),
        "stats": ("two_pass", "one_pass_fp32"), "kl_t2": (False, True),
    }  # fmt: skip
    configs = {name: registry.load(name).Config for name in FAMILY}
    seen = set()
    for values in itertools.product(*choices.values()):
        then = dict(zip(choices, values, strict=True))
        then["kl_temperature"] = 1.0 if then["insert"] == 2 else 2.0
        label = {"label_weight": 1.0 if then["scope"] == "micro" else 0.5}
        for options in (then, {**then, **label, "official": True}):
            name, now = of_today("gere", options)
            assert configs[name].model_validate(now)
            entry = entry_of_today(options)
            assert configs[entry.pop("name")].model_validate(entry)
            assert of_today(name, now) == (name, now)
            seen.add(name)
    assert seen == FAMILY


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
