"""The language guard: script, words, pieces, and what is told before training."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import TrainingError, UsageError
from perdure.rewards import Sample, build
from perdure.rewards.language import (
    _identifier,
    in_script,
    label_of,
    mixes_in,
    pieces,
    script_of,
    scripts_in,
    share_from,
    worst_odds,
)
from perdure.streams.languages import parse_language

pytestmark = pytest.mark.unit

NTREX = Path(__file__).parents[2] / "../shared/data/ntrex128"
ENGLISH = "The old man walked slowly down to the harbour because he wanted to see the ships again."
ANSWERS = {
    "fr": "Le vieil homme descendit lentement vers le port parce qu'il voulait revoir les navires.",
    "de": "Der alte Mann ging langsam zum Hafen hinunter, weil er die Schiffe wiedersehen wollte.",
    "es": "El anciano bajó despacio hasta el puerto porque quería volver a ver los barcos.",
    "id": "Lelaki tua itu berjalan perlahan ke pelabuhan karena ingin melihat kapal-kapal lagi.",
    "ru": "Старик медленно спустился к гавани, потому что хотел снова увидеть корабли.",
    "zho-CN": "老人慢慢走到港口，因为他想再看看那些船。",
    "jpn_Jpan": "老人は船をもう一度見たかったので、ゆっくりと港へ歩いて行った。",
}


def guard(answer: str, code: str, right: str = "", source: str = ENGLISH, **options: Any) -> float:
    row = {"source": source, "target": right or ANSWERS[code], "target_lang": code}
    rewards = build([{"name": "language", **options}, "chrf"])
    return rewards([Sample(source, answer, row=row)]).parts["language"][0]


@pytest.mark.parametrize("code", ANSWERS)
def test_the_right_language_passes_and_no_other(code: str) -> None:
    found = {other: guard(answer, code) for other, answer in ANSWERS.items()}
    assert found == {other: float(other == code) for other in ANSWERS}
    assert guard(ENGLISH, code) == 0.0


@pytest.mark.parametrize("code", ANSWERS)
def test_answers_of_two_languages_are_refused(code: str) -> None:
    right = ANSWERS[code]
    half = right[: len(right) // 2]
    assert guard(f"{half} because he wanted to see the ships again.", code) == 0.0
    other = ANSWERS["de" if code != "de" else "fr"]
    assert guard(f"{right} {other}", code) == 0.0
    assert guard(f"{half} 因为他想再看看那些船", code) == float(code in ("zho-CN", "jpn_Jpan"))


def test_names_numbers_and_short_texts_pass() -> None:
    assert guard("Angela Merkel", "fr", "Angela Merkel") == 1.0
    assert guard("42 %", "ru", "42 %") == 1.0
    assert guard("OK", "fr", "Oui") == 1.0
    assert guard("NASA 的火箭", "zho-CN", "NASA的火箭") == 1.0
    # Where the right answer is not known as its language either, the words are not looked at.
    assert guard(ENGLISH.replace("old", "young"), "fr", ENGLISH) == 1.0


def test_scripts() -> None:
    letters = {"a": "LATIN", "я": "CYRILLIC", "ｂ": "LATIN", "ｶ": "KATAKANA", "ー": "KATAKANA"}
    assert {letter: script_of(letter) for letter in letters} == letters
    assert [script_of(c) for c in "々字한ªʰ"] == ["IDEOGRAPHIC", "CJK", "HANGUL", "", ""]
    assert scripts_in("a б 1!") == {"LATIN": 1, "CYRILLIC": 1}
    # Half the letters, where the right answer is all Cyrillic; where half of it is, that is usual.
    assert not in_script("абв abc", "абв", "abc", "Cyrl")
    assert in_script("абв abc", "абв abc", "abc", "Cyrl")
    assert in_script("абвг abc", "абв abc", "abc", "Cyrl")
    # A script that is neither the source's nor the right answer's: at most a tenth.
    assert in_script("abcdefghi я", "abc", "abc", "Latn")
    assert not in_script("abcdefgh я", "abc", "abc", "Latn")


def test_pieces_are_never_short() -> None:
    for count in (0, 1, 7, 8, 15, 16, 17, 23, 24, 100):
        text = " ".join(f"w{i}" for i in range(count))
        found = pieces(text)
        assert " ".join(found) == text
        assert len(found) == max(1, count // 8)
        assert all(8 <= len(piece.split()) < 16 for piece in found) or count < 8


def test_the_worst_piece_counts_and_the_same_odds_are_given_twice() -> None:
    text = f"{ANSWERS['fr']} {ENGLISH}"
    assert worst_odds(text, "fr") > 1e3 > 1 > worst_odds(ANSWERS["fr"], "fr")
    first = worst_odds(text, "fr")
    worst_odds.cache_clear()
    for other in ANSWERS.values():  # whatever was asked in between
        worst_odds(other, "fr")
    assert worst_odds(text, "fr") == first
    ranked = dict(_identifier().rank(ANSWERS["de"]))  # one piece
    other = max(p for label, p in ranked.items() if label not in ("fr", "zxx"))
    assert worst_odds(ANSWERS["de"], "fr") == pytest.approx(other / ranked["fr"])


def test_words_of_the_source() -> None:
    assert share_from("The red keru", "the red dog") == pytest.approx(2 / 3)
    assert share_from("...", "the") == 0.0
    source = "a b c d e f g h"
    assert mixes_in("a b c x y z u v", "x y z u v w q p", source)  # 3 of 8 words
    assert not mixes_in("a b w x y z u v", "x y z u v w q p", source)  # 2 of 8
    assert not mixes_in("a b c x y z u v", "a x y z u v w q", source)  # 2 of 8 more than is right
    assert not mixes_in("a b c", "x y z", source)  # too short to tell


def test_a_made_up_language() -> None:
    source, right = "the red dog sees the small cat", "keru mip bani sol dolo"
    options = {"not_from": "source"}
    velan = {"code": "x-velan", "right": right, "source": source}
    assert guard(right, **velan, **options) == 1.0
    assert guard("keru red bani cat dolo", **velan, **options) == 1.0  # 2 of 5
    assert guard("keru red bani cat dog", **velan, **options) == 0.0  # 3 of 5
    assert guard("keru red bani cat dolo", **velan, most=0.3, **options) == 0.0
    build([{"name": "language", **options}, "chrf"]).check([{"target_lang": "x-velan"}, {}])


@pytest.mark.parametrize(
    ("rows", "options", "says"),
    [
        ([{"target_lang": "x-velan"}], {}, "Velan (x-velan) is a language that nobody knows"),
        ([{"target_lang": "velan"}], {}, "velan (velan) is a language that nobody knows"),
        ([{"target_lang": "ckb"}], {}, "py3langid does not know Central Kurdish (ckb)"),
        ([{"prompt": []}], {}, "rows that do not say the language of their answer"),
        (
            [{"source_lang": "eng_Latn", "target_lang": "fra"}],
            {"identify": False},
            "English and French are not told apart by their script",
        ),
    ],
)
def test_a_language_that_it_cannot_tell_is_told_before_training(
    rows: list[dict[str, Any]], options: dict[str, Any], says: str
) -> None:
    rewards = build([{"name": "language", **options}, "chrf"])
    with pytest.raises(UsageError) as told:
        rewards.check(rows)
    assert "rl.rewards.language" in str(told.value)
    assert says in str(told.value)


def test_languages_that_it_knows_are_not_told() -> None:
    codes = [*ANSWERS, "nob", "prs", "zho-TW", "srp-Latn", "por-BR"]
    rows = [{"source_lang": "en", "target_lang": code} for code in codes]
    build(["language", "chrf"]).check(rows)
    labels = {"nob": "no", "prs": "fa", "zho-TW": "zh", "srp-Latn": "sr", "por-BR": "pt"}
    assert {code: label_of(parse_language(code)) for code in labels} == labels
    alone = build([{"name": "language", "identify": False}, "chrf"])
    alone.check([{"source_lang": "en", "target_lang": code} for code in ("ru", "ckb", "zh")])
    assert guard("כלב אדום", "ru", identify=False) == 0.0


def test_without_a_check_the_training_is_stopped_all_the_same() -> None:
    with pytest.raises(TrainingError, match="target_lang is x-velan, of which no script is known"):
        guard("keru", "x-velan", "keru")


def test_a_missing_package_is_told_at_load(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    _identifier.cache_clear()
    with pytest.raises(UsageError) as told:
        build(["language", "chrf"])
    assert 'pip install "perdure[translation]"' in str(told.value)
    build([{"name": "language", "identify": False}, "chrf"])
    build([{"name": "language", "not_from": "source"}, "chrf"])


def test_right_translations_of_ntrex_pass_and_copies_do_not() -> None:
    if not NTREX.is_dir():
        pytest.skip(f"{NTREX} is not there: it is no part of the project")
    lines = {
        name: (NTREX / f"{name}.txt").read_text(encoding="utf-8").splitlines()[:200]
        for name in ("eng", "fra", "deu", "ind", "zho-CN", "rus")
    }
    english = lines.pop("eng")
    rewards = build(["language", "chrf"])
    for code, right in lines.items():
        rows = [
            {"source": source, "target": target, "target_lang": code}
            for source, target in zip(english, right, strict=True)
        ]
        as_right = rewards([Sample("p", row["target"], row=row) for row in rows])
        copied = rewards([Sample("p", row["source"], row=row) for row in rows])
        assert as_right.means()["language"] == 1.0
        assert copied.means()["language"] <= 0.02, code
