"""Learning one task, as the engine sees it: the model, the rows, the step being made.

What changes while a task is learned changes here, through this class's own methods: nothing
outside writes to it. Methods see a part of it (`perdure.engine.session`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from perdure.engine.drawing import draw, gradients_of
from perdure.engine.forward import capture, computing, head_is_cut, head_options
from perdure.engine.fused import fused_log_probs, fused_options, is_fused
from perdure.engine.packing import of_tokens_alone, packed_states
from perdure.engine.stopwatch import Stopwatch
from perdure.errors import TrainingError
from perdure.models.adapter_lists import active, adapter_of, holder, showing
from perdure.models.anatomy import check_layers
from perdure.models.chat import Encoder
from perdure.models.labels import Where
from perdure.models.random_state import forked_rng
from perdure.models.weights import adapter_off, fingerprint, is_sharded, swapped, trainable
from perdure.protocol.batch import (
    LABELS_AT,
    EncodedRows,
    ForwardOutput,
    batch_labels_at,
    model_inputs,
)
from perdure.protocol.batch import collate as padded
from perdure.protocol.context import Weights
from perdure.protocol.labels import Classes
from perdure.protocol.method import Method, Requires
from perdure.protocol.step import Phase, Step
from perdure.streams.task import GeneralText, Row, Task

if TYPE_CHECKING:
    from accelerate import Accelerator


class TaskRuntime:
    """One task's learning.

    Args:
        model: unwrapped. Under FSDP2 its parameters are DTensors.
        task_index: the task's number in the stream, from 0; `tasks_seen` came before it.
        general: general text to replay, and a disjoint part that only measures.
        batch_size: rows of the task in an optimizer step, over all processes.
        cache: a folder of this run for what is computed once.
        base: gives the untouched base model's trainable weights; None: not at hand.
        score: scores a task on rows, with the weights as they are.
        autocast: makes a context of the training's precision.
        stream_tokens: gives the tokens of the tasks' rows that are trained on in all.
        tell: shows how far something slow has come: "distilling", "general texts", 3, 64.
        packs: replayed rows run in one pass with the task's, where the model lets them.
        collate: makes a batch of encoded rows; None: pads rows of token ids.
        processes: this process's number, and how many there are.
        classes: of tasks with classes, which columns compete; None: labels are tokens.
    """

    def __init__(
        self,
        model: nn.Module,
        encoder: Encoder,
        task: Task,
        *,
        methods: Sequence[Method] = (),
        task_index: int = 0,
        tasks_seen: Sequence[Task] = (),
        general: GeneralText | None = None,
        seed: int = 0,
        batch_size: int = 8,
        cache: Path | None = None,
        base: Callable[[], Weights] | None = None,
        score: Callable[[Task, Sequence[Row]], float] | None = None,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        stream_tokens: Callable[[], int] | None = None,
        tell: Callable[[str, str, int, int], None] | None = None,
        packs: bool = False,
        collate: Callable[[Sequence[Mapping[str, Any]]], dict[str, Tensor]] | None = None,
        processes: tuple[int, int] = (0, 1),
        classes: Classes | None = None,
    ) -> None:
        self.model, self.encoder, self.task = model, encoder, task
        self.methods, self.task_index, self.tasks_seen = methods, task_index, tuple(tasks_seen)
        self.general = general or GeneralText()
        self.seed, self.batch_size = seed, batch_size
        self.cache = cache or Path("perdure-cache")
        self.autocast, self.packs, self.classes = autocast, packs, classes
        self.labels_at: Where = "next" if classes is None else "row"
        """Where the labels of a trainer's batches stand, if the trainer itself does not know."""
        self.rank, self.world = processes
        self.accumulation = 1
        self.step = Step()
        self.tokens: Tensor | int = 0
        """Real tokens that this process ran, to tell the speed."""
        self.accelerator: Accelerator | None = None
        self._score, self._base = score, base
        self._stream_tokens, self._tell = stream_tokens, tell
        self.logged: dict[str, float] = {}  # by `log`, until the trainer's next log line
        self._watched: dict[str, Tensor] = {}  # by `log`, of the pass that is being made
        self.collate = collate or partial(padded, pad_id=encoder.pad_id)
        self.reference_time = Stopwatch(self.device)
        """Of passes of frozen models, until the trainer takes it."""
        self._frozen: dict[str, Weights] = {}
        for method in methods:
            check_layers(model, method.requires.hidden)
        wanted = {m.requires.teacher for m in methods}
        self._shown = active(model)  # the adapters of the "previous" model
        if "previous" in wanted:
            self._frozen["previous"] = self._taking_part()
        if "base" in wanted and not self.has_adapter:
            self._frozen["base"] = self.snapshot() if base is None else base()
        self.begin_phase(Phase(), len(task.train))

    # --- the step being made

    def begin_phase(self, phase: Phase, rows: int) -> None:
        """Say that `phase` is trained next, on so many rows."""
        self.step = Step(phase=phase, per_epoch=max(1, -(-rows // self.batch_size)))

    def join(self, accelerator: Accelerator) -> None:
        """Take the processes from a trainer's accelerator."""
        self.accelerator = accelerator
        self.rank, self.world = accelerator.process_index, accelerator.num_processes

    def leave(self) -> None:
        """Let go of the trainer's accelerator, whose training has ended."""
        self.accelerator = None

    def begin_micro_batch(
        self, steps_done: int, accumulation: int, whole: int = 0, total: int = 0
    ) -> None:
        """Say that a micro-batch of the optimizer step after `steps_done` begins.

        Args: accumulation: this process's micro-batches of the step; whole: of one with all its
            rows, if this may be another; total: steps of the phase.
        """
        self.accumulation = accumulation
        most = (whole or accumulation) * self.world
        self.step = replace(
            self.step,
            index=steps_done,
            micro_batches=accumulation * self.world,
            whole=most,
            total=total,
        )

    def end_micro_batch(self, last: bool) -> None:
        """Say that it has ended; `last`: and with it the step."""
        number = 0 if last else self.step.micro_batch + 1
        self.step = replace(self.step, micro_batch=number)

    def begin_epoch(self) -> None:
        """Say that an epoch begins, and with it a step."""
        self.step = replace(self.step, micro_batch=0)

    def end_step(self, steps_done: int) -> None:
        """Say that the optimizer has made a step."""
        self.step = replace(self.step, index=steps_done)

    def count_tokens(self, tokens: Tensor | int) -> None:
        """Add tokens that were run through the model, to tell the speed."""
        self.tokens = self.tokens + tokens

    def restart_count(self) -> None:
        """Count tokens from 0 again."""
        self.tokens = 0

    # --- rows

    def draw(
        self,
        rows: Sequence[dict[str, Any]],
        size: int,
        *,
        first: int | None = None,
        replace: bool = False,
    ) -> EncodedRows | None:
        """See `Context.draw`."""
        return draw(self, rows, size, first=first, replace=replace)

    def stream_tokens(self) -> int:
        """Tokens of the tasks' rows that are trained on in all, as far as is known; else 0."""
        return 0 if self._stream_tokens is None else self._stream_tokens()

    def tell(self, verb: str, what: str, done: int, total: int) -> None:
        """Show the user how far something slow has come: "distilling", "general texts", 3, 64."""
        if self._tell is not None and self.rank == 0:
            self._tell(verb, what, done, total)

    @property
    def has_base(self) -> bool:
        """Whether `as_base` gives the base model although the model has been trained."""
        return self.has_adapter or self._base is not None

    def as_base(self) -> AbstractContextManager[None]:
        """The base model inside the block: the adapter switched off, or the base's weights put in.

        Without either, the current model is used; check `has_base` after the first task.
        """
        if self.has_adapter:
            return adapter_off(self.model)
        return nullcontext() if self._base is None else swapped(self.model, self._base())

    # --- passes

    def forward(
        self,
        rows: Sequence[dict[str, Any]] | Mapping[str, Any],
        *,
        train: bool | None = False,
        logits: bool = True,
        hidden: tuple[int, ...] = (),
    ) -> ForwardOutput:
        """Run `rows` through the model as it is; see `Context.forward`."""
        batch, own = (dict(rows), ()) if isinstance(rows, Mapping) else (self.batch_of(rows), rows)
        mode = nullcontext() if train is None else self._mode(train)
        with mode, nullcontext() if train is False else forked_rng(self.device):
            return self._run(batch, own, logits, hidden=hidden)

    def states_as_trained(
        self, rows: Sequence[dict[str, Any]], hidden: tuple[int, ...], beside: int = 8
    ) -> ForwardOutput:
        """States of `rows` in the layout of a training step, whose rounding they then have.

        Args: hidden: layers. beside: rows of the task, from its first, in the same pack.
        """
        found = None
        if self.packs and of_tokens_alone(self.collate(rows[:1])):
            some = self.task.train[: min(beside, self.batch_size)]
            task = [self.encoder.encode(row) for row in some]
            with self._mode(False):
                found = packed_states(
                    self.model, task, rows, hidden, self.encoder.pad_id, self.autocast
                )
        return self.forward(rows, logits=False, hidden=hidden) if found is None else found

    def frozen(
        self, which: str, logits: bool = True, log_probs: bool = False, dropout: bool = False
    ) -> Callable[[Mapping[str, Any]], ForwardOutput]:
        """A frozen model to compare with, see `Context.frozen`.

        With an adapter, "base" is the adapter switched off; else a copy of the trainable
        weights, kept because a method's `requires.teacher` asked for it.
        """

        def run(batch: Mapping[str, Any]) -> ForwardOutput:
            fused = log_probs and is_fused(batch)
            with self.reference_time.measured(), torch.no_grad(), self._mode(dropout):
                if which == "base" and self.has_adapter:
                    with adapter_off(self.model):
                        return self._run(dict(batch), (), logits, fused=fused)
                if which not in self._frozen:
                    raise ValueError(f"set requires = Requires(teacher={which!r}) on the method")
                if is_sharded(self.model):
                    raise TrainingError(
                        "a frozen copy of the model is not available under FSDP2",
                        "train an adapter (model.tuning: lora) with teacher base, or use DDP",
                    )
                with showing(self.model, self._shown if which == "previous" else ()):
                    return self._run(dict(batch), (), logits, self._frozen[which], fused=fused)

        return run

    def gradients_of(self, rows: Sequence[dict[str, Any]]) -> Weights:
        """Gradient of the mean loss of a label on `rows`, by name; `p.grad` is not touched."""
        return gradients_of(self, rows)

    def _run(
        self,
        batch: dict[str, Any],
        rows: Sequence[Mapping[str, Any]],
        logits: bool,
        weights: Weights | None = None,
        hidden: tuple[int, ...] = (),
        fused: bool = False,
    ) -> ForwardOutput:
        into = ForwardOutput(self.model, batch, rows=rows)
        inputs = model_inputs(batch)
        reads = [Requires(hidden, logits=logits), *(m.requires for m in self.methods)]
        if "position_ids" in inputs:
            inputs["use_cache"] = False  # transformers looks for packed rows only without one
        # The precision of training: rounding must not look like a change of the model.
        inputs |= fused_options(batch) if fused else head_options(self.model, batch, logits)
        with self.autocast(), capture(self.model, reads, into):
            if weights is None:
                out = self.model(**inputs)
            else:
                out = torch.func.functional_call(self.model, weights, kwargs=inputs)
        if fused:
            into.given = fused_log_probs(out, batch)
            return into
        into.exact = head_is_cut(self.model, batch)
        if logits:
            into.head, into.final = out.logits, True
        return into

    # --- weights

    def snapshot(self) -> Weights:
        """A copy of the trainable parameters by name, on their device."""
        return {n: p.detach().clone() for n, p in trainable(self.model).items()}

    def _taking_part(self) -> Weights:
        """A copy of what may change before the next task: what is trained, and active adapters,
        which a method may have trained again."""
        shown = active(self.model)
        return {
            n: p.detach().clone()
            for n, p in self.model.named_parameters()
            if p.requires_grad or adapter_of(self.model, n) in shown
        }

    def as_before(self, prefix: str) -> bool:
        """Whether the parameters below `prefix` are those of the "previous" model still."""
        params = dict(self.model.named_parameters())
        kept = self._frozen.get("previous", {})
        return all(torch.equal(w, params[n]) for n, w in kept.items() if n.startswith(prefix))

    # --- measuring

    def score(self, task: Task, split: str = "validation", max_rows: int | None = None) -> float:
        """Score `task` by its own metric on the rows of a split, with the weights as they are."""
        if self._score is None:
            raise ValueError("this trainer cannot score tasks: use Perdure's learner")
        rows: Sequence[Row] = getattr(task, split)
        return self._score(task, rows[:max_rows])

    def log(self, name: str, value: float | Tensor, group: str = "method") -> None:
        """Add a figure to the trainer's next log line, as `<group>/<name>`: log and trackers.

        A tensor is this pass's share of the step's mean (`ForwardOutput.token_mean`,
        `.row_mean`), as a loss would be; it stays on its device until then: no step waits.
        """
        if torch.is_tensor(value):
            self._watched[name] = value.detach()
        else:
            self.logged[f"{group}/{name}"] = value

    def take_logged(self) -> dict[str, float]:
        """Numbers that were logged since the last call."""
        found, self.logged = self.logged, {}
        return found

    def take_watched(self) -> dict[str, Tensor]:
        """Tensors that were logged since the last call."""
        found, self._watched = self._watched, {}
        return found

    def take_facts(self) -> dict[str, float]:
        """Both, by the names of the log, where there is no line any more to go with."""
        watched = {f"method/{n}": float(v) for n, v in self.take_watched().items()}
        return self.take_logged() | watched

    def fingerprint(self, *, frozen_only: bool = False) -> str:
        """A hash of the model's weights, equal on all processes; a collective call if sharded.

        Args: frozen_only: leave out what is trained, which with an adapter is the adapter.
        """
        return fingerprint(self.model, frozen_only)

    @property
    def computing(self) -> dict[str, str]:
        """What rounding depends on beside the weights: the type computed in, and the attention."""
        return computing(self.model, self.autocast)

    @property
    def has_adapter(self) -> bool:
        return holder(self.model) is self.model

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def batch_of(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Encoded rows as a batch on the model's device, which says where their labels stand."""
        batch: dict[str, Any] = dict(self.collate(rows))
        batch[LABELS_AT] = batch_labels_at(batch, rows)
        return {k: v.to(self.device) if torch.is_tensor(v) else v for k, v in batch.items()}

    @contextmanager
    def _mode(self, train: bool) -> Iterator[None]:
        """Set train or eval mode on all modules and restore each one's own flag."""
        flags = [(m, m.training) for m in self.model.modules()]
        self.model.train(train)
        try:
            yield
        finally:
            for module, flag in flags:
                module.training = flag
