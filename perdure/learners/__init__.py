"""Learners turn a task into gradient steps. One file a learner; today: text generation."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from perdure.errors import UsageError

if TYPE_CHECKING:
    from perdure.config import Recipe
    from perdure.learners.generation import GenerationLearner
    from perdure.run import Run
    from perdure.streams.task import TaskStream

__all__ = ["build"]


def build(recipe: Recipe, run: Run, stream: TaskStream, display: Any) -> GenerationLearner:
    """Load the base model and make the learner of the stream's kind of task, with its methods."""
    import torch

    from perdure import methods, models
    from perdure.learners.generation import GenerationLearner

    chosen = methods.build(recipe.methods)
    for method, spec in zip(chosen, recipe.methods, strict=False):
        if method.needs_general and not stream.general.replay:
            raise UsageError(
                f"{recipe.place('method')}: {spec.name} replays general text and there is none",
                "add a section `general:`, e.g. general: {source: pydoc}",
            )
    # Measured once: a resumed run must compute as it began.
    precision = run.decide("precision", lambda: models.choose_precision(recipe.train.precision))
    with torch.random.fork_rng():
        torch.manual_seed(recipe.seed)  # a new adapter is drawn
        model, tokenizer = models.load_base(recipe.model, precision=precision)
    return GenerationLearner(model, tokenizer, stream, chosen, recipe, run, display, precision)
