"""The whole product in one function: learn task after task, and score all of them each time.

    base model ──► score ──► for each task: fit, save, score ──► score matrix

Row 0 of the matrix is the untouched base model. A run that was killed goes on where its newest
sealed checkpoint stands; what is scored already is not scored again.
"""

from __future__ import annotations

from contextlib import nullcontext

from perdure import peers, stopping
from perdure.consent import trusting
from perdure.errors import RunError, resume_command
from perdure.failures import explained
from perdure.models.memory import left_uncollected
from perdure.prepare import Prepared, prepare, run_stream
from perdure.processes import barrier, rank
from perdure.recipe.schema import Recipe
from perdure.reports import write_report
from perdure.reports.output import first_process
from perdure.reports.silence import silent
from perdure.reports.terminal import Display, NullDisplay
from perdure.run import Run
from perdure.run.damage import doubts, go_back, verify
from perdure.run.kept import keep
from perdure.run.pins import pin
from perdure.run.recorder import Recorder
from perdure.scoring import ScoreMatrix
from perdure.streams import TaskStream


def learn(
    recipe: Recipe,
    run: Run,
    *,
    display: Display | NullDisplay | None = None,
    stream: TaskStream | None = None,
    base_scores: Run | None = None,
    prepared: Prepared | None = None,
    accept_changes: bool = False,
) -> ScoreMatrix:
    """Learn the tasks of `recipe` in order; everything goes to `run`, report.html at the end.

    Args:
        display: tells the user how it goes; None is silent: no bar, no line, no warning.
        stream: the tasks, where the caller has built them already.
        base_scores: another run on the same base and tasks whose row 0 is taken over.
        prepared: what `perdure.prepare.prepare` made of the recipe, where the caller did that.
        accept_changes: go on although recipe, rows or base model have changed since the run began.

    Raises:
        PerdureError: one of `perdure.errors`, with a remedy; what was saved stays.
        KeyboardInterrupt: Ctrl-C; `perdure.stopping.Stopped`, which is one, where SIGTERM or
            SIGUSR1 came and the caller has no handler of its own: the task was saved first.
    """
    with silent() if display is None else nullcontext():
        try:
            with peers.watched(f"go on with: {resume_command(run.path)}"):
                ready = prepared or prepare(
                    recipe, stream=stream or run_stream(run), today=run.today
                )
                _learn(recipe, run, display or NullDisplay(), base_scores, ready, accept_changes)
                if first_process():
                    write_report([run], run.path / "report.html")
        except KeyboardInterrupt as stop:
            stop.args = stop.args or (f"resume with: {resume_command(run.path)}",)
            raise
        except Exception as error:
            known = explained(error, run.path)
            if isinstance(known, RunError) and not any("perdure " in s for s in known.remedy):
                more = (*known.remedy, f"then go on with: {resume_command(run.path)}")
                raise RunError(known.what, more) from error
            if known is None or known is error:
                raise
            raise known from error
    return run.matrix()


def _learn(
    recipe: Recipe,
    run: Run,
    display: Display | NullDisplay,
    base_scores: Run | None,
    ready: Prepared,
    accept_changes: bool,
) -> None:
    from perdure import learners
    from perdure.learners.listener import Folders
    from perdure.learners.room import lacks, too_large

    record = Recorder(run, display)
    with (
        trusting(recipe.trust_remote_code),
        run.lock(),
        left_uncollected(),
        stopping.heard(),
        record,
    ):
        for told in go_back(run) if rank() == 0 else ():
            record.warn(told)
        barrier()
        verify(run, weights=False)  # all of the newest was read by now
        for lack in lacks(recipe, ready.stream, ready.encoder, ready.model):
            raise lack
        learned, folder = run.last_checkpoint()  # tasks learned before a crash; 0 for a new run
        for told in too_large(recipe, ready.stream, ready.encoder, ready.model, run.path, learned):
            record.warn(told)
        pin(run, recipe, ready.stream, accept_changes)
        for told in doubts(run):
            record.warn(told)
        keep(run, ready.stream)
        # Measured once: a resumed run must compute as it began.
        precision = run.decide("precision", lambda: ready.precision)
        run.decide("template_date", lambda: ready.template_date)
        learner = learners.build(
            recipe,
            ready.stream,
            methods=ready.take_methods(recipe),
            encoder=ready.encoder,
            batch_split=(ready.micro_batch, ready.accumulation),
            lm_eval_tasks=ready.lm_eval_tasks,
            precision=precision,
            folders=Folders.below(run.path),
            listener=record,
        )
        if base_scores is not None:
            run.take_over(base_scores)
        # The base model's scores; also on tasks that an extension adds to learned ones.
        record.scores(learner.scores(0, record.scored(0)))
        if folder is not None:
            learner.restore(folder, learned, record.steps_of(learned))
            record.scores(learner.scores(learned, record.scored(learned)))
        for after, task in enumerate(ready.stream.tasks[learned:], learned + 1):
            # A signal to stop waits: training saves at its next step, and all else is soon over.
            with stopping.held():
                fitted = learner.fit(after - 1)
                record.facts(after, task.name, fitted.facts)
                with record.sealing(after) as folder:
                    learner.save(folder)
            record.scores(learner.scores(after, record.scored(after)))
        learner.finish()
        record.finish()
