"""Methods on your own `transformers.Trainer`, or trainer of `trl`, in three lines.

    trainer = SFTTrainer(model, train_dataset=data)
    perdure.attach(trainer, "gere", general=texts)
    trainer.train()

Logging, gradient accumulation, mixed precision, checkpoints and evaluation stay as they are.
On a `trl.GRPOTrainer` the completions that it samples are what a task's rows are elsewhere.
Hand the same method objects, and the same texts, to the next task's trainer:
`attach(next_trainer, *trainer.methods, general=texts)`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Trainer, TrainerCallback

from perdure.consent import trusting
from perdure.engine.attach import attach as put_on
from perdure.engine.completions import PromptRows, learns_by_reinforcement
from perdure.engine.method_state import give_weights
from perdure.engine.served import ending
from perdure.engine.session import TaskSession
from perdure.engine.trainer_classes import (
    RowEncoder,
    accuracy,
    classes_in,
    is_classifier,
    refuse_for_classes,
    refuse_unscaled,
)
from perdure.engine.trainer_needs import (
    check_trainer,
    eval_rows,
    reads_rows,
    train_rows,
    try_model,
)
from perdure.engine.trainer_rows import TrainerRows
from perdure.errors import TrainingError, UsageError, brief
from perdure.methods.registry import build
from perdure.models.chat import Encoder
from perdure.models.weights import trainable
from perdure.protocol.labels import Classes
from perdure.protocol.method import Method, name_of, refuse_clashes
from perdure.streams.kinds import PERPLEXITY
from perdure.streams.kinds.classes import ACCURACY
from perdure.streams.task import GeneralText, Row, Task


def attach(
    trainer: Trainer,
    *methods: Method | str | Mapping[str, Any],
    general: Sequence[str] = (),
    task: str = "task",
    task_index: int = 0,
    base: Mapping[str, Tensor] | None = None,
    cache: str | Path | None = None,
    classes: Sequence[int] = (),
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
        classes: of a classifier (`AutoModelForSequenceClassification`), the numbers of those that
            earlier tasks taught it, where no method object of an earlier trainer remembers them.

    Raises:
        UsageError: no method, two that clash, no list of texts; a trainer that lacks what a method
            needs (each is asked here, before it trains); or a method that needs to change the rows
            or train in phases: that takes `perdure run`.
    """
    _refuse_what_is_no_trainer(trainer)
    texts = [] if isinstance(general, str) else list(general)  # an open file gives them once
    if isinstance(general, str) or not all(isinstance(text, str) for text in texts):
        raise UsageError(
            "attach: general is a list of texts",
            'of a file: general=open("general.txt").read().split("\\n\\n")',
        )
    if not texts and general != ():
        raise UsageError(
            "attach: general is an empty list",
            "give texts; or leave general out, and a method that needs some samples its own",
        )
    if not methods:
        raise UsageError("attach: no method is given", 'for example attach(trainer, "gere")')
    chosen = [m if isinstance(m, Method) else _built(m) for m in methods]
    refuse_clashes(chosen)
    check_trainer(trainer, chosen)
    if is_classifier(trainer.model):
        refuse_for_classes(trainer, chosen)
    train, validation = train_rows(trainer, chosen), eval_rows(trainer, chosen)
    homes = [m.home for m in chosen if m.home is not None]
    home = Path(cache) if cache else (homes or [Path(str(trainer.args.output_dir)) / "perdure"])[0]
    layout = _classes(trainer, train, chosen, classes, task_index)
    metric = PERPLEXITY.name if layout is None else ACCURACY.name
    way = "rl" if learns_by_reinforcement(trainer) else "sft"
    learned = Task(task, train=train, validation=validation, test=(), metric=metric, learn=way)
    model: Any = trainer.model
    processing: Any = trainer.processing_class
    lines = (
        trainer.args.train_batch_size
        * trainer.args.gradient_accumulation_steps
        * trainer.args.world_size
    )
    tokenizer = getattr(processing, "tokenizer", processing)
    encoder: Any = Encoder(tokenizer) if layout is None else RowEncoder(tokenizer)
    measure = _perplexity if layout is None else accuracy
    session = TaskSession(
        model,
        encoder,
        learned,
        methods=chosen,
        task_index=task_index,
        general=GeneralText(replay=texts),
        seed=trainer.args.seed,
        batch_size=max(1, round(lines * len(train) / train.lines)),  # rows, also of packs
        cache=home,
        base=(lambda: dict(base)) if base is not None else None,
        score=lambda _, rows: measure(session, rows),
        autocast=trainer.accelerator.autocast,
        stream_tokens=lambda: _tokens(session, trainer),
        classes=layout,
    )
    _refuse_what_runs_alone_do(chosen)
    frozen = _frozen_names(session, chosen)
    try_model(session, train, chosen)
    if layout is not None:
        refuse_unscaled(trainer, session, chosen)
    put_on(trainer, *chosen, session=session, compare=True)
    params = trainable(model)
    for name in frozen:
        params[name].requires_grad_(False)
    for method in chosen:
        method.home = home
        method.begin_task(session.context)
    trainer.add_callback(_Ending(trainer, session, frozen))
    return trainer


def _classes(
    trainer: Trainer,
    train: TrainerRows,
    methods: Sequence[Method],
    given: Sequence[int],
    task_index: int,
) -> Classes | None:
    """A classifier's columns that earlier tasks taught it, and those seen with this one."""
    if not is_classifier(trainer.model):
        return None
    old = sorted({*given, *(c for method in methods for c in method.classes)})
    comparing = [m for m in methods if m.requires.teacher == "previous"]
    if comparing and task_index and not old:
        raise UsageError(
            f"attach: {name_of(comparing[0])}: it holds old classes, and which of the model's "
            "labels those are is not known",
            "give the methods of the earlier trainer, attach(trainer, *earlier.methods), or their "
            "numbers: attach(..., classes=[0, 1])",
        )
    own = classes_in(train) if any(map(reads_rows, methods)) else ()
    seen = sorted({*old, *own})
    return Classes((tuple(old),) if old else (), (tuple(seen),))


def _refuse_what_runs_alone_do(methods: Sequence[Method]) -> None:
    """Refuse methods that ask for what a trainer cannot save, restore and score."""
    for method in methods:
        if method.classes_only:
            raise UsageError(
                f"attach: {name_of(method)}: it works on heads, one for each task, and the model "
                "of a trainer of your own has one for all classes",
                [
                    "a run of Perdure's grows them, from the same rows as a file: perdure run or "
                    "perdure.learn, with stream: {data: {train: rows.csv, tasks: 5}}",
                    'or keep the lower layers here: attach(trainer, {"name": "freeze", '
                    '"layers": 6}); "replay" and "derpp" keep old rows',
                ],
            )
        routes = type(method).router is not Method.router
        if routes or method.adapters:
            raise UsageError(
                f"attach: {name_of(method)}: it "
                + ("routes requests to adapters" if routes else "works on adapters")
                + ", which a trainer of your own does not do when it saves, resumes and evaluates",
                "use perdure run, or perdure.learn",
            )


def _refuse_what_is_no_trainer(trainer: Any) -> None:
    if isinstance(trainer, type):
        raise UsageError(
            f"attach: {trainer.__name__} is a class, and a trainer that was made of it is needed",
            f'trainer = {trainer.__name__}(model, ...); attach(trainer, "gere")',
        )
    if isinstance(trainer, torch.nn.Module):
        raise UsageError(
            f"attach: the first argument is a model ({type(trainer).__name__}), not its trainer",
            'trainer = Trainer(model, ...); attach(trainer, "gere")',
        )
    if not isinstance(trainer, Trainer):
        raise UsageError(
            f"attach: the first argument is no transformers.Trainer: {brief(repr(trainer))}",
            'the trainer comes first, then the methods: attach(trainer, "gere")',
        )


def _built(method: str | Mapping[str, Any]) -> Method:
    from perdure.recipe.schema import read_methods

    if isinstance(method, type):
        name = method.__name__
        what = f"attach: {name} is a class, and a method that was made of it is needed"
        if not issubclass(method, Method):
            what = f"attach: {name} is no method"
            raise UsageError(what, 'write "gere", or {"name": "gere", "insert": 2}')
        raise UsageError(
            what, f"{name}({name}.Config()), with its options in the inner brackets; or its name"
        )
    specs, found = read_methods(dict(method) if isinstance(method, Mapping) else method, None)
    if found or not isinstance(method, str | Mapping):
        raise UsageError(
            f"attach: {method!r} names no method",
            'write "gere", or {"name": "gere", "insert": 2}; several are arguments of their own',
        )
    with trusting(True):  # the file's name stands in the user's own program
        return build(specs)[0]


def _frozen_names(session: TaskSession, methods: Sequence[Method]) -> list[str]:
    """Parameters that the methods' only phase freezes; refuses what a foreign trainer cannot do."""
    import re

    frozen = []
    for method in methods:
        name = name_of(method)
        try:
            phases = method.phases(session.context)
        except UsageError as error:
            what = error.what.removeprefix("method: ").removeprefix(name).lstrip(": ")
            raise UsageError(f"attach: {name}: {what}", error.remedy) from error
        plain = len(phases) == 1 and phases[0].epochs is None and phases[0].start == "current"
        if not plain or type(method).train_data is not Method.train_data:
            raise UsageError(
                f"attach: {name}: it chooses the rows or trains in phases, which a trainer of your "
                "own cannot do",
                "use perdure run, or perdure.learn",
            )
        if phases[0].freeze:
            params = trainable(session.model)
            frozen += [n for n in params if re.search(phases[0].freeze, n)]
    return frozen


def _tokens(session: TaskSession, trainer: Trainer) -> int:
    """Tokens of the rows that the trainer will see, from the first rows' lengths; 0 where nobody
    knows, as of completions that are not written yet."""
    if isinstance(session.task.train, PromptRows):
        return 0
    some = [len(row["input_ids"]) for row in session.task.train[:32]]
    args = trainer.args
    seen = args.num_train_epochs * len(session.task.train)
    if args.max_steps > 0:
        seen = args.max_steps * session.batch_size
    return round(seen * sum(some) / max(1, len(some)))


@torch.no_grad()
def _perplexity(session: TaskSession, rows: Sequence[Row], batch_size: int = 8) -> float:
    """exp of the mean loss of a label token on `rows`."""
    if not rows:
        raise UsageError(
            "a method measured on held-out rows without saying that it needs them",
            "set needs_validation = True on the method's class",
        )
    loss, count = 0.0, 0
    for start in range(0, len(rows), batch_size):
        nll = session.forward(
            [session.encoder.encode(r) for r in rows[start : start + batch_size]]
        ).nll
        loss, count = loss + float(nll.sum()), count + nll.numel()
    return math.exp(loss / max(count, 1))


class _Ending(TrainerCallback):
    """The end of a task. What was trained is not lost, whatever a method's own code does there."""

    def __init__(self, trainer: Trainer, session: TaskSession, frozen: Sequence[str]) -> None:
        self.trainer, self.session, self.frozen = trainer, session, frozen
        self.ended = False

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        if self.ended:
            names = ", ".join(name_of(m) for m in self.session.methods)
            raise UsageError(
                f"attach: {names}: this trainer has learned its task already",
                "make a trainer for the next task: attach(next_trainer, *trainer.methods)",
            )

    def on_train_end(self, *_: Any, **__: Any) -> None:
        params = dict(self.session.model.named_parameters())
        for name in self.frozen:
            params[name].requires_grad_(True)
        self.ended = True
        if (layout := self.session.classes) is not None:
            for method in self.session.methods:
                method.classes = layout.seen[0]
        for method in chain(*ending(self.session.methods)):
            try:
                weights = method.end_task(self.session.context)
            except Exception as error:
                folder = Path(str(self.trainer.args.output_dir)) / "perdure-trained"
                self.trainer.save_model(str(folder))
                raise TrainingError(
                    f"attach: {name_of(method)} failed after the training: "
                    f"{type(error).__name__}: {error}",
                    f"the trained weights are kept, as they were before it: {folder}",
                ) from error
            give_weights(self.session.model, weights)
        if facts := self.session.take_facts():
            self.trainer.log(facts)


__all__ = ["attach"]
