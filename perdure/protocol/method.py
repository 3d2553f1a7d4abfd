"""The method protocol: how not to forget, as a handful of hooks around a learner's step.

A method is one file in this folder: a docstring that states paper and loss, a `Config`, the loss
as a pure function, and one subclass of `Method`. It overrides the hooks it needs and nothing else.
Hooks *return* values (rows, phases, named losses, gradients, weights); only the runner
(`perdure.engine`) writes gradients and swaps weights. A method never knows which learner, task
kind or model family is at work.

    hook         when (on all ranks)                              returns
    begin_task   before the trainer is built; again on resume     nothing; deterministic
    phases       then                                             training phases, one trainer each
    train_data   before each phase                                the rows to train on
    replay       each micro-batch, before the main pass           extra rows (`ctx.draw`)
    loss         after the main and the extra pass                named means, summed and logged
    gradients    once an optimizer step, not yet clipped          (name, new gradient or None) pairs
    after_step   once an optimizer step that was not skipped      nothing; changes own state only
    end_task     after the last phase, before scores and saving   weights to go on with
    serving      at every scoring and final save                  weights, swapped in and back
    router       at every scoring and final save                  what chooses a request's adapter

Losses add. `gradients` chain in list order. The extra rows of all methods run in one forward
pass. Two methods that both replace the same thing (`phases`, `serving`, `router`, or a projected
gradient) are refused by name unless the recipe says `order_matters: true`; two that have adapters
of their own are in any case.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from pydantic import ConfigDict, model_validator

from perdure.errors import UsageError
from perdure.protocol.adapters import AdapterCount
from perdure.protocol.step import Phase
from perdure.recipe.mistakes import Mistake
from perdure.recipe.section import NumbersAreNumbers, mistakes_error

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor
    from torch.nn import Parameter

    from perdure.models.inspect import ModelFacts
    from perdure.models.served import Router
    from perdure.models.task_adapters import TaskAdapters
    from perdure.protocol.batch import EncodedRows, ForwardOutput
    from perdure.protocol.context import Context
    from perdure.streams.task import Task, TaskStream


class MethodConfig(NumbersAreNumbers):
    """Base of each method's `Config`: typed, frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def mistakes(self) -> Iterator[Mistake]:
        """Yield what is wrong between options, each at its own key."""
        yield from ()

    @model_validator(mode="after")
    def _consistent(self) -> MethodConfig:
        if found := list(self.mistakes()):
            raise mistakes_error(found)
        return self


class Reads(NamedTuple):
    """Rows that a method runs beside the task's own, as far as a plan can know.

    Attributes:
        learned: in each step with a gradient; seen: in each step without.
        after: once, when the task has been learned; where that depends on how it went, the most.
        known: in each step without a gradient, of a scenario in which tasks are known.
    """

    learned: int = 0
    seen: int = 0
    after: int = 0
    known: int = 0


@dataclass(frozen=True)
class Requires:
    """What a method looks at. The learner computes nothing else for it."""

    hidden: tuple[int, ...] = ()
    """Decoder layers whose output is kept, by index; -1 is the output of the final norm."""
    logits: bool = False
    """Logits at the positions that predict a label (`ForwardOutput.logits`)."""
    attentions: bool = False
    """Attention maps; the learner then runs eager attention."""
    teacher: str | None = None
    """A frozen model for `ctx.frozen`: "base" or "previous" (as the last task left it)."""
    texts: str = ""
    """What is learned of general texts: "labels" (their tokens are predicted), or "states" alone,
    which a model without a language-model head has too. "": it takes none."""
    rows: bool = False
    """Rows of `ctx.task.train` are run again, each by itself: kept, replayed or measured.
    `perdure.attach` then refuses a trainer of whose rows that cannot be."""
    language_head: str = ""
    """A phase has the objective "lm", so that a classifier's decoder keeps the head that writes
    text: "decoder" (where the body is one) or "must" (other bodies are refused)."""
    adapters: TaskAdapters | None = None
    """Settings of an adapter that each task has for itself: the learner of classes adds it before
    the task, has no older one learn, saves them all, and each head reads its own one's features."""
    cross_entropy: str = ""
    """The task's own loss is taken for the mean cross-entropy of its labels, which a term corrects
    or measures: refused where a task is learned by another loss, as by reinforcement. The text says
    what to do instead."""
    same_weights: bool = False
    """What is kept of a task stands beside its weights by their names, and acts on them in later
    tasks: refused beside a method of which each task trains an adapter of its own."""
    step_gradients: bool = False
    """Weights or `p.grad` are read in `after_step`: refused under DeepSpeed, which keeps weights
    elsewhere and has freed gradients by then, and with fp16, which scales them."""


class Method:
    """How not to forget. Subclass it, override hooks, keep what must survive in `saved`."""

    Config: type[MethodConfig] = MethodConfig
    requires: Requires = Requires()
    saved: tuple[str, ...] = ()
    """Names of attributes in every checkpoint: tensors, JSON values, and nested dicts and lists
    of both. They are restored before training goes on."""
    needs_validation: bool = False
    """True if the method measures on each task's validation rows; told before weights
    are loaded."""
    needs_old_rows: bool = False
    keeps_rows: bool = False
    """It replays rows of earlier tasks that it kept."""
    """True if the method trains on the rows of earlier tasks themselves: a run that was extended
    then reads the old files again."""
    classes_only: bool = False
    """True if the method is for tasks with classes: it works on their heads."""
    grows: bool = False
    """True if `begin_task` adds modules that are no adapters: a resumed run then calls it for each
    task learned before, in order, so that their weights find their place."""
    adapters: bool = False
    """True if it adds adapters or switches them (`ctx.adapters`): the model must be tuned with
    LoRA, and `begin_task` comes before that of methods that do not, so that these see the model as
    it is trained."""
    new_adapters: bool = False
    """True if those are new ones, so that no later task trains the weights of an earlier one."""
    rank_parts: int = 1
    """Into how many equal parts it splits an adapter's rank, which `model.lora.r` must allow."""
    halves: bool = False
    """True if, once rows of earlier tasks are kept, half of each batch is left to `replay`'s rows:
    the learner then takes half as many of the task's own, in twice as many steps."""
    copies: int = 0
    """fp32 copies of the trained weights that it keeps while a task is learned, for a plan; that of
    `requires.teacher` is counted without it."""
    reference_kl: bool = False
    """True if it adds the KL to a reference model that trainers of reinforcement have too, as
    `GRPOConfig.beta`: both at once are refused."""
    projects: bool = False
    """True if `gradients` replaces the gradient's direction, so that two such methods clash."""
    drops_when_probed: bool = False
    """Probes of a classifier read features with the body's dropout on, as released code does."""
    says: str = ""
    """A line for the run's log and its report, of what it computes otherwise than one expects."""
    released: ClassVar[Mapping[str, Any]] = {}
    """What its option `official` sets: the options with which it computes as released code does."""
    example_options: ClassVar[Mapping[str, Any]] = {}
    """Options under which it acts on small tasks: what `perdure.testing.check_method` runs."""
    noop_options: ClassVar[Mapping[str, Any] | None] = None
    """Options under which it changes nothing: training is then plain fine-tuning. None: under
    none."""

    home: Path | None = None
    """The folder of what this object computed once; `perdure.attach` keeps it from task to task."""

    classes: tuple[int, ...] = ()
    """Numbers of the classes of all tasks that it was on so far; `perdure.attach` keeps them."""

    def __init__(self, config: Any) -> None:
        if self.released and config.official:
            config = config.model_copy(update=dict(self.released))
            told = "official: it computes as the code released with SEQ* does"
            self.says = f"{name_of(self)}: {told}"
        self.config = config

    def check(self, classes: Sequence[str]) -> None:
        """Raise `UsageError` where it cannot learn tasks of these classes; asked before weights are
        loaded. `classes`: of all tasks, in order; (): the tasks have none."""
        if self.classes_only and not classes:
            raise UsageError(
                f"method: {name_of(self)} works on the heads of classes, and these tasks have none",
                "it is for tasks with classes: format: classes",
            )

    def told_of(self, stream: TaskStream) -> Iterable[str]:
        """Return lines for `perdure run --check`: what it would do with these tasks, as far as
        their rows tell; nothing is kept of it."""
        return ()

    def adapter_counts(self, stream: TaskStream, learned: int = 0) -> Mapping[str, AdapterCount]:
        """Return how many adapters there are at each task that is still to be learned, by its name:
        what `perdure run --check` counts. As it is: the recipe's one.

        Args: learned: so many of the stream's tasks were learned before, in a run that is extended.
        """
        to_learn = (task for task in stream.tasks[learned:] if task.learn != "none")
        return {task.name: AdapterCount(1, 1, 0) for task in to_learn}

    def mistakes_on(self, facts: ModelFacts) -> Iterator[Mistake]:
        """Yield options that do not go with the base model, each at its own key; asked before
        weights are loaded. As it is: layers that `requires.hidden` names and the model has not.

        Args: facts: of the base model, whose number of layers is known.
        """
        if self.requires.hidden:
            from perdure.models.anatomy import layer_mistakes  # it imports torch

            yield from layer_mistakes(self.requires.hidden, facts.layers)

    def begin_task(self, ctx: Context) -> None:
        """Prepare for `ctx.task`: add modules, freeze, cache states (`ctx.base_states`)."""

    def phases(self, ctx: Context) -> Sequence[Phase]:
        """Return the trainings that make up this task, in order."""
        return (Phase(),)

    def epochs(self, task: int, epochs: float, decoder: bool) -> tuple[float, float | None]:
        """Epochs in which a classifier's body learns in task number `task`, and in which heads
        alone do, after it (None: no phase is theirs): what a plan counts without any weight.

        Args: epochs: the recipe's; decoder: the body is one.
        """
        return epochs, None

    def reads(self, tasks: Sequence[Task], batch_size: int) -> Reads:
        """What it reads beside a task's own rows while the body learns, for a plan.

        Args: tasks: those learned so far, of which the last is at hand; batch_size: its rows in a
            step.
        """
        return Reads()

    def train_data(self, ctx: Context, data: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the rows to train on in this phase; `data` is the task's training split."""
        return data

    def replay(self, ctx: Context) -> EncodedRows | None:
        """Return this micro-batch's slice of the extra rows of this step (`ctx.draw`)."""
        return None

    def loss(
        self, ctx: Context, main: ForwardOutput, extra: ForwardOutput | None
    ) -> Mapping[str, Tensor]:
        """Return named scalars to add to the loss (`ForwardOutput.token_mean`, `.row_mean`)."""
        return {}

    def penalties(self, ctx: Context, main: ForwardOutput) -> tuple[float, Tensor] | None:
        """Return a weight and what is taken off the reward of each label token, (tokens,), times
        it; None: nothing is.

        Asked once for completions that were just sampled, where advantages are by token
        (`rl.algorithm: reinforce++`), and refused where rewards are otherwise learned from.

        Args: main: the sampling policy's pass over them, without gradient: `log_probs`, `batch`.
        """
        return None

    def gradients(
        self, ctx: Context, params: Mapping[str, Parameter]
    ) -> Iterable[tuple[str, Tensor | None]]:
        """Yield new gradients by parameter name; None leaves the parameter out of this step."""
        return ()

    def after_step(self, ctx: Context) -> None:
        """Look at parameters or gradients after a step; change own attributes only."""

    def end_task(self, ctx: Context) -> Mapping[str, Tensor] | None:
        """Return full weights, by parameter name, to go on with; None keeps the trained ones."""
        return None

    def serving(self, ctx: Context) -> Mapping[str, Tensor] | None:
        """Return full weights, by parameter name, to score and ship with."""
        return None

    def router(self, ctx: Context) -> Router | None:
        """Return what chooses an adapter for each request; None: the active ones answer.

        It is a value that is written beside the adapters and read back without the method
        (`perdure.models.served`), and is shown prompts alone: no answer, no task.
        """
        return None

    def uses(self, hook: str) -> bool:
        """Whether a hook does something with these options; of one that does not no step pays."""
        return getattr(type(self), hook) is not getattr(Method, hook)

    def state_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.saved}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)


def refuse_clashes(methods: Sequence[Method], ordered: bool = False) -> None:
    """Raise `UsageError` where two methods replace the same thing, or one has nothing to act on.

    `ordered` is the recipe's word that their order is meant: the first one listed then decides. Of
    two that each have adapters of their own no order would do: each says which are active.
    """
    own = [m for m in methods if m.adapters or m.requires.adapters is not None]
    _refuse(own, "both have adapters of their own, and each says which are trained", "drop one")
    held = [m for m in methods if m.requires.same_weights]
    new = [m for m in methods if m.new_adapters or m.requires.adapters is not None]
    if held and new:
        what = f"{name_of(held[0])} holds weights that earlier tasks learned, and with "
        why = f"{name_of(new[0])} no later task trains them again"
        raise UsageError(f"method: {what}{why}", f"drop {name_of(held[0])}: it would do nothing")
    every = [m for m in methods if m.needs_old_rows]
    again = [m for m in methods if m.keeps_rows]
    if every and again:
        what = f"{name_of(every[0])} trains on all rows of earlier tasks, and {name_of(again[0])} "
        raise UsageError(f"method: {what}keeps some of them to replay", "drop one")
    if ordered:
        return
    for hook in ("phases", "serving", "router"):
        both = [m for m in methods if m.uses(hook)]
        _refuse(both, f"both set the {hook} of a task")
    _refuse([m for m in methods if m.projects], "both replace the gradient's direction")


def _refuse(
    both: Sequence[Method], why: str, remedy: str = "drop one, or set order_matters: true"
) -> None:
    if len(both) > 1:
        names = " and ".join(name_of(m) for m in both[:2])
        raise UsageError(f"method: {names} {why}", remedy)


def name_of(method: Method) -> str:
    """A method's name as messages call it: that of its file."""
    return type(method).__module__.rsplit(".", 1)[-1]
