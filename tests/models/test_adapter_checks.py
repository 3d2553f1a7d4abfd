"""What is found out about an adapter before it joins a pool: each finding by a hand-made folder."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from perdure.errors import ModelError, RecipeError
from perdure.models.adapter_checks import (
    Finding,
    delta_norm,
    fit,
    layers_of,
    refuse,
    size_findings,
)

pytestmark = pytest.mark.unit
ANOTHER = "is it the base model that it was trained on?"
LAYERS = {"": None, "layers": None, "layers.0.q": (6, 4), "layers.0.v": (2, 4), "head": (8, 6)}


def write(folder: Path, shapes: dict[str, tuple[int, ...]], **config: Any) -> Path:
    """A `peft` folder with zeros of these shapes, by the names in its file."""
    folder.mkdir(parents=True, exist_ok=True)
    said = {"peft_type": "LORA", "r": 2, "bias": "none", **config}
    (folder / "adapter_config.json").write_text(json.dumps(said))
    tensors = {f"base_model.model.{name}": torch.zeros(shape) for name, shape in shapes.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def pair(layer: str, out: int, rank: int, inner: int) -> dict[str, tuple[int, ...]]:
    return {f"{layer}.lora_A.weight": (rank, inner), f"{layer}.lora_B.weight": (out, rank)}


def test_an_adapter_that_fits_has_no_finding(tmp_path: Path) -> None:
    shapes = pair("layers.0.q", 6, 2, 4) | pair("layers.0.v", 2, 2, 4)
    whole = {"head.modules_to_save.weight": (8, 6)}
    folder = write(tmp_path, shapes | whole, base_model_name_or_path="org/base")
    assert fit("sql", folder, LAYERS, "org/base", rank=2) == []


@pytest.mark.parametrize(
    ("shapes", "config", "said", "remedy"),
    [
        (
            {"layers.0.q.lora_A.weight": (2, 4)},
            {"peft_type": "IA3"},
            "is of the type IA3",
            "a pool takes LoRA adapters",
        ),
        (
            pair("layers.0.q", 6, 2, 4),
            {"bias": "all"},
            r"changes biases of the base \(bias: all\)",
            'train it with bias: "none"',
        ),
        (
            pair("layers.0.qq", 6, 2, 4)
            | pair("layers.1.q", 6, 2, 4)
            | pair("layers.0.q", 6, 2, 4),
            {},
            "2 of its modules are not in the base, such as layers.0.qq",
            'did you mean "layers.0.q"?',
        ),
        (
            pair("encoder.block.7", 6, 2, 4),
            {},
            "1 of its modules are not in the base, such as encoder.block.7",
            ANOTHER,
        ),
        (
            pair("layers.0.q", 6, 2, 5) | pair("layers.0.v", 3, 2, 4),
            {},
            "2 of its matrices do not fit the base: at layers.0.q it is made for a layer of 6 x 5, "
            "and the base's is 6 x 4",
            ANOTHER,
        ),
        ({"head.weight": (9, 6)}, {}, "at head it is made for a layer of 9 x 6", ANOTHER),
    ],
)
def test_what_refuses_an_adapter(
    shapes: dict[str, tuple[int, ...]], config: dict[str, Any], said: str, remedy: str,
    tmp_path: Path
) -> None:  # fmt: skip
    (found,) = fit("sql", write(tmp_path / "one", shapes, **config), LAYERS)
    assert found.refused
    assert found.what.startswith(f"adapter sql: {tmp_path / 'one'}: ")
    with pytest.raises(ModelError, match=said) as caught:
        refuse([found])
    assert caught.value.remedy == (remedy,)


def test_what_is_only_said(tmp_path: Path) -> None:
    shapes = pair("layers.0.q", 6, 4, 4)
    folder = write(tmp_path, shapes, r=4, base_model_name_or_path="org/other")
    base, rank = fit("sql", folder, LAYERS, "org/base", rank=2)
    assert not base.refused
    assert "was trained on org/other, and stands on org/base here" in base.what
    assert not rank.refused
    assert "is of rank 4, and the pool's first adapter of 2" in rank.what
    refuse([base, rank])
    assert fit("sql", folder, LAYERS) == []  # nothing to compare with
    shapes |= {"head.weight": (8, 6)}
    folder = write(tmp_path, shapes, r=4, modules_to_save=["head"])
    (whole,) = fit("sql", folder, LAYERS)
    assert not whole.refused
    assert "(modules_to_save: head), 48 numbers" in whole.what


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_folder_that_lacks_a_file_or_holds_a_damaged_one(file: str, tmp_path: Path) -> None:
    folder = write(tmp_path, pair("layers.0.q", 6, 2, 4))
    (folder / file).write_text("{")
    (found,) = fit("sql", folder, LAYERS)
    assert found.refused
    assert file in found.what
    (folder / file).unlink()
    (found,) = fit("sql", folder, LAYERS)
    assert found.refused
    assert f"has no {file}" in found.what


def test_several_refusals_are_told_together() -> None:
    found = [Finding("a", "a: no", "x", True), Finding("b", "b: hm", "x", False),
             Finding("c", "c: no", "x", True)]  # fmt: skip
    with pytest.raises(RecipeError, match=r"a: no[\s\S]*c: no") as caught:
        refuse(found)
    assert "b: hm" not in str(caught.value)


def test_the_norm_of_what_is_added() -> None:
    # B A = [[3, 4], [6, 8]]: 9 + 16 + 36 + 64 = 125.
    first, second = torch.tensor([[3.0, 4.0]]), torch.tensor([[1.0], [2.0]])
    assert delta_norm(first, second, 2.0) == pytest.approx(2 * math.sqrt(125))
    torch.manual_seed(0)
    first, second = torch.randn(3, 7), torch.randn(5, 3)
    slow = torch.linalg.matrix_norm(0.5 * second.double() @ first.double()).item()
    assert delta_norm(first, second, -0.5) == pytest.approx(slow, rel=1e-12)
    assert delta_norm(first, torch.zeros(5, 3), 1.0) == 0
    assert math.isnan(delta_norm(first, torch.full((5, 3), math.inf), 1.0))


@pytest.mark.parametrize(
    ("shares", "refused", "said"),
    [
        ({"q": 0.0, "v": 0.0}, True, "adds nothing: B A is zero at all of its 2 layers"),
        ({"q": 2e-6, "v": 0.0}, False, "at most 2.0e-06 of a layer's weights by norm, at q"),
        ({"q": math.nan, "v": 0.1}, True, "not finite at 1 layers, such as q"),
    ],
)
def test_adapters_that_add_nothing(shares: dict[str, float], refused: bool, said: str) -> None:
    (found,) = size_findings("sql", shares)
    assert (found.refused, said in found.what) == (refused, True)


def test_an_adapter_that_adds_something_has_no_finding() -> None:
    assert size_findings("sql", {"q": 0.0, "v": 1e-3}) == []
    assert size_findings("sql", {}) == []


def test_shapes_are_out_and_in_whatever_a_module_holds() -> None:
    from transformers.pytorch_utils import Conv1D

    base = nn.ModuleDict({"line": nn.Linear(4, 6), "turned": Conv1D(6, 4),
                          "words": nn.Embedding(9, 4), "norm": nn.LayerNorm(4)})  # fmt: skip
    assert layers_of(base) == {
        "": None, "line": (6, 4), "turned": (6, 4), "words": (4, 9), "norm": None
    }  # fmt: skip
