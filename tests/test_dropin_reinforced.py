"""`perdure.attach` on a `trl.GRPOTrainer`: each method works on completions, or is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from grpo_trainers import grpo, nothing, on_processes
from safetensors.torch import load_file
from tiny_runs import finish, start_call
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import GRPOTrainer

import perdure
from perdure.errors import UsageError
from perdure.methods.registry import load, names
from perdure.protocol.method import Method, MethodConfig, Requires

pytestmark = pytest.mark.train

GENERAL = ["One text of the world.", "Another one, which is longer.", "A third."]
WORK = {
    "ema", "freeze", "general_replay", "gere", "gere_distance", "gere_kl", "gere_official", "kl",
    "lwf", "sequential",
}  # fmt: skip
WHY = {
    "derpp": "prompts without one",
    "eaft": "cross-entropy",
    "ewc": "prompts without one",
    "replay": "prompts without one",
    "rewind": "prompts without one",
    "joint": "chooses the rows",
    "lcia": "adapters",
    "lora_sequence": "heads, one for each task",
    "moelora": "adapters",
    "olora": "adapters",
    "seq_star": "heads",
}
"""What a refusal says, for each built-in method that is refused."""


def refused(trainer: Any, *methods: Any, **options: Any) -> UsageError | None:
    try:
        perdure.attach(trainer, *methods, **options)
    except UsageError as error:
        return error
    return None


def lines(trainer: Any) -> list[dict[str, Any]]:
    return [row for row in trainer.state.log_history if "loss" in row]


def test_every_method_is_told_of_here() -> None:
    assert sorted([*WORK, *WHY]) == names()


@pytest.mark.parametrize("name", names())
def test_each_method_works_on_completions_or_is_refused_before_the_first_step(
    tiny: Any, tmp_path: Path, name: str
) -> None:
    trainer = grpo(tiny, tmp_path)
    before = {n: p.clone() for n, p in trainer.model.named_parameters()}
    given = {"name": name, **load(name).example_options}
    error = refused(trainer, given, general=GENERAL)
    if error is not None:
        assert name in WHY, f"{name} is refused: {error.what}"
        assert error.what.startswith(f"attach: {name}: ")
        assert WHY[name] in error.what
        assert error.remedy
        assert all(p.requires_grad for p in trainer.model.parameters())
        return
    assert name in WORK, f"{name} was taken"
    trainer.train()
    assert trainer.state.global_step == 2
    assert any(not torch.equal(p, before[n]) for n, p in trainer.model.named_parameters())


def test_several_methods_compose_and_the_model_writes_the_general_texts(
    tiny: Any, tmp_path: Path
) -> None:
    trainer = grpo(tiny, tmp_path, gradient_accumulation_steps=2)
    perdure.attach(trainer, {"name": "gere", "max_tokens": 12}, {"name": "kl", "beta": 0.001})
    (texts,) = (tmp_path / "perdure").glob("samples-*.jsonl")
    assert texts.stat().st_size
    trainer.train()
    first, second = lines(trainer)
    assert first["method/gere_label"] > 1
    assert first["method/kl"] == pytest.approx(0, abs=1e-6)  # the model has not moved yet
    assert second["method/kl"] > 1e-6
    assert second["method/kl_weight"] == pytest.approx(0.001)
    for row in (first, second):  # the terms, weighted, and the policy's loss are all there is
        parts = [row.get(f"method/{n}_weight", 0) for n in ("gere_label", "gere_margin", "kl")]
        terms = [row[f"method/{n}"] for n in ("gere_label", "gere_margin", "kl")]
        total = row["task_loss"] + sum(a * b for a, b in zip(parts, terms, strict=True))
        assert row["loss"] == pytest.approx(total, abs=1e-5)


class OwnTrainer(GRPOTrainer):
    """A subclass with a loss of its own, as Perdure's trainer of reinforcement has."""

    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        return 2 * super()._compute_loss(model, inputs)


def test_a_subclass_goes_the_same_way(tiny: Any, tmp_path: Path) -> None:
    trainer = grpo(tiny, tmp_path, cls=OwnTrainer)
    perdure.attach(trainer, {"name": "kl", "beta": 0.5}, {"name": "lwf", "weight": 0.5})
    trainer.train()
    assert lines(trainer)[1]["method/kl"] > 1e-6
    assert lines(trainer)[1]["method/lwf"] > 1e-6


class Maps(Method):
    requires = Requires(attentions=True)

    def loss(self, *_: Any) -> dict[str, Any]:
        return {}


class Steps(TrainerCallback):
    def __init__(self) -> None:
        self.steps: list[Any] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.steps.append(1)


@pytest.mark.parametrize(
    ("method", "config", "why"),
    [
        (Maps(MethodConfig()), {}, "attention maps"),
        ({"name": "ema", "beta": "line"}, {}, "cross-entropy"),
        ("gere_official", {}, "cross-entropy"),
        ({"name": "kl", "term": "reward"}, {}, "taken off the reward of each token"),
        ("kl", {"beta": 0.04}, r"KL of its own \(GRPOConfig beta: 0.04\)"),
    ],
)
def test_what_cannot_be_is_refused_in_attach(
    tiny: Any, tiny_model_dir: Path, tmp_path: Path, method: Any, config: Any, why: str
) -> None:
    trainer = grpo(tiny, tmp_path, **config)
    with pytest.raises(UsageError, match=why) as told:
        perdure.attach(trainer, method, general=GENERAL)
    assert told.value.remedy


def test_a_loss_type_of_unknown_scale_is_refused_where_a_term_is_of_completions(
    tiny: Any, tmp_path: Path
) -> None:
    trainer = grpo(tiny, tmp_path)
    trainer.loss_type = "new"
    assert "kl: loss_type new" in str(refused(trainer, "kl"))
    # General texts have a scale of their own.
    assert refused(trainer, {"name": "gere", "max_tokens": 12}, general=GENERAL) is None


def test_prompts_with_pictures_are_refused_where_they_run_again(tiny: Any, tmp_path: Path) -> None:
    trainer = grpo(tiny, tmp_path)
    trainer.train_dataset = trainer.train_dataset.add_column("image", [0] * 6)
    assert "pictures" in str(refused(trainer, "kl"))


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"per_device_train_batch_size": 4}, 6),
        ({"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}, 1),
        ({"gradient_accumulation_steps": 2, "num_generations": 2}, 1),
        ({"num_iterations": 3}, 18),
    ],
)
def test_an_epoch_has_the_steps_that_the_trainer_makes(
    tiny: Any, tmp_path: Path, options: Any, steps: int
) -> None:
    # 6 prompts; a step of 8 completions in groups of 4 takes 2 of them
    trainer = grpo(tiny, tmp_path, max_steps=-1, num_train_epochs=1, **options)
    micro = len(trainer.get_train_dataloader())
    assert micro // trainer.args.gradient_accumulation_steps == steps
    perdure.attach(trainer, "sequential")
    session = trainer.session
    assert session.step.per_epoch == steps
    per = options.get("per_device_train_batch_size", 4)
    assert session.batch_size == per * options.get("gradient_accumulation_steps", 1)


def test_each_text_once_an_epoch_of_prompts(tiny: Any, tmp_path: Path) -> None:
    trainer = grpo(tiny, tmp_path, max_steps=-1, num_train_epochs=1)
    official = {"name": "gere_official", "loss": "label", "scope": "row", "max_tokens": 12}
    perdure.attach(trainer, official, general=GENERAL)
    (method,) = trainer.methods
    texts = [row["_text"] for row in method._rows]
    drawn = []
    for step in range(6):  # as many as the epoch has
        trainer.session.begin_micro_batch(step, 1)
        drawn += [row["_text"] for row in method.replay(trainer.session.context) or ()]
    assert sorted(drawn) == texts


class Keep(TrainerCallback):
    """Keeps the gradient of each step, as the optimizer gets it."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, *_: Any, model: Any = None, **__: Any) -> None:
        self.steps.append({n: p.grad.clone() for n, p in model.named_parameters()})


@pytest.mark.parametrize("accumulation", [1, 2])
def test_the_texts_count_once_a_step_with_the_share_that_sft_gives_them(
    tiny: Any, tiny_model_dir: Path, tmp_path: Path, accumulation: int
) -> None:
    """As many completions as a supervised step has rows: the gradient is share * CE of the texts,
    in each of two steps from one generation, however many micro-batches a step has."""
    trainer = grpo(
        tiny, tmp_path, nothing, gradient_accumulation_steps=accumulation, max_grad_norm=0.0,
        per_device_train_batch_size=8 // accumulation, learning_rate=0.0, num_iterations=2,
    )  # fmt: skip
    replay = {"name": "general_replay", "insert": 3, "max_tokens": 12, "label_weight": 0.5}
    perdure.attach(trainer, replay, general=GENERAL)
    trainer.add_callback(kept := Keep())
    trainer.train()
    plain = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    total = torch.zeros(())
    for text in GENERAL:
        ids = torch.tensor([tiny[1](text)["input_ids"][:12]])
        total = total + plain(ids, labels=ids).loss / 3
    (0.5 * 3 / (8 + 3) * total).backward()
    assert len(kept.steps) == 2
    for step in kept.steps:
        for name, parameter in plain.named_parameters():
            torch.testing.assert_close(step[name], parameter.grad, atol=1e-6, rtol=1e-4)


def test_the_margin_counts_once_a_step_with_the_share_that_sft_gives_it(
    tiny: Any, tiny_model_dir: Path, tmp_path: Path
) -> None:
    """By a plain loop over texts, tokens and neurons: value and gradient of a step of two
    micro-batches, with weights that have moved off those of the base model."""
    trainer = grpo(
        tiny, tmp_path, nothing, gradient_accumulation_steps=2, max_grad_norm=0.0, max_steps=1,
        per_device_train_batch_size=4,
    )  # fmt: skip
    base, now = (AutoModelForCausalLM.from_pretrained(tiny_model_dir) for _ in range(2))
    gere = {"name": "gere", "insert": 3, "max_tokens": 12, "weight": 2.0, "label_weight": 0}
    perdure.attach(trainer, gere, general=GENERAL)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for mine, other in zip(trainer.model.parameters(), now.parameters(), strict=True):
            mine += 0.05 * torch.randn(mine.shape, generator=generator)
            other.copy_(mine)
    trainer.add_callback(kept := Keep())
    trainer.train()
    texts = [torch.tensor([tiny[1](text)["input_ids"][:12]]) for text in GENERAL]

    def states(model: Any) -> list[torch.Tensor]:
        return [model.model(ids).last_hidden_state[0] for ids in texts]

    with torch.no_grad():
        were = states(base)
    every = torch.cat(were).double()
    mean, std = every.mean(0), every.std(0, unbiased=False)
    low, high = (mean - std).float(), (mean + std).float()
    total = torch.zeros(())
    for was, state in zip(were, states(now), strict=True):
        away, count = torch.zeros(()), 0
        for h, x in zip(was, state, strict=True):
            for j in range(len(h)):
                bottom = high[j] if h[j] >= high[j] else low[j] if h[j] > low[j] else -torch.inf
                top = low[j] if h[j] <= low[j] else high[j] if h[j] < high[j] else torch.inf
                if x[j] > top:
                    away, count = away + x[j] - top, count + 1
                elif x[j] < bottom:
                    away, count = away + bottom - x[j], count + 1
        total = total + away / count / 3
    (2.0 * 3 / (8 + 3) * total).backward()
    assert lines(trainer)[0]["method/gere_margin"] == pytest.approx(total.item(), rel=1e-5)
    largest = max(float(p.grad.abs().max()) for p in now.parameters() if p.grad is not None)
    assert largest > 1e-2
    for name, parameter in now.named_parameters():
        wanted = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        assert float((kept.steps[0][name] - wanted).abs().max()) <= 1e-5 * largest, name


def test_resumed_at_a_generation_it_ends_with_the_same_weights(
    tiny: Any, tiny_model_dir: Path, tmp_path: Path
) -> None:
    methods = {"name": "kl", "beta": 0.5}, {"name": "gere", "insert": 2, "max_tokens": 12}
    found = []
    for resume in (None, str(tmp_path / "checkpoint-2")):
        model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
        trainer = grpo(
            (model, tiny[1]), tmp_path, max_steps=4, gradient_accumulation_steps=2,
            save_strategy="steps", save_steps=2,
        )  # fmt: skip
        perdure.attach(trainer, *methods, general=GENERAL)
        trainer.train(resume_from_checkpoint=resume)
        found.append((model, lines(trainer)[-1]))
    (whole, last), (resumed, again) = found
    for (name, a), b in zip(whole.named_parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b), name
    assert last["method/kl"] == again["method/kl"] > 0  # from the base, not the checkpoint


def test_an_average_is_scored_and_saved_while_the_raw_policy_samples(
    tiny: Any, tmp_path: Path
) -> None:
    rows = grpo(tiny, tmp_path).train_dataset.select(range(4))
    trainer = grpo(
        tiny, tmp_path, max_steps=3, eval_strategy="steps", eval_steps=3, save_strategy="steps",
        save_steps=3, per_device_eval_batch_size=4, given={"eval_dataset": rows},
    )  # fmt: skip
    perdure.attach(trainer, {"name": "ema", "decay": 0.5})
    (method,), (name, weight) = trainer.methods, next(iter(trainer.model.named_parameters()))
    writes, wrote = trainer._generate, {True: [], False: []}
    raw, averages = [weight.detach().clone()], [None]

    def written(prompts: Any) -> Any:
        wrote[trainer.model.training].append(weight.detach().clone())
        return writes(prompts)

    class After(TrainerCallback):
        def on_step_end(self, *_: Any, **__: Any) -> None:
            raw.append(weight.detach().clone())
            averages.append(method.average.weights[name].clone())

    trainer._generate = written
    trainer.add_callback(After())
    trainer.train()
    assert not torch.equal(raw[3], averages[3])
    assert len(wrote[True]) == 3
    for seen, was in zip(wrote[True], raw, strict=False):  # by the weights of training
        assert torch.equal(seen, was)
    assert wrote[False]  # what is scored is the average
    for seen in wrote[False]:
        torch.testing.assert_close(seen, averages[3])
    torch.testing.assert_close(weight.detach(), averages[3])  # what the task ends with
    trainer.save_model(str(tmp_path / "saved"))
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    torch.testing.assert_close(dict(saved.named_parameters())[name].detach(), averages[3])


def test_a_clipped_steps_shares_are_logged_by_term(
    tiny: Any, tiny_model_dir: Path, tmp_path: Path
) -> None:
    trainer = grpo(
        tiny, tmp_path, max_steps=3, max_grad_norm=0.5, gradient_accumulation_steps=2,
    )  # fmt: skip
    gere = {"name": "gere", "max_tokens": 12, "weight": 100}
    perdure.attach(trainer, gere, {"name": "kl", "beta": 0.1}, general=GENERAL)
    trainer.train()
    shares = [
        {k.removesuffix("_gradient_share"): v for k, v in row.items() if k.endswith("_share")}
        for row in lines(trainer)
    ]
    assert shares[0] == {}  # nothing was clipped before it
    assert set(shares[1]) == {
        "method/task", "method/gere_label", "method/gere_margin", "method/kl"
    }  # fmt: skip
    assert sum(shares[1].values()) == pytest.approx(1)
    assert shares[1]["method/gere_margin"] > 0.9  # what swallows the policy's own
    assert shares[2] == {}  # one step in ten at the most
    # Without a look the weights are the same, to the bit.
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    again = grpo(
        (model, tiny[1]), tmp_path / "again", max_steps=3, max_grad_norm=0.5,
        gradient_accumulation_steps=2,
    )  # fmt: skip
    perdure.attach(again, gere, {"name": "kl", "beta": 0.1}, general=GENERAL)
    again.shares._can = lambda: False
    again.train()
    assert not any(k.endswith("_share") for row in lines(again) for k in row)
    for name, weight in again.model.named_parameters():
        assert torch.equal(weight, dict(trainer.model.named_parameters())[name])


def test_without_a_clip_no_share_is_measured(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from perdure.engine import gradient_shares

    def forbidden(*_: Any) -> float:
        raise AssertionError("measured")

    monkeypatch.setattr(gradient_shares, "gradient_norm", forbidden)
    trainer = grpo(tiny, tmp_path, max_grad_norm=1e6)
    perdure.attach(trainer, {"name": "kl", "beta": 0.1})
    trainer.train()
    assert not any(k.endswith("_share") for row in lines(trainer) for k in row)


@pytest.mark.process
def test_two_processes_learn_the_same_from_the_same_completions(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    for name, processes in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        given = str(tiny_model_dir), str(tmp_path / name)
        finish(start_call(on_processes, *given, processes=processes))
    one, two = (load_file(tmp_path / name / "weights.safetensors") for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(value, two[name], atol=1e-6, rtol=0)
    alone, both = (json.loads((tmp_path / n / "log.json").read_text()) for n in ("one", "two"))
    for a, b in zip(alone, both, strict=True):
        for key in ("method/kl", "method/gere_label", "method/gere_margin", "method/kl_weight"):
            assert a[key] == pytest.approx(b[key], rel=1e-4)
    names = {k for k in both[1] if k.endswith("_gradient_share")}
    assert len(names) == 4  # measured in both processes, of local gradients
    assert sum(both[1][k] for k in names) == pytest.approx(1)
