"""A micro-batch's task rows and extra rows in one forward pass, with little of it padding.

Rows of unlike length would waste a padded batch: a general text has hundreds of tokens, a labelled
row thirty. Here rows lie one behind another, with position ids that begin anew with each row.
What keeps them apart depends on the model's attention:

    rows    `sdpa`: they lie in one line, and `perdure.engine.rowwise_attention` attends row by row
    line    flash attention: in one line, and it is told where each row ends
    mask    any other: in a few lines, with the mask that `transformers` makes from position ids

`packer_of` finds out which of them this model does.

All positions are worked out on the host from the rows' lengths: nothing waits for the device.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any, Literal

import torch
from torch import Tensor, nn

from perdure.engine.forward import capture, computing
from perdure.engine.rowwise_attention import (
    MULTIPLE_ON_GPU,
    ROWS_APART,
    attends_by_rows,
    row_places,
)
from perdure.models.anatomy import takes_positions, unwrapped, window
from perdure.models.chat import IGNORE
from perdure.processes import broadcast
from perdure.protocol.batch import ForwardOutput, StepCounts, collate, model_inputs, row_targets
from perdure.protocol.method import Requires

EncodedRow = Mapping[str, Any]
Autocast = Callable[[], AbstractContextManager[Any]]
By = Literal["rows", "line", "mask"]
"""What keeps rows apart; see the module."""


def ways(attention: str, bf16_on_cpu: bool = False) -> tuple[By, ...]:
    """What may keep rows apart in a model of this attention, the best first.

    In bf16 on a CPU attention over a few long rows is faster than over many short ones.
    """
    if attention == "sdpa":
        return ("mask", "rows") if bf16_on_cpu else ("rows", "mask")
    return ("line",) if "flash" in attention else ("mask",)


def lines(lengths: Sequence[int], count: int) -> list[list[int]]:
    """Lay rows into `count` lines of about equal length: longest first, each where most room is.

    Returns: the rows' numbers by line.
    """
    found: list[list[int]] = [[] for _ in range(count)]
    taken = [(0, k) for k in range(count)]  # a heap: the shortest line first
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        tokens, k = heapq.heappop(taken)
        found[k].append(i)
        heapq.heappush(taken, (tokens + lengths[i], k))
    return found


def best_lines(lengths: Sequence[int], hidden: int) -> list[list[int]]:
    """The lines that cost least: padding, against attention over longer lines.

    A layer does 24 hidden^2 operations a token in its matrices, and 4 width hidden in attention
    that is masked and not skipped: a share of width / (6 hidden) on top.

    Args: hidden: size of the model's states.
    """

    def cost(laid: list[list[int]]) -> float:
        width = max(sum(lengths[i] for i in members) for members in laid)
        return len(laid) * width * (1 + width / (6 * hidden))

    return min((lines(lengths, n) for n in range(1, len(lengths) + 1)), key=cost)


@dataclass(frozen=True)
class Part:
    """Where the task's rows, or the extra ones, lie in the pack."""

    rows: Sequence[EncodedRow]
    mask: Tensor
    """Real positions, (rows, longest) bool."""
    states: Tensor
    """Place of each token in the flattened lines, (rows, longest); 0 where a row is padded."""
    heads: slice
    """Where the labels' predictions lie among the logits, row after row; empty if not asked for."""
    where: tuple[Tensor, Tensor]
    """Row and column of the position that predicts each label, each (tokens,)."""
    labels: Tensor
    """(tokens,)"""

    def of(
        self, whole: ForwardOutput, logits: Tensor | None, counts: StepCounts | None
    ) -> ForwardOutput:
        """These rows of the packed pass `whole` as a pass of their own."""
        found = ForwardOutput(
            whole.model,
            {},
            counts,
            self.rows,
            Unpacked(whole.hidden, self.states),
            head=logits,
            exact=logits is not None,
            final=logits is not None,
        )
        # Worked out on the host already; from a batch the device would be asked for them.
        known = {"mask": self.mask, "where": self.where, "labels": self.labels}
        found.__dict__.update(known)
        return found


class Unpacked(Mapping[int, Tensor]):
    """Hidden states of some rows of a pack, by layer, (rows, longest, hidden), when asked for."""

    def __init__(self, lines: Mapping[int, Tensor], places: Tensor) -> None:
        self.lines, self.places = lines, places

    def __getitem__(self, layer: int) -> Tensor:
        return self.lines[layer].flatten(0, 1)[self.places]

    def __iter__(self) -> Iterator[int]:
        return iter(self.lines)

    def __len__(self) -> int:
        return len(self.lines)


@dataclass(frozen=True)
class Packed:
    """Rows packed for one forward pass."""

    inputs: dict[str, Any]
    """What the model is called with, inside `heads_at(model, keep)`."""
    keep: Tensor
    """Places in the flattened lines where the head runs, (tokens,): the task's, then the extra."""
    main: Part
    extra: Part


def pack(
    main: Sequence[EncodedRow],
    extra: Sequence[EncodedRow],
    *,
    pad_id: int,
    extra_logits: bool,
    by: By,
    hidden: int,
    device: torch.device | None = None,
) -> Packed:
    """Lay out task rows and extra rows.

    Args:
        extra_logits: whether the head also runs on the extra rows' label positions.
        by: what keeps rows apart; "rows" needs `attends_by_rows` around the pass.
        hidden: size of the model's states, which decides how many lines there are by "mask".
    """
    rows = [*main, *extra]
    lengths = [len(row["input_ids"]) for row in rows]
    if by == "line":
        inputs, first = _flattened(rows)
    else:
        laid = best_lines(lengths, hidden) if by == "mask" else [list(range(len(rows)))]
        inputs, first = _in_lines(rows, laid, pad_id)

    keep: list[int] = []

    def part(numbers: range) -> Part:
        longest = max((lengths[i] for i in numbers), default=0)
        states = torch.zeros((len(numbers), longest), dtype=torch.long)
        mask = torch.zeros((len(numbers), longest), dtype=torch.bool)
        for j, i in enumerate(numbers):
            states[j, : lengths[i]] = torch.arange(first[i], first[i] + lengths[i])
            mask[j, : lengths[i]] = True
        targets = {i: row_targets(rows[i]) for i in numbers}
        places = [(j, i, t) for j, i in enumerate(numbers) for t in label_columns(rows[i])]
        begin = len(keep)
        if extra_logits or numbers.start == 0:
            keep.extend(first[i] + t for _, i, t in places)
        labels = [targets[i][t] for _, i, t in places]
        where = torch.tensor([[j, t] for j, _, t in places], dtype=torch.long).reshape(-1, 2)
        row, column = where.T.contiguous()
        return Part(
            [rows[i] for i in numbers],
            _to(mask, device),
            _to(states, device),
            slice(begin, len(keep)),
            (_to(row, device), _to(column, device)),
            _to(torch.tensor(labels, dtype=torch.long), device),
        )

    task, others = part(range(len(main))), part(range(len(main), len(rows)))
    inputs = {k: _to(v, device) if isinstance(v, Tensor) else v for k, v in inputs.items()}
    inputs["use_cache"] = False  # transformers looks for packed rows only without one
    if by == "rows":
        on_gpu = device is not None and device.type == "cuda"
        places = row_places(lengths, MULTIPLE_ON_GPU if on_gpu else 1)
        inputs[ROWS_APART] = places.to(partial(_to, device=device))
        # Four dimensions are a mask that is ready made: none over all pairs is built.
        inputs["attention_mask"] = _to(torch.ones((1, 1, 1, 1), dtype=torch.bool), device)
    return Packed(inputs, _to(torch.tensor(keep, dtype=torch.long), device), task, others)


def _in_lines(
    rows: Sequence[EncodedRow], laid: Sequence[Sequence[int]], pad_id: int
) -> tuple[dict[str, Any], list[int]]:
    """Ids and positions, (lines, longest), and each row's place in the flattened lines."""
    width = max(sum(len(rows[i]["input_ids"]) for i in members) for members in laid)
    ids = torch.full((len(laid), width), pad_id)
    positions = torch.zeros((len(laid), width), dtype=torch.long)
    first = [0] * len(rows)
    for k, members in enumerate(laid):
        at = 0
        for i in members:
            n = len(rows[i]["input_ids"])
            ids[k, at : at + n] = torch.tensor(rows[i]["input_ids"])
            positions[k, at : at + n] = torch.arange(n)
            first[i] = k * width + at
            at += n
        positions[k, at:] = torch.arange(width - at)
    return {"input_ids": ids, "position_ids": positions}, first


def _flattened(rows: Sequence[EncodedRow]) -> tuple[dict[str, Any], list[int]]:
    """The same for flash attention, with the rows' borders as it wants them, (rows + 1,) int32.

    Without the borders each layer would look for them in the positions, for which the host waits.
    """
    from transformers import DataCollatorWithFlattening

    collator = DataCollatorWithFlattening(return_flash_attn_kwargs=True)
    found = dict(collator([{"input_ids": list(row["input_ids"])} for row in rows]))
    del found["labels"]  # ours stand in the parts
    lengths = (len(row["input_ids"]) for row in rows)
    return found, list(accumulate(lengths, initial=0))[:-1]


def of_tokens_alone(batch: Mapping[str, Any]) -> bool:
    """Whether token ids are all that the model takes of a batch: a pack holds nothing else."""
    return model_inputs(batch).keys() <= {"input_ids", "attention_mask"}


@contextmanager
def heads_at(model: nn.Module, places: Tensor) -> Iterator[None]:
    """The head runs at these places of the flattened batch only: logits (1, places, vocab).

    `logits_to_keep` takes a mask, for which the host waits, or equally many places of each line.
    """
    head: nn.Module = model.get_output_embeddings()  # type: ignore[operator]
    handle = head.register_forward_pre_hook(
        lambda _, args: (args[0].flatten(0, 1)[places].unsqueeze(0),)
    )
    try:
        yield
    finally:
        handle.remove()


def label_columns(row: EncodedRow) -> list[int]:
    """Positions of a row that predict a label."""
    return [t for t, label in enumerate(row_targets(row)) if label != IGNORE]


def _to(tensor: Tensor, device: torch.device | None) -> Tensor:
    if device is None or device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True)


@torch.no_grad()
def keeps_rows_apart(
    model: nn.Module,
    rows: Sequence[EncodedRow],
    pad_id: int,
    autocast: Autocast,
    by: By,
) -> bool:
    """Whether rows of a pack have the states they have alone, up to rounding."""
    # Of unequal length: two lines would cost less than one for rows that are equally long.
    cuts = ((rows[0], 8), (rows[-1], max(1, min(8, len(rows[0]["input_ids"])) - 1)))
    some = [row["input_ids"][:most] for row, most in cuts]
    short = [{"input_ids": ids, "labels": [IGNORE] * len(ids)} for ids in some]
    device = next(model.parameters()).device
    packed = pack(short, (), pad_id=pad_id, extra_logits=False, by=by, hidden=1000, device=device)
    batch = {k: v.to(device) for k, v in collate(short, pad_id).items() if k != "labels"}
    flags = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        with autocast():
            alone, together = ForwardOutput(model, batch), ForwardOutput(model, packed.inputs)
            for into, inputs in ((alone, batch), (together, packed.inputs)):
                packs = into is together and by == "rows"
                with capture(model, [Requires(hidden=(-1,))], into), attends_by_rows(model, packs):
                    model(**{**inputs, "logits_to_keep": 1})
    except torch.OutOfMemoryError:
        raise
    except (TypeError, ValueError, RuntimeError):
        return False  # its forward does not take packed rows
    finally:
        for module, flag in flags:
            module.training = flag
    real = batch["attention_mask"].bool()
    old = alone.hidden[-1].float()[real]
    new = Unpacked(together.hidden, packed.main.states)[-1].float()[real]
    # A row that sees its neighbour differs by the size of the states themselves.
    return bool((old - new).norm() <= 0.02 * old.norm())


@dataclass(frozen=True)
class Packer:
    """Packs rows for one model; see `pack`."""

    by: By
    pad_id: int
    window: int
    """Longest row that may lie in a line without a mask: some families keep their window there."""
    hidden: int
    device: torch.device

    def __call__(
        self, main: Sequence[EncodedRow], extra: Sequence[EncodedRow], *, extra_logits: bool
    ) -> Packed:
        by = self.by
        if by == "rows" and max(len(row["input_ids"]) for row in (*main, *extra)) > self.window:
            by = "mask"
        return pack(
            main,
            extra,
            pad_id=self.pad_id,
            extra_logits=extra_logits,
            by=by,
            hidden=self.hidden,
            device=self.device,
        )


def packer_of(
    host: nn.Module, rows: Sequence[EncodedRow], pad_id: int, autocast: Autocast
) -> Packer | None:
    """How a model takes packs; None where rows would see one another in each way.

    Mixture-of-experts models with a router loss are not packed: that loss averages over positions.
    All processes must call it, and all get the same.

    Args:
        host: the model, adapters and all; rows: some to try it on.
    """
    model: Any = unwrapped(host)
    config, device = model.config, next(host.parameters()).device
    text = config.get_text_config()
    if not takes_positions(host) or getattr(text, "output_router_logits", False):
        return None
    slow = device.type == "cpu" and computing(host, autocast)["dtype"] == "torch.bfloat16"
    for by in ways(str(config._attn_implementation), slow):
        apart = keeps_rows_apart(model, rows, pad_id, autocast, by)
        # All processes must make equally many passes.
        if broadcast("yes" if apart else "no") == "yes":
            return Packer(by, pad_id, window(text), text.hidden_size, device)
    return None


def packed_states(
    model: nn.Module,
    main: Sequence[EncodedRow],
    extra: Sequence[EncodedRow],
    layers: tuple[int, ...],
    pad_id: int,
    autocast: Autocast,
) -> ForwardOutput | None:
    """The extra rows' states of `layers` as a step of training computes them; None: not packed.

    Not for autograd; the model's mode is as it is.
    """
    packer = packer_of(model, extra, pad_id, autocast)
    if packer is None:
        return None
    packed = packer(main, extra, extra_logits=False)
    whole = ForwardOutput(model, packed.inputs)
    with (
        autocast(),
        attends_by_rows(model, packer.by == "rows"),
        capture(model, [Requires(hidden=layers)], whole),
    ):
        model(**packed.inputs, logits_to_keep=1)
    return packed.extra.of(whole, None, None)
