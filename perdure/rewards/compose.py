"""Several rewards as one value for each sample, and as parts.

    R = 0                                          if the answer cannot be read, or a guard is 0
    R = w_format f + (product of gates) * sum_k w_k q_k     else

f is 1 for an answer that can be read, w_format 0.2 unless the recipe says more; the weights of the
qualities q_k sum to 1, those that are not given being equal shares of what the others leave. The
released reward of R1-T1 (arXiv 2502.19735) is 0.2 f + COMET, without guard or gate.

A reward that gives None does not apply to a sample: a quality's weight then goes to the others, a
guard or gate lets it pass. What is no value in [0, 1] stops the run: TRL would count it as 0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from perdure.errors import PerdureError, TrainingError, UsageError, brief, one_line
from perdure.recipe.data import located, short_name
from perdure.recipe.mistakes import Mistake, mistakes_in, show
from perdure.rewards import registry
from perdure.rewards.base import Reward, Sample, language_of
from perdure.streams.task import place_of

FORMAT_WEIGHT = 0.2
_ROUNDING = 1e-9
_QUOTED = 300
Entry = str | Mapping[str, Any]


@dataclass(frozen=True)
class Scored:
    """What samples earned.

    Attributes:
        total: each sample's R.
        parts: each reward's values; NaN where it was not asked or does not apply. A quality is 0
            where the answer cannot be read.
        problems: what is wrong with each sample by the parser, "" where nothing is.
    """

    total: list[float]
    parts: dict[str, list[float]]
    problems: list[str]

    def means(self) -> dict[str, float]:
        """Each reward's mean over the samples that it applies to; without those that have none."""
        applied = {
            name: [value for value in values if not math.isnan(value)]
            for name, values in self.parts.items()
        }
        return {name: math.fsum(each) / len(each) for name, each in applied.items() if each}


class Rewards:
    """Rewards with their weights; called with samples, it gives what each earned.

    Args: weights: of formats and qualities, by name; guards and gates have none.
    """

    def __init__(self, rewards: Sequence[Reward], weights: Mapping[str, float]) -> None:
        self.rewards, self.weights = tuple(rewards), dict(weights)

    @property
    def versions(self) -> dict[str, str]:
        """Each reward's version by its name: equal versions give equal values."""
        return {reward.name: reward.version for reward in self.rewards}

    @property
    def marks(self) -> dict[str, Any]:
        """Each reward's version, options and, where it has one, weight, by its name, as JSON: what
        decides how much a completion earns."""
        return {
            reward.name: {
                "version": reward.version,
                **reward.config.model_dump(mode="json"),
                **({"weight": w} if (w := self.weights.get(reward.name)) is not None else {}),
            }
            for reward in self.rewards
        }

    def check(self, rows: Iterable[Mapping[str, Any]], place: str = "rl.rewards") -> None:
        """Refuse what a reward cannot do with rows, such as a language that it does not know.

        Args: place: of the recipe's rewards, to begin a message with.

        Raises:
            UsageError: all that is wrong, each by the reward's name.
        """
        codes = {(row.get("source_lang") or "", row.get("target_lang") or "") for row in rows}
        directions = [tuple(map(language_of, pair)) for pair in sorted(codes)]
        lines = []
        for reward in self.rewards:
            for wrong in reward.check([(source, target) for source, target in directions]):
                key = ".".join([place, reward.name, *map(str, wrong.key)])
                lines += [f"{key}: {wrong.what}", *([f"  {wrong.remedy}"] if wrong.remedy else [])]
        if lines:
            raise UsageError("\n".join(lines))

    def try_own(self, samples: Sequence[Sample], place: str = "rl.rewards") -> None:
        """Try the user's own functions, so that one that fails does before any weight is loaded,
        and not after the warm-up.

        Args: place: of the recipe's rewards, to begin a message with.

        Raises:
            UsageError: as `__call__`.
        """
        for reward in self.rewards:
            if ":" in reward.name and samples:
                try:
                    _values(reward, samples)
                except TrainingError as error:
                    tried = "it was tried on a right answer, before training"
                    raise UsageError(f"{place}: {error.what}", [tried, *error.remedy]) from error

    def __call__(self, samples: Sequence[Sample]) -> Scored:
        """What each sample earns.

        Raises:
            TrainingError: a reward failed, gave another number of values than it got samples, or
                something that is no number in [0, 1]; or no quality applies to a sample.
        """
        problems = [sample.parsed.problem for sample in samples]
        readable = [number for number, problem in enumerate(problems) if not problem]
        parts: dict[str, list[float]] = {}
        for reward in self.rewards:
            if reward.role == "format":
                parts[reward.name] = _values(reward, samples)
                continue
            values = [0.0 if reward.role == "quality" else math.nan] * len(samples)
            found = _values(reward, [samples[number] for number in readable])
            for number, value in zip(readable, found, strict=True):
                values[number] = value
            parts[reward.name] = values
        total = [
            self._total({name: values[number] for name, values in parts.items()}, sample)
            for number, sample in enumerate(samples)
        ]
        return Scored(total, parts, problems)

    def _total(self, values: Mapping[str, float], sample: Sample) -> float:
        """R of one sample; NaN among the values is what does not apply."""
        role = {reward.name: reward.role for reward in self.rewards}
        applied = {name: value for name, value in values.items() if not math.isnan(value)}
        hard = [value for name, value in applied.items() if role[name] in ("format", "guard")]
        if sample.parsed.problem or 0.0 in hard:
            return 0.0
        formats = [self.weights[n] * v for n, v in applied.items() if role[n] == "format"]
        gates = [value for name, value in applied.items() if role[name] == "gate"]
        there = [name for name in applied if role[name] == "quality"]
        every = [reward.name for reward in self.rewards if reward.role == "quality"]
        if every and not there:
            raise _refused(f"no quality reward ({', '.join(every)}) gave a value", sample)
        share = math.fsum(self.weights[name] for name in there)
        quality = math.fsum(self.weights[name] * values[name] for name in there)
        if there and not share:
            raise _refused(f"only qualities of weight 0 gave a value ({', '.join(there)})", sample)
        return math.fsum(formats) + math.prod(gates) * (quality / share if there else 0.0)


def _values(reward: Reward, samples: Sequence[Sample]) -> list[float]:
    """A reward's values, NaN for None; with all the care of `Rewards.__call__`."""
    if not samples:
        return []
    try:
        found = list(reward(samples))
    except Exception as error:  # whatever a reward's code raises
        sample = _culprit(reward, samples)
        why = error.what if isinstance(error, PerdureError) else f"{type(error).__name__}: {error}"
        raise _refused(f"reward {reward.name} failed: {brief(why, _QUOTED)}", sample) from error
    if len(found) != len(samples):
        count = f"{len(found)} value{'' if len(found) == 1 else 's'}"
        what = f"reward {reward.name} gave {count} for {len(samples)} completions"
        raise _refused(what, samples[0])
    values = []
    for value, sample in zip(found, samples, strict=True):
        try:
            number = math.nan if value is None else float(value)
        except (TypeError, ValueError) as error:
            what = f"reward {reward.name} gave {brief(repr(value))}, which is no number"
            raise _refused(what, sample) from error
        if value is not None and not -_ROUNDING <= number <= 1 + _ROUNDING:  # NaN is not either
            what = f"reward {reward.name} gave {number:g}, which is not from 0 to 1"
            if math.isnan(number):
                what += "; where a reward does not apply it gives None"
            raise _refused(what, sample)
        values.append(number if value is None else min(max(number, 0.0), 1.0))
    return values


def _culprit(reward: Reward, samples: Sequence[Sample]) -> Sample:
    """The sample that a reward fails on, the first one if it fails on none alone."""
    for sample in samples:
        try:
            reward([sample])
        except Exception:  # as in `_values`
            return sample
    return samples[0]


def _refused(what: str, sample: Sample) -> TrainingError:
    place = place_of(sample.row) if isinstance(sample.row, dict) else ""
    where = [f"row: {place}"] if place else []
    quoted = [
        f"prompt: {brief(sample.prompt, _QUOTED)}",
        f"completion: {brief(sample.completion, _QUOTED)}",
    ]
    return TrainingError(what, [*where, *quoted])


# --- from a recipe


def build(entries: Iterable[Entry], folder: Path | None = None, place: str = "rewards") -> Rewards:
    """The rewards that a recipe lists.

    Args:
        entries: names, or `{name: ..., weight: ..., option: ...}`.
        folder: that of the recipe, where a user's own modules may lie.
        place: of the list, to begin a message with.

    Raises:
        UsageError: all that is wrong, each by its key; or something needed is not installed.
    """
    read, found = _read(list(entries), folder)
    if found:
        lines = []
        for mistake in found:
            key = ".".join([place, *map(str, mistake.key)])
            lines += [f"{key}: {mistake.what}", *([f"  {mistake.remedy}"] * bool(mistake.remedy))]
        raise UsageError("\n".join(lines))
    made = []
    for entry in read:
        reward = entry.kind(entry.kind.Config.model_validate(entry.options))
        reward.name = entry.name
        made.append(reward)
    return Rewards(made, _weights(read))


def mistakes(entries: Sequence[Any], folder: Path | None = None) -> list[Mistake]:
    """What is wrong with a recipe's rewards; keys are relative to the list."""
    return _read(entries, folder)[1]


@dataclass(frozen=True)
class _Entry:
    name: str
    kind: type[Reward]
    weight: float | None
    options: Mapping[str, Any]


def _read(entries: Sequence[Any], folder: Path | None) -> tuple[list[_Entry], list[Mistake]]:
    read: list[_Entry] = []
    found: list[Mistake] = []
    for number, item in enumerate(entries):
        entry, wrong = _entry(item, folder)
        found += [Mistake((number, *m.key), m.what, m.remedy) for m in wrong]
        if entry is not None and entry.name in (one.name for one in read):
            found.append(Mistake((number,), f"{entry.name} is listed twice", "leave one out"))
        elif entry is not None:
            read.append(entry)
    if not found:
        found = list(_weight_mistakes(read))
    return read, found


def _entry(item: Any, folder: Path | None) -> tuple[_Entry | None, list[Mistake]]:
    data = {"name": item} if isinstance(item, str) else item
    if not isinstance(data, Mapping) or not isinstance(data.get("name"), str):
        what = f"{show(item)} is no reward"
        return None, [Mistake((), what, "write a name, or {name: ..., option: ...}")]
    name, weight = data["name"], data.get("weight")
    options = {str(key): value for key, value in data.items() if key not in ("name", "weight")}
    try:
        kind = registry.load(located(name, folder) if folder is not None else name)
    except PerdureError as error:
        key = ("name",) if isinstance(item, Mapping) else ()
        return None, [Mistake(key, error.what, one_line(error.remedy))]
    found = []
    if "weight" in data:
        if kind.role in ("guard", "gate"):
            what = f"{short_name(name)} is a {kind.role}, which has no weight"
            found.append(Mistake(("weight",), what, "leave it out"))
        elif not _is_share(weight):
            what = f"must be a number from 0 to 1, not {show(weight)}"
            found.append(Mistake(("weight",), what, "the weights of the qualities sum to 1"))
    try:
        kind.Config.model_validate(options)
    except ValidationError as error:
        found += mistakes_in(error, options, kind.Config)
    if found:
        return None, found
    share = float(weight) if weight is not None else None
    return _Entry(short_name(name), kind, share, options), []


def _is_share(weight: Any) -> bool:
    return isinstance(weight, int | float) and not isinstance(weight, bool) and 0 <= weight <= 1


def _weight_mistakes(entries: Sequence[_Entry]) -> Iterator[Mistake]:
    if entries and not any(entry.kind.role in ("format", "quality") for entry in entries):
        what = "only guards and gates, which earn nothing by themselves"
        yield Mistake((), what, "add what is to be earned, such as chrf")
    qualities = [entry for entry in entries if entry.kind.role == "quality"]
    given = [entry.weight for entry in qualities if entry.weight is not None]
    if not given:
        return
    total = math.fsum(given)
    if len(given) == len(qualities) and abs(total - 1) > 1e-6:
        what = f"the weights of {', '.join(entry.name for entry in qualities)} sum to {total:g}"
        yield Mistake((), what, "they must sum to 1; leave one out, and it gets the rest")
    if len(given) < len(qualities) and total >= 1:
        rest = ", ".join(entry.name for entry in qualities if entry.weight is None)
        what = f"the weights that are given sum to {total:g}, which leaves none for {rest}"
        yield Mistake((), what, "they must sum to 1")


def _weights(entries: Sequence[_Entry]) -> dict[str, float]:
    """The weights of formats and qualities."""
    qualities = [entry for entry in entries if entry.kind.role == "quality"]
    given = math.fsum(entry.weight for entry in qualities if entry.weight is not None)
    open_ones = [entry for entry in qualities if entry.weight is None]
    share = (1 - given) / len(open_ones) if open_ones else 0.0
    weights = {e.name: share if e.weight is None else e.weight for e in qualities}
    for entry in entries:
        if entry.kind.role == "format":
            weights[entry.name] = FORMAT_WEIGHT if entry.weight is None else entry.weight
    return weights
