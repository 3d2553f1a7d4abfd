"""What GeRe costs: time, memory and disk, against plain fine-tuning and a straightforward GeRe.

    python benchmarks/gere.py [--steps 6] [--rounds 2] [--shape smollm2|1b|8b] [--base FOLDER]

Contenders, each in a process of its own, in turn, `--rounds` times:
  plain      transformers.Trainer on the same number of tokens a step: rows of one length, so that
             none is padding, every token a label;
  gere       Perdure's learner: eight task rows and four general texts in one pass;
  drop-in    perdure.attach on a plain Trainer with the same rows: a second pass for the texts;
  two-pass   what the drop-in's tokens cost without GeRe: that Trainer, and the texts as rows of a
             second pass, every token a label;
  reference  what the specification describes of the official code, written for this benchmark:
             fp32 states on disk, a file a text, two passes with all hidden states and whole heads,
             the loss in three terms, texts tokenised anew in each step.
Then the base model writes general texts itself, and they are distilled: seconds a token of that,
over seconds a token of `gere`, times the share of tokens that are sampled, is what it costs.
Printed: seconds a step (median over steps and rounds, the first two of each process left out) and
its ratio to plain, peak memory, and bytes on disk; and how far an unmoved model's states leave
their intervals by rounding, in the layout that `gere` trains. On a GPU also the margin alone,
forward and backward: the Triton kernel against plain torch.

`smollm2` is SmolLM2-135M-Instruct, eight rows of the demo and four texts of 48 tokens a step. `1b`
and `8b` are Llama's shapes with random weights in bf16, for a GPU: twelve rows of 200 tokens and
four texts of 512; 8b recomputes its activations (gradient checkpointing), as it would not fit 80 GB
otherwise. `tiny` only says whether the script runs. Of `--base` the shapes take the tokenizer only.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

TEXTS, POOL = 4, 32
CONTENDERS = ("plain", "gere", "drop-in", "two-pass", "reference")
SAMPLES = "samples"
"""A worker of its own: the base model writes texts and they are distilled."""
KERNEL = "kernel"
"""Another: the margin alone, on a GPU."""
SHAPES: dict[str, dict[str, Any]] = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
             "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 50000},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
           "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
           "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256},
}  # fmt: skip


@dataclass(frozen=True)
class Load:
    """What a step carries."""

    rows: int
    row_tokens: int
    """The fewest tokens of a task row: rows of the demo, joined."""
    text_tokens: int
    samples: int = 512
    """Own texts that are sampled."""
    checkpointing: bool = False


LOADS = {
    "smollm2": Load(8, 1, 48, samples=64),
    "tiny": Load(4, 60, 64, samples=64, checkpointing=True),
    "1b": Load(12, 200, 512),
    "8b": Load(12, 200, 512, checkpointing=True),
}


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--steps", type=int, default=6)
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--shape", choices=["smollm2", *SHAPES], default="smollm2")
    options.add_argument("--base", default="", help="model folder or .gguf instead of SmolLM2")
    options.add_argument("--only", default=",".join(CONTENDERS))
    options.add_argument("--out", type=Path, help="also write the figures as JSON")
    options.add_argument("--worker", choices=[*CONTENDERS, SAMPLES, KERNEL])
    wanted = options.parse_args()
    if wanted.worker:
        if wanted.worker == KERNEL:
            print(json.dumps(margin_alone(wanted.shape)))
        else:
            print(json.dumps(work(wanted.worker, wanted.steps + 2, wanted.shape, wanted.base)))
        return
    names = wanted.only.split(",")
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for turn in range(wanted.rounds):
        for name in names if turn % 2 == 0 else names[::-1]:
            found[name].append(apart(name, wanted))
            if wanted.out:
                wanted.out.write_text(json.dumps(found, indent=1), encoding="utf-8")
    show(found, wanted)
    if "gere" in names:
        rounding(found["gere"][0])
        sampling(apart(SAMPLES, wanted), found["gere"])
        kernel(apart(KERNEL, wanted))


def apart(name: str, wanted: argparse.Namespace) -> dict[str, Any]:
    """One contender's figures from a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--worker", name, "--steps", str(wanted.steps), "--shape",
         wanted.shape, "--base", wanted.base],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-2000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def rounding(run: dict[str, Any]) -> None:
    noise = run["noise"]
    print(f"rounding in {run['precision']}: states are {noise['mean']:.2g} outside in the mean, "
          f"{noise['largest']:.2g} at most; {noise['flipped']:.3%} have left")  # fmt: skip


def sampling(made: dict[str, Any], trained: list[dict[str, Any]]) -> None:
    from perdure.engine.general_texts import SHARE

    seconds = statistics.median(s / run["tokens"] for run in trained for s in run["seconds"][2:])
    ratio = made["seconds"][0] / made["tokens"] / seconds
    print(f"own samples: {made['tokens']:.0f} tokens in {made['seconds'][0]:.1f} s with their "
          f"states, {ratio:.2f} of a trained token's time each; at {SHARE:.0%} of the tokens "
          f"{SHARE * ratio:.1%} of the training's time")  # fmt: skip


def kernel(figures: dict[str, Any]) -> None:
    if figures:
        print(f"the margin alone on {tuple(figures['shape'])} states, forward and backward: "
              f"{figures['fused']:.3f} ms with the kernel, {figures['plain']:.3f} ms in plain "
              f"torch, {figures['plain'] / figures['fused']:.1f} times as long")  # fmt: skip


def show(found: dict[str, list[dict[str, Any]]], wanted: argparse.Namespace) -> None:
    first = next(iter(found.values()))[0]
    print(f"{wanted.shape}, {first['device']}, {first['precision']}, {wanted.steps} steps, "
          f"{wanted.rounds} rounds")  # fmt: skip
    print("| | tokens a step | seconds a step | of plain | peak memory | of plain | on disk |")
    print("|---|---|---|---|---|---|---|")
    base: tuple[float, float] | None = None
    for name, runs in found.items():
        seconds = statistics.median(s for run in runs for s in run["seconds"][2:])
        memory = statistics.median(run["memory_mb"] for run in runs)
        base = base or (seconds, memory)
        tokens = statistics.mean(run["tokens"] for run in runs)
        disk = f"{runs[0]['disk']:,}" if runs[0]["disk"] else ""
        print(f"| {name} | {tokens:.0f} | {seconds:.2f} | {seconds / base[0]:.3f} "
              f"| {memory:.0f} MB | {memory / base[1]:.3f} | {disk} |")  # fmt: skip


def work(name: str, steps: int, shape: str, base: str) -> dict[str, Any]:
    """Run one contender; seconds of each step, tokens a step, peak memory, bytes on disk."""
    import os

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    from perdure.engine.callbacks import peak_memory_mb
    from perdure.models.memory import keep_freed_memory

    keep_freed_memory()
    folder = Path(tempfile.mkdtemp())
    model, tokenizer, bf16 = load(shape, base)
    size = LOADS[shape]
    rows, texts = data(tokenizer, steps, size)
    run = {"plain": plain, "gere": own, "drop-in": drop_in, "two-pass": two_pass,
           "reference": reference, SAMPLES: samples}[name]  # fmt: skip
    seconds, tokens, disk = run(model, tokenizer, rows, texts, steps, bf16, folder, size)
    return {
        "seconds": seconds,
        "tokens": tokens,
        "memory_mb": peak_memory_mb(),
        "disk": disk,
        "noise": noise_in(folder / "cache"),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "precision": "bf16" if bf16 else "fp32",
    }


def noise_in(cache: Path) -> dict[str, float] | None:
    """Of the final states, as it was measured when they were distilled."""
    for path in cache.glob("states-*/manifest.json"):
        noise: dict[str, float] = json.loads(path.read_text(encoding="utf-8"))["noise"]["-1"]
        return noise
    return None


def load(shape: str, base: str) -> tuple[Any, Any, bool]:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from perdure import models
    from perdure.demo import base_model
    from perdure.recipe.schema import ModelConfig

    bf16 = models.choose_precision("auto") == "bf16" or shape != "smollm2"
    chosen = ModelConfig(path=base or str(base_model()))
    if shape == "smollm2":
        model, tokenizer = models.load_base(chosen)
    else:
        tokenizer = models.load_tokenizer(chosen)
        torch.manual_seed(0)
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            torch.set_default_dtype(torch.bfloat16)
            model = LlamaForCausalLM(LlamaConfig(**SHAPES[shape], max_position_embeddings=8192))
            torch.set_default_dtype(torch.float32)
    if torch.cuda.is_available():
        model.to("cuda")
    return model, tokenizer, bf16


def data(tokenizer: Any, steps: int, size: Load) -> tuple[list[dict[str, Any]], list[str]]:
    """The demo's first task, encoded, and general texts of at least `text_tokens` tokens."""
    from perdure.models.chat import Encoder
    from perdure.streams.named.demo import pydoc_texts, three_tasks

    encoder = Encoder(tokenizer)
    short = [encoder.encode(row) for row in three_tasks(0).tasks[0].train]
    rows: list[dict[str, Any]] = [{"input_ids": [], "labels": []}]
    for i in range(10**6):
        if len(rows[-1]["input_ids"]) >= size.row_tokens:
            if len(rows) == steps * size.rows:
                break
            rows.append({"input_ids": [], "labels": []})
        rows[-1] = {k: [*v, *short[i % len(short)][k]] for k, v in rows[-1].items()}
    texts = [""]
    for text in list(pydoc_texts(0).replay) * 50:
        if len(tokenizer(texts[-1])["input_ids"]) >= size.text_tokens:
            if len(texts) == POOL:
                break
            texts.append("")
        # Where one is long enough, texts are whole; else several make one.
        joined = f"{texts[-1]}\n{text}".strip()
        texts[-1] = joined if size.row_tokens > 1 else text
    return rows, texts


def arguments(folder: Path, steps: int, bf16: bool, size: Load) -> Any:
    import torch
    from transformers import TrainingArguments

    return TrainingArguments(
        str(folder / "trainer"), per_device_train_batch_size=size.rows, max_steps=steps,
        activation_checkpointing=size.checkpointing, learning_rate=1e-5,
        lr_scheduler_type="constant", optim="adamw_torch_fused", bf16=bf16,
        use_cpu=not torch.cuda.is_available(), save_strategy="no", report_to="none",
        logging_steps=1, disable_tqdm=True, remove_unused_columns=False,
        dataloader_pin_memory=False, train_sampling_strategy="sequential",
    )  # fmt: skip


def precision(bf16: bool) -> Any:
    """Makes contexts of the training's precision."""
    import torch

    kind = "cuda" if torch.cuda.is_available() else "cpu"
    return partial(torch.autocast, kind, torch.bfloat16, enabled=bf16)


def clock() -> Any:
    import torch
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.seconds: list[float] = []

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.begin = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.seconds.append(time.perf_counter() - self.begin)

    return Clock()


def trained(trainer: Any) -> list[float]:
    from transformers import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    watch = clock()
    trainer.add_callback(watch)
    trainer.train()
    seconds: list[float] = watch.seconds
    return seconds


def step_tokens(rows: Sequence[dict[str, Any]], steps: int, size: Load) -> float:
    """Tokens of a step with general texts: the mean over the steps."""
    return sum(len(row["input_ids"]) for row in rows) / steps + TEXTS * size.text_tokens


def plain(
    model: Any, tokenizer: Any, rows: list[dict[str, Any]], texts: list[str], steps: int,
    bf16: bool, folder: Path, size: Load,
) -> tuple[list[float], float, int]:  # fmt: skip
    from transformers import Trainer

    from perdure.protocol.batch import collate

    # One length for all rows: the tokens of a step in as many rows as fit best.
    count = round(step_tokens(rows, steps, size) / size.text_tokens)
    length = round(step_tokens(rows, steps, size) / count)
    stream = [i for row in rows * 4 for i in row["input_ids"]]
    same = [stream[k * length : (k + 1) * length] for k in range(steps * count)]
    dataset = [{"input_ids": ids, "labels": ids} for ids in same]
    trainer = Trainer(
        model=model, args=arguments(folder, steps, bf16, replace(size, rows=count)),
        processing_class=tokenizer,
        train_dataset=dataset, data_collator=lambda b: collate(b, tokenizer.pad_token_id),
    )  # fmt: skip
    return trained(trainer), count * length, 0


def own(
    model: Any, tokenizer: Any, rows: list[dict[str, Any]], texts: list[str], steps: int,
    bf16: bool, folder: Path, size: Load,
) -> tuple[list[float], float, int]:  # fmt: skip
    from transformers import PrinterCallback

    from perdure.engine.attach import attach
    from perdure.engine.sampler import EpochSampler
    from perdure.engine.session import TaskSession
    from perdure.engine.trainer import PerdureTrainer
    from perdure.methods.gere import GeRe, GeReConfig
    from perdure.models.chat import Encoder
    from perdure.protocol.batch import ROWS as ROWS_KEY
    from perdure.protocol.batch import HostRows, collate
    from perdure.streams.task import GeneralText, Task

    method = GeRe(GeReConfig(insert=TEXTS, max_tokens=size.text_tokens))
    session = TaskSession(
        model, Encoder(tokenizer), Task("task", rows, (), (), "perplexity"), methods=[method],
        general=GeneralText(replay=texts), batch_size=size.rows, cache=folder / "cache",
        autocast=precision(bf16), packs=True,
    )  # fmt: skip
    method.begin_task(session.context)
    pad = tokenizer.pad_token_id
    trainer = PerdureTrainer(
        model=model, args=arguments(folder, steps, bf16, size), processing_class=tokenizer,
        train_dataset=rows, data_collator=lambda b: {**collate(b, pad), ROWS_KEY: HostRows(b)},
    )  # fmt: skip
    trainer.session = session
    trainer.sampler = EpochSampler([len(row["input_ids"]) for row in rows], size.rows, 0)
    attach(trainer, method, session=session)
    trainer.remove_callback(PrinterCallback)
    return trained(trainer), step_tokens(rows, steps, size), bytes_in(folder / "cache")


def drop_in(
    model: Any, tokenizer: Any, rows: list[dict[str, Any]], texts: list[str], steps: int,
    bf16: bool, folder: Path, size: Load,
) -> tuple[list[float], float, int]:  # fmt: skip
    from transformers import Trainer

    import perdure
    from perdure.protocol.batch import collate

    trainer = Trainer(
        model=model, args=arguments(folder, steps, bf16, size), processing_class=tokenizer,
        train_dataset=rows, data_collator=lambda b: collate(b, tokenizer.pad_token_id),
    )  # fmt: skip
    options = {"name": "gere", "insert": TEXTS, "max_tokens": size.text_tokens}
    perdure.attach(trainer, options, general=texts, cache=folder / "cache")
    return trained(trainer), step_tokens(rows, steps, size), bytes_in(folder / "cache")


def two_pass(
    model: Any, tokenizer: Any, rows: list[dict[str, Any]], texts: list[str], steps: int,
    bf16: bool, folder: Path, size: Load,
) -> tuple[list[float], float, int]:  # fmt: skip
    import torch
    from transformers import Trainer

    from perdure.models.chat import Encoder
    from perdure.protocol.batch import collate

    encoder, pad = Encoder(tokenizer), tokenizer.pad_token_id
    encoded = [encoder.encode_text(text, size.text_tokens) for text in texts]
    drawn = iter(range(10**9))

    class Twice(Trainer):
        def compute_loss(self, model: Any, inputs: Any, *rest: Any, **named: Any) -> torch.Tensor:
            task = super().compute_loss(model, inputs, *rest, **named)
            batch = collate([encoded[next(drawn) % len(texts)] for _ in range(TEXTS)], pad)
            loss: torch.Tensor = (
                task + model(**{k: v.to(task.device) for k, v in batch.items()}).loss
            )
            return loss

    trainer = Twice(
        model=model, args=arguments(folder, steps, bf16, size), processing_class=tokenizer,
        train_dataset=rows, data_collator=lambda b: collate(b, pad),
    )  # fmt: skip
    return trained(trainer), step_tokens(rows, steps, size), 0


def reference(
    model: Any, tokenizer: Any, rows: list[dict[str, Any]], texts: list[str], steps: int,
    bf16: bool, folder: Path, size: Load,
) -> tuple[list[float], float, int]:  # fmt: skip
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import Trainer

    from perdure.protocol.batch import collate

    device = next(model.parameters()).device
    states = folder / "states"
    states.mkdir()

    def ids_of(text: str) -> torch.Tensor:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][: size.text_tokens]
        return torch.tensor([ids], device=device)

    total: Any = 0.0
    square: Any = 0.0
    count = 0
    with torch.no_grad():
        for i, text in enumerate(texts):
            h = model(ids_of(text), output_hidden_states=True).hidden_states[-1][0].float()
            torch.save({"hidden_states": h.cpu()}, states / f"{i}.pt")
            total, square, count = total + h.sum(0), square + (h * h).sum(0), count + len(h)
    mean = total / count
    deviation = (square / count - mean**2).sqrt()
    low, high = mean - deviation, mean + deviation
    drawn = iter(range(10**9))

    class Straight(Trainer):
        def compute_loss(self, model: Any, inputs: Any, *_: Any, **__: Any) -> torch.Tensor:
            task = model(**inputs, output_hidden_states=True)
            pick = [next(drawn) % len(texts) for _ in range(TEXTS)]
            ids = torch.cat([ids_of(texts[i]) for i in pick])
            h = torch.stack(
                [torch.load(states / f"{i}.pt")["hidden_states"] for i in pick]
            ).to(device)  # fmt: skip
            out = model(ids, output_hidden_states=True)
            x = out.hidden_states[-1].float()
            logits = out.logits[:, :-1].float()
            ce = cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
            below, above = (h <= low).float(), (h >= high).float()
            between = ((h > low) & (h < high)).float()
            e = below * torch.relu(x - low) + above * torch.relu(high - x)
            e = e + between * (torch.relu(x - high) + torch.relu(low - x))
            margin = e.sum() / ((e != 0).sum() + 1e-8)
            loss: torch.Tensor = (task.loss + ce) / 2 + 100 * margin
            if bool(loss.isnan().any()):
                raise ValueError("nan")
            return loss

    trainer = Straight(
        model=model, args=arguments(folder, steps, bf16, size), processing_class=tokenizer,
        train_dataset=rows, data_collator=lambda b: collate(b, tokenizer.pad_token_id),
    )  # fmt: skip
    return trained(trainer), step_tokens(rows, steps, size), bytes_in(states)


def samples(
    model: Any, tokenizer: Any, rows: list[dict[str, Any]], texts: list[str], steps: int,
    bf16: bool, folder: Path, size: Load,
) -> tuple[list[float], float, int]:  # fmt: skip
    from perdure.engine.session import TaskSession
    from perdure.methods.gere import GeRe, GeReConfig
    from perdure.models.chat import Encoder
    from perdure.streams.task import Task

    method = GeRe(GeReConfig(samples=size.samples, max_tokens=64))
    session = TaskSession(
        model, Encoder(tokenizer), Task("task", rows, (), (), "perplexity"), methods=[method],
        batch_size=size.rows, cache=folder / "cache", stream_tokens=lambda: 10**9,
        autocast=precision(bf16),
    )  # fmt: skip
    begin = time.perf_counter()
    method.begin_task(session.context)
    seconds = time.perf_counter() - begin
    tokens = sum(len(row["input_ids"]) for row in method._rows or ())
    return [seconds], tokens, bytes_in(folder / "cache")


def margin_alone(shape: str) -> dict[str, Any]:
    """Milliseconds of the margin's forward and backward, by kernel and in plain torch."""
    from unittest import mock

    import torch

    from perdure.mechanisms import margin

    if not torch.cuda.is_available() or margin._kernel() is None:
        return {}
    from triton.testing import do_bench  # type: ignore[import-not-found,unused-ignore]

    size = LOADS[shape]
    width: int = SHAPES[shape]["hidden_size"] if shape in SHAPES else 576
    base = torch.randn(TEXTS, size.text_tokens, width, device="cuda")
    n, p = -torch.ones(width, device="cuda"), torch.ones(width, device="cuda")
    codes = margin.pack(margin.flags(base, n, p))
    x = (base + 0.3 * torch.randn_like(base)).bfloat16().requires_grad_()
    mask = torch.ones(TEXTS, size.text_tokens, dtype=torch.bool, device="cuda")

    def step() -> None:
        x.grad = None
        total, count, _ = margin.outside(x, codes, mask, n, p)
        (total / (count + 1e-8)).mean().backward()

    found: dict[str, Any] = {"shape": list(x.shape)}
    found["fused"] = do_bench(step, return_mode="median")
    with mock.patch.object(margin, "_kernel", return_value=None):
        found["plain"] = do_bench(step, return_mode="median")
    return found


def bytes_in(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


if __name__ == "__main__":
    main()
