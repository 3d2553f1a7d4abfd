"""The trainer of `learn: rl` in a recipe: its KL has the gradients of TRL's own, an average serves
while the policy samples, and processes learn as one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from grpo_trainers import grpo, nothing
from rl_runs import with_fixed_completions, write_recipe
from safetensors.torch import load_file
from tiny_runs import finish, start_call
from transformers import GenerationMixin, TrainerCallback

import perdure
from perdure.learners import base
from perdure.learners.generation import GenerationLearner
from perdure.learners.rl import RLTrainer
from perdure.run import Run

pytestmark = pytest.mark.train

BETA = 0.7
Weights = dict[str, torch.Tensor]


def moved(model: Any) -> Weights:
    """Move what is trained off the reference, and give it."""
    generator, found = torch.Generator().manual_seed(1), {}
    by = 0.3 if hasattr(model, "peft_config") else 0.03
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter += by * torch.randn(parameter.shape, generator=generator)
                found[name] = parameter.detach().clone()
    return found


class Keep(TrainerCallback):
    """Keeps the gradient of each step, as the optimizer gets it."""

    def __init__(self) -> None:
        self.steps: list[Weights] = []

    def on_pre_optimizer_step(self, *_: Any, model: Any = None, **__: Any) -> None:
        self.steps.append(
            {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        )


def apart(ours: Weights, theirs: Weights) -> float:
    """The largest difference, over the largest entry."""
    assert ours.keys() == theirs.keys()
    largest = max(float(g.abs().max()) for g in theirs.values())
    assert largest > 1e-4, "nothing to compare"
    return max(float((ours[n] - g).abs().max()) for n, g in theirs.items()) / largest


@pytest.mark.parametrize("tuning", ["full", "lora"])
@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("temperature", [1.0, 0.8])
def test_a_recipes_kl_has_the_gradients_of_trls_own_beta(
    tuning: str,
    accumulation: int,
    temperature: float,
    tiny: Any,
    tmp_path: Path,
    tiny_model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One step on the completions that a plain GRPOTrainer made, with its weights."""
    from peft import LoraConfig

    lora = {"r": 2, "alpha": 4, "target_modules": ["q_proj", "down_proj"]}
    options = {"max_grad_norm": 0.0, "max_steps": 1, "gradient_accumulation_steps": accumulation,
               "temperature": temperature, "beta": BETA}  # fmt: skip
    if tuning == "lora":
        options["peft"] = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"])
    theirs = grpo(tiny, tmp_path / "trl", nothing, **options)
    made, batches = theirs._generate_and_score_completions, []

    def recorded(inputs: Any) -> Any:
        found = made(inputs)
        for i, mask in enumerate(found["completion_mask"]):  # of unlike lengths
            mask[(5 * i) % 8 :] = 0
        found["num_items_in_batch"] = found["completion_mask"].sum()
        batches.append({k: v.clone() if torch.is_tensor(v) else v for k, v in found.items()})
        torch.manual_seed(0)  # they are shuffled next
        return found

    theirs._generate_and_score_completions = recorded
    theirs.add_callback(own := Keep())
    start = moved(theirs.model)
    theirs.train()

    def given(self: RLTrainer, inputs: Any) -> Any:
        torch.manual_seed(0)
        return dict(batches[0])

    kept, train = Keep(), RLTrainer.train

    def from_there(self: RLTrainer, *args: Any, **more: Any) -> Any:
        weights = dict(self.session.model.named_parameters())
        with torch.no_grad():
            for name, value in start.items():
                weights[name].copy_(value)
        self.add_callback(kept)
        assert not any("ref" in name.split(".") for name in weights)
        assert self.ref_model is None
        return train(self, *args, **more)

    monkeypatch.setattr(RLTrainer, "_generate_and_score_completions", given)
    monkeypatch.setattr(RLTrainer, "train", from_there)
    changes = {
        "method": {"name": "kl", "beta": BETA}, "train__max_grad_norm": 0, "rl__max_steps": 1,
        "train__batch_size": 4 * accumulation, "rl__micro_batch_size": 4,
        "rl__temperature": temperature, "model__tuning": tuning, "train__optimizer": "sgd",
        "rl__scale": "none",
    }  # fmt: skip
    if tuning == "lora":
        changes["model__lora"] = lora
    recipe = perdure.load_recipe(write_recipe(tmp_path, tiny_model_dir, **changes))
    perdure.learn(recipe, Run.create(tmp_path / "run", recipe))
    assert len(batches) == len(own.steps) == len(kept.steps) == 1
    assert len(batches[0]["completion_ids"]) == 4 * accumulation
    assert apart(kept.steps[0], own.steps[0]) < 1e-5


def test_an_average_is_scored_and_saved_while_the_raw_policy_samples(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The average by hand: half of it and half of each further step's weights."""
    name = "model.layers.0.mlp.down_proj.weight"
    sampled: list[torch.Tensor] = []
    raw: list[torch.Tensor] = []
    scored: list[torch.Tensor] = []
    sample, score = GenerationMixin._sample, GenerationLearner.score_task
    stepped = RLTrainer._maybe_log_save_evaluate

    def weight(model: Any) -> torch.Tensor:
        return dict(model.named_parameters())[name].detach().clone()

    def samples(self: Any, *args: Any, generation_config: Any, **more: Any) -> Any:
        if generation_config.do_sample:  # answers that are scored are greedy
            sampled.append(weight(self))
        return sample(self, *args, generation_config=generation_config, **more)

    def steps(self: RLTrainer, *args: Any, **more: Any) -> Any:
        raw.append(weight(self.session.model))
        return stepped(self, *args, **more)

    def scores(self: Any, task: Any, progress: Any) -> Any:
        scored.append(weight(self.model))
        return score(self, task, progress)

    monkeypatch.setattr(GenerationMixin, "_sample", samples)
    monkeypatch.setattr(RLTrainer, "_maybe_log_save_evaluate", steps)
    monkeypatch.setattr(GenerationLearner, "score_task", scores)
    rewards = "perdure.learners.rollouts.Judge.reward"
    monkeypatch.setattr(rewards, lambda _, row, **__: [k % 4 / 4 for k in range(len(row))])
    changes = {"method": {"name": "ema", "decay": 0.5}, "rl__learning_rate": 1e-2}
    recipe = perdure.load_recipe(write_recipe(tmp_path, tiny_model_dir, **changes))
    run = Run.create(tmp_path / "run", recipe)
    perdure.learn(recipe, run)
    start = load_file(tiny_model_dir / "model.safetensors")[name]
    del raw[4:]  # it is called once more at the end
    assert len(sampled) == len(raw) == 4
    for seen, was in zip(sampled, [start, *raw], strict=False):
        assert torch.equal(seen, was)  # by the weights of training
    average = raw[0]  # where it begins
    for one in raw[1:]:
        average = 0.5 * average + 0.5 * one
    assert float((average - raw[-1]).abs().max()) > 1e-3
    # Both tasks are scored before the first one, after it and after the second.
    assert len(scored) == 6
    for seen in scored[2:4]:
        torch.testing.assert_close(seen, average)
    saved = load_file(run.path / "checkpoints" / "task-1" / "model" / "model.safetensors")
    torch.testing.assert_close(saved[name], average)


def test_a_recipes_log_has_the_kl_that_nothing_holds_and_each_terms_share_of_a_clipped_step(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`kl` with a beta of 0 measures alone: a run with it has the weights of one without."""
    rewards = "perdure.learners.rollouts.Judge.reward"
    monkeypatch.setattr(rewards, lambda _, row, **__: [k % 4 / 4 for k in range(len(row))])
    gere = {"name": "gere", "insert": 2, "weight": 100}
    changes = {
        "train__max_grad_norm": 0.05, "rl__learning_rate": 1e-2,
        "general": {"source": "pydoc", "replay_rows": 4, "held_out_rows": 0, "max_tokens": 24},
    }  # fmt: skip
    ends = []
    for name, method in (("both", [gere, {"name": "kl", "beta": 0}]), ("one", [gere])):
        path = write_recipe(tmp_path / name, tiny_model_dir, method=method, **changes)
        recipe = perdure.load_recipe(path)
        run = Run.create(tmp_path / name / "run", recipe)
        perdure.learn(recipe, run)
        lines = [line for line in run.log_rows() if line["task"] == "one"]
        ends.append(load_file(run.path / "checkpoints" / "task-1" / "model" / "model.safetensors"))
        if name == "both":
            assert lines[0]["method/kl"] == pytest.approx(0, abs=1e-6)
            assert lines[1]["method/kl"] > 1e-4
        assert all(line["gradient_norm"] > 0.05 for line in lines)
        shares = {k: v for k, v in lines[1].items() if k.endswith("_gradient_share")}
        assert sum(shares.values()) == pytest.approx(1)
        assert shares["method/gere_margin_gradient_share"] > 0.5
        assert shares["method/task_gradient_share"] > 0
        assert shares.get("method/kl_gradient_share", 0) == 0
    assert all(torch.equal(value, ends[1][name]) for name, value in ends[0].items())


@pytest.mark.process
@pytest.mark.parametrize("algorithm", ["grpo", "reinforce++"])
def test_two_processes_have_the_gradients_of_one(
    algorithm: str, tmp_path: Path, tiny_model_dir: Path
) -> None:
    """On the same completions, to 1e-6 of the largest entry. REINFORCE++ whitens over both: their
    completions earn unlike rewards and have unlike lengths."""
    found, earned = [], []
    for processes in (1, 2):
        folder = tmp_path / str(processes)
        changes = {"rl__max_steps": 1, "rl__algorithm": algorithm, "train__max_grad_norm": 0}
        recipe = write_recipe(folder, tiny_model_dir, **changes)
        given = str(recipe), str(folder / "run"), str(folder)
        finish(start_call(with_fixed_completions, *given, processes=processes))
        parts = [torch.load(folder / f"seen-{rank}.pt") for rank in range(processes)]
        found.append(parts[0]["gradients"])
        earned.append([(a, n) for part in parts for a, n in part["earned"]])
    assert earned[0] == earned[1]  # the same completions
    halves = [{value for value, _ in earned[0][k : k + 4]} for k in (0, 4)]
    assert halves[0] != halves[1]
    assert apart(found[1], found[0]) <= 1e-6


def test_two_tasks_leave_no_forward_of_the_trainers_behind(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL puts its own on the model below the adapters: each would nest in the one before."""
    put: list[tuple[bool, bool]] = []
    forget = base.forget_trainer

    def noted(model: Any) -> None:
        inner = vars(model.get_base_model())
        before = "forward" in inner
        forget(model)
        put.append((before, "forward" in inner))

    monkeypatch.setattr(base, "forget_trainer", noted)
    path = write_recipe(tmp_path, tiny_model_dir, model__tuning="lora", rl__max_steps=1)
    tasks = ["stream.tasks.two.learn=rl", "stream.tasks.two.max_new_tokens=8"]
    recipe = perdure.load_recipe(path, tasks)
    perdure.learn(recipe, Run.create(tmp_path / "run", recipe))
    # Before each task and after it.
    assert put == [(False, False), (True, False)] * 2
