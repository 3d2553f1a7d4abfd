"""Score a candidate: the loss on general texts and each task's own metric."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch

from perdure.repair.candidates import BASE, TUNED, Candidate
from perdure.repair.halves import Half
from perdure.repair.path import Line
from perdure.repair.result import Figures, Point, shares
from perdure.scoring.perplexity import general_loss
from perdure.scoring.score import score_task
from perdure.streams.kinds import PERPLEXITY

Progress = Callable[[str, int, int], None]
"""Called as progress(what, done, total), in candidates: "rewind 0.5", 3, 24."""


@dataclass(frozen=True)
class Sizes:
    """How much is measured; half of it searches, half reports."""

    texts: int = 64
    general_tokens: int = 128
    """The most tokens of a general text."""
    rows: int = 200
    """The most test rows of a task."""
    batch: int = 16


class Meter:
    """Measures candidates on the search half, and anything on either half."""

    def __init__(
        self,
        line: Line,
        search: Half,
        sizes: Sizes,
        precision: str = "fp32",
        on_progress: Progress | None = None,
    ) -> None:
        self.line, self.search, self.sizes, self.precision = line, search, sizes, precision
        self.encoder = line.encoder()
        self.metrics: dict[str, str] = {task.name: task.metric for task in search.tasks}
        self._progress, self._done, self._total = on_progress, 0, 0
        self._ends: dict[Candidate, Figures] = {}

    def expect(self, evaluations: int) -> None:
        """Say how many measurements there will be at most, for the progress."""
        self._total = evaluations

    def point(self, candidate: Candidate) -> Point:
        """Measure a candidate on the search half, and its shares between base and tuned model."""
        for end in (BASE, TUNED):
            if end not in self._ends:
                self._ends[end] = self.figures(end, self.search)
        found = self._ends.get(candidate) or self.figures(candidate, self.search)
        return self._placed(candidate, found)

    def trained(self, begin: Candidate) -> Point:
        """Measure the weights as training left them, on the search half."""
        found = self.figures(None, self.search)
        return self._placed(Candidate("gere", begin.factors, begin.share), found)

    def _placed(self, candidate: Candidate, found: Figures) -> Point:
        regained, kept = shares(self.metrics, self._ends[BASE], self._ends[TUNED], found)
        return Point(candidate, found, regained, kept)

    def figures(self, candidate: Candidate | None, half: Half) -> Figures:
        """Measure a candidate on a half; None measures the weights as they are."""
        if candidate is not None:
            self.line.put(candidate)
        model, sizes = self.line.model, self.sizes
        with self._computing():
            general = general_loss(
                model,
                self.encoder,
                half.texts,
                max_tokens=sizes.general_tokens,
                batch_size=sizes.batch,
            ).loss
            scores = {
                task.name: score_task(model, self.encoder, task, batch_size=sizes.batch).score
                for task in half.tasks
            }
        self._done += 1
        if self._progress is not None:
            what = "the result" if candidate is None else str(candidate)
            self._progress(what, min(self._done, self._total), self._total)
        return Figures(general, scores)

    def answer_loss(self, candidate: Candidate) -> float:
        """Mean over the tasks of the loss of an answer's token on the search half, in nats.

        It tells candidates apart whose scores are equal, as those of few rows often are.
        """
        self.line.put(candidate)
        losses = []
        with self._computing():
            for task in self.search.tasks:
                as_text = replace(task, metric=PERPLEXITY.name)
                found = score_task(
                    self.line.model, self.encoder, as_text, batch_size=self.sizes.batch
                )
                losses.append(math.log(found.score))
        return math.fsum(losses) / len(losses)

    def _computing(self) -> Any:
        device = next(self.line.model.parameters()).device.type
        return torch.autocast(device, torch.bfloat16) if self.precision == "bf16" else nullcontext()
