"""How similar instructions are: two measures, each for a whole codebook at once.

    tfidf       words in common. LCIA's (docs of `Tfidf`): exact, nothing to load, blind to other
                words for the same thing
    embedding   cosine of two sentences' vectors, by a sentence encoder (`perdure.models.encoders`)

Rules of both, for every pair of texts:

    the same text twice (white space aside)   1.0, also where it is of stop words alone
    a blank text and anything, itself too     0.0
    else                                      the measure's value, rounded so that two orders of one
                                              sum are the same number

Source of the first rule: LCIA's specification says that identical strings score 1.0, and that the
repetition of a task leaves its group as it is; its released code raises "empty vocabulary" for two
texts of stop words.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from perdure.errors import UsageError
from perdure.models.instructions import folded
from perdure.recipe.mistakes import near

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from perdure.models.codebook import SimilarityConfig

SIMILARITIES = ("tfidf", "embedding")
CHUNK = 1024
"""Texts compared at once, so that a whole test set takes no more memory than its result."""


class Index(Protocol):
    """Stored texts, made ready to be compared with others."""

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Similarity of each text to each stored one, (texts, stored)."""


class Similarity(Protocol):
    """A measure of how similar two texts are."""

    def index(self, stored: Sequence[str]) -> Index:
        """Make stored texts ready."""


def similarity_of(config: SimilarityConfig) -> Similarity:
    """The measure that a codebook or a recipe names; an encoder is loaded when it is first asked.

    Raises:
        UsageError: no such measure, or one that needs what is not installed.
    """
    if config.name == "tfidf":
        return Tfidf()
    if config.name == "embedding":
        from perdure.models.encoders import SentenceEncoder

        return Embedding(SentenceEncoder(config.encoder or "", config.revision).checked(config))
    raise UsageError(
        f"similarity: no measure is called {config.name!r}",
        near(config.name, SIMILARITIES) or f"those there are: {', '.join(SIMILARITIES)}",
    )


def fingerprinted(config: SimilarityConfig) -> SimilarityConfig:
    """The configuration with the fingerprint of the encoder that is here now."""
    if config.name != "embedding":
        return config
    from perdure.models.encoders import SentenceEncoder

    found = SentenceEncoder(config.encoder or "", config.revision).fingerprint()
    return config.model_copy(update={"fingerprint": found})


class _Rules:
    """The rules of the module around a measure's own index.

    Args: measure: (texts, stored) of texts that are not blank; digits: kept behind the point.
    """

    def __init__(
        self,
        stored: Sequence[str],
        measure: Callable[[Sequence[str]], NDArray[np.float64]],
        digits: int,
    ) -> None:
        self.measure, self.digits = measure, digits
        self.stored = [folded(text) for text in stored]
        self.places: dict[str, list[int]] = {}
        for place, text in enumerate(self.stored):
            self.places.setdefault(text, []).append(place)
        self.places.pop("", None)
        self.blank = [place for place, text in enumerate(self.stored) if not text]

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float64]:
        plain = [folded(text) for text in texts]
        once = list(dict.fromkeys(filter(None, plain)))
        # The last row stands for every blank text.
        found = np.zeros((len(once) + 1, len(self.stored)))
        if self.stored:
            for start in range(0, len(once), CHUNK):
                part = once[start : start + CHUNK]
                found[start : start + len(part)] = self.measure(part)
        found = np.round(found, self.digits)
        found[:, self.blank] = 0.0
        for row, text in enumerate(once):
            found[row, self.places.get(text, [])] = 1.0
        rows = {text: row for row, text in enumerate(once)}
        return found[[rows.get(text, len(once)) for text in plain]]


class Tfidf:
    """LCIA's measure: for each pair of texts a TF-IDF vectorizer of scikit-learn (English stop
    words, else its defaults) fitted on these two alone, and the cosine of their rows.

    Of two documents the smoothed idf of a word is ln((1 + 2) / (1 + df)) + 1, which has two values:

        in both texts   ln(3/3) + 1 = 1
        in one of them  ln(3/2) + 1 = c,  about 1.4055

    So no pair needs a vectorizer. With the counts x and y of two texts' words, sums over words w:

        cosine = sum x y / sqrt(n(x, y) n(y, x))
        n(x, y) = sum over w in y of x^2 + c^2 (sum of all x^2 - sum over w in y of x^2)

    for a word in both has the weight 1 in both, and one in x alone adds c^2 x^2 to x's own norm and
    nothing to the product. For all texts X (texts, words) and a whole codebook Y (stored, words):

        products               X Y'
        X's squares in common  (X * X) [Y > 0]'
        Y's squares in common  [X > 0] (Y * Y)'

    three sparse products, and the sum of all squares of each text. A word that no stored text has
    counts in that sum alone, so Y's words are the whole vocabulary. Counts are whole numbers, and
    the sums are exact: identical word counts give exactly 1. "red cat" and "red dog": the product
    is 1, both norms 1 + c^2, the cosine 1 / (1 + c^2) = 0.3361.

    Texts without a word in common, or of stop words alone, are at 0.0, where scikit-learn raises
    for two of the latter; the module says what two identical ones are. Stop words are removed in
    English only: in another language each word counts, so two instructions that share "der" and
    "ist" are a little more similar than two English ones that share "the" and "is". Words are runs
    of two and more letters or digits: a language that puts no blanks between words (Chinese, Thai)
    is compared by whole phrases, which is right for repeated instructions and sees nothing else;
    take an encoder of that language there.
    """

    def index(self, stored: Sequence[str]) -> Index:
        return _Rules(stored, _WordCounts([folded(text) for text in stored]), digits=12)


SINGLE = (1.0 + math.log(1.5)) ** 2
"""c^2 of `Tfidf`: the square of the idf of a word that one of two texts has."""


class _WordCounts:
    """The formula of `Tfidf` for stored texts."""

    def __init__(self, stored: Sequence[str]) -> None:
        from sklearn.feature_extraction.text import CountVectorizer

        self.words: Callable[[str], list[str]] = CountVectorizer(
            stop_words="english"
        ).build_analyzer()
        self.numbers: dict[str, int] = {}
        for text in stored:
            for word in self.words(text):
                self.numbers.setdefault(word, len(self.numbers))
        counts, self.squares = self._counts(stored)
        self.products = counts.T.tocsr()
        self.common = _mapped(self.products, np.sign)
        self.squared = _mapped(self.products, np.square)

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float64]:
        counts, squares = self._counts(texts)
        products = (counts @ self.products).toarray()
        ours = (_mapped(counts, np.square) @ self.common).toarray()
        theirs = (_mapped(counts, np.sign) @ self.squared).toarray()
        left = ours + SINGLE * (squares[:, None] - ours)
        right = theirs + SINGLE * (self.squares[None, :] - theirs)
        # No word in common: the product is 0, and a norm may be 0 too.
        return np.divide(
            products, np.sqrt(left * right), out=np.zeros_like(products), where=products > 0
        )

    def _counts(self, texts: Sequence[str]) -> tuple[Any, NDArray[np.float64]]:
        """Counts of the stored texts' words, sparse (texts, words), and each text's sum of squares
        over all its words, (texts,)."""
        from scipy.sparse import csr_array

        values: list[float] = []
        columns: list[int] = []
        ends, squares = [0], np.zeros(len(texts))
        for row, text in enumerate(texts):
            for word, count in Counter(self.words(text)).items():
                squares[row] += count * count
                if (number := self.numbers.get(word)) is not None:
                    values.append(float(count))
                    columns.append(number)
            ends.append(len(values))
        shape = (len(texts), len(self.numbers))
        return csr_array((np.array(values, dtype=np.float64), columns, ends), shape=shape), squares


class Embedding:
    """Cosine of sentence vectors.

    A vector differs in its last digits with the texts that it was computed beside, so similarities
    are rounded to six digits. Stored texts are read once, and not before anybody asks; a request
    that is one of them, as a system message often is, is not read again.

    Args: encoder: its `vectors(texts)` are (texts, width), each of length 1.
    """

    def __init__(self, encoder: Any) -> None:
        self.encoder = encoder
        self.known: dict[str, NDArray[np.float32]] = {}

    def index(self, stored: Sequence[str]) -> Index:
        plain = [folded(text) for text in stored]
        others: list[NDArray[np.float32]] = []  # (width, stored), when they were read

        def cosine(texts: Sequence[str]) -> NDArray[np.float64]:
            if not others:
                self.known.update(self._read(plain))
                others.append(np.stack([self.known[text] for text in plain]).T)
            new = self._read(texts)
            asked = np.stack([new[t] if t in new else self.known[t] for t in texts])
            return np.asarray(asked @ others[0], dtype=np.float64)

        return _Rules(stored, cosine, digits=6)

    def _read(self, texts: Sequence[str]) -> dict[str, NDArray[np.float32]]:
        """Vectors of the texts that are not known."""
        new = [text for text in dict.fromkeys(texts) if text not in self.known]
        return dict(zip(new, self.encoder.vectors(new), strict=True)) if new else {}


def _mapped(sparse: Any, function: Callable[[Any], Any]) -> Any:
    """A sparse matrix with a function of each entry."""
    found = sparse.copy()
    found.data = function(found.data)
    return found
