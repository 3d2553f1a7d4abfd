"""Metrics of generated text against the one right answer, each 0 to 1 for an item.

The score of a whole task is the mean of its items for every one of them, so that two models can
be compared item by item with paired tests. For chrF this differs from sacrebleu's corpus score,
which pools n-gram counts over all items (long items then weigh more), and so does BLEU; ROUGE-L has
no other corpus form.
"""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from types import MappingProxyType
from typing import Any

from perdure.errors import UsageError, task_named
from perdure.rewards.base import language_of
from perdure.rewards.bleu import TOKENIZERS, sentence_bleu
from perdure.rewards.chrf import sentence_chrf
from perdure.streams.kinds import Metric, is_perdures, metric
from perdure.streams.task import Task
from perdure.streams.words import words

ROUNDING = 1e-9
_NO_ROW: Mapping[str, Any] = MappingProxyType({})


def normalise(text: str) -> str:
    """Return text in Unicode NFC, with every run of white space one blank and none at the ends.

    Case, punctuation and accents count: answers may be codes, names or German nouns.
    """
    return " ".join(unicodedata.normalize("NFC", text).split())


def exact_match(prediction: str, answer: str) -> float:
    """Return 1.0 if both texts are equal after `normalise`, else 0.0."""
    return float(normalise(prediction) == normalise(answer))


def rouge_l(prediction: str, answer: str) -> float:
    """Return the ROUGE-L F-measure: F1 of the longest common subsequence of words.

    Computed by `rouge_score`, without stemming, over `words`; equal to its own tokens on ASCII
    text, which drop every other letter. Texts that are equal after `normalise` are 1.0, also those
    without any word, such as an operator or an emoji. Source: Lin 2004.
    """
    if normalise(prediction) == normalise(answer):
        return 1.0
    return float(_rouge().score(answer, prediction)["rougeL"].fmeasure)


def chrf(prediction: str, answer: str) -> float:
    """Return sentence chrF2: character n-grams of order 1 to 6, recall weighted twice (beta 2).

    Computed by `sacrebleu` with its defaults (white space removed, no word n-grams), over 100.
    Source: Popović 2015, 2016.
    """
    return sentence_chrf(prediction, answer)


def bleu(prediction: str, answer: str, target_lang: str = "") -> float:
    """Return sentence BLEU: n-grams of 1 to 4 words, those orders alone that the text has.

    It is the reward's (`perdure.rewards.bleu`), so that scores and rewards mean the same. Source:
    Papineni et al. 2002; Post 2018.

    Args: target_lang: the texts' language, which decides what a word is; "": blanks do.

    Raises:
        UsageError: what that language's words need is not installed.
    """
    language = language_of(target_lang)
    words_by = TOKENIZERS.get(language.code, "13a") if language else "13a"
    return min(1.0, sentence_bleu(prediction, answer, words_by))


def mean(scores: Sequence[float]) -> float:
    """Return the mean of item scores (exactly rounded sum, so the order does not matter)."""
    return math.fsum(scores) / len(scores)


def item_score(
    task: str, of: Metric, prediction: str, answer: str, row: Mapping[str, Any] = _NO_ROW
) -> float:
    """One item's score by a metric's function, which may be a user's own.

    Args: row: gives the function what it `reads` beside the two texts.

    Raises:
        UsageError: a user's own failed, or gave no number or one outside its range.
    """
    try:
        more = {key: row[key] for key in of.reads if key in row}
        score = float(of.of_item()(prediction, answer, **more))
    except Exception as error:  # whatever the user's code raises
        if is_perdures(of.name):
            raise
        what = f"task {task!r}: metric {of.name} failed on the prediction {prediction!r} "
        raise UsageError(
            f"{what}and the answer {answer!r}: {type(error).__name__}: {error}",
            "it gets two texts and returns a number",
        ) from error
    if not of.low - ROUNDING <= score <= of.high + ROUNDING:
        raise UsageError(
            f"task {task!r}: metric {of.name} gave {score:g}, "
            f"which is not from {of.low:g} to {of.high:g}",
            "return a share, or declare the range: a Metric with low and high",
        )
    return score


def try_own(tasks: Iterable[Task]) -> None:
    """Try each metric of the user's own on the first test row's answer, and on an empty text.

    So it fails before any weight is loaded, and not after the first hours of training. One of
    Perdure's that reads more of a row is tried once for each value: a language may need what is
    not installed.

    Raises:
        UsageError: as `item_score`.
    """
    for task in tasks:
        of = metric(task.metric)
        if of.needs != "text" or not len(task.test):
            continue
        if is_perdures(of.name):
            first = {repr([row.get(key) for key in of.reads]): row for row in task.test}
            for row in first.values() if of.reads else ():
                try:
                    item_score(task.name, of, row["answer"], row["answer"], row)
                except UsageError as error:
                    what = f"{task_named(task.name)}: metric {of.name}: {error.what}"
                    raise UsageError(what, [*error.remedy, "or write metric: chrf"]) from error
            continue
        answer = task.test[0].get("answer")  # rows of a kind from elsewhere may have none
        if isinstance(answer, str):
            for prediction in (answer, ""):
                item_score(task.name, of, prediction, answer)


class _Words:
    def tokenize(self, text: str) -> list[str]:
        return words(text)


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=_Words())
