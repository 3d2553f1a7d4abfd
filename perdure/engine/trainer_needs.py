"""What methods need of a trainer that is not ours, asked before it trains.

A method that finds out after the training that something is missing has cost the user hours. So
each need is asked here, in `perdure.attach`, and what is missing is told with the method's name.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from perdure.engine.completions import (
    PromptRows,
    check_reinforcement,
    learns_by_reinforcement,
)
from perdure.engine.packing import keeps_rows_apart
from perdure.engine.session import TaskSession
from perdure.engine.trainer_classes import ClassRows, is_classifier
from perdure.engine.trainer_rows import BORDER_NAMES, BORDERS, READ, TrainerRows
from perdure.errors import PerdureError, UsageError, one_line
from perdure.models.anatomy import decoder_of, head_of, layers_of, unwrapped
from perdure.protocol.batch import labels_of
from perdure.protocol.method import Method, name_of

if TYPE_CHECKING:
    from transformers import Trainer

_LOOKED_AT = 64  # rows in which at least one must have a label
_TRIED = 16  # tokens of the row that the model is tried with
_OTHER = re.compile(r"For\w*Classification|ForMultipleChoice|ForQuestionAnswering")


def runs_rows(method: Method) -> bool:
    """Whether a method runs rows of the task by themselves, apart from the trainer's passes."""
    return method.requires.rows or method.needs_validation


def reads_rows(method: Method) -> bool:
    """Whether a method looks at rows of the task, or at what a pass over them computes."""
    asked = method.requires
    # One that serves weights ends the task with those, and needs no row for it.
    hooks = ("loss", "replay", *(() if method.uses("serving") else ("end_task",)))
    used = any(map(method.uses, hooks))
    return runs_rows(method) or used or bool(asked.hidden or asked.logits or asked.attentions)


def check_trainer(trainer: Trainer, methods: Sequence[Method]) -> None:
    """Ask what can be asked without the rows: tokenizer, kind of model, rows that have a length.

    Raises:
        UsageError: with the methods' names and what to do.
    """
    for method in methods:
        if method.uses("penalties"):
            raise UsageError(
                f"attach: {name_of(method)}: it is taken off the reward of each token, which a "
                "trainer of your own does not ask for",
                "write term: loss, or learn the task by a recipe with rl.algorithm: reinforce++",
            )
    _refuse(methods, _of_tokenizer(trainer) or _of_model(trainer) or _of_dataset(trainer))
    if learns_by_reinforcement(trainer):
        check_reinforcement(trainer, methods)


def train_rows(trainer: Trainer, methods: Sequence[Method]) -> TrainerRows:
    """The trainer's training rows, looked at where a method reads them.

    Raises:
        UsageError: they are not what the methods need.
    """
    if learns_by_reinforcement(trainer):
        return PromptRows(trainer)
    readers = [m for m in methods if reads_rows(m)]
    if not readers:
        return _rows_of(trainer)(trainer, trainer.train_dataset, look=False)
    return _looked_at(trainer, trainer.train_dataset, readers, "the trainer's rows")


def _rows_of(trainer: Trainer) -> type[TrainerRows]:
    return ClassRows if is_classifier(trainer.model) else TrainerRows


def eval_rows(trainer: Trainer, methods: Sequence[Method]) -> TrainerRows:
    """The trainer's held-out rows where a method measures on them; else none.

    Raises:
        UsageError: a method needs them, and they are not there or not usable.
    """
    needing = [m for m in methods if m.needs_validation]
    found: Any = trainer.eval_dataset
    if not needing:
        return _rows_of(trainer)(trainer, None, look=False)
    wrong = None
    if found is None:
        wrong = "there are none"
    elif isinstance(found, Mapping):  # of several sets none is the task's own
        wrong = f"eval_dataset holds several sets ({', '.join(map(str, found))})"
    elif not hasattr(found, "__len__") or not hasattr(found, "__getitem__"):
        wrong = "eval_dataset cannot be indexed"
    elif not len(found):
        wrong = "eval_dataset is empty"
    if wrong is not None:
        _refuse(
            needing,
            (
                f"held-out rows are measured on, and {wrong}",
                "give the trainer eval_dataset: a datasets.Dataset with rows of this task",
            ),
        )
    return _looked_at(trainer, found, needing, "the trainer's eval_dataset")


def try_model(session: TaskSession, rows: TrainerRows, methods: Sequence[Method]) -> None:
    """Run a few tokens of a row as the methods will, and look at what they will look at.

    Raises:
        UsageError: the model lacks what a method reads, or its rows see one another in a pack.
    """
    model = session.model
    for method in methods:
        _refuse([method], _of_parts(model, method))
    alone = [m for m in methods if runs_rows(m)]
    running = [m for m in methods if m in alone or m.requires.teacher or m.uses("replay")]
    if not running or _is_elsewhere(model):
        return
    if (
        rows.packed
        and alone
        and not keeps_rows_apart(
            unwrapped(model),
            rows[:2],
            session.encoder.pad_id,
            session.autocast,
            "line" if "flash" in str(unwrapped(model).config._attn_implementation) else "mask",
        )
    ):
        _refuse(
            alone,
            (
                f"the trainer's rows are packed, and in {type(unwrapped(model)).__name__} rows of "
                "one line see one another: alone a row has another loss",
                "train without packing and padding_free",
            ),
        )
    if isinstance(rows, PromptRows):  # they have no labels: any text does
        row = session.encoder.encode_text("One text, with which the model is tried.", _TRIED)
    else:
        row = next(row for row in rows if labels_of(row))
    short = {k: v[:_TRIED] if isinstance(v, list) else v for k, v in row.items()}
    if not labels_of(short):
        short["labels"] = list(short["input_ids"])
    wanted = labels_of(short)
    try:
        with torch.no_grad():
            seen = session.forward([short])
            counted = seen.nll.numel()
            states = {k: tuple(v.shape[:2]) for k, v in seen.hidden.items()}
    except (PerdureError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # of whatever model the user has
        told = f"the model takes no row by itself: {type(error).__name__}: {error}"
        _refuse(running, (told, "use perdure run, or a plain causal language model"))
    else:
        if counted != wanted or any(v != (1, len(short["input_ids"])) for v in states.values()):
            told = "the model adds tokens of its own to a row, so that labels and states are apart"
            _refuse(running, (told, "use LoRA or full weights instead of learned prompts"))


def _refuse(methods: Iterable[Method], found: tuple[str, str] | None) -> None:
    if found is not None:
        who = ", ".join(name_of(m) for m in methods)
        raise UsageError(f"attach: {who}: {found[0]}", found[1])


def _of_tokenizer(trainer: Trainer) -> tuple[str, str] | None:
    tokenizer: Any = trainer.processing_class
    if tokenizer is None:
        return "the trainer has no tokenizer", "give it one: Trainer(..., processing_class=...)"
    if not hasattr(getattr(tokenizer, "tokenizer", tokenizer), "pad_token_id"):
        kind = type(tokenizer).__name__
        return (
            f"the trainer's processing_class, a {kind}, is no tokenizer",
            "give the model's tokenizer: Trainer(..., processing_class=...)",
        )
    return None


def _of_model(trainer: Trainer) -> tuple[str, str] | None:
    from transformers import PreTrainedModel

    if trainer.model_init is not None:
        return (
            "the trainer makes its model anew when it trains (model_init), and the methods would "
            "hold the old one",
            "give the model itself: Trainer(model=...)",
        )
    model: Any = unwrapped(trainer.model)
    name, only = type(model).__name__, "give a causal language model (AutoModelForCausalLM)"
    if is_classifier(model):
        return None
    if _OTHER.search(name):
        return (
            f"{name} is a classifier of another kind than attach knows",
            "give a classifier of whole rows (AutoModelForSequenceClassification), or let the "
            "labels be written as text by a causal language model, as perdure run does",
        )
    if "ForMaskedLM" in name:
        return f"{name} is an encoder that fills masked tokens, no causal language model", only
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return f"{name} is an encoder with a decoder, no causal language model", only
    if isinstance(model, PreTrainedModel) and not model.can_generate():
        return f"{name} has no head that writes text", only
    return None


def _of_dataset(trainer: Trainer) -> tuple[str, str] | None:
    rows: Any = trainer.train_dataset
    if rows is None:
        return "the trainer has no train_dataset", "give it one: Trainer(..., train_dataset=...)"
    if not hasattr(rows, "__len__") or not hasattr(rows, "__getitem__"):
        return "the trainer's rows have no length", "give it a datasets.Dataset"
    return None if len(rows) else ("the trainer's train_dataset is empty", "give it rows")


def _looked_at(trainer: Trainer, found: Any, methods: Sequence[Method], what: str) -> TrainerRows:
    try:
        rows = _rows_of(trainer)(trainer, found, alone=any(map(runs_rows, methods)))
        batch = rows.batch(0)
        labelled = any(labels_of(row) for row in rows[:_LOOKED_AT])
    except UsageError as error:
        _refuse(methods, (error.what, one_line(error.remedy)))
        raise
    if not labelled:
        told = f"none of the first {min(_LOOKED_AT, len(rows))} rows has a label: all are -100"
        _refuse(methods, (f"{what}: {told}", "give rows of which something is learned"))
    unread = [
        key
        for key, value in batch.items()
        if key not in READ | BORDERS
        and not key.startswith(BORDER_NAMES)
        and torch.is_tensor(value)
        # Of text they are all one number, which is the model's default.
        and not (key == "token_type_ids" and (isinstance(rows, ClassRows) or not value.any()))
    ]
    rerun = [m for m in methods if runs_rows(m) or m.requires.teacher is not None]
    if unread and rerun:
        _refuse(
            rerun,
            (
                f"{what} hold {', '.join(unread)}, without which a row cannot be run again",
                "train on text alone, or use a method that keeps no rows",
            ),
        )
    return rows


def _of_parts(model: nn.Module, method: Method) -> tuple[str, str] | None:
    asked, host = method.requires, unwrapped(model)
    configs: Any = getattr(model, "peft_config", None)
    if reads_rows(method) and any(
        getattr(one, "is_prompt_learning", False) for one in dict(configs or {}).values()
    ):
        return (
            "the model has learned prompts, so that its states and labels stand apart",
            "use LoRA or full weights",
        )
    remedy = "take a causal language model of transformers, or a classifier"
    try:
        if asked.logits or asked.hidden:
            decoder_of(model)
        if any(k != -1 for k in asked.hidden):
            layers_of(model)
    except AttributeError as error:
        return f"hidden states are read, and {type(host).__name__} has none known: {error}", remedy
    if asked.logits and head_of(model) is None:
        return f"predictions are read, and {type(host).__name__} has no head", remedy
    return None


def _is_elsewhere(model: nn.Module) -> bool:
    """Whether weights are sharded or not loaded yet, so that a pass is not possible by itself."""
    return any(p.is_meta or hasattr(p, "ds_id") or not p.numel() for p in model.parameters())


__all__ = ["check_trainer", "eval_rows", "reads_rows", "train_rows", "try_model"]
