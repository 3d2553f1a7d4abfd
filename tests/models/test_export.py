"""`perdure export`: what is written loads in plain transformers and peft, and computes the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import write_recipe
from typer.testing import CliRunner

import perdure
from perdure.cli import app
from perdure.errors import ModelError, RunError, UsageError
from perdure.models import load_saved
from perdure.models.export import export, stored_type
from perdure.run import Run

pytestmark = pytest.mark.train
IDS = torch.tensor([[5, 9, 40, 7]])


@pytest.fixture(scope="module")
def runs(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    found = {}
    for tuning in ("full", "lora"):
        folder = tmp_path_factory.mktemp(tuning)
        recipe = perdure.load_recipe(
            write_recipe(folder, tiny_model_dir, model__tuning=tuning, train__max_steps=2)
        )
        found[tuning] = Run.create(folder / "run", recipe)
        perdure.learn(recipe, found[tuning])
    return found


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits.float()
    return found


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_a_merged_model_computes_what_the_run_did(
    runs: dict[str, Run], tmp_path: Path, tuning: str
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    run = runs[tuning]
    told = CliRunner().invoke(app, ["export", str(run.path), "--out", str(tmp_path / "model")])
    assert told.exit_code == 0, told.output
    assert told.stdout == f"model: {tmp_path / 'model'}\n"
    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert not hasattr(plain, "peft_config")
    trained, tokenizer = load_saved(run.path)
    torch.testing.assert_close(logits(plain), logits(trained), rtol=1e-5, atol=1e-5)
    again = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert again.chat_template == tokenizer.chat_template
    assert sorted(p.name for p in (tmp_path / "model").iterdir() if "perdure" in p.name) == []


def test_the_type_is_that_of_the_base_unless_another_is_wanted(
    runs: dict[str, Run], tmp_path: Path
) -> None:
    from safetensors import safe_open

    for dtype, wanted in (("auto", "F32"), ("bfloat16", "BF16")):
        folder = export(runs["lora"].path, tmp_path / dtype, dtype=dtype)
        with safe_open(folder / "model.safetensors", "np") as weights:
            name = next(iter(weights.keys()))
            assert weights.get_slice(name).get_dtype() == wanted
        assert json.loads((folder / "config.json").read_text())["dtype"] == (
            "float32" if dtype == "auto" else dtype
        )


def test_an_adapter_loads_in_plain_peft(
    runs: dict[str, Run], tiny_model_dir: Path, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    folder = export(runs["lora"].path / "checkpoints" / "task-1", tmp_path / "adapter", "peft")
    base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    trained, _ = load_saved(runs["lora"].path / "checkpoints" / "task-1")
    plain = PeftModel.from_pretrained(base, folder)
    torch.testing.assert_close(logits(plain), logits(trained), rtol=1e-5, atol=1e-5)


def test_what_cannot_be_written_is_told_and_leaves_nothing(
    runs: dict[str, Run], tmp_path: Path
) -> None:
    path = runs["full"].path
    with pytest.raises(ModelError, match="was trained in full and has no adapter"):
        export(path, tmp_path / "a", "peft")
    with pytest.raises(UsageError, match="--to gguf: unknown"):
        export(path, tmp_path / "a", "gguf")
    with pytest.raises(UsageError, match="--dtype int8: unknown"):
        export(path, tmp_path / "a", dtype="int8")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "there").mkdir()
    with pytest.raises(RunError, match="exists already"):
        export(path, tmp_path / "there")


def test_the_type_of_a_base_that_does_not_say_it_is_that_of_its_files(
    tiny: tuple[Any, Any], tiny_model_dir: Path, tmp_path: Path
) -> None:
    from safetensors import safe_open

    model, tokenizer = tiny
    base = tmp_path / "base"
    model.to(torch.bfloat16).save_pretrained(base)
    tokenizer.save_pretrained(base)
    config = json.loads((base / "config.json").read_text())
    for key in ("dtype", "torch_dtype"):
        config.pop(key, None)
    (base / "config.json").write_text(json.dumps(config))
    told: list[str] = []
    folder = export(base, tmp_path / "out", tell=told.append)
    assert told == ["weights: bfloat16, as the base is stored"]
    with safe_open(folder / "model.safetensors", "np") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}  # noqa: SIM118


def test_a_base_that_is_gone_names_the_option(runs: dict[str, Run], tmp_path: Path) -> None:
    """The weights are there: only their type is not known."""
    copy = tmp_path / "model"
    shutil.copytree(runs["full"].path / "checkpoints" / "task-2" / "model", copy)
    noted = json.loads((copy / "perdure_base.json").read_text())
    (copy / "perdure_base.json").write_text(json.dumps({**noted, "path": "/no/such/base"}))
    with pytest.raises(ModelError, match="the type of the base's weights: ") as error:
        export(copy, tmp_path / "out")
    assert "--dtype bfloat16" in str(error.value)
    assert (export(copy, tmp_path / "out", dtype="bfloat16") / "config.json").is_file()


def test_a_file_that_was_dequantised_is_told_as_such(tmp_path: Path) -> None:
    (tmp_path / "small.gguf").write_bytes(b"GGUF")
    assert stored_type(tmp_path / "small.gguf") == (
        "float32", "to which the base's file small.gguf was dequantised",
    )  # fmt: skip
