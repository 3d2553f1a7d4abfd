"""A few steps of `gere` from a candidate, with the base model's states as its teacher.

The rows are the tasks' own training rows, so that the tasks stay; the general texts that are
replayed are none of those that the search or the report measures on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from typing import Any

from perdure.dropin import attach
from perdure.errors import UsageError
from perdure.protocol.batch import collate
from perdure.repair.candidates import BASE, Candidate
from perdure.repair.meter import Sizes
from perdure.repair.path import Line
from perdure.streams.task import Task

LEARNING_RATE = 2e-5
"""A fifth of a recipe's default: the candidate is to be moved a little."""
BATCH = 8
LONGEST = 512
"""Tokens; longer training rows are left out."""


def polish(
    line: Line,
    begin: Candidate,
    tasks: Sequence[Task],
    texts: Sequence[str],
    steps: int,
    sizes: Sizes,
    precision: str,
    seed: int,
) -> None:
    """Train the line's model from candidate `begin`; its weights are afterwards what they became.

    Only weights that differ between base and tuned model are trained, so that `line.put` brings
    any candidate back.

    Raises:
        UsageError: no training row is short enough.
    """
    from transformers import Trainer, TrainingArguments

    encoder = line.encoder()
    rows = [encoder.encode(row) for task in tasks for row in task.train]
    rows = [row for row in rows if len(row["input_ids"]) <= LONGEST]
    if not rows:
        raise UsageError(
            f"repair: --steps: no task has a training row of at most {LONGEST} tokens",
            "leave --steps out",
        )
    model: Any = line.model
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in line.end)
    line.put(BASE)  # methods look at the model when they are attached: this is the teacher
    with tempfile.TemporaryDirectory() as work:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                work,
                max_steps=steps,
                per_device_train_batch_size=BATCH,
                learning_rate=LEARNING_RATE,
                lr_scheduler_type="constant",
                use_cpu=next(model.parameters()).device.type == "cpu",
                bf16=precision == "bf16",
                seed=seed,
                save_strategy="no",
                logging_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=rows,
            data_collator=lambda batch: collate(batch, encoder.pad_id),
            processing_class=line.tokenizer,
        )
        gere = {"name": "gere", "max_tokens": sizes.general_tokens}
        attach(trainer, gere, general=texts, base=None if line.adapter else line.start)
        line.put(begin)
        trainer.train()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(flags[name])
