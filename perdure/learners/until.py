"""A task that ends once what the model samples is good enough, such as a warm-up for rewards.

Reinforcement learns from what a policy samples. It starts where most samples have the wanted form
and some are better than others, and that shows only in samples: a loss or a greedy answer does not
tell it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback

from perdure.errors import task_named
from perdure.learners.rollouts import Judge
from perdure.models.anatomy import unwrapped
from perdure.models.generate import sample_texts, stop_ids
from perdure.models.random_state import seed_of
from perdure.processes import broadcast
from perdure.recipe.data import short_name
from perdure.rewards import build, with_format

if TYPE_CHECKING:
    from torch import nn

    from perdure.engine.careful import CarefulTrainer
    from perdure.models.chat import Encoder
    from perdure.recipe.until import UntilConfig
    from perdure.streams.task import Row, Task


def sampled(
    model: nn.Module,
    encoder: Encoder,
    task: Task,
    rows: Sequence[Row],
    names: Sequence[str],
    seed: int,
) -> dict[str, float]:
    """The mean of each reward over one answer to each row, sampled at temperature 1.

    Args: names: rewards, by name; seed: with it the same answers are sampled.

    Returns: by the reward's name as it is given, from 0 to 1.
    """  # fmt: skip
    prompts = [encoder.prompt_ids(row) for row in rows]
    written = sample_texts(
        model,
        encoder,
        texts=len(prompts),
        tokens=task.max_new_tokens,
        seed=seed,
        starts=prompts,
    )
    rewards = build(with_format(names))
    judge = Judge(rewards, encoder, task, rows, set(stop_ids(unwrapped(model), encoder)))
    samples = judge.samples(range(len(rows)), [one.ids[one.given :] for one in written])
    found = judge.rewards(samples).means()
    return {name: found.get(short_name(name), 0.0) for name in names}


class Until(TrainerCallback):
    """Ends the training of a task as soon as its sampled answers reach what its `until` says.

    Args:
        until: the task's; rows: those that are answered.
        note, warn: are told, in one line, what was seen, and what the user should know.
    """

    def __init__(
        self,
        trainer: CarefulTrainer,
        encoder: Encoder,
        task: Task,
        until: UntilConfig,
        *,
        seed: int,
        note: Callable[[str], None],
        warn: Callable[[str], None],
    ) -> None:
        self.trainer, self.encoder, self.task, self.until = trainer, encoder, task, until
        self.seed, self.note, self.warn = seed, note, warn
        self.rows = list(task.validation or task.train)[: until.rows]
        self.ended = False

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step % self.until.every:
            return
        session = self.trainer.session
        with session.autocast(), self.trainer.sampling():
            found = sampled(
                session.model,
                self.encoder,
                self.task,
                self.rows,
                list(self.until.reach),
                seed_of(self.seed, "until", state.global_step),
            )
        # On GPUs the processes may sample unlike texts, and all must end at the same step.
        found = json.loads(broadcast(json.dumps(found)))
        for name, value in found.items():
            session.log(short_name(name), value, group="until")
        told = ", ".join(f"{short_name(name)} {value:.3g}" for name, value in found.items())
        self.note(f"{task_named(self.task.name)}: sampled at step {state.global_step}: {told}")
        bounds = {name: self.until.bounds(name) for name in found}
        if any(found[name] < low for name, (low, _) in bounds.items()):
            return
        self.ended = True
        over = [n for n, (_, high) in bounds.items() if high is not None and found[n] > high]
        if over:
            name, most = over[0], bounds[over[0]][1]
            self.warn(
                f"{task_named(self.task.name)}: {short_name(name)} is {found[name]:.3g} at the "
                f"first look that reaches all, above {most:g}: look more often (until.every), or "
                "little is left to be learned from rewards"
            )
        control.should_training_stop = True
        control.should_log = True  # of the steps since the last line
        # Resumed from a checkpoint of this very step, training would go on past it.
        control.should_save = False

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self.ended or state.global_step < state.max_steps:
            return
        if state.max_steps < self.until.every:
            self.warn(
                f"{task_named(self.task.name)}: until was never looked at: its steps were "
                f"{state.max_steps}, and until.every is {self.until.every}: lower it, or train for "
                "more steps"
            )
        else:
            self.warn(
                f"{task_named(self.task.name)}: its steps are over, and until was not reached: "
                "give it more steps, or ask for less"
            )
