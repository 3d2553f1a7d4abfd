"""What a method may see and ask for while a task is learned.

A method gets a `Context` in every hook. It can draw rows, run passes, look at parameters and log;
it cannot write gradients or weights: it returns them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from perdure.engine.forward import capture, head_options
from perdure.engine.general_texts import SHARE, given_rows, sampled_rows
from perdure.engine.packing import packed_states
from perdure.errors import TrainingError
from perdure.models.anatomy import check_layers, takes_positions
from perdure.models.chat import Encoder
from perdure.models.random_state import forked_rng, seed_of
from perdure.models.weights import adapter_off, fingerprint, full, is_sharded, swapped, trainable
from perdure.protocol.batch import EncodedRows, ForwardOutput, unlabelled
from perdure.protocol.batch import collate as padded
from perdure.protocol.method import Method, Phase, Requires
from perdure.streams.task import GeneralText, Row, Task

if TYPE_CHECKING:
    from accelerate import Accelerator

Weights = dict[str, Tensor]


class Context:
    """The state of learning one task, as methods see it.

    Attributes:
        model: the model, unwrapped. Under FSDP2 its parameters are DTensors.
        task: the task being learned; `task_index` counts from 0.
        tasks_seen: the tasks learned before it, in order.
        phase: the phase being trained.
        step: optimizer steps done in this phase.
        general: general text to replay, and a disjoint part that only measures.
        cache: a folder of this run for heavy results; a name in it should carry a hash of what
            the result depends on.
        autocast: makes a context of the training's precision.
        packs: the learner runs replayed rows in one pass with the task's, where the model lets it.
        collate: makes a batch of encoded rows.
        accumulation, micro: micro-batches in this optimizer step, and which one this is.
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
    ) -> None:
        self.model, self.encoder, self.task = model, encoder, task
        self.methods, self.task_index, self.tasks_seen = methods, task_index, tuple(tasks_seen)
        self.general = general or GeneralText()
        self.seed, self.batch_size = seed, batch_size
        self.cache = cache or Path("perdure-cache")
        self.phase, self.step = Phase(), 0
        self.train_rows = len(task.train)  # in the loop, after the methods' `train_data`
        self.accumulation, self.micro, self.rank, self.world = 1, 0, 0, 1
        self.tokens: Tensor | int = 0  # real tokens run through this process, to tell the speed
        self.accelerator: Accelerator | None = None
        self._score, self.autocast, self._base = score, autocast, base
        self._stream_tokens, self._tell, self.packs = stream_tokens, tell, packs
        self.logged: dict[str, float] = {}  # by `log`, until the trainer's next log line
        self.watched: dict[str, Tensor] = {}  # by `log`, of the pass that is being made
        self.collate = collate or partial(padded, pad_id=encoder.pad_id)
        self._frozen: dict[str, Weights] = {}
        for method in methods:
            check_layers(model, method.reads.hidden)
        wanted = {m.reads.teacher for m in methods}
        if "previous" in wanted:
            self._frozen["previous"] = self.snapshot()
        if "base" in wanted and not self.has_adapter:
            self._frozen["base"] = self.snapshot() if base is None else base()

    # --- rows

    def encode(self, row: Row) -> dict[str, Any]:
        """Encode one row of a task."""
        return self.encoder.encode(row)

    def encode_text(self, text: str, max_tokens: int | None = None) -> dict[str, Any]:
        """Encode plain text, every token a label."""
        return self.encoder.encode_text(text, max_tokens)

    def rows(self, encoded: Sequence[dict[str, Any]]) -> EncodedRows:
        return EncodedRows(tuple(encoded))

    def general_rows(
        self,
        count: int,
        max_tokens: int,
        *,
        special: bool = False,
        kept: str = "",
        share: float = SHARE,
    ) -> tuple[list[dict[str, Any]], str]:
        """General texts to train on, encoded: those that were given, else the base model's own.

        Texts of the base model are sampled once, before the first task, and kept in `cache`.

        Args:
            count: the most texts; max_tokens: of each.
            special: put the tokenizer's special tokens around given texts.
            kept: what an earlier call returned, which then reads the same sampled texts.
            share: the most sampled tokens, as a share of the training's.
        Returns: the rows, each of two tokens or more; and the name of the file of sampled texts,
            "" where texts were given.

        Raises:
            RunError: that file is gone, and the base model cannot be asked again.
        """
        if self.general.replay:
            return given_rows(self, count, max_tokens, special), ""
        return sampled_rows(self, count, max_tokens, kept, share)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps in which the rows that are trained on are seen once."""
        return max(1, -(-self.train_rows // self.batch_size))

    def draw(self, rows: EncodedRows, size: int) -> EncodedRows | None:
        """This micro-batch's slice of the `size` rows drawn for this optimizer step.

        The draw is a function of seed, task, phase and step alone: equal on all processes and
        after a resume. Every row is used before any repeats.
        """
        return self.draw_between(rows, self.step * size, (self.step + 1) * size)

    def draw_between(self, rows: EncodedRows, first: int, last: int) -> EncodedRows | None:
        """`draw` where steps have unlike sizes: numbers `first` to `last` of an endless draw."""
        size = last - first
        if not len(rows) or size < 1:
            return None
        orders: dict[int, list[int]] = {}
        drawn = []
        for position in range(first, last):
            cycle, place = divmod(position, len(rows))
            if cycle not in orders:
                orders[cycle] = self._order(cycle, len(rows))
            drawn.append(rows[orders[cycle][place]])
        shares = self.accumulation * self.world
        totals = EncodedRows(drawn).totals_of_all(shares)
        # Ranks of one micro-batch come first, so that they run their extra passes together.
        slot = self.micro * self.world + self.rank
        mine = [row for j, row in enumerate(drawn) if j % shares == slot]
        if not mine:
            if self.micro * self.world >= size:
                return None  # nobody has rows in this micro-batch
            mine = [{**unlabelled(drawn[0]), "_filler": True}]
        return EncodedRows(tuple(mine), totals)

    def _order(self, cycle: int, n: int) -> list[int]:
        generator = torch.Generator().manual_seed(
            seed_of(self.seed, self.task_index, self.phase.name, cycle)
        )
        order: list[int] = torch.randperm(n, generator=generator).tolist()
        return order

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

        Where neither is at hand it is the model as it is; ask `has_base` after the first task.
        """
        if self.has_adapter:
            return adapter_off(self.model)
        return nullcontext() if self._base is None else swapped(self.model, self._base())

    # --- passes

    def forward(
        self,
        rows: Sequence[dict[str, Any]],
        *,
        train: bool = False,
        logits: bool = True,
        hidden: tuple[int, ...] = (),
    ) -> ForwardOutput:
        """Run `rows` through the model as it is; autograd as around the call.

        Everything any method reads is captured, the states of layers in `hidden`, and logits
        unless `logits` is False.
        """
        batch = self._to_device(self.collate(rows))
        with self._mode(train), forked_rng(self.device) if train else nullcontext():
            return self._run(batch, rows, logits, hidden=hidden)

    def states_as_trained(
        self, rows: Sequence[dict[str, Any]], hidden: tuple[int, ...], beside: int = 8
    ) -> ForwardOutput:
        """States of `rows` in the layout of a training step, whose rounding they then have.

        Args: hidden: layers. beside: rows of the task, from its first, in the same pack.
        """
        found = None
        if self.packs:
            task = [self.encode(row) for row in self.task.train[: min(beside, self.batch_size)]]
            with self._mode(False):
                found = packed_states(self, task, rows, hidden)
        return self.forward(rows, logits=False, hidden=hidden) if found is None else found

    def frozen(
        self, which: str, logits: bool = True
    ) -> Callable[[Mapping[str, Any]], ForwardOutput]:
        """A frozen model to compare with: "base", or "previous" (as the last task left it).

        With an adapter, "base" is the adapter switched off; else a copy of the trainable
        weights, kept because a method's `reads.teacher` asked for it.
        """

        def run(batch: Mapping[str, Any]) -> ForwardOutput:
            with torch.no_grad(), self._mode(False):
                if which == "base" and self.has_adapter:
                    with adapter_off(self.model):
                        return self._run(dict(batch), (), logits)
                if which not in self._frozen:
                    raise ValueError(f"set reads = Reads(teacher={which!r}) on the method")
                if is_sharded(self.model):
                    raise TrainingError(
                        "a frozen copy of the model is not available under FSDP2",
                        "train an adapter (model.tuning: lora) with teacher base, or use DDP",
                    )
                return self._run(dict(batch), (), logits, self._frozen[which])

        return run

    def gradients_of(self, rows: Sequence[dict[str, Any]]) -> Weights:
        """Gradient of the mean token loss on `rows`, by name; `p.grad` is not touched."""
        names, params = zip(*trainable(self.model).items(), strict=True)
        if is_sharded(self.model):
            return self._gradients_by_backward(rows, dict(zip(names, params, strict=True)))
        with torch.enable_grad():
            loss = self.forward(rows).nll.mean()
            found = torch.autograd.grad(loss, params, allow_unused=True)
        return {n: g for n, g in zip(names, found, strict=True) if g is not None}

    def _gradients_by_backward(self, rows: Sequence[dict[str, Any]], params: Weights) -> Weights:
        """FSDP2 reduces gradients in its backward hooks, so `autograd.grad` is not enough."""
        kept = {n: p.grad for n, p in params.items()}
        for p in params.values():
            p.grad = None
        with torch.enable_grad():
            self.forward(rows).nll.mean().backward()
        found = {n: p.grad for n, p in params.items() if p.grad is not None}
        for n, p in params.items():
            p.grad = kept[n]
        return found

    def _run(
        self,
        batch: dict[str, Any],
        rows: Sequence[Mapping[str, Any]],
        logits: bool,
        weights: Weights | None = None,
        hidden: tuple[int, ...] = (),
    ) -> ForwardOutput:
        into = ForwardOutput(self.model, batch, rows=rows)
        inputs = {
            k: v for k, v in batch.items() if k in ("input_ids", "attention_mask", "position_ids")
        }
        reads = [Requires(hidden, logits=logits), *(m.reads for m in self.methods)]
        # The precision of training: rounding must not look like a change of the model.
        inputs |= head_options(self.model, batch, logits)
        with self.autocast(), capture(self.model, reads, into):
            if weights is None:
                out = self.model(**inputs)
            else:
                out = torch.func.functional_call(self.model, weights, kwargs=inputs)
        into.exact = takes_positions(self.model)
        if logits:
            into.head, into.final = out.logits, True
        return into

    # --- weights

    def named_parameters(self) -> dict[str, nn.Parameter]:
        """The trainable parameters by name."""
        return trainable(self.model)

    def snapshot(self) -> Weights:
        """A copy of the trainable parameters by name, on their device."""
        return {n: p.detach().clone() for n, p in trainable(self.model).items()}

    def full(self, tensor: Tensor) -> Tensor:
        """The whole of a tensor that may be sharded; call it on all processes."""
        return full(tensor)

    @contextmanager
    def put(self, weights: Mapping[str, Tensor]) -> Iterator[None]:
        """Swap `weights` in, and the old ones back at the end."""
        with swapped(self.model, weights):
            yield

    # --- measuring

    def score(self, task: Task, split: str = "validation", max_rows: int | None = None) -> float:
        """Score `task` by its own metric on the rows of a split, with the weights as they are."""
        if self._score is None:
            raise ValueError("this trainer cannot score tasks: use Perdure's learner")
        rows: Sequence[Row] = getattr(task, split)
        return self._score(task, list(rows)[:max_rows])

    def log(self, name: str, value: float | Tensor) -> None:
        """Add a figure to the trainer's next log line, as `method/<name>`: log and trackers.

        A tensor is this pass's share of the step's mean (`Pass.token_mean`, `.row_mean`), as a
        loss would be; it stays on its device until then, so that no step waits for it.
        """
        if torch.is_tensor(value):
            self.watched[name] = value.detach()
        else:
            self.logged[f"method/{name}"] = value

    def take_logged(self) -> dict[str, float]:
        """Numbers that were logged since the last call."""
        found, self.logged = self.logged, {}
        return found

    def fingerprint(self, *, frozen_only: bool = False) -> str:
        """A hash of the model's weights, equal on all processes; a collective call if sharded.

        Args: frozen_only: leave out what is trained, which with an adapter is the adapter.
        """
        return fingerprint(self.model, frozen_only)

    @property
    def computing(self) -> dict[str, str]:
        """What rounding depends on beside the weights: the type computed in, and the attention."""
        with self.autocast():
            kind = self.device.type
            mixed = torch.is_autocast_enabled(kind)
            dtype = torch.get_autocast_dtype(kind) if mixed else next(self.model.parameters()).dtype
        model: Any = self.model
        return {"dtype": str(dtype), "attention": str(model.config._attn_implementation)}

    @property
    def has_adapter(self) -> bool:
        return hasattr(self.model, "peft_config") and hasattr(self.model, "disable_adapter")

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    def _to_device(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {k: v.to(self.device) for k, v in batch.items()}

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
