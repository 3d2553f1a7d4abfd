"""What the methods that replay general texts share, and what options that moved are called now."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from small_tasks import FIRST, GENERAL
from test_gere import moved
from torch import Tensor

from perdure.errors import UsageError
from perdure.methods import registry
from perdure.recipe.former import entry_of_today, moved_options, of_today
from perdure.recipe.schema import read_methods
from perdure.recipe.yaml import inline
from perdure.streams.task import GeneralText

pytestmark = pytest.mark.unit

FOLDER = Path(registry.__file__).parent


def test_no_method_names_what_only_the_engine_knows() -> None:
    """Rows that fill up a batch, counts of a step, processes, the width of padding."""
    names = re.compile(r"_?filler|totals|\.counts|\.world\b|\.rank\b|shape\[1\]")
    for path in FOLDER.glob("*.py"):
        assert names.findall(path.read_text(encoding="utf-8")) == [], path.name


def test_gere_is_read_in_five_minutes() -> None:
    source = (FOLDER / "gere.py").read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 100
    assert source.index("def margin(") < source.index("class GeRe(")
    assert len(registry.load("gere").Config.model_fields) <= 10


# --- an unmoved model


def gradient(model: Any, loss: Tensor) -> Tensor:
    found = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return torch.cat([g.flatten() for g in found if g is not None]).norm()


VARIED = GeneralText(replay=[f"{i} {text} " * (1 + i % 3) for i in range(8) for text in GENERAL])
"""Texts of many lengths, so that a step pads them as no other does."""


def steps(made: Any, precision: str, **options: Any) -> tuple[list[float], Any, Any]:
    """The gradient of the distance over the task's, in each of twelve steps that see each text."""
    bf16 = {"autocast": lambda: torch.autocast("cpu", torch.bfloat16)}
    method, ctx = made(
        {"general": VARIED, **(bf16 if precision == "bf16" else {})}, kind="gere_distance",
        samples=48, max_tokens=64, label_weight=0.0, **options,
    )  # fmt: skip
    task = ctx.forward([ctx.encode(row) for row in FIRST.train[:4]])
    whole = gradient(ctx.model, task.token_mean(task.nll))
    found = []
    for step in range(12):
        ctx._session.end_step(step)
        (term,) = method.loss(ctx, task, ctx.forward(method.replay(ctx))).values()
        found.append(float(gradient(ctx.model, term) / whole))
    return found, method, ctx


@pytest.mark.parametrize("norm", ["l1", "l2"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_unmoved_model_stays_unmoved_by_default(made: Any, norm: str, precision: str) -> None:
    """The distance's gradient is at most a millionth of the task's, in whatever layout."""
    found, method, ctx = steps(made, precision, norm=norm)
    assert method.floor[-1] > 0
    assert max(found) <= 1e-6
    moved(ctx)
    (term,) = method.loss(ctx, None, ctx.forward(method.replay(ctx))).values()
    assert gradient(ctx.model, term) > 1e-3


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_without_a_floor_rounding_is_a_gradient(made: Any, precision: str) -> None:
    """Why there is one: of l1 a difference's sign counts however small it is."""
    assert max(steps(made, precision, noise_floor=0.0)[0]) > 1e-2


def test_a_floor_by_hand() -> None:
    from perdure.mechanisms.distances import distance

    h, x = torch.zeros(1, 2, 2), torch.tensor([[[0.1, -0.3], [0.2, 5.0]]])
    mask = torch.tensor([[True, True]])
    assert distance(x, h, mask, 1, 0.2).tolist() == pytest.approx([5.3 / 4])
    assert distance(x, h, mask, 2, 0.2).tolist() == pytest.approx([25.09 / 4])
    assert distance(x, h, mask, 1).tolist() == pytest.approx([5.6 / 4])
    x[0, 0, 0] = float("nan")
    assert distance(x, h, mask, 1, 0.2).isnan().all()


# --- options that moved

TEXTS = {"label_weight": 1.0, "insert": 4, "samples": 1000, "own_share": 0.06, "max_tokens": 563}


@pytest.mark.parametrize(
    ("options", "name", "wanted"),
    [
        ({"loss": "margin", "k": 2.0}, "gere", {"k": 2.0, "weight": 100.0, "teacher": "base"}),
        ({"loss": "label", "weight": 5, "insert": 2}, "general_replay", {"insert": 2}),
        ({"loss": "label", "stats": "one_pass_fp32"}, "general_replay", TEXTS),
        ({"loss": "kl", "kl_top": 8}, "gere_kl", {"top": 8, "temperature": 2.0, "weight": 100.0}),
        ({"loss": "kl", "kl_t2": True, "weight": 2.0}, "gere_kl", {"t2": True, "weight": 2.0}),
        ({"loss": "kl", "kl_mask": False}, "gere_official",
         {"loss": "kl", "kl_mask": False, "scope": "row", "mix": "insert"}),
        ({"loss": "l1"}, "gere_distance", {"norm": "l1", "weight": 100.0, "noise_floor": 0.0}),
        ({"loss": "l2", "layers": [0, 1]}, "gere_distance", {"norm": "l2", "layers": [0, 1]}),
        ({"loss": "l2", "teacher": "previous"}, "gere_official",
         {"loss": "l2", "teacher": "previous", "scope": "row", "mix": "insert"}),
        ({"loss": "kl", "weight": "dynamic"}, "gere_official",
         {"loss": "kl", "weight": "dynamic", "kl_mask": True}),
        ({"official": True}, "gere_official",
         {"scope": "micro", "mix": "concat", "stats": "one_pass_fp32", "kl_mask": False}),
        ({"official": True, "loss": "kl", "mix": "insert"}, "gere_official",
         {"scope": "micro", "mix": "insert", "loss": "kl", "kl_mask": False}),
        ({"stats": "one_pass_fp32"}, "gere_official",
         {"stats": "one_pass_fp32", "scope": "row", "mix": "insert"}),
        ({"noise_floor": "measured", "official": False}, "gere_official",
         {"noise_floor": "measured", "scope": "row", "stats": "two_pass"}),
        ({"loss": "label", "add_special_tokens": True}, "gere_official",
         {"loss": "label", "add_special_tokens": True, "scope": "row"}),
    ],
)  # fmt: skip
def test_old_options_are_those_of_a_method_of_today(
    options: dict[str, Any], name: str, wanted: dict[str, Any]
) -> None:
    assert moved_options("gere", options)
    found, new = of_today("gere", options)
    assert found == name
    assert {key: new[key] for key in wanted} == wanted
    config = registry.load_config(found, new)  # valid there
    assert config.model_dump(mode="json").keys() == new.keys()  # and nothing is left to a default


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"loss": "label", "weight": 5, "insert": 2}, "{name: general_replay, insert: 2}"),
        ({"loss": "kl", "kl_temperature": 1.5}, "{name: gere_kl, temperature: 1.5}"),
        ({"loss": "l1"}, "{name: gere_distance, norm: l1}"),
        ({"loss": "l2", "weight": 3.0}, "{name: gere_distance, norm: l2, weight: 3.0}"),
        ({"loss": "margin", "k": 2.0}, "{name: gere, k: 2.0}"),
        ({"official": True, "weight": "dynamic"}, "{name: gere_official, weight: dynamic}"),
        ({"mix": "concat", "layers": [0, -1]},
         "{name: gere_official, layers: [0, -1], scope: row, stats: two_pass, mix: concat}"),
    ],
)  # fmt: skip
def test_what_to_write_in_place_of_old_options(options: dict[str, Any], wanted: str) -> None:
    assert inline(entry_of_today(options)) == wanted
    assert registry.check(*read_methods(entry_of_today(options), None)[0])[0] is not None


def test_options_of_today_are_left_alone() -> None:
    assert of_today("gere", {"k": 2.0, "insert": 1}) == ("gere", {"k": 2.0, "insert": 1})
    assert of_today("replay", {"loss": 1}) == ("replay", {"loss": 1})
    assert moved_options("gere", {"insert": 1}) == []
    assert moved_options("gere", {"loss": "kl", "k": 1, "official": True}) == ["loss", "official"]


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("gere", {"weight_max": 5.0}, "weight_max: has no effect without weight: dynamic"),
        ("gere", {"weight": -1.0}, "weight: is below 0"),
        ("gere_distance", {"noise_floor": -0.1}, "noise_floor: is below 0"),
        ("gere_official", {"weight_max": 5.0}, "weight_max: has no effect without weight: dynamic"),
        ("gere_official", {"loss": "kl", "noise_floor": 0.1},
         "noise_floor: has no effect with loss: kl"),
        ("gere_official", {"loss": "label", "noise_floor": "measured"},
         "noise_floor: has no effect with loss: label"),
        ("gere_official", {"noise_floor": -0.1}, "noise_floor: is below 0"),
        ("gere_official", {"weight": -1.0}, "weight: is below 0"),
    ],
)  # fmt: skip
def test_options_without_effect_or_sense(kind: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        registry.load_config(kind, options)
    assert error.value.what == f"method.{message}"
