"""A recipe is prepared once: each row is tokenized once a run, and every run warns anew."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import LABELS, write_recipe

from perdure import Run, learn, load_recipe
from perdure.errors import UsageError
from perdure.models.chat import Encoder
from perdure.prepare import prepare


@pytest.mark.train
@pytest.mark.parametrize("method", ["sequential", "joint", "ewc", "replay"])
def test_each_row_is_tokenized_once_a_run(
    method: str, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts: Counter[str] = Counter()
    whole = Encoder._whole_prompt

    def counted(self: Encoder, row: Any) -> list[int]:
        prompts[row["prompt"][-1]["content"]] += 1
        return whole(self, row)

    monkeypatch.setattr(Encoder, "_whole_prompt", counted)
    recipe = load_recipe(
        write_recipe(tmp_path, tiny_model_dir, method=method, train__max_steps=2, gauges__every=2)
    )
    learn(recipe, Run.create(tmp_path / "run", recipe))
    assert len(prompts) == 2 * (24 + 8 + 12)
    assert set(prompts.values()) == {1}


@pytest.mark.train
def test_rows_are_kept_as_a_dataset(tiny_model_dir: Path, tmp_path: Path) -> None:
    from datasets import Dataset

    ready = prepare(load_recipe(write_recipe(tmp_path, tiny_model_dir)))
    assert ready.encoder is not None
    task = ready.stream.tasks[0]
    kept = ready.encoder.dataset((task.name, "train"))
    assert isinstance(kept, Dataset)
    assert kept.column_names == ["input_ids", "labels"]
    fresh = Encoder(ready.encoder.tokenizer)
    for number, row in enumerate(task.train):
        assert ready.encoder.encode(row) == fresh.encode(row) == kept[number]
        assert ready.encoder.prompt_ids(row) == fresh.prompt_ids(row)
    assert ready.lengths(task.name, "test") == [
        len(fresh.encode(r)["input_ids"]) for r in task.test
    ]
    assert {t.name for t in ready.stream} == set(LABELS)
    assert (ready.micro_batch, ready.accumulation, ready.precision) == (4, 1, "fp32")


@pytest.mark.train
def test_two_runs_in_one_process_both_warn(
    tiny_model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    recipe = load_recipe(write_recipe(tmp_path, tiny_model_dir, model__max_prompt_length=4))
    for _ in range(2):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            prepare(recipe)
        told = [text for text in caplog.messages if "its middle is left out" in text]
        assert len(told) == 6  # two tasks of three splits


@pytest.mark.process
def test_listing_and_loading_a_recipe_import_no_torch(tiny_model_dir: Path, tmp_path: Path) -> None:
    path = write_recipe(tmp_path, tiny_model_dir, method={"name": "sequential"})
    program = (
        "import sys; from perdure.prepare import load_recipe, stream_of\n"
        f"stream_of(load_recipe({str(path)!r}))\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout.strip()) == (0, "False"), done.stderr


@pytest.mark.train
def test_rules_between_options_are_told_alike(tiny_model_dir: Path, tmp_path: Path) -> None:
    from perdure.errors import RecipeError
    from perdure.methods import registry

    options = {"weight_max": 3.0}
    with pytest.raises(RecipeError) as in_recipe:
        load_recipe(write_recipe(tmp_path, tiny_model_dir, method={"name": "gere", **options}))
    with pytest.raises(UsageError) as in_python:
        registry.load_config("gere", options)
    words = "method.weight_max: has no effect without weight: dynamic"
    assert f"{tmp_path / 'recipe.yaml'}:1: {words}" in str(in_recipe.value)
    assert str(in_python.value).startswith(words)
