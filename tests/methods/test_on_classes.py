"""Every method that there is, on a classifier: it acts, resumes, and does not see how a batch is
split; or it is refused by name before weights are loaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from class_matrix import (
    MATRIX,
    NOOP,
    REFUSED,
    UNFIT,
    Stopped,
    learn,
    learn_all,
    recipe_of,
    weights,
)  # fmt: skip
from class_runs import save_encoder
from tiny_runs import finish, start_call
from torch import Tensor

import perdure
from perdure.errors import UsageError
from perdure.prepare import prepare
from perdure.run import Run

pytestmark = pytest.mark.train


@pytest.fixture(scope="module")
def smooth(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A body without dropout."""
    return save_encoder(tmp_path_factory.mktemp("smooth"), dropout=0.0)


@pytest.fixture(scope="module")
def rough(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("rough"))


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory, smooth: Path) -> dict[str, Tensor]:
    folder = tmp_path_factory.mktemp("plain")
    return weights(learn(folder / "run", recipe_of(folder, smooth, {"name": "sequential"})))


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 0.0) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        torch.testing.assert_close(
            value, theirs[name], atol=tolerance, rtol=0, msg=lambda m, n=name: f"{n}: {m}"
        )


def test_who_is_refused() -> None:
    assert set(REFUSED) == {"general_replay", "gere_kl", "gere_official"}


@pytest.mark.parametrize("name", MATRIX)
def test_it_acts_and_not_by_how_the_batch_is_split(
    smooth: Path, tmp_path: Path, plain: dict[str, Tensor], name: str
) -> None:
    method = {"name": name, **MATRIX[name]}
    whole = learn(tmp_path / "whole/run", recipe_of(tmp_path / "whole", smooth, method))
    small = recipe_of(tmp_path / "small", smooth, method, train__micro_batch_size=1)
    same(weights(whole), weights(learn(tmp_path / "small/run", small)), 5e-6)
    assert len(whole.scores()) == 6  # a lower triangle: heads have no row 0
    if name != "sequential":
        found = weights(whole)
        assert max(float((found[n] - plain[n]).abs().max()) for n in plain if n in found) > 1e-4


@pytest.mark.parametrize("name", NOOP)
def test_switched_off_it_changes_nothing(
    smooth: Path, tmp_path: Path, plain: dict[str, Tensor], name: str
) -> None:
    recipe = recipe_of(tmp_path, smooth, {"name": name, **NOOP[name]})
    # A term that is 0 times a pass may still change the order in which gradients are added.
    same(weights(learn(tmp_path / "run", recipe)), plain, 1e-7)


@pytest.mark.parametrize("name", MATRIX)
def test_stopped_within_a_task_it_goes_on_to_the_same_weights(
    rough: Path, tmp_path: Path, name: str
) -> None:
    method = {"name": name, **MATRIX[name]}
    recipe = recipe_of(tmp_path, rough, method, save={"steps": 1})
    with pytest.raises(Stopped):
        learn(tmp_path / "stopped", recipe, (2, 3))
    learn(tmp_path / "stopped", recipe)
    assert "from checkpoint-2" in (tmp_path / "stopped/perdure.log").read_text()
    same(weights(tmp_path / "stopped"), weights(learn(tmp_path / "whole", recipe)))


def figures(run: Run) -> list[tuple[Any, ...]]:
    return [(s["after"], s["task"], s["score"], s["measures"]) for s in run.scores()]


def counts(run: Run) -> tuple[int, ...]:
    log = (run.path / "perdure.log").read_text("utf-8")
    found = re.findall(r"the body read (\d+) texts, (\d+) needed", log)
    return tuple(map(int, found[-1]))


@pytest.mark.process
def test_two_processes_learn_the_same(smooth: Path, tmp_path: Path) -> None:
    recipes = {n: recipe_of(tmp_path / n, smooth, {"name": n, **MATRIX[n]}) for n in MATRIX}
    finish(start_call(learn_all, *recipes.values(), processes=2))
    for name, recipe in recipes.items():
        one = learn(tmp_path / name / "one", recipe)
        same(weights(tmp_path / name / "run"), weights(one), 5e-6)
        two = Run.open(tmp_path / name / "run")
        assert figures(two) == figures(one)
        # Of both together: they share what is read without a gradient.
        if name in ("derpp", "ewc", "gere", "gere_distance", "replay"):
            # These round the rows that they keep, or draw, up in each process.
            assert counts(one)[0] < counts(two)[0] <= 1.4 * counts(one)[0]
        else:
            assert counts(two) == counts(one)


@pytest.mark.parametrize("name", REFUSED)
def test_text_with_labels_is_refused_before_weights_are_loaded(
    smooth: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[Any] = []
    monkeypatch.setattr("perdure.learners.classification.load_body", loaded.append)
    recipe = recipe_of(tmp_path, smooth, {"name": name})
    with pytest.raises(UsageError, match=f"method: {name} learns to continue general texts"):
        learn(tmp_path / "run", recipe)
    assert not loaded


@pytest.mark.parametrize("name", UNFIT)
def test_what_is_not_for_classes_is_refused_before_weights_are_loaded(
    smooth: Path, tmp_path: Path, name: str
) -> None:
    with pytest.raises(UsageError, match=UNFIT[name]):
        prepare(perdure.load_recipe(recipe_of(tmp_path, smooth, {"name": name})))


@pytest.mark.parametrize("name", ["lcia", "moelora", "olora"])
def test_adapters_of_other_tasks_are_refused(smooth: Path, tmp_path: Path, name: str) -> None:
    recipe = recipe_of(tmp_path, smooth, {"name": name}, model__tuning="lora")
    with pytest.raises(UsageError, match=f"{name} works on adapters, which tasks of kind class"):
        prepare(perdure.load_recipe(recipe))


def test_both_that_keep_rows_go_together(smooth: Path, tmp_path: Path) -> None:
    methods = [{"name": "derpp", **MATRIX["derpp"]}, {"name": "replay", **MATRIX["replay"]}]
    both = learn(tmp_path / "both/run", recipe_of(tmp_path / "both", smooth, methods))
    alone = learn(tmp_path / "alone/run", recipe_of(tmp_path / "alone", smooth, methods[0]))
    found, other = weights(both), weights(alone)
    assert max(float((found[n] - other[n]).abs().max()) for n in found) > 1e-4


@pytest.mark.parametrize(
    ("method", "general", "why"),
    [
        ({"name": "gere"}, None, "gere learns to continue general texts"),
        ({"name": "gere", "label_weight": 0, "weight": "dynamic"}, None, "gere learns to continue"),
        ({"name": "gere", "label_weight": 0}, {"source": "none"}, "cannot write its own"),
        (
            {"name": "replay", "balance": "class", "buffer_size": 5},
            None,
            "buffer_size: 5: fewer rows than the 6 classes",
        ),
        ({"name": "derpp", "balance": "class", "buffer_size": 5}, None, "fewer rows than the 6"),
    ],
)
def test_what_it_cannot_do_is_told_before_weights_are_loaded(
    smooth: Path, tmp_path: Path, method: Any, general: Any, why: str
) -> None:
    changes = {} if general is None else {"general": general}
    with pytest.raises(UsageError, match=why):
        prepare(perdure.load_recipe(recipe_of(tmp_path, smooth, method, **changes)))


def test_an_odd_batch_has_no_half(smooth: Path, tmp_path: Path) -> None:
    method = {"name": "replay", "mix": "half"}
    recipe = recipe_of(tmp_path, smooth, method, train__batch_size=3)
    with pytest.raises(UsageError, match=r"mix: half: .* 3 rows, has no half"):
        prepare(perdure.load_recipe(recipe))


# --- what a run of a classifier adds


def test_half_a_batch_of_kept_rows_takes_twice_the_steps(smooth: Path, tmp_path: Path) -> None:
    method = {"name": "replay", "mix": "half", "buffer_size": 6, "balance": "class"}
    made = recipe_of(tmp_path, smooth, method)
    run = learn(tmp_path / "run", made)
    steps = [max(r["step"] for r in run.log_rows() if r["after"] == i) for i in (1, 2, 3)]
    assert steps == [4, 8, 8]  # 16 rows a task: batches of 4, then 2 new ones and 2 kept ones
    (tmp_path / "small").mkdir()
    small = recipe_of(tmp_path / "small", smooth, method, train__micro_batch_size=1)
    same(weights(run), weights(learn(tmp_path / "small/run", small)), 5e-6)


@pytest.mark.parametrize(
    ("kept", "scaled"), [(0, False), (6, False), ("all", False), ("all", True), (0, True)]
)
def test_joint_starts_each_time_from_heads_as_they_were_drawn(
    smooth: Path, tmp_path: Path, kept: Any, scaled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from perdure.learners.classification import ClassificationLearner

    found: list[dict[str, Tensor]] = []
    started = ClassificationLearner.trainer

    def trainer(self: Any, *args: Any) -> Any:
        found.append({n: p.detach().clone() for n, p in self.model.named_parameters()})
        return started(self, *args)

    monkeypatch.setattr(ClassificationLearner, "trainer", trainer)
    head = {"preallocate": kept, "learning_rate": 0.05, "learn_scale": scaled}
    recipe = recipe_of(tmp_path, smooth, {"name": "joint"}, model__head=head)
    run = learn(tmp_path / "run", recipe)
    first, _, third = found
    for name, value in first.items():
        if not name.startswith("heads.reserve"):
            assert torch.equal(value, third[name]), name
    if kept:
        columns = torch.cat([third[f"heads.parts.{k}.weight"] for k in (1, 2)])
        assert torch.equal(columns, first["heads.reserve.weight"])
    if scaled:
        assert all(third[f"heads.parts.{k}.scale"] == 1 for k in range(3))
        last = weights(run)
        assert all(last[f"heads.parts.{k}.scale"] != 1 for k in range(3))
    assert len(run.scores()) == 6


def test_weights_that_a_method_took_back_are_not_scored_by_old_features(
    smooth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from perdure.learners.classification import ClassificationLearner

    method = [
        {"name": "seq_star", "warmup_epochs": 1},
        {"name": "rewind", "grid": [0.5], "tolerance": 100},
    ]
    recipe = recipe_of(tmp_path, smooth, method)
    run = learn(tmp_path / "with", recipe)
    monkeypatch.setattr(ClassificationLearner, "_look_inside", lambda self: True)
    without = learn(tmp_path / "without", recipe)
    same(weights(run), weights(without), 1e-5)
    for line, other in zip(run.scores(), without.scores(), strict=True):
        assert line["measures"] == other["measures"]


def test_a_frozen_body_has_nothing_to_hold(smooth: Path, tmp_path: Path) -> None:
    method = [{"name": "seq_star", "warmup_epochs": 1}, {"name": "gere", **MATRIX["gere"]}]
    learn(tmp_path / "run", recipe_of(tmp_path, smooth, method))
    told = (tmp_path / "run/perdure.log").read_text()
    assert "task 1, phase main: the body is frozen" in told
    assert "phase warm-up: the body is frozen" not in told


@pytest.mark.parametrize(
    "name", ["replay", "ewc", "lwf", "eaft", "derpp", "snapshot", "new rows too"]
)
def test_where_tasks_are_known(smooth: Path, tmp_path: Path, name: str) -> None:
    """Nothing of another task's head is moved by a row: heads of old tasks stay without a method
    that acts on old rows or old classes."""
    options = {
        "snapshot": {"name": "derpp", "buffer_size": 6, "target": "snapshot"},
        "new rows too": {
            "name": "derpp", "buffer_size": 6, "target": "snapshot", "distill_new_rows": True,
        },
    }  # fmt: skip
    method = options.get(name) or {"name": name, **MATRIX[name]}
    head_options = {"learning_rate": 0.05, "weight_decay": 0}
    run = learn(
        tmp_path / "run",
        recipe_of(
            tmp_path, smooth, method, stream__scenario="task-incremental",
            train__micro_batch_size=2, model__head=head_options,
        ),
    )  # fmt: skip
    one, two = weights(run, 1), weights(run, 2)
    head = "heads.parts.0.weight"
    stays = torch.allclose(one[head], two[head], atol=1e-7)
    assert stays == (name in ("ewc", "eaft")), (one[head] - two[head]).abs().max()
    assert all(bool(w.isfinite().all()) for w in two.values())


def test_a_teacher_under_a_frozen_body_takes_features(
    smooth: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from perdure.models.classifier import Classifier

    passes: list[int] = []
    reads = Classifier.features
    monkeypatch.setattr(
        Classifier,
        "features",
        lambda self, ids, *rest: passes.append(len(ids)) or reads(self, ids, *rest),
    )
    seq_star = {"name": "seq_star", "warmup_epochs": 1, "freeze_old_heads": False}
    method = [seq_star, {"name": "lwf"}]
    run = learn(tmp_path / "run", recipe_of(tmp_path, smooth, method))
    # 48 training and 24 test rows once, and the warm-up's 16 in training
    assert sum(passes) == 48 + 24 + 16
    assert any(row.get("method/lwf", 0) > 1e-6 for row in run.log_rows())
