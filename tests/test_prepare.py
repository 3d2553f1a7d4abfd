"""A recipe is prepared once: each row is tokenized once a run, and every run warns anew."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import LABELS, write_recipe

from perdure import Run, learn, load_recipe
from perdure.errors import RecipeError, UsageError
from perdure.models.chat import Encoder
from perdure.prepare import prepare, stream_of


class Counted:
    """How often each text went through a tokenizer, and each row's through a chat template."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from transformers import PreTrainedTokenizerBase as Tokenizer

        self.encoded: Counter[str] = Counter()
        self.rendered: Counter[str] = Counter()
        for name in ("__call__", "encode", "tokenize", "apply_chat_template"):
            monkeypatch.setattr(Tokenizer, name, self._counting(getattr(Tokenizer, name), name))

    def _counting(self, call: Any, name: str) -> Any:
        def counting(tokenizer: Any, given: Any, *args: Any, **options: Any) -> Any:
            if name == "apply_chat_template":
                self.rendered[given[-1 - (given[-1]["role"] == "assistant")]["content"]] += 1
            else:
                for text in [given] if isinstance(given, str) else given:
                    self.encoded[text] += 1
            return call(tokenizer, given, *args, **options)

        return counting

    def holding(self, text: str) -> int:
        """How many texts that were encoded hold `text`, each time that they were."""
        return sum(count for whole, count in self.encoded.items() if text in whole)


@pytest.mark.train
@pytest.mark.parametrize(
    ("method", "metrics", "longest"),
    [
        ("sequential", ("label_likelihood", "perplexity"), None),
        ("joint", ("perplexity", "exact_match"), 30),
        ("ewc", ("exact_match", "label_likelihood"), None),
        ("replay", ("label_likelihood", "perplexity"), 30),
        ("general_replay", ("label_likelihood", "perplexity"), None),
    ],
)
def test_each_text_is_encoded_once_a_run(
    method: str,
    metrics: tuple[str, str],
    longest: int | None,
    tiny_model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Rows, labels and general texts; training, gauges, methods, and every cell of the matrix."""
    path = write_recipe(
        tmp_path, tiny_model_dir, method=method, train__max_steps=2, gauges__every=2,
        model__max_prompt_length=longest,
    )  # fmt: skip
    written = json.loads(path.read_text())
    for task, metric in zip(written["stream"]["tasks"], metrics, strict=True):
        task["metric"] = metric
    path.write_text(json.dumps(written))
    recipe = load_recipe(path)
    stream = stream_of(recipe)
    rows = [row for task in stream for rows in (task.train, task.validation, task.test)
            for row in rows]  # fmt: skip
    counted = Counted(monkeypatch)
    run = Run.create(tmp_path / "run", recipe)
    learn(recipe, run)
    assert len(run.scores()) == 3 * (2 + 1)
    asked = [row["prompt"][-1]["content"] for row in rows]
    assert len(set(asked)) == 2 * (24 + 8 + 12)
    assert {counted.rendered[text] for text in asked} == {1}
    assert {counted.holding(text + "<") for text in asked} == {1}
    general = [*stream.general.replay, *stream.general.held_out]
    used = [text for text in general if counted.holding(text)]
    assert len(used) == (10 if method == "general_replay" else 4)
    # Not one text twice: no label, no answer, and nothing of the template either.
    del counted.encoded["a"]  # by which it is found what a tokenizer puts around a text
    assert {text: n for text, n in counted.encoded.items() if n > 1} == {}


@pytest.mark.train
def test_a_text_that_is_there_twice_is_encoded_once(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_recipe(tmp_path, tiny_model_dir, model__max_prompt_length=4)
    file = tmp_path / "colour-train.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([lines[0], *lines]))
    counted = Counted(monkeypatch)
    ready = prepare(load_recipe(path))
    assert ready.encoder is not None
    task = ready.stream.tasks[0]
    assert counted.rendered[task.train[0]["prompt"][-1]["content"]] == 1
    kept = ready.encoder.kept.dataset((task.name, "train"))
    assert len(kept) == len(task.train) == 25
    assert (
        kept[0]
        == kept[1]
        == Encoder(ready.encoder.tokenizer, max_prompt_length=4).encode(task.train[0])
    )


@pytest.mark.train
def test_training_reads_the_rows_that_were_prepared(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A trainer's rows are a Dataset of the prepared ones, in the order of the method's rows."""
    from datasets import Dataset

    from perdure.learners.generation import GenerationLearner

    seen: list[Any] = []
    trainer = GenerationLearner.trainer

    def looked_at(self: Any, *args: Any) -> Any:
        made = trainer(self, *args)
        seen.append((self, made.train_dataset))
        return made

    monkeypatch.setattr(GenerationLearner, "trainer", looked_at)
    recipe = load_recipe(
        write_recipe(tmp_path, tiny_model_dir, method="joint", train__max_steps=2, gauges__every=0)
    )
    ready = prepare(recipe)
    learn(recipe, Run.create(tmp_path / "run", recipe), prepared=ready)
    assert ready.encoder is not None
    fresh, first = Encoder(ready.encoder.tokenizer), ready.stream.tasks[0]
    for number, (learner, encoded) in enumerate(seen, 1):
        assert isinstance(encoded, Dataset)
        assert learner.encoder is ready.encoder
        tasks = ready.stream.tasks[:number]
        wanted = [fresh.encode(row) for task in tasks for row in task.train]
        assert sorted(map(str, encoded)) == sorted(map(str, wanted))
    assert list(seen[0][1]) == [fresh.encode(row) for row in first.train]


@pytest.mark.train
def test_what_was_prepared_is_what_the_run_takes(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch split and lm-eval's tasks are not worked out a second time."""
    from dataclasses import replace

    from perdure.learners.generation import GenerationLearner

    recipe = load_recipe(
        write_recipe(tmp_path, tiny_model_dir, train__max_steps=1, gauges__every=0)
    )
    seen: list[Any] = []

    class Looked(Exception):
        pass

    def general(self: Any) -> Any:
        seen.append((self.micro_batch, self.accumulation, self.lm_eval_tasks))
        raise Looked

    monkeypatch.setattr(GenerationLearner, "general", general)
    ready = replace(prepare(recipe), micro_batch=2, accumulation=2, lm_eval_tasks={"a": 1})
    run = Run.create(tmp_path / "run", recipe)
    with pytest.raises(Looked):
        learn(recipe, run, prepared=ready)
    assert seen == [(2, 2, {"a": 1})]


@pytest.mark.train
def test_rows_are_kept_as_a_dataset(tiny_model_dir: Path, tmp_path: Path) -> None:
    from datasets import Dataset

    ready = prepare(load_recipe(write_recipe(tmp_path, tiny_model_dir)))
    assert ready.encoder is not None
    task = ready.stream.tasks[0]
    kept = ready.encoder.kept.dataset((task.name, "train"))
    assert isinstance(kept, Dataset)
    assert kept.column_names == ["input_ids", "labels"]
    fresh = Encoder(ready.encoder.tokenizer)
    for number, row in enumerate(task.train):
        assert ready.encoder.encode(row) == fresh.encode(row) == kept[number]
        assert ready.encoder.prompt_ids(row) == fresh.prompt_ids(row)
    assert ready.encoder.lengths((task.name, "test")) == [
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


@pytest.mark.train
def test_what_was_prepared_serves_each_run_anew(tiny_model_dir: Path, tmp_path: Path) -> None:
    """Methods keep what they have seen: a second run must not replay the first one's rows."""
    path = write_recipe(tmp_path, tiny_model_dir, method="replay", general=None, gauges__every=0)
    recipe = load_recipe(path)
    ready = prepare(recipe)
    files = []
    for name, given in (("one", ready), ("two", ready), ("fresh", None)):
        run = Run.create(tmp_path / name, recipe)
        learn(recipe, run, prepared=given)
        files.append((run.path / "checkpoints/task-2/model/model.safetensors").read_bytes())
    assert files[0] == files[1] == files[2]
    other = load_recipe(path, ["method=sequential"])
    with pytest.raises(UsageError, match="learn: prepared is of another recipe"):
        learn(other, Run.create(tmp_path / "other", other), prepared=ready)


LAYERS = [
    ({"name": "freeze", "layers": 3}, "3 leaves none of the model's 3 layers to train"),
    ({"name": "freeze"}, "4 leaves none of the model's 3 layers to train"),
    ({"name": "gere", "layers": [0, 3]}, "the model has no layer 3"),
    ({"name": "gere_distance", "layers": [-4]}, "the model has no layer -4"),
    ({"name": "gere_official", "layers": [0, -3]}, "a layer is named twice"),
]


@pytest.mark.unit
@pytest.mark.parametrize("listed", [False, True])
@pytest.mark.parametrize(("method", "what"), LAYERS)
def test_layers_that_the_model_has_not_are_told_with_their_line(
    method: dict[str, Any], what: str, listed: bool, tiny_model_dir: Path, tmp_path: Path
) -> None:
    path = write_recipe(tmp_path, tiny_model_dir, method=[method] if listed else method)
    indented = json.dumps(json.loads(path.read_text()), indent=1)
    path.write_text(indented)
    lines = indented.splitlines()
    option = [i for i, line in enumerate(lines, 1) if '"layers"' in line]
    written = [i for i, line in enumerate(lines, 1) if '"method"' in line]
    if listed:
        written = [written[0] + 1]
    with pytest.raises(RecipeError) as error:
        prepare(load_recipe(path))
    (mistake,) = error.value.mistakes
    (line,) = option or written
    assert mistake.what == f"{path}:{line}: method.{'0.' if listed else ''}layers: {what}"
    assert mistake.remedy
    assert error.value.remedy == ("nothing was loaded or written",)


@pytest.mark.unit
def test_all_methods_layers_are_told_at_once_and_those_it_has_are_taken(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    both = [{"name": "gere", "layers": [5]}, {"name": "freeze", "layers": 2}, {"name": "lwf"}]
    path = write_recipe(tmp_path, tiny_model_dir, method=both)
    with pytest.raises(RecipeError) as error:
        prepare(load_recipe(path, ["method.1.layers=7"]))
    assert [m.what for m in error.value.mistakes] == [
        f"{path}:1: method.0.layers: the model has no layer 5",
        "command line: method.1.layers: 7 leaves none of the model's 3 layers to train",
    ]
    prepare(load_recipe(path, ["method.0.layers=[0, 2, -1, -2]"]))
