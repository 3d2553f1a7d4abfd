"""What a run would take, told without loading a weight: rows, tokens, steps, time and memory.

Every row is encoded with the base model's tokenizer, so a row that is too long is found here.

Time is arithmetic over a measured speed: 2 operations a parameter and token forward, 4 backward
(Kaplan et al. 2020, table 1), over what this machine reached on a feed-forward layer. Memory is
weights, gradients and optimizer state of the numbers that are trained, and the activations of
the longest micro-batch (Korthikanti et al. 2022, section 4: 34 bytes a hidden unit, token and
layer in 16 bit; twice that in fp32). Both are guesses, good to a factor of two.
"""

from __future__ import annotations

import math
import operator
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from perdure.protocol.labels import labels_of
from perdure.protocol.method import Method
from perdure.streams.kinds import kind, metric

if TYPE_CHECKING:
    from perdure.engine.rows import RowEncoder
    from perdure.models import ModelFacts
    from perdure.models.task_adapters import TaskAdapters
    from perdure.recipe.schema import MethodSpec, Recipe
    from perdure.streams import Task, TaskStream

EFFICIENCY = 0.5
"""Share of a feed-forward layer's speed that a whole training step reaches."""
OPTIMIZER_BYTES = {
    "adafactor": 0.1,
    "sgd": 0.0,
    "lion_32bit": 4.0,
    "lion_8bit": 1.0,
    "adamw_8bit": 2.0,
    "paged_adamw_8bit": 2.0,
    "adamw_torch_8bit": 2.0,
}
"""Optimizer state in bytes a trained number; 8 (two fp32 moments) for all others."""
HEAD_STEP = 0.0015
"""Seconds of an optimizer step of heads on features, of which hardly any is arithmetic."""
PROCESS_MB = 600
"""A Python process with torch and transformers, before any model."""


@dataclass(frozen=True)
class TaskPlan:
    """One task: sizes of its data, and what training it takes."""

    task: str
    metric: str
    train_rows: int
    validation_rows: int
    test_rows: int
    steps: int
    classes: tuple[str, ...] = ()
    """Those that the task brings, of tasks with classes."""
    longest: int | None = None
    """Tokens of the longest row; this and what follows is None where the tasks' kind cannot tell
    before its model is loaded."""
    train_tokens: int | None = None
    """Tokens trained on, over all epochs."""
    train_seconds: float | None = None
    score_seconds: float | None = None
    """To score this task once."""
    memory_mb: int | None = None
    scorings: int | None = None
    """How often its test rows are read; None: once before the first and once after each task; 0:
    its score is that of another task."""
    body_passes: int | None = None
    """Of a task with classes: texts that the body reads in the whole run for it, to learn and to be
    scored: once for each state of its weights where heads alone learn."""
    head_steps: int | None = None
    """Those of its steps in which heads alone learn."""
    completions: int | None = None
    """Of a task with `learn: rl`: how many are written and trained on in all."""
    until: bool = False
    """Whether it may end before its last step."""


@dataclass(frozen=True)
class Plan:
    recipe: str
    methods: tuple[str, ...]
    model: str
    kind: str
    """Of the tasks."""
    scenario: str
    parameters: int | None
    trainable: int | None
    precision: str
    processes: int
    tasks: tuple[TaskPlan, ...]
    costs: tuple[str, ...] = ()
    """What each method adds to time and memory, in its own words."""
    told: tuple[str, ...] = ()
    """What methods say they would do with these tasks (`Method.told_of`)."""
    general: tuple[str, ...] = ()
    """lm-eval's tasks that are scored beside the stream's; their time is not in the estimate."""

    @property
    def seconds(self) -> float | None:
        """Training of all tasks, and scoring all of them once before and after each."""
        scoring = [task.score_seconds for task in self.tasks if task.score_seconds is not None]
        training = [task.train_seconds for task in self.tasks if task.train_seconds is not None]
        if len(scoring) < len(self.tasks):
            return None
        every = len(self.tasks) + 1
        times = [every if task.scorings is None else task.scorings for task in self.tasks]
        return sum(training) + sum(map(operator.mul, times, scoring))

    @property
    def body_passes(self) -> int | None:
        """Texts that a classifier's body reads in the whole run."""
        found = [task.body_passes for task in self.tasks if task.body_passes is not None]
        return sum(found) if found else None

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "seconds": self.seconds, "body_passes": self.body_passes}


def plan(
    recipe: Recipe,
    stream: TaskStream,
    encoder: RowEncoder | None,
    facts: ModelFacts | None,
    *,
    micro_batch: int,
    precision: str,
    lm_eval_tasks: Iterable[str] = (),
) -> Plan:
    """Plan the run of a prepared recipe; measures this machine for half a second.

    Args:
        encoder: remembers all rows of the stream; facts: the base model's sizes. Without them
            rows and steps alone are known.
    """
    from perdure import models

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    works = _works(recipe, stream)
    tasks = [_bare(recipe, task, work) for task, work in zip(stream, works, strict=True)]
    if facts is not None and encoder is not None:
        measured = models.measure_speed(0.5)
        speed = (measured.bf16 or measured.fp32) if precision == "bf16" else measured.fp32
        speed *= 1e9 * EFFICIENCY * processes
        if kind(stream.tasks[0].kind).writes:
            tasks = [
                _plan(bare, recipe, task, work, encoder, facts, micro_batch, precision, speed)
                for bare, task, work in zip(tasks, stream, works, strict=True)
            ]
        else:
            facts, parts, adapters = _with_heads(recipe, stream, facts)
            tasks = [
                _plan_of_classes(
                    bare, recipe, task, works[i], encoder, facts, micro_batch, precision, speed,
                    parts, i, adapters,
                )
                for i, (bare, task) in enumerate(zip(tasks, stream, strict=True))
            ]  # fmt: skip
    return Plan(
        recipe=recipe.name,
        methods=tuple(spec.name for spec in recipe.methods),
        model=recipe.model.path + (f" ({facts.architecture})" if facts else ""),
        kind=stream.tasks[0].kind,
        scenario=stream.scenario,
        parameters=facts.parameters if facts else None,
        trainable=facts.trainable if facts else None,
        precision=precision,
        processes=processes,
        tasks=tuple(tasks),
        costs=tuple(map(_cost, recipe.methods)),
        told=tuple(_told(recipe, stream)),
        general=tuple(lm_eval_tasks),
    )


class _Work(NamedTuple):
    """The tasks whose rows a task trains on, and how many of those are in a step."""

    tasks: tuple[Task, ...]
    batch: int

    @property
    def rows(self) -> int:
        return sum(len(task.train) for task in self.tasks)

    def widths(self, encoder: RowEncoder) -> list[int]:
        """Tokens of each row that is trained on; by reinforcement, of its prompt."""
        if self.tasks[-1].learn == "rl":
            rows = (encoder.encode_and_tell(row)[0] for row in self.tasks[-1].train)
            return [len(row["input_ids"]) - labels_of(row) for row in rows]
        return [n for task in self.tasks for n in encoder.lengths((task.name, "train"))]


def _works(recipe: Recipe, stream: TaskStream) -> list[_Work]:
    """Each task's: `joint` trains on all rows so far, `mix: half` on half a batch of new ones."""
    from perdure.engine.batching import drawn_rows
    from perdure.methods import registry

    methods = registry.build(recipe.methods)
    all_rows = any(method.needs_old_rows for method in methods)
    halves = any(method.halves for method in methods)
    found: list[_Work] = []
    before: tuple[Task, ...] = ()
    for task in stream:
        drawn = drawn_rows(recipe.of_task(task.learn), task.learn)
        batch = drawn // (2 if halves and before else 1)
        found.append(_Work((*before, task) if all_rows else (task,), batch))
        before += () if task.learn == "none" else (task,)
    return found


def _bare(recipe: Recipe, task: Task, work: _Work) -> TaskPlan:
    from perdure.engine.batching import steps_of

    own, batches = recipe.of_task(task.learn), math.ceil(work.rows / work.batch)
    again = own.rl.iterations if task.learn == "rl" and own.rl is not None else 1
    steps = 0 if task.learn == "none" else steps_of(own, batches * again, batch_size=1)
    return TaskPlan(
        task=task.name,
        metric=metric(task.metric).name,
        train_rows=len(task.train),
        validation_rows=len(task.validation),
        test_rows=len(task.test),
        steps=steps,
        classes=tuple(task.labels) if kind(task.kind).classes else (),
        scorings=0 if task.test_of else None,
        completions=steps * own.train.batch_size if task.learn == "rl" else None,
        until=task.until is not None,
    )


def _plan(
    bare: TaskPlan,
    recipe: Recipe,
    task: Task,
    work: _Work,
    encoder: RowEncoder,
    facts: ModelFacts,
    micro: int,
    precision: str,
    speed: float,
) -> TaskPlan:
    from perdure.engine.batching import split_batch

    lengths = {s: encoder.lengths((task.name, s)) for s in ("train", "validation", "test")}
    widths, written = work.widths(encoder), 0
    own, mean = recipe.of_task(task.learn), sum(widths) / max(1, len(widths))
    if task.learn == "rl":  # completions of at most so many tokens, in micro-batches of their own
        written = task.max_new_tokens
        micro = split_batch(own, int(os.environ.get("WORLD_SIZE", "1")))[0]
    longest, trained_on = max(widths, default=0) + written, bare.steps * own.train.batch_size
    tokens = round(trained_on * (mean + written))
    n, again = facts.parameters, recipe.train.gradient_checkpointing
    # Forward, gradients of activations through all weights, gradients of the trained weights.
    per_token = 2 * n + 2 * n + 2 * facts.trainable + (2 * n if again else 0)
    return replace(
        bare,
        longest=max(longest, *map(max, filter(None, lengths.values()))),
        train_tokens=tokens,
        # Written one by one: each token moves all weights for a few operations.
        train_seconds=(per_token * tokens + 8 * n * trained_on * written) / speed,
        score_seconds=2 * n * _scored_tokens(recipe, task, lengths["test"], encoder) / speed,
        memory_mb=_memory_mb(recipe, facts, micro, longest, precision),
    )


def _with_heads(
    recipe: Recipe, stream: TaskStream, facts: ModelFacts
) -> tuple[ModelFacts, list[tuple[float, float | None]], TaskAdapters | None]:
    """The body's sizes with all heads beside it, of which what learns at any time is trained; for
    each task the epochs in which the body learns, and those of heads alone; and the adapters that
    tasks have for themselves, if they do."""
    from perdure.methods import registry

    methods = registry.build(recipe.methods)
    own = [m for m in methods if type(m).epochs is not Method.epochs]
    decide = own[0].epochs if own else Method(None).epochs
    parts = [
        (0.0, 0.0) if task.learn == "none" else decide(i, recipe.train.epochs, facts.decoder)
        for i, task in enumerate(stream)
    ]
    width = facts.hidden * (2 if recipe.model.pooling == "entity_starts" else 1)
    heads = len(stream.classes) * (width + (recipe.model.head.type == "linear"))
    learning = sum(learns > 0 for learns, _ in parts)
    body = facts.trainable if learning else 0
    adapters = next((m.requires.adapters for m in methods if m.requires.adapters), None)
    if adapters is not None:  # their size grows with their rank
        body = learning * facts.trainable * adapters.r // recipe.model.lora.r
    whole = replace(facts, parameters=facts.parameters + heads, trainable=body + heads)
    return whole, parts, adapters


def _scorings(
    parts: Sequence[tuple[float, float | None]], number: int, adapters: TaskAdapters | None
) -> int:
    """How often the test rows of task `number` pass the body in a run: after the task, and after
    each later one that moves the body; with adapters of tasks once for each that answers."""
    if adapters is not None:
        return 1 if adapters.select == "oracle" else sum(learns > 0 for learns, _ in parts)
    return 1 + sum(learns > 0 for learns, _ in parts[number + 1 :])


def _plan_of_classes(
    bare: TaskPlan,
    recipe: Recipe,
    task: Task,
    work: _Work,
    encoder: RowEncoder,
    facts: ModelFacts,
    micro: int,
    precision: str,
    speed: float,
    parts: Sequence[tuple[float, float | None]],
    number: int,
    adapters: TaskAdapters | None,
) -> TaskPlan:
    """Args: parts: epochs of body and heads in each task; number: of this one."""
    from perdure.engine.batching import steps_of

    lengths = {s: encoder.lengths((task.name, s)) for s in ("train", "validation", "test")}
    widths, rows, (learns, heads) = work.widths(encoder), work.rows, parts[number]
    steps = steps_of(recipe, rows, learns, work.batch) if learns else 0
    head_steps = steps_of(recipe, rows, heads, work.batch) if heads else 0
    mean = sum(widths) / max(1, len(widths))
    trained, once = steps * recipe.train.batch_size, 0 if heads is None else rows
    # A token's embedding is looked up, and a body has no head over the vocabulary.
    n, again = facts.parameters - facts.vocab * facts.hidden, recipe.train.gradient_checkpointing
    per_token = 4 * n + 2 * min(n, facts.trainable) + (2 * n if again else 0)
    shown = min(len(task.test), recipe.scoring.max_test_rows or len(task.test))
    scorings = _scorings(parts, number, adapters)
    if adapters is not None and adapters.compete == "seen":  # earlier tasks' classes have logits
        once += rows * sum(moved > 0 for moved, _ in parts[:number])
    scored = sum(lengths["test"]) / max(1, len(task.test)) * shown
    none = replace(facts, vocab=0, trainable=facts.trainable if learns else 0)
    return replace(
        bare,
        steps=steps + head_steps,
        longest=max(map(max, filter(None, lengths.values()))),
        train_tokens=round(trained * mean),
        train_seconds=(per_token * trained + 2 * n * once) * mean / speed + HEAD_STEP * head_steps,
        score_seconds=2 * n * scored / speed,
        memory_mb=_memory_mb(recipe, none, micro, max(widths, default=0), precision),
        scorings=scorings,
        body_passes=trained + once + scorings * shown,
        head_steps=head_steps,
    )


def _scored_tokens(recipe: Recipe, task: Task, widths: Sequence[int], encoder: Any) -> float:
    rows = min(len(widths), recipe.scoring.max_test_rows or len(widths))
    mean = sum(widths) / max(1, len(widths))
    needs = metric(task.metric).needs
    if needs == "labels":  # the prompt once, each label after it
        mean += sum(len(encoder.answer_ids(label)) for label in task.labels)
    elif needs == "text":
        mean += 4 * task.max_new_tokens
    return rows * mean


def _memory_mb(recipe: Recipe, facts: ModelFacts, micro: int, longest: int, precision: str) -> int:
    """Peak of one process in MiB; with `fsdp_size`, weights and their state are shared out."""
    train = recipe.train
    frozen = facts.parameters - facts.trainable
    state = (
        frozen * (2 if precision == "bf16" else 4)
        + facts.trainable * (4 + 4 + OPTIMIZER_BYTES.get(train.optimizer, 8.0))
    ) / max(1, recipe.model.fsdp_size)
    width = 1 if precision == "bf16" else 2
    tokens = micro * longest
    layers = tokens * facts.hidden * 34 * width
    kept = layers + 4 * facts.layers * tokens * facts.hidden
    if not train.gradient_checkpointing:
        kept = layers * facts.layers
    logits = 3 * 4 * tokens * facts.vocab
    return round(PROCESS_MB + (state + kept + logits) / 2**20)


def _told(recipe: Recipe, stream: TaskStream) -> Iterator[str]:
    from perdure.methods import registry

    for spec, method in zip(recipe.methods, registry.build(recipe.methods), strict=True):
        yield from (f"{spec.name}: {line}" for line in method.told_of(stream))


def _cost(spec: MethodSpec) -> str:
    """The "Cost:" sentence of a method's own description."""
    import inspect
    import re

    from perdure.methods import registry

    text = inspect.getdoc(inspect.getmodule(registry.kind_of(spec))) or ""
    found = re.search(r"^Cost: (.+?)(?=\n\S+:|\n\n|\Z)", text, re.S | re.M)
    return f"{spec.name}: {' '.join(found[1].split()) if found else 'cost not stated'}"
