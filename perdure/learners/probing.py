"""Probes of a classifier's body after each task, as lines of scores.jsonl.

Every probe is fitted on the training rows of the classes learned so far, and apart from that on
those of all classes, future ones included, which is analysis and no result of a method. A fit is
made once for each state of the weights and set of classes.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from perdure.learners.scores import Key, Line
from perdure.models.classifier import views
from perdure.models.features import Features
from perdure.models.random_state import seed_of
from perdure.scoring.lines import PROBE, probe_line
from perdure.scoring.probes import fit, logits
from perdure.streams.task import shown

if TYPE_CHECKING:
    from perdure.streams.task import Row, Task

Found = Mapping[str, Mapping[str, Mapping[str, float]]]
"""By task and probe, the shares of test rows that are right by either answer."""


class Probing:
    """See the module.

    Args:
        names: of the probes; tasks: of the stream; classes: each class's number.
        seed: of the recipe; most: test rows of a task at most, None for all.
    """

    def __init__(
        self,
        names: Sequence[str],
        tasks: Sequence[Task],
        classes: Mapping[str, int],
        seed: int,
        most: int | None,
    ) -> None:
        self.names, self.tasks, self.classes = names, tasks, classes
        self.seed, self.most = seed, most
        self._fits: dict[tuple[str, int], Found] = {}

    def lines(
        self, after: int, seen: int, state: str, features: Features, done: Collection[Key]
    ) -> Iterator[Line]:
        """A line for each task that has none yet.

        Args:
            seen: classes learned so far, the first ones.
            state: of the weights; features: those of the body under them.
        """
        started = time.monotonic()
        sets = {"all": self._found(len(self.classes), state, features)}
        if seen:
            sets["seen"] = self._found(seen, state, features)
        for task in self.tasks:
            if (PROBE, task.name) in done:
                continue
            found = {name: by[task.name] for name, by in sets.items() if task.name in by}
            seconds, started = time.monotonic() - started, time.monotonic()
            yield probe_line(after, task.name, len(self._test(task)), found, seconds), ()

    def _test(self, task: Task) -> Sequence[Row]:
        return shown(task, self.most)

    def _found(self, count: int, state: str, features: Features) -> Found:
        """Fit and test on the first `count` classes; tasks with another class are left out."""
        if (state, count) not in self._fits:
            self._fits[(state, count)] = self._fit(count, features)
        return self._fits[(state, count)]

    @torch.no_grad()
    def _fit(self, count: int, features: Features) -> Found:
        rows = [
            row for task in self.tasks for row in task.train if self.classes[row["label"]] < count
        ]
        texts = [row["text"] for row in rows]
        whole = [task for task in self.tasks if max(self._own(task)) < count]
        # Asked for at once: texts of one length share a pass, whatever their task.
        features.add([*texts, *(row["text"] for task in whole for row in self._test(task))])
        inputs = features.of(texts)
        labels = torch.tensor([self.classes[row["label"]] for row in rows])
        seed = seed_of(self.seed, "probe", count)
        fitted = {name: fit(name, inputs, labels, count, seed) for name in self.names}
        found: dict[str, dict[str, dict[str, float]]] = {}
        for task in whole:
            found[task.name] = self._tested(task, self._own(task), fitted, features)
        return found

    def _own(self, task: Task) -> Sequence[int]:
        return [self.classes[name] for name in task.labels]

    def _tested(
        self, task: Task, own: Sequence[int], fitted: Mapping[str, Any], features: Features
    ) -> dict[str, dict[str, float]]:
        test = self._test(task)
        inputs = features.of([row["text"] for row in test])
        right = torch.tensor([self.classes[row["label"]] for row in test])
        found = {}
        for name, vectors in fitted.items():
            both = views(logits(name, vectors, inputs), range(len(vectors)), own)
            shares = [float((guess == right).double().mean()) for guess in both]
            found[name] = {"among_all": shares[0], "within_task": shares[1]}
        return found
