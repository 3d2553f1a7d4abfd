"""Tasks with `learn: rl`: what is trained on, what is logged, and a killed run that goes on."""

from __future__ import annotations

import itertools
import json
import math
import os
import re
import shutil
import signal
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from rl_runs import fixed, write_recipe
from safetensors.torch import load_file
from tiny_runs import start_call
from trl import GRPOTrainer
from typer.testing import CliRunner

import perdure
from perdure.cli import app
from perdure.commands.learn import show
from perdure.consent import trusting
from perdure.engine.callbacks import ProgressCallback
from perdure.engine.session import TaskSession
from perdure.errors import PerdureError, RecipeError, UsageError
from perdure.extension import extend, extension_recipe, plan_extension
from perdure.learners import rl
from perdure.learners.rl import RLTrainer
from perdure.learners.rollouts import Judge, PromptSampler
from perdure.methods.registry import load, load_config, names
from perdure.models.adapters import attach_lora
from perdure.models.weights import put
from perdure.plan import plan
from perdure.prepare import prepare
from perdure.reports.glossary import said_of
from perdure.rewards import bleu, build, check_rewards
from perdure.run import Run
from perdure.streams.task import Task, TaskStream

pytestmark = pytest.mark.train

OWN = '''
from perdure.rewards import Reward


def half(samples):
    return [0.5 for sample in samples]


class gate(Reward):
    """All pass."""

    role = "gate"
    version = "1"

    def __call__(self, samples):
        return [1.0 for sample in samples]
'''


def learned(folder: Path, model: Path, **changes: Any) -> Run:
    recipe = perdure.load_recipe(write_recipe(folder, model, **changes))
    run = Run.create(folder / "run", recipe)
    perdure.learn(recipe, run)
    return run


def weights(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.path / "checkpoints" / "task-2" / "model" / "model.safetensors")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Run:
    return learned(tmp_path_factory.mktemp("rl"), tiny_model_dir)


def test_one_stream_mixes_ways_in_one_matrix(run: Run) -> None:
    assert run.state == "finished"
    assert run.matrix().array().shape == (3, 2)
    steps = [(line["task"], line["step"]) for line in run.log_rows()]
    assert steps == [("one", 1), ("one", 2), ("one", 3), ("one", 4), ("two", 1), ("two", 2)]


def test_a_step_logs_what_it_sampled_and_earned(run: Run) -> None:
    first, *_, last = run.log_rows()
    names = {name for name in first if name.startswith("rl/")}
    assert names == {
        "rl/reward", "rl/reward_std", "rl/reward/chrf", "rl/dead_groups", "rl/truncated",
        "rl/length", "rl/entropy", "rl/clipped", "rl/seconds_generation", "rl/seconds_rewards",
        "rl/seconds_update",
    }  # fmt: skip
    assert 0 < first["rl/length"] <= 8
    assert all(first[name] >= 0 for name in names)
    assert all(said_of(name) is not None for name in names | {"until/format"})
    assert not any(name.startswith("rl/") for name in last)  # of the supervised task
    told = (run.path / "perdure.log").read_text()
    assert told.count("completions are written by") == 1
    assert "task one: completions are written by transformers\n" in told


def test_trls_defaults_decide_nothing(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each setting that changes what is learned is the recipe's."""
    made: list[RLTrainer] = []
    train = RLTrainer.train

    def noted(self: RLTrainer, *args: Any, **kwargs: Any) -> Any:
        made.append(self)
        return train(self, *args, **kwargs)

    monkeypatch.setattr(RLTrainer, "train", noted)
    learned(
        tmp_path, tiny_model_dir, rl__temperature=0.8, rl__top_k=50, rl__loss="grpo",
        rl__learning_rate=1e-4, rl__batch_size=16, rl__micro_batch_size=8, rl__max_steps=1,
        rl__scale="none", rl__top_p=0.9,
    )  # fmt: skip
    args: Any = made[0].args
    assert not args.bf16
    assert not args.gradient_checkpointing
    assert not args.use_bias_correction_kl
    assert (args.beta, args.loss_type, args.scale_rewards) == (0.0, "grpo", "none")
    assert (args.temperature, args.top_p, args.top_k) == (0.8, 0.9, 50)
    assert (args.learning_rate, args.per_device_train_batch_size) == (1e-4, 8)
    assert args.gradient_accumulation_steps == args.steps_per_generation == 2
    assert args.max_completion_length == 8


def test_each_key_acts(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others than those above; `group`, `rewards` and `backend` have tests of their own."""
    made: list[RLTrainer] = []
    begun: list[Any] = []
    train, whitened = RLTrainer.train, rl.reinforce_advantages

    def noted(self: RLTrainer, *args: Any, **kwargs: Any) -> Any:
        made.append(self)
        return train(self, *args, **kwargs)

    def counted(*args: Any, **kwargs: Any) -> Any:
        begun.append(args)
        return whitened(*args, **kwargs)

    monkeypatch.setattr(RLTrainer, "train", noted)
    monkeypatch.setattr(rl, "reinforce_advantages", counted)
    run = learned(
        tmp_path, tiny_model_dir, rl__iterations=2, rl__clip=0.1, rl__clip_high=0.3,
        rl__dual_clip=3.0, rl__mask_truncated=True, rl__epochs=0.5, rl__max_steps=None,
        rl__algorithm="reinforce++", train__max_steps=None, stream__order=["one", "two"],
        train__precision="bf16", train__gradient_checkpointing=True,
    )  # fmt: skip
    args: Any = made[0].args
    assert args.bf16
    assert args.gradient_checkpointing
    assert args.activation_checkpointing
    assert (args.epsilon, args.epsilon_high, args.delta) == (0.1, 0.3, 3.0)
    # Completions that were cut are masked by Perdure, which knows ends of several tokens too.
    assert (args.num_iterations, args.mask_truncated_completions) == (2, False)
    rows = len(made[0].judge.rows)
    assert args.max_steps == math.ceil(math.ceil(rows / 2) * 2 * 0.5)  # two prompts, twice
    assert len(begun) == math.ceil(args.max_steps / 2)
    assert [line["step"] for line in run.log_rows()][: args.max_steps][-1] == args.max_steps


def test_general_texts_have_the_share_that_sft_gives_them(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step of 8 completions weighs as one of 8 rows, as on a GRPOTrainer of one's own; and an
    epoch has the steps that the trainer makes."""
    steps: list[tuple[int, int]] = []
    train = RLTrainer.train

    def noted(self: RLTrainer, *args: Any, **kwargs: Any) -> Any:
        micro = len(self.get_train_dataloader())
        made = micro // self.args.gradient_accumulation_steps
        steps.append((self.session.step.per_epoch, made))
        return train(self, *args, **kwargs)

    monkeypatch.setattr(RLTrainer, "train", noted)
    run = learned(
        tmp_path, tiny_model_dir, rl__iterations=2, rl__max_steps=2, rl__micro_batch_size=4,
        method={"name": "general_replay", "insert": 2, "max_tokens": 12},
        general={"source": "pydoc", "replay_rows": 4, "held_out_rows": 2, "max_tokens": 24},
    )  # fmt: skip
    lines = list(run.log_rows())
    assert {line["task"] for line in lines} == {"one", "two"}
    for line in lines:
        assert line["method/gere_label_weight"] == pytest.approx(2 / (8 + 2), rel=1e-4)
    ((told, made),) = steps
    assert told == made > 2


def test_the_models_own_settings_stay(run: Run, tiny_model_dir: Path) -> None:
    """TRL writes padding and tags into a model's settings, which would be saved with it."""
    for name in ("config.json", "generation_config.json"):
        was, now = (
            json.loads((folder / name).read_text())
            for folder in (tiny_model_dir, run.path / "checkpoints" / "task-1" / "model")
        )
        assert now.get("pad_token_id") == was.get("pad_token_id")
        assert now.get("model_tags") == was.get("model_tags")


WAYS: dict[str, dict[str, Any]] = {
    "grpo": {},
    "two passes over completions, half batches": {
        "rl__iterations": 2, "train__micro_batch_size": 4, "rl__clip": 0.1, "save": {"steps": 2},
    },
    "reinforce++, adapters, second epoch": {
        "rl__algorithm": "reinforce++", "model__tuning": "lora", "rl__max_steps": 8,
        "rl__epochs": 2,
    },
    "kl and gere": {
        "method": [{"name": "gere", "insert": 1}, {"name": "kl", "beta": 0.1}],
        "general": {"source": "pydoc", "replay_rows": 4, "held_out_rows": 2, "max_tokens": 24},
    },
}  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
def test_a_killed_run_ends_with_the_same_weights(
    way: str, tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"save": {"steps": 1}, **WAYS[way]}
    whole = learned(tmp_path / "whole", tiny_model_dir, **changes)
    recipe = perdure.load_recipe(write_recipe(tmp_path / "killed", tiny_model_dir, **changes))
    killed = Run.create(tmp_path / "killed" / "run", recipe)
    steps = recipe.rl.max_steps if recipe.rl else 0
    end = ProgressCallback.on_step_end

    def struck(self: Any, args: Any, state: Any, control: Any, **more: Any) -> None:
        if state.global_step == steps - 1:
            raise KeyboardInterrupt
        end(self, args, state, control, **more)

    with monkeypatch.context() as patch:
        patch.setattr(ProgressCallback, "on_step_end", struck)
        with pytest.raises(KeyboardInterrupt):
            perdure.learn(recipe, killed)
    assert not list((killed.path / "checkpoints").glob("task-1"))
    perdure.learn(recipe, Run.open(killed.path))
    name = "adapter_model.safetensors" if "lora" in way or "adapters" in way else None
    line = whole.log_rows()[0]
    assert ("rl/seconds_reference" in line) == ("kl" in way)
    assert all(value > 0 for key, value in line.items() if key.startswith("rl/seconds_"))
    for folder in ("task-1", "task-2"):
        pair = [
            load_file(one.path / "checkpoints" / folder / "model" / (name or "model.safetensors"))
            for one in (whole, killed)
        ]
        assert pair[0].keys() == pair[1].keys()
        assert all(torch.equal(pair[0][key], pair[1][key]) for key in pair[0])


def test_other_rewards_prompts_or_reference_do_not_go_on(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reward whose version changed would mix two policies' goals in one task."""
    from perdure.rewards.chrf import Chrf

    kl = {"name": "kl", "reference": "previous"}
    path = write_recipe(tmp_path, tiny_model_dir, save={"steps": 1}, method=kl)
    recipe = perdure.load_recipe(path)
    run = Run.create(tmp_path / "run", recipe)

    def struck(self: Any, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 3:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ProgressCallback, "on_step_end", struck)
        with pytest.raises(KeyboardInterrupt):
            perdure.learn(recipe, run)
    marks = [json.loads(one.read_text()) for one in run.path.rglob(rl.MARKS)]
    assert {json.dumps(one["reference"]) for one in marks} == {'{"kl": "previous"}'}
    assert marks[0]["order"] == {"rows": 9, "prompts": 2, "group": 4, "seed": recipe.seed}
    assert marks[0]["rewards"]["chrf"]["weight"] == 1.0
    assert list(marks[0]["hashes"]) == ["previous"]
    assert len({json.dumps(one["hashes"]) for one in marks}) == 1
    with monkeypatch.context() as patch:
        patch.setattr(TaskSession, "references", {"previous": "another model's"})
        with pytest.raises(
            PerdureError, match=r"from: hashes.previous: .* then, .*another model's"
        ):
            perdure.learn(recipe, Run.open(run.path), accept_changes=True)
    for change, told in (
        (["method.reference=base"], 'reference.kl: "previous" then, "base" now'),
        (["rl.rewards=[{name: chrf, word_order: 2}]"], "rewards.chrf.word_order: 0 then, 2 now\\n"),
        (["rl.rewards=[format, chrf]"], "rewards.format: none then, .*.weight.: 0.2.* now\\n"),
        (["seed=7"], "order.seed: 0 then, 7 now\\n"),
    ):
        changed = perdure.load_recipe(path, change)
        with pytest.raises(PerdureError, match=f"cannot be gone on from: {told}"):
            perdure.learn(changed, Run.open(run.path), accept_changes=True)
    init = Chrf.__init__

    def other(self: Any, config: Any) -> None:
        init(self, config)
        self.version = "another"

    monkeypatch.setattr(Chrf, "__init__", other)
    with pytest.raises(PerdureError, match=r'from: rewards.chrf.version: .* then, "another" now'):
        perdure.learn(recipe, Run.open(run.path), accept_changes=True)


@pytest.mark.process
def test_sigkill(tmp_path: Path, tiny_model_dir: Path) -> None:
    """As above, by the signal, at a moment of which nothing is known."""
    import time

    ends = []
    for kill in (False, True):
        folder = tmp_path / str(kill)
        recipe = write_recipe(folder, tiny_model_dir, save={"steps": 1}, rl__max_steps=6)
        started = start_call(_run, "run", str(recipe), "--out", str(folder / "run"))
        if kill:
            log = folder / "run" / "log.jsonl"
            while started.alive() and not (log.exists() and len(log.read_text().split("\n")) > 4):
                time.sleep(0.02)
            assert started.alive(), started.output.read_text()
            os.kill(started.processes[0].pid, signal.SIGKILL)
        started.processes[0].join()
        if kill:
            again = CliRunner().invoke(app, ["resume", str(folder / "run")])
            assert again.exit_code == 0, again.output
        ends.append(weights(Run.open(folder / "run")))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


def _run(*args: str) -> None:
    from perdure.cli import main

    sys.argv = ["perdure", *args]
    main()


def test_the_loss_is_grpos_by_hand(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One step on known completions: its gradient is that of a plain loop over tokens.

    L = - mean over all tokens of A_i log p, A_i = (R_i - mean) / (std + 1e-4) in each group: the
    ratio is 1 where the policy is the one that sampled.
    """
    from transformers import AutoModelForCausalLM

    from perdure.rewards import build

    seen: list[tuple[Any, Any, list[float]]] = []
    judged = RLTrainer._calculate_rewards

    def noted(self: RLTrainer, inputs: Any, prompts: Any, written: Any, ids: Any) -> Any:
        found = judged(self, inputs, prompts, written, ids)
        seen.append(([self.ids[text] for text in prompts], ids, found[:, 0].tolist()))
        return found

    monkeypatch.setattr(RLTrainer, "_calculate_rewards", noted)
    monkeypatch.setattr(RLTrainer, "_generate_single_turn", fixed)
    run = learned(
        tmp_path, tiny_model_dir, train__optimizer="sgd", train__max_grad_norm=0,
        rl__learning_rate=1.0, rl__max_steps=1, rl__temperature=0.8,
    )  # fmt: skip
    prompts, completions, rewards = seen[0]
    assert build(["chrf"]).versions  # what was earned came from it
    assert len(set(rewards)) > 2
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    total, count = torch.zeros(()), 0
    for start in (0, 4):
        group = torch.tensor(rewards[start : start + 4])
        advantages = (group - group.mean()) / (group.std() + 1e-4)
        for i in range(4):
            prompt, ids = prompts[start + i], completions[start + i]
            logits = model(torch.tensor([[*prompt, *ids]])).logits[0].float() / 0.8
            for k, token in enumerate(ids):
                log_p = logits[len(prompt) + k - 1].log_softmax(-1)[token]
                total, count = total - advantages[i] * log_p, count + 1
    (total / count).backward()
    path = run.path / "checkpoints" / "task-1" / "model" / "model.safetensors"
    after, base = load_file(path), load_file(tiny_model_dir / "model.safetensors")
    for name, parameter in model.named_parameters():
        if name in base:
            wanted = parameter.grad
            largest = float(wanted.abs().max())
            assert torch.allclose(base[name] - after[name], wanted, atol=1e-5 * largest + 1e-7)


def of_tokens(kind: str, sums: list[list[torch.Tensor]], lengths: list[list[int]]) -> torch.Tensor:
    """The step's loss from each completion's sum over its tokens, by micro-batch."""
    total = sum(map(sum, lengths))
    shares = []
    for own, count in zip(sums, lengths, strict=True):
        if kind == "dapo":
            shares.append(sum(own) / total * len(sums))
        elif kind == "bnpo":
            shares.append(sum(own) / sum(count))
        elif kind == "grpo":
            shares.append(sum(s / n for s, n in zip(own, count, strict=True)) / len(own))
        else:
            shares.append(sum(own) / (len(own) * 8))  # max_new_tokens
    return torch.stack(shares).sum() / len(shares)


def test_micro_example_m9(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loss of one token by its ratio and advantage, as the recipe's clips have TRL compute it;
    and M9's bound where the advantage is negative."""
    held: list[RLTrainer] = []
    compute = RLTrainer.compute_loss

    def noted(self: RLTrainer, *args: Any, **more: Any) -> Any:
        held.append(self)
        return compute(self, *args, **more)

    monkeypatch.setattr(RLTrainer, "compute_loss", noted)
    learned(
        tmp_path, tiny_model_dir, rl__iterations=2, rl__clip=0.2, rl__clip_high=0.28,
        rl__dual_clip=3.0, rl__max_steps=2,
    )  # fmt: skip
    trainer: Any = held[-1]
    one = torch.ones(1, 1, dtype=torch.long)

    def loss(ratio: float, advantage: float) -> float:
        log_probs = torch.tensor([[math.log(ratio)]])
        monkeypatch.setattr(
            trainer,
            "_get_per_token_logps_and_entropies",
            lambda *_, **__: (log_probs, torch.zeros(1, 1), None),
        )
        given = {
            "prompt_ids": one, "prompt_mask": one, "completion_ids": one, "completion_mask": one,
            "advantages": torch.tensor([advantage]), "old_per_token_logps": torch.zeros(1, 1),
            "num_items_in_batch": torch.tensor(1),
        }  # fmt: skip
        trainer.current_gradient_accumulation_steps = 1
        return float(GRPOTrainer._compute_loss(trainer, trainer.model, given))

    for ratio, advantage, wanted in (
        (1.5, 1, -1.28), (0.5, 1, -0.5), (1.5, -1, 1.5), (0.5, -1, 0.8), (4, -1, 3), (1, 1, -1),
    ):  # fmt: skip
        assert loss(ratio, advantage) == pytest.approx(wanted, abs=1e-6), (ratio, advantage)
    trainer.epsilon_high, trainer.args.delta = 0.2, None
    for ratio, advantage, wanted in ((1.5, 1, -1.2), (4, -1, 4)):
        assert loss(ratio, advantage) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("group", "share"),
    [(4, (0.814512, 0.4112, 0.125)), (8, (0.663420, 0.167775, 0.007812))],
)
def test_micro_example_m11(group: int, share: tuple[float, ...]) -> None:
    """How often a group is dead where each completion is right by chance p: all outcomes of a
    group, told as a step tells them."""
    outcomes = torch.tensor(list(itertools.product((0.0, 1.0), repeat=group)))
    dead = rl.spreads(outcomes.flatten(), group) < rl.FLAT
    for p, wanted in zip((0.05, 0.2, 0.5), share, strict=True):
        each = torch.where(outcomes == 1, p, 1 - p).double().prod(1)
        assert float(each[dead].sum()) == pytest.approx(wanted, abs=1e-6)


@pytest.mark.unit
@pytest.mark.parametrize(("kind", "wanted"), [("grpo", -0.25), ("bnpo", 0.125), ("dr_grpo", 0.05)])
def test_micro_example_m10(kind: str, wanted: float) -> None:
    """Two tokens of loss -1 and six of .5, with 8 as the longest: .0625 in place of 10's .05."""
    sums = [[torch.tensor(-2.0), torch.tensor(3.0)]]
    found = float(of_tokens(kind, sums, [[2, 6]]))
    assert found == pytest.approx(wanted * (10 / 8 if kind == "dr_grpo" else 1))


@pytest.mark.parametrize("kind", ["dapo", "bnpo", "grpo", "dr_grpo"])
def test_each_loss_is_its_mean_over_unequal_completions_and_micro_batches(
    kind: str, tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient of a step of two micro-batches is that of a plain loop over what each held."""
    from transformers import AutoModelForCausalLM

    seen: list[dict[str, Any]] = []
    compute = RLTrainer.compute_loss

    def noted(self: RLTrainer, model: Any, inputs: Any, *args: Any, **more: Any) -> Any:
        seen.append({k: v.clone() if torch.is_tensor(v) else v for k, v in inputs.items()})
        return compute(self, model, inputs, *args, **more)

    monkeypatch.setattr(RLTrainer, "compute_loss", noted)
    monkeypatch.setattr(RLTrainer, "_generate_single_turn", fixed)
    run = learned(
        tmp_path, tiny_model_dir, train__optimizer="sgd", train__max_grad_norm=0, rl__loss=kind,
        rl__learning_rate=1.0, rl__max_steps=1, rl__micro_batch_size=4,
    )  # fmt: skip
    assert len(seen) == 2
    lengths = [one["completion_mask"].sum(1).tolist() for one in seen]
    assert len({n for count in lengths for n in count}) > 1
    assert sum(lengths[0]) != sum(lengths[1])
    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    sums: list[list[torch.Tensor]] = []
    for one in seen:
        sums.append([])
        for i, length in enumerate(lengths[len(sums) - 1]):
            prompt = one["prompt_ids"][i][one["prompt_mask"][i].bool()].tolist()
            ids = one["completion_ids"][i][:length].tolist()
            log_p = model(torch.tensor([[*prompt, *ids]])).logits[0].float().log_softmax(-1)
            own = sum(log_p[len(prompt) + k - 1][token] for k, token in enumerate(ids))
            sums[-1].append(-one["advantages"][i] * own)
    of_tokens(kind, sums, lengths).backward()
    path = run.path / "checkpoints" / "task-1" / "model" / "model.safetensors"
    after, base = load_file(path), load_file(tiny_model_dir / "model.safetensors")
    largest = max(float(p.grad.abs().max()) for p in model.parameters())
    for name, parameter in model.named_parameters():
        if name in base:
            found = base[name] - after[name]
            assert float((found - parameter.grad).abs().max()) <= 1e-5 * largest + 1e-7, name


def advantages(
    folder: Path,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    rewards: list[list[float]],
    **changes: Any,
) -> list[list[float]]:
    """What a recipe makes of the rewards of each step's completions."""
    steps = iter(rewards)
    monkeypatch.setattr("perdure.learners.rollouts.Judge.reward", lambda *_, **__: next(steps))
    monkeypatch.setattr(RLTrainer, "_generate_single_turn", fixed)
    seen: list[list[float]] = []
    scored = RLTrainer._generate_and_score_completions

    def noted(self: RLTrainer, inputs: Any) -> Any:
        found = scored(self, inputs)
        seen.append(found["advantages"].tolist())
        return found

    monkeypatch.setattr(RLTrainer, "_generate_and_score_completions", noted)
    learned(folder, model, rl__max_steps=len(rewards), **changes)
    return seen


@pytest.mark.parametrize(
    ("scale", "of_m4"),
    [
        ("group", [0.930166, -0.661664, -1.045238, 0.776736]),
        ("batch", [1.129221, -0.803261, -1.268919, 0.942958]),  # M5's group is the batch's rest
        ("none", [0.485, -0.345, -0.545, 0.405]),
    ],
)
def test_micro_examples_m4_m5_and_m13(
    scale: str,
    of_m4: list[float],
    tmp_path: Path,
    tiny_model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Advantages of one step's groups by hand: with scale group also gaps of .01 and .0001 blown
    up (M5), and format and quality summed before they are compared (M13)."""
    m4, m5, dead = [1.03, 0.2, 0.0, 0.95], [1.03, 1.04, 1.03, 1.03], [0.2] * 4
    m13 = [0.2 * f + q for f, q in zip([1, 1, 0, 1], [0.8, 0.4, 0, 0.6], strict=True)]
    rewards = [m4 + m5, m13 + dead, [1.03, 1.0301, 1.03, 1.03, *dead]]
    seen = advantages(tmp_path, tiny_model_dir, monkeypatch, rewards, rl__scale=scale)
    assert seen[0][:4] == pytest.approx(of_m4, abs=2e-6)
    assert seen[1][4:] == seen[2][4:] == pytest.approx([0.0] * 4, abs=1e-3)
    if scale == "group":
        assert seen[0][4:] == pytest.approx([-0.490196, 1.470588, -0.490196, -0.490196], abs=2e-4)
        assert seen[1][:4] == pytest.approx([0.925606, 0, -1.388409, 0.462803], abs=2e-6)
        assert seen[2][:4] == pytest.approx([-0.166667, 0.5, -0.166667, -0.166667], abs=1e-3)
    if scale == "batch":
        assert seen[0][4:] == pytest.approx([-0.005821, 0.017462, -0.005821, -0.005821], abs=2e-6)


def test_micro_example_m5_in_a_group_of_eight(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rewards = [[1.03] + [0.0] * 7]
    (seen,) = advantages(tmp_path, tiny_model_dir, monkeypatch, rewards, rl__group=8)
    assert seen == pytest.approx([2.474194] + [-0.353456] * 7, abs=2e-6)


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_a_kl_in_the_reward_is_taken_off_each_token(
    tuning: str, tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """M12 through a recipe: R at the last token, minus beta k1 at each; whitened over the step.

    By a plain loop over the weights that sampled and the base, at the sampling temperature.
    """
    from transformers import AutoModelForCausalLM

    monkeypatch.setattr(RLTrainer, "_generate_single_turn", fixed)
    seen: list[Any] = []
    scored = RLTrainer._generate_and_score_completions

    def noted(self: RLTrainer, inputs: Any) -> Any:
        policy = {n: p.detach().clone() for n, p in self.session.model.named_parameters()}
        found = scored(self, inputs)
        assert self.earned is not None
        seen.append((policy, found, self.earned.tolist()))
        return found

    monkeypatch.setattr(RLTrainer, "_generate_and_score_completions", noted)
    method = {"name": "kl", "term": "reward", "estimator": "k1", "beta": 0.5}
    run = learned(
        tmp_path, tiny_model_dir, method=method, rl__algorithm="reinforce++", rl__max_steps=2,
        rl__temperature=0.8, rl__learning_rate=3e-2, rl__micro_batch_size=4, model__tuning=tuning,
    )  # fmt: skip
    base, policy = (AutoModelForCausalLM.from_pretrained(tiny_model_dir).eval() for _ in range(2))
    if tuning == "lora":
        policy = attach_lora(policy, run.recipe.model.lora).eval()
    logged = [line for line in run.log_rows() if line["task"] == "one"]
    assert len(seen) == len(logged) == 2
    for step, (weights, found, rewards) in enumerate(seen):
        put(policy, weights)
        returns: dict[tuple[int, int], float] = {}
        estimates: list[float] = []
        for i, reward in enumerate(rewards):
            prompt = found["prompt_ids"][i][found["prompt_mask"][i].bool()].tolist()
            ids = found["completion_ids"][i][found["completion_mask"][i].bool()].tolist()
            whole = torch.tensor([[*prompt, *ids]])
            with torch.no_grad():
                ours, theirs = (
                    (m(whole).logits[0].double() / 0.8).log_softmax(-1) for m in (policy, base)
                )
            at = [(len(prompt) + k - 1, token) for k, token in enumerate(ids)]
            k1 = [float(ours[place][token] - theirs[place][token]) for place, token in at]
            estimates += k1
            total = reward
            for k in reversed(range(len(ids))):
                total -= 0.5 * k1[k]
                returns[i, k] = total
        values = torch.tensor(list(returns.values()), dtype=torch.float64)
        white = dict(zip(returns, ((values - values.mean()) / values.std()).tolist(), strict=True))
        mask = found["completion_mask"]
        assert mask.sum() == len(white)
        assert found["advantages"].shape == mask.shape
        for (i, k), wanted in white.items():
            assert float(found["advantages"][i, k]) == pytest.approx(wanted, abs=2e-4)
        assert float((found["advantages"] * (1 - mask)).abs().max()) == 0
        assert (max(map(abs, estimates)) > 0.05) == (step > 0)  # the policy has moved by then
        mean = sum(estimates) / len(estimates)
        assert logged[step]["method/kl"] == pytest.approx(mean, abs=1e-4)


@pytest.mark.unit
@pytest.mark.parametrize(
    ("options", "learn", "told"),
    [
        ({}, "rl", "grpo has one a completion"),
        ({}, "sft", "no task is learned from rewards"),
        ({"estimator": "k3_ratio"}, "rl", "is k3 with term: reward"),
    ],
)
def test_a_kl_in_the_reward_needs_rewards_by_token(
    options: Any, learn: str, told: str, tmp_path: Path, tiny_model_dir: Path
) -> None:
    path = write_recipe(
        tmp_path, tiny_model_dir, method={"name": "kl", "term": "reward", **options}
    )
    if learn == "sft":
        said = json.loads(path.read_text())
        del said["rl"], said["stream"]["tasks"][0]["learn"]
        path.write_text(json.dumps(said))
    with pytest.raises(PerdureError, match=told):
        prepare(perdure.load_recipe(path))


OVER = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }} over and out\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
"""A template whose end of an answer, " over and out", is five ordinary tokens."""


def test_an_end_of_several_tokens_ends_a_completion(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands behind it is not trained on, and it is not counted, nor masked, as cut."""
    (tmp_path / "over.jinja").write_text(OVER)
    texts = ["red over and out", "blue over and out and on it goes", "red red", "over and over it"]
    seen: list[Any] = []
    scored = RLTrainer._generate_and_score_completions
    earned: list[Any] = []
    rewarded = Judge.samples

    def sampled(self: Any, prompt_ids: Any, *_: Any, **__: Any) -> Any:
        ids = self._tokenizer(texts * 2, add_special_tokens=False)["input_ids"]
        return self._cut([one[:20] for one in ids], None)

    def noted(self: RLTrainer, inputs: Any) -> Any:
        found = scored(self, inputs)
        seen.append(({k: v.clone() for k, v in found.items()}, self._tokenizer))
        return found

    def judged(self: Judge, *given: Any) -> Any:
        earned.append(rewarded(self, *given))
        return earned[-1]

    monkeypatch.setattr(RLTrainer, "_generate_single_turn", sampled)
    monkeypatch.setattr(RLTrainer, "_generate_and_score_completions", noted)
    monkeypatch.setattr(Judge, "samples", judged)
    run = learned(
        tmp_path, tiny_model_dir, model__chat_template=str(tmp_path / "over.jinja"),
        rl__mask_truncated=True, rl__max_steps=1, rl__learning_rate=1e-4,
    )  # fmt: skip
    found, tokenizer = seen[0]
    kept = [
        tokenizer.decode(ids[mask.bool()])
        for ids, mask in zip(found["completion_ids"], found["completion_mask"], strict=True)
    ]
    # The latter two have no end: they are masked, and earn nothing for an answer that was cut.
    assert kept == ["red over and out", "blue over and out", "", ""] * 2
    assert int(found["num_items_in_batch"]) == int(found["completion_mask"].sum())
    assert [(one.completion, one.truncated) for one in earned[0]][:4] == [
        ("red", False), ("blue", False), ("red red", True), ("over and over it", True),
    ]  # fmt: skip
    assert run.log_rows()[0]["rl/truncated"] == 0.5


def test_generation_stops_at_an_end_of_several_tokens(tiny: Any) -> None:
    from transformers import GenerationConfig

    from perdure.models.generate import stopping_at

    model, tokenizer = tiny
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=12, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    prompts = torch.tensor([[9, 8, 7], [5, 4, 3]])

    def written() -> Any:
        out = model.generate(
            prompts, attention_mask=torch.ones_like(prompts), generation_config=settings
        )
        return out[:, 3:]

    whole = written()
    end = whole[0, 4:7].tolist()
    assert end not in [whole[1, k : k + 3].tolist() for k in range(10)]
    with stopping_at(model, end):
        found = written()
    assert found[0, :7].tolist() == whole[0, :7].tolist()
    assert set(found[0, 7:].tolist()) == {tokenizer.pad_token_id}
    assert found[1].tolist() == whole[1].tolist()
    # The end of the prompt is none of the answer's.
    with stopping_at(model, prompts[0, 1:].tolist()):
        assert written().tolist() == whole.tolist()
    assert "generate" not in vars(model)


# --- methods

WORK = {
    "ema", "freeze", "general_replay", "gere", "gere_distance", "gere_kl", "gere_official", "kl",
    "lcia", "lwf", "moelora", "olora", "sequential",
}  # fmt: skip


@pytest.mark.parametrize("name", names())
def test_each_method_learns_from_rewards_or_is_refused_before_a_weight_is_loaded(
    name: str, tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two steps by rewards, then two supervised ones, with each built-in method."""
    kind = load(name)
    changes: dict[str, Any] = {
        "method": {"name": name, **kind.example_options}, "rl__max_steps": 2,
        "general": {"source": "pydoc", "replay_rows": 4, "held_out_rows": 0, "max_tokens": 24},
    }  # fmt: skip
    if kind.adapters:
        changes["model__tuning"] = "lora"
    recipe = perdure.load_recipe(write_recipe(tmp_path, tiny_model_dir, **changes))
    run = Run.create(tmp_path / "run", recipe)
    if name in WORK:
        perdure.learn(recipe, run)
        assert [line["step"] for line in run.log_rows()] == [1, 2, 1, 2]
        return
    monkeypatch.setattr("perdure.models.load_base", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(PerdureError, match=rf"{name}.*(reinforcement|classes|heads)"):
        perdure.learn(recipe, run)


# --- rows


@pytest.mark.unit
def test_prompts_come_as_the_trainer_takes_them() -> None:
    sampler = PromptSampler(5, prompts=2, group=3, repeats=2, seed=0)
    order = list(sampler)
    assert len(order) == len(sampler) == 3 * 2 * 3 * 2
    batches = [order[i : i + 6] for i in range(0, len(order), 6)]
    assert all(b[:3] == b[:1] * 3 and b[3:] == b[3:4] * 3 for b in batches)
    assert batches[::2] == batches[1::2]  # the same completions again
    drawn = [b[k] for b in batches[::2] for k in (0, 3)]
    assert sorted(set(drawn)) == [0, 1, 2, 3, 4]
    assert drawn[5] == drawn[0]  # the last batch is filled up from the epoch's start


@pytest.mark.unit
def test_an_epochs_order_needs_no_history() -> None:
    first, second = (PromptSampler(9, 3, 2, 1, seed=4) for _ in range(2))
    list(first)
    first.set_epoch(1)
    second.set_epoch(1)
    again = PromptSampler(9, 3, 2, 1, seed=4)
    assert list(first) == list(second) != list(again)


# --- what is planned


def test_of_rewards_completions_are_counted(
    tmp_path: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """4 steps of 2 prompts, 4 completions each, of at most 8 tokens behind their prompt."""
    ready = prepare(perdure.load_recipe(write_recipe(tmp_path, tiny_model_dir)))
    found = plan(
        ready.recipe, ready.stream, ready.encoder, ready.model,
        micro_batch=ready.micro_batch, precision="fp32",
    )  # fmt: skip
    by_rl, learned = found.tasks
    encoder: Any = ready.encoder
    prompts = [len(encoder.prompt_ids(row)) for row in ready.stream.tasks[0].train]
    assert by_rl.steps == 4
    assert by_rl.completions == 4 * 2 * 4
    assert by_rl.train_tokens == round(32 * (sum(prompts) / len(prompts) + 8))
    assert by_rl.longest is not None
    assert by_rl.longest >= max(prompts) + 8
    assert (learned.completions, learned.steps) == (None, 2)
    show(found)
    told = " ".join(capsys.readouterr().out.split())
    assert "one: learned from rewards: 32 completions, 8 a step" in told
    assert "scored by chrf (mean sentence chrF): one, two" in told
    assert "some come more than once" not in told
    # More prompts a step than there are rows: 9 are trained on.
    ready = prepare(perdure.load_recipe(tmp_path / "recipe.yaml", ["rl.batch_size=48"]))
    show(
        plan(
            ready.recipe, ready.stream, ready.encoder, ready.model,
            micro_batch=ready.micro_batch, precision="fp32",
        )
    )  # fmt: skip
    told = " ".join(capsys.readouterr().out.split())
    assert (
        "one: a step takes 12 prompts, and there are 9: some come more than once in each; lower "
        "rl.batch_size to 36, or give more rows"
    ) in told
    # A task that was learned already, of a run that is extended.
    show(replace(found, tasks=(replace(by_rl, steps=0, completions=0), learned)))
    assert "learned from rewards" not in capsys.readouterr().out


@pytest.mark.unit
@pytest.mark.parametrize(
    ("method", "weight"),
    [
        ({"name": "gere_official", "scope": "row"}, "100"),
        ({"name": "gere", "weight": 30.0}, "30"),
        ({"name": "gere_official", "scope": "row", "weight": 1.0}, None),
        ({"name": "gere_official", "scope": "row", "loss": "label"}, None),
        ("gere", None),
        ("gere_kl", None),
        ("general_replay", None),
    ],
)
def test_a_weight_that_would_swallow_the_policys_gradient_is_told(method: Any, weight: Any) -> None:
    name, options = (method, {}) if isinstance(method, str) else (method["name"], method)
    made = load(name)(load_config(name, {k: v for k, v in options.items() if k != "name"}))
    tasks = [Task(way, (), (), (), "chrf", learn=way) for way in ("sft", "rl")]
    found = list(made.told_of(TaskStream(tuple(tasks))))
    assert [line.split(":")[0] for line in found] == (
        [] if weight is None else [f"weight {weight}"]
    )
    assert not list(made.told_of(TaskStream(tuple(tasks[:1]))))


# --- what is refused

REFUSED = {
    "task one has learn: rl": {"rl": None},
    "12 completions are no multiple of rl.group, 8\n  8 would do": {
        "train__batch_size": 12, "rl__group": 8,
    },
    '"chrv" is none of': {"rl__rewards": ["chrv"]},
    "must be a number from 0 to 1, not 3": {"rl__rewards": [{"name": "chrf", "weight": 3}]},
    "3 is no multiple of rl.iterations, 2": {"rl__iterations": 2, "save": {"steps": 3}},
    "has no effect with iterations: 1": {"rl__clip": 0.1},
    "dual_clip: is below 1 + clip, 1.3, where a positive advantage": {
        "rl__iterations": 2, "rl__clip": 0.3, "rl__dual_clip": 1.1,
    },
    "dual_clip: is below 1 + clip_high, 1.5": {
        "rl__iterations": 2, "rl__clip_high": 0.5, "rl__dual_clip": 1.4,
    },
    "not learned by a sharded model": {"model__fsdp_size": 2},
    "the list is empty": {"rl__rewards": []},
}  # fmt: skip


@pytest.mark.unit
@pytest.mark.parametrize("told", REFUSED)
def test_a_recipe_is_refused(told: str, tmp_path: Path) -> None:
    with pytest.raises(PerdureError) as caught:
        perdure.load_recipe(write_recipe(tmp_path, Path("somewhere"), **REFUSED[told]))
    assert told in str(caught.value)


@pytest.mark.unit
def test_rl_without_a_task_has_no_effect(tmp_path: Path) -> None:
    path = write_recipe(tmp_path, Path("somewhere"))
    with pytest.raises(PerdureError, match="rl: has no effect: no task has learn: rl"):
        perdure.load_recipe(path, ["stream.tasks.one.learn=sft"])


def test_completions_that_cannot_be_split_are_refused_before_a_weight_is_loaded(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a run would stop where its first tasks are learned already."""
    recipe = perdure.load_recipe(
        write_recipe(
            tmp_path, tiny_model_dir, rl__batch_size=16, rl__micro_batch_size=3,
            stream__order=["two", "one"],
        )
    )  # fmt: skip
    monkeypatch.setattr("perdure.models.load_base", lambda *_, **__: pytest.fail("loaded"))
    told = r"rl\.batch_size: 16 completions cannot be split into micro-batches of 3"
    with pytest.raises(PerdureError, match=told):
        perdure.learn(recipe, Run.create(tmp_path / "run", recipe))
    monkeypatch.setenv("WORLD_SIZE", "3")
    recipe = perdure.load_recipe(
        write_recipe(tmp_path, tiny_model_dir, rl__batch_size=16, train__batch_size=9)
    )
    with pytest.raises(
        PerdureError, match=r"rl\.batch_size: 16 completions cannot be split over 3"
    ):
        prepare(recipe)


@pytest.mark.parametrize("name", ["FSDP", "DEEPSPEED"])
def test_sharding_is_refused_before_a_weight_is_loaded(
    name: str, tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As `accelerate launch` says it to the processes that it starts."""
    recipe = perdure.load_recipe(write_recipe(tmp_path, tiny_model_dir))
    monkeypatch.setenv(f"ACCELERATE_USE_{name}", "true")
    monkeypatch.setattr("perdure.models.load_base", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(PerdureError, match=r"task one is learned by reinforcement, .* shards"):
        prepare(recipe)


def test_what_cannot_be_is_refused_before_the_first_task(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    """Not when the task comes: a warm-up of hours would lie before it."""
    batch = "rl.batch_size: 12 completions cannot be split into micro-batches of 5"
    for number, (changes, told) in enumerate((
        ({"backend": "vllm"}, "rl.backend: vllm is not installed"),
        ({"batch_size": 12, "micro_batch_size": 5}, batch),
    )):  # fmt: skip
        keys = {f"rl__{key}": value for key, value in changes.items()}
        recipe = perdure.load_recipe(write_recipe(tmp_path / str(number), tiny_model_dir, **keys))
        with pytest.raises(PerdureError, match=re.escape(told)) as error:
            prepare(recipe)
        assert "recipe.yaml:1: " in str(error.value)
        assert ('pip install "vllm<' in str(error.value)) == (number == 0)


@pytest.mark.unit
@pytest.mark.parametrize("answer", ["plain", "tagged"])
def test_a_reward_of_ones_own_is_tried_by_the_check(answer: str, tmp_path: Path) -> None:
    """On a right answer, so that a slip in it is told before the warm-up and not after it."""
    rows = [json.dumps({"source": f"s {i}", "target": f"t {i}"}) for i in range(8)]
    (tmp_path / "t.jsonl").write_text("\n".join(rows))
    (tmp_path / "mine.py").write_text(
        "def typo(samples): return [float(s.text == 't') for s in samples]\n"
        "def none(samples): return [None for s in samples]\n"
        "def one(samples): return [float(s.parsed.answer == s.target != '') for s in samples]\n"
    )
    mt = {"name": "mt", "format": "translation", "train": "t.jsonl", "learn": "rl"}
    said = {
        "model": {"path": "none"},
        "trust_remote_code": True,
        "stream": {"tasks": [{**mt, "direction": "en-de", "answer": answer}]},
        "method": "sequential",
        "rl": {"rewards": ["chrf", "mine:typo"], "group": 2},
    }
    # With a right reward the next mistake is told: of the model "none".
    for reward, told in (("typo", "no attribute 'text'"), ("none", "none: "), ("one", "none: ")):
        said["rl"] = {"rewards": ["chrf", f"mine:{reward}"], "group": 2}
        (tmp_path / "recipe.yaml").write_text(json.dumps(said))
        found = CliRunner().invoke(app, ["run", str(tmp_path / "recipe.yaml"), "--check"])
        assert told in found.stderr
        assert ("rl.rewards: reward mine:typo failed: Attr" in found.stderr) == (reward == "typo")
        assert ("tried on a right answer" in found.stderr) == (reward == "typo")


@pytest.mark.unit
@pytest.mark.parametrize(
    ("reward", "code", "missing", "told"),
    [
        ("language", "x-velan", "", "Velan (x-velan) is a language that nobody knows"),
        ("bleu", "ja", "MeCab", "Japanese: tokenizer ja-mecab cannot be used"),
        ("bleu", "kor_Hang", "mecab_ko", "Korean: tokenizer ko-mecab cannot be used"),
        ("bleu", "th", "sentencepiece", "Thai: tokenizer flores200 cannot be used"),
    ],
)
def test_what_a_language_needs_is_told_by_the_check(
    reward: str, code: str, missing: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the place of the rewards in the recipe, before the model is looked at."""
    if missing:
        monkeypatch.setitem(sys.modules, missing, None)  # as where it is not installed
        monkeypatch.setattr(bleu, "_metric", bleu._metric.__wrapped__)
        for name in [name for name in sys.modules if name.startswith("sacrebleu.tokenizers.")]:
            monkeypatch.delitem(sys.modules, name)
    rows = [json.dumps({"source": f"s {i}", "target": f"t {i}"}) for i in range(8)]
    (tmp_path / "t.jsonl").write_text("\n".join(rows))
    mt = {"name": "mt", "format": "translation", "train": "t.jsonl", "learn": "rl"}
    said = {
        "model": {"path": "none"},
        "stream": {"tasks": [{**mt, "direction": f"en-{code}", "metric": "chrf"}]},
        "method": "sequential",
        "rl": {"rewards": ["chrf", reward], "group": 2},
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(said))
    found = CliRunner().invoke(app, ["run", str(tmp_path / "recipe.yaml"), "--check"])
    assert found.exit_code == 2, found.output
    assert f"recipe.yaml:1: rl.rewards.{reward}: {told}" in found.stderr
    if isinstance(reward, str):  # alone, in a warm-up
        del said["rl"], mt["learn"]
        warm = {**mt, "direction": f"en-{code}", "metric": "chrf", "until": {"reach": {reward: 1}}}
        said["stream"] = {"tasks": [warm]}
        (tmp_path / "recipe.yaml").write_text(json.dumps(said))
        found = CliRunner().invoke(app, ["run", str(tmp_path / "recipe.yaml"), "--check"])
        assert found.exit_code == 2, found.output
        place = f"recipe.yaml:1: stream.tasks.0.until.reach.{reward}: "
        assert place + told in found.stderr, found.stderr


@pytest.mark.parametrize(
    ("version", "taken"),
    [("0.21.9", False), ("0.22.0", True), ("0.31.0+cu129", True), ("0.31.1", False)],
)
def test_a_vllm_that_trl_does_not_take_is_refused(
    version: str, taken: bool, tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TRL itself only warns of it. With one that it takes a run comes as far as TRL, and its log
    says that vllm writes."""
    (tmp_path / "vllm.py").touch()
    meta = tmp_path / f"vllm-{version}.dist-info"
    meta.mkdir()
    (meta / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    (meta / "top_level.txt").write_text("vllm\n")
    monkeypatch.syspath_prepend(tmp_path)
    path = write_recipe(tmp_path, tiny_model_dir, rl__backend="vllm")
    recipe = perdure.load_recipe(path)
    if taken:
        made: list[Any] = []

        def begun(self: Any, **given: Any) -> None:
            made.append(given["args"].use_vllm)
            raise KeyboardInterrupt

        monkeypatch.setattr(RLTrainer, "__init__", begun)
        run = Run.create(tmp_path / "run", recipe)
        with pytest.raises(KeyboardInterrupt):
            perdure.learn(recipe, run)
        assert made == [True]
        told = (run.path / "perdure.log").read_text()
        assert "task one: completions are written by vllm\n" in told
        return
    told = rf"recipe\.yaml:1: rl\.backend: vllm is {version}, and trl \d\S+ takes <=0\.31\.0,>=0"
    with pytest.raises(UsageError, match=told) as error:
        prepare(recipe)
    assert 'pip install "vllm<=0.31.0,>=0.22.0"' in str(error.value)


def test_a_reward_that_is_no_number_ends_the_run(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its second batch: TRL would count it as 0. The step before stays, and nothing after it."""
    monkeypatch.setattr(RLTrainer, "_generate_single_turn", fixed)
    changes = {"rl__rewards": ["chrf", "own_rewards_25:late"], "save": {"steps": 1}}
    path = write_recipe(tmp_path, tiny_model_dir, **changes)
    code = "import math\n\nbatches = []\n\n\ndef late(samples):\n    batches.append(samples)\n"
    code += "    last = 0.5 if len(batches) <= 2 else math.nan\n"  # it is tried before all
    code += "    return [0.5] * (len(samples) - 1) + [last]\n"
    (tmp_path / "own_rewards_25.py").write_text(code)
    out = tmp_path / "run"
    told = CliRunner().invoke(app, ["run", str(path), "--trust-remote-code", "--out", str(out)])
    assert told.exit_code == 5, told.output
    said = " ".join(told.output.split())
    assert "reward own_rewards_25:late gave nan, which is not from 0 to 1" in said
    named = r"row: \S*one\.jsonl:\d+ prompt: .*say one \d+.* completion: word \d word"
    assert re.search(named, said), said
    run = Run.open(out)
    assert run.state == "interrupted"
    assert [line["step"] for line in run.log_rows()] == [1]
    assert not (out / "checkpoints" / "task-1").exists()


@pytest.mark.unit
def test_own_rewards_lie_beside_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `module:function` and as a path, wherever Perdure is started, and in the run's recipe."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    rewards = ["chrf", "own_rewards_22:half", {"name": "./own_rewards_22.py:gate"}]
    path = write_recipe(tmp_path / "recipe", Path("somewhere"), rl__rewards=rewards)
    (tmp_path / "recipe" / "own_rewards_22.py").write_text(OWN)
    with pytest.raises(PerdureError, match="is Python code, which was not run"):
        perdure.load_recipe(path)
    until = "stream.tasks.two.until={reach: {'own_rewards_22:half': 0.4}}"
    recipe = perdure.load_recipe(path, ["trust_remote_code=true", until])
    assert recipe.rl is not None
    place = path.parent / "own_rewards_22.py"
    assert recipe.rl.rewards[1:] == [f"{place}:half", {"name": f"{place}:gate"}]
    assert list(recipe.stream.tasks[1].until.reach) == [f"{place}:half"]
    with trusting(True):
        judged = build(recipe.rl.rewards)
    assert list(judged.versions) == ["chrf", "own_rewards_22:half", "own_rewards_22:gate"]
    # Without the word, as when a run goes on: at its key in its file.
    stream = TaskStream((Task("one", (), (), (), "chrf", learn="rl"),))
    other = place.with_name("own_rewards_24.py")
    other.write_text(OWN)
    named = recipe.rl.model_copy(update={"rewards": ["chrf", f"{other}:half"]})
    recipe = recipe.model_copy(update={"rl": named})
    with pytest.raises(PerdureError, match=r"recipe\.yaml:1: rl\.rewards\.1: .* is Python code"):
        check_rewards(recipe, stream)
    for entry, told in (
        ("own_rewards_22:hafl", 'has no function "hafl"'),
        ("own_rewards_23:half", "put own_rewards_23.py beside the recipe"),
        ("own_rewards_23.py:half", "no such file"),
    ):
        (path.parent / "wrong.json").write_text(
            path.read_text().replace("own_rewards_22:half", entry)
        )
        with pytest.raises(PerdureError, match=re.escape(told)):
            perdure.load_recipe(path.parent / "wrong.json", ["trust_remote_code=true"])


def test_a_prompt_without_room_is_told_with_its_line(tmp_path: Path, tiny_model_dir: Path) -> None:
    path = write_recipe(tmp_path, tiny_model_dir)
    recipe = perdure.load_recipe(path, ["stream.tasks.one.max_new_tokens=500"])
    with pytest.raises(RecipeError, match=r"one\.jsonl:\d+: .* max_new_tokens: 500 to be") as told:
        prepare(recipe)
    # One line for all rows of the file, with the longest prompt and what would do.
    (mistake,) = told.value.mistakes
    assert mistake.what.endswith("model's context is 512; of 9 such rows this is the longest")
    room = int(re.findall(r"max_new_tokens: (\d+) would do", str(mistake))[0])
    prepare(perdure.load_recipe(path, [f"stream.tasks.one.max_new_tokens={room}"]))
    with pytest.raises(RecipeError, match="the model's context is 512"):
        prepare(perdure.load_recipe(path, [f"stream.tasks.one.max_new_tokens={room + 1}"]))


def test_a_right_answer_may_be_longer_than_what_is_trained_on(
    tmp_path: Path, tiny_model_dir: Path
) -> None:
    """Its tokens are never trained on; those of a supervised row are."""
    path = write_recipe(
        tmp_path, tiny_model_dir, gauges={"every": 2, "rows": 4, "texts": 0}, rl__max_steps=2
    )
    for name in ("one", "two"):
        rows = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        rows[3]["answer"] = "word " * 400  # the context has 512 tokens
        lines = "".join(json.dumps(row) + "\n" for row in rows[:4])
        (tmp_path / f"{name}.jsonl").write_text(lines)
        (tmp_path / f"{name}-test.jsonl").write_text(json.dumps({"prompt": "a", "answer": "b"}))
    said = json.loads(path.read_text())
    for task in said["stream"]["tasks"]:
        task |= {"test": f"{task['name']}-test.jsonl", "validation_share": 0}
    path.write_text(json.dumps(said))
    recipe = perdure.load_recipe(path, ["train.max_length=60"])
    with pytest.raises(PerdureError, match=r"two\.jsonl:4: .* the limit is 60") as told:
        prepare(recipe)
    assert "one.jsonl" not in str(told.value)
    recipe = perdure.load_recipe(path, ["train.max_length=60", "stream.tasks.two.learn=rl"])
    run = Run.create(tmp_path / "run", recipe)
    perdure.learn(recipe, run)
    assert run.state == "finished"
    assert all(math.isfinite(line["gauge/kl"]) for line in run.log_rows() if "gauge/kl" in line)


@pytest.mark.unit
def test_trls_question_by_an_old_name_is_not_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """It asks a model so before each batch is written, and again before log-probabilities are
    read; a user can do nothing about it."""

    def generate(self: Any, inputs: Any) -> dict[str, str]:
        warnings.warn("`is_gradient_checkpointing` is deprecated", FutureWarning, stacklevel=1)
        warnings.warn("another", FutureWarning, stacklevel=1)
        return {"found": "it"}

    monkeypatch.setattr(rl.GRPOTrainer, "_generate_and_score_completions", generate)
    trainer = object.__new__(RLTrainer)
    trainer.settings = SimpleNamespace(mask_truncated=False, algorithm="grpo")
    trainer.earned = None
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert trainer._generate_and_score_completions({}) == {"found": "it"}
    assert [str(one.message) for one in told] == ["another"]


def test_equal_rewards_are_told_once(
    tmp_path: Path, tiny_model_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """All rewards are 0, as no completion can be read: each is cut off."""
    tasks = ["stream.tasks.one.max_new_tokens=1"]
    path = write_recipe(
        tmp_path, tiny_model_dir, rl__rewards=["format"], rl__max_steps=11, rl__epochs=4
    )
    out = str(tmp_path / "run")
    result = CliRunner().invoke(app, ["run", str(path), *tasks, "--out", out])
    assert result.exit_code == 0, result.output
    told = [r.getMessage() for r in caplog.records if "nothing is learned" in r.getMessage()]
    assert len(told) == 1
    assert "(mean reward 0): 100% of the completions were cut off at max_new_tokens" in told[0]


# --- sampling


def test_the_policy_itself_is_sampled(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without dropout, and without what the model's own generation settings say beside."""
    from transformers import GenerationMixin

    own = tmp_path / "model"
    shutil.copytree(tiny_model_dir, own)
    settings = json.loads((own / "generation_config.json").read_text())
    settings |= {"min_p": 0.9, "no_repeat_ngram_size": 2, "repetition_penalty": 1.5}
    (own / "generation_config.json").write_text(json.dumps(settings))
    seen: list[tuple[Any, ...]] = []
    sample = GenerationMixin._sample

    def noted(self: Any, *args: Any, generation_config: Any, **more: Any) -> Any:
        if generation_config.do_sample:
            drops = any(m.training for m in self.modules() if isinstance(m, torch.nn.Dropout))
            names = ("min_p", "no_repeat_ngram_size", "repetition_penalty", "top_k", "temperature")
            told = [getattr(generation_config, name) for name in names]
            seen.append((drops, self.training, generation_config.eos_token_id, *told))
        return sample(self, *args, generation_config=generation_config, **more)

    monkeypatch.setattr(GenerationMixin, "_sample", noted)
    trained: list[bool] = []
    compute = RLTrainer.compute_loss

    def asked(self: RLTrainer, model: Any, *args: Any, **more: Any) -> Any:
        trained.append(model.training)
        return compute(self, model, *args, **more)

    monkeypatch.setattr(RLTrainer, "compute_loss", asked)
    run = learned(
        tmp_path, own, model__tuning="lora", model__lora={"dropout": 0.5}, rl__max_steps=1,
        rl__temperature=0.8,
    )  # fmt: skip
    assert run.state == "finished"
    ((drops, training, ends, min_p, n_gram, penalty, top_k, temperature),) = seen
    assert (drops, training) == (False, False)
    assert ends
    assert not min_p
    assert not n_gram
    assert (penalty, top_k, temperature) == (1.0, 0, 0.8)
    assert trained == [True]
    saved = json.loads((own / "generation_config.json").read_text())
    assert saved["min_p"] == 0.9


# --- groups without a spread


@pytest.mark.unit
def test_the_spread_is_within_groups_by_hand() -> None:
    """Two groups of two: 1 and 0 (deviation sqrt(.5)), .3 twice. All four: .4203."""
    found = rl.spreads(torch.tensor([1.0, 0.0, 0.3, 0.3]), 2)
    assert found.tolist() == pytest.approx([0.5**0.5, 0.0])


EARNED = [[1.0, 1.0, 1.0, 1.0, 0.2, 0.2, 0.2, 0.2], [0.1, 0.3, 0.1, 0.3, 0.7, 0.7, 0.7, 0.7]]
"""What two steps' completions earn, each two groups of four: dead are both, and the second."""


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"scale": "group"}, True),
        ({"scale": "batch"}, True),
        ({"scale": "none"}, True),
        ({"algorithm": "reinforce++"}, False),  # 1 and .2 differ, and the batch is compared
    ],
    ids=str,
)
def test_dead_groups_and_spread_are_those_of_the_groups_whatever_scales_an_advantage(
    options: dict[str, str],
    told: bool,
    tmp_path: Path,
    tiny_model_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """TRL's figures are of the whole batch: `reward_std` always, the dead with `scale: batch`."""
    rewards = iter([EARNED[0], EARNED[1], EARNED[0], EARNED[0]])

    def given(self: Any, completion_ids: Any, row: Any, **_: Any) -> list[float]:
        return next(rewards)

    monkeypatch.setattr("perdure.learners.rollouts.Judge.reward", given)
    monkeypatch.setattr(RLTrainer, "_generate_single_turn", fixed)
    monkeypatch.setattr(rl, "PATIENCE", 2)
    warned: list[str] = []
    made = RLTrainer.__init__

    def heard(self: Any, **more: Any) -> None:
        made(self, **{**more, "warn": warned.append})

    monkeypatch.setattr(RLTrainer, "__init__", heard)
    changes = {f"rl__{name}": value for name, value in options.items()}
    run = learned(tmp_path, tiny_model_dir, **changes)
    lines = [line for line in run.log_rows() if "rl/reward" in line]
    assert [line["rl/dead_groups"] for line in lines] == [1.0, 0.5, 1.0, 1.0]
    within = 0.2 * (1 / 3) ** 0.5  # deviations of .1, four times, over n - 1
    assert [line["rl/reward_std"] for line in lines] == pytest.approx([0, within / 2, 0, 0])
    assert bool(warned) == told
    assert not told or "(mean reward 0.6): raise rl.temperature or rl.group, take" in warned[0]


@pytest.mark.unit
def test_a_share_of_dead_groups_is_too_many_above_six_tenths_alone() -> None:
    """Ten steps of three dead groups in five are not told; of two in three they are."""
    for dead, groups, told in ((3, 5, False), (2, 3, True)):
        warned: list[str] = []
        trainer: Any = object.__new__(RLTrainer)
        trainer.num_generations, trainer.dead, trainer.warn = 2, 0, warned.append
        trainer.settings = SimpleNamespace(algorithm="grpo")
        trainer.session = SimpleNamespace(task=SimpleNamespace(name="one"))
        trainer._metrics = {"train": {"reward_std": [0.0], "frac_reward_zero_std": [0.0]}}
        rewards = torch.tensor([0.5, 0.5] * dead + [0.2, 0.4] * (groups - dead))
        for _ in range(rl.PATIENCE):
            trainer._look_for_dead_groups(rewards)
        assert trainer._metrics["train"]["frac_reward_zero_std"] == [pytest.approx(dead / groups)]
        assert bool(warned) == told


@pytest.mark.unit
def test_where_nothing_is_earned_the_user_is_told_whether_answers_were_cut_off() -> None:
    for cut, told in ((0.75, "75% of the completions were cut off"), (0.25, "no completion earns")):
        warned: list[str] = []
        trainer: Any = object.__new__(RLTrainer)
        trainer.num_generations, trainer.dead, trainer.warn = 2, rl.PATIENCE - 1, warned.append
        trainer.settings = SimpleNamespace(algorithm="grpo")
        trainer.session = SimpleNamespace(task=SimpleNamespace(name="one"))
        names = ("reward_std", "frac_reward_zero_std", "completions/clipped_ratio")
        trainer._metrics = {"train": {name: [cut] for name in names}}
        trainer._look_for_dead_groups(torch.zeros(4))
        assert told in warned[0]


def test_a_second_round_shares_the_test_rows_of_the_first(run: Run, tmp_path: Path) -> None:
    """A run that is extended by more reinforcement on the same rows has one score for both."""
    task = {"name": "again", "train": str(run.path.parent / "one.jsonl"), "learn": "rl",
            "max_new_tokens": 8, "metric": "chrf", "test_of": "one"}  # fmt: skip
    path = tmp_path / "next.yaml"
    path.write_text(json.dumps({"stream": {"tasks": [task]}}))
    recipe = extension_recipe(run, path, ["rl.max_steps=1"])
    assert plan_extension(run, recipe).tasks[2].test_rows == 2
    longer = extend(run, recipe, tmp_path / "longer")
    perdure.learn(recipe, longer)
    found = {(s["after"], s["task"]): s["score"] for s in longer.scores() if s["kind"] == "task"}
    assert found[3, "again"] == found[3, "one"]
    assert found[2, "again"] == found[2, "one"]
    assert longer.items(3, "again") == longer.items(3, "one")
    # It goes on, is scored again, and says the name where there is no such task.
    perdure.learn(longer.recipe, longer)
    task["test_of"] = "another"
    path.write_text(json.dumps({"stream": {"tasks": [task]}}))
    with pytest.raises(PerdureError, match=r'own is called "another"\n  there are: one, two'):
        plan_extension(run, extension_recipe(run, path))


def test_a_run_with_rewards_goes_on_to_tasks_in_any_way(run: Run, tmp_path: Path) -> None:
    """The run's `rl` is taken over by a task that is learned from rewards, and by no other."""
    rows = (run.path.parent / "two.jsonl").read_text().replace("two", "three")
    (tmp_path / "three.jsonl").write_text(rows)
    task = {"name": "three", "train": "three.jsonl", "metric": "chrf", "max_new_tokens": 8}
    path = tmp_path / "next.yaml"
    path.write_text(json.dumps({"stream": {"tasks": [task]}}))
    assert extension_recipe(run, path).rl is None
    assert extension_recipe(run, data=tmp_path / "three.jsonl").rl is None  # like the last task
    with pytest.raises(PerdureError, match="no task has learn: rl"):
        extension_recipe(run, path, ["rl.group=2"])
    path.write_text(json.dumps({"stream": {"tasks": [{**task, "learn": "rl"}]}}))
    recipe = extension_recipe(run, path, ["rl.max_steps=1"])
    made = extend(run, recipe, tmp_path / "longer")
    perdure.learn(recipe, made)
    assert [(line["task"], line["step"]) for line in made.log_rows()][-1] == ("three", 1)
    assert made.matrix().array().shape == (4, 3)
