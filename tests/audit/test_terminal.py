"""What an audit prints at 80 columns: whole words, `why` below, the verdict last."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from rich.console import Console

from perdure.audit.measure import Measure
from perdure.audit.result import AuditResult, flips, judge

pytestmark = pytest.mark.unit

LONG = "frage zu den öffnungszeiten am wochenende"


def measured(name: str, metric: str = "label_likelihood", rows: int = 16) -> Measure:
    base = np.ones(rows)
    tuned = np.array([0.0] * 3 + [1.0] * (rows - 3))
    return judge(name, "task", metric, base, tuned, margin=0.02, alpha=0.01)


def audited() -> AuditResult:
    rng = np.random.default_rng(0)
    texts = rng.uniform(2, 4, 1200)
    loss = judge(
        "general loss", "loss", "nats a token", texts, texts + 0.01, margin=0.05, alpha=0.01,
        noise_floor=0.0011,
    )  # fmt: skip
    grouped = judge(
        "passages", "task", "exact_match", np.ones(50), np.ones(50), margin=0.02, alpha=0.01,
        groups=np.repeat(np.arange(10), 5),
    )  # fmt: skip
    one = {"id": "1", "prompt": "Which department answers this message? " * 9, "answer": "cards"}
    flipped = flips(
        "department",
        [{**one, "score": 1, "prediction": "cards"}],
        [{**one, "score": 0, "prediction": "[red]travel"}],
    )
    return AuditResult(
        "/models/HuggingFaceTB/SmolLM2-135M-Instruct",
        "runs/desk",
        0.05,
        5,
        0,
        False,
        (loss, measured("department"), measured(LONG), grouped),
        tuple(flipped),
        ("late",),
    )


def printed(width: int = 80) -> list[str]:
    result = audited()
    out = io.StringIO()
    console = Console(file=out, width=width, color_system=None)
    console.print(result.table(width), soft_wrap=True)
    console.print(result.flips_table(width), soft_wrap=True)
    console.print(result.closing(), soft_wrap=True, markup=False)
    return out.getvalue().splitlines()


@pytest.mark.parametrize("width", [80, 100])
def test_no_line_is_too_long_and_no_word_is_broken(width):
    found = printed(width)
    assert max(map(len, found)) <= width
    words = " ".join(found).split()
    for word in ("department", "label_likelihood:", "/models/HuggingFaceTB/SmolLM2-135M-Instruct",
                 "öffnungszeiten", "became", "[red]travel"):  # fmt: skip
        assert word in words
    said = {"...", "Which", "department", "answers", "this", "message?"}
    of_prompt = [line for line in found if "message?" in line]
    assert of_prompt
    assert set(" ".join(of_prompt).split()) <= said


def test_why_is_a_line_below_its_measure():
    found = printed()
    at = next(i for i, line in enumerate(found) if line.startswith("department "))
    assert re.search(r"16 +-0\.188 \[-0\.\d+, \+0\.\d+\] +-0\.02  undecided$", found[at])
    assert found[at + 1].startswith("  label_likelihood: base 1.000, tuned 0.812; ")
    why = " ".join(" ".join(found[at + 1 :]).split())
    assert "3 rows became wrong, 0 right" in why
    # A name that is longer than its column stands before the numbers.
    at = found.index(LONG)
    assert re.match(r" +16 +-0\.188", found[at + 1])


def test_what_is_not_promised_stands_beside_the_verdict():
    text = " ".join(" ".join(printed()).split())
    assert "about the typical text; worst tenth (120 of 1,200 texts) +0.010" in text
    assert "the ruler's own noise 0.0011" in text
    assert "in 10 groups" in text


def test_the_verdict_and_the_exit_code_are_last_and_flips_are_asked_for():
    found = printed()
    assert found[-1] == "verdict: undecided (exit code 3)"
    assert found[-2] == "1 item flipped: --flips shows them, --json too"
    assert audited().closing(0, flips_shown=True) == "verdict: undecided (exit code 0)"


def test_five_measures_are_fewer_lines_than_a_screen():
    result = audited()
    measures = tuple(measured(f"department {i}") for i in range(5))
    shown = AuditResult("b", "t", 0.05, 5, 0, False, measures, result.flips)
    assert len(shown.table(80).plain.splitlines()) < 24


def test_the_chance_of_an_error_is_said_in_plain_words():
    text = " ".join(" ".join(printed()).split())
    assert "The chance that an end of an interval is wrong is at most 0.05 / 5, " in text
    assert "and that any verdict is false at most 0.05." in text
