"""`perdure.learn` as a program calls it: silent, and with all that `perdure run` writes."""

from __future__ import annotations

import json
import logging
import warnings
from pathlib import Path

import pytest
from tiny_runs import write_recipe
from transformers.utils import logging as bars

import perdure
from perdure.models import load_base
from perdure.recipe.schema import LoraConfig, ModelConfig

pytestmark = pytest.mark.train


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_without_a_display_nothing_is_printed(
    tiny_model_dir: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tuning: str,
) -> None:
    path = write_recipe(tmp_path, tiny_model_dir, model__tuning=tuning)
    # Its middle is left out, of which a log line warns.
    recipe = perdure.load_recipe(path, ["train.max_steps=1", "model.max_prompt_length=8"])
    run = perdure.Run.create(tmp_path / "run", recipe)
    monkeypatch.setattr(bars, "_tqdm_active", True)
    capfd.readouterr()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        perdure.learn(recipe, run)
    assert capfd.readouterr() == ("", "")
    assert not warned
    assert bars.is_progress_bar_enabled()
    assert not logging.getLogger("perdure").handlers
    assert run.state == "finished"
    assert "<html" in (run.path / "report.html").read_text(encoding="utf-8")


def test_an_adapter_is_put_on_without_a_warning(tiny_model_dir: Path) -> None:
    model = ModelConfig(path=str(tiny_model_dir), tuning="lora", lora=LoraConfig(r=2))
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        loaded, _ = load_base(model)
    assert loaded.peft_config


@pytest.mark.parametrize("name", ["gere", "gere_official", "eaft"])
def test_the_parts_in_a_runs_log_are_its_loss(
    name: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Ten rows in steps of four, micro-batches of one: the last step of an epoch has two rows."""
    options = {} if name == "eaft" else {"max_tokens": 12}
    path = write_recipe(
        tmp_path, tiny_model_dir, method={"name": name, **options}, train__micro_batch_size=1,
        train__log_steps=3,
    )  # fmt: skip
    written = json.loads(path.read_text())
    for task in written["stream"]["tasks"]:
        task["max_train_rows"] = 10
    path.write_text(json.dumps(written))
    recipe = perdure.load_recipe(path)
    run = perdure.Run.create(tmp_path / "run", recipe)
    perdure.learn(recipe, run)
    lines = run.log_rows()
    assert len(lines) == 4  # two tasks of six steps
    for line in lines:
        weights = {k: v for k, v in line.items() if k.startswith("method/") and k[:-7] in line}
        assert weights
        parts = [weight * line[key[:-7]] for key, weight in weights.items()]
        assert line["task_loss"] + sum(parts) == pytest.approx(line["loss"], abs=6e-5)
