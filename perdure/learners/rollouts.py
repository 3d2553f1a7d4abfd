"""Which prompts a step of reinforcement learns from, and what it earns with their completions."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import Sampler

from perdure.models.generate import cut_at_end, written
from perdure.models.random_state import seed_of
from perdure.rewards import Sample

if TYPE_CHECKING:
    from perdure.models.chat import Encoder
    from perdure.rewards import Rewards
    from perdure.streams.task import Row, Task


def differing(was: Any, now: Any, name: str = "") -> Iterator[str]:
    """What differs between a checkpoint's marks and those of now, each by its name with dots."""
    if isinstance(was, dict) and isinstance(now, dict):
        for key in dict.fromkeys([*was, *now]):
            place = f"{name}.{key}" if name else str(key)
            yield from differing(was.get(key), now.get(key), place)
    elif was != now:
        then, here = ("none" if one is None else json.dumps(one) for one in (was, now))
        yield f"{name}: {then} then, {here} now"


class PromptSampler(Sampler[int]):
    """Row numbers in the order in which `trl.GRPOTrainer` takes them, epoch by epoch.

    Each prompt stands `group` times in a row; a generation batch of `prompts` of them comes
    `repeats` times, as the trainer draws it anew for each pass over the same completions. TRL's
    own sampler leaves out what does not fill a batch, and begins a resumed run with the first
    epoch's order; here the last batch is filled up from the epoch's start, and the order depends
    on seed and epoch alone.

    Args:
        rows: how many there are.
        prompts: different prompts of a generation batch, over all processes.
        group: completions of a prompt.
        repeats: passes over a generation batch's completions, micro-batches counted.
    """

    def __init__(self, rows: int, prompts: int, group: int, repeats: int, seed: int) -> None:
        self.rows, self.prompts, self.group, self.repeats = rows, prompts, group, repeats
        self.seed, self.epoch = seed, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return math.ceil(self.rows / self.prompts) * self.prompts * self.group * self.repeats

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(seed_of(self.seed, "prompts", self.epoch))
        order: list[int] = torch.randperm(self.rows, generator=generator).tolist()
        whole = math.ceil(self.rows / self.prompts) * self.prompts
        order = (order * math.ceil(whole / self.rows))[:whole]
        for start in range(0, whole, self.prompts):
            for _ in range(self.repeats):
                for row in order[start : start + self.prompts]:
                    yield from [row] * self.group


class Judge:
    """Gives completions, as token ids, what they earn by a recipe's rewards.

    Args: stops: tokens that end a completion; one that ends with none of them was cut.
    """

    def __init__(
        self, rewards: Rewards, encoder: Encoder, task: Task, rows: Sequence[Row], stops: set[int]
    ) -> None:
        self.rewards, self.encoder, self.task, self.rows = rewards, encoder, task, rows
        self.stops = stops

    @cached_property
    def prompts(self) -> list[str]:
        """Each row's prompt as text, rendered once for all completions of it."""
        return [self.encoder.prompt_text(row) for row in self.rows]

    @cached_property
    def _prefilled(self) -> list[bool]:
        return [self.encoder.prefilled(row) for row in self.rows]

    def cut(self, ids: Sequence[int]) -> tuple[list[int], bool]:
        """A completion up to and with its end, and whether it has one."""
        return cut_at_end(self.encoder, ids, sorted(self.stops))

    def samples(self, rows: Sequence[int], completions: Sequence[Sequence[int]]) -> list[Sample]:
        """The completions as rewards see them: with their tags, without what ends a turn.

        Args: rows: the number of each one's row.
        """
        found, encoder, stops = [], self.encoder, sorted(self.stops)
        for number, ids in zip(rows, completions, strict=True):
            row, text = self.rows[number], written(encoder, ids, stops)
            found.append(
                Sample(
                    prompt=self.prompts[number],
                    completion=text.whole,
                    truncated=text.truncated,
                    row=row,
                    answer=self.task.answer,
                    prefilled=self._prefilled[number],
                )
            )
        return found

    def reward(
        self,
        completion_ids: Sequence[Sequence[int]],
        row: Sequence[int],
        log_metric: Callable[[str, float], None],
        **_: Any,
    ) -> list[float]:
        """What each completion earns, as `trl` asks for it; the parts' means are logged.

        Raises:
            TrainingError: a reward failed, or gave what is no value.
        """
        scored = self.rewards(self.samples(row, completion_ids))
        for name, value in scored.means().items():
            log_metric(f"reward/{name}", value)
        return list(scored.total)

    def marks(self) -> dict[str, Any]:
        """What must be the same where a run goes on: names, versions, weights and options of the
        rewards, and the prompts."""
        prompts = "\0".join(self.prompts)
        return {
            "rewards": self.rewards.marks,
            "prompts": hashlib.sha256(prompts.encode()).hexdigest()[:16],
        }
