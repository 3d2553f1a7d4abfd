"""What a reward looks at, and what it is: an object that gives each sample a value in [0, 1].

A reward of one's own is a class in one file, as those of this folder, offered by an entry point:

    [project.entry-points."perdure.rewards"]
    politeness = "my_package.politeness:Politeness"

or a function of samples, named in the recipe as `my_rewards:politeness`: a quality reward.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, model_validator

from perdure.errors import UsageError
from perdure.recipe.mistakes import Mistake
from perdure.recipe.section import NumbersAreNumbers, mistakes_error
from perdure.streams.languages import Language, parse_language
from perdure.streams.tagged import OPENING, Tagged, parse_tagged, visible

Role = Literal["format", "quality", "guard", "gate"]
Direction = tuple[Language | None, Language | None]
"""The languages of a row's source and target; None where the row does not say one."""


@cache
def language_of(code: str) -> Language | None:
    """The language that a row's code means; None for "". Codes that nobody knows, such as those
    that a recipe gave a name, are languages of which nothing but the code is known."""
    if not code:
        return None
    try:
        return parse_language(code)
    except UsageError:
        return Language(code, code, "")


@dataclass(frozen=True)
class Sample:
    """One completion of a prompt.

    Attributes:
        prompt: the text before it, as the model was given it.
        completion: all that the model wrote, tags kept, without the token that ends a turn.
        truncated: it was cut at the longest answer allowed.
        row: the task's row; of a translation with `source`, `target`, `source_lang`,
            `target_lang` and maybe `glossary`, `context`, `domain`.
        answer: how it is read: "plain", as it is, or "tagged", by the strict parser.
        prefilled: the prompt ended in `<think>`.
    """

    prompt: str
    completion: str
    truncated: bool = False
    row: Mapping[str, Any] = field(default_factory=dict)
    answer: Literal["plain", "tagged"] = "plain"
    prefilled: bool = False

    @cached_property
    def parsed(self) -> Tagged:
        """Reasoning and answer, or what is wrong with the completion; a plain one has no reasoning,
        and only "truncated" or "empty_answer" can be wrong with it."""
        if self.answer == "tagged":
            return parse_tagged(self.completion, prefilled=self.prefilled, truncated=self.truncated)
        if self.truncated:
            return Tagged(problem="truncated")
        text = self.completion.strip()
        return Tagged(answer=text) if visible(text) else Tagged(problem="empty_answer")

    @property
    def source(self) -> str:
        """What was to be translated; of another row the last message of its prompt."""
        if "source" in self.row:
            return str(self.row["source"])
        prompt = self.row.get("prompt") or [{"content": self.prompt}]
        return str(prompt[-1].get("content") or "")

    @property
    def target(self) -> str:
        """The right answer, without reasoning."""
        if "target" in self.row:
            return str(self.row["target"])
        answer = str(self.row.get("answer") or "")
        if self.answer == "plain":
            return answer.strip()
        return parse_tagged(answer, prefilled=not answer.lstrip().startswith(OPENING)).answer

    @property
    def source_lang(self) -> str:
        """The source's language as the row writes it, "" where it does not."""
        return str(self.row.get("source_lang") or "")

    @property
    def target_lang(self) -> str:
        """The right answer's language as the row writes it, "" where it does not."""
        return str(self.row.get("target_lang") or "")


class RewardConfig(NumbersAreNumbers):
    """Base of each reward's `Config`: typed, frozen, and an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    def mistakes(self) -> Iterator[Mistake]:
        """Yield what is wrong between options, each at its own key."""
        yield from ()

    @model_validator(mode="after")
    def _consistent(self) -> RewardConfig:
        if found := list(self.mistakes()):
            raise mistakes_error(found)
        return self


class Reward:
    """One thing that a completion earns by, or loses by.

    Attributes:
        role: how its value counts. format: whether the answer can be read, 0 takes all away;
            quality: how good the answer is; guard: 0 takes all away; gate: a factor of the
            quality. All but `format` rewards see well-formed samples only.
        version: another one whenever the same sample would get another value: a run does not go
            on with another version.
        Config: its options.
        name: as the recipe names it; set when it is built.
    """

    role: ClassVar[Role] = "quality"
    Config: ClassVar[type[RewardConfig]] = RewardConfig
    version: str = "1"
    name: str = ""

    def __init__(self, config: RewardConfig) -> None:
        """Make it ready.

        Raises:
            UsageError: something that it needs is not installed.
        """
        self.config = config

    def check(self, directions: Collection[Direction]) -> Iterator[Mistake]:
        """Yield what it cannot do with rows of these languages; before any weight is loaded."""
        yield from ()

    def __call__(self, samples: Sequence[Sample]) -> Sequence[float | None]:
        """A value in [0, 1] for each sample; None where it does not apply."""
        raise NotImplementedError(f"{type(self).__name__} has no __call__")
