"""How alike instructions are: LCIA's pairwise TF-IDF for a whole codebook, and its rules."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer

import perdure
from perdure.errors import UsageError
from perdure.models.codebook import SimilarityConfig
from perdure.models.similarity import Embedding, Tfidf, similarity_of

pytestmark = pytest.mark.unit

SUPERNI = Path(perdure.__file__).parents[2] / "shared" / "data" / "superni_cl" / "tasks.json"
C2 = (1 + math.log(1.5)) ** 2


def by_sklearn(one: str, other: str) -> float:
    """The specification's own words: a fresh vectorizer fitted on just these two strings."""
    vectorizer = TfidfVectorizer(stop_words="english")
    if not any(map(vectorizer.build_analyzer(), (one, other))):
        with pytest.raises(ValueError, match="empty vocabulary"):
            vectorizer.fit([one, other])
        return 0.0
    rows = vectorizer.fit_transform([one, other]).toarray()
    return float(rows[0] @ rows[1])


def tfidf(texts: Sequence[str], stored: Sequence[str]) -> np.ndarray:
    return Tfidf().index(stored)(texts)


def test_micro_examples_by_hand() -> None:
    """The specification's check 15."""
    found = tfidf(["red cat"], ["red cat", "red dog", "blue dog", "red red cat"])[0]
    assert found[0] == 1.0
    assert found[1] == pytest.approx(1 / (1 + C2))
    assert round(found[1], 4) == 0.3361
    assert found[2] == 0.0
    # Counts 1, 1 and 2, 1; all words are in both: (2 + 1) / sqrt(2 · 5).
    assert found[3] == pytest.approx(3 / math.sqrt(10))


def test_it_is_scikit_learn_s_value_of_each_pair() -> None:
    """Random texts in several scripts, with stop words, single letters, repetitions, nothing."""
    said = (
        "the is what which it and red Red RED cat dog x 7 42 naïve façade İstanbul straße ΣΊΣΥΦΟΣ "
        "что который 文章的主题是什么 感情 क्या विषय ما e-mail don't snake_case 1.5 😀 . --"
    )
    words = [*said.split(), "\n", "\t", ""]
    draw = random.Random(0)
    texts = [
        draw.choice(["", " ", "\n"]).join(draw.choices(words, k=draw.randrange(0, 12)))
        if draw.random() < 0.2
        else " ".join(draw.choices(words, k=draw.randrange(0, 12)))
        for _ in range(40)
    ]
    stored = [*texts[:15], "", "what is it", *draw.sample(texts, 3)]
    found = tfidf(texts, stored)
    assert found.shape == (len(texts), len(stored))  # 800 pairs
    assert np.unique(found.round(3)).size > 50
    for i, text in enumerate(texts):
        for j, other in enumerate(stored):
            same = text.split() == other.split() != []
            value = 1.0 if same else by_sklearn(text, other)
            assert found[i, j] == pytest.approx(value, abs=1e-9), (text, other)
            assert not same or found[i, j] == 1.0


def test_it_is_symmetric_and_a_text_s_value_does_not_depend_on_its_neighbours() -> None:
    texts = ["red cat and dog", "red red dog", "a green bird", "what is it", ""]
    whole = tfidf(texts, texts)
    assert np.array_equal(whole, whole.T)
    alone = [[float(tfidf([a], [b])[0, 0]) for b in texts] for a in texts]
    np.testing.assert_array_equal(whole, alone)


@pytest.mark.parametrize(
    ("one", "other", "value"),
    [
        ("What is it?", "Which one is this?", 0.0),  # scikit-learn: empty vocabulary
        ("What is it?", "What  is it?\n", 1.0),  # a task that comes again stays in its group
        ("What is it?", "Judge the review.", 0.0),
        ("", "", 0.0),  # nothing is said, so nothing is the same
        (" \n", "Judge the review.", 0.0),
        ("x", "x", 1.0),  # no word of two signs
        ("文章的主题是什么", "文章的主题是什么", 1.0),  # no stop words, no blanks: as a whole
        ("文章的主题是什么", "这段文字的主题是什么", 0.0),
        ("Welches Thema hat der Text", "Welche Stimmung hat der Text", 3 / (3 + 2 * C2)),
    ],
)
def test_what_says_little_or_another_language_has_a_value(
    one: str, other: str, value: float
) -> None:
    assert tfidf([one], [other])[0, 0] == pytest.approx(value, abs=1e-9)
    assert tfidf([other], [one])[0, 0] == pytest.approx(value, abs=1e-9)


def test_nothing_stored_or_asked_has_a_shape() -> None:
    assert tfidf([], ["a b"]).shape == (0, 1)
    assert tfidf(["red cat", ""], []).shape == (2, 0)
    assert tfidf(["red cat"], ["", "the"]).tolist() == [[0.0, 0.0]]


def test_many_texts_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [f"red cat number{i % 7} word{i}" for i in range(10)]
    whole = tfidf(texts, texts[:4])
    monkeypatch.setattr("perdure.models.similarity.CHUNK", 3)
    np.testing.assert_array_equal(tfidf(texts, texts[:4]), whole)


def test_five_real_instructions() -> None:
    """What was measured with scikit-learn on the nine tasks of superni_cl."""
    if not SUPERNI.exists():
        pytest.skip(f"{SUPERNI} is not there")
    tasks = {name: task["instruction"] for name, task in json.loads(SUPERNI.read_text()).items()}
    assert len(set(tasks.values())) == 5
    names = ["agnews", "sst2", "mnli", "boolq", "copa"]
    topic, sentiment, logic, boolq, copa = range(5)
    found = tfidf([tasks[n] for n in names], [tasks[n] for n in names])
    assert round(found[topic, sentiment], 3) == 0.669
    assert round(found[boolq, topic], 3) == round(found[boolq, sentiment], 3) == 0.317
    assert round(found[logic, topic], 3) == 0.191
    assert round(found[logic, boolq], 3) == 0.144
    assert found[copa].tolist() == [0.0] * 5  # empty
    assert found.diagonal()[:4].tolist() == [1.0] * 4
    reworded = "Tell me which subject this text deals with; pick a label from the list."
    assert tfidf([reworded], [tasks["agnews"]])[0, 0] == 0.0


class Angles:
    """An encoder by hand: a text that is a number of degrees has the vector at that angle."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def vectors(self, texts: Sequence[str]) -> np.ndarray:
        self.asked.append(list(texts))
        angles = np.radians([float(text or 0) for text in texts])
        return np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)


def test_embeddings_are_compared_by_their_cosine_under_the_same_rules() -> None:
    encoder = Angles()
    index = Embedding(encoder).index(["0", "60", ""])
    assert encoder.asked == []  # nothing is read before somebody asks
    found = index(["90", " 60 ", "", "180", "90"])
    np.testing.assert_allclose(
        found, [[0, 0.866025, 0], [0.5, 1, 0], [0, 0, 0], [-1, -0.5, 0], [0, 0.866025, 0]],
        atol=1e-6,
    )  # fmt: skip
    assert found[1, 1] == 1.0
    index(["30"])
    assert encoder.asked == [["0", "60", ""], ["90", "180"], ["30"]]  # each text once


def test_a_measure_is_named() -> None:
    assert isinstance(similarity_of(SimilarityConfig(name="tfidf")), Tfidf)
    unknown = SimilarityConfig.model_construct(name="tf-idf")
    with pytest.raises(UsageError, match='did you mean "tfidf"'):
        similarity_of(unknown)
