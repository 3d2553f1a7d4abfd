"""`run --check` of classes: what the body reads is what it then reads, and what is told before."""

from __future__ import annotations

import json
import logging
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from class_runs import CLASSES, save_decoder, save_encoder, weights, write_class_recipe

import perdure
from perdure.errors import RecipeError
from perdure.models.classifier import Classifier
from perdure.plan import Plan, plan
from perdure.prepare import prepare
from perdure.run import Run

pytestmark = pytest.mark.train


def planned(recipe: Path) -> Plan:
    ready = prepare(perdure.load_recipe(recipe))
    return plan(
        ready.recipe, ready.stream, ready.encoder, ready.model,
        micro_batch=ready.micro_batch, precision="fp32",
    )  # fmt: skip


def learned(recipe: Path, out: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The classifiers of a run; texts that reached their body are counted by a hook of our own."""
    made: list[Any] = []
    init = Classifier.__init__

    def spied(model: Any, *args: Any, **options: Any) -> None:
        init(model, *args, **options)
        model.hooked = 0

        def count(body: Any, args: Any, given: Any, output: Any) -> None:
            model.hooked += len(given["input_ids"])

        model.body.register_forward_hook(count, with_kwargs=True)
        made.append(model)

    monkeypatch.setattr(Classifier, "__init__", spied)
    run = Run.create(out, perdure.load_recipe(recipe))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        perdure.learn(run.recipe, run)
    finally:
        torch.set_num_threads(threads)
    return made


@pytest.mark.parametrize(
    ("body", "method", "passes", "heads"),
    [
        # 16 training and 8 test rows a task; 4 rows a step, 2 epochs: 8 steps.
        ("bert", {"name": "seq_star", "warmup_epochs": 1}, 16 + 48 + 24, 24),
        ("llama", {"name": "seq_star"}, 16 + 48 + 24, 24),
        ("bert", {"name": "seq_star", "warmup_epochs": 0}, 48 + 24, 24),
        ("bert", {"name": "seq_star", "warmup_epochs": 1, "prototype": "raw"}, 16 + 48 + 24, 0),
        ("bert", {"name": "sequential"}, 2 * 48 + 8 * (3 + 2 + 1), 0),
        ("bert", {"name": "joint"}, 2 * (16 + 32 + 48) + 8 * (3 + 2 + 1), 0),
        # From the second task on twice the steps, each of two new and two kept rows.
        ("bert", {"name": "replay", "mix": "half"}, 2 * (16 + 32 + 32) + 8 * (3 + 2 + 1), 0),
        # A quarter of a batch, one kept row, on top of each step from the second task on.
        ("bert", {"name": "replay"}, 2 * 48 + 2 * 8 + 8 * (3 + 2 + 1), 0),
        (
            "bert",
            {"name": "replay", "ratio": 0.5, "balance": "class", "choose": "herding"},
            2 * 48 + 2 * 8 * 2 + 3 * 16 + 8 * (3 + 2 + 1),
            0,
        ),
        # Kept rows have features, and so has what is herded.
        (
            "bert",
            [
                {"name": "seq_star", "warmup_epochs": 1},
                {"name": "replay", "balance": "class", "choose": "herding"},
            ],
            16 + 48 + 24,
            24,
        ),
        ("bert", {"name": "lwf"}, 2 * 48 + 2 * 2 * 16 + 8 * (3 + 2 + 1), 0),
        # Rows that its Fisher is estimated from: some of each task's, or all.
        ("bert", {"name": "ewc", "rows": 5}, 2 * 48 + 3 * 5 + 8 * (3 + 2 + 1), 0),
        ("bert", {"name": "ewc", "official": True}, 2 * 48 + 48 + 8 * (3 + 2 + 1), 0),
        # As many kept rows as new ones on top, and what the model says of those newly kept: all 8
        # of the first task, 4 of the second, and the 2 that three shares of 8 leave for the last.
        (
            "bert",
            {"name": "derpp", "buffer_size": 8},
            2 * 48 + 2 * 8 * 4 + (8 + 4 + 2) + 8 * (3 + 2 + 1),
            0,
        ),
        (
            "bert",  # 8 // 2, 8 // 4 and 8 // 6 rows of each of two classes
            {"name": "derpp", "buffer_size": 8, "balance": "class"},
            2 * 48 + 2 * 8 * 4 + (8 + 4 + 2) + 8 * (3 + 2 + 1),
            0,
        ),
        # The last task's model reads the kept rows of each step too.
        (
            "bert",
            {"name": "derpp", "target": "snapshot"},
            2 * 48 + 2 * 8 * (4 + 4) + 8 * (3 + 2 + 1),
            0,
        ),
        (
            "bert",
            {"name": "derpp", "target": "snapshot", "mix": "half"},
            2 * (16 + 32 + 32) + 2 * 16 * 2 + 8 * (3 + 2 + 1),
            0,
        ),
        # Each task's 4 validation rows at the end of the line, and at the one factor.
        (
            "bert",
            {"name": "rewind", "grid": [0.5], "tolerance": 100},
            2 * 48 + 3 * 2 * 4 + 8 * (3 + 2 + 1),
            0,
        ),
    ],
)
def test_the_body_reads_what_was_planned(
    body: str, method: Any, passes: int, heads: int, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    make = save_encoder if body == "bert" else save_decoder
    recipe = write_class_recipe(
        tmp_path, make(tmp_path / "m"), method=method, model__pooling="auto"
    )
    found = planned(recipe)
    assert found.body_passes == passes
    assert sum(task.head_steps or 0 for task in found.tasks) == heads
    made = learned(recipe, tmp_path / "run", monkeypatch)
    # joint looks at the base model once more, which reads nothing.
    assert sum(m.hooked for m in made) == sum(m.body_passes for m in made) == passes
    model = made[0]
    log = Run.open(tmp_path / "run").log_rows()
    steps = {(row["after"], row["phase"]): row["steps"] for row in log}
    assert sum(task.steps for task in found.tasks) == sum(steps.values())
    # What learns at any time: the whole body and six classes' weights, or those alone.
    own = sum(p.numel() for p in model.parameters())
    first = method[0] if isinstance(method, list) else method
    body_learns = first["name"] != "seq_star" or first.get("warmup_epochs") != 0
    assert found.parameters == own
    assert found.trainable == (own if body_learns else 6 * 32)


def test_where_tasks_are_known_the_snapshot_reads_new_rows_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = {"name": "derpp", "official": True}
    recipe = write_class_recipe(
        tmp_path, save_encoder(tmp_path / "m"), method=method, stream__scenario="task-incremental"
    )
    # Two new and two kept rows a step, and all four once more without a gradient.
    passes = 2 * (16 + 32 + 32) + 2 * 16 * (2 + 2) + 8 * (3 + 2 + 1)
    assert planned(recipe).body_passes == passes
    made = learned(recipe, tmp_path / "run", monkeypatch)
    assert sum(m.hooked for m in made) == passes


def test_copies_of_the_weights_are_planned(tiny_model_dir: Path, tmp_path: Path) -> None:
    from tiny_runs import write_recipe

    # Wide enough for copies to count in MiB; a plan with adapters reads no weights.
    wide = tmp_path / "wide"
    shutil.copytree(tiny_model_dir, wide)
    config = json.loads((wide / "config.json").read_text())
    wider = {"hidden_size": 512, "head_dim": 512 // config["num_attention_heads"]}
    (wide / "config.json").write_text(json.dumps(config | wider))

    def memory(method: Any) -> tuple[list[int], float]:
        path = write_recipe(
            tmp_path, wide, method=method, model__tuning="lora", model__lora={"r": 64}
        )
        found = planned(path)
        return [task.memory_mb or 0 for task in found.tasks], (found.trainable or 0) * 4 / 2**20

    bare, copy = memory({"name": "sequential"})
    assert copy > 2  # MiB
    for method, copies in [
        ({"name": "ema"}, 1),
        ({"name": "ema", "beta": "line"}, 1),
        ({"name": "ema", "beta": "paper"}, 2),
        ({"name": "lcia", "beta": "official"}, 2),
        ({"name": "lcia", "average": "never"}, 0),
        ({"name": "ewc"}, 2),
        ({"name": "rewind"}, 2),
        ({"name": "lwf"}, 1),
        ([{"name": "lwf"}, {"name": "kl", "reference": "previous"}, {"name": "ema"}], 2),
        ({"name": "kl"}, 0),  # the base is there without the adapter
    ]:
        own, _ = memory(method)
        several = isinstance(method, dict) and method["name"] == "lcia"  # adapters of old groups
        for number, (had, has) in enumerate(zip(bare, own, strict=True), start=1):
            assert abs(has - had - copy * (copies + number * several)) <= 1, method


def test_the_routers_of_experts_are_planned(tiny_model_dir: Path, tmp_path: Path) -> None:
    from tiny_runs import write_recipe

    sizes = {}
    for experts in (1, 2, 4):
        method = {"name": "moelora", "experts": experts}
        path = write_recipe(tmp_path, tiny_model_dir, method=method, model__tuning="lora")
        sizes[experts] = planned(path).trainable or 0
    run = Run.create(tmp_path / "run", perdure.load_recipe(path))
    perdure.learn(run.recipe, run)
    # One column of A a number that a layer reads; 3 layers of 4 matrices of attention that read 64,
    # 2 of the network that do, and one that reads its inner width.
    saved = weights(run.path, after=2)
    routers = sum(w.numel() for name, w in saved.items() if "router" in name)
    assert sizes[4] - sizes[1] == 2 * (sizes[2] - sizes[1]) == routers > 0
    assert sizes[4] == sum(w.numel() for w in saved.values())


@pytest.mark.parametrize(
    ("method", "passes"),
    [
        # Training and test rows under the untouched and the warmed-up body, and 16 to warm up.
        ({"name": "seq_star", "warmup_epochs": 1}, 16 + 2 * (48 + 24)),
        ({"name": "seq_star", "warmup_epochs": 0}, 48 + 24),
        ({"name": "sequential"}, 2 * 48 + 4 * (48 + 24)),
    ],
)
def test_the_probes_passes_are_planned(
    method: Any, passes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_class_recipe(
        tmp_path, save_encoder(tmp_path / "m"), method=method,
        scoring={"probes": ["prototype", "cosine_prototype"]},
    )  # fmt: skip
    assert planned(recipe).body_passes == passes
    made = learned(recipe, tmp_path / "run", monkeypatch)
    assert sum(m.hooked for m in made) == passes


@pytest.mark.parametrize(
    ("method", "most", "passes"),
    [
        # Beside training and test rows: 2 validation rows a class, and 5 texts of no class.
        ({"name": "seq_star", "warmup_epochs": 1}, None, 16 + 48 + 24 + 12 + 5),
        ({"name": "seq_star", "warmup_epochs": 1}, 3, 16 + 48 + 24 + 12 + 5),
        # Test rows 1, 2 and 3 times, for figures and scores at once.
        ({"name": "sequential"}, None, 96 + (8 + 4) * (1 + 2 + 3) + 3 * 5),
        ({"name": "sequential"}, 3, 96 + (8 + 4) * (1 + 2 + 3) + 3 * 5),
        # Each of three adapters reads each of them once.
        ({"name": "lora_sequence"}, None, 96 + 3 * (24 + 12 + 5)),
    ],
)
def test_passes_for_texts_of_no_class_are_planned(
    method: Any, most: int | None, passes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_class_recipe(
        tmp_path,
        save_encoder(tmp_path / "m"),
        method=method,
        scoring={"max_test_rows": most},
        model__tuning="lora" if method["name"] == "lora_sequence" else "full",
    )
    said = json.loads(recipe.read_text())
    said["stream"]["data"]["no_class"] = "none"
    recipe.write_text(json.dumps(said))
    for split, count in (("validation", 2), ("test", 3)):
        with (tmp_path / f"{split}.jsonl").open("a") as file:
            for i in range(count):
                row = {"text": f"what {split} {i}", "label": "none"}
                file.write(json.dumps(row) + "\n")
    assert planned(recipe).body_passes == passes
    made = learned(recipe, tmp_path / "run", monkeypatch)
    assert sum(m.hooked for m in made) == passes


@pytest.mark.parametrize(
    ("probes", "passes"),
    [
        # The warm-up, steps that read their rows anew, and each scoring of learned tasks.
        ([], 16 + 96 + 8 * (1 + 2 + 3)),
        # Probes read all rows with dropout, in both states.
        (["prototype"], 16 + 96 + 8 * (1 + 2 + 3) + 2 * (48 + 24)),
    ],
)
def test_a_frozen_body_with_dropout_reads_texts_again(
    probes: Any, passes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method = {"name": "seq_star", "warmup_epochs": 1, "frozen_eval_mode": False}
    recipe = write_class_recipe(
        tmp_path, save_encoder(tmp_path / "m"), method=method, scoring={"probes": probes}
    )
    assert planned(recipe).body_passes == passes
    made = learned(recipe, tmp_path / "run", monkeypatch)
    assert sum(m.hooked for m in made) == passes


@pytest.mark.parametrize(
    ("options", "passes"),
    [
        # Each training row once, by its task's adapter, and each test row by all three.
        ({"official": True}, 48 + 3 * 24),
        # Those of later tasks also by the adapters of the earlier ones.
        ({"feature_grad": False, "compete": "seen"}, 48 + 16 + 32 + 3 * 24),
        ({}, 96 + 3 * 24),
    ],
)
def test_a_decoders_adapters_that_do_not_learn(
    options: Any, passes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_class_recipe(
        tmp_path, save_decoder(tmp_path / "m"), model__tuning="lora", model__pooling="auto",
        method={"name": "lora_sequence", **options},
    )  # fmt: skip
    assert planned(recipe).body_passes == passes
    made = learned(recipe, tmp_path / "run", monkeypatch)
    assert sum(m.hooked for m in made) == passes


def test_the_plan_is_read_without_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import PreTrainedModel

    from perdure.commands import learn as command

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("weights are loaded")

    recipe = write_class_recipe(tmp_path, save_encoder(tmp_path / "m"))
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", refuse)
    monkeypatch.chdir(tmp_path)
    command.run(recipe, [], None, check=True, as_json=True)
    found = json.loads(capsys.readouterr().out)
    assert found["body_passes"] == 16 + 48 + 24
    longest = [task["longest"] for task in found["tasks"]]
    tokens = found["tasks"][0]["train_tokens"]
    assert all(8 < n < 60 for n in longest)
    assert 16 * 4 < tokens < 16 * longest[0]
    assert found["seconds"] > 0
    assert all(task["memory_mb"] >= 600 for task in found["tasks"])
    assert found["scenario"] == "class-incremental"
    assert [name for task in found["tasks"] for name in task["classes"]] == list(CLASSES)
    command.run(recipe, [], None, check=True, as_json=False)
    shown = capsys.readouterr().out
    assert "6 classes, class-incremental: all classes learned so far compete\n" in shown
    assert f"\n  task 2: {CLASSES[2]}, {CLASSES[3]}\n" in shown
    assert "the body reads 88 texts; 24 of 28 steps move heads alone" in shown
    assert "no weight was loaded, nothing was written" in shown


def test_rows_that_are_cut_are_counted_and_those_that_do_not_fit_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save_decoder(tmp_path / "m")
    recipe = write_class_recipe(tmp_path, folder, model__pooling="auto")
    ready = prepare(perdure.load_recipe(recipe))
    assert ready.encoder is not None
    widths = sorted(ready.encoder.lengths(("task 1", "train")))
    limit = widths[len(widths) // 2]
    over = sum(width > limit for width in widths)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        prepare(perdure.load_recipe(recipe, [f"train.max_length={limit}"]))
    assert (
        f"task 1: {over} of 16 train rows have more than {limit} tokens: the end of the text "
        "is left out"
    ) in caplog.text
    with pytest.raises(RecipeError, match=r"train\.jsonl:\d+: no word fits into 5 tokens") as told:
        prepare(perdure.load_recipe(recipe, ["train.max_length=5"]))
    assert str(told.value).count("train.jsonl") == 1  # all of a kind in one line


def test_each_text_is_tokenized_once_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import PreTrainedTokenizerBase as Tokenizer

    asked: Counter[str] = Counter()
    call = Tokenizer.__call__

    def counting(tokenizer: Any, text: Any, *args: Any, **options: Any) -> Any:
        asked.update([text] if isinstance(text, str) else text)
        return call(tokenizer, text, *args, **options)

    recipe = write_class_recipe(tmp_path, save_decoder(tmp_path / "m"), model__pooling="auto")
    monkeypatch.setattr(Tokenizer, "__call__", counting)
    learned(recipe, tmp_path / "run", monkeypatch)
    rows = [row for task in prepare(perdure.load_recipe(recipe)).stream for rows in
            (task.train, task.validation, task.test) for row in rows]  # fmt: skip
    framed = [f"Input sentence: {row['text']}\n The label:" for row in rows]
    assert len(set(framed)) == 48 + 12 + 24
    # Once by the run, and once by the preparation above.
    assert {asked[text] for text in framed} == {2}
    names = [f"Input sentence: \n The label: {name}" for name in CLASSES[:2]]
    assert [asked[name] for name in names] == [1, 1]
