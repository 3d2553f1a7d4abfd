"""Scores of a model whose requests are routed: each row by the adapter that is chosen for it.

This is the one place where scores are routed: a learner's, `perdure eval`'s and an audit's. The
router is shown prompts alone, those of all tasks in one shuffled list, each once.

Labels and losses are computed adapter by adapter, as a pass over a tree of labels has one. Texts
are written in batches in which each row has its adapter (`peft`'s `adapter_names`).

What routing costs is measured beside it: rows that another adapter answered than the one that
learned their task are scored by that one too. Which that is, the router is asked afterwards.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from perdure.models.instructions import instruction_of
from perdure.processes import Progress
from perdure.scoring.routing_figures import NONE
from perdure.scoring.score import TaskScore, numbered_copies, pooled, score_task
from perdure.streams.kinds import metric
from perdure.streams.task import Task, shown

if TYPE_CHECKING:  # these import torch, which scores in files do without
    from perdure.models.chat import Encoder
    from perdure.models.served import Choice, Messages, Router

T = TypeVar("T")
F = TypeVar("F")
Alone = Callable[[Task, Progress | None], "TaskScore | None"]
Mixed = Callable[[Task, Sequence[str], Progress | None], "TaskScore | None"]


class Routed:
    """What a router chose for each prompt.

    Args:
        prompts: all that will be asked about, of whatever tasks; others are looked up when they
            come.
        seed: of the order in which they are shown.
    """

    def __init__(self, router: Router, prompts: Iterable[Messages] = (), seed: int = 0) -> None:
        self.router, self.seed = router, seed
        self._chosen: dict[str, Choice] = {}
        self.choose(list(prompts))

    def choose(self, prompts: Sequence[Messages]) -> list[Choice]:
        """The choice for each prompt, in their order."""
        keys = [_key(prompt) for prompt in prompts]
        new = [key for key in dict.fromkeys(keys) if key not in self._chosen]
        if new:
            random.Random(f"routed/{self.seed}").shuffle(new)
            shown = [json.loads(key) for key in new]
            self._chosen |= dict(zip(new, self.router.choose(shown), strict=True))
        return [self._chosen[key] for key in keys]

    def of_texts(self, texts: Sequence[str]) -> list[Choice]:
        """The choice for each plain text, as if a user had written it."""
        return self.choose([as_prompt(text) for text in texts])

    def right(self, task: str) -> str | None:
        """The adapter that would be right for a task's requests: that of the group in which the
        task was learned. None: it was not learned, or the router does not know."""
        learned_in: Callable[[str], str | None] | None = getattr(self.router, "learned_in", None)
        return None if learned_in is None else learned_in(task)


def as_prompt(text: str) -> Messages:
    """A plain text as the request of a user."""
    return [{"role": "user", "content": text}]


def _key(prompt: Messages) -> str:
    """A prompt without anything that does not belong to it."""
    turns = [{"role": turn["role"], "content": turn["content"]} for turn in prompt]
    return json.dumps(turns, ensure_ascii=False)


def prompts_of(tasks: Iterable[Task], most: int | None = None) -> Iterator[Messages]:
    """The prompts of tasks' test rows, `most` of each (`perdure.streams.task.shown`)."""
    for task in tasks:
        for row in shown(task, most):
            yield row["prompt"]


def adapter_of(choice: Choice) -> str:
    """The chosen adapter as `peft` names it: also the base model has a name."""
    from perdure.models.adapter_lists import BASE

    return BASE if choice.adapter is None else choice.adapter


def by_adapter(model: Any, choices: Sequence[Choice]) -> Iterator[list[int]]:
    """Yield the places of the choices of each adapter, with it in the model meanwhile.

    Raises:
        UsageError: the model has no such adapter.
    """
    from perdure.models.adapter_lists import BASE, check_known, showing

    names = [adapter_of(choice) for choice in choices]
    check_known(model, [name for name in names if name != BASE])
    for name in sorted(set(names)):
        with showing(model, [name]):
            yield [i for i, one in enumerate(names) if one == name]


def each_by_adapter(
    model: Any,
    choices: Sequence[Choice] | None,
    things: Sequence[T],
    work: Callable[[Sequence[T]], Sequence[F]],
) -> list[F]:
    """What `work` makes of `things`, in their order, each made with the adapter chosen for it.

    Args: choices: one for each; None: with the adapters that are active.
    """
    if choices is None:
        return list(work(things))
    found: dict[int, F] = {}
    for at in by_adapter(model, choices):
        found |= dict(zip(at, work([things[i] for i in at]), strict=True))
    return [found[i] for i in range(len(things))]


def score_routed(
    model: Any,
    task: Task,
    choices: Sequence[Choice],
    alone: Alone,
    mixed: Mixed | None = None,
    on_progress: Progress | None = None,
    right: str | None = None,
    measure_right: bool = False,
) -> TaskScore | None:
    """Score each row of `task.test` with the adapter chosen for it.

    Items come back in the order of the rows and say what `told` tells; a measure beside the task's
    metric is the mean over all rows.

    Args:
        right: the adapter that would be right for all of them (`Routed.right`), where it is known.
        measure_right: score the rows that another one answered by it too: `right_score`, and
            `right_loss` where an item has a loss.
        alone: scores rows with the adapter that is active.
        mixed: scores rows with an adapter each, given by name; None, or one that gives None: this
            metric goes adapter by adapter.
    """
    from perdure.models.adapter_lists import check_known, showing

    names = [adapter_of(choice) for choice in choices]
    wrong = [i for i, name in enumerate(names) if name != right] if right is not None else []
    extra = len(wrong) if measure_right else 0
    total = len(choices) + extra
    first = on_progress if not extra else _behind(on_progress, 0, total)
    found = None
    if mixed is not None:
        check_known(model, [choice.adapter for choice in choices if choice.adapter is not None])
        found = mixed(task, names, first)
    if found is None:
        found = _each(model, task, choices, alone, first, total)
    if found is None:
        return None
    items = told(found.items, choices, right)
    for item, row in zip(items, task.test, strict=True):
        # Of a request without a system message the prompt says it already.
        if (text := instruction_of(row["prompt"])) != item.get("prompt"):
            item["instruction"] = text
    if extra and right is not None:
        part = replace(task, test=[task.test[i] for i in wrong])
        with showing(model, [right]):
            other = alone(part, _behind(on_progress, len(choices), total))
        assert other is not None
        for place, item in zip(wrong, other.items, strict=True):
            items[place] |= {f"right_{key}": item[key] for key in ("score", "loss") if key in item}
    return replace(found, items=items)


def said_of(choice: Choice) -> dict[str, Any]:
    """A choice beside an answer, as `perdure route --json` tells it; `adapter` is None where the
    base model answers, `fits` where the router does not say."""
    fits = getattr(choice, "fits", None)
    return {
        "adapter": choice.adapter,
        "similarity": choice.similarity,
        "fits": None if fits is None else bool(fits),
        "why": choice.why,
    }


def told(
    items: Sequence[Mapping[str, Any]], choices: Sequence[Choice], right: str | None = None
) -> list[dict[str, Any]]:
    """Items that say which `adapter` answered, the request's `similarity` to the nearest group and
    `why`; whether it `fits` a group, where the router says so; and which adapter is `right`, where
    that is known."""
    found = []
    for item, one in zip(items, choices, strict=True):
        said = {"adapter": one.adapter or NONE, "similarity": one.similarity, "why": one.why}
        fits = getattr(one, "fits", None)
        found.append(
            {**item, **said}
            | ({} if fits is None else {"fits": bool(fits)})
            | ({} if right is None else {"right": right})
        )
    return found


def _each(
    model: Any,
    task: Task,
    choices: Sequence[Choice],
    alone: Alone,
    on_progress: Progress | None,
    total: int,
) -> TaskScore | None:
    parts: list[TaskScore] = []
    items: dict[int, dict[str, Any]] = {}
    measures: dict[str, float] = {}
    for at in by_adapter(model, choices):
        part = replace(task, test=[task.test[i] for i in at])
        found = alone(part, _behind(on_progress, len(items), total))
        if found is None:
            return None
        parts.append(found)
        items |= dict(zip(at, found.items, strict=True))
        for measure, value in found.measures.items():
            measures[measure] = measures.get(measure, 0.0) + value * len(at) / len(choices)
    ordered = numbered_copies([items[i] for i in range(len(choices))])
    score = pooled(task.metric, ordered)
    return replace(parts[0], score=score, items=ordered, measures=measures)


def _behind(on_progress: Progress | None, done: int, total: int) -> Progress | None:
    if on_progress is None:
        return None
    return lambda part, _: on_progress(done + part, total)


def served_score(
    model: Any, encoder: Encoder, task: Task, routed: Routed | None, **options: Any
) -> TaskScore:
    """`score_task` of a loaded model as it is served, by the choices of its router if it has one.

    Args: options: of `score_task`.
    """
    if routed is None:
        return score_task(model, encoder, task, **options)
    on_progress = options.pop("on_progress", None)

    def alone(part: Task, progress: Progress | None) -> TaskScore:
        return score_task(model, encoder, part, on_progress=progress, **options)

    def mixed(part: Task, adapters: Sequence[str], progress: Progress | None) -> TaskScore | None:
        if metric(part.metric).needs != "text":
            return None
        return score_task(model, encoder, part, on_progress=progress, adapters=adapters, **options)

    choices = routed.choose(list(prompts_of([task])))
    right = routed.right(task.name)
    found = score_routed(model, task, choices, alone, mixed, on_progress, right)
    assert found is not None
    return found
