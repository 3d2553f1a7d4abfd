"""Learn both tasks with a method: on a `transformers.Trainer`, or in a run of `perdure.learn`."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perdure.testing.tiny import FIRST, GENERAL, SECOND

if TYPE_CHECKING:
    from torch import Tensor

    from perdure.protocol.context import Context
    from perdure.protocol.method import Method

BATCH, STEPS = 8, 2


def train(
    model: Any, tokenizer: Any, out: Path, methods: Sequence[Method], index: int, micro: int = BATCH
) -> Any:
    """Train the first task (`index` 0) or the second for a few steps of SGD; returns the trainer.

    Args: micro: rows of a micro-batch; the optimizer's batch is `BATCH` rows all the same.
    """
    import os

    from transformers import Trainer, TrainingArguments

    import perdure
    from perdure.models.chat import Encoder
    from perdure.protocol.batch import collate

    encoder, task = Encoder(tokenizer), (FIRST, SECOND)[index]
    world = int(os.environ.get("WORLD_SIZE", "1"))
    args = TrainingArguments(
        str(out / f"task-{index}"), max_steps=STEPS, per_device_train_batch_size=micro // world,
        gradient_accumulation_steps=BATCH // micro, learning_rate=0.1, optim="sgd",
        lr_scheduler_type="constant", max_grad_norm=1.0, use_cpu=True, save_strategy="no",
        logging_steps=1, disable_tqdm=True, train_sampling_strategy="sequential",
        remove_unused_columns=False, report_to="none", dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,
    )  # fmt: skip
    trainer = Trainer(
        model=model, args=args, processing_class=tokenizer,
        train_dataset=[encoder.encode(row) for row in task.train],
        eval_dataset=[encoder.encode(row) for row in task.validation],
        data_collator=lambda rows: collate(rows, encoder.pad_id),
    )  # fmt: skip
    if methods:
        perdure.attach(
            trainer, *methods, general=GENERAL, task=task.name, task_index=index,
            cache=out / "cache",
        )  # fmt: skip
    trainer.train()
    for name in ("_is_accelerate_prepared", "forward", "_original_forward"):
        model.__dict__.pop(name, None)  # what a trainer leaves, and the next would build on
    return trainer


def make(kind: type[Method], options: Mapping[str, Any]) -> Method:
    """A method of this class with these options, validated."""
    from perdure.methods.registry import load_config

    return kind(load_config(kind, options))


def chooses_rows(kind: type[Method]) -> bool:
    """Whether a method chooses the rows that are trained on, which takes Perdure's own learner."""
    from perdure.protocol.method import Method as Base

    return kind.train_data is not Base.train_data


def needs_a_run(kind: type[Method], folder: Path) -> bool:
    """Whether `perdure.attach` would refuse a method: it chooses rows, or trains in phases."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from perdure.engine.session import TaskSession
    from perdure.models.chat import Encoder
    from perdure.protocol.method import Method as Base

    if chooses_rows(kind) or kind.phases is Base.phases:
        return chooses_rows(kind)
    method = make(kind, kind.example_options)
    encoder = Encoder(AutoTokenizer.from_pretrained(folder))
    model = AutoModelForCausalLM.from_pretrained(folder)
    session = TaskSession(model, encoder, FIRST, methods=[method], cache=folder / "cache")
    phases = method.phases(session.context)
    return len(phases) != 1 or phases[0].epochs is not None or phases[0].start != "current"


def learned(
    folder: Path, kind: type[Method] | None, options: Mapping[str, Any], micro: int = BATCH
) -> dict[str, Tensor]:
    """The weights after both tasks, learned with a method of this class; None: with none."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    methods = [] if kind is None else [make(kind, options)]
    with tempfile.TemporaryDirectory() as out:
        for index in (0, 1):
            train(model, tokenizer, Path(out), methods, index, micro)
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def apart(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """The largest difference between two sets of weights of equal names."""
    assert a.keys() == b.keys()
    return max(float((a[n] - b[n]).detach().abs().max()) for n in a)


# --- by Perdure's own learner


class _Killed(Exception):
    """Ends a run at the beginning of its second task."""


class Runs:
    """Whole runs of both tasks on a tiny model, each with the method that is handed to it."""

    def __init__(self, folder: Path, out: Path) -> None:
        """Write the tasks' rows to `out`; `folder` holds the model."""
        self.out, self.count = out, 0
        tasks = []
        for task in (FIRST, SECOND):
            splits = {"train": task.train, "validation": task.validation, "test": task.test}
            for split, rows in splits.items():
                lines = [{"prompt": r["prompt"][0]["content"], "answer": r["answer"]} for r in rows]
                text = "".join(json.dumps(line) + "\n" for line in lines)
                (out / f"{task.name}-{split}.jsonl").write_text(text, encoding="utf-8")
            files = {split: f"{task.name}-{split}.jsonl" for split in splits}
            tasks.append({"name": task.name, "format": "prompt", **files})
        self.recipe: dict[str, Any] = {
            "model": {"path": str(folder)},
            "stream": {"tasks": tasks},
            "general": {"source": "pydoc", "replay_rows": 6, "held_out_rows": 1, "max_tokens": 32},
            "method": {"name": "sequential"},
            "train": {
                "learning_rate": 0.1, "optimizer": "sgd", "max_steps": STEPS, "batch_size": BATCH,
                "precision": "fp32",
            },
            "scoring": {"max_test_rows": 1},
        }  # fmt: skip

    def learned(
        self, method: Method | None, micro: int = BATCH, twin: Method | None = None
    ) -> dict[str, Tensor]:
        """The weights after both tasks.

        Args:
            method: None is plain fine-tuning.
            twin: goes on in place of `method` after the first task, from what that saved.
        """
        from safetensors.torch import load_file

        from perdure.loop import learn
        from perdure.prepare import load_recipe, prepare
        from perdure.run import Run

        self.count += 1
        path = self.out / f"recipe-{self.count}.yaml"
        train_options = {**self.recipe["train"], "micro_batch_size": micro}
        path.write_text(json.dumps({**self.recipe, "train": train_options}), encoding="utf-8")
        recipe = load_recipe(path)
        run = Run.create(self.out / f"run-{self.count}", recipe)
        ready = prepare(recipe)
        if method is not None:
            ready = replace(ready, methods=(method,))
        if method is not None and twin is not None:
            with contextlib.suppress(_Killed):
                learn(recipe, run, prepared=replace(ready, methods=(_until_second(method),)))
            ready = replace(prepare(recipe), methods=(twin,))
        learn(recipe, run, prepared=ready)
        return load_file(run.checkpoint(2) / "model" / "model.safetensors")


def _until_second(method: Method) -> Method:
    begin = method.begin_task

    def begin_task(ctx: Context) -> None:
        if ctx.task_index == 1:
            raise _Killed
        begin(ctx)

    method.begin_task = begin_task  # type: ignore[method-assign]
    return method
