"""What Perdure's loop costs over a plain `transformers.Trainer` on the same batches.

    python benchmarks/loop.py [--steps 8] [--repeats 3]

Trains SmolLM2-135M-Instruct on the demo's first task, in turn with
  plain     transformers.Trainer, as one writes it: same rows, same order, same collator;
  perdure   the learner with the method `sequential`: hooks, log, display, its own head placement;
  all       the same with the head on every position, as the plain trainer has it;
  gauges    `perdure` with a look at the gauges after every step, to tell what one look costs.
One process, alternating, wall seconds of the training only. Printed: medians and their ratios.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from perdure.demo import base_model
from perdure.engine.sampler import EpochSampler
from perdure.engine.trainer import PerdureTrainer
from perdure.learners import build
from perdure.learners.listener import Folders
from perdure.models import choose_precision
from perdure.models.weights import put
from perdure.prepare import chosen_methods
from perdure.protocol.batch import collate
from perdure.recipe.schema import GaugesConfig, Recipe
from perdure.reports.terminal import NullDisplay
from perdure.run import Run
from perdure.run.recorder import Recorder
from perdure.streams import build_stream


class Plain(Trainer):
    """A plain trainer, but for the order of rows, which has to be the learner's."""

    sampler: EpochSampler

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return self.sampler


def main() -> None:
    options = argparse.ArgumentParser()
    options.add_argument("--steps", type=int, default=8)
    options.add_argument("--repeats", type=int, default=3)
    options.add_argument("--batch", type=int, default=8)
    wanted = options.parse_args()
    folder = Path(tempfile.mkdtemp())
    recipe = Recipe.model_validate(
        {
            "model": {"path": str(base_model())},
            "stream": {"name": "demo"},
            "method": {"name": "sequential"},
            "gauges": {"every": 0},
            "train": {"max_steps": wanted.steps, "batch_size": wanted.batch, "epochs": 9},
        }
    )
    stream = build_stream(recipe.stream, recipe.general, folder, recipe.seed)
    run = Run.create(folder / "run", recipe)
    learner = build(
        recipe, stream, methods=chosen_methods(recipe, stream),
        precision=choose_precision(recipe.train.precision), folders=Folders.below(run.path),
        listener=Recorder(run, NullDisplay()),
    )  # fmt: skip
    start = {n: p.detach().clone() for n, p in learner.model.named_parameters()}
    rows = [learner.encoder.encode(row) for row in stream.tasks[0].train]

    def plain() -> float:
        args = TrainingArguments(
            str(folder / "plain"), per_device_train_batch_size=wanted.batch,
            max_steps=wanted.steps, learning_rate=1e-4, lr_scheduler_type="constant",
            optim=recipe.train.optimizer, use_cpu=not torch.cuda.is_available(),
            bf16=learner.precision == "bf16", save_strategy="no", report_to="none",
            logging_steps=1, disable_tqdm=True, remove_unused_columns=False,
            dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = Plain(
            model=learner.model, args=args, train_dataset=rows,
            data_collator=lambda batch: collate(batch, learner.encoder.pad_id),
        )  # fmt: skip
        trainer.pop_callback(trainer.callback_handler.callbacks[-1].__class__)
        trainer.sampler = EpochSampler([len(r["input_ids"]) for r in rows], wanted.batch, 0)
        begin = time.perf_counter()
        trainer.train()
        return time.perf_counter() - begin

    def perdure(exact_head: bool = True) -> float:
        original = PerdureTrainer.__init__

        def built(self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            self.head_is_exact = self.head_is_exact and exact_head

        PerdureTrainer.__init__ = built  # type: ignore[method-assign]
        begin = time.perf_counter()
        learner.fit(0)
        spent = time.perf_counter() - begin
        PerdureTrainer.__init__ = original  # type: ignore[method-assign]
        return spent

    def gauged() -> float:
        learner.recipe = recipe.model_copy(update={"gauges": GaugesConfig(every=1)})
        spent = perdure()
        learner.recipe = recipe
        return spent

    contenders = {
        "plain": plain, "perdure": perdure, "all": lambda: perdure(False), "gauges": gauged
    }  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(wanted.repeats + 1):
        for name, contender in contenders.items():
            put(learner.model, start)
            spent = contender()
            if turn:  # the first turn warms up
                times[name].append(spent)
    medians = {name: statistics.median(found) for name, found in times.items()}
    print(f"{wanted.steps} steps of {wanted.batch} rows, {learner.precision}, "
          f"{torch.get_num_threads()} threads, median of {wanted.repeats}")  # fmt: skip
    for name, median in medians.items():
        print(f"{name:8} {median:7.2f} s   {median / medians['plain']:.3f} of plain")
    look = (medians["gauges"] - medians["perdure"]) / medians["perdure"]
    every = GaugesConfig().every
    print(f"a look at the gauges: {look:.2f} of a step; one each {every} steps: {look / every:.1%}")


if __name__ == "__main__":
    main()
