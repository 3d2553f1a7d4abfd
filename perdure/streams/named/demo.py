"""Named streams: real text that Python packages carry, so that a first run needs no download.

    package             what is read                                       licence
    chatterbot-corpus   data/<language>/<topic>.yml, dialogues             BSD-3-Clause
    babel               CLDR names of countries, languages, currencies     Unicode-3.0
    pydoc_data.topics   the language reference, part of Python itself      PSF-2.0

Each reader is a pure function of its seed: same packages and seed, same rows, in any process.
It drops what occurs twice, drops a text that bears two labels, and deals every text to exactly
one split. Rows alternate between the labels, so `rows[:n]` is as balanced as n rows can be.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, zip_longest
from pathlib import Path
from typing import Any, NamedTuple

from perdure.errors import UsageError
from perdure.streams.kinds import LABEL_LIKELIHOOD
from perdure.streams.named.intents import intents
from perdure.streams.task import GeneralText, Row, Task, TaskStream

TOPICS: Mapping[str, str] = {
    "ai": "robots",
    "coding": "programming",
    "emotion": "feelings",
    "literature": "books",
    "money": "money",
    "movies": "movies",
    "psychology": "character",
    "science": "science",
    "sports": "sports",
    "trivia": "quiz",
}
"""File name in data/english -> label; the files of at least twenty different questions."""

LANGUAGES: Mapping[str, str] = {
    "dutch": "Dutch",
    "english": "English",
    "french": "French",
    "german": "German",
    "indonesian": "Indonesian",
    "italian": "Italian",
    "portuguese": "Portuguese",
    "spanish": "Spanish",
    "turkish": "Turkish",
}
"""Folder in data/ -> label; languages in Latin letters, so that the script alone tells nothing.
Swedish is left out, because a third of its sentences are English."""

CODES: Mapping[str, str] = {
    "country": "K7",
    "language": "Q2",
    "currency": "Z5",
    "month or day": "M9",
}
"""Kind of thing -> invented code: the kinds are known to a base model, the codes are not."""


class Splits(NamedTuple):
    """Rows of one task, dealt to three splits that share no text."""

    train: list[Row]
    validation: list[Row]
    test: list[Row]


@dataclass(frozen=True)
class Sizes:
    """How much of a built-in stream is used; numbers are rows (a task) or texts."""

    train: int = 256
    validation: int = 32
    test: int = 80
    replay: int = 64
    held_out: int = 32


def chatterbot_questions(seed: int) -> Splits:
    """Return English questions and remarks; the answer is their topic, one of `TOPICS`."""
    texts = (
        (first, label)
        for stem, label in TOPICS.items()
        for first, *_ in _dialogues("english", stem)
    )
    return _deal(texts, f"{seed}/questions")


def chatterbot_languages(seed: int) -> Splits:
    """Return sentences in nine languages; the answer is the language, one of `LANGUAGES`.

    Sentences of fewer than three words are left out, since many of them are no one's language
    ("OK.", "Star Trek").
    """
    texts = (
        (text, label)
        for folder, label in LANGUAGES.items()
        for dialogue in _dialogues(folder)
        for text in dialogue
        if 3 <= len(text.split()) <= 40
    )
    return _deal(texts, f"{seed}/languages")


def cldr_names(seed: int) -> Splits:
    """Return English names of countries and languages; the answer is the German name.

    Names that are the same in both languages are left out: copying is not learning.
    """
    english, german = _locale("en"), _locale("de")
    pairs = (
        (name, str(there[code]))
        for here, there in (
            (english.territories, german.territories),
            (english.languages, german.languages),
        )
        for code, name in sorted(here.items())
        if not code.isdigit() and code in there and str(there[code]) != name
    )
    rows = {_normal(name): (name, german_name) for name, german_name in pairs}
    return _deal(rows.values(), f"{seed}/names", by_label=False)


def cldr_codes(seed: int) -> Splits:
    """Return names of countries, languages, currencies, months; the answer is a code of `CODES`."""
    texts: list[tuple[str, str]] = []
    for locale in (_locale("en"), _locale("fr"), _locale("es")):
        calendar = [*locale.months["format"]["wide"].values()]
        calendar += [*locale.days["format"]["wide"].values()]
        kinds: dict[str, Iterable[str]] = {
            "country": (n for c, n in sorted(locale.territories.items()) if not c.isdigit()),
            "language": (n for _, n in sorted(locale.languages.items())),
            "currency": (n for _, n in sorted(locale.currencies.items())),
            "month or day": calendar,
        }
        texts += [(str(n), CODES[kind]) for kind, names in kinds.items() for n in names]
    return _deal(texts, f"{seed}/codes")


def pydoc_texts(seed: int, characters: int = 500) -> GeneralText:
    """Return prose of the Python reference in pieces of about `characters`, seeded order.

    Whole topics are dealt to either side, after paragraphs that stand in several topics were
    kept once, so the two sides share no paragraph. About a third is held out. The text is the
    running interpreter's: another Python version has another text.
    """
    from pydoc_data.topics import topics  # type: ignore[import-untyped, unused-ignore]

    pieces: dict[str, list[str]] = {}
    seen: set[str] = set()
    for name in sorted(topics):
        piece: list[str] = []
        for block in re.split(r"\n\s*\n", topics[name]):
            text = " ".join(block.split())
            # Indented blocks are code and grammar, a row of signs underlines a heading.
            prose = not block.lstrip("\n").startswith("  ") and not re.search(r"[*=~^-]{4}", block)
            if prose and len(text) >= 40 and "::=" not in text and text not in seen:
                seen.add(text)
                piece.append(text)
            if sum(map(len, piece)) >= characters:
                pieces.setdefault(name, []).append("\n\n".join(piece))
                piece = []
    order = sorted(pieces, key=lambda name: _rank(f"{seed}/pydoc", name))
    total = sum(map(len, pieces.values()))
    held_out: list[str] = []
    replay: list[str] = []
    for name in order:
        side = held_out if len(held_out) + len(pieces[name]) <= total / 3 else replay
        side.extend(pieces[name])
    for side in (held_out, replay):
        side.sort(key=lambda text: _rank(f"{seed}/pydoc", text))
    return GeneralText(tuple(replay), tuple(held_out), "pydoc_data.topics (Python itself)")


DEMO_TOPICS = ("programming", "quiz", "feelings", "robots", "character")
DEMO_LANGUAGES = tuple(label for label in LANGUAGES.values() if label != "English")
DEMO_KINDS = {code: "date" if " " in kind else kind for kind, code in CODES.items()}
DEMO_CHARACTERS = 60
"""What is told apart, in texts of at most so many characters: the topics with enough questions for
some 150 balanced training rows, the foreign languages, and the kinds of `CODES` in plain words
(code -> word). The answers are plain words, since a small model learns those within a hundred rows;
invented ones were near chance after as many."""
FEW_LANGUAGES = ("French", "German", "Italian", "Spanish")
"""Those of the demo: few are learned in few steps."""


def demo(seed: int, sizes: Sizes | None = None) -> TaskStream:
    """Build the demo's two tasks; general text is the Python reference.

    An answer is right if it is more likely than every other word of both tasks: a model that
    answers "date" to a question about a language is wrong, as it would be for whoever asked it.
    Among a task's own words alone, the right one is often still ahead, which hides most of what
    sequential training does.
    """
    sizes = sizes or Sizes()
    tasks = [_language(seed, sizes, FEW_LANGUAGES), _kind(seed, sizes)]
    words = tuple(label for task in tasks for label in task.labels)
    shared = tuple(replace(task, labels=words) for task in tasks)
    return TaskStream(shared, _general(seed, sizes), name="demo")


def three_tasks(seed: int, sizes: Sizes | None = None) -> TaskStream:
    """Build three tasks, each scored among its own words, as some benchmarks do."""
    sizes = sizes or Sizes()
    questions = chatterbot_questions(seed)
    source = "chatterbot-corpus, English questions"
    topic = _named("topic", questions, sizes, "Name the topic.", DEMO_TOPICS, source)
    tasks = (topic, _language(seed, sizes, DEMO_LANGUAGES), _kind(seed, sizes))
    return TaskStream(tasks, _general(seed, sizes), name="three tasks")


def _language(seed: int, sizes: Sizes, labels: tuple[str, ...]) -> Task:
    source = f"chatterbot-corpus, {len(labels)} languages"
    splits = chatterbot_languages(seed)
    return _named("language", splits, sizes, "Name the language.", labels, source)


def _kind(seed: int, sizes: Sizes) -> Task:
    def in_words(rows: list[Row]) -> list[Row]:
        return [{**row, "answer": DEMO_KINDS[row["answer"]]} for row in rows]

    splits = Splits(*map(in_words, cldr_codes(seed)))
    source = "babel, CLDR names in English, French and Spanish"
    return _named("kind", splits, sizes, "Name the kind.", tuple(DEMO_KINDS.values()), source)


def _general(seed: int, sizes: Sizes) -> GeneralText:
    text = pydoc_texts(seed)
    return GeneralText(text.replay[: sizes.replay], text.held_out[: sizes.held_out], text.source)


def _named(
    name: str,
    splits: Splits,
    sizes: Sizes,
    instruction: str,
    labels: tuple[str, ...],
    source: str,
) -> Task:
    """A task of short texts. Instructions are short too, because every row pays for its tokens."""

    def head(rows: list[Row], count: int) -> list[Row]:
        short = (
            _instructed(row, instruction)
            for row in rows
            if row["answer"] in labels and len(row["prompt"][0]["content"]) <= DEMO_CHARACTERS
        )
        return list(islice(short, count))

    return Task(
        name,
        head(splits.train, sizes.train),
        head(splits.validation, sizes.validation),
        head(splits.test, sizes.test),
        metric=LABEL_LIKELIHOOD.name,
        labels=labels,
        source=source,
    )


def intents_of(seed: int, sizes: Sizes | None = None) -> TaskStream:
    """The stream of `perdure.streams.named.intents`; it has no general text."""
    return intents(seed, *((sizes.train, sizes.validation, sizes.test) if sizes else ()))


Builder = Callable[[int, "Sizes | None"], TaskStream]
STREAMS: dict[str, tuple[str, Builder]] = {
    "demo": ("language of a sentence, kind of a name; needs no hub", demo),
    "intents": ("what customers ask for, six tasks of four classes; needs no hub", intents_of),
}
"""Name -> (one line for people, builder). The builder takes the seed and sizes (None: usual)."""
FORMATS = {"demo": "labels", "intents": "classes"}
"""What each one's rows would be written as."""
LICENCES = {
    "demo": "of the packages it reads: BSD-3-Clause, Unicode-3.0, PSF-2.0",
    "intents": "sentences written for Perdure, under its own licence",
}


def _instructed(row: Row, instruction: str) -> Row:
    return {**row, "prompt": [{"role": "system", "content": instruction}, *row["prompt"]]}


def _rank(seed: str, text: str) -> bytes:
    """Return a sort key that shuffles: depends on seed and text only, not on row order."""
    return hashlib.sha256(f"{seed}\0{text}".encode()).digest()


def _normal(text: str) -> str:
    """Return what two texts must share to count as the same: letters and digits."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def _deal(texts: Iterable[tuple[str, str]], seed: str, by_label: bool = True) -> Splits:
    """Deal (text, answer) pairs to splits, 65 : 10 : 25 within each label.

    `by_label` False is for free answers, which are all one group.
    """
    labels: dict[str, set[str]] = {}
    first: dict[str, tuple[str, str]] = {}
    for text, label in texts:
        text = " ".join(text.split())
        if key := _normal(text):
            labels.setdefault(key, set()).add(label)
            first.setdefault(key, (text, label))
    groups: dict[str, list[tuple[str, str]]] = {}
    for key in sorted(first, key=lambda key: _rank(seed, key)):
        if len(labels[key]) == 1:
            groups.setdefault(first[key][1] if by_label else "", []).append(first[key])
    cuts = [(len(g) * 25 // 100, len(g) * 35 // 100, g) for _, g in sorted(groups.items())]
    return Splits(
        train=_alternate([group[later:] for _, later, group in cuts]),
        validation=_alternate([group[test:later] for test, later, group in cuts]),
        test=_alternate([group[:test] for test, _, group in cuts]),
    )


def _alternate(groups: Sequence[Sequence[tuple[str, str]]]) -> list[Row]:
    return [
        {"prompt": [{"role": "user", "content": pair[0]}], "answer": pair[1]}
        for turn in zip_longest(*groups)
        for pair in turn
        if pair is not None
    ]


def _dialogues(language: str, stem: str = "*") -> Iterator[list[str]]:
    """Yield the dialogues of data/<language>/<stem>.yml, each a list of what was said in turn."""
    spec = importlib.util.find_spec("chatterbot_corpus")  # finds without importing its YAML code
    if spec is None or spec.origin is None:
        raise _missing("chatterbot-corpus")
    try:
        import yaml
    except ImportError:
        raise _missing("PyYAML") from None
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml is ten times faster
    for path in sorted((Path(spec.origin).parent / "data" / language).glob(f"{stem}.yml")):
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=loader)
        for dialogue in content.get("conversations") or ():
            if said := [str(text) for text in dialogue]:
                yield said


def _locale(name: str) -> Any:
    try:
        from babel import Locale
    except ImportError:
        raise _missing("babel") from None
    return Locale.parse(name)


def _missing(package: str) -> UsageError:
    return UsageError(
        f"the built-in streams read their text from the package {package}, which is not installed",
        'pip install "perdure[demo]"',
    )
