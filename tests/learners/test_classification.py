"""The learner of classes: both answers, features once, heads alone, resume, what a run stores."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from class_runs import CLASSES, save_encoder, weights, write_class_recipe
from safetensors.torch import load_file, save_file
from tiny_runs import fork_server
from torch import Tensor

import perdure
from perdure.errors import PerdureError, RunError, TrainingError
from perdure.learners import build, heads_only
from perdure.learners.classification import ClassificationLearner
from perdure.learners.listener import Folders
from perdure.learners.training import PhaseTrainer
from perdure.methods.seq_star import frozen
from perdure.models.classifier import Classifier
from perdure.models.classifier_files import load_classifier_weights
from perdure.models.features import Features
from perdure.prepare import prepare
from perdure.run import Run
from perdure.seals import WORTH_A_LINK, seal, share

pytestmark = pytest.mark.train


@pytest.fixture(scope="session")
def encoder_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("tiny-bert"))


@pytest.fixture(scope="session")
def seq_star(tmp_path_factory: pytest.TempPathFactory, encoder_dir: Path) -> Path:
    """A finished run of three tasks of two classes; read only."""
    folder = tmp_path_factory.mktemp("seq-star")
    return learn(folder / "run", write_class_recipe(folder, encoder_dir))


def learn(out: Path, recipe: Path, die: tuple[int, int] | None = None) -> Path:
    """Begin or go on; `die`: by SIGKILL after that task's step."""
    run = Run.open(out) if out.exists() else Run.create(out, perdure.load_recipe(recipe))
    log = run.log

    def log_and_die(line: Any) -> None:
        log(line)
        if (line["after"], line["step"]) == die and line["phase"] == "main":
            os.kill(os.getpid(), signal.SIGKILL)

    run.log = log_and_die  # type: ignore[method-assign]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        perdure.learn(run.recipe, run)
    finally:
        torch.set_num_threads(threads)
    return out


def learn_and_die(out: Path, recipe: Path, die: tuple[int, int]) -> int | None:
    process = fork_server().Process(target=learn, args=(out, recipe, die))
    process.start()
    process.join(250)
    return process.exitcode


def learner_of(folder: Path, recipe: Path) -> ClassificationLearner:
    ready = prepare(perdure.load_recipe(recipe))
    made = build(
        ready.recipe, ready.stream, methods=ready.methods, precision="fp32",
        folders=Folders.below(folder),
    )  # fmt: skip
    assert isinstance(made, ClassificationLearner)
    return made


# --- scores


def test_both_answers_come_from_the_same_logits(seq_star: Path) -> None:
    run = Run.open(seq_star)
    lines = run.scores()
    assert [(s["after"], s["task"]) for s in lines] == [
        (i, f"task {j}") for i in (1, 2, 3) for j in range(1, i + 1)
    ]
    for line in lines:
        items = run.items(line["after"], line["task"])
        own = CLASSES[2 * int(line["task"][-1]) - 2 :][:2]
        assert len(items) == 8
        assert {item["answer"] for item in items} == set(own)
        right = [item["prediction"] == item["answer"] for item in items]
        assert [item["score"] for item in items] == right
        assert line["score"] == sum(right) / 8
        assert set(line["measures"]) == {"accuracy", "accuracy_within_task"}
        assert line["measures"]["accuracy_within_task"] >= line["score"]
    # After one task there is nothing else to choose: both answers are the same.
    first = lines[0]["measures"]
    assert first["accuracy"] == first["accuracy_within_task"]


def test_scores_are_those_of_a_plain_loop(seq_star: Path, tmp_path: Path) -> None:
    """Load the saved tensors by hand, read each row alone, and count."""
    learner = learner_of(tmp_path, seq_star.parent / "recipe.yaml")
    learner.restore(seq_star / "checkpoints/task-3", 3)
    model: Any = learner.model.eval()
    run, right, within = Run.open(seq_star), 0, 0
    for number, task in enumerate(learner.stream):
        for row in task.test:
            ids = torch.tensor([learner.tokenizer(row["text"])["input_ids"]])
            with torch.no_grad():
                states = model.body(input_ids=ids).last_hidden_state
                feature = torch.nn.functional.normalize(states.mean(1), dim=-1)
                heads = [torch.nn.functional.normalize(p.weight, dim=-1) for p in model.heads.parts]
                logits = (feature @ torch.cat(heads).T)[0]
            right += CLASSES[int(logits.argmax())] == row["label"]
            own = logits[2 * number : 2 * number + 2]
            within += CLASSES[2 * number + int(own.argmax())] == row["label"]
    last = [s["measures"] for s in run.scores() if s["after"] == 3]
    assert sum(m["accuracy"] for m in last) * 8 == right
    assert sum(m["accuracy_within_task"] for m in last) * 8 == within


def test_task_incremental_swaps_the_two(encoder_dir: Path, tmp_path: Path) -> None:
    recipe = write_class_recipe(tmp_path, encoder_dir, stream__scenario="task-incremental")
    run = Run.open(learn(tmp_path / "run", recipe))
    for line in run.scores():
        assert set(line["measures"]) == {"accuracy", "accuracy_among_all"}
        assert line["measures"]["accuracy_among_all"] <= line["score"]
        for item in run.items(line["after"], line["task"]):
            own = CLASSES[2 * int(line["task"][-1]) - 2 :][:2]
            assert item["prediction"] in own


def test_a_class_that_comes_again_is_learned_beside_those_of_its_new_task(
    encoder_dir: Path, tmp_path: Path
) -> None:
    """As it is scored: among the classes of the task at hand, not those of its first one."""
    data = {split: f"{split}.jsonl" for split in ("train", "validation", "test")}
    tasks = [["red", "blue"], ["cold", "red"], ["warm", "fast", "slow"]]
    recipe = write_class_recipe(
        tmp_path, encoder_dir, stream__scenario="task-incremental",
        stream__data={**data, "tasks": tasks, "repeat": True},
    )  # fmt: skip
    learner = learner_of(tmp_path, recipe)
    for index in range(3):
        learner.begin_task(index)
    model: Any = learner.model
    names = list(learner.stream.classes)
    assert names == ["red", "blue", "cold", "warm", "fast", "slow"]
    rows = zip(names, model.rivals, strict=True)
    found = {name: {names[c] for c in row.nonzero()[:, 0]} for name, row in rows}
    assert found == {
        "red": {"cold", "red"}, "blue": {"red", "blue"}, "cold": {"cold", "red"},
        **{name: set(tasks[2]) for name in tasks[2]},
    }  # fmt: skip
    features, labels = torch.randn(4, 32), torch.tensor([0, 2, 2, 0])
    out = model(features=features, labels=labels)
    wanted = torch.nn.functional.cross_entropy(out.logits[:, [0, 2]], torch.tensor([0, 1, 1, 0]))
    torch.testing.assert_close(out.loss, wanted)
    assert learner.layout(1).seen == ((0, 1), (0, 2))


def test_a_matrix_without_a_base_row_has_its_figures(seq_star: Path) -> None:
    found = Run.open(seq_star).matrix().summary()
    assert found["forgetting"] is not None
    assert found["backward_transfer"] is not None
    assert found["forward_transfer"] is None


# --- what is trained


def test_the_states_of_seq_star(seq_star: Path) -> None:
    """Specification, 2.4: the body moves in the warm-up alone, each head in its own task alone."""
    one, two, three = (weights(seq_star, after) for after in (1, 2, 3))
    body = [name for name in one if name.startswith("body.")]
    assert len(body) > 20
    for name in body:
        assert torch.equal(one[name], two[name])
        assert torch.equal(one[name], three[name])
    assert torch.equal(one["heads.parts.0.weight"], three["heads.parts.0.weight"])
    assert torch.equal(two["heads.parts.1.weight"], three["heads.parts.1.weight"])
    base = load_file(Path(Run.open(seq_star).recipe.model.path) / "model.safetensors")
    moved = [not torch.equal(base[n.removeprefix("body.")], one[n]) for n in body]
    assert sum(moved) > 20  # by the warm-up
    phases = [(r["after"], r["phase"]) for r in Run.open(seq_star).log_rows()]
    assert list(dict.fromkeys(phases)) == [
        (1, "warm-up"), (1, "main"), (2, "main"), (3, "main"),
    ]  # fmt: skip


def test_patterns_of_what_stays() -> None:
    import re

    names = ["body.encoder.layer.0.x", "heads.parts.0.weight", "heads.parts.1.weight",
             "heads.parts.10.weight", "heads.reserve.weight"]  # fmt: skip
    for task, body, old, stays in (
        (0, True, True, names[:1]),
        (1, True, True, names[:2]),
        (1, False, True, names[1:2]),
        (2, False, True, names[1:3]),
        (1, True, False, names[:1]),
        (1, False, False, []),
    ):
        pattern = frozen(task, body, old)
        assert [n for n in names if pattern and re.search(pattern, n)] == stays


def test_all_switches_off_is_sequential_to_the_bit(encoder_dir: Path, tmp_path: Path) -> None:
    off = {"name": "seq_star", "freeze_body": False, "freeze_old_heads": False}
    found = [
        weights(
            learn(
                tmp_path / name / "run", write_class_recipe(tmp_path / name, encoder_dir, method=m)
            )
        )
        for name, m in (("off", off), ("plain", {"name": "sequential"}))
    ]
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][n], found[1][n]) for n in found[0])


def test_heads_have_their_own_rate_and_decay(encoder_dir: Path, tmp_path: Path) -> None:
    recipe = write_class_recipe(tmp_path, encoder_dir, train__weight_decay=0.5)
    learner = learner_of(tmp_path / "run", recipe)
    learner.begin_task(0)
    trainer = PhaseTrainer(
        model=learner.model, args=perdure_arguments(learner, tmp_path), train_dataset=[]
    )
    trainer.rates = learner.rates(learner.model)
    groups = trainer.create_optimizer().param_groups
    names = {p: n for n, p in learner.model.named_parameters()}
    of = {names[p]: g for g in groups for p in g["params"]}
    assert of["heads.parts.0.weight"]["lr"] == 1e-2
    assert of["heads.parts.0.weight"]["weight_decay"] == 1e-2
    body = of["body.encoder.layer.0.attention.self.query.weight"]
    assert (body["lr"], body["weight_decay"]) == (1e-3, 0.5)
    assert of["body.encoder.layer.0.attention.self.query.bias"]["weight_decay"] == 0


def perdure_arguments(learner: ClassificationLearner, folder: Path) -> Any:
    from perdure.learners.training import arguments

    return arguments(learner.recipe, folder, steps=1, micro_batch=4, accumulation=1, bf16=False)


# --- features and the lean loop


class Counted:
    """Counts rows that a body reads, by a hook of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows: list[tuple[bool, int]] = []
        made = Classifier.__init__

        def init(model: Any, *args: Any, **kwargs: Any) -> None:
            made(model, *args, **kwargs)
            model.body.register_forward_hook(
                lambda body, args, kwargs, out: self.rows.append(
                    (torch.is_grad_enabled(), len(kwargs["input_ids"]))
                ),
                with_kwargs=True,
            )

        monkeypatch.setattr(Classifier, "__init__", init)

    def passes(self, training: bool) -> int:
        return sum(count for learns, count in self.rows if learns == training)


def test_each_text_passes_a_frozen_body_once(
    encoder_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch)
    learn(tmp_path / "run", write_class_recipe(tmp_path, encoder_dir))
    # 48 training and 24 test rows; the warm-up reads the first task's 16 rows once.
    assert counted.passes(training=False) == 48 + 24
    assert counted.passes(training=True) == 16


def trained(folder: Path, recipe: Path, monkeypatch: pytest.MonkeyPatch, lean: bool) -> Any:
    with monkeypatch.context() as patch:
        if not lean:
            patch.delattr(heads_only.HeadsTrainer, "_run_epoch")
            patch.delattr(heads_only.HeadsTrainer, "training_step")
            patch.delattr(heads_only.HeadsTrainer, "compute_loss")
        return weights(learn(folder, recipe)), Run.open(folder).log_rows()


@pytest.mark.parametrize(
    "method",
    [
        {"name": "seq_star", "warmup_epochs": 0},
        [{"name": "seq_star", "warmup_epochs": 0}, {"name": "replay", "ratio": 0.5}],
        [{"name": "seq_star", "warmup_epochs": 0}, {"name": "ewc", "lam": 10, "rows": 4}],
        *(
            [{"name": "seq_star", "warmup_epochs": 0}, beside]
            for beside in (
                {"name": "lwf"},
                {"name": "eaft"},
                {"name": "derpp", "buffer_size": 6},
                {"name": "derpp", "buffer_size": 6, "mix": "half"},
                {"name": "replay", "buffer_size": 6, "mix": "half"},
                {"name": "ema", "decay": 0.5},
                {"name": "rewind", "grid": [0.5], "tolerance": 100},
            )
        ),
    ],
    ids=[
        "alone", "replay", "ewc", "lwf", "eaft", "derpp", "half derpp", "half replay", "ema",
        "rewind",
    ],
)  # fmt: skip
def test_the_lean_loop_gives_what_the_trainer_gives(
    encoder_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: Any
) -> None:
    recipe = write_class_recipe(
        tmp_path, encoder_dir, method=method, train__micro_batch_size=2,
        train__schedule="linear", train__warmup=0.25,
    )  # fmt: skip
    lean, lean_log = trained(tmp_path / "lean", recipe, monkeypatch, True)
    usual, usual_log = trained(tmp_path / "usual", recipe, monkeypatch, False)
    assert lean.keys() == usual.keys()
    for name in lean:
        torch.testing.assert_close(lean[name], usual[name], atol=1e-6, rtol=0)
    for a, b in zip(lean_log, usual_log, strict=True):
        for key in ("step", "loss", "learning_rate", "gradient_norm", "method/replay"):
            assert a.get(key) == pytest.approx(b.get(key), abs=1e-5)


def test_with_and_without_features_the_predictions_are_equal(
    encoder_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = write_class_recipe(tmp_path, encoder_dir)
    runs = [Run.open(learn(tmp_path / "with", recipe))]
    monkeypatch.setattr(ClassificationLearner, "_look_inside", lambda self: True)
    runs.append(Run.open(learn(tmp_path / "without", recipe)))
    assert not (runs[1].path / "cache/features").exists()
    for after, task in ((3, "task 1"), (3, "task 2"), (3, "task 3"), (2, "task 2")):
        ours, theirs = ([i["prediction"] for i in run.items(after, task)] for run in runs)
        assert ours == theirs


def test_features_are_kept_and_computed_again_when_damaged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asked: list[list[str]] = []

    def compute(texts: Any) -> Tensor:
        asked.append(list(texts))
        return torch.tensor([[float(len(text)), 1.0] for text in texts])

    one = Features(tmp_path, compute)
    one.add(["a", "bb", "a"])
    one.add(["bb", "ccc"])
    assert asked == [["a", "bb"], ["ccc"]]
    assert one.of(["ccc", "a"]).tolist() == [[3.0, 1.0], [1.0, 1.0]]
    assert all(isinstance(block, np.memmap) for block in one._blocks.values())
    assert one.has("bb")
    assert not one.has("d")
    again = Features(tmp_path, compute)
    again.add(["a", "bb", "a"])
    assert len(asked) == 2
    assert again.of(["bb"]).tolist() == [[2.0, 1.0]]
    file = min(tmp_path.glob("*.npy"))
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    third = Features(tmp_path, compute)
    third.add(["a", "bb"])
    third.add(["ccc"])
    assert len(asked) == 3
    assert "damaged: its features are computed again" in caplog.text
    assert third.of(["a", "ccc"]).tolist() == [[1.0, 1.0], [3.0, 1.0]]


@pytest.mark.parametrize("at", ["np.save", "write_sealed", "write_atomic", "os.replace"])
def test_killed_while_features_are_written_they_are_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Whichever file is the last one that was written."""
    asked: list[str] = []

    def compute(texts: Any) -> Tensor:
        asked.extend(texts)
        return torch.tensor([[float(len(text))] for text in texts])

    Features(tmp_path, compute).add(["a"])

    def killed(*args: Any, **_: Any) -> None:
        if at == "np.save":
            args[0].write(b"half of i")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(f"perdure.models.features.{at}", killed)
        with pytest.raises(KeyboardInterrupt):
            Features(tmp_path, compute).add(["a", "bb", "ccc"])
    assert asked == ["a", "bb", "ccc"]
    again = Features(tmp_path, compute)
    assert again.has("a")
    again.add(["a", "bb", "ccc"])
    assert asked == ["a", "bb", "ccc", "bb", "ccc"]
    assert again.of(["ccc", "bb", "a"]).tolist() == [[3.0], [2.0], [1.0]]
    whole = Features(tmp_path, compute)
    whole.add(["bb", "ccc"])
    assert len(asked) == 5


# --- saving


def test_a_body_that_stays_is_stored_once(seq_star: Path) -> None:
    folders = [seq_star / f"checkpoints/task-{k}/model" for k in (1, 2, 3)]
    assert all((f / "heads.safetensors").exists() for f in folders)
    told = json.loads((folders[1] / "classes.json").read_text("utf-8"))
    assert told["classes"] == list(CLASSES[:4])
    assert told["tasks"] == [0, 0, 1, 1]
    bodies = [f / "body.safetensors" for f in folders]
    assert bodies[0].stat().st_size > WORTH_A_LINK  # else copies may stay
    assert all(body.samefile(bodies[0]) for body in bodies)


def test_fifteen_tasks_take_little_more_disk_than_one(tmp_path: Path) -> None:
    """1.3 times one checkpoint's bytes at most, with heads as large beside the body as in MiniLM
    with 150 classes: 58,000 to 22 million numbers."""
    folders = [tmp_path / f"task-{k}" for k in range(15)]
    body = os.urandom(1 << 20)
    for k, folder in enumerate(folders):
        folder.mkdir()
        (folder / "body.safetensors").write_bytes(body)
        (folder / "heads.safetensors").write_bytes(os.urandom((1 << 20) * 58 * (k + 1) // 330_000))
        seal(folder, {})
        if k:
            share(folders[k - 1], folder)
    found = {p.stat().st_ino: p.stat().st_size for p in tmp_path.rglob("*") if p.is_file()}
    one = sum(p.stat().st_size for p in folders[-1].iterdir())
    assert sum(found.values()) <= 1.3 * one


@pytest.mark.parametrize(
    "changes",
    [
        {"model__template": "Read: {text}"},
        {"train__max_length": 7},
        {"model__pooling": "cls"},
    ],
    ids=["template", "length", "pooling"],
)
def test_what_a_feature_depends_on_is_in_its_files_name(
    encoder_dir: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    assert features_name(tmp_path / "a", encoder_dir) == features_name(tmp_path / "b", encoder_dir)
    other = features_name(tmp_path / "c", encoder_dir, **changes)
    assert other != features_name(tmp_path / "a", encoder_dir)


def features_name(folder: Path, encoder: Path, **changes: Any) -> str:
    folder.mkdir(exist_ok=True)
    made = learner_of(folder, write_class_recipe(folder, encoder, **changes))
    found = made._features_now().folder.name
    made.precision = "bf16"
    assert made._features_now().folder.name != found
    return found


def test_a_tokenizer_of_the_same_words_has_other_features(
    encoder_dir: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(encoder_dir, tmp_path / "other")
    rules = json.loads((other / "tokenizer.json").read_text("utf-8"))
    rules["normalizer"] = {"type": "Lowercase"}
    (other / "tokenizer.json").write_text(json.dumps(rules))
    lower = features_name(tmp_path / "b", other)
    assert lower != features_name(tmp_path / "a", encoder_dir)
    weights = load_file(other / "model.safetensors")
    name = sorted(weights)[0]
    changed = {**weights, name: weights[name] + 1}
    save_file(changed, other / "model.safetensors", metadata={"format": "pt"})
    assert features_name(tmp_path / "c", other) != lower


@pytest.mark.process
def test_killed_within_a_task_of_heads_alone(encoder_dir: Path, tmp_path: Path) -> None:
    method = [{"name": "seq_star", "warmup_epochs": 1}, {"name": "replay", "ratio": 0.5}]
    recipe = write_class_recipe(tmp_path, encoder_dir, method=method, save={"steps": 2})
    assert learn_and_die(tmp_path / "killed", recipe, (2, 5)) == -signal.SIGKILL
    learn(tmp_path / "killed", recipe)
    learn(tmp_path / "whole", recipe)
    assert "from checkpoint-4" in (tmp_path / "killed/perdure.log").read_text()
    ours, theirs = weights(tmp_path / "killed"), weights(tmp_path / "whole")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[n], theirs[n]) for n in ours)
    lines = [
        [{**s, "seconds": 0} for s in Run.open(tmp_path / d).scores()] for d in ("killed", "whole")
    ]
    assert lines[0] == lines[1]


def test_a_tensor_without_a_place_is_an_error(seq_star: Path, tmp_path: Path) -> None:
    learner = learner_of(tmp_path, seq_star.parent / "recipe.yaml")
    with pytest.raises(RunError, match=r"no place for the tensor heads\.parts\.2\.weight"):
        learner.restore(seq_star / "checkpoints/task-3", 2)


def test_more_classes_than_preallocated(encoder_dir: Path, tmp_path: Path) -> None:
    recipe = write_class_recipe(tmp_path, encoder_dir)
    changed = perdure.load_recipe(recipe, ["model.head.preallocate=4"])
    told = r"command line: model\.head\.preallocate: 4: the stream has 6 classes"
    with pytest.raises(PerdureError, match=told):
        prepare(changed)  # which `run --check` does, before a run's directory is made
    prepare(perdure.load_recipe(recipe, ["model.head.preallocate=6"]))
    ready, folders = prepare(perdure.load_recipe(recipe)), Folders.below(tmp_path)
    with pytest.raises(PerdureError, match="preallocate: 4: the stream has 6 classes"):
        build(changed, ready.stream, methods=ready.methods, precision="fp32", folders=folders)


@pytest.mark.parametrize("kept", [6, "all"])
def test_preallocated_heads_learn_as_negatives(
    encoder_dir: Path, tmp_path: Path, kept: Any
) -> None:
    head = {"preallocate": kept, "learning_rate": 1e-2}
    recipe = write_class_recipe(tmp_path, encoder_dir, model__head=head)
    out = learn(tmp_path / "run", recipe)
    one, three = weights(out, 1), weights(out, 3)
    assert one["heads.parts.0.weight"].shape == (2, 32)
    assert one["heads.reserve.weight"].shape == (4, 32)
    assert "heads.reserve.weight" not in three
    assert [three[f"heads.parts.{k}.weight"].shape for k in range(3)] == [(2, 32)] * 3


@pytest.mark.parametrize("mode", ["requires_grad", "lr_zero"])
def test_a_learned_scale_of_an_old_head_stays(encoder_dir: Path, tmp_path: Path, mode: str) -> None:
    """Under FixBC an old head is equal to the bit, its learned scale with it; so are its logits
    but for rounding."""
    head = {"learn_scale": True, "scale": 4.0, "learning_rate": 1e-2}
    method = {"name": "seq_star", "warmup_epochs": 1, "freeze_mode": mode}
    recipe = write_class_recipe(tmp_path, encoder_dir, model__head=head, method=method)
    out = learn(tmp_path / "run", recipe)
    one, three = weights(out, 1), weights(out, 3)
    assert all(torch.equal(three[name], one[name]) for name in one if "body" not in name)
    scales = [float(three[f"heads.parts.{k}.scale"]) for k in range(3)]
    assert all(scale != 4.0 for scale in scales)  # each has learned its own
    features = torch.randn(5, 32, generator=torch.Generator().manual_seed(0))
    found = []
    for after in (1, 3):
        learner = learner_of(tmp_path / f"after-{after}", recipe)
        learner.restore(out / f"checkpoints/task-{after}", after)
        found.append(cast(Any, learner.model).heads(features)[:, :2])
    # One product of all heads rounds by how many there are; weights and scales are the same.
    torch.testing.assert_close(*found, atol=1e-6, rtol=1e-6)


def test_one_scale_for_all_heads_of_an_older_run_is_read(encoder_dir: Path, tmp_path: Path) -> None:
    head = {"learn_scale": True, "learning_rate": 1e-2}
    recipe = write_class_recipe(tmp_path, encoder_dir, model__head=head)
    learner = learner_of(tmp_path / "run", recipe)
    learner.check()
    model = cast(Any, learner.model)
    for task in range(2):
        model.grow(2, task)
    learner.save(tmp_path / "saved")
    file = tmp_path / "saved/model/heads.safetensors"
    kept = {n: w for n, w in load_file(file).items() if not n.endswith("scale")}
    save_file({**kept, "heads.scale": torch.tensor(7.0)}, file)
    found = load_classifier_weights(model, tmp_path / "saved/model")
    scales = {name: float(w) for name, w in found.items() if name.endswith("scale")}
    assert scales == {"heads.parts.0.scale": 7.0, "heads.parts.1.scale": 7.0}


def test_lora_stands_in_the_body(encoder_dir: Path, tmp_path: Path) -> None:
    recipe = write_class_recipe(
        tmp_path, encoder_dir, method={"name": "sequential"}, model__tuning="lora",
        model__lora={"r": 2},
    )  # fmt: skip
    out = learn(tmp_path / "run", recipe)
    found = weights(out)
    assert (
        {n for n in found if n.startswith("body.")} == {n for n in found if ".lora_" in n} != set()
    )
    learner = learner_of(tmp_path / "other", recipe)
    learner.restore(out / "checkpoints/task-3", 3)
    for line in Run.open(out).scores():
        if line["after"] == 3:
            task = next(t for t in learner.stream if t.name == line["task"])
            score = learner.score(task)
            assert score is not None
            assert score.score == line["score"]


def test_a_class_is_not_read_from_broken_weights(encoder_dir: Path, tmp_path: Path) -> None:
    """The last step's loss was finite and its update was not: no score may come of that."""
    path = write_class_recipe(
        tmp_path, encoder_dir, train__learning_rate=1e38, train__epochs=1, train__batch_size=64,
        train__micro_batch_size=64, model__head={"type": "linear", "learning_rate": 1e38},
        method="sequential",
    )  # fmt: skip
    run = Run.create(tmp_path / "run", perdure.load_recipe(path))
    with pytest.raises(TrainingError, match=r"the weights of .* are not finite after step 1"):
        perdure.learn(run.recipe, run)
    assert not run.scores()
