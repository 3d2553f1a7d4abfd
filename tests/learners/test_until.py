"""A task that ends once its sampled answers are good enough."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rl_runs import write_recipe

import perdure
from perdure.consent import trusting
from perdure.errors import PerdureError
from perdure.learners import until as module
from perdure.learners.rollouts import Judge
from perdure.learners.sense import _without_effect
from perdure.learners.work import works
from perdure.models.chat import Encoder
from perdure.plan import _bare
from perdure.prepare import stream_of
from perdure.recipe.until import UntilConfig
from perdure.rewards import build
from perdure.run import Run
from perdure.streams.task import Task

pytestmark = pytest.mark.unit


class Looks:
    """Looks at made-up samples: what each of them finds, by step."""

    def __init__(self, found: Sequence[dict[str, float]], until: UntilConfig) -> None:
        self.found, self.logged, self.notes, self.warnings = list(found), [], [], []
        rows = [{"prompt": [{"role": "user", "content": "x"}], "answer": "y"}]
        session = SimpleNamespace(
            model=None, autocast=nullcontext,
            log=lambda name, value, group: self.logged.append((group, name, value)),
        )  # fmt: skip
        self.callback = module.Until(
            SimpleNamespace(session=session, sampling=nullcontext),  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
            Task("warm-up", rows, rows, rows, "chrf"),
            until,
            seed=0,
            note=self.notes.append,
            warn=self.warnings.append,
        )

    def run(self, monkeypatch: pytest.MonkeyPatch, steps: int) -> int:
        """The step after which training ends."""
        monkeypatch.setattr(module, "sampled", lambda *_, **__: self.found.pop(0))
        for step in range(1, steps + 1):
            control = SimpleNamespace(
                should_training_stop=False, should_log=False, should_save=True
            )
            state = SimpleNamespace(global_step=step, max_steps=steps)
            self.callback.on_step_end(None, state, control)
            if control.should_training_stop:
                assert not control.should_save  # a run that goes on there would go past it
                break
        self.callback.on_train_end(None, state, control)
        return step


UNTIL = UntilConfig(reach={"format": 0.8, "chrf": [0.4, 0.6]}, every=2)


def test_it_ends_at_the_first_look_that_reaches_all(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [{"format": 0.9, "chrf": 0.39}, {"format": 0.79, "chrf": 0.5},
             {"format": 0.8, "chrf": 0.4}, {"format": 1.0, "chrf": 1.0}]  # fmt: skip
    looks = Looks(found, UNTIL)
    assert looks.run(monkeypatch, 20) == 6
    assert looks.logged[:2] == [("until", "format", 0.9), ("until", "chrf", 0.39)]
    assert looks.notes[-1] == "task warm-up: sampled at step 6: format 0.8, chrf 0.4"
    assert not looks.warnings


def test_past_the_most_it_ends_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Looks([{"format": 0.9, "chrf": 0.61}], UNTIL)
    assert looks.run(monkeypatch, 20) == 2
    assert "chrf is 0.61 at the first look that reaches all, above 0.6" in looks.warnings[0]


def test_never_reached_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Looks([{"format": 0.0, "chrf": 0.0}] * 3, UNTIL)
    assert looks.run(monkeypatch, 6) == 6
    assert "its steps are over, and until was not reached" in looks.warnings[0]


def test_fewer_steps_than_lie_between_looks_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Looks([], UntilConfig(reach={"format": 0.8}, every=5))
    assert looks.run(monkeypatch, 4) == 4
    assert "until was never looked at: its steps were 4, and until.every is 5" in looks.warnings[0]
    assert len(looks.warnings) == 1


def test_a_users_own_reward_is_not_called_as_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    """The key is a path by then; what is logged of the reward goes by its short name."""
    own = "/shop/own.py:polite"
    until = UntilConfig(reach={"format": 0.8, own: 0.4}, every=2)
    looks = Looks([{"format": 1.0, own: 0.3}, {"format": 1.0, own: 0.4}], until)
    assert looks.run(monkeypatch, 20) == 4
    assert looks.logged[-1] == ("until", "own:polite", 0.4)


def test_what_makes_no_sense_is_refused(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, Path("somewhere"))
    for reach, told in (
        ("{}", "names no reward"),
        ("{format: 2}", "must be from 0 to 1"),
        ("{chrf: [.6, .4]}", "the least first"),
        ("{chrf: [.4]}", "must be one number, or"),
        ("{chrv: .5}", '"chrv" is none of'),
    ):
        with pytest.raises(PerdureError, match=told):
            perdure.load_recipe(path, [f"stream.tasks.two.until={{reach: {reach}}}"])


def test_looks_that_no_step_comes_to_are_told_by_the_check(tmp_path: Path) -> None:
    """And what it says of the steps does not speak of an end before the last one."""
    path = write_recipe(tmp_path, Path("somewhere"))
    for every, told in ((2, 1), (1, 0)):
        until = f"stream.tasks.two.until={{reach: {{format: .5}}, every: {every}, rows: 1}}"
        recipe = perdure.load_recipe(path, [until, "train.max_steps=1"], check_files=False)
        stream = stream_of(recipe)
        said = list(_without_effect(recipe, stream))
        assert len(said) == told
        assert all("task two: until has no effect: it is looked at each 2 steps" in s for s in said)
        (work,) = [w for t, w in zip(stream, works(recipe, stream, 0), strict=True)
                   if t.name == "two"]  # fmt: skip
        (task,) = [t for t in stream if t.name == "two"]
        assert _bare(recipe, task, work).until is not bool(told)


def test_looks_at_fewer_rows_than_are_asked_for_are_told_by_the_check(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, Path("somewhere"))
    until = "stream.tasks.two.until={reach: {format: .5}, every: 1, rows: 99}"
    recipe = perdure.load_recipe(path, [until, "train.max_steps=1"], check_files=False)
    stream = stream_of(recipe)
    (task,) = [t for t in stream if t.name == "two"]
    count, whose = (
        (len(task.validation), "validation") if task.validation else (len(task.train), "training")
    )
    (said,) = _without_effect(recipe, stream)
    assert f"until looks at {count} {whose} rows, as there are no more (until.rows is 99)" in said


def test_where_nothing_is_sampled_it_is_refused(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, Path("somewhere"))
    until = "stream.tasks.two.until={reach: {format: .5}}"
    with pytest.raises(PerdureError, match="until: has no effect with learn: none"):
        perdure.load_recipe(path, [until, "stream.tasks.two.learn=none"])
    rows = [{"text": f"text {i}", "label": f"label {i % 2}"} for i in range(8)]
    (tmp_path / "two.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    classes = ["stream.tasks.two.format=classes", "stream.tasks.two.metric=null"]
    with pytest.raises(PerdureError, match="until: has no effect with format: classes"):
        perdure.load_recipe(path, [until, *classes])


@pytest.mark.train
def test_samples_are_judged_as_in_reinforcement(tiny: Any, tmp_path: Path) -> None:
    """The mean over one answer to each row, the same for the same seed."""
    model, tokenizer = tiny
    encoder = Encoder(tokenizer)
    rows = [{"prompt": [{"role": "user", "content": f"say {i}"}], "answer": "w"} for i in range(3)]
    task = Task("t", rows, rows, rows, "chrf", max_new_tokens=400)
    (own := tmp_path / "own_22.py").write_text(
        "def half(samples):\n    return [0.5] * len(samples)\n"
    )
    wanted = ["format", "chrf", f"{own}:half"]
    with trusting(True):
        one, two, other = (
            module.sampled(model, encoder, task, rows, wanted, seed) for seed in (1, 1, 2)
        )
    assert one == two != other
    assert list(one) == wanted
    assert 0 < one["format"] <= 1
    assert one[f"{own}:half"] == pytest.approx(0.5 * one["format"])  # 0 where it cannot be read
    end = tokenizer.eos_token_id
    words = tokenizer("w w", add_special_tokens=False)["input_ids"]
    judge = Judge(build(["chrf", "format"]), encoder, task, rows, {end})
    cut, whole = judge.samples([0, 1], [words, [*words, end]])
    assert (cut.truncated, whole.truncated) == (True, False)
    assert whole.completion == "w w"
    assert judge.rewards([cut, whole]).parts["format"] == [0.0, 1.0]


@pytest.mark.train
def test_a_run_goes_on_to_the_next_task(tmp_path: Path, tiny_model_dir: Path) -> None:
    path = write_recipe(tmp_path, tiny_model_dir, train__epochs=4, train__max_steps=6)
    until = "stream.tasks.one.until={reach: {chrf: 0}, every: 2, rows: 2}"
    recipe = perdure.load_recipe(path, [until, "stream.tasks.one.learn=sft", "rl=null"])
    run = Run.create(tmp_path / "run", recipe)
    perdure.learn(recipe, run)
    lines = [(line["task"], line["step"]) for line in run.log_rows()]
    assert lines == [("one", 1), ("one", 2), *(("two", k) for k in range(1, 7))]
    assert run.log_rows()[1]["until/chrf"] >= 0


@pytest.mark.train
def test_a_reward_of_ones_own_beside_the_recipe_ends_a_warm_up_and_is_learned_from(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found beside the recipe wherever the run is started; its name in the log has no path."""
    monkeypatch.chdir("/")
    path = write_recipe(tmp_path, tiny_model_dir, rl__rewards=["chrf", "own_rewards:half"])
    code = "def half(samples):\n    return [0.5] * len(samples)\n"
    (tmp_path / "own_rewards.py").write_text(code)
    until = 'stream.tasks.two.until={reach: {"own_rewards:half": 0}, every: 1, rows: 2}'
    with pytest.raises(PerdureError, match="is Python code, which was not run"):
        perdure.load_recipe(path)
    trusted = ["trust_remote_code=true"]
    recipe = perdure.load_recipe(path, [until, *trusted])
    run = Run.create(tmp_path / "run", recipe)
    perdure.learn(recipe, run)
    lines = run.log_rows()
    assert [(line["task"], line["step"]) for line in lines] == [
        *(("one", k) for k in range(1, 5)), ("two", 1)
    ]  # fmt: skip
    assert "rl/reward/own_rewards:half" in lines[0]
    assert "until/own_rewards:half" in lines[-1]
    wrong = write_recipe(tmp_path, tiny_model_dir, rl__rewards=["own_rewards:hafl"])
    with pytest.raises(PerdureError, match=r'recipe\.yaml:\d+: [^$]*did you mean "half"'):
        perdure.load_recipe(wrong, trusted)
