"""Probes in a run: passes of the body, each fit once, both sets of classes, a resumed run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from class_runs import CLASSES, save_encoder, write_class_recipe
from tiny_runs import write_recipe

import perdure
from perdure.errors import PerdureError
from perdure.learners import probing
from perdure.models.classifier import Classifier
from perdure.prepare import prepare
from perdure.run import Run
from perdure.scoring.probes import PROBES, fit, logits

pytestmark = pytest.mark.train


@pytest.fixture(scope="module")
def encoder_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("probed-bert"))


class Counts:
    """Rows that a body reads, by a hook of its own, and the classes that each fit is made on."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.scored = self.trained = 0
        self.fits: list[tuple[str, int, int]] = []
        made, fitted = Classifier.__init__, probing.fit

        def init(model: Any, *args: Any, **kwargs: Any) -> None:
            made(model, *args, **kwargs)
            model.body.register_forward_hook(self._seen, with_kwargs=True)

        def fit(name: str, features: Any, labels: Any, classes: int, seed: int) -> Any:
            self.fits.append((name, len(features), classes))
            return fitted(name, features, labels, classes, seed)

        monkeypatch.setattr(Classifier, "__init__", init)
        monkeypatch.setattr(probing, "fit", fit)

    def _seen(self, body: Any, args: Any, kwargs: Any, out: Any) -> None:
        if torch.is_grad_enabled():
            self.trained += len(kwargs["input_ids"])
        else:
            self.scored += len(kwargs["input_ids"])


def learned(folder: Path, recipe: Path) -> Run:
    made = perdure.load_recipe(recipe)
    run = Run.create(folder, made)
    perdure.learn(made, run)
    return run


def counted(run: Run, name: str) -> int:
    lines = sum(line.get(name, 0) for line in run.scores())
    return int(lines + sum(fact["value"] for fact in run.facts() if fact["name"] == name))


@pytest.fixture(scope="module")
def probed(tmp_path_factory: pytest.TempPathFactory, encoder_dir: Path) -> tuple[Run, Counts]:
    """SEQ* over three tasks of two classes, with all four probes."""
    folder = tmp_path_factory.mktemp("probed")
    recipe = write_class_recipe(folder, encoder_dir, scoring={"probes": list(PROBES)})
    with pytest.MonkeyPatch.context() as patch:
        counts = Counts(patch)
        return learned(folder / "run", recipe), counts


def test_each_text_passes_once_for_each_state(probed: tuple[Run, Counts]) -> None:
    run, counts = probed
    # 48 training and 24 test rows under the untouched and under the warmed-up body.
    assert counts.scored == 2 * (48 + 24)
    assert counts.trained == 16
    assert counted(run, "body_passes") == counts.scored + counts.trained
    assert counted(run, "body_passes_needed") == counts.scored + counts.trained
    assert "the body read 160 texts, 160 needed" in (run.path / "perdure.log").read_text()


def test_a_body_that_moves_has_a_state_a_task(
    encoder_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = Counts(monkeypatch)
    recipe = write_class_recipe(
        tmp_path, encoder_dir, method={"name": "sequential"},
        scoring={"probes": ["prototype"]}, train__epochs=1,
    )  # fmt: skip
    run = learned(tmp_path / "run", recipe)
    assert counts.scored == 4 * (48 + 24)
    assert counts.trained == 48
    assert counted(run, "body_passes") == counted(run, "body_passes_needed") == 4 * 72 + 48


@pytest.mark.parametrize("evaluates", [True, False], ids=["eval", "dropout"])
def test_probes_read_in_the_mode_that_the_method_names(
    evaluates: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With dropout what is probed is another feature than what is scored, drawn from the seed."""
    counts = Counts(monkeypatch)
    modes: list[tuple[bool, int]] = []
    features = Classifier.features

    def spied(model: Any, input_ids: Any, *args: Any, **more: Any) -> Any:
        if not torch.is_grad_enabled():
            modes.append((model.body.training, len(input_ids)))
        return features(model, input_ids, *args, **more)

    monkeypatch.setattr(Classifier, "features", spied)
    method = {"name": "seq_star", "warmup_epochs": 0, "frozen_eval_mode": evaluates}
    recipe = write_class_recipe(
        tmp_path, save_encoder(tmp_path / "m", dropout=0.5), method=method,
        scoring={"probes": ["prototype"]}, train__epochs=1,
    )  # fmt: skip
    run = learned(tmp_path / "run", recipe)
    dropped = sum(rows for training, rows in modes if training)
    assert dropped == (0 if evaluates else 48 + 24)  # one state: there is no warm-up
    assert counts.trained == (0 if evaluates else 48)  # each look has a dropout of its own
    if evaluates:
        assert counts.scored == counted(run, "body_passes_needed") == 48 + 24

    again = learned(tmp_path / "again", recipe)
    said = [[line["fitted_on"] for line in r.scores() if line["kind"] == "probe"]
            for r in (run, again)]  # fmt: skip
    assert said[0] == said[1]


def test_a_probe_is_fitted_once_for_each_state_and_set_of_classes(
    probed: tuple[Run, Counts],
) -> None:
    _, counts = probed
    sets = [(48, 6), (48, 6), (16, 2), (32, 4)]  # row 0: all; warmed up: all, seen 2, seen 4
    assert counts.fits == [(name, rows, classes) for rows, classes in sets for name in PROBES]


def test_lines_of_probes(probed: tuple[Run, Counts]) -> None:
    run, _ = probed
    lines = [line for line in run.scores() if line["kind"] == "probe"]
    assert [(s["after"], s["task"]) for s in lines] == [
        (after, f"task {j}") for after in range(4) for j in (1, 2, 3)
    ]
    for line in lines:
        is_learned = int(line["task"][-1]) <= line["after"]
        assert set(line["fitted_on"]) == ({"seen", "all"} if is_learned else {"all"})
        for by in line["fitted_on"].values():
            assert set(by) == set(PROBES)
            for shares in by.values():
                assert shares["within_task"] >= shares["among_all"]
    # The matrix knows nothing of them.
    assert run.matrix().array().shape == (4, 3)
    last = [line["fitted_on"] for line in lines if line["after"] == 3]
    assert all(one["seen"] == one["all"] for one in last)


def test_shares_are_those_of_a_plain_loop(probed: tuple[Run, Counts], tmp_path: Path) -> None:
    """Read each row alone by hand, fit on it, and count."""
    from perdure.learners import build
    from perdure.learners.listener import Folders
    from perdure.models.random_state import seed_of

    run, _ = probed
    ready = prepare(run.recipe)
    learner: Any = build(
        ready.recipe, ready.stream, methods=ready.methods, precision="fp32",
        folders=Folders.below(tmp_path),
    )  # fmt: skip
    learner.restore(run.path / "checkpoints/task-2", 2)
    model = learner.model.eval()

    @torch.no_grad()
    def feature(row: Any) -> Any:
        ids = torch.tensor([learner.tokenizer(row["text"])["input_ids"]])
        return model.body(input_ids=ids).last_hidden_state.mean(1)[0]

    rows = [r for task in ready.stream.tasks[:2] for r in task.train]
    inputs = torch.stack([feature(row) for row in rows])
    labels = torch.tensor([CLASSES.index(row["label"]) for row in rows])
    for task in ready.stream.tasks[:2]:
        line = next(
            s for s in run.scores()
            if (s["kind"], s["after"], s["task"]) == ("probe", 2, task.name)
        )  # fmt: skip
        tested = torch.stack([feature(row) for row in task.test])
        right = [CLASSES.index(row["label"]) for row in task.test]
        for name in PROBES:
            vectors = fit(name, inputs, labels, 4, seed_of(0, "probe", 4))
            guesses = logits(name, vectors, tested).argmax(-1).tolist()
            share = sum(a == b for a, b in zip(guesses, right, strict=True)) / len(right)
            assert line["fitted_on"]["seen"][name]["among_all"] == share


def test_a_run_without_probes_is_the_same(
    probed: tuple[Run, Counts], encoder_dir: Path, tmp_path: Path
) -> None:
    run, _ = probed
    plain = learned(tmp_path / "run", write_class_recipe(tmp_path, encoder_dir))
    shown = ("after", "task", "score", "measures")
    ours, theirs = (
        [{k: line[k] for k in shown} for line in one.scores() if line["kind"] == "task"]
        for one in (run, plain)
    )
    assert ours == theirs


def test_a_resumed_run_has_each_line_once(probed: tuple[Run, Counts], tmp_path: Path) -> None:
    """Some of the last probes are missing, as after a kill while they were written."""
    import json
    import shutil

    run, _ = probed
    copy = tmp_path / "copy"
    shutil.copytree(run.path, copy)
    (copy / "finished").unlink()
    file = copy / "scores.jsonl"
    lines = file.read_text().splitlines(keepends=True)
    assert json.loads(lines[-1])["kind"] == "probe"
    file.write_text("".join(lines[:-2]))
    again = Run.open(copy)
    perdure.learn(again.recipe, again)
    kept = ("after", "kind", "task", "fitted_on", "score")
    ours, theirs = (
        [{k: line.get(k) for k in kept} for line in one.scores()] for one in (again, run)
    )
    assert ours == theirs


def test_the_untouched_bodys_probes_are_taken_over(
    probed: tuple[Run, Counts], tmp_path: Path
) -> None:
    run, _ = probed
    other = Run.create(tmp_path / "other", run.recipe)
    other.take_over(run)
    first = [line for line in run.scores() if line["after"] == 0]
    assert other.scores() == first
    assert [line["kind"] for line in first] == ["probe"] * 3


def test_facts_of_a_task(probed: tuple[Run, Counts]) -> None:
    run, _ = probed
    facts = {(fact["after"], fact["name"]): fact["value"] for fact in run.facts()}
    # Two classes of 32 features are trained once the body stays; the warm-up trains all of it.
    assert facts[2, "trained_parameters"] == facts[3, "trained_parameters"] == 64
    assert facts[1, "trained_parameters"] > 1000
    assert facts[1, "seconds"] > 0
    assert facts[1, "body_passes"] == 16 + 16
    assert facts[2, "body_passes"] == 0  # read for the probes of the task before


def test_other_kinds_refuse_the_key(tiny_model_dir: Path, tmp_path: Path) -> None:
    recipe = perdure.load_recipe(
        write_recipe(tmp_path, tiny_model_dir, scoring={"probes": ["linear"]})
    )
    with pytest.raises(PerdureError, match=r"recipe.yaml:\d+.*scoring.probes: has no effect"):
        prepare(recipe)
