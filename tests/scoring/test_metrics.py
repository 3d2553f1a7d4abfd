"""Text metrics: by hand, and against plain implementations of the definitions."""

import math
import random
import sys
from collections import Counter

import pytest

from perdure.errors import UsageError
from perdure.scoring.metrics import (
    bleu,
    chrf,
    exact_match,
    mean,
    normalise,
    rouge_l,
    try_own,
    words,
)
from perdure.streams.kinds.text import KIND
from perdure.streams.task import Task

pytestmark = pytest.mark.unit


def plain_rouge_l(prediction, answer):
    a, b = words(answer), words(prediction)
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            best = max(table[i][j + 1], table[i + 1][j])
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else best
    common = table[-1][-1]
    return 2 * common / (len(a) + len(b)) if common else 0.0


def plain_chrf(prediction, answer, order=6, beta=2.0):
    """Mean precision and recall over the orders that both texts have, then F-beta."""
    hyp, ref = "".join(prediction.split()), "".join(answer.split())
    precisions, recalls = [], []
    for n in range(1, order + 1):
        h = Counter(hyp[i : i + n] for i in range(len(hyp) - n + 1))
        r = Counter(ref[i : i + n] for i in range(len(ref) - n + 1))
        if h and r:
            same = sum((h & r).values())
            precisions.append(same / sum(h.values()))
            recalls.append(same / sum(r.values()))
    if not precisions:
        return 0.0
    p, q = sum(precisions) / len(precisions), sum(recalls) / len(recalls)
    return (1 + beta**2) * p * q / (beta**2 * p + q) if p + q else 0.0


def test_exact_match_normalises_space_and_unicode_form_only():
    assert normalise("  a \n b\t") == "a b"
    assert exact_match(" Österreich\n", "O\u0308sterreich") == 1.0
    assert exact_match("österreich", "Österreich") == 0.0
    assert exact_match("yes.", "yes") == 0.0
    assert exact_match("", "yes") == 0.0


def test_rouge_l_by_hand():
    # answer 4 words, prediction 3, longest common subsequence "the cat sat": p 1, r 3/4
    assert rouge_l("The cat, sat", "the black cat sat") == pytest.approx(2 * 0.75 / 1.75)
    assert rouge_l("sat cat", "cat sat") == pytest.approx(0.5)
    assert rouge_l("", "cat") == 0.0


@pytest.mark.parametrize(
    "text",
    ["?", "+", "!=", "->", "&", "...", "😀", "🇩🇪", "a + b", "x != y", "", "…", "caf\u00e9 !"],
)
def test_the_right_answer_is_one_for_every_metric(text):
    """Also where there is no letter or digit in it; forms of one text are the same text."""
    assert rouge_l(text, text) == exact_match(text, text) == 1.0
    assert rouge_l(f" {text}\n", text) == 1.0
    assert not text or chrf(text, text) == pytest.approx(1.0)
    assert rouge_l("cafe\u0301 !", "caf\u00e9 !") == 1.0
    if not any(map(str.isalnum, text)):
        assert rouge_l(text + "%", text) == 0.0


def test_rouge_l_sees_letters_of_every_script():
    assert words("Grüße, Łódź_2!") == ["grüße", "łódź", "2"]
    assert words("हिन्दी भाषा") == ["हिन्दी", "भाषा"]
    assert words("東京 2024年") == ["東", "京", "2024", "年"]
    assert rouge_l("Österreich", "Asterreich") == 0.0


def test_words_equal_rouge_scores_own_tokens_on_ascii():
    from rouge_score.tokenizers import DefaultTokenizer

    text = "It's 3.5% of_the CODE-7; don't\nask (twice)!"
    assert words(text) == DefaultTokenizer(use_stemmer=False).tokenize(text)


def test_chrf_by_hand():
    # orders 1 and 2 only: unigrams a,b against a,c: p = r = 1/2; bigrams ab, ac: 0. F = 1/4
    assert chrf("ab", "ac") == pytest.approx(0.25)
    assert chrf("a b c", "abc") == pytest.approx(1.0)
    assert chrf("", "abc") == 0.0


@pytest.mark.parametrize("seed", range(20))
def test_against_plain_references(seed):
    rng = random.Random(seed)
    one, two = (
        " ".join(
            "".join(rng.choices("abcdé", k=rng.randint(1, 6))) for _ in range(rng.randint(1, 8))
        )
        for _ in range(2)
    )
    assert rouge_l(one, two) == pytest.approx(plain_rouge_l(one, two))
    assert chrf(one, two) == pytest.approx(plain_chrf(one, two))


def test_every_text_metric_is_one_for_equal_texts_and_in_range():
    records = [record for record in KIND.metrics if record.needs == "text"]
    assert {record.name for record in records} == {"exact_match", "rouge_l", "chrf", "bleu"}
    for metric in [record.of_item() for record in records]:
        assert metric("Weiß nicht, 12 Äpfel", "Weiß nicht, 12 Äpfel") == pytest.approx(1.0)
        assert 0.0 <= metric("something else", "Weiß nicht, 12 Äpfel") <= 1.0


@pytest.mark.parametrize(
    ("prediction", "answer", "language", "scores"),
    [  # computed with sacrebleu 2.6.0; chrF of sentences, BLEU with effective_order
        ("le chat", "le chat noir", "fr", (49.168108, 60.653066)),
        ("chien", "le chat noir", "fr", (13.613861, 0.0)),
        ("", "le chat noir", "fr", (0.0, 0.0)),
        ("le chat noir", "le chat noir", "fr", (100.0, 100.0)),
        ("le chat est sur le tapis", "le chat est assis sur le tapis", "",
         (67.372599, 43.012509)),
        ("我喜欢猫", "我很喜欢猫", "zho-CN", (42.947681, 49.760939)),
        ("我喜欢猫", "我很喜欢猫", "en", (42.947681, 0.0)),  # one word in 13a
    ],
)  # fmt: skip
def test_scores_of_sentences(prediction, answer, language, scores):
    assert 100 * chrf(prediction, answer) == pytest.approx(scores[0], abs=1e-6)
    assert 100 * bleu(prediction, answer, target_lang=language) == pytest.approx(
        scores[1], abs=1e-6
    )


def test_bleu_by_hand():
    # 3 of 4 words right; of 3, 2 and 1 longer n-grams 2, 1 and 0 right, and smoothing counts the
    # last as 1/2; no brevity penalty: (3/4 * 2/3 * 1/2 * 1/2) ** (1/4)
    assert bleu("a b c d", "a b c e") == pytest.approx((1 / 8) ** 0.25)
    # Two words have no longer n-grams: 1 * 1, and exp(1 - 3/2) as they are too few.
    assert bleu("a b", "a b c") == pytest.approx(math.exp(-0.5))


def bleu_task(language):
    row = {"prompt": [{"role": "user", "content": "?"}], "answer": "x", "target_lang": language}
    return Task("mt", (), (), (row,), "bleu")


@pytest.mark.parametrize(
    ("language", "module", "told"),
    [("ja", "MeCab", "ja-mecab"), ("ko-KR", "mecab_ko", "ko-mecab"),
     ("tha_Thai", "sentencepiece", "flores200")],
)  # fmt: skip
def test_what_a_language_needs_is_told_before_weights_are_loaded(
    language, module, told, monkeypatch
):
    monkeypatch.setitem(sys.modules, module, None)  # as where it is not installed
    monkeypatch.delitem(
        sys.modules, f"sacrebleu.tokenizers.tokenizer_{told.replace('-', '_')}", False
    )
    try_own([bleu_task("fr"), bleu_task("zh")])
    said = f"task mt: metric bleu: tokenizer {told} cannot be used"
    with pytest.raises(UsageError, match=said) as error:
        try_own([bleu_task("fr"), bleu_task(language)])
    assert error.value.remedy[-1] == "or write metric: chrf"  # a task has no key `tokenize`


def test_mean_by_hand():
    assert mean([0.0, 1.0, 0.5]) == 0.5
    assert mean([0.1] * 10) == 0.1
