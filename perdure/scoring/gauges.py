"""Two figures that tell while a task is learned how far the model has moved from its base.

- flip share: of the final states on a few general texts, the share that is no longer in the
  interval (low, middle, high of each neuron, as GeRe cuts it) where the base model's was. The base
  model writes them where the user names no general text;
- KL: mean KL(base || now) in nats over the answer tokens of a few rows of the task being learned.
  It needs no general text. Published work finds that it predicts forgetting (arXiv 2509.04259).

What the base model computed is distilled once, before the first task; a look later is one forward
pass over those texts and rows. `stop_when` ends a task's training at a budget, or takes its update
back on the straight line until the budget holds.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from perdure.engine.general_texts import written_rows
from perdure.errors import RunError
from perdure.mechanisms.distances import kl_of_largest
from perdure.mechanisms.interpolation import interpolate
from perdure.mechanisms.margin import flags, unpack
from perdure.mechanisms.state_cache import Raw, StateCache, alike, raws
from perdure.models.weights import swapped
from perdure.processes import broadcast

if TYPE_CHECKING:
    from torch import Tensor

    from perdure.engine.session import TaskSession
    from perdure.recipe.scoring import GaugesConfig, StopConfig
    from perdure.streams.task import TaskStream

FLIPS, KL = "flip_share", "kl"
TEXT_TOKENS = 64
OWN_TEXTS = "gauge-texts.jsonl"
"""In the run's cache: texts that the base model wrote."""
_TOP = 64  # largest logits kept of the base's predictions


class Gauges:
    """The gauges of a run.

    Args:
        session: of the first task to be learned; the model is the base unless `session.cache`
            has its figures already.

    Raises:
        RunError: the model has been trained, and its base's texts or figures are not there.
    """

    def __init__(self, config: GaugesConfig, stream: TaskStream, session: TaskSession) -> None:
        texts = (stream.general.held_out or stream.general.replay)[: config.texts]
        encoded = [session.encoder.encode_text(text, TEXT_TOKENS) for text in texts]
        self.texts = [row for row in encoded if len(row["input_ids"]) > 1]
        if config.texts and not self.texts:
            path = session.cache / OWN_TEXTS
            if session.task_index and not path.exists() and not session.has_base:
                raise _gone(path)
            about = {"texts": config.texts, "tokens": TEXT_TOKENS, "seed": session.seed}
            self.texts = written_rows(session, path, about)
        most = session.encoder.tokenizer.model_max_length
        # The right answer to a prompt of reinforcement may be longer than the model's context.
        self.rows = [
            [
                {name: values[:most] for name, values in session.encoder.encode(row).items()}
                for row in (task.validation or task.train)[: config.rows]
            ]
            for task in stream
        ]
        self._states = self._distilled(session, self.texts, "codes") if self.texts else None
        every = [row for rows in self.rows for row in rows]
        self._logits = self._distilled(session, every, "logits")

    def _distilled(
        self, session: TaskSession, rows: Sequence[dict[str, Any]], kind: Any
    ) -> StateCache:
        ids = repr([(row["input_ids"], row["labels"]) for row in rows])
        texts = hashlib.sha256(ids.encode()).hexdigest()[:16]
        about = {"gauge": texts, "top": _TOP, **session.computing}
        cache = StateCache(session.cache, about, kind)
        if cache.ready():
            return cache
        if session.task_index and not session.has_base:
            raise _gone(cache.folder)

        @torch.no_grad()
        def raws_of(group: Sequence[int], done: int) -> list[Raw]:
            session.tell("reading", "the base model's gauges", done, len(rows))
            some = [rows[i] for i in group]
            seen = session.forward(some, logits=kind == "logits", hidden=(-1,))
            return raws(seen, some, (-1,), kind, _TOP, 1.0)

        lengths = [len(row["input_ids"]) for row in rows]
        with session.as_base() if session.task_index else nullcontext():
            cache.build(alike(lengths, session.device, kind), raws_of, lambda _: {}, who="gauges")
        return cache

    @torch.no_grad()
    def read(self, session: TaskSession) -> dict[str, float]:
        """The figures of the model as it is: `kl`, and `flip_share` unless `gauges.texts` is 0."""
        found = {}
        if self._states is not None:
            found[FLIPS] = self._flip_share(session, self._states)
        before = sum(len(rows) for rows in self.rows[: session.task_index])
        rows = self.rows[session.task_index]
        seen = session.forward(rows)
        kept = self._logits.top(range(before, before + len(rows)), session.device)
        found[KL] = float(kl_of_largest(seen.logits, *kept).mean())
        # One process decides for all whether a budget is spent.
        told: dict[str, float] = json.loads(broadcast(json.dumps(found)))
        return told

    def _flip_share(self, session: TaskSession, cache: StateCache) -> float:
        seen = session.forward(self.texts, logits=False, hidden=(-1,))
        x = seen.hidden[-1]
        n, p = cache.limits(-1, x.device)
        base = unpack(cache.rows(range(len(self.texts)), -1, x.shape[1], x.device), x.shape[-1])
        return float((flags(x.float(), n, p) != base)[seen.mask].float().mean())


def _gone(path: Path) -> RunError:
    return RunError(
        f"{path}: the base model's gauge values are missing",
        "go on with gauges.every: 0, or begin a new run",
    )


def exceeded(budget: StopConfig | None, found: Mapping[str, float]) -> list[str]:
    """The gauges that are over their budget."""
    if budget is None:
        return []
    limits = {FLIPS: budget.flip_share, KL: budget.kl}
    return [k for k, limit in limits.items() if limit is not None and found.get(k, 0.0) > limit]


def rewound(
    gauges: Gauges,
    session: TaskSession,
    budget: StopConfig,
    start: Mapping[str, Tensor],
    steps: int = 6,
) -> tuple[float, dict[str, Tensor] | None]:
    """The largest share of a task's update that keeps the budget, by halving the interval.

    Args: start: trainable weights at the task's start.
    Returns: the share, to 2^-steps, and weights to go on with; None where the whole update fits.
    """
    end = session.snapshot()
    if not exceeded(budget, gauges.read(session)):
        return 1.0, None
    low, high = 0.0, 1.0
    for _ in range(steps):
        middle = (low + high) / 2
        with swapped(session.model, interpolate(start, end, middle)):
            over = exceeded(budget, gauges.read(session))
        low, high = (low, middle) if over else (middle, high)
    return low, interpolate(start, end, low)
