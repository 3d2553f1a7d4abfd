"""Methods on a trainer: the same numbers as plain torch, and nothing else changed."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import Trainer, TrainingArguments

import perdure
from perdure.errors import UsageError
from perdure.protocol.batch import collate
from perdure.protocol.method import Method, MethodConfig, Requires
from perdure.protocol.step import Phase

pytestmark = pytest.mark.train

STEPS, BATCH, RATE = 3, 8, 0.05


class Everything(Method):
    """Uses every hook of a training step: a state term, replayed rows, a penalty, an average."""

    requires = Requires(hidden=(1, -1), logits=True)
    saved = ("average",)

    def __init__(self, rows: Sequence[dict[str, Any]], replay: int = 4) -> None:
        super().__init__(MethodConfig())
        self.rows, self.size, self.average, self.steps = rows, replay, {}, 0

    def replay(self, ctx: Any) -> Any:
        return ctx.draw(self.rows, self.size)

    def loss(self, ctx: Any, main: Any, extra: Any) -> dict[str, Any]:
        terms = {"confidence": 0.3 * main.token_mean(main.logits.square().mean(-1))}
        if extra is not None:
            terms["replay"] = 0.5 * extra.token_mean(extra.nll)
            terms["states"] = 0.1 * extra.position_mean(extra.hidden[1].square().mean(-1))
            rows = (extra.hidden[-1].square().mean(-1) * extra.mask).sum(1)
            terms["rows"] = 0.01 * extra.row_mean(rows / extra.mask.sum(1).clamp(min=1))
        return terms

    def gradients(self, ctx: Any, params: Any) -> Any:
        for name, p in params.items():
            if p.grad is not None:
                yield name, p.grad + 0.02 * p

    def after_step(self, ctx: Any) -> None:
        self.steps += 1
        for name, p in ctx.model.named_parameters():
            old = self.average.get(name, torch.zeros_like(p))
            self.average[name] = 0.5 * old + 0.5 * p.detach()


def rows_of(count: int, seed: int, prompt: bool = True) -> list[dict[str, Any]]:
    g = torch.Generator().manual_seed(seed)
    rows = []
    for _ in range(count):
        n = int(torch.randint(4, 12, (1,), generator=g))
        ids = torch.randint(3, 250, (n,), generator=g).tolist()
        cut = n - 3 if prompt else 0
        rows.append({"input_ids": ids, "labels": [-100] * cut + ids[cut:]})
    return rows


def train(
    model: Any, tokenizer: Any, out: Path, methods: Sequence[Method], micro: int = BATCH,
    cls: Any = Trainer, config: Any = TrainingArguments, data: Any = None, **options: Any,
) -> Any:  # fmt: skip
    args = config(
        str(out), max_steps=STEPS, per_device_train_batch_size=micro,
        gradient_accumulation_steps=BATCH // micro, learning_rate=RATE, optim="sgd",
        lr_scheduler_type="constant", max_grad_norm=1.0, use_cpu=True, bf16=False,
        save_strategy=options.pop("save_strategy", "no"), logging_steps=1, disable_tqdm=True,
        train_sampling_strategy="sequential", remove_unused_columns=False, report_to="none",
        dataloader_pin_memory=False, **options,
    )  # fmt: skip
    extra = {} if cls is not Trainer else {
        "data_collator": lambda rows: collate(rows, tokenizer.pad_token_id)
    }  # fmt: skip
    trainer = cls(
        model=model, args=args, processing_class=tokenizer,
        train_dataset=data if data is not None else rows_of(STEPS * BATCH, 1), **extra,
    )  # fmt: skip
    if methods:
        perdure.attach(trainer, *methods)
    trainer.train()
    return trainer


def reference(model: Any, pad: int, method: Everything, session: Any) -> list[float]:
    """The same three steps in plain torch: whole batches, one forward for each term."""
    losses, data = [], rows_of(STEPS * BATCH, 1)
    for step in range(STEPS):
        session.begin_micro_batch(step, 1)
        drawn = session.draw(method.rows, method.size)
        batch = collate(data[step * BATCH : (step + 1) * BATCH], pad)
        out = model(batch["input_ids"], batch["attention_mask"])
        targets = batch["labels"][:, 1:]
        kept = targets != -100
        loss = cross_entropy(out.logits[:, :-1][kept], targets[kept])
        loss = loss + 0.3 * out.logits[:, :-1][kept].square().mean()
        total, tokens, states, positions, per_row = 0.0, 0, 0.0, 0, 0.0
        for row in drawn:
            one = collate([row], pad)
            out = model(one["input_ids"], output_hidden_states=True)
            nll = cross_entropy(out.logits[0, :-1], one["labels"][0, 1:], reduction="sum")
            total, tokens = total + nll, tokens + int((one["labels"][0, 1:] != -100).sum())
            state = out.hidden_states[2][0].square().mean(-1)
            states, positions = states + state.sum(), positions + len(state)
            per_row = per_row + out.hidden_states[-1][0].square().mean()
        loss = loss + 0.5 * total / tokens + 0.1 * states / positions
        loss = loss + 0.01 * per_row / len(drawn)
        loss.backward()
        losses.append(loss.item())
        params = [p for p in model.parameters() if p.requires_grad]
        for p in params:
            p.grad += 0.02 * p.detach()
        torch.nn.utils.clip_grad_norm_(params, 1.0)
        for p in params:
            p.data -= RATE * p.grad
            p.grad = None
    return losses


def same(a: Any, b: Any, tolerance: float = 2e-6) -> None:
    for (n, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=tolerance, msg=lambda m, n=n: f"{n}: {m}")


@pytest.mark.parametrize("micro", [8, 4, 2, 1])
def test_all_terms_equal_plain_torch_however_the_batch_is_split(
    tiny: Any, tmp_path: Path, micro: int
) -> None:
    model, tokenizer = tiny
    twin, method = copy.deepcopy(model), Everything(rows_of(6, 2, prompt=False))
    trainer = train(model, tokenizer, tmp_path, [method], micro)
    losses = reference(twin, tokenizer.pad_token_id, method, trainer.session)
    logged = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert logged == pytest.approx(losses, abs=2e-5)
    same(model, twin)
    assert method.steps == STEPS
    last = trainer.state.log_history[-2]
    terms = {"method/replay", "method/states", "method/rows", "method/confidence"}
    assert terms <= set(last)
    # The task's own loss and its terms, logged apart, make up the loss that is trained on.
    assert last["task_loss"] + sum(last[t] for t in terms) == pytest.approx(last["loss"], abs=2e-4)


def test_sft_trainer_gets_the_same_numbers(tiny: Any, tmp_path: Path) -> None:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    model, tokenizer = tiny
    data = Dataset.from_list(
        [
            {"input_ids": r["input_ids"], "completion_mask": [int(x != -100) for x in r["labels"]]}
            for r in rows_of(STEPS * BATCH, 1)
        ]
    )
    twin, method = copy.deepcopy(model), Everything(rows_of(6, 2, prompt=False))
    trainer = train(
        model, tokenizer, tmp_path, [method], 2, SFTTrainer, SFTConfig, data,
        completion_only_loss=True,
    )  # fmt: skip
    losses = reference(twin, tokenizer.pad_token_id, method, trainer.session)
    logged = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert logged == pytest.approx(losses, abs=2e-5)
    same(model, twin)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_a_method_without_terms_changes_nothing(tiny: Any, tmp_path: Path, accumulate: int) -> None:
    model, tokenizer = tiny
    plain = copy.deepcopy(model)
    train(plain, tokenizer, tmp_path / "plain", [], BATCH // accumulate)
    silent = Everything(rows_of(6, 2), replay=0)
    silent.loss = lambda *_: {}  # type: ignore[method-assign]
    silent.gradients = lambda *_: ()  # type: ignore[method-assign]
    train(model, tokenizer, tmp_path / "attached", [silent], BATCH // accumulate)
    for p, q in zip(model.parameters(), plain.parameters(), strict=True):
        assert torch.equal(p, q)


def test_method_state_is_in_the_trainer_checkpoint_and_comes_back(
    tiny: Any, tmp_path: Path
) -> None:
    model, tokenizer = tiny
    first = Everything(rows_of(6, 2))
    train(model, tokenizer, tmp_path, [first], save_strategy="steps", save_steps=2)
    assert (tmp_path / "checkpoint-2" / "perdure_methods.safetensors").exists()
    again = Everything(rows_of(6, 2))
    twin = copy.deepcopy(model)
    args = TrainingArguments(
        str(tmp_path), max_steps=STEPS, per_device_train_batch_size=BATCH, learning_rate=RATE,
        optim="sgd", lr_scheduler_type="constant", use_cpu=True, disable_tqdm=True,
        save_strategy="no", train_sampling_strategy="sequential", report_to="none",
        remove_unused_columns=False,
    )  # fmt: skip
    trainer = Trainer(
        model=twin, args=args, processing_class=tokenizer, train_dataset=rows_of(STEPS * BATCH, 1),
        data_collator=lambda rows: collate(rows, tokenizer.pad_token_id),
    )  # fmt: skip
    perdure.attach(trainer, again)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    same(twin, model, 0.0)
    for name, value in first.average.items():
        assert torch.equal(value, again.average[name])


def test_evaluation_serves_the_methods_weights_and_puts_the_old_ones_back(
    tiny: Any, tmp_path: Path
) -> None:
    model, tokenizer = tiny

    class Serves(Method):
        def serving(self, ctx: Any) -> Any:
            return {n: torch.zeros_like(p) for n, p in ctx.model.named_parameters()}

    trainer = train(model, tokenizer, tmp_path, [Serves(MethodConfig())])
    before = copy.deepcopy(model)
    loss = trainer.evaluate(rows_of(8, 3))["eval_loss"]
    vocabulary = model.config.vocab_size
    assert loss == pytest.approx(torch.tensor(float(vocabulary)).log().item(), abs=1e-5)
    same(model, before, 0.0)


def test_a_second_attach_is_refused(tiny: Any, tmp_path: Path) -> None:
    model, tokenizer = tiny
    trainer = train(model, tokenizer, tmp_path, [Method(MethodConfig())])
    with pytest.raises(UsageError, match="has methods already"):
        perdure.attach(trainer, "sequential")


def test_clashes_and_what_a_foreign_trainer_cannot_do_are_refused(
    tiny: Any, tmp_path: Path
) -> None:
    model, tokenizer = tiny

    class TwoPhases(Method):
        def phases(self, ctx: Any) -> Sequence[Phase]:
            return (Phase("warm"), Phase("main"))

    class Projects(Method):
        projects = True

    with pytest.raises(UsageError, match="trains in phases"):
        train(model, tokenizer, tmp_path, [TwoPhases(MethodConfig())])
    with pytest.raises(UsageError, match="both replace the gradient's direction"):
        train(model, tokenizer, tmp_path, [Projects(MethodConfig()), Projects(MethodConfig())])
    with pytest.raises(UsageError, match="both set the phases"):
        train(model, tokenizer, tmp_path, [TwoPhases(MethodConfig()), TwoPhases(MethodConfig())])
