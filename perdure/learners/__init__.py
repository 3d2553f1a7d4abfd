"""Learners turn a task into gradient steps. One file a learner; today: text generation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from perdure.errors import UsageError

if TYPE_CHECKING:
    from perdure.learners.generation import GenerationLearner
    from perdure.protocol.method import Method
    from perdure.recipe.schema import Recipe
    from perdure.run import Run
    from perdure.streams.task import TaskStream

__all__ = ["build", "chosen_methods"]


def chosen_methods(recipe: Recipe, stream: TaskStream) -> list[Method]:
    """Make the recipe's methods; they must go together and find what they need in `stream`.

    Raises:
        UsageError: two methods clash, or one needs validation rows that are not there.
    """
    from perdure.methods import registry
    from perdure.protocol.method import refuse_clashes

    chosen = registry.build(recipe.methods)
    refuse_clashes(chosen, recipe.order_matters)
    bare = [task.name for task in stream if not task.validation]
    for method, spec in zip(chosen, recipe.methods, strict=True):
        if method.needs_validation and bare:
            raise UsageError(
                f"method: {spec.name} measures on validation rows, and task {bare[0]} has none",
                "give it `validation:` rows, or a `validation_share:` above 0",
            )
    return chosen


def build(recipe: Recipe, run: Run, stream: TaskStream, display: Any) -> GenerationLearner:
    """Load the base model and make the learner of the stream's kind of task, with its methods."""
    import torch

    from perdure import models
    from perdure.learners.generation import GenerationLearner
    from perdure.streams import lm_eval_tasks

    chosen = chosen_methods(recipe, stream)
    lm_eval_tasks.load(recipe.general)  # what cannot be read is told before weights are loaded
    # Measured once: a resumed run must compute as it began.
    precision = run.decide("precision", lambda: models.choose_precision(recipe.train.precision))
    with torch.random.fork_rng(devices=[]):  # adapters are drawn on the CPU
        torch.manual_seed(recipe.seed)  # a new adapter is drawn
        model, tokenizer = models.load_base(recipe.model, precision=precision)
    return GenerationLearner(model, tokenizer, stream, chosen, recipe, run, display, precision)
