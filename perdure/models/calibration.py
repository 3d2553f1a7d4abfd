"""The two thresholds of a codebook, measured on its groups and on held-out rewordings.

By words (`tfidf`) the specification's thresholds stand, and nobody need measure them. Cosines of
sentence vectors mean something else with each encoder, and one threshold cannot serve both uses:
with MiniLM two known groups (topic and sentiment) are at .73, and right rewordings of one
instruction at .34 to .67. So there are two, each with its own rule.

`threshold`, from which on a task continues a group. B is the highest score of two stored groups,
which are known to differ; R is the lowest score of a rewording with its own group.

    B < R         (B + R) / 2      a reworded task continues its group
    B >= R        (B + 1) / 2      known groups stay apart; who rewords opens a group, which costs
                                   an adapter, where a wrong merger would cost two tasks. Between
                                   what differs and the same text, which is at 1
    no rewording  (B + 1) / 2
    one group     0.9

`accept`, below which a request fits none. Strangers are requests that fit no group, each scored
with its nearest.

    with strangers     the value with the highest (share of rewordings not below it) - (share of
                       strangers not below it), of the midpoints between neighbouring scores; of
                       several the lowest, which turns the fewest away
    without            the highest value that lets `keep` of the rewordings pass: 0.95
    without rewordings 0.3, which is no measurement (by words: `threshold`)

Held-out rewordings are those that a group has in the codebook, but for texts that it has learned
since, and of a group of several texts each one, scored with the others.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from perdure.errors import UsageError
from perdure.models.codebook import THRESHOLDS, UNCALIBRATED, Calibrated, Codebook
from perdure.models.router import Router, group_scores
from perdure.models.similarity import Similarity

if TYPE_CHECKING:
    from numpy.typing import NDArray

KEEP = 0.95
GIVEN = "as given, not measured"
DEFAULT = "the default, not measured"


def calibrate(
    codebook: Codebook,
    rewordings: Mapping[str, Sequence[str]] | None = None,
    strangers: Sequence[str] = (),
    keep: float = KEEP,
    similarity: Similarity | None = None,
    given: Sequence[str] = (),
) -> Codebook:
    """The codebook with both thresholds measured; see the module.

    Args:
        rewordings: by group, other wordings of its instructions; they are kept in the codebook with
            those that it has.
        strangers: requests that fit no group; kept as well.
        keep: share of the rewordings that `accept` lets pass where there are no strangers.
        given: "threshold" or "accept" where it stays as it is, as the user gave it.

    Returns: a new codebook; its `calibration` says the scores and the rules, and `told` prints it.

    Raises:
        UsageError: a rewording of an unknown group, or a `keep` out of range.
    """
    if not 0 < keep <= 1:
        raise UsageError(f"keep: {keep:g} is no share", "give a number above 0, at most 1: 0.95")
    codebook = _with(codebook, rewordings or {}, strangers)
    router = Router(codebook, similarity)
    groups = codebook.groups
    right: list[float] = []
    between: float | None = None
    for number, group in enumerate(groups):
        pairs = router.pairs(group.instructions)
        others = [s for i, s in enumerate(router.grouped(pairs).mean(0)) if i != number]
        between = max([*others, *([] if between is None else [between])], default=None)
        if len(group.instructions) > 1:
            start = int(router.ends[number]) - len(group.instructions)
            right += _each_with_the_others(
                pairs[:, start : int(router.ends[number])], codebook.score
            )
        held = [text for text in group.rewordings if text not in group.instructions]
        if held:
            right += router.scores(held)[:, number].tolist()
    away = codebook.strangers if groups else ()
    wrong = router.scores(away).max(1).tolist() if away else []
    measure = codebook.similarity.name
    threshold, first = _threshold(between, right, THRESHOLDS[measure])
    accept, second = _accept(right, wrong, keep, threshold if measure == "tfidf" else UNCALIBRATED)
    if "threshold" in given:
        threshold, first = codebook.threshold, GIVEN
    if "accept" in given:
        accept, second = codebook.accept, GIVEN
    said = Calibrated(
        between=None if between is None else _short(between),
        rewordings=sorted(map(_short, right)),
        strangers=sorted(map(_short, wrong)),
        why=[first, second],
    )
    found = {"threshold": threshold, "accept": accept, "calibration": said}
    return Codebook(**{**dict(codebook), **found})


def told(codebook: Codebook, given: Collection[str] = ()) -> str:
    """Both thresholds and where they come from, in lines to print.

    Args: given: "threshold" or "accept" where the user gave it; another value than the default was
        given by somebody in any case.
    """
    lines = [f"threshold {codebook.threshold:.3f}", f"accept {codebook.accept:.3f}"]
    if (said := codebook.calibration) is not None:
        if said.why[:1] not in ([], [GIVEN]):
            lines[0] += " for the next task"  # measured after the last one
        return "\n".join(f"{line}: {why}" for line, why in zip(lines, said.why, strict=False))
    words = codebook.similarity.name == "tfidf"
    opens = THRESHOLDS[codebook.similarity.name]
    fits = codebook.threshold if words else UNCALIBRATED
    first = GIVEN if "threshold" in given or codebook.threshold != opens else DEFAULT
    default = "as threshold" if words else DEFAULT
    second = GIVEN if "accept" in given or codebook.accept != fits else default
    return f"{lines[0]}: {first}\n{lines[1]}: {second}"


def astray(router: Router, name: str | None = None, later: bool = False) -> Iterator[str]:
    """Groups whose own texts do not reach them as requests, in lines: how many, and what to do.

    Args:
        name: of this group alone; None: of each.
        later: tasks were learned by this codebook, whose score stays what it is.
    """
    book = router.codebook
    places = [place for place, group in enumerate(book.groups) if name in (None, group.name)]
    texts = [text for place in places for text in book.groups[place].instructions]
    scores = router.scores(texts) if texts else np.zeros((0, 0))
    for place in places:
        count = len(book.groups[place].instructions)
        part, scores = scores[:count], scores[count:]
        first = part.argmax(1)
        # Where the nearest answers what fits none, a text need not fit to reach its group.
        none = part.max(1) < (book.accept if book.fallback != "nearest" else 0)
        other = ~none & (first != place)
        said = []
        if none.any():
            median = float(np.median(part[none, place]))
            what = f"{_so_many(none)} below accept {book.accept:.2f} by score: {book.score}"
            said.append(f"{what} (median {median:.2f}), so such requests fit no group")
        if other.any():
            names = ", ".join(book.groups[each].name for each in np.unique(first[other]))
            said.append(f"{_so_many(other)} answered by another group ({names})")
        if said:
            yield f"group {book.groups[place].name}: {'; '.join(said)}: {_mended(book, later)}"


def _so_many(which: NDArray[np.bool_]) -> str:
    count = int(which.sum())
    return f"{count} of its own {len(which)} texts {'is' if count == 1 else 'are'}"


def _mended(codebook: Codebook, later: bool) -> str:
    """What has texts reach their own group."""
    nearest = f"take score: max{' in a new run' if later else ''}, or "
    if codebook.score == "max":  # only a text that an older group has as well
        return "give each task an instruction of its own"
    if codebook.accept > codebook.threshold:
        return f"{nearest}an accept not above threshold {codebook.threshold:.2f}"
    return f"{nearest}give the task an instruction"


def _with(
    codebook: Codebook, rewordings: Mapping[str, Sequence[str]], strangers: Sequence[str]
) -> Codebook:
    """The codebook that keeps these texts as well, each once."""
    more = {codebook.group(name).name: texts for name, texts in rewordings.items()}
    groups = [
        g.model_copy(
            update={"rewordings": tuple(dict.fromkeys((*g.rewordings, *more.get(g.name, ()))))}
        )
        for g in codebook.groups
    ]
    away = tuple(dict.fromkeys((*codebook.strangers, *strangers)))
    return codebook.model_copy(update={"groups": tuple(groups), "strangers": away})


def _each_with_the_others(own: NDArray[np.float64], score: str) -> list[float]:
    """Scores of each text of a group with the rest of it; own: (texts, texts)."""
    found = []
    for i in range(len(own)):
        rest = np.delete(own[i : i + 1], i, axis=1)
        found.append(float(group_scores(rest, [rest.shape[1]], score)[0, 0]))
    return found


def _threshold(
    between: float | None, rewordings: Sequence[float], default: float
) -> tuple[float, str]:
    if between is None:
        return default, "one group, nothing to measure: the default"
    low = min(rewordings, default=None)
    apart = f"the two nearest groups are at {between:.3f}"
    if low is not None and between < low:
        value = (between + low) / 2
        return _in_range(value), f"between {apart} and the farthest rewording at {low:.3f}"
    why = "no rewording" if low is None else f"the farthest rewording is at {low:.3f}"
    return _in_range((between + 1) / 2), f"{apart}; {why}: half way to the same text"


def _accept(
    rewordings: Sequence[float], strangers: Sequence[float], keep: float, default: float
) -> tuple[float, str]:
    if not rewordings:
        return default, "no rewording, nothing to measure: the default"
    right, wrong = np.sort(rewordings), np.sort(strangers)
    if not len(wrong):
        refused = len(right) - math.ceil(keep * len(right) - 1e-9)
        value = _in_range(math.floor(float(right[refused]) * 1e6) / 1e6)
        passed = int((right >= value).sum())
        return value, f"{passed} of {len(right)} held-out rewordings pass; no stranger was given"
    values = np.unique([*right, *wrong])
    # From the lowest on; the first lets all pass.
    steps = [float(values[0]), *((values[1:] + values[:-1]) / 2).tolist()]
    gains = [float((right >= s).mean() - (wrong >= s).mean()) for s in steps]
    value = _in_range(steps[int(np.argmax(np.round(gains, 12)))])
    passed, let = int((right >= value).sum()), int((wrong >= value).sum())
    return value, (
        f"{passed} of {len(right)} held-out rewordings pass, and {let} of {len(wrong)} strangers"
    )


def _in_range(value: float) -> float:
    return min(1.0, max(0.0, value))


def _short(value: float) -> float:
    return round(float(value), 6)
