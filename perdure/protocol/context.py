"""What a method's hooks may ask for while a task is learned.

A method gets a `Context` in every hook. It can draw rows, run the model, look at weights and log.
It cannot write gradients or weights: it returns them. These names are all there are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from torch import Tensor, nn

from perdure.protocol.adapters import Adapters
from perdure.protocol.batch import EncodedRows, ForwardOutput
from perdure.protocol.labels import Classes
from perdure.protocol.step import Step
from perdure.streams.task import Row, Task

Weights = dict[str, Tensor]


class BaseStates(Protocol):
    """What a frozen model computed on fixed texts; see `Context.base_states`.

    The rows carry the text's number as "_text".
    """

    @property
    def about(self) -> Mapping[str, Any]:
        """All that it depends on; `about["model"]` is a fingerprint of the model."""

    @property
    def noise(self) -> Mapping[str, Mapping[str, float]]:
        """Of codes and states, by layer (as text): how far rounding moves the unmoved model's.

        `largest` and `mean` are distances: of a state to its interval, or to what it was; of codes
        `violating` and `flipped` are shares of all states.
        """

    def limits(self, layer: int, device: Any) -> tuple[Tensor, Tensor]:
        """Of codes: thresholds n and p, each (hidden,) fp32."""

    def aligned(self, seen: ForwardOutput, layer: int) -> Tensor:
        """What is kept of the rows of a pass, in its layout; padding is 0.

        Returns: codes (rows, seq, hidden / 4) uint8, or states (rows, seq, hidden) fp32.
        """

    def largest(self, seen: ForwardOutput) -> tuple[Tensor, Tensor, Tensor]:
        """Of logits: `values` and `ids` (tokens, top) and `lse` (tokens,) of a pass's labels."""


class Context(Protocol):
    """The task being learned, the model, and what can be done with both."""

    # --- what is learned

    @property
    def task(self) -> Task:
        """The task being learned."""

    @property
    def task_index(self) -> int:
        """Its number in the stream, from 0."""

    @property
    def tasks_seen(self) -> tuple[Task, ...]:
        """The tasks learned before it, in order."""

    @property
    def classes(self) -> Classes | None:
        """Of tasks with classes, which columns of the logits compete, of old tasks and of all seen;
        None where labels are tokens, whose vocabulary is the same in all tasks."""

    @property
    def step(self) -> Step:
        """The optimizer step being made."""

    @property
    def seed(self) -> int:
        """The run's seed; draw from generators of your own made with it, never globally."""

    @property
    def batch_size(self) -> int:
        """Rows of the task in an optimizer step, over all processes and micro-batches; where it is
        learned from rewards its completions."""

    # --- rows

    def encode(self, row: Row | str, max_tokens: int | None = None) -> dict[str, Any]:
        """Encode one row of a task, or a plain text, of which every token is a label.

        Args: max_tokens: a text is cut to as many.
        """

    def draw(
        self,
        rows: Sequence[dict[str, Any]],
        size: int,
        *,
        first: int | None = None,
        replace: bool = False,
    ) -> EncodedRows | None:
        """This micro-batch's slice of `size` rows drawn for this optimizer step.

        The draw is a function of seed, task, phase and step alone: equal on all processes and
        after a resume. Every row is used before any repeats, unless `replace` has each one drawn
        by itself.

        Args:
            rows: encoded; keys that start with "_" stay with their rows.
            first: where in an endless draw this step's rows begin; None: after `size` rows for
                each step before, as is right where all steps draw equally many.
        """

    def general_rows(
        self,
        count: int,
        max_tokens: int,
        *,
        special: bool = False,
        kept: str = "",
        share: float = ...,
    ) -> tuple[list[dict[str, Any]], str]:
        """General texts to train on, encoded: the user's, else texts that the base model writes.

        The base model writes them once, before the first task; they are kept in the run.

        Args:
            count: the most texts; max_tokens: the most tokens of each.
            special: put the tokenizer's special tokens around the user's texts.
            kept: what an earlier call returned: the same sampled texts are read again.
            share: the most sampled tokens, as a share of the tokens trained on.
        Returns: the rows, each of two tokens or more; and the name of the file of sampled texts,
            "" where the user gave texts.

        Raises:
            RunError: that file is gone, and the base model cannot be asked again.
        """

    # --- the model

    @property
    def model(self) -> nn.Module:
        """The model, unwrapped. Under FSDP2 its parameters are DTensors."""

    @property
    def adapters(self) -> Adapters:
        """The adapters of a model that is tuned with LoRA: to add, switch and freeze them."""

    def forward(
        self,
        rows: Sequence[dict[str, Any]] | Mapping[str, Any],
        *,
        train: bool | None = False,
        logits: bool = True,
        hidden: tuple[int, ...] = (),
    ) -> ForwardOutput:
        """Run encoded rows, or a batch (`ForwardOutput.batch`), through the model as it is;
        autograd as around the call.

        Args: train: in training mode; None: each module in the mode that it is in.

        What any method `requires` is captured, states of the layers in `hidden`, and logits
        unless `logits` is False.
        """

    def frozen(
        self, which: str, logits: bool = True, log_probs: bool = False, dropout: bool = False
    ) -> Callable[[Mapping[str, Any]], ForwardOutput]:
        """A frozen model to compare with: "base", or "previous" (as the last task left it).

        It takes a batch (`ForwardOutput.batch`), and has no dropout but where that is asked for.
        The method must ask for it in its `requires`.

        Args: log_probs: nothing but `ForwardOutput.log_probs` is read. Of completions they are then
            computed as the trainer computes its own, at its temperature and without logits.
        """

    def base_states(
        self,
        rows: Sequence[dict[str, Any]],
        kind: str,
        *,
        layers: tuple[int, ...] = (-1,),
        k: float = 1.0,
        one_pass: bool = False,
        top: int = 64,
        temperature: float = 1.0,
        previous: bool = False,
        known: str = "",
        who: str = "",
    ) -> BaseStates:
        """What the base model computes on `rows`: distilled once, kept on disk in the run.

        Args:
            kind: "codes" (two bits a neuron: low, middle, high), "states", or "logits" (of the
                label tokens, the `top` largest, divided by `temperature`).
            k, one_pass: of "codes": see `perdure.mechanisms.state_cache.thresholds`.
            previous: of the model as the last task left it, not of the base model.
            known: `BaseStates.about["model"]` of an earlier call: the base is the same one.
            who: the method's name, to begin messages with.

        Raises:
            RunError: the base's states are gone or of other settings, and it is trained over.
        """

    def gradients_of(self, rows: Sequence[dict[str, Any]]) -> Weights:
        """Gradient of the mean loss of a label on `rows`, by name; `p.grad` is not touched."""

    def snapshot(self) -> Weights:
        """A copy of the trainable parameters by name, on their device."""

    def use_weights(self, weights: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        """Have `weights` in the model inside the block, and the old ones back afterwards."""

    # --- measuring

    def score(self, task: Task, split: str = "validation", max_rows: int | None = None) -> float:
        """Score `task` by its own metric on the rows of a split, with the weights as they are."""

    def log(self, name: str, value: float | Tensor) -> None:
        """Add a figure to the trainer's next log line, as `method/<name>`: log and trackers.

        A tensor is this pass's share of the step's mean (`ForwardOutput.token_mean`, `.row_mean`),
        as a loss would be; it stays on its device until then, so that no step waits for it. Under
        the name of a term that `loss` returns it is that term before any weight; the log then has
        it so, and what it was multiplied by as `method/<name>_weight`.
        """
