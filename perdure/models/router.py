"""Which group a task is learned in, and which adapter answers a request.

    Router(codebook).choose(list of messages)   for each prompt: adapter, group, similarity, why
    Router(codebook).place(task, instructions)  while learning: continue a group, or open one
    group_tasks(codebook, tasks)                the same for a stream, before anything is learned

A router is shown prompts and nothing else: no answer, no task's name, and it never changes its
codebook. Source: LCIA's specification, section 3 (instruction grouping). Where its official code
tests a whole data set against one threshold and gives what fits none to the last group, each
request here is routed by itself, by a threshold of its own (`accept`), and `fallback: last` is the
official policy.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from perdure.models.codebook import BASE, Codebook
from perdure.models.instructions import Messages, instruction_of, messages
from perdure.models.similarity import Index, Similarity, similarity_of

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Choice:
    """Which adapter answers one request.

    Attributes:
        adapter: its name; None is the base model without one.
        group: whose adapter it is; None with the base model.
        similarity: of the request to the nearest group, whichever answers; 0.0 where none is.
        runner_up: the second nearest group and its similarity; None where there is none.
        why: a sentence for people.
        nearest: the nearest group; None where there is no group.
        fits: whether the similarity reached `accept`; False where the fallback answers.
    """

    adapter: str | None
    group: str | None
    similarity: float
    runner_up: tuple[str, float] | None
    why: str
    nearest: str | None = None
    fits: bool = True


@dataclass(frozen=True)
class Placement:
    """The group that a task is learned in.

    Attributes:
        group: its name; opens: it does not exist yet.
        adapter: what is trained on: the group's newest version. Of a new group None.
        nearest, similarity: the nearest group before, and its score; None and 0.0 where none was.
        runner_up, why: as in `Choice`.
        threshold: what decided: from it on the nearest group goes on.
    """

    task: str
    group: str
    opens: bool
    adapter: str | None
    nearest: str | None
    similarity: float
    runner_up: tuple[str, float] | None
    why: str
    threshold: float = 0.0


class Router:
    """Chooses among the groups of a codebook.

    Args: similarity: the codebook's own measure, where it was made before; an encoder is dear.
    """

    def __init__(self, codebook: Codebook, similarity: Similarity | None = None) -> None:
        self.codebook = codebook
        self.similarity = similarity_of(codebook.similarity) if similarity is None else similarity
        self.ends = np.cumsum([len(group.instructions) for group in codebook.groups])

    @classmethod
    def load(cls, path: Path) -> Router:
        """The router of a folder with adapters and their codebook.

        Raises:
            UsageError: no codebook, one that is none, or one whose encoder is not here.
        """
        return cls(Codebook.load(path))

    def save(self, folder: Path) -> Path:
        """Write the codebook beside the adapters in `folder`; returns its file."""
        return self.codebook.save(folder)

    def check(self, adapters: Collection[str]) -> None:
        """Raise where the codebook names adapters that are not among these.

        Raises: as `perdure.models.codebook.Codebook.check_adapters`.
        """
        self.codebook.check_adapters(adapters)

    @cached_property
    def _index(self) -> Index:
        return self.similarity.index(
            [text for group in self.codebook.groups for text in group.instructions]
        )

    def pairs(self, instructions: Sequence[str]) -> NDArray[np.float64]:
        """Similarity of each instruction to each stored one, group by group, (instructions,
        stored)."""
        return self._index(instructions)

    def grouped(self, pairs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Scores of the groups from `pairs`, (instructions, groups)."""
        return group_scores(pairs, self.ends, self.codebook.score)

    def scores(self, instructions: Sequence[str]) -> NDArray[np.float64]:
        """Each instruction's score of each group, (instructions, groups)."""
        return self.grouped(self.pairs(instructions))

    def choose(self, prompts: Sequence[Messages]) -> list[Choice]:
        """Choose an adapter for each prompt, in their order.

        Args: prompts: each a conversation before its answer, `[{"role": ..., "content": ...}]`.

        Raises:
            UsageError: a prompt that is something else, such as a row with its answer.
        """
        texts = [instruction_of(messages(prompt)) for prompt in prompts]
        once = {text: place for place, text in enumerate(dict.fromkeys(texts))}
        found = [self._choice(row) for row in self.scores(list(once))]
        return [found[once[text]] for text in texts]

    def named(self, name: str) -> Choice:
        """The choice of who names an adapter, its group, or "base", and so is not routed.

        Raises:
            UsageError: nothing is called so, with the nearest names.
        """
        if name == BASE:
            return Choice(None, None, 0.0, None, "the base model was asked for")
        group = self.codebook.group(name)
        return Choice(group.adapter, group.name, 0.0, None, f"{name} was asked for")

    def learned_in(self, task: str) -> str | None:
        """The adapter of the group that a task was learned in; None where it was not learned."""
        homes = [group.adapter for group in self.codebook.groups if task in group.tasks]
        return homes[-1] if homes else None

    def place(self, task: str, instructions: Sequence[str]) -> Placement:
        """Decide where a task is learned: in the nearest group from `threshold` on, else in a new
        one; of two that are equally near in the older one.

        Args: instructions: the task's different ones.
        """
        book = self.codebook
        whole = self.scores(list(instructions)).mean(0) if len(instructions) else self._none
        nearest, score, runner_up = self._ranked(whole)
        if nearest is not None and score >= book.threshold:
            group = book.groups[nearest]
            why = (
                f"{group.name} at {score:.2f}, not below threshold {book.threshold:.2f}: continued"
            )
            near, adapter = group.name, group.adapter
            return Placement(
                task, near, False, adapter, near, score, runner_up, why, book.threshold
            )
        old = None if nearest is None else book.groups[nearest].name
        if old is None:
            why = "the first group"
        elif score <= 0:
            why = f"unlike every group, below threshold {book.threshold:.2f}: new"
        else:
            why = f"nearest is {old} at {score:.2f}, below threshold {book.threshold:.2f}: new"
        name = book.new_name(task)
        return Placement(task, name, True, None, old, score, runner_up, why, book.threshold)

    def learned(self, placement: Placement, instructions: Sequence[str]) -> Router:
        """A router that knows a task which was learned as it was placed; this one stays."""
        change = self.codebook.opened if placement.opens else self.codebook.continued
        book = change(placement.group, instructions, placement.task)
        return Router(book, self.similarity)

    @property
    def _none(self) -> NDArray[np.float64]:
        return np.zeros(len(self.codebook.groups))

    def _ranked(
        self, scores: NDArray[np.float64]
    ) -> tuple[int | None, float, tuple[str, float] | None]:
        """The first of the highest scores, (groups,), that score, and the next group's."""
        if not len(scores):
            return None, 0.0, None
        order = np.argsort(-scores, kind="stable")
        second = None
        if len(order) > 1:
            second = (self.codebook.groups[order[1]].name, float(scores[order[1]]))
        return int(order[0]), float(scores[order[0]]), second

    def _choice(self, scores: NDArray[np.float64]) -> Choice:
        book = self.codebook
        nearest, score, runner_up = self._ranked(scores)
        if nearest is None:
            return Choice(None, None, 0.0, None, "there is no group yet", None, False)
        near = book.groups[nearest]
        if score >= book.accept:
            why = f"{near.name} at {score:.2f}, not below accept {book.accept:.2f}"
            return Choice(near.adapter, near.name, score, runner_up, why, near.name)
        like = f"nearest is {near.name} at {score:.2f}" if score > 0 else "unlike every group"
        why = f"fits no group: {like}, below accept {book.accept:.2f}"
        if book.fallback == "base":
            why += "; fallback: the base model"
            return Choice(None, None, score, runner_up, why, near.name, False)
        if book.fallback == "nearest" and score <= 0:
            why += "; fallback nearest: it is similar to none at all, so the base model"
            return Choice(None, None, score, runner_up, why, near.name, False)
        group = near if book.fallback == "nearest" else book.groups[-1]
        why += f"; fallback {book.fallback}: {group.name}"
        return Choice(group.adapter, group.name, score, runner_up, why, near.name, False)


def group_scores(
    pairs: NDArray[np.float64], ends: Sequence[int] | NDArray[Any], score: str
) -> NDArray[np.float64]:
    """Each text's score of each group.

    Args:
        pairs: (texts, stored), with the groups' texts side by side; ends: where each group ends.
        score: "mean" over the group's texts (the specification's; a group of many wordings may then
            be below a threshold even for one of them), or "max", the nearest of them.

    Returns: (texts, groups). A set of texts scores the mean over its rows: with "mean" that is the
        mean over all pairs, with "max" how near, on average, each of them is to its nearest.
    """
    starts = [0, *ends[:-1]] if len(ends) else []
    if not len(starts):
        return np.zeros((len(pairs), 0))
    if score == "max":
        return np.asarray(np.maximum.reduceat(pairs, starts, axis=1))
    found = np.add.reduceat(pairs, starts, axis=1) / np.diff([0, *ends])
    # Sums of equal values in another order may differ in the last digit, and would break a tie.
    return np.asarray(np.round(found, 12))


def group_tasks(
    codebook: Codebook,
    tasks: Iterable[tuple[str, Sequence[str]]],
    similarity: Similarity | None = None,
) -> tuple[list[Placement], Codebook]:
    """Where each task of a stream would be learned, one after another; nothing is written.

    Args: tasks: name and different instructions of each, in the order in which they are learned.

    Returns: the placements, and the codebook after the last task.
    """
    router, found = Router(codebook, similarity), []
    for task, instructions in tasks:
        found.append(router.place(task, instructions))
        router = router.learned(found[-1], instructions)
    return found, router.codebook


def placement_facts(placement: Placement) -> dict[str, float]:
    """Figures of a placement by name, as a run keeps them (reports read them by these names).

    Returns: `group_opened` (1: a new group), `group_similarity` to the nearest group before, and,
        where there was one, `nearest_group/NAME` and `runner_up_group/NAME` with theirs.
    """
    found = {
        "group_opened": float(placement.opens),
        "group_similarity": placement.similarity,
    }
    if placement.nearest is not None:
        found[f"nearest_group/{placement.nearest}"] = placement.similarity
    if placement.runner_up is not None:
        found[f"runner_up_group/{placement.runner_up[0]}"] = placement.runner_up[1]
    return found


def told(placement: Placement) -> Mapping[str, str]:
    """A line of a table: task, group, similarity, what decided, nearest, runner-up."""
    second, known = placement.runner_up, placement.nearest is not None
    unlike = known and placement.opens and placement.similarity <= 0
    return {
        "task": placement.task,
        "group": f"{placement.group} (new)" if placement.opens else placement.group,
        "similarity": f"{placement.similarity:.2f}" if known else "",
        "threshold": f"{placement.threshold:.2f}" if known else "",
        "nearest": "none (unlike every group)" if unlike else placement.nearest or "",
        "runner-up": "" if second is None or unlike else f"{second[0]} {second[1]:.2f}",
    }
