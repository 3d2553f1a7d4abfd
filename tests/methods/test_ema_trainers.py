"""`ema` on a trainer of one's own: what is evaluated, kept, ended with, refused, and waited for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from test_dropin import arguments, encoded, plain, sft
from test_dropin_classes import classifier
from torch.nn.functional import cross_entropy
from torch.profiler import ProfilerActivity, profile
from transformers import DataCollatorWithPadding, Trainer, TrainerCallback

import perdure
from perdure.errors import UsageError
from perdure.learners.training import forget_trainer
from perdure.methods.ema import Ema
from perdure.models.weights import trainable
from perdure.protocol.method import Method, MethodConfig

pytestmark = pytest.mark.train

MODES: list[dict[str, Any]] = [
    {"decay": 0.8},
    {"beta": "paper"},
    {"beta": "official"},
    {"beta": "line", "every": 1, "rho": 1.0},
]
LINE = MODES[3]
IDS = ["fixed", "paper", "official", "line"]


class Between(TrainerCallback):
    """Counts how often the host reads a value of the device within steps `first` to `last`."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last, self.count = first, last, 0
        self.profile = profile(activities=[ProfilerActivity.CPU])

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.first:
            self.profile.start()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == self.last:
            self.profile.stop()
            events = self.profile.events() or []
            self.count = sum(event.name == "aten::_local_scalar_dense" for event in events)


def waits(tiny: Any, out: Path, method: Any, model: Any) -> int:
    trainer = plain(tiny, out, {"max_steps": 8, "logging_steps": 7}, model=model)
    if method is not None:
        perdure.attach(trainer, method)
    between = Between(2, 4)
    trainer.add_callback(between)
    trainer.train()
    return between.count


class Waits(Method):
    """Reads a value of the device in each step."""

    def after_step(self, ctx: Any) -> None:
        ctx.log("norm", float(next(ctx.model.parameters()).norm()))


class RunsAgain(Method):
    """Runs each step's batch a second time, and no more."""

    def loss(self, ctx: Any, main: Any, extra: Any) -> Any:
        self.batch = main.batch
        return {}

    def gradients(self, ctx: Any, params: Any) -> Any:
        ctx.forward(self.batch, train=None)
        return ()


@pytest.mark.parametrize("tuning", ["full", "lora"])
def test_no_step_waits_for_the_device(tiny: Any, tmp_path: Path, tuning: str) -> None:
    model = tiny[0]
    if tuning == "lora":
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))

    def counted(*methods: Any) -> list[int]:
        found = []
        for method in methods:
            for name in ("_is_accelerate_prepared", "forward", "_original_forward"):
                model.__dict__.pop(name, None)
            out = tmp_path / f"{len(list(tmp_path.iterdir()))}"
            found.append(waits(tiny, out, method, model))
        return found

    idle = {"name": "ema", "beta": "line"}  # its first look is at step 20
    without, *found = counted(None, *({"name": "ema", **options} for options in MODES[:3]), idle)
    assert found == [without] * 4
    waiting, again, look = counted(
        Waits(MethodConfig()), RunsAgain(MethodConfig()), {"name": "ema", **LINE}
    )
    assert waiting == without + 2  # so the count sees one
    assert look == again  # a look waits where the model's own forward pass does


def losses(trainer: Trainer) -> list[float]:
    return [row["loss"] for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize("options", MODES, ids=IDS)
def test_losses_are_those_of_the_bare_trainer(tiny: Any, tmp_path: Path, options: Any) -> None:
    first = {n: w.clone() for n, w in tiny[0].state_dict().items()}
    bare = plain(tiny, tmp_path / "a", {"max_steps": 4})
    bare.train()
    ended = {n: w.clone() for n, w in tiny[0].state_dict().items()}
    tiny[0].load_state_dict(first)
    for name in ("_is_accelerate_prepared", "forward", "_original_forward"):
        tiny[0].__dict__.pop(name, None)
    trainer = plain(tiny, tmp_path / "b", {"max_steps": 4})
    perdure.attach(trainer, {"name": "ema", **options})
    trainer.train()
    assert losses(trainer) == losses(bare)
    assert any(not torch.equal(w, ended[n]) for n, w in tiny[0].state_dict().items())
    told = {key for row in trainer.state.log_history for key in row}
    assert {"method/averaging_moved", "method/averaging_decile_9"} <= told
    assert ("method/averaging_weight" in told) is ("beta" in options)


def test_line_takes_the_trainers_loss_in_its_own_unit(tiny: Any, tmp_path: Path) -> None:
    """Ten times the loss and a tenth of the rate, unclipped: the same weights on the average."""
    first = {n: w.clone() for n, w in tiny[0].state_dict().items()}

    def solved(unit: float) -> list[float]:
        def loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
            logits = outputs.logits[:, :-1].flatten(0, 1)
            total = cross_entropy(logits, labels[:, 1:].flatten(), reduction="sum")
            return unit * total / num_items_in_batch

        tiny[0].load_state_dict(first)
        forget_trainer(tiny[0])
        steps = {"max_steps": 6, "logging_steps": 1, "optim": "sgd", "max_grad_norm": 1e9}
        rate = {"learning_rate": 0.5 / unit, "lr_scheduler_type": "constant"}
        trainer = plain(tiny, tmp_path / f"{unit}", {**steps, **rate}, compute_loss_func=loss)
        perdure.attach(trainer, {"name": "ema", **LINE})
        trainer.train()
        weight = "method/averaging_weight"
        return [row[weight] for row in trainer.state.log_history if weight in row]

    ours, tens = solved(1.0), solved(10.0)
    assert len(ours) == 5
    assert any(0.55 < weight < 0.95 for weight in ours), ours
    assert tens == pytest.approx(ours, rel=1e-3)


@pytest.mark.parametrize("method", [{"name": "ema", **LINE}, {"name": "eaft"}])
def test_smoothed_labels_are_refused_by_whom_they_would_lead_astray(
    tiny: Any, tmp_path: Path, method: Any
) -> None:
    trainer = plain(tiny, tmp_path, {"label_smoothing_factor": 0.1})
    with pytest.raises(UsageError, match=f"attach: {method['name']}: it takes the task's loss for"):
        perdure.attach(trainer, method)
    trainer = plain(tiny, tmp_path, {"label_smoothing_factor": 0.1})
    assert perdure.attach(trainer, {"name": "ema"}) is trainer


class Measured(TrainerCallback):
    """Keeps the loss of each evaluation by step."""

    def __init__(self) -> None:
        self.losses: dict[int, float] = {}

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any, **_: Any) -> None:
        self.losses[state.global_step] = metrics["eval_loss"]


@pytest.mark.parametrize(
    ("best", "tuning", "options"),
    [
        ("lowest", "full", {"decay": 0.7}),
        ("highest", "full", {"decay": 0.7}),
        ("highest", "lora", {"decay": 0.7}),
        ("highest", "full", MODES[1]),
        ("highest", "full", LINE),
    ],
)
def test_with_the_best_model_at_the_end_it_is_the_average_that_was_measured(
    tiny: Any, tmp_path: Path, best: str, tuning: str, options: Any
) -> None:
    model = tiny[0]
    if tuning == "lora":
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    config = {
        "max_steps": 6, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps",
        "save_steps": 2, "load_best_model_at_end": True, "metric_for_best_model": "eval_loss",
        "greater_is_better": best == "highest",
    }  # fmt: skip
    trainer = plain(tiny, tmp_path, config, model=model)
    perdure.attach(trainer, {"name": "ema", **options})
    measured = Measured()
    trainer.add_callback(measured)
    trainer.train()
    chosen = Path(str(trainer.state.best_model_checkpoint))
    step = int(chosen.name.rpartition("-")[2])
    expected = (min if best == "lowest" else max)(measured.losses.values())
    assert measured.losses[step] == expected
    assert step == (6 if best == "lowest" else 2)  # else the last average passes too
    assert trainer.evaluate()["eval_loss"] == expected
    held = load_file(chosen / "perdure_methods.safetensors")
    (path,) = chosen.glob("*model.safetensors")
    raw = {n.replace(".weight", ".default.weight") if tuning == "lora" else n: w
           for n, w in load_file(path).items()}  # fmt: skip
    moved = False
    for name, p in trainable(model).items():
        assert torch.equal(p, held[f"state/0/average/weights/{name}"])
        moved |= name in raw and not torch.equal(p, raw[name])
    assert moved  # training would go on from others


def test_what_is_evaluated_is_the_average_and_training_goes_on_from_the_weights(
    tiny: Any, tmp_path: Path
) -> None:
    trainer = plain(tiny, tmp_path, {"max_steps": 3})
    perdure.attach(trainer, {"name": "ema", "decay": 0.7})
    seen: list[tuple[float, float]] = []

    class Evaluates(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            method: Any = trainer.methods[0]  # type: ignore[attr-defined]
            before = {n: p.detach().clone() for n, p in tiny[0].named_parameters()}
            found = trainer.evaluate()["eval_loss"]
            assert all(torch.equal(p, before[n]) for n, p in tiny[0].named_parameters())
            tiny[0].load_state_dict(method.average.weights, strict=False)
            method.average.phase, kept = "none", method.average.phase
            seen.append((found, trainer.evaluate()["eval_loss"]))
            method.average.phase = kept
            tiny[0].load_state_dict(before, strict=False)

    trainer.add_callback(Evaluates())
    trainer.train()
    assert len(seen) == 3
    assert all(a == b for a, b in seen)


def test_ema_on_a_classifier(tmp_path: Path) -> None:
    from small_tokenizer import make_tokenizer

    tokenizer = make_tokenizer()
    texts = [f"red sky {i}" for i in range(8)] + [f"blue sea {i}" for i in range(8)]
    rows = [{**tokenizer(t), "labels": i // 8} for i, t in enumerate(texts)]
    for options in MODES:
        model = classifier(labels=2)
        trainer = Trainer(
            model=model, args=arguments(tmp_path, max_steps=4), processing_class=tokenizer,
            train_dataset=rows, data_collator=DataCollatorWithPadding(tokenizer),
        )  # fmt: skip
        perdure.attach(trainer, {"name": "ema", **options})
        trainer.train()
        history = trainer.state.log_history
        assert any("method/averaging_moved" in row for row in history)


@pytest.mark.parametrize("options", MODES, ids=IDS)
def test_fp16_and_deepspeed_are_refused_by_name(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: Any
) -> None:
    trainer = plain(tiny, tmp_path)
    trainer.args.fp16 = True
    with pytest.raises(UsageError, match="ema works with gradients, which fp16 scales"):
        perdure.attach(trainer, {"name": "ema", **options})
    trainer = plain(tiny, tmp_path)
    with monkeypatch.context() as launched:  # by `accelerate launch --mixed_precision fp16`
        launched.setattr(trainer.accelerator.state, "_mixed_precision", "fp16")
        with pytest.raises(UsageError, match="ema works with gradients, which fp16 scales"):
            perdure.attach(trainer, {"name": "ema", **options})
    trainer = plain(tiny, tmp_path)
    trainer.is_deepspeed_enabled = True
    with pytest.raises(UsageError, match="ema looks at each step's weights and gradients, which D"):
        perdure.attach(trainer, {"name": "ema", **options})


def test_the_budget_and_other_methods_act_on_the_average(tiny: Any, tmp_path: Path) -> None:
    """In whatever order they are listed: the task ends with the average, then the others look."""
    ended: list[dict[str, torch.Tensor]] = []
    for names in (["ema", "rewind"], ["rewind", "ema"]):
        first = {n: w.clone() for n, w in tiny[0].state_dict().items()}
        trainer = plain(tiny, tmp_path, {"max_steps": 3}, eval_dataset=encoded(tiny[1])[:2])
        given = {"ema": {"decay": 0.8}, "rewind": {"grid": [0.5], "tolerance": 100}}
        perdure.attach(trainer, *({"name": n, **given[n]} for n in names))
        trainer.train()
        ended.append({n: w.clone() for n, w in tiny[0].state_dict().items()})
        tiny[0].load_state_dict(first)
        for name in ("_is_accelerate_prepared", "forward", "_original_forward"):
            tiny[0].__dict__.pop(name, None)
        facts = {k: v for row in trainer.state.log_history for k, v in row.items()}
        names_of = [n for n, _ in tiny[0].named_parameters()]
        moved = sum(float((ended[-1][n] - first[n]).square().sum()) for n in names_of) ** 0.5
        # Half of the way of the average, not of the weights of training, which is longer.
        assert moved == pytest.approx(facts["method/averaging_moved"] / 2, rel=0.15)
        assert facts["method/averaging_moved"] < 0.7 * facts["method/averaging_moved_raw"]
    assert all(torch.equal(w, ended[1][n]) for n, w in ended[0].items())


@pytest.mark.parametrize("how", ["plain", "split", "packing", "padding_free"])
def test_a_look_sees_the_trainers_own_batch(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """At the second step the average is the weights: both losses are the one that is logged."""
    looks: list[tuple[float, float]] = []
    lowest = Ema.lowest

    def look(here: Any, there: Any, slope: Any) -> Any:
        looks.append((float(here), float(there)))
        return lowest(here, there, slope)

    monkeypatch.setattr(Ema, "lowest", staticmethod(look))
    if how in ("plain", "split"):
        options = {"gradient_accumulation_steps": 2} if how == "split" else {}
        trainer = plain(tiny, tmp_path, {"max_steps": 3, **options})
    else:
        length = {"max_length": None} if how == "padding_free" else {}
        trainer = sft(tiny, tmp_path, {"max_steps": 3, how: True, **length})
    perdure.attach(trainer, {"name": "ema", **LINE})
    trainer.train()
    (here, there), (second, behind) = looks
    assert here == pytest.approx(losses(trainer)[1], abs=1e-4)
    assert there == pytest.approx(here, abs=1e-5)
    assert second == pytest.approx(losses(trainer)[2], abs=1e-4)
    assert behind != pytest.approx(second, abs=1e-4)
