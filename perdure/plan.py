"""What a run would take, told without loading a weight: rows, tokens, steps, time and memory.

Every row is encoded with the base model's tokenizer, so a row that is too long is found here.

Time is arithmetic over a measured speed: 2 operations a parameter and token forward, 4 backward
(Kaplan et al. 2020, table 1), over what this machine reached on a feed-forward layer. Memory is
weights, gradients and optimizer state of the numbers that are trained, and the activations of
the longest micro-batch (Korthikanti et al. 2022, section 4: 34 bytes a hidden unit, token and
layer in 16 bit; twice that in fp32). Both are guesses, good to a factor of two.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from perdure.models.training_memory import adapters_mb, copies_mb, training_mb
from perdure.protocol.method import Method
from perdure.recipe.packaged import as_written
from perdure.streams.kinds import kind, metric

if TYPE_CHECKING:
    from perdure.engine.rows import RowEncoder
    from perdure.learners.work import Work
    from perdure.models import ModelFacts
    from perdure.models.task_adapters import TaskAdapters
    from perdure.protocol.adapters import AdapterCount
    from perdure.recipe.schema import Recipe
    from perdure.streams import Task, TaskStream

EFFICIENCY = 0.5
"""Share of a feed-forward layer's speed that a whole training step reaches."""
HEAD_STEP = 0.0015
"""Seconds of an optimizer step of heads on features, of which hardly any is arithmetic."""


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
    """Of a task with classes: texts that the body reads in the whole run for it, see
    `perdure.learners.planned`; once for each state of its weights where heads alone learn."""
    head_steps: int | None = None
    """Those of its steps in which heads alone learn."""
    adapters: int | None = None
    """In memory while it is learned, of a method that adds some; one of them is trained."""
    adapters_kept: int | None = None
    """In its checkpoint."""
    completions: int | None = None
    """Of a task with `learn: rl`: how many are written and trained on in all."""
    prompts: int | None = None
    """Of such a task: different prompts that a step draws, were there as many."""
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
    learned: int = 0
    """Tasks, the first ones, that a run has learned already which this one extends."""
    adapters_mb: float | None = None
    """On the disk, in all checkpoints that are kept: each version of an adapter and its first
    values, once."""

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
    learned: int = 0,
    methods: Sequence[Method] | None = None,
) -> Plan:
    """Plan the run of a prepared recipe; measures this machine for half a second.

    Args:
        encoder: remembers all rows of the stream; facts: the base model's sizes. Without them
            rows and steps alone are known.
        learned: of an extension, the tasks that were learned before, which are only scored.
        methods: the recipe's, which know of those tasks; None: they know of none.
    """
    from perdure import models
    from perdure.learners.work import works
    from perdure.methods import registry

    processes = int(os.environ.get("WORLD_SIZE", "1"))
    each = works(recipe, stream, learned)
    tasks = [_bare(recipe, task, work) for task, work in zip(stream, each, strict=True)]
    if learned:  # a new task is scored by the base and by the run's last weights as well
        new = len(tasks) - learned
        tasks = [
            t if t.scorings == 0 else replace(t, scorings=new + 2 * (i >= learned))
            for i, t in enumerate(tasks)
        ]
    made = registry.build(recipe.methods) if methods is None else methods
    if facts is not None:
        facts = facts.with_experts(max(method.rank_parts for method in made))
    if facts is not None and encoder is not None:
        measured = models.measure_speed(0.5)
        speed = (measured.bf16 or measured.fp32) if precision == "bf16" else measured.fp32
        speed *= 1e9 * EFFICIENCY * processes
        if kind(stream.tasks[0].kind).writes:
            tasks = [
                _plan(bare, recipe, task, work, encoder, facts, micro_batch, precision, speed)
                for bare, task, work in zip(tasks, stream, each, strict=True)
            ]
        else:
            facts, parts, adapters = _with_heads(recipe, stream, facts)
            tasks = [
                _plan_of_classes(
                    bare, recipe, stream, task, each[i], encoder, facts, micro_batch, precision,
                    speed, parts, i, adapters,
                )
                for i, (bare, task) in enumerate(zip(tasks, stream, strict=True))
            ]  # fmt: skip
        copies = copies_mb(recipe, _copies(made, recipe.model.tuning == "lora"), facts.trainable)
        tasks = [
            replace(t, memory_mb=t.memory_mb + copies) if t.memory_mb and t.steps else t
            for t in tasks
        ]
    stored = None
    own = next((m for m in made if m.adapters), None)
    if facts is not None and own is not None:
        counts = own.adapter_counts(stream, learned)
        tasks = list(_with_adapters(tasks, counts, facts.trainable))
        stored = adapters_mb(_stored(recipe, [*counts.values()], learned), facts.trainable)
    return Plan(
        recipe=recipe.name,
        methods=tuple(spec.name for spec in recipe.methods),
        model=as_written(recipe.model.path) + (f" ({facts.architecture})" if facts else ""),
        kind=stream.tasks[0].kind,
        scenario=stream.scenario,
        parameters=facts.parameters if facts else None,
        trainable=facts.trainable if facts else None,
        precision=precision,
        processes=processes,
        tasks=tuple(tasks),
        costs=tuple(map(registry.cost, recipe.methods)),
        told=tuple(_told(recipe, stream, learned, made)),
        adapters_mb=stored,
        general=tuple(lm_eval_tasks),
        learned=learned,
    )


def _bare(recipe: Recipe, task: Task, work: Work) -> TaskPlan:
    from perdure.engine.batching import drawn_rows

    steps, own = work.steps(recipe, task), recipe.of_task(task.learn)
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
        prompts=drawn_rows(own, task.learn) if task.learn == "rl" else None,
        until=task.until is not None and task.until.every <= steps,
    )


def _plan(
    bare: TaskPlan,
    recipe: Recipe,
    task: Task,
    work: Work,
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
        micro = split_batch(own, int(os.environ.get("WORLD_SIZE", "1")), "rl")[0]
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
        memory_mb=training_mb(recipe, facts, micro, longest, precision),
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


def _plan_of_classes(
    bare: TaskPlan,
    recipe: Recipe,
    stream: TaskStream,
    task: Task,
    work: Work,
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
    from perdure.learners.planned import body_reads
    from perdure.methods import registry

    lengths = {s: encoder.lengths((task.name, s)) for s in ("train", "validation", "test")}
    widths, methods = work.widths(encoder), registry.build(recipe.methods)
    if not work.tasks:  # learned already, before an extension
        parts = [(0.0, 0.0) if i == number else part for i, part in enumerate(parts)]
    read = body_reads(recipe, stream, number, parts, methods, work.rows, work.batch, adapters)
    mean = sum(widths) / max(1, len(widths))
    # A token's embedding is looked up, and a body has no head over the vocabulary.
    n, again = facts.parameters - facts.vocab * facts.hidden, recipe.train.gradient_checkpointing
    per_token = 4 * n + 2 * min(n, facts.trainable) + (2 * n if again else 0)
    shown = min(len(task.test), recipe.scoring.max_test_rows or len(task.test))
    scored = sum(lengths["test"]) / max(1, len(task.test)) * shown
    none = replace(facts, vocab=0, trainable=facts.trainable if parts[number][0] else 0)
    operations = (per_token * read.learning + 2 * n * read.looking) * mean
    return replace(
        bare,
        steps=read.steps + read.head_steps,
        longest=max(map(max, filter(None, lengths.values()))),
        train_tokens=round(read.steps * recipe.train.batch_size * mean),
        train_seconds=operations / speed + HEAD_STEP * read.head_steps,
        score_seconds=2 * n * scored / speed,
        memory_mb=training_mb(recipe, none, micro, max(widths, default=0), precision),
        scorings=read.scorings,
        body_passes=read.learning + read.looking + read.scorings * shown,
        head_steps=read.head_steps,
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


def _copies(methods: Sequence[Method], lora: bool) -> int:
    """Copies of the trained weights that methods keep; a teacher's is shared by all that have it,
    and the base under an adapter is there without one."""
    teachers = {m.requires.teacher for m in methods} - ({None, "base"} if lora else {None})
    return sum(method.copies for method in methods) + len(teachers)


def _with_adapters(
    tasks: Sequence[TaskPlan], counts: Mapping[str, AdapterCount], numbers: int
) -> Iterator[TaskPlan]:
    """The tasks' plans with the adapters that are there beside the one that is trained."""
    for task in tasks:
        if (found := counts.get(task.task)) is None:
            yield task
            continue
        memory = (task.memory_mb or 0) + round(adapters_mb(found.learning - 1, numbers))
        yield replace(task, adapters=found.learning, adapters_kept=found.kept, memory_mb=memory)


def _stored(recipe: Recipe, counts: Sequence[AdapterCount], learned: int) -> int:
    """How many adapters' files the checkpoints hold that are kept; an added one has two, as its
    first values are there too. What is the same file in two checkpoints is stored once."""
    if not counts:
        return 0
    if recipe.save.tasks == "last":
        return 2 * counts[-1].kept - 1
    return 2 * sum(count.added for count in counts) + (not learned)


def _told(
    recipe: Recipe, stream: TaskStream, learned: int, made: Sequence[Method]
) -> Iterator[str]:
    new = replace(stream, tasks=stream.tasks[learned:])
    for spec, method in zip(recipe.methods, made, strict=True):
        yield from (f"{spec.name}: {line}" for line in method.told_of(new))
