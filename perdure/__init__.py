"""Fine-tune language models on task after task without forgetting, and measure both.

    attach(trainer, "gere", ...)      a method on your own transformers or trl trainer
    learn(recipe, run)                what `perdure run` does
    load_recipe(path, overrides)      a YAML recipe, checked
    load_predictor(run)               answers of a run's model, what `perdure predict` does
    AdapterPool                       several adapters, each request answered by one of them
    Run                               a run directory
    Task, TaskStream, GeneralText     data, from your own code
    ScoreMatrix                       scores, and every figure derived from them
    Method, MethodConfig              the base of a method of your own

Importing this package loads no torch; each name is imported when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from perdure.lazy import lazily

if TYPE_CHECKING:
    from perdure.dropin import attach as attach
    from perdure.errors import PerdureError as PerdureError
    from perdure.loop import learn as learn
    from perdure.models.pool import AdapterPool as AdapterPool
    from perdure.predictor import load_predictor as load_predictor
    from perdure.prepare import load_recipe as load_recipe
    from perdure.protocol.method import Method as Method
    from perdure.protocol.method import MethodConfig as MethodConfig
    from perdure.recipe.schema import Recipe as Recipe
    from perdure.run import Run as Run
    from perdure.scoring import ScoreMatrix as ScoreMatrix
    from perdure.streams.task import GeneralText as GeneralText
    from perdure.streams.task import Task as Task
    from perdure.streams.task import TaskStream as TaskStream

_HOME = {
    "AdapterPool": "models.pool",
    "GeneralText": "streams.task",
    "Method": "protocol.method",
    "MethodConfig": "protocol.method",
    "PerdureError": "errors",
    "Recipe": "recipe.schema",
    "Run": "run",
    "ScoreMatrix": "scoring",
    "Task": "streams.task",
    "TaskStream": "streams.task",
    "attach": "dropin",
    "learn": "loop",
    "load_predictor": "predictor",
    "load_recipe": "prepare",
}

__all__ = sorted(_HOME)


__getattr__ = lazily(__name__, _HOME)
