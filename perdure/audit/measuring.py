"""Measure two loaded models on the same items, one measure of a plan at a time."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from perdure.audit.plan import Part, Plan
from perdure.audit.result import flips
from perdure.errors import ModelError, UsageError
from perdure.models.chat import Encoder
from perdure.models.generate import Sample, sample_texts
from perdure.models.served import router_of
from perdure.scoring.intervals import Array, group_numbers
from perdure.scoring.kl import sampled_kl
from perdure.scoring.perplexity import general_loss
from perdure.scoring.routed import Routed, as_prompt, each_by_adapter, prompts_of, served_score
from perdure.scoring.score import TaskScore
from perdure.streams.kinds import kind, metric
from perdure.streams.rows import each_once
from perdure.streams.task import Row, Task

Progress = Callable[[str, int, int], None]
"""Called as progress(what, done, total): "general loss: base", 3, 32."""
Check = Callable[[Sequence[float]], float | None]
"""`Ruler.check` of one measure."""
T = TypeVar("T")


@dataclass(frozen=True)
class Sizes:
    """How much is measured; more items decide more and take longer."""

    kl_texts: int = 32
    kl_tokens: int = 64
    """The most tokens of a sampled text."""
    general_tokens: int = 128
    """The most tokens of a general text."""
    rows: int | None = None
    """The most test rows of a task; None is all."""
    batch: int = 16


@dataclass(frozen=True)
class Items:
    """Paired scores of one measure, and what else is known about them."""

    base: Array
    tuned: Array
    flips: tuple[dict[str, Any], ...] = ()
    note: str = ""
    groups: NDArray[np.int_] | None = None
    noise_floor: float | None = None
    routed: tuple[Mapping[str, Any], ...] = ()
    """Of a task the tuned model's items, where its requests were routed."""


class Pair:
    """Two loaded models with an encoder each, and how much to measure.

    Args: today: the day whose date a template writes; None is that of now.
    """

    def __init__(
        self,
        base: Any,
        base_tokenizer: Any,
        tuned: Any,
        tuned_tokenizer: Any,
        reading: Mapping[str, Any],
        sizes: Sizes,
        today: date | None = None,
    ) -> None:
        self.base, self.tuned, self.sizes = base, tuned, sizes
        self.base_tokenizer = base_tokenizer
        self.base_encoder = Encoder(one_of(base_tokenizer, tuned_tokenizer), **reading)
        self.tuned_encoder = Encoder(tuned_tokenizer, **reading)
        self._routed: dict[int, Routed] = {}
        self.day_told = ""
        if today is not None:
            for encoder in (self.base_encoder, self.tuned_encoder):
                encoder.pin(today)
            if "strftime_now" in (self.tuned_encoder.template or ""):
                self.day_told = f"; it writes the date of the run's start, {today.isoformat()}"

    def show(self, tasks: Sequence[Task], texts: Sequence[str], seed: int) -> None:
        """Show the prompts of all that will be scored to a model's router, where it has one."""
        for model in (self.base, self.tuned):
            if (router := router_of(model)) is not None:
                prompts = [*prompts_of(tasks), *map(as_prompt, texts)]
                self._routed[id(router)] = Routed(router, prompts, seed)

    def routed(self, model: Any) -> Routed | None:
        """What the router of a model chose; None where it has none."""
        router = router_of(model)
        if router is not None and id(router) not in self._routed:
            self._routed[id(router)] = Routed(router)
        return None if router is None else self._routed[id(router)]

    def check_vocabularies(self) -> None:
        ours = self.base_tokenizer.get_vocab()
        theirs = self.tuned_encoder.tokenizer.get_vocab()
        strange = sorted(token for token, at in ours.items() if theirs.get(token) != at)
        if strange:
            raise ModelError(
                f"the tokenizers differ: {len(strange)} tokens of the base, for example "
                f"{strange[0]!r}, have another id or none in the tuned model",
                "loss and KL a token do not compare then; measure the tasks only",
            )


@dataclass
class Ruler:
    """Scores the base again in other ways, to see how much of a change is the measuring's own.

    Each time in another order and with another batch size; every second time, beginning with the
    first, also in the other precision: bf16, or fp32 where the audit is in bf16. For that the base
    is held in memory once more.
    """

    times: int
    seed: int
    _twin: Any = field(default=None, repr=False)

    def ways(self, pair: Pair, items: Sequence[T]) -> Iterator[tuple[Any, list[T], int]]:
        """Yield (model, items in another order, batch size) for each time."""
        batch = pair.sizes.batch
        for time in range(self.times):
            order = list(items)
            random.Random(f"{self.seed} {time}").shuffle(order)
            size = (max(1, batch // 2), 2 * batch, 1)[time % 3]
            yield (pair.base if time % 2 else self.twin(pair.base)), order, size

    def twin(self, model: Any) -> Any:
        """The model in the other precision."""
        if self._twin is None:
            single = next(model.parameters()).dtype == torch.float32
            other = torch.bfloat16 if single else torch.float32
            self._twin = copy.deepcopy(model).to(other)
        return self._twin

    def check(self, part: Part, margin: float | None, moved: Sequence[float]) -> float | None:
        """How far the base's mean moved at most; None if it was not scored again.

        Raises:
            UsageError: the margin is not above it.
        """
        if not moved:
            return None
        floor = max(abs(one) for one in moved)
        if margin is not None and margin <= floor:
            option = {"loss": "loss-rise", "kl": "kl", "task": "drop"}[part.kind]
            raise UsageError(
                f"audit: --max-{option} {margin:g}: {part.name} of the base moves by {floor:.4g} "
                "by itself when it is scored again another way (order, batch size, precision)",
                f"allow more than {floor:.2g}, or score in the precision that is served "
                "(--precision)",
            )
        return floor


def measured(
    pair: Pair,
    plan: Plan,
    texts: Sequence[str],
    seed: int,
    progress: Progress,
    margin: Callable[[Part], float | None],
    noise_floor: int = 0,
) -> Iterator[tuple[Part, Items]]:
    """Make the measures of `plan` one by one, so that the caller may stop in between.

    Args:
        noise_floor: so many times more the base is scored in other ways, before the tuned model.
    Raises:
        UsageError: a margin is not above what the base moves by itself.
    """
    ruler = Ruler(noise_floor, seed)
    pair.show([part.task for part in plan.parts if part.task is not None], texts, seed)
    if any(part.kind != "task" for part in plan.parts):
        pair.check_vocabularies()
    for part in plan.parts:
        checked = partial(ruler.check, part, margin(part))
        if part.kind == "loss" and part.task is None:
            yield part, _loss(pair, texts, progress, ruler, checked)
        elif part.kind == "kl":
            yield part, _kl(pair, seed, progress, ruler, checked)
        elif part.task is not None:
            yield part, _task(pair, part.task, progress, ruler, checked)


def _loss(
    pair: Pair, texts: Sequence[str], progress: Progress, ruler: Ruler, checked: Check
) -> Items:
    def score(
        what: str, model: Any, encoder: Encoder, texts: Sequence[str], batch: int
    ) -> dict[str, dict[str, Any]]:
        found = general_loss(
            model,
            encoder,
            texts,
            max_tokens=pair.sizes.general_tokens,
            batch_size=batch,
            on_progress=_told(progress, f"general loss: {what}"),
            routed=pair.routed(model),
        )
        return {item["id"]: item for item in found.items}

    ours = score("base", pair.base, pair.base_encoder, texts, pair.sizes.batch)
    losses = np.array([item["loss"] for item in ours.values()])
    moved = []
    for model, order, batch in ruler.ways(pair, texts):
        again = score("base again", model, pair.base_encoder, order, batch)
        moved.append(float(np.mean([again[key]["loss"] for key in ours]) - losses.mean()))
    floor = checked(moved)
    theirs = score("tuned", pair.tuned, pair.tuned_encoder, texts, pair.sizes.batch)
    if {k: v["tokens"] for k, v in ours.items()} != {k: v["tokens"] for k, v in theirs.items()}:
        raise ModelError(
            "the tokenizers cut the general texts differently, so losses a token do not compare",
            "measure the tasks only",
        )
    found = np.array([theirs[key]["loss"] for key in ours])
    return Items(losses, found, note=_by_the_base(pair, texts), noise_floor=floor)


def _by_the_base(pair: Pair, texts: Sequence[str]) -> str:
    """How many texts the tuned model's router leaves to the base model, of which nothing of what
    was tuned is measured then; "" if none."""
    routed = pair.routed(pair.tuned)
    choices = [] if routed is None else routed.of_texts(texts)
    left = sum(choice.adapter is None for choice in choices)
    return f"{left} of {len(choices)} texts routed to the base model" if left else ""


def _kl(pair: Pair, seed: int, progress: Progress, ruler: Ruler, checked: Check) -> Items:
    samples = sample_texts(
        pair.base,
        pair.base_encoder,
        texts=pair.sizes.kl_texts,
        tokens=pair.sizes.kl_tokens,
        seed=seed,
        batch_size=pair.sizes.batch,
        on_progress=_told(progress, "KL: sampling"),
    )

    def compare(what: str, model: Any, samples: Sequence[Sample], batch: int) -> list[float]:
        def kl(some: Sequence[Sample]) -> list[float]:
            return sampled_kl(
                pair.base,
                model,
                some,
                pad_id=pair.base_encoder.pad_id,
                vocabulary=len(pair.base_encoder.tokenizer),
                batch_size=max(1, batch // 2),  # two models' logits are kept
                on_progress=_told(progress, f"KL: {what}"),
            )

        routed = pair.routed(model)
        if routed is None:
            return kl(samples)
        return each_by_adapter(model, routed.of_texts(decoded(samples)), samples, kl)

    def decoded(samples: Sequence[Sample]) -> list[str]:
        ids = [sample.ids for sample in samples]
        return list(pair.base_encoder.tokenizer.batch_decode(ids, skip_special_tokens=True))

    moved = [
        float(np.mean(compare("base again", model, order, batch)))
        for model, order, batch in ruler.ways(pair, samples)
        if model is not pair.base  # both sides would be computed alike
    ]
    floor = checked(moved)
    values = compare("comparing", pair.tuned, samples, pair.sizes.batch)
    tokens = sum(len(sample.ids) - sample.given for sample in samples)
    texts = [] if pair.routed(pair.tuned) is None else decoded(samples)
    return Items(
        np.zeros(len(values)),
        np.array(values),
        note="; ".join(filter(None, [f"{tokens} sampled tokens", _by_the_base(pair, texts)])),
        noise_floor=floor,
    )


def _task(pair: Pair, task: Task, progress: Progress, ruler: Ruler, checked: Check) -> Items:
    task, repeats = _unique(task, pair.sizes.rows)

    def score(
        what: str, model: Any, encoder: Encoder, rows: Sequence[Row], batch: int
    ) -> TaskScore:
        return served_score(
            model,
            encoder,
            replace(task, test=rows),
            pair.routed(model),
            batch_size=batch,
            on_progress=_told(progress, f"{task.name}: {what}"),
        )

    ours = score("base", pair.base, pair.base_encoder, task.test, pair.sizes.batch)
    of = metric(task.metric)
    key = "score" if of.scores_items else "loss"
    right = key == "score" and of.higher_is_better
    base = np.array([item[key] for item in ours.items], dtype=np.float64)
    moved = []
    for model, order, batch in ruler.ways(pair, task.test):
        again = score("base again", model, pair.base_encoder, order, batch)
        moved.append(float(np.mean([item[key] for item in again.items]) - base.mean()))
    floor = checked(moved)
    theirs = score("tuned", pair.tuned, pair.tuned_encoder, task.test, pair.sizes.batch)
    return Items(
        base,
        np.array([item[key] for item in theirs.items], dtype=np.float64),
        tuple(flips(task.name, ours.items, theirs.items) if right else []),
        f"{repeats} repeated rows left out" if repeats else "",
        groups_of(task),
        floor,
        tuple(theirs.items) if pair.routed(pair.tuned) is not None else (),
    )


def groups_of(task: Task) -> NDArray[np.int_] | None:
    """Groups of a task's test rows: those it declares, and rows that ask the same question."""
    asked = [kind(task.kind).question_of(row) for row in task.test]
    return group_numbers([row.get("group") for row in task.test], asked)


def _unique(task: Task, most: int | None) -> tuple[Task, int]:
    """The task with each test row once: a row counted twice would look like twice the evidence."""
    rows = each_once(kind(task.kind), task.test)
    return replace(task, test=rows[:most]), len(task.test) - len(rows)


def one_of(base_tokenizer: Any, tuned_tokenizer: Any) -> Any:
    """The tokenizer that reads rows for the base: the tuned model's, where they agree on tokens."""
    same = base_tokenizer.get_vocab() == tuned_tokenizer.get_vocab()
    return tuned_tokenizer if same else base_tokenizer


def _told(progress: Progress, what: str) -> Callable[[int, int], None]:
    return lambda done, total: progress(what, done, total)
