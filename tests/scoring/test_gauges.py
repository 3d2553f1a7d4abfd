"""Gauges against a plain recomputation, and budgets that stop training or take it back."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_runs import write_recipe

import perdure
from perdure.engine.callbacks import GaugeCallback
from perdure.errors import RecipeError, RunError
from perdure.mechanisms.margin import flags
from perdure.mechanisms.state_cache import thresholds
from perdure.models.weights import swapped
from perdure.recipe.schema import StopConfig
from perdure.scoring import gauges as gauges_module
from perdure.scoring.gauges import Gauges, exceeded, rewound
from perdure.streams.task import GeneralText

pytestmark = pytest.mark.train


@pytest.fixture
def learner(tiny_model_dir: Path, tmp_path: Path) -> Any:
    from perdure import learners
    from perdure.learners.listener import Folders
    from perdure.prepare import chosen_methods
    from perdure.streams import build_stream

    recipe = perdure.load_recipe(write_recipe(tmp_path, tiny_model_dir, gauges={"every": 3}))
    stream = build_stream(recipe.stream, recipe.general, recipe.folder, recipe.seed)
    folders = Folders.below(tmp_path / "run")
    methods = chosen_methods(recipe, stream)
    return learners.build(recipe, stream, methods=methods, precision="fp32", folders=folders)


def moved(model: Any, size: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += size * torch.randn_like(parameter)


def test_figures_equal_a_plain_recomputation(learner: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(gauges_module, "_TOP", 512)  # all outcomes, so that the KL is exact
    model, session = learner.model.eval(), learner._session_of(0)
    gauges = Gauges(learner.recipe.gauges, learner.stream, session)
    assert gauges.read(session) == {"flip_share": 0.0, "kl": pytest.approx(0.0, abs=1e-6)}

    @torch.no_grad()
    def plain() -> tuple[list[Any], list[Any]]:
        states = [
            model.model(torch.tensor([row["input_ids"]])).last_hidden_state[0]
            for row in gauges.texts
        ]
        predictions = []
        for row in gauges.rows[0]:
            logits = model(torch.tensor([row["input_ids"]])).logits[0, :-1]
            predictions.append(logits[torch.tensor(row["labels"][1:]) != -100].log_softmax(-1))
        return states, predictions

    states, predictions = plain()
    moved(model, 0.05)
    states_now, predictions_now = plain()
    limits = thresholds(lambda: states, 1.0)
    changed = [
        (flags(a, limits["n"], limits["p"]) != flags(b, limits["n"], limits["p"])).flatten()
        for a, b in zip(states, states_now, strict=True)
    ]
    found = gauges.read(session)
    assert found["flip_share"] == pytest.approx(torch.cat(changed).float().mean().item(), rel=0.02)
    kl = [(p.exp() * (p - q)).sum(-1) for p, q in zip(predictions, predictions_now, strict=True)]
    assert found["kl"] == pytest.approx(torch.cat(kl).mean().item(), rel=1e-4)


def test_the_base_is_read_once_and_read_again_if_need_be(learner: Any, tmp_path: Path) -> None:
    import shutil

    config, stream = learner.recipe.gauges, learner.stream
    Gauges(config, stream, learner._session_of(0))
    moved(learner.model, 0.05)
    again = Gauges(config, stream, learner._session_of(1))  # as after a resume
    read = again.read(learner._session_of(1))
    assert read["kl"] > 0
    shutil.rmtree(tmp_path / "run" / "cache")
    weights = {n: p.clone() for n, p in learner.model.named_parameters()}
    anew = Gauges(config, stream, learner._session_of(1))
    assert anew.read(learner._session_of(1)) == read
    assert all(torch.equal(weights[n], p) for n, p in learner.model.named_parameters())
    shutil.rmtree(tmp_path / "run" / "cache")
    no_base = learner._session_of(1)
    no_base._base = None
    with pytest.raises(RunError, match="the base model's gauge values are missing"):
        Gauges(config, stream, no_base)


def test_budgets() -> None:
    budget = StopConfig(kl=0.5, flip_share=0.1)
    assert exceeded(budget, {"kl": 0.5, "flip_share": 0.1}) == []
    assert exceeded(budget, {"kl": 0.51, "flip_share": 0.2}) == ["flip_share", "kl"]
    assert exceeded(StopConfig(kl=0.5), {"flip_share": 0.9, "kl": 0.1}) == []
    assert exceeded(None, {"kl": 9.0}) == []


def test_an_update_is_taken_back_until_the_budget_holds(learner: Any) -> None:
    session = learner._session_of(0)
    gauges = Gauges(learner.recipe.gauges, learner.stream, session)
    start = session.snapshot()
    moved(learner.model, 0.05)
    end = session.snapshot()
    whole = gauges.read(session)["kl"]
    assert rewound(gauges, session, StopConfig(kl=2 * whole), start) == (1.0, None)
    share, weights = rewound(gauges, session, StopConfig(kl=whole / 4), start)
    assert weights is not None
    assert 0 < share < 1
    name = next(iter(start))
    torch.testing.assert_close(weights[name], start[name] + share * (end[name] - start[name]))
    with swapped(learner.model, weights):
        assert gauges.read(session)["kl"] <= whole / 4
    torch.testing.assert_close(session.snapshot()[name], end[name], rtol=0, atol=0)


NOWHERE = {"source": "none", "replay_rows": 0, "held_out_rows": 0}


@pytest.mark.parametrize("general", [NOWHERE, None])
def test_without_general_text_the_base_writes_what_flips_are_counted_on(
    tiny_model_dir: Path, tmp_path: Path, general: Any
) -> None:
    """And a budget on them holds; the run learns what it would learn without gauges."""
    changes = {"general": general} if general else {}
    blind = run_of(tiny_model_dir, tmp_path / "a", gauges={"every": 0}, **changes)
    seen = run_of(tiny_model_dir, tmp_path / "b", gauges={"every": 4, "texts": 3}, **changes)
    shares = [row["gauge/flip_share"] for row in seen.log_rows() if "gauge/kl" in row]
    assert len(shares) == 6
    assert 0 < shares[0] < 1
    assert [row["loss"] for row in seen.log_rows()] == [row["loss"] for row in blind.log_rows()]
    path = seen.path / "cache" / gauges_module.OWN_TEXTS
    assert path.exists() == (general is not None)
    if general is not None:
        about, *rows = map(json.loads, path.read_text().splitlines())
        assert (about["texts"], len(rows)) == (3, 3)
        assert all(row["given"] < len(row["ids"]) <= row["given"] + 64 for row in rows)
    stop = {"flip_share": min(shares) / 2}
    run = run_of(tiny_model_dir, tmp_path / "c", gauges={"every": 4}, stop_when=stop, **changes)
    assert "stopped at step 4 of 12: flip_share" in (run.path / "perdure.log").read_text()


def test_texts_that_the_base_wrote_are_written_again_if_need_be(learner: Any) -> None:
    config, session = learner.recipe.gauges, learner._session_of(0)
    stream = replace(learner.stream, general=GeneralText())
    first = Gauges(config, stream, session)
    assert len(first.texts) == config.texts
    assert first.read(session)["flip_share"] == 0
    moved(learner.model, 0.05)
    later = learner._session_of(1)
    again = Gauges(config, stream, later)
    assert again.texts == first.texts
    assert again.read(later)["flip_share"] > 0
    (session.cache / gauges_module.OWN_TEXTS).unlink()
    assert Gauges(config, stream, later).texts == first.texts
    (session.cache / gauges_module.OWN_TEXTS).unlink()
    later._base = None
    with pytest.raises(RunError, match=r"gauge-texts\.jsonl: the base model's gauge values"):
        Gauges(config, stream, later)


def run_of(model: Path, folder: Path, **changes: Any) -> perdure.Run:
    recipe = perdure.load_recipe(write_recipe(folder, model, **changes))
    run = perdure.Run.create(folder / "run", recipe)
    perdure.learn(recipe, run)
    return run


def test_a_run_logs_them_and_learns_as_without(tiny_model_dir: Path, tmp_path: Path) -> None:
    seen = run_of(tiny_model_dir, tmp_path / "a", gauges={"every": 5})
    blind = run_of(tiny_model_dir, tmp_path / "b", gauges={"every": 0})
    rows = [row for row in seen.log_rows() if "gauge/kl" in row]
    assert [(row["after"], row["step"]) for row in rows] == [
        (after, step) for after in (1, 2) for step in (5, 10, 12)
    ]
    assert all(row["gauge/kl"] > 0 and 0 < row["gauge/flip_share"] < 1 for row in rows)
    assert not any("gauge/kl" in row for row in blind.log_rows())
    assert [row["loss"] for row in seen.log_rows()] == [row["loss"] for row in blind.log_rows()]
    from perdure.reports import write_report

    page = write_report([seen], tmp_path / "report.html").read_text()
    assert "How far it moved from its base" in page


def test_stop_when_ends_each_task_at_its_budget(
    tiny_model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = run_of(tiny_model_dir, tmp_path, gauges={"every": 4}, stop_when={"kl": 1e-6})
    assert [row["step"] for row in run.log_rows() if row["after"] == 1] == [1, 2, 3, 4]
    assert run.state == "finished"
    assert "stopped at step 4 of 12: kl" in (run.path / "perdure.log").read_text()
    assert next(text for text in caplog.messages if "stopped" in text).startswith(
        "task colour: stopped at step 4 of 12: kl "
    )


@pytest.mark.parametrize(("kl", "stops"), [(0.3, True), (0.1, False)])
def test_a_step_that_ends_training_is_no_checkpoint(kl: float, stops: bool) -> None:
    """A run killed there comes to the same stop again, from the checkpoint before."""
    from transformers import TrainerControl, TrainerState

    logged: dict[str, float] = {}
    session: Any = SimpleNamespace(
        log=lambda name, value, group: logged.update({f"{group}/{name}": value}),
        task=SimpleNamespace(name="topic"),
    )
    notes: list[str] = []
    looks = GaugeCallback(
        session, lambda: {"kl": kl}, partial(exceeded, StopConfig(kl=0.2)), 4, True, notes.append
    )
    control = TrainerControl(should_save=True)
    looks.on_step_end(None, TrainerState(global_step=4, max_steps=9), control)
    assert control.should_training_stop is stops
    assert control.should_save is not stops
    assert logged == {"gauge/kl": kl}
    assert notes == (["task topic: stopped at step 4 of 9: kl 0.3 is over budget"] if stops else [])


def test_stop_when_takes_updates_back(
    tiny_model_dir: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    stop = {"kl": 0.01, "action": "rewind"}
    run = run_of(tiny_model_dir, tmp_path, gauges={"every": 4}, stop_when=stop)
    assert len(run.log_rows()) == 24
    text = (run.path / "perdure.log").read_text()
    assert text.count("method/budget_share 0") == 2
    told = [message for message in caplog.messages if "of its update kept" in message]
    assert [message.split(":")[0] for message in told] == ["task colour", "task count"]
    # And what the gauges say of what was kept; the second task found its budget spent.
    assert float(told[0].split("kl ")[1]) <= 0.01
    assert told[1].startswith("task count: 0% of its update kept")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stop_when": {}}, "names no budget"),
        ({"stop_when": {"kl": 0.1}, "gauges": {"every": 0}}, "has no effect without gauges"),
        (
            {"stop_when": {"kl": 0.1, "flip_share": 0.1}, "gauges": {"texts": 0}},
            "flip_share: has no effect with gauges.texts: 0",
        ),
    ],
)
def test_budgets_that_nothing_reads_are_refused(
    tiny_model_dir: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        perdure.load_recipe(write_recipe(tmp_path, tiny_model_dir, **changes))
