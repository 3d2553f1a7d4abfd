"""The whole product in one function: learn task after task, and score all of them each time.

    base model ──► score ──► for each task: fit, save, score ──► score matrix

Row 0 of the matrix is the untouched base model. A run that was killed goes on where its newest
sealed checkpoint stands; what is scored already is not scored again.
"""

from __future__ import annotations

from perdure.recipe.schema import Recipe
from perdure.reports.terminal import Display, NullDisplay
from perdure.run import Run
from perdure.scoring import ScoreMatrix
from perdure.streams import TaskStream, build_stream


def learn(
    recipe: Recipe,
    run: Run,
    *,
    display: Display | NullDisplay | None = None,
    stream: TaskStream | None = None,
    base_scores: Run | None = None,
) -> ScoreMatrix:
    """Learn the tasks of `recipe` in order; everything goes to `run`.

    Args:
        display: tells the user how it goes; None is silent.
        stream: the tasks, where the caller has built them already.
        base_scores: another run on the same base and tasks whose row 0 is taken over.

    Raises:
        PerdureError: one of `perdure.errors`, with a remedy; what was saved stays.
    """
    from perdure import learners

    stream = stream or build_stream(recipe.stream, recipe.general, recipe.folder, recipe.seed)
    with run.lock():
        run.pin_stream(stream)
        learner = learners.build(recipe, run, stream, display or NullDisplay())
        if base_scores is not None:
            run.take_over(base_scores)
        learned = learner.restore()  # tasks learned before a crash; 0 for a new run
        learner.score(after=learned)
        for index in range(learned, len(stream)):
            learner.fit(index)
            learner.save(after=index + 1)
            learner.score(after=index + 1)
        learner.finish()
    return run.matrix()
