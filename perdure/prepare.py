"""From a recipe to everything that is checked and loaded before the first weight.

    recipe = load_recipe("shop.yaml", ["method.name=gere"])
    prepared = prepare(recipe)

`run --check`, `run`, `resume` and `eval` all start here.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perdure.consent import trusting
from perdure.errors import PerdureError, RecipeError, UsageError, task_named
from perdure.recipe import load
from perdure.recipe.mistakes import Mistake
from perdure.recipe.packaged import as_written
from perdure.recipe.schema import MethodSpec, Recipe

if TYPE_CHECKING:
    from datetime import date

    from perdure.engine.rows import RowEncoder
    from perdure.models.inspect import ModelFacts
    from perdure.protocol.method import Method
    from perdure.run import Run
    from perdure.streams.task import Task, TaskStream


def load_recipe(
    path: str | Path,
    overrides: Sequence[str] = (),
    *,
    check_files: bool = True,
    tasks_only: bool = False,
) -> Recipe:
    """Read and validate a recipe.

    Args:
        path: a YAML file.
        overrides: `section.key=value`, as on the command line; items of a list go by number or,
            for tasks, by name (`stream.tasks.colours.max_train_rows=20`). A `method.name=` that
            differs from the recipe's drops the recipe's options, which belong to another method.
        check_files: also require that every file the recipe names exists.
        tasks_only: `model` and `method` may be missing; for commands that use only the tasks.

    Raises:
        RecipeError: all mistakes, each with its line.
    """
    return load.load(
        path,
        overrides,
        check_files=check_files,
        tasks_only=tasks_only,
        judge=recipe_judge(lm_eval=not tasks_only),
    )


def recipe_judge(lm_eval: bool = True) -> Any:
    """All that a recipe cannot know by itself: tasks, methods and their options, lm-eval's tasks.

    Args: lm_eval: whether lm-eval's tasks are looked at; an audit runs none.
    """
    from perdure.streams.judge import StreamJudge

    class RecipeJudge(StreamJudge):
        def method(self, item: MethodSpec) -> tuple[MethodSpec | None, list[Mistake]]:
            from perdure.methods import registry

            return registry.check(item)

        def of_data(self, data: dict[str, Any]) -> Iterator[Mistake]:
            from perdure.rewards import recipe_mistakes
            from perdure.streams import lm_eval_tasks

            yield from super().of_data(data)
            yield from recipe_mistakes(data)
            general = data.get("general")
            tasks = general.get("tasks") if isinstance(general, dict) else None
            # Only asked where tasks are named: it reads lm-eval's whole list.
            for mistake in lm_eval_tasks.mistakes(
                tasks if lm_eval and isinstance(tasks, list) else []
            ):
                yield Mistake(("general", "tasks", *mistake.key), mistake.what, mistake.remedy)

    return RecipeJudge()


def stream_of(recipe: Recipe, before: Sequence[Task] = ()) -> TaskStream:
    """The recipe's tasks and general text, read and checked.

    Args: before: tasks of the run that is extended.

    Raises:
        RecipeError: all mistakes in the data, each with its file and line.
    """
    from perdure.streams import build_stream

    return build_stream(recipe.stream, recipe.general, recipe.folder, recipe.seed, before)


def run_stream(run: Run, longer: Recipe | None = None) -> TaskStream:
    """All tasks of a run: of an extension also those that it learned before, as it kept them.

    Args: longer: the recipe of an extension that is not made yet: its tasks behind the run's.

    Raises:
        RecipeError: all mistakes in the data, each with its file and line.
        RunError: what the run kept is damaged, or a method needs rows that are gone.
    """
    from perdure.methods import registry
    from perdure.run.kept import tasks_before, whole_stream

    recipe = run.recipe if longer is None else longer
    new = stream_of(recipe, tasks_before(run, extends=longer is not None))
    with trusting(recipe.trust_remote_code):
        old = any(registry.kind_of(spec).needs_old_rows for spec in recipe.methods)
        reads = _recorded_stream if old else None
        return whole_stream(run, new, reads, extends=longer is not None)


def _recorded_stream(path: Path) -> TaskStream:
    from perdure.run.old_recipes import renew

    return stream_of(load.load(path, check_files=False, renew=renew))


@dataclass(frozen=True)
class Prepared:
    """A recipe with all that its run needs but the weights.

    Attributes:
        methods: the objects that the recipe asks for, in its order.
        encoder: has tokenized the stream's rows, each once, and keeps them (`encoder.kept`) to
            train on and to score; `encoder.lengths((task, split))` are their tokens. None where
            the tasks' kind leaves that to its learner.
        lm_eval_tasks: by name, as lm-eval loads them.
        micro_batch, accumulation: rows of a micro-batch on one process, and micro-batches in an
            optimizer step.
        model: the base model's sizes; None where the kind has no encoder.
    """

    recipe: Recipe
    stream: TaskStream
    methods: tuple[Method, ...]
    encoder: RowEncoder | None
    lm_eval_tasks: dict[str, Any]
    micro_batch: int
    accumulation: int
    model: ModelFacts | None
    _taken: list[str] = field(default_factory=list, init=False, repr=False, compare=False)

    def take_methods(self, recipe: Recipe) -> tuple[Method, ...]:
        """The methods for one run; a second run gets its own, as they keep what they have seen.

        Raises:
            UsageError: `recipe` is not the one that was prepared.
        """
        if recipe != self.recipe:
            raise UsageError(
                f"learn: prepared is of another recipe, {self.recipe.name}",
                "give what prepare(recipe) made of this one, or leave prepared out",
            )
        if self._taken:
            with trusting(recipe.trust_remote_code):
                return tuple(chosen_methods(recipe, self.stream))
        self._taken.append(recipe.name)
        return self.methods

    @cached_property
    def precision(self) -> str:
        """ "fp32" or "bf16": what the recipe says, or what this machine is faster at."""
        from perdure import models

        return models.choose_precision(self.recipe.train.precision)

    @property
    def template_date(self) -> str:
        """The day whose date chat templates write: YYYY-MM-DD; "" where there is no template."""
        today = getattr(self.encoder, "today", None)
        return "" if today is None else str(today.isoformat())


def prepare(
    recipe: Recipe,
    *,
    stream: TaskStream | None = None,
    display: Any = None,
    training: bool = True,
    today: date | None = None,
) -> Prepared:
    """Read, check and tokenize all that a run needs before weights are loaded.

    Args:
        stream: the tasks, where the caller has them already.
        display: told what is being done; None is silent.
        training: False prepares to score a trained model, which brings its tokenizer along: no
            methods are made and no rows tokenized.
        today: the day whose date a chat template writes; None is that of now.

    Raises:
        RecipeError: mistakes in the data, rows too long for the limit or the model, or options of a
            method that the model is too small for.
        ModelError: the base model cannot be used.
        UsageError: methods that clash or lack what they need, a batch that cannot be split over
            the processes, or an lm-eval task that cannot be read.
        ConsentError: code that the recipe or its model brings would have to run, and
            `recipe.trust_remote_code` is false.
    """
    with trusting(recipe.trust_remote_code):
        return _prepare(recipe, stream, display, training, today)


def _prepare(
    recipe: Recipe, stream: TaskStream | None, display: Any, training: bool, today: date | None
) -> Prepared:
    from perdure import models
    from perdure.engine.batching import halved, split_batch
    from perdure.engine.rows import encode_stream, told_of_rows
    from perdure.learners.sense import refuse_senseless
    from perdure.rewards import check_rewards
    from perdure.scoring import metrics
    from perdure.streams import kinds, lm_eval_tasks
    from perdure.streams.growing import refuse_beyond

    tell = (lambda text: None) if display is None else display.message
    stream = stream or stream_of(recipe)
    kind = kinds.kind(stream.tasks[0].kind)
    if recipe.scoring.probes and kind.name != kinds.CLASSIFICATION:
        raise UsageError(
            f"{recipe.place('scoring.probes')}: has no effect: probes are fitted on features of "
            f"classes, and these tasks are of kind {kind.name}",
            "leave it out",
        )
    if kind.classes:
        refuse_beyond(recipe, len(stream.classes))
    methods = tuple(chosen_methods(recipe, stream)) if training else ()
    if recipe.general is not None and recipe.general.tasks:
        tell(f"{recipe.name}: reading lm-eval tasks {', '.join(recipe.general.tasks)}")
    general = lm_eval_tasks.load(recipe.general)
    metrics.try_own(stream)
    if not training:
        return Prepared(recipe, stream, methods, None, general, recipe.train.batch_size, 1, None)
    world = int(os.environ.get("WORLD_SIZE", "1"))
    micro, accumulation = split_batch(recipe, world)
    check_rewards(recipe, stream)
    if recipe.rl is not None and any(task.learn == "rl" for task in stream):
        split_batch(recipe, world, "rl")
        if recipe.rl.backend == "vllm":
            from perdure.learners.rl import require_vllm  # with it comes TRL

            require_vllm(recipe)
    facts, encoder = None, None
    if any(method.halves for method in methods):
        halved(micro, accumulation)
    module, _, name = kind.encoder.partition(":")
    if name:
        facts = models.inspect_base(recipe.model, kind.writes)
        _refuse_headless(recipe, methods, facts)
        _refuse_mistakes_on(recipe, methods, facts)
        encoder = getattr(importlib.import_module(module), name)(recipe)
        if today is not None and hasattr(encoder, "pin"):
            encoder.pin(today)
        count = sum(len(task.train) + len(task.validation) + len(task.test) for task in stream)
        tell(f"{recipe.name}: checking {count:,} rows of {len(stream)} tasks")
        refuse_senseless(recipe, stream, facts)
        told = told_of_rows(display, recipe.name, count)
        encode_stream(stream, encoder, facts.context_length or None, told)
    return Prepared(recipe, stream, methods, encoder, general, micro, accumulation, facts)


def _refuse_headless(recipe: Recipe, methods: Sequence[Method], facts: ModelFacts) -> None:
    """Refuse methods that have the model write text where it has no head to do so."""
    for number, (method, spec) in enumerate(zip(methods, recipe.methods, strict=True)):
        wanted = method.requires.language_head
        if facts.no_language_head and (wanted == "must" or (wanted and facts.decoder)):
            raise UsageError(
                f"{recipe.method_place(number, 'name')}: {spec.name} has the model write text "
                f"first, and {as_written(recipe.model.path)} cannot: {facts.no_language_head}",
                "write method.warmup_loss: ce, or take a decoder with its language-model head",
            )


def _refuse_mistakes_on(recipe: Recipe, methods: Sequence[Method], facts: ModelFacts) -> None:
    """Raise `RecipeError` where options of methods do not go with the base model."""
    if not facts.layers:
        return  # the configuration does not say how many: it is asked once the model is there
    found = [
        PerdureError(f"{recipe.method_place(i, '.'.join(map(str, m.key)))}: {m.what}", m.remedy)
        for i, method in enumerate(methods)
        for m in method.mistakes_on(facts)
    ]
    if found:
        raise RecipeError(found)


def chosen_methods(recipe: Recipe, stream: TaskStream) -> list[Method]:
    """Make the recipe's methods; they must go together and find what they need in `stream`.

    Raises:
        UsageError: two methods clash, or one needs validation rows that are not there.
    """
    from perdure.engine.adapter_needs import refuse_task_adapters
    from perdure.methods import registry
    from perdure.protocol.method import refuse_clashes

    chosen = registry.build(recipe.methods)
    refuse_clashes(chosen, recipe.order_matters)
    _refuse_by_kind(chosen, recipe, stream)
    _refuse_by_reinforcement(chosen, recipe, stream)
    refuse_task_adapters(chosen, recipe, stream)
    learned = [task for task in stream if task.learn != "none" and task.train_kept]
    bare = [task.name for task in learned if not task.validation]
    for method, spec in zip(chosen, recipe.methods, strict=True):
        if method.needs_validation and bare:
            raise UsageError(
                f"method: {spec.name} measures on validation rows, and "
                f"{task_named(bare[0])} has none",
                "give it `validation:` rows, or a `validation_share:` above 0",
            )
    return chosen


def _refuse_by_kind(chosen: Sequence[Method], recipe: Recipe, stream: TaskStream) -> None:
    """Raise `UsageError` where a method cannot learn tasks of this kind."""
    from perdure.engine.adapter_needs import refuse_without_adapters
    from perdure.protocol.method import Method
    from perdure.streams import kinds

    kind = kinds.kind(stream.tasks[0].kind)
    for method, spec in zip(chosen, recipe.methods, strict=True):
        method.check(tuple(stream.classes) if kind.classes else ())
        if method.adapters or type(method).router is not Method.router:
            refuse_without_adapters(spec.name, recipe, kind.name, method.rank_parts)
        if not (asked := method.requires.texts):
            continue
        who = f"method: {spec.name}"
        if kind.classes and asked == "labels":
            raise UsageError(
                f"{who} learns to continue general texts, and a classifier writes no text",
                "gere and gere_distance hold its states on them, with label_weight: 0",
            )
        if kind.classes and not stream.general.replay:
            raise UsageError(
                f"{who} holds states on general texts, and a classifier cannot write its own",
                "give some: general: {replay: texts.txt}",
            )
        if not (kind.encoder or kind.classes) and not _reads_texts(stream):
            raise UsageError(
                f"{who} learns along with general texts, which tasks of kind {kind.name} cannot be",
                "take a method that needs none; see perdure methods",
            )


def _refuse_by_reinforcement(chosen: Sequence[Method], recipe: Recipe, stream: TaskStream) -> None:
    """Raise `UsageError` where a method cannot work on completions, and a task is learned so."""
    from perdure.protocol.method import Method, name_of

    by_rl = next((task.name for task in stream if task.learn == "rl"), None)
    by_token = recipe.rl is not None and recipe.rl.algorithm == "reinforce++"
    off = [method for method in chosen if method.uses("penalties")]
    if off and (by_rl is None or not by_token):
        raise UsageError(
            f"method: {name_of(off[0])}: it is taken off the reward of each token, and "
            + ("no task is learned from rewards" if by_rl is None else "grpo has one a completion"),
            "write term: loss" + ("" if by_rl is None else ", or rl.algorithm: reinforce++"),
        )
    if by_rl is None:
        return
    from perdure.engine.completions import refusals  # seconds of import, wanted here alone

    where = f"{task_named(by_rl)} is learned by reinforcement"
    for name, what in (("FSDP", "FSDP2"), ("DEEPSPEED", "DeepSpeed")):
        if os.environ.get(f"ACCELERATE_USE_{name}", "").lower() == "true":
            raise UsageError(
                f"{where}, which a model that {what} shards does not do",
                "launch it without: each process then has a copy of the model",
            )
    for method, what, remedy in refusals(chosen):
        raise UsageError(f"method: {name_of(method)}: {where}: {what}", remedy)
    for method in chosen:
        if type(method).train_data is not Method.train_data or method.halves:
            raise UsageError(
                f"method: {name_of(method)}: {where}, whose prompts have no answer that could be "
                "trained on together with others'",
                "gere and general_replay train on general texts beside it",
            )


def _reads_texts(stream: TaskStream) -> bool:
    from perdure.learners import learner_class
    from perdure.learners.kind import KindHooks

    return learner_class(stream).encode_text is not KindHooks.encode_text
