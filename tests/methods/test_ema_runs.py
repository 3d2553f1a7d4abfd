"""The average in whole runs: acceptance checks 11 to 14, resume, facts, and what a step waits for.

The reference is kept by hand from the weights and gradients that a run showed after each step.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import LABELS, scores, write_recipe
from torch import Tensor

import perdure
from perdure.audit.audit import audit
from perdure.commands.evaluate import evaluate
from perdure.methods.ema import Ema, line_weight, new_weight
from perdure.models import load_saved
from perdure.models.chat import Encoder
from perdure.models.weights import trainable
from perdure.prepare import run_stream
from perdure.run import Run
from perdure.scoring import general_loss, score_task
from perdure.testing import make

pytestmark = pytest.mark.train

STEPS = 6
MODES: dict[str, dict[str, Any]] = {
    "fixed": {"decay": 0.7},
    "window": {"window": 0.5},
    "paper": {"beta": "paper", "decay": 0.9},
    "official": {"beta": "official", "outside": "clamp"},
    "line": {"beta": "line", "every": 1, "rho": 1.0},
}
Weights = dict[str, Tensor]


class Watched(Ema):
    """Keeps what it saw of each task: weights and gradients after each step, and u."""

    def __init__(self, options: dict[str, Any]) -> None:
        super().__init__(make(Ema, options).config)
        self.seen: list[list[tuple[Weights, Weights, float]]] = []
        self.starts: list[Weights] = []
        self.raw: list[Weights] = []
        self.kept = 0

    def begin_task(self, ctx: Any) -> None:
        super().begin_task(ctx)
        self.starts.append({n: p.detach().clone() for n, p in trainable(ctx.model).items()})
        self.seen.append([])

    def after_step(self, ctx: Any) -> None:
        super().after_step(ctx)
        params = trainable(ctx.model)
        weights = {n: p.detach().clone() for n, p in params.items()}
        gradients = {n: p.grad.clone() for n, p in params.items() if p.grad is not None}
        self.seen[-1].append((weights, gradients, float(self.u)))
        copies = (self.average.weights, self.average.gradients)
        self.kept = sum(t.numel() for part in copies for t in part.values())

    def end_task(self, ctx: Any) -> Any:
        self.raw.append({n: p.detach().clone() for n, p in trainable(ctx.model).items()})
        return super().end_task(ctx)


def by_hand(mode: str, seen: list[tuple[Weights, Weights, float]]) -> Weights:
    """The average after all steps, one tensor after the other."""
    method = make(Ema, MODES[mode])
    options: Any = method.config
    average = {n: w.clone() for n, w in seen[0][0].items()}
    for (_, before, _), (weights, gradients, u) in pairwise(seen):
        for name, w in weights.items():
            if mode in ("fixed", "window"):
                new = 1 - (0.7 if mode == "fixed" else 1 - 1 / (0.5 * STEPS))
            elif mode == "line":
                new = 1 - float(line_weight(torch.tensor(u), 1.0))
            else:
                g, old = gradients[name], before[name]
                norms = [(w - average[name]).abs().sum(), g.abs().sum(), (g - old).abs().sum()]
                given = options.decay or 0.99
                new = float(new_weight(norms, options.beta, options.outside, given)[0])
            average[name] = (1 - new) * average[name] + new * w
    return average


def small(folder: Path, model: Path, **changes: Any) -> Any:
    options = {"model__tuning": "full", "train__max_steps": STEPS, "train__log_steps": 1,
               "train__learning_rate": 3e-2, "scoring__max_test_rows": 2}  # fmt: skip
    given = {"gauges": {"every": 0}, "general": None, **options, **changes}
    return perdure.load_recipe(write_recipe(folder, model, **given))


@pytest.fixture(scope="module")
def learned(
    tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[Run, Watched | None]]:
    """A run of two tasks with a mode of `ema`, or None for no method; each is made once."""
    done: dict[Any, tuple[Run, Watched | None]] = {}

    def learn(mode: str | None, tuning: str = "full", **changes: Any) -> Any:
        key = (mode, tuning, repr(changes))
        if key not in done:
            folder = tmp_path_factory.mktemp("ema")
            recipe = small(folder, tiny_model_dir, model__tuning=tuning, **changes)
            method = None if mode is None else Watched(MODES[mode])
            with pytest.MonkeyPatch.context() as patch:
                if method is not None:
                    patch.setattr("perdure.methods.registry.build", lambda specs: [method])
                run = Run.create(folder / "run", recipe)
                perdure.learn(recipe, run)
            done[key] = run, method
        return done[key]

    return learn


def saved(run: Run, after: int, tuning: str) -> Weights:
    name = "adapter_model" if tuning == "lora" else "model"
    found = load_file(run.path / f"checkpoints/task-{after}/model/{name}.safetensors")
    if tuning == "full":
        return found
    return {n.replace(".weight", ".default.weight"): w for n, w in found.items()}


CASES = [(m, "full") for m in MODES] + [("paper", "lora"), ("line", "lora")]


@pytest.mark.parametrize(("mode", "tuning"), CASES)
def test_check_12_losses_and_raw_weights_are_those_of_plain_training(
    learned: Any, mode: str, tuning: str
) -> None:
    plain, _ = learned(None, tuning)
    run, method = learned(mode, tuning)

    def losses(of: Run) -> list[float]:
        return [row["loss"] for row in of.log_rows() if row["after"] == 1]

    assert len(losses(plain)) == STEPS
    assert losses(run) == losses(plain)
    raw, ended, averaged = method.raw[0], saved(plain, 1, tuning), saved(run, 1, tuning)
    assert set(raw) <= set(ended)
    assert all(torch.equal(raw[n], ended[n]) for n in raw)
    assert any(not torch.equal(averaged[n], ended[n]) for n in raw)  # only what is saved differs


@pytest.mark.parametrize(("mode", "tuning"), CASES)
def test_check_13_the_average_is_saved_gone_on_from_and_written_once(
    learned: Any, mode: str, tuning: str
) -> None:
    run, method = learned(mode, tuning)
    assert len(method.seen) == 2
    for after, steps in enumerate(method.seen, 1):
        assert len(steps) == STEPS
        expected, found = by_hand(mode, steps), saved(run, after, tuning)
        for name, w in expected.items():
            torch.testing.assert_close(found[name], w, rtol=1e-4, atol=1e-6)
        if after == 1:
            assert all(torch.equal(method.starts[1][n], found[n]) for n in expected)
        folder = run.path / f"checkpoints/task-{after}"
        assert not (folder / "serving").exists()
        assert load_file(folder / "perdure_methods.safetensors").keys() <= {"state/0/u"}
    # Fixed and line keep one fp32 copy, paper and official two.
    size = sum(w.numel() for w in method.raw[0].values())
    assert method.kept == size * (2 if mode in ("paper", "official") else 1)


def test_check_11_switched_off_nothing_is_kept_and_weights_are_those_of_plain_training(
    learned: Any,
) -> None:
    plain, _ = learned(None)
    assert not load_file(plain.path / "checkpoints/task-2/perdure_methods.safetensors")
    MODES["off"] = {"decay": 0.0}
    run, _ = learned("off")
    for after in (1, 2):
        one, two = saved(plain, after, "full"), saved(run, after, "full")
        assert all(torch.equal(one[n], two[n]) for n in one)


@pytest.mark.parametrize("mode", ["paper", "line"])
def test_check_14_micro_batches_of_a_step_make_one_update(learned: Any, mode: str) -> None:
    whole, method = learned(mode)
    split, other = learned(mode, train__micro_batch_size=1)
    assert [len(steps) for steps in other.seen] == [STEPS, STEPS]
    us = [[u for *_, u in steps] for steps in method.seen]
    for steps, expected in zip(other.seen, us, strict=True):
        assert [u for *_, u in steps] == pytest.approx(expected, abs=1e-3)
    one, two = saved(whole, 1, "full"), saved(split, 1, "full")
    for name, w in one.items():
        torch.testing.assert_close(two[name], w, rtol=0, atol=2e-4)  # of steps of 3e-2


@pytest.mark.parametrize(("mode", "tuning"), [("fixed", "full"), ("line", "lora")])
def test_scores_eval_and_audit_are_of_the_average(
    learned: Any, mode: str, tuning: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tasks = [
        {"name": name, "format": "prompt", "columns": {"prompt": "text", "answer": "label"},
         "metric": "perplexity", "train": f"{name}-train.jsonl", "test": f"{name}-test.jsonl"}
        for name in LABELS
    ]  # fmt: skip
    general = {"source": "pydoc", "replay_rows": 4, "held_out_rows": 4, "max_tokens": 32}
    run, method = learned(mode, tuning, stream={"tasks": tasks}, general=general, scoring={})
    stream, checkpoint = run_stream(run), run.path / "checkpoints/task-1"
    model, tokenizer = load_saved(checkpoint)
    encoder = Encoder(tokenizer)

    def measured() -> dict[str, float]:
        text = general_loss(model, encoder, stream.general.held_out, max_tokens=32)
        found = {task.name: score_task(model, encoder, task).score for task in stream}
        return {"general": text.perplexity, **found}

    def changes() -> list[float]:
        found = audit((model, tokenizer), checkpoint, stream, measures=["loss", "tasks"])
        return [measure.change for measure in found.measures]

    average = measured()
    recorded = {name: score for (after, name), score in scores(run.path).items() if after == 1}
    assert recorded == pytest.approx(average, rel=1e-5)
    evaluate(run.path, None, 1, as_json=True)
    rows = json.loads(capsys.readouterr().out)["scores"]
    assert {r["task"]: r["score"] for r in rows} | {"general": average["general"]} == recorded
    assert changes() == pytest.approx([0, 0, 0], abs=1e-6)
    with torch.no_grad():  # the weights of training would have had other scores
        for name, p in model.named_parameters():
            p.copy_(method.raw[0].get(name, p))
    assert all(abs(score / average[name] - 1) > 1e-3 for name, score in measured().items())
    assert all(abs(change) > 1e-3 for change in changes())


@pytest.mark.parametrize(("mode", "tuning"), CASES)
def test_what_was_solved_and_how_far_it_moved_is_data_in_the_run(
    learned: Any, mode: str, tuning: str
) -> None:
    run, method = learned(mode, tuning)
    facts = {f["name"].removeprefix("method/"): f["value"] for f in run.facts() if f["after"] == 1}
    deciles = [facts[f"averaging_decile_{i}"] for i in range(1, 10)]
    assert deciles == sorted(deciles)
    assert 0 <= deciles[0] <= deciles[-1] <= 1
    assert 0 <= facts["averaging_out_share"] <= 1
    start, average = method.starts[0], by_hand(mode, method.seen[0])
    for name, end in (("averaging_moved", average), ("averaging_moved_raw", method.raw[0])):
        exact = sum(float((end[n] - w).square().sum()) for n, w in start.items()) ** 0.5
        assert facts[name] == pytest.approx(exact, rel=0.05)
    rows = [row for row in run.log_rows() if row["after"] == 1]
    if mode in ("fixed", "window"):
        assert deciles[0] == deciles[-1] == (0.7 if mode == "fixed" else 1 - 1 / (0.5 * STEPS))
        return
    told = [row["method/averaging_weight"] for row in rows if "method/averaging_weight" in row]
    assert len(told) == STEPS - 1
    if mode == "line":
        us = [u for *_, u in method.seen[0][1:]]
        assert len(set(us)) > 1  # else nothing was looked at
        assert told == pytest.approx([(u + 1) / 2 for u in us], abs=1e-6)
        assert facts["averaging_out_share"] == 0
    else:
        out = [row["method/averaging_outside"] for row in rows if "method/averaging_outside" in row]
        assert facts["averaging_out_share"] == pytest.approx(sum(out) / len(out), abs=1e-6)


def test_the_gradient_used_is_that_of_the_optimizer_after_the_clip(learned: Any) -> None:
    _, method = learned("paper", train__max_grad_norm=0.01)
    for _, gradients, _ in method.seen[0]:
        norm = sum(float(g.square().sum()) for g in gradients.values()) ** 0.5
        assert norm == pytest.approx(0.01, rel=1e-3)


class Killed(Exception):
    pass


@pytest.mark.parametrize("mode", ["paper", "line"])
def test_resume_inside_a_task_is_exact(
    learned: Any, tiny_model_dir: Path, tmp_path: Path, mode: str
) -> None:
    whole, _ = learned(mode)
    recipe = small(tmp_path, tiny_model_dir, save={"steps": 3})
    for stop in (True, False):
        method = Watched(MODES[mode])
        run = Run.open(tmp_path / "run") if not stop else Run.create(tmp_path / "run", recipe)
        log = run.log

        def log_or_stop(line: Any, log: Any = log, stop: bool = stop) -> None:
            if stop and (line["after"], line["step"]) == (2, 5):
                raise Killed
            log(line)

        run.log = log_or_stop  # type: ignore[method-assign]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("perdure.methods.registry.build", lambda specs, m=method: [m])
            if stop:
                with pytest.raises(Killed):
                    perdure.learn(recipe, run)
                held = _inside(run)
                kept = method.seen[1][:3]
            else:
                perdure.learn(recipe, run)
    # The checkpoint inside the task held the average beside the weights of training.
    expected = by_hand(mode, kept)
    for name, w in expected.items():
        torch.testing.assert_close(held[name], w, rtol=1e-4, atol=1e-6)
    one, two = saved(whole, 2, "full"), saved(run, 2, "full")
    assert all(torch.equal(one[n], two[n]) for n in one)
    facts, again = (
        [(f["name"], f["value"]) for f in r.facts() if f["name"].startswith("method/")]
        for r in (whole, run)
    )
    assert again == facts


def _inside(run: Run) -> Weights:
    """The average in the newest whole checkpoint inside a task."""
    import time

    from perdure.seals import is_sealed

    for _ in range(600):
        found = [p for p in run.path.glob("**/checkpoint-3") if is_sealed(p) and "task-2" in str(p)]
        if found:
            break
        time.sleep(0.1)
    held = load_file(found[0] / "perdure_methods.safetensors")
    start = "state/0/average/weights/"
    return {n.removeprefix(start): w for n, w in held.items() if n.startswith(start)}


@pytest.mark.parametrize("options", [{"beta": "paper"}, {"beta": "line", "every": 1}])
def test_on_classes_with_dropout_losses_are_those_of_plain_training(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    from class_runs import save_encoder, write_class_recipe

    body = save_encoder(tmp_path / "body")
    found: list[Run] = []
    for method in ({"name": "sequential"}, {"name": "ema", **options}):
        folder = tmp_path / method["name"]
        path = write_class_recipe(folder, body, method=method, train__epochs=2, train__log_steps=1)
        found.append(Run.create(folder / "run", perdure.load_recipe(path)))
        perdure.learn(found[-1].recipe, found[-1])
    plain, averaged = ([r["loss"] for r in run.log_rows() if r["after"] == 1] for run in found)
    assert len(plain) > 3
    assert averaged == plain
    names = {fact["name"] for fact in found[1].facts()}
    assert {"method/averaging_moved", "method/averaging_decile_5"} <= names
    rows = [row for row in found[1].log_rows() if "method/averaging_weight" in row]
    assert rows


@pytest.mark.parametrize("options", [{"beta": "official"}, {"beta": "line", "every": 1}])
def test_of_several_phases_the_last_one_is_averaged(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    """The body learns in the warm-up alone; heads are trained on it as it is, and are averaged."""
    from class_runs import save_encoder, write_class_recipe

    body = save_encoder(tmp_path / "body", dropout=0.0)
    star = {"name": "seq_star", "warmup_epochs": 1}
    found: list[Run] = []
    for method in (star, [star, {"name": "ema", **options}]):
        folder = tmp_path / str(len(found))
        path = write_class_recipe(folder, body, method=method, train__epochs=2, train__log_steps=1)
        found.append(Run.create(folder / "run", perdure.load_recipe(path)))
        perdure.learn(found[-1].recipe, found[-1])
    plain, averaged = ([r["loss"] for r in run.log_rows() if r["after"] == 1] for run in found)
    assert averaged == plain
    models = [run.path / "checkpoints/task-1/model" for run in found]
    one, two = (load_file(folder / "body.safetensors") for folder in models)
    assert all(torch.equal(w, two[n]) for n, w in one.items())
    one, two = (load_file(folder / "heads.safetensors") for folder in models)
    assert any(not torch.equal(w, two[n]) for n, w in one.items())


def test_a_budget_takes_back_the_average_and_not_the_weights(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    method = Watched({"decay": 0.7})
    recipe = small(
        tmp_path,
        tiny_model_dir,
        gauges={"every": 2},
        stop_when={"kl": 0.005, "action": "rewind"},
        train__learning_rate=2e-3,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("perdure.methods.registry.build", lambda specs: [method])
        run = Run.create(tmp_path / "run", recipe)
        perdure.learn(recipe, run)
    facts = {fact["name"]: fact["value"] for fact in run.facts() if fact["after"] == 1}
    share = facts["method/budget_share"]
    assert 0 < share < 1
    start, found = method.starts[0], saved(run, 1, "full")
    end = start
    for weights, _, _ in method.seen[0]:
        first = end is start
        end = {n: w if first else 0.7 * end[n] + 0.3 * w for n, w in weights.items()}
    for name, w in start.items():
        torch.testing.assert_close(found[name], w + share * (end[name] - w), rtol=1e-4, atol=1e-6)
