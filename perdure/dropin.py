"""Methods on your own `transformers.Trainer` or `trl.SFTTrainer`, in three lines.

    trainer = SFTTrainer(model, train_dataset=data)
    perdure.attach(trainer, "gere", general=texts)
    trainer.train()

Logging, gradient accumulation, mixed precision, checkpoints and evaluation stay as they are.
Hand the same method objects, and the same texts, to the next task's trainer:
`attach(next_trainer, *trainer.methods, general=texts)`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from perdure.consent import trusting
from perdure.engine.attach import attach as put_on
from perdure.engine.method_state import give_weights
from perdure.engine.session import TaskSession
from perdure.errors import UsageError
from perdure.methods.registry import build
from perdure.models.chat import Encoder
from perdure.models.weights import trainable
from perdure.protocol.method import Method, refuse_clashes
from perdure.streams.kinds import PERPLEXITY
from perdure.streams.task import GeneralText, Row, Task

if TYPE_CHECKING:
    from transformers import Trainer


def attach(
    trainer: Trainer,
    *methods: Method | str | Mapping[str, Any],
    general: Sequence[str] = (),
    task: str = "task",
    task_index: int = 0,
    base: Mapping[str, Tensor] | None = None,
    cache: str | Path | None = None,
) -> Trainer:
    """Put methods on a trainer, before `trainer.train()`, and return it.

    Args:
        methods: a name (`"replay"`), a name with options (`{"name": "gere", "weight": 100}`), or
            the method objects of an earlier trainer (`trainer.methods`), which remember; texts in
            `general` are given again.
        general: texts that methods may replay; none: a method that needs some samples them from
            the model itself, before it is trained.
        task, task_index: what is learned, counted from 0; they name what is logged and cached.
        base: the untouched base model's trainable parameters, for a method that compares with
            it when `trainer.model` has learned something before; default: the model as it is.
        cache: a folder for what methods compute once; default: where the same method objects
            kept it before, else `perdure` in the output folder.

    Raises:
        UsageError: no tokenizer on the trainer, no method, two that clash, no list of texts, or a
            method that needs to change the rows or train in phases: that takes `perdure run`.
    """
    texts = [] if isinstance(general, str) else list(general)  # an open file gives them once
    if isinstance(general, str) or not all(isinstance(text, str) for text in texts):
        raise UsageError(
            "attach: general is a list of texts",
            'of a file: general=open("general.txt").read().split("\\n\\n")',
        )
    if not methods:
        raise UsageError("attach: no method is given", 'for example attach(trainer, "gere")')
    chosen = [m if isinstance(m, Method) else _built(m) for m in methods]
    refuse_clashes(chosen)
    if trainer.processing_class is None:
        raise UsageError(
            "attach: the trainer has no tokenizer",
            "give it one: Trainer(..., processing_class=...)",
        )
    found = trainer.eval_dataset  # a dict of several is no one set of rows
    eval_rows = found if hasattr(found, "__getitem__") and not isinstance(found, Mapping) else ()
    if not hasattr(trainer.train_dataset, "__len__"):
        raise UsageError("attach: the trainer's rows have no length", "give it a datasets.Dataset")
    homes = [m.home for m in chosen if m.home is not None]
    home = Path(cache) if cache else (homes or [Path(str(trainer.args.output_dir)) / "perdure"])[0]
    learned = Task(
        task,
        train=_EncodedRows(trainer, trainer.train_dataset),
        validation=_EncodedRows(trainer, eval_rows),
        test=(),
        metric=PERPLEXITY.name,
    )
    model: Any = trainer.model
    session = TaskSession(
        model,
        Encoder(trainer.processing_class),
        learned,
        methods=chosen,
        task_index=task_index,
        general=GeneralText(replay=texts),
        seed=trainer.args.seed,
        batch_size=trainer.args.train_batch_size
        * trainer.args.gradient_accumulation_steps
        * trainer.args.world_size,
        cache=home,
        base=(lambda: dict(base)) if base is not None else None,
        score=lambda _, rows: _perplexity(session, rows),
        autocast=trainer.accelerator.autocast,
        stream_tokens=lambda: _tokens(trainer, learned),
    )
    frozen = _frozen_names(session, chosen)
    put_on(trainer, *chosen, session=session)
    for method in chosen:
        method.home = home
        method.begin_task(session.context)
    trainer.add_callback(_Ending(session, frozen))
    return trainer


def _built(method: str | Mapping[str, Any]) -> Method:
    from perdure.recipe.schema import read_methods

    specs, found = read_methods(dict(method) if isinstance(method, Mapping) else method, None)
    if found or not isinstance(method, str | Mapping):
        raise UsageError(
            f"attach: {method!r} names no method",
            'write "gere", or {"name": "gere", "insert": 2}; several are arguments of their own',
        )
    with trusting(True):  # the file's name stands in the user's own program
        return build(specs)[0]


def _frozen_names(session: TaskSession, methods: Sequence[Method]) -> list[str]:
    """Freeze what the methods' only phase freezes; refuse what a foreign trainer cannot do."""
    import re

    frozen = []
    for method in methods:
        name = type(method).__name__
        phases = method.phases(session.context)
        plain = len(phases) == 1 and phases[0].epochs is None and phases[0].start == "current"
        if not plain or type(method).train_data is not Method.train_data:
            raise UsageError(
                f"attach: {name} chooses the rows or trains in phases, which a trainer of your "
                "own cannot do",
                "use perdure run, or perdure.learn",
            )
        if phases[0].freeze:
            params = trainable(session.model)
            frozen += [n for n in params if re.search(phases[0].freeze, n)]
    for n, p in trainable(session.model).items():
        if n in frozen:
            p.requires_grad_(False)
    return frozen


def _tokens(trainer: Trainer, task: Task) -> int:
    """Tokens of the rows that the trainer will see, from the first rows' lengths."""
    some = [len(row["input_ids"]) for row in task.train[:32]]
    args = trainer.args
    seen = args.num_train_epochs * len(task.train)
    if args.max_steps > 0:
        rows = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        seen = args.max_steps * rows
    return round(seen * sum(some) / max(1, len(some)))


class _EncodedRows(Sequence[Row]):
    """A trainer's own rows as its collator makes them: `input_ids` and `labels`, no padding."""

    def __init__(self, trainer: Trainer, rows: Any) -> None:
        self.trainer, self.rows = trainer, rows

    def __len__(self) -> int:
        return 0 if self.rows is None else len(self.rows)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(index)
        batch = self.trainer.data_collator([self.rows[index]])
        labels = batch["labels"][0]
        real = batch["attention_mask"][0].bool() if "attention_mask" in batch else labels == labels
        return {
            "input_ids": batch["input_ids"][0][real].tolist(),
            "labels": labels[real].tolist(),
        }


@torch.no_grad()
def _perplexity(session: TaskSession, rows: Sequence[Row], batch_size: int = 8) -> float:
    """exp of the mean loss of a label token on `rows`."""
    if not rows:
        raise UsageError(
            "attach: this method looks at held-out rows", "give the trainer eval_dataset"
        )
    loss, count = 0.0, 0
    for start in range(0, len(rows), batch_size):
        nll = session.forward(
            [session.encoder.encode(r) for r in rows[start : start + batch_size]]
        ).nll
        loss, count = loss + float(nll.sum()), count + nll.numel()
    return math.exp(loss / max(count, 1))


class _Ending(TrainerCallback):
    def __init__(self, session: TaskSession, frozen: Sequence[str]) -> None:
        self.session, self.frozen = session, frozen

    def on_train_end(self, *_: Any, **__: Any) -> None:
        params = dict(self.session.model.named_parameters())
        for name in self.frozen:
            params[name].requires_grad_(True)
        for method in self.session.methods:
            give_weights(self.session.model, method.end_task(self.session.context))


__all__ = ["attach"]
