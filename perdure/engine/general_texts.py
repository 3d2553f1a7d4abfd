"""General texts to train on: the user's own, or sampled from the base model before it changes.

A model's own samples stand for what it can do where nobody can name its training data. They start
at the beginning of a text and inside a user's turn of the chat template, in equal number, and go on
into the answer; the start counts among a text's tokens. One that repeats itself is left out (small
models loop). Their number is held to what about a tenth of the training's time pays for on a CPU.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perdure.errors import RunError, UsageError
from perdure.files import read_lines
from perdure.models.chat import IGNORE
from perdure.processes import barrier
from perdure.seals import is_whole, write_sealed

if TYPE_CHECKING:
    from perdure.engine.runtime import TaskRuntime

GIVEN = "given"
"""Stands for the name of the file of sampled texts where the user gave the texts."""
SAMPLE_TOKENS = 64
"""The most tokens of a sampled text, its start among them."""
SHARE = 0.06
"""Sampled tokens over tokens trained on. With its states a sampled token costs about as much time
as a trained one on a CPU (`benchmarks/gere.py`)."""
FEWEST = 16
TEMPERATURE = 1.0
BATCH, BATCH_ON_GPU = 128, 512
"""Texts sampled at a time. A GPU waits for the host at each token of a few."""
_ATTEMPTS = 4
_GRAM, _DISTINCT = 4, 0.5


def given_rows(
    session: TaskRuntime, count: int, max_tokens: int, special: bool = False
) -> list[dict[str, Any]]:
    """The first `count` of the user's general texts, every token a label.

    A text is cut to `max_tokens`, and to the model's context.

    Raises:
        UsageError: none has two tokens or more.
    """
    rows, max_tokens = [], _within_context(session, max_tokens)
    for text in session.general.replay[:count]:
        row = session.encoder.encode_text(text, max_tokens, special)
        if len(row["input_ids"]) > 1:
            rows.append(row)
    if not rows:
        raise UsageError(
            "general: no text has two tokens or more", "give longer texts, or leave `general:` out"
        )
    return rows


def _within_context(session: TaskRuntime, tokens: int) -> int:
    model: Any = session.model
    most = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return tokens if most is None else min(tokens, most)


def repeats(ids: Sequence[int]) -> bool:
    """Whether a text repeats itself: fewer than half of its runs of four tokens are distinct."""
    grams = [tuple(ids[i : i + _GRAM]) for i in range(len(ids) - _GRAM + 1)]
    return len(set(grams)) < _DISTINCT * len(grams)


def how_many(count: int, stream_tokens: int, length: int, share: float = SHARE) -> int:
    """Texts that are worth sampling: `count`, or what that share of the training's tokens allows.

    Args: stream_tokens: tokens of the tasks' rows in all steps; 0 where nobody knows.
    """
    if not stream_tokens:
        return min(count, 4 * FEWEST)
    return min(count, max(FEWEST, int(share * stream_tokens / length)))


def sampled_rows(
    session: TaskRuntime, count: int, max_tokens: int, kept: str, share: float = SHARE
) -> tuple[list[dict[str, Any]], str]:
    """Read the base model's texts from the file `kept` in `session.cache`, or sample them now.

    Args: share: the most sampled tokens, as a share of the training's tokens.
    Returns: rows whose given start is no label, and the file's name.

    Raises:
        RunError: `kept` is gone, and so is the model that wrote the texts.
    """
    length = _within_context(session, min(max_tokens, SAMPLE_TOKENS))
    about: dict[str, Any] = {
        "temperature": TEMPERATURE,
        "seed": session.seed,
        "texts": how_many(count, session.stream_tokens(), length, share),
        "tokens": length,
        "past_end": True,
        "start_counts": True,
    }
    if not kept:
        about["model"] = session.fingerprint(frozen_only=session.has_adapter)
        key = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]
        kept = f"samples-{key}.jsonl"
    path = session.cache / kept
    if "model" not in about and not path.exists() and not session.has_base:
        raise RunError(
            f"{path}: the texts that the base model wrote are gone",
            "a trained model cannot write them again: put the file back, or start a new run",
        )
    return written_rows(session, path, about), kept


def written_rows(
    session: TaskRuntime, path: Path, about: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The texts in the file `path`; where there is none, of the base model, sampled into it now.

    Args: about: the file's first line; `texts` and `tokens` say how many, and of what length.
    Returns: rows whose given start is no label.
    """
    there = path.exists()
    whole = there and is_whole(path)
    barrier()  # all have looked before one writes
    if there and not whole:
        if session.task_index and not session.has_base:
            raise RunError(f"{path}: damaged", "put the file back as it was, or start a new run")
        if session.rank == 0:
            what = "%s: damaged, so the base model writes its texts again"
            logging.getLogger("perdure").warning(what, path)
    if not whole:
        with session.as_base() if session.task_index else nullcontext():
            found = _sample(session, about["texts"], about["tokens"])
        if session.rank == 0:
            lines = [about, *found]
            write_sealed(path, "".join(json.dumps(line) + "\n" for line in lines))
        barrier()
    _, *rows = read_lines(path)
    return [{"input_ids": r["ids"], "labels": _labels(r["ids"], r["given"])} for r in rows]


def _labels(ids: list[int], given: int) -> list[int]:
    return [IGNORE] * given + ids[given:]


def _sample(session: TaskRuntime, count: int, length: int) -> list[dict[str, Any]]:
    """`count` texts of the base model, the starts in turn; all processes sample alike.

    Where a user's turn begins with so much that less than half of the text is left, no text begins
    there.
    """
    from perdure.models.generate import sample_texts, start_of_text, start_of_user_turn

    starts = [start_of_text(session.encoder)]
    turn = start_of_user_turn(session.encoder)
    if turn not in starts and 2 * len(turn) <= length:
        starts.append(turn)
    found: list[dict[str, Any]] = []
    with session.as_base(), session.autocast():
        for attempt in range(_ATTEMPTS):
            for sample in sample_texts(
                session.model,
                session.encoder,
                texts=count - len(found),
                tokens=length - min(map(len, starts)),
                seed=session.seed + 7919 * attempt,
                batch_size=BATCH if session.device.type == "cpu" else BATCH_ON_GPU,
                starts=starts,
                past_end=True,
                on_progress=partial(session.tell, "sampling", "general texts"),
            ):
                ids = sample.ids[:length]
                # On the last attempt repetitive samples are accepted, so that sampling ends.
                if attempt == _ATTEMPTS - 1 or not repeats(ids[sample.given :]):
                    found.append({"ids": ids, "given": sample.given})
            if len(found) == count:
                break
    return found


def refuse_other_texts(who: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise `UsageError` where general texts, or the base model, changed between two states."""
    if then["given"] and not now["given"]:
        raise UsageError(
            f"{who}: general texts were given when this was saved, and none are now",
            "give the same ones again: attach(trainer, *methods, general=texts)",
        )
    if now["given"] and not then["given"]:
        raise UsageError(
            f"{who}: the model wrote its own general texts when this was saved, and some are given "
            "now",
            "leave them out: attach(trainer, *methods)",
        )
    if then["base"] != now["base"]:
        raise UsageError(
            f"{who}: the base model is another one than when this was saved",
            "call attach with the model as it was before its first task, or give that one's "
            "weights: attach(..., base=weights)",
        )
    if then["texts"] != now["texts"]:
        raise UsageError(
            f"{who}: the texts that the base model wrote are others than when this was saved: "
            "the model, the seed or the length of the training is another one",
            "call attach with the model as it was before its first task, the same seed and steps",
        )
