"""Train two tasks with one method on the tiny model; `main` does so for all methods in turn.

In several processes `main(MODEL, OUT)` runs as under torchrun. It writes OUT/METHOD.safetensors,
the weights after both tasks.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from small_tasks import FIRST, GENERAL, SECOND

BATCH, STEPS = 8, 2

# One line a method: options under which it does something in the second task, and options under
# which it does nothing at all. A new method file needs its line here.
ACTIVE: dict[str, dict[str, Any]] = {
    "eaft": {},
    "ewc": {"lam": 50, "rows": 4},
    "freeze": {"layers": 1},
    "gere": {"max_tokens": 12, "insert": 3},
    "joint": {},
    "lwf": {},
    "replay": {"buffer_size": 6, "ratio": 0.4},
    "rewind": {"grid": [0.5], "tolerance": 100},
    "sequential": {},
}
SILENT: dict[str, dict[str, Any]] = {
    "eaft": {"alpha": 0},
    "ewc": {"lam": 0, "rows": 2},
    "freeze": {"layers": 0, "embeddings": False},
    "gere": {"max_tokens": 12, "weight": 0, "label_weight": 0},
    "joint": {"start": "current"},
    "lwf": {"weight": 0},
    "replay": {"weight": 0},
    "rewind": {"grid": [1.0]},
    "sequential": {},
}
OWN_ROWS = {"joint"}  # chooses the rows to train on, which takes Perdure's own learner


def train(
    model: Any, tokenizer: Any, out: Path, methods: Sequence[Any], index: int, micro: int = BATCH
) -> Any:
    """Train task `index` (0 or 1) for a few steps of plain SGD; returns the trainer."""
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


def made(name: str, options: dict[str, Any]) -> Any:
    from perdure.methods import registry

    return registry.load(name)(registry.load_config(name, options))


def main(model_dir: str, out: str) -> None:
    from safetensors.torch import save_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for name, options in ACTIVE.items():
        if name in OWN_ROWS:
            continue
        model = AutoModelForCausalLM.from_pretrained(model_dir)
        tokenizer, method = AutoTokenizer.from_pretrained(model_dir), made(name, options)
        for index in (0, 1):
            train(model, tokenizer, Path(out) / name, [method], index)
        if os.environ.get("RANK", "0") == "0":
            save_file(dict(model.named_parameters()), Path(out) / f"{name}.safetensors")
