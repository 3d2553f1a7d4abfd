"""How many texts a classifier's body would read in a run, counted without any weight.

    learning   rows that steps run with a gradient: the task's own and replayed ones
    looking    rows run without: features for heads and probes, herding, figures on texts of no
               class, teachers
    scorings   how often the test rows are read to be scored

Where a body stays, a text is read once for each state of the weights, whatever asks for it. Texts
that are in the data twice count twice here. What a method looks at is what its `reads` says: the
most, where it depends on what was learned (the factors that rewind tries).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from perdure.engine.batching import steps_of
from perdure.models.configuration import has_dropout, read_config

if TYPE_CHECKING:
    from perdure.models.task_adapters import TaskAdapters
    from perdure.protocol.method import Method
    from perdure.recipe.schema import Recipe
    from perdure.streams.task import TaskStream

Epochs = tuple[float, float | None]
"""Epochs of a task in which the body learns, and of heads alone (None: no phase is theirs)."""


class BodyReads(NamedTuple):
    """See the module; of one task, in the whole run."""

    steps: int
    head_steps: int
    learning: int
    looking: int
    scorings: int


def body_reads(
    recipe: Recipe,
    stream: TaskStream,
    number: int,
    epochs: Sequence[Epochs],
    methods: Sequence[Method],
    rows: int,
    batch: int,
    adapters: TaskAdapters | None,
) -> BodyReads:
    """What is read of, and for, task `number`.

    Args:
        epochs: of each task.
        rows: that the task trains on; batch: those of them in a step.
        adapters: settings of those that tasks have for themselves, if they do.
    """
    task, (learns, heads) = stream.tasks[number], epochs[number]
    moved = [body > 0 for body, _ in epochs]
    states = 1 + sum(moved)
    steps = steps_of(recipe, rows, learns, batch) if learns else 0
    head_steps = steps_of(recipe, rows, heads, batch) if heads else 0
    learning, looking = steps * recipe.train.batch_size, 0 if heads is None else rows
    if steps and heads is None:  # else features of the kept rows are there
        for found in (method.reads(stream.tasks[: number + 1], batch) for method in methods):
            learning += steps * found.learned
            looking += steps * found.seen + found.after
            if stream.scenario == "task-incremental":
                looking += steps * found.known
    if adapters is None:
        scorings = 1 + sum(moved[number + 1 :])
    else:
        own = [bool(body or heads) for body, heads in epochs]
        scorings = 1 if adapters.select == "oracle" else sum(own)
        if adapters.compete == "seen":  # earlier tasks' classes have logits
            looking += rows * sum(own[:number])
    drops = heads is not None and any(m.drops_when_probed for m in methods)
    if drops and has_dropout(read_config(recipe.model, causal=False)):
        # Nothing is kept: each step and each scoring reads its texts, and probes read their own.
        looking, scorings = head_steps * recipe.train.batch_size, len(epochs) - number
        if recipe.scoring.probes:
            looking, scorings = looking + states * len(task.train), scorings + states
    elif recipe.scoring.probes:
        looking = looking - (rows if heads is not None else 0) + states * len(task.train)
        scorings = states + (0 if adapters is None else scorings)
    looking += _no_class(recipe, stream, number, epochs, adapters is not None)
    return BodyReads(steps, head_steps, learning, looking, scorings)


def _no_class(
    recipe: Recipe, stream: TaskStream, number: int, epochs: Sequence[Epochs], adapters: bool
) -> int:
    """Rows that the figures on texts of no class read beside scoring: after each task validation
    and test rows of the tasks so far, and the texts themselves, which count for the first task."""
    none, task = stream.no_class, stream.tasks[number]
    if stream.scenario != "class-incremental" or not none.test or not none.validation:
        return 0
    texts = len(none.validation) + len(none.test)
    shown = min(len(task.test), recipe.scoring.max_test_rows or len(task.test))
    learned = [k for k, other in enumerate(stream) if other.learn != "none"]
    if adapters:  # each one reads each text once
        more = len(task.validation) + len(task.test) - shown
        return len(learned) * (more + (texts if number == learned[0] else 0))
    found = 0
    for after in (k for k in learned if k >= number):
        moves, heads = epochs[after]
        if heads is not None and not moves and after > number:
            continue  # read in this state of the weights before
        # Those that are scored are read once for both.
        more = len(task.test) - shown
        found += len(task.validation) + more + (texts if number == learned[0] else 0)
    return found
