"""What averaging does by the size of a tensor, what it costs, and what it does to factors.

    python benchmarks/ema.py toy                 # seconds
    python benchmarks/ema.py cost --steps 20     # SmolLM2-135M, LoRA, 1,024 tokens a step or more
    python benchmarks/ema.py factors --steps 40

`toy` is the same noisy quadratic in tensors of several sizes: share of steps whose weight is in
range, the median weight on the old average, and how far the average moved as a share of the weights
of training. `cost` is time a step beside plain LoRA training on the same batches, in one process by
turns, the share of it that the method's own hooks take, which other work on the machine does not
blur, and fp32 copies of the trainable weights that are kept from step to step. `factors` is how
far the product of averaged LoRA factors lies from the average of their products, as a share of how
far that average moved.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

import perdure
from perdure.demo import base_model
from perdure.learners.training import forget_trainer
from perdure.mechanisms.averaging import Average
from perdure.methods.ema import Ema, line_minimum, line_weight, new_weight
from perdure.methods.registry import load_config
from perdure.models import load_base
from perdure.models.chat import Encoder
from perdure.models.weights import put, trainable
from perdure.protocol.batch import collate
from perdure.recipe.schema import ModelConfig
from perdure.streams.named.demo import STREAMS

RATE, TOY_STEPS = 2e-4, 200
SIZES = {
    "576 x 8": 576 * 8, "576 x 128": 576 * 128, "4096 x 8": 4096 * 8,
    "4096 x 128 (the paper's)": 4096 * 128,
}  # fmt: skip
MODES: dict[str, dict[str, Any]] = {
    "fixed": {"decay": 0.99},
    "paper": {"beta": "paper"},
    "official": {"beta": "official"},
    "line": {"beta": "line", "every": 1},
}
EVERY = load_config("ema", {"beta": "line"}).model_dump()["every"]


# --- by size


class Quadratic(nn.Module):
    """Half the squared distance of each entry to its target, which each step sees with noise."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(size))
        self.draws = torch.Generator().manual_seed(0)
        self.target = 0.02 * torch.randn(size, generator=self.draws)
        self.noise = torch.zeros(size)

    def look(self) -> None:
        self.noise = 0.02 * torch.randn(len(self.w), generator=self.draws)

    def loss(self, w: Tensor) -> Tensor:
        return 0.5 * (w - self.target - self.noise).square().sum()


def toy(size: int, beta: str) -> tuple[float, float, float]:
    """Share in range, median weight on the old average, and the average's share of the way."""
    model, average = Quadratic(size), Average()
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    used: list[float] = []
    outside = 0
    for _ in range(TOY_STEPS):
        model.look()
        optimizer.zero_grad()
        model.loss(model.w).backward()
        here = model.loss(model.w).detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1 / 210)  # one of 210 pairs' share of 1
        u = torch.zeros(())
        if beta == "line" and average.weights:
            way = average.weights["w"] - model.w.detach()
            slope = ((model.w.detach() - model.target - model.noise) * way).sum()
            u = line_minimum(here, model.loss(average.weights["w"]), slope)
        optimizer.step()
        if not average.follows(model, "main", gradients=True):
            continue
        if beta in ("paper", "official"):
            new, out = new_weight(average.norms().unbind(), beta, "fallback", 0.99)
            outside += int(out.sum())
            average.move(new)
            used.append(1 - float(new))
        else:
            old = 0.99 if beta == "fixed" else float(line_weight(u, 99.0))
            average.move(1 - old)
            used.append(old)
    share = float(average.weights["w"].norm() / model.w.detach().norm())
    return 1 - outside / len(used), statistics.median(used), share


def by_size() -> None:
    names = ("paper", "official", "fixed", "line")
    print("| tensor | " + " | ".join(f"{n}: in range, weight on old, moved" for n in names) + " |")
    print("|---" * (len(names) + 1) + "|")
    for title, size in SIZES.items():
        cells = [toy(size, name) for name in names]
        shown = [f"{share:.2f}, {weight:.3f}, {moved:.3f}" for share, weight, moved in cells]
        print(f"| {title} | " + " | ".join(shown) + " |")


# --- on a model


def now() -> float:
    """Seconds of processor time, or on a GPU until it is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        return time.perf_counter()
    return time.process_time()


class Clock(TrainerCallback):
    """Seconds of each step but the first."""

    def __init__(self) -> None:
        self.steps: list[float] = []
        self.started = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.started = now()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step > 1:
            self.steps.append(now() - self.started)


class Bench:
    """SmolLM2 with LoRA on all linear layers, and rows of the demo's first task."""

    def __init__(self, tokens: int, steps: int, rank: int) -> None:
        config = ModelConfig.model_validate(
            {"path": str(base_model()), "tuning": "lora", "lora": {"r": rank}}
        )
        self.model, self.tokenizer = load_base(config, precision="fp32")
        self.start = {n: p.detach().clone() for n, p in trainable(self.model).items()}
        encoder = Encoder(self.tokenizer)
        rows = [encoder.encode(row) for row in STREAMS["demo"][1](0, None).tasks[0].train]
        sizes = sorted(len(row["input_ids"]) for row in rows)
        self.batch = -(-tokens // sizes[len(sizes) // 4])
        self.rows = (rows * (1 + self.batch * steps // len(rows)))[: self.batch * steps]
        self.tokens = sum(len(row["input_ids"]) for row in self.rows) / steps
        self.steps, self.folder = steps, Path(tempfile.mkdtemp())

    def train(self, method: Any) -> list[float]:
        """Learn from the same weights on the same batches; returns seconds a step."""
        put(self.model, self.start)
        forget_trainer(self.model)
        args = TrainingArguments(
            str(self.folder), per_device_train_batch_size=self.batch, max_steps=self.steps,
            learning_rate=RATE, use_cpu=not torch.cuda.is_available(), save_strategy="no",
            report_to="none", logging_steps=self.steps, disable_tqdm=True, bf16=False,
            remove_unused_columns=False, dataloader_pin_memory=False,
            train_sampling_strategy="sequential",
        )  # fmt: skip
        trainer = Trainer(
            model=self.model, args=args, train_dataset=self.rows, processing_class=self.tokenizer,
            data_collator=lambda rows: collate(rows, self.tokenizer.pad_token_id),
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        if method is not None:
            perdure.attach(trainer, method)
        clock = Clock()
        trainer.add_callback(clock)
        trainer.train()
        return clock.steps


class Counted(Ema):
    """Counts elements that are kept from step to step, and seconds in its own hooks."""

    kept, spent = 0, 0.0

    def loss(self, *args: Any) -> Any:
        return self._timed(super().loss, *args)

    def gradients(self, *args: Any) -> Any:
        return self._timed(super().gradients, *args)

    def _timed(self, hook: Callable[..., Any], *args: Any) -> Any:
        began = now()
        found = hook(*args)
        self.spent += now() - began
        return found

    def after_step(self, ctx: Any) -> None:
        self._timed(super().after_step, ctx)
        if ctx.step.index == 1:  # the first one is not counted
            self.spent = 0.0
        parts = (self.average.weights, self.average.gradients)
        self.kept = sum(t.numel() for part in parts for t in part.values())


def cost(bench: Bench, repeats: int) -> None:
    size = sum(p.numel() for p in bench.start.values())
    made: dict[str, Callable[[], Counted | None]] = {
        "plain": lambda: None,
        "plain again": lambda: None,
    }
    for name, options in MODES.items():
        made[name] = lambda options=options: Counted(load_config("ema", options))  # type: ignore[misc]
    times: dict[str, list[float]] = {name: [] for name in made}
    copies: dict[str, float] = {}
    hooks: dict[str, float] = dict.fromkeys(made, 0.0)
    bench.train(None)  # warms up
    for _ in range(repeats):
        for name, make in made.items():
            method = make()
            times[name] += bench.train(method)
            if method is not None:
                copies[name] = method.kept / size
                hooks[name] += method.spent
    medians = {name: statistics.median(found) for name, found in times.items()}
    where = torch.cuda.get_device_name() if torch.cuda.is_available() else "processor time"
    print(
        f"{len(times['plain'])} steps each of {bench.batch} rows, {bench.tokens:.0f} tokens, "
        f"{size / 1e6:.1f} M trainable in {len(bench.start)} tensors, "
        f"{medians['plain']:.3f} s a plain step ({where}, {torch.get_num_threads()} threads)\n"
    )
    print("| | step time beside plain | of it in the method's hooks | fp32 copies kept |")
    print("|---|---|---|---|")
    ratios = {name: median / medians["plain"] for name, median in medians.items()}
    shares = {name: hooks[name] / sum(times[name]) for name in made}
    for name in made:
        title = name
        if name == "line":  # which moves the average as `fixed` does, and looks in some steps
            print(f"| a look along the line | {ratios[name]:.3f} | {shares[name]:.2%} | |")
            title = f"line, a look each {EVERY} steps"
            for of in (ratios, shares):
                of[name] = of["fixed"] + (of[name] - of["fixed"]) / EVERY
        print(f"| {title} | {ratios[name]:.3f} | {shares[name]:.2%} | {copies.get(name, 0):.2f} |")


# --- factors and products


class Products(Ema):
    """Averages also the products of LoRA's factors, by the same weights."""

    def begin_task(self, ctx: Any) -> None:
        super().begin_task(ctx)
        self.products: dict[str, Tensor] = {}

    def after_step(self, ctx: Any) -> None:
        began = self.average.of(ctx.step.phase.name)
        super().after_step(ctx)
        decay = self.constant(ctx)
        old = float(line_weight(self.u, self.config.rho)) if decay is None else decay
        for name, product in _products(trainable(ctx.model)).items():
            if began:
                self.products[name].lerp_(product, 1 - old)
            else:
                self.products[name] = product

    def end_task(self, ctx: Any) -> Any:
        of_factors = _products(self.average.weights)
        pairs = self.products.items()
        apart = sum(float((of_factors[n] - w).square().sum()) for n, w in pairs) ** 0.5
        moved = sum(float(w.square().sum()) for _, w in pairs) ** 0.5  # from B = 0
        self.apart = apart / moved
        return super().end_task(ctx)


def _products(weights: Any) -> dict[str, Tensor]:
    return {
        name: weights[name.replace("lora_A", "lora_B")].detach().float() @ a.detach().float()
        for name, a in weights.items()
        if "lora_A" in name
    }


def factors(bench: Bench) -> None:
    print("| | average of factors from average of products, share of its way |")
    print("|---|---|")
    given = {
        "fixed 0.9": {"decay": 0.9}, "fixed 0.99": {"decay": 0.99}, "window 0.2": {"window": 0.2},
        "line": {"beta": "line", "every": 5},
    }  # fmt: skip
    for name, options in given.items():
        method = Products(load_config("ema", options))
        bench.train(method)
        print(f"| {name} | {method.apart:.4f} |")
    # `paper` and `official` weigh the two factors differently: there is no one product to average.


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("what", choices=("toy", "cost", "factors"))
    options.add_argument("--steps", type=int, default=20)
    options.add_argument("--repeats", type=int, default=1)
    options.add_argument("--tokens", type=int, default=1024, help="of a step, at least")
    options.add_argument("--rank", type=int, default=8)
    wanted = options.parse_args()
    if wanted.what == "toy":
        return by_size()
    bench = Bench(wanted.tokens, wanted.steps, wanted.rank)
    return cost(bench, wanted.repeats) if wanted.what == "cost" else factors(bench)


if __name__ == "__main__":
    main()
