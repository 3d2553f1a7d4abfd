"""What GeRe costs: time, memory and disk, against plain fine-tuning and a straightforward GeRe.

    python benchmarks/gere.py [--steps 6] [--rounds 2] [--shape smollm2|1b|8b] [--out FILE]

Contenders, each in a process of its own, in turn, `--rounds` times:
  plain      transformers.Trainer on the same number of tokens a step: rows of one length, so that
             none is padding, every token a label;
  gere       Perdure's learner: eight task rows and four general texts in one pass;
  drop-in    perdure.attach on a plain Trainer with the same rows: a second pass for the texts;
  reference  what the specification describes of the official code, written for this benchmark:
             fp32 states on disk, a file a text, two passes with all hidden states and whole heads,
             the loss in three terms, texts tokenised anew in each step.
Then the base model writes general texts itself, and they are distilled: seconds a token of that,
over seconds a token of `gere`, times the share of tokens that are sampled, is what it costs.
Printed: seconds a step (median over steps and rounds, the first two of each process left out) and
its ratio to plain, peak memory, and bytes on disk. `1b` and `8b` are random weights in bf16 of
that many parameters, for a GPU; smollm2 is SmolLM2-135M-Instruct.
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
from pathlib import Path
from typing import Any

ROWS, TEXTS, TEXT_TOKENS, POOL = 8, 4, 48, 32
CONTENDERS = ("plain", "gere", "drop-in", "reference")
SAMPLES = "samples"
"""A worker of its own: the base model writes `2 * POOL` texts and they are distilled."""
SHAPES = {
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
           "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
           "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256},
}  # fmt: skip


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--steps", type=int, default=6)
    options.add_argument("--rounds", type=int, default=2)
    options.add_argument("--shape", choices=["smollm2", *SHAPES], default="smollm2")
    options.add_argument("--only", default=",".join(CONTENDERS))
    options.add_argument("--out", type=Path, help="also write the figures as JSON")
    options.add_argument("--worker", choices=[*CONTENDERS, SAMPLES])
    wanted = options.parse_args()
    if wanted.worker:
        print(json.dumps(work(wanted.worker, wanted.steps + 2, wanted.shape)))
        return
    names = wanted.only.split(",")
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for turn in range(wanted.rounds):
        for name in names if turn % 2 == 0 else names[::-1]:
            found[name].append(apart(name, wanted))
    show(found, wanted)
    if "gere" in names:
        sampling(apart(SAMPLES, wanted), found["gere"])
    if wanted.out:
        wanted.out.write_text(json.dumps(found, indent=1), encoding="utf-8")


def apart(name: str, wanted: argparse.Namespace) -> dict[str, Any]:
    """One contender's figures from a process of its own."""
    done = subprocess.run(
        [sys.executable, __file__, "--worker", name, "--steps", str(wanted.steps), "--shape",
         wanted.shape],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise SystemExit(f"{name}: {done.stderr[-2000:]}")
    figures: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return figures


def sampling(made: dict[str, Any], trained: list[dict[str, Any]]) -> None:
    from perdure.learners.general import SHARE

    seconds = statistics.median(s / run["tokens"] for run in trained for s in run["seconds"][2:])
    ratio = made["seconds"][0] / made["tokens"] / seconds
    print(f"own samples: {made['tokens']:.0f} tokens in {made['seconds'][0]:.1f} s with their "
          f"states, {ratio:.2f} of a trained token's time each; at {SHARE:.0%} of the tokens "
          f"{SHARE * ratio:.1%} of the training's time")  # fmt: skip


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


def work(name: str, steps: int, shape: str) -> dict[str, Any]:
    """Run one contender; seconds of each step, tokens a step, peak memory, bytes on disk."""
    import os

    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    import torch

    from perdure.learners.trainer import peak_memory_mb
    from perdure.models.memory import keep_freed_memory

    keep_freed_memory()
    folder = Path(tempfile.mkdtemp())
    model, tokenizer, bf16 = load(shape)
    rows, texts = data(tokenizer, steps)
    run = {"plain": plain, "gere": own, "drop-in": drop_in, "reference": reference,
           SAMPLES: samples}[name]  # fmt: skip
    seconds, tokens, disk = run(model, tokenizer, rows, texts, steps, bf16, folder)
    return {
        "seconds": seconds,
        "tokens": tokens,
        "memory_mb": peak_memory_mb(),
        "disk": disk,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "precision": "bf16" if bf16 else "fp32",
    }


def load(shape: str) -> tuple[Any, Any, bool]:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from perdure import models
    from perdure.config import ModelConfig
    from perdure.demo import base_model

    bf16 = models.choose_precision("auto") == "bf16" or shape != "smollm2"
    model, tokenizer = models.load_base(ModelConfig(path=str(base_model())))
    if shape != "smollm2":
        torch.manual_seed(0)
        with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
            torch.set_default_dtype(torch.bfloat16)
            model = LlamaForCausalLM(LlamaConfig(**SHAPES[shape], max_position_embeddings=4096))
            torch.set_default_dtype(torch.float32)
    if torch.cuda.is_available():
        model.to("cuda")
    return model, tokenizer, bf16


def data(tokenizer: Any, steps: int) -> tuple[list[dict[str, Any]], list[str]]:
    """The demo's first task, encoded, and general texts of at least `TEXT_TOKENS` tokens."""
    from perdure.learners.encoding import Encoder
    from perdure.streams.builtin import demo, pydoc_texts

    encoder = Encoder(tokenizer)
    rows = [encoder.encode(row) for row in demo(0).tasks[0].train]
    rows = (rows * (1 + steps * ROWS // len(rows)))[: steps * ROWS]
    long = [t for t in pydoc_texts(0).replay if len(tokenizer(t)["input_ids"]) >= TEXT_TOKENS]
    return rows, long[:POOL]


def arguments(folder: Path, steps: int, bf16: bool, batch: int, accumulate: int = 1) -> Any:
    import torch
    from transformers import TrainingArguments

    return TrainingArguments(
        str(folder / "trainer"), per_device_train_batch_size=batch, max_steps=steps,
        gradient_accumulation_steps=accumulate, learning_rate=1e-5,
        lr_scheduler_type="constant", optim="adamw_torch_fused", bf16=bf16,
        use_cpu=not torch.cuda.is_available(), save_strategy="no", report_to="none",
        logging_steps=1, disable_tqdm=True, remove_unused_columns=False,
        dataloader_pin_memory=False, train_sampling_strategy="sequential",
    )  # fmt: skip


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


def step_tokens(rows: Sequence[dict[str, Any]], steps: int) -> float:
    """Tokens of a step with general texts: the mean over the steps."""
    return sum(len(row["input_ids"]) for row in rows) / steps + TEXTS * TEXT_TOKENS


def plain(
    model: Any, tokenizer: Any, rows: list[dict[str, Any]], texts: list[str], steps: int,
    bf16: bool, folder: Path,
) -> tuple[list[float], float, int]:  # fmt: skip
    from transformers import Trainer

    from perdure.learners.encoding import collate

    # One length for all rows: the tokens of a step in as many rows as fit best.
    count = round(step_tokens(rows, steps) / TEXT_TOKENS)
    length = round(step_tokens(rows, steps) / count)
    stream = [i for row in rows * 4 for i in row["input_ids"]]
    same = [stream[k * length : (k + 1) * length] for k in range(steps * count)]
    dataset = [{"input_ids": ids, "labels": ids} for ids in same]
    trainer = Trainer(
        model=model, args=arguments(folder, steps, bf16, count), processing_class=tokenizer,
        train_dataset=dataset, data_collator=lambda b: collate(b, tokenizer.pad_token_id),
    )  # fmt: skip
    return trained(trainer), count * length, 0


def own(
    model: Any, tokenizer: Any, rows: list[dict[str, Any]], texts: list[str], steps: int,
    bf16: bool, folder: Path,
) -> tuple[list[float], float, int]:  # fmt: skip
    from transformers import PrinterCallback

    from perdure.learners.attach import attach
    from perdure.learners.context import Context
    from perdure.learners.encoding import ROWS as ROWS_KEY
    from perdure.learners.encoding import Encoder, HostRows, collate
    from perdure.learners.trainer import EpochSampler, PerdureTrainer
    from perdure.methods.gere import GeRe, GeReConfig
    from perdure.streams.task import GeneralText, Task

    method = GeRe(GeReConfig(insert=TEXTS, max_tokens=TEXT_TOKENS))
    ctx = Context(
        model, Encoder(tokenizer), Task("task", rows, (), (), "perplexity"), methods=[method],
        general=GeneralText(replay=texts), batch_size=ROWS, cache=folder / "cache",
    )  # fmt: skip
    method.begin_task(ctx)
    pad = tokenizer.pad_token_id
    trainer = PerdureTrainer(
        model=model, args=arguments(folder, steps, bf16, ROWS), processing_class=tokenizer,
        train_dataset=rows, data_collator=lambda b: {**collate(b, pad), ROWS_KEY: HostRows(b)},
    )  # fmt: skip
    trainer.ctx = ctx
    trainer.sampler = EpochSampler([len(row["input_ids"]) for row in rows], ROWS, 0)
    attach(trainer, method, ctx=ctx)
    trainer.remove_callback(PrinterCallback)
    return trained(trainer), step_tokens(rows, steps), size(folder / "cache")


def drop_in(
    model: Any, tokenizer: Any, rows: list[dict[str, Any]], texts: list[str], steps: int,
    bf16: bool, folder: Path,
) -> tuple[list[float], float, int]:  # fmt: skip
    from transformers import Trainer

    import perdure
    from perdure.learners.encoding import collate

    trainer = Trainer(
        model=model, args=arguments(folder, steps, bf16, ROWS), processing_class=tokenizer,
        train_dataset=rows, data_collator=lambda b: collate(b, tokenizer.pad_token_id),
    )  # fmt: skip
    options = {"name": "gere", "insert": TEXTS, "max_tokens": TEXT_TOKENS}
    perdure.attach(trainer, options, general=texts, cache=folder / "cache")
    return trained(trainer), step_tokens(rows, steps), size(folder / "cache")


def reference(
    model: Any, tokenizer: Any, rows: list[dict[str, Any]], texts: list[str], steps: int,
    bf16: bool, folder: Path,
) -> tuple[list[float], float, int]:  # fmt: skip
    import torch
    from torch.nn.functional import cross_entropy
    from transformers import Trainer

    from perdure.learners.encoding import collate

    device = next(model.parameters()).device
    states = folder / "states"
    states.mkdir()

    def ids_of(text: str) -> torch.Tensor:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"][:TEXT_TOKENS]
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
        model=model, args=arguments(folder, steps, bf16, ROWS), processing_class=tokenizer,
        train_dataset=rows, data_collator=lambda b: collate(b, tokenizer.pad_token_id),
    )  # fmt: skip
    return trained(trainer), step_tokens(rows, steps), size(states)


def samples(
    model: Any, tokenizer: Any, rows: list[dict[str, Any]], texts: list[str], steps: int,
    bf16: bool, folder: Path,
) -> tuple[list[float], float, int]:  # fmt: skip
    from perdure.learners.context import Context
    from perdure.learners.encoding import Encoder
    from perdure.methods.gere import GeRe, GeReConfig
    from perdure.streams.task import Task

    method = GeRe(GeReConfig(samples=2 * POOL, max_tokens=64))
    ctx = Context(
        model, Encoder(tokenizer), Task("task", rows, (), (), "perplexity"), methods=[method],
        batch_size=ROWS, cache=folder / "cache", stream_tokens=lambda: 10**9,
    )  # fmt: skip
    begin = time.perf_counter()
    method.begin_task(ctx)
    seconds = time.perf_counter() - begin
    tokens = sum(len(row["input_ids"]) for row in method._rows or ())
    return [seconds], tokens, size(folder / "cache")


def size(folder: Path) -> int:
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


if __name__ == "__main__":
    main()
