"""What each reward says of a sample, by hand, and what they make of it together."""

from __future__ import annotations

import math
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from perdure.consent import ConsentError, trusting
from perdure.errors import TrainingError, UsageError
from perdure.rewards import Reward, Rewards, Sample, build, mistakes, registry
from perdure.rewards.bleu import sentence_bleu
from perdure.rewards.chrf import sentence_chrf
from perdure.rewards.format import leaked
from perdure.rewards.length import length_ratio
from perdure.rewards.repetition import repetition
from perdure.streams.task import PlacedRow
from perdure.streams.words import words

pytestmark = pytest.mark.unit

SOURCE, RIGHT = "the red dog sees the small cat", "keru mip bani sol dolo"
ROW = {"source": SOURCE, "target": RIGHT, "source_lang": "en", "target_lang": "x-velan"}
OURS = ["format", "chrf", "length", "copying", "repetition"]


def tagged(answer: str, thinking: str = "plan", **more: Any) -> Sample:
    text = f"<think>{thinking}</think><answer>{answer}</answer>"
    return Sample(SOURCE, text, **{"row": ROW, "answer": "tagged", **more})


def earned(*samples: Sample, entries: Sequence[Any] = OURS) -> list[float]:
    return build(entries)(samples).total


# --- what the specification computed


def test_micro_example_m17() -> None:
    answers = {
        RIGHT: 1.2,
        "keru mip dolo bani sol": 0.861436,
        "keru bani dolo": 0.517830,
        "keru mip": 0.528763,
        " ".join([RIGHT] * 4): 0.2,
        SOURCE: 0.0,
    }
    found = earned(*map(tagged, answers), Sample(SOURCE, RIGHT, row=ROW, answer="tagged"))
    assert found == pytest.approx([*answers.values(), 0.0], abs=1e-6)
    four = " ".join([RIGHT] * 4)
    assert repetition(four) == pytest.approx(0.736842, abs=1e-6)
    assert length_ratio(four, RIGHT) == pytest.approx(4.136364, abs=1e-6)


def test_micro_example_m14() -> None:
    le_chat = "le chat est sur le tapis", "le chat est assis sur le tapis"
    assert sentence_bleu(*le_chat) == pytest.approx(0.43012509, abs=1e-8)
    assert sentence_chrf(*le_chat) == pytest.approx(0.67372599, abs=1e-8)
    assert sentence_chrf(*le_chat, word_order=2) == pytest.approx(0.70198246, abs=1e-8)
    noir = "le chat noir"
    assert sentence_chrf("le chat", noir) == pytest.approx(0.49168108, abs=1e-8)
    assert sentence_bleu("le chat", noir) == pytest.approx(0.60653066, abs=1e-8)
    assert sentence_chrf("chien", noir) == pytest.approx(0.13613861, abs=1e-8)
    assert sentence_chrf("", noir) == sentence_bleu("", noir) == 0.0
    assert sentence_bleu(noir, noir) == pytest.approx(1.0)  # 0 without effective_order


def test_micro_example_m15() -> None:
    chinese = "我喜欢猫", "我很喜欢猫"
    assert sentence_bleu(*chinese) == 0.0
    assert sentence_bleu(*chinese, tokenizer="zh") == pytest.approx(0.49760939, abs=1e-8)
    assert sentence_chrf(*chinese) == pytest.approx(0.42947681, abs=1e-8)
    japanese = "私は猫が好きです", "私は猫がとても好きです"
    assert sentence_bleu(*japanese) == 0.0
    assert sentence_bleu(*japanese, tokenizer="char") == pytest.approx(0.47522038, abs=1e-8)


def test_micro_example_m16() -> None:
    answers = {
        '{"translation": "Le chat"}': 0.48303417,
        '"Le chat"': 0.87976023,
        "Translation: Le chat": 0.57969431,
    }
    row = {"source": "The cat", "target": "Le chat"}
    found = build(["chrf"])([tagged(answer, row=row) for answer in answers])
    assert found.total == pytest.approx(list(answers.values()), abs=1e-8)
    assert found.problems == [""] * 3  # in whatever dress: the metric pays less for it


def test_micro_example_m18() -> None:
    answer = "keru mip bani sol dolo"
    assert leaked(f"so it is {answer}.", answer) == 1.0
    assert leaked("dog is keru; red is mip; cat is bani", answer) == pytest.approx(0.227273, 1e-5)


def slow_chrf(answer: str, right: str) -> float:
    """chrF2 as Popović 2015 defines it, with sacrebleu's effective order: no other order counts."""
    precisions, recalls = [], []
    for n in range(1, 7):
        a, r = ("".join(t.split()) for t in (answer, right))
        of_a, of_r = (Counter(t[i : i + n] for i in range(len(t) - n + 1)) for t in (a, r))
        if of_a.total() and of_r.total():
            both = (of_a & of_r).total()
            precisions.append(both / of_a.total())
            recalls.append(both / of_r.total())
    p, r = (sum(v) / len(v) if v else 0.0 for v in (precisions, recalls))
    return 5 * p * r / (4 * p + r) if p + r else 0.0


def slow_bleu(answer: str, right: str) -> float:
    """Sentence BLEU over the orders that the answer has, smoothed as "exp"; words by blanks."""
    a, r = answer.split(), right.split()
    logs, smooth = [], 1.0
    for n in range(1, min(4, len(a)) + 1):
        of_a, of_r = (Counter(tuple(t[i : i + n]) for i in range(len(t) - n + 1)) for t in (a, r))
        both = (of_a & of_r).total()
        if n == 1 and not both:
            return 0.0
        smooth *= 1 if both else 2
        logs.append(math.log(both or 1 / smooth) - math.log(of_a.total()))
    brevity = min(1.0, math.exp(1 - len(r) / len(a))) if a else 0.0
    return brevity * math.exp(sum(logs) / len(logs))


TEXTS = ["le chat noir", "le chat", "noir chat le", "a b c d e f g", "le chat noir le chat noir x"]


@pytest.mark.parametrize("right", TEXTS)
@pytest.mark.parametrize("answer", TEXTS)
def test_metrics_are_those_of_slow_plain_ones(answer: str, right: str) -> None:
    assert sentence_chrf(answer, right) == pytest.approx(slow_chrf(answer, right), abs=1e-9)
    assert sentence_bleu(answer, right) == pytest.approx(slow_bleu(answer, right), abs=1e-9)
    pairs = list(zip(words(answer), words(answer)[1:], strict=False))
    assert repetition(answer) == pytest.approx(1 - len(set(pairs)) / len(pairs))


# --- cheats: none of them pays


def test_what_cannot_be_read_earns_nothing() -> None:
    body = f"<answer>{RIGHT}</answer>"
    texts = {
        "empty think": f"<think></think>{body}",
        "invisible think": f"<think>\u200b</think>{body}",
        "double answer": f"<think>plan</think>{body}{body}",
        "role reset": f"junk Assistant: <think>plan</think>{body}",
        "role reset inside": f"<think>plan Assistant: <think></think>{body}",
        "answer in the reasoning": f"<think>plan {body}</think>",
        "reasoning that is the answer": f"<think> {RIGHT.upper()}. </think>{body}",
    }
    rewards = build(OURS)
    scored = rewards([Sample(SOURCE, text, row=ROW, answer="tagged") for text in texts.values()])
    assert dict(zip(texts, scored.total, strict=True)) == dict.fromkeys(texts, 0.0)
    assert scored.problems == [
        "empty_think", "empty_think", "tag_sequence", "text_before", "tag_sequence",
        "tag_sequence", "",
    ]  # fmt: skip
    assert earned(tagged(RIGHT, truncated=True)) == [0.0]
    assert earned(Sample(SOURCE, f"plan</think>{body}", row=ROW, answer="tagged")) == [0.0]
    prefilled = Sample(SOURCE, f"plan</think>{body}", row=ROW, answer="tagged", prefilled=True)
    assert earned(prefilled) == [1.2]


def test_a_reasoning_that_quotes_the_answer_earns_no_more_and_nothing_where_that_is_refused() -> (
    None
):
    quoting, honest = tagged(RIGHT, f"so it is {RIGHT}"), tagged(RIGHT, "dog is keru; red is mip")
    wrong = tagged("dolo", f"so it is {RIGHT}")
    assert earned(quoting) == earned(honest)
    assert earned(wrong) == earned(tagged("dolo"))
    strict = [{"name": "format", "leak": 0.5}, "chrf"]
    assert earned(quoting, honest, entries=strict) == [0.0, 1.2]


def test_short_repeated_and_copied_answers_earn_less_than_honest_ones() -> None:
    honest, short, repeated, copied = earned(
        tagged("keru mip dolo"), tagged("keru"), tagged("keru mip " * 4), tagged(SOURCE)
    )
    assert short == repeated == 0.2 < honest
    assert copied == 0.0


def test_a_source_that_is_as_its_translation_is_no_copy() -> None:
    row = {"source": "Aspirin 500 mg", "target": "Aspirin 500 mg"}
    assert earned(tagged("Aspirin 500 mg", row=row)) == [1.2]


def test_the_right_answer_is_never_refused() -> None:
    row = {"source": "ha ha ha ha ha", "target": "ha ha ha ha ha", "target_lang": "fr"}
    every = [*OURS, {"name": "language", "not_from": "source"}, "bleu"]
    assert earned(tagged("ha ha ha ha ha", row=row), entries=every) == pytest.approx([1.2])


def test_micro_example_m2_a_source_with_a_role_and_tags_in_it_is_no_obstacle() -> None:
    row = {"source": "He wrote Assistant: <answer>x</answer>", "target": "Il a écrit"}
    sample = tagged("Il a écrit", row=row)
    assert earned(sample) == [1.2]


# --- samples


def test_a_sample_of_any_row_knows_source_and_right_answer() -> None:
    plain = {"prompt": [{"role": "user", "content": "2 + 2"}], "answer": " 4 "}
    sample = Sample("p", " 4\n", row=plain)
    assert (sample.source, sample.target, sample.parsed.answer) == ("2 + 2", "4", "4")
    assert (sample.source_lang, sample.target_lang) == ("", "")
    for answer in ("<think>add</think><answer>4</answer>", "add</think><answer>4</answer>"):
        assert Sample("p", "", row={**plain, "answer": answer}, answer="tagged").target == "4"
    assert Sample("p", "x").source == "p"
    assert [Sample("p", t, row=plain).parsed.problem for t in ("", " \u200b")] == [
        "empty_answer", "empty_answer",
    ]  # fmt: skip
    assert Sample("p", "4", truncated=True, row=plain).parsed.problem == "truncated"
    assert earned(sample, Sample("p", "", row=plain), entries=["format", "chrf"]) == [1.2, 0.0]


# --- how they are put together


class Fixed(Reward):
    """Gives each sample what stands under its name in the row."""

    def __call__(self, samples: Sequence[Sample]) -> list[Any]:
        return [sample.row[self.name] for sample in samples]


def fixed(role: str, name: str) -> Reward:
    kind = type("Fixed", (Fixed,), {"role": role})
    reward: Reward = kind(kind.Config())
    reward.name = name
    return reward


TOGETHER = Rewards(
    [fixed("format", "f"), fixed("quality", "q"), fixed("quality", "r"), fixed("guard", "guard"),
     fixed("gate", "g"), fixed("gate", "h")],
    {"f": 0.2, "q": 0.75, "r": 0.25},
)  # fmt: skip


@pytest.mark.parametrize(
    ("f", "q", "r", "guard", "g", "h", "total"),
    [
        (1, 0.8, 0.4, 1, 1, 1, 0.2 + 0.75 * 0.8 + 0.25 * 0.4),
        (1, 0.8, 0.4, 0, 1, 1, 0.0),
        (0, 0.8, 0.4, 1, 1, 1, 0.0),
        (0.5, 0.8, 0.4, 1, 1, 1, 0.1 + 0.7),
        (1, 0.8, 0.4, 1, 0, 1, 0.2),
        (1, 0.8, 0.4, 1, 0.5, 0.5, 0.2 + 0.25 * 0.7),
        (1, None, 0.4, 1, 1, 1, 0.2 + 0.4),
        (1, 0.8, 0.4, None, None, 1, 0.2 + 0.7),
        (None, 0.8, 0.4, 1, 1, 1, 0.7),
    ],
)
def test_the_formula(f: Any, q: Any, r: Any, guard: Any, g: Any, h: Any, total: float) -> None:
    row = {"f": f, "q": q, "r": r, "guard": guard, "g": g, "h": h}
    assert TOGETHER([Sample("p", "answer", row=row)]).total == pytest.approx([total])


def test_parts_are_of_all_samples_and_means_of_those_that_were_asked() -> None:
    scored = build(OURS)([tagged(RIGHT), Sample("p", "none", row=ROW, answer="tagged")])
    assert {name: len(values) for name, values in scored.parts.items()} == dict.fromkeys(OURS, 2)
    assert scored.parts["chrf"] == [1.0, 0.0]
    assert math.isnan(scored.parts["copying"][1])
    expected = {"format": 0.5, "chrf": 0.5, "length": 1.0, "copying": 1.0, "repetition": 1.0}
    assert scored.means() == expected
    assert build(OURS)([]).total == []
    unread = build(OURS)([Sample("p", "none", row=ROW, answer="tagged")])
    assert set(unread.means()) == {"format", "chrf"}


# --- what is no value


class Broken(Reward):
    def __init__(self, give: Any) -> None:
        self.give = give

    def __call__(self, samples: Sequence[Sample]) -> Any:
        return self.give(samples)


def _raises(samples: Sequence[Sample]) -> list[float]:
    if any(sample.parsed.answer == "bad" for sample in samples):
        raise RuntimeError("no server")
    return [1.0] * len(samples)


@pytest.mark.parametrize(
    ("give", "says"),
    [
        (lambda s: [1.0, math.nan], "gave nan, which is not from 0 to 1; where"),
        (lambda s: [1.0, math.inf], "gave inf, which is not from 0 to 1"),
        (lambda s: [1.0, 1.5], "gave 1.5, which is not from 0 to 1"),
        (lambda s: [1.0, -0.1], "gave -0.1, which is not from 0 to 1"),
        (lambda s: [1.0, "much"], "gave 'much', which is no number"),
        (lambda s: [1.0, [2]], "gave [2], which is no number"),
        (lambda s: [1.0], "gave 1 value for 2 completions"),
        (lambda s: [1.0] * 3, "gave 3 values for 2 completions"),
        (lambda s: None, "failed: TypeError"),
        (_raises, "failed: RuntimeError: no server"),
        (lambda s: [1.0, None], "no quality reward (broken) gave a value"),
    ],
)  # fmt: skip
def test_what_is_no_value_stops_the_run_with_the_sample(give: Any, says: str) -> None:
    reward = Broken(give)
    reward.name = "broken"
    row = PlacedRow({"target": "x"}, "data.jsonl:7")
    samples = [Sample("first prompt", "good", row=row), Sample("second prompt", "bad", row=row)]
    with pytest.raises(TrainingError) as told:
        Rewards([reward], {"broken": 1.0})(samples)
    assert says in told.value.what
    assert "broken" in told.value.what
    whole = str(told.value)
    assert "row: data.jsonl:7" in whole
    if " for 2 completions" not in says and "TypeError" not in says:
        assert "prompt: second prompt" in whole
        assert "completion: bad" in whole
    else:
        assert "prompt: first prompt" in whole


def test_long_texts_are_cut_in_the_message() -> None:
    reward = Broken(lambda samples: [math.nan])
    reward.name = "broken"
    with pytest.raises(TrainingError) as told:
        Rewards([reward], {"broken": 1.0})([Sample("p" * 50_000, "c" * 50_000)])
    assert len(str(told.value)) < 2_000
    assert "(50,000 characters)" in str(told.value)


# --- from a recipe


def told(*entries: Any) -> list[tuple[str, str, str]]:
    return [(".".join(map(str, m.key)), m.what, m.remedy) for m in mistakes(entries)]


@pytest.mark.parametrize(
    ("entries", "key", "what", "remedy"),
    [
        (["chrff"], "0", '"chrff" is none of', 'did you mean "chrf"?'),
        ([{"name": "chrff"}], "0.name", '"chrff" is none of', 'did you mean "chrf"?'),
        ([{"name": "chrf", "beat": 2}], "0.beat", "unknown key", 'did you mean "beta"?'),
        ([{"name": "length", "least": 1.5}], "0.least", "as long as the right one", "let 1 lie"),
        ([{"name": "length", "least": True}], "0.least", "must be a number, not true", ""),
        ([{"name": "chrf", "weight": "1"}], "0.weight", 'from 0 to 1, not "1"', "sum to 1"),
        ([{"name": "chrf", "weight": True}], "0.weight", "from 0 to 1, not true", "sum to 1"),
        ([{"name": "chrf", "weight": 0.5}], "", "the weights of chrf sum to 0.5", "must sum to 1"),
        (["bleu", {"name": "chrf", "weight": 1}], "", "leaves none for bleu", "must sum to 1"),
        (["chrf", {"name": "copying", "weight": 1}], "1.weight", "is a guard", "leave it out"),
        (["chrf", {"name": "length", "weight": 1}], "1.weight", "is a gate", "leave it out"),
        (["length", "copying"], "", "only guards and gates", "such as chrf"),
        (["chrf", "chrf"], "1", "chrf is listed twice", "leave one out"),
        ([3], "0", "3 is no reward", "write a name"),
        ([{"weight": 1}], "0", "is no reward", "write a name"),
        ([{"name": "language", "most": 0.3}], "0.most", "no effect without not_from", "leave"),
        (
            [{"name": "language", "not_from": "source", "odds": 5}],
            "0.odds", "no effect with not_from", "leave",
        ),
        (
            [{"name": "language", "identify": False, "odds": 5}],
            "0.odds", "no effect with identify: false", "leave",
        ),
    ],
)  # fmt: skip
def test_mistakes_are_told_at_their_keys(
    entries: list[Any], key: str, what: str, remedy: str
) -> None:
    found = told(*entries)
    assert [k for k, *_ in found] == [key]
    assert what in found[0][1]
    assert remedy in found[0][2]
    with pytest.raises(UsageError) as error:
        build(entries)
    assert what in str(error.value)


def test_weights_that_are_not_given_are_the_rest() -> None:
    assert build(["format", "chrf"]).weights == {"format": 0.2, "chrf": 1.0}
    assert build(["chrf", "bleu"]).weights == {"chrf": 0.5, "bleu": 0.5}
    named = [{"name": "chrf", "weight": 0.7}, "bleu", {"name": "format", "weight": 0.1}]
    assert build(named).weights == pytest.approx({"chrf": 0.7, "bleu": 0.3, "format": 0.1})
    whole = [{"name": "chrf", "weight": 0.7}, {"name": "bleu", "weight": 0.3}]
    assert build(whole).weights == {"chrf": 0.7, "bleu": 0.3}


def test_the_released_sum_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """M3 of the specification: R1-T1's release pays .2 + max(0, COMET to two digits); as a user's
    own reward, whose values end at 1 where the released one pays 1.27."""
    (tmp_path / "released_22.py").write_text(
        "def comet(samples):\n"
        "    values = [float(sample.row['comet']) for sample in samples]\n"
        "    return [min(1.0, max(0.0, round(value, 2))) for value in values]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    text = "<think>plan</think><answer>Le chat</answer>"
    values = (0.8349, 0.8351, 0.845, -0.31, 1.07)
    samples = [Sample("p", text, row={"comet": v}, answer="tagged") for v in values]
    samples.append(Sample("p", "Le chat", row={"comet": 0.9}, answer="tagged"))
    with trusting(True):
        found = build(["format", "released_22:comet"])(samples).total
    assert found == pytest.approx([1.03, 1.04, 1.04, 0.2, 1.2, 0.0])


def test_versions_name_what_the_values_depend_on() -> None:
    found = build([*OURS, "bleu", "language"]).versions
    assert list(found) == [*OURS, "bleu", "language"]
    assert found["chrf"].startswith("1, sacrebleu 2.")
    assert found["language"].startswith("1, py3langid 0.4")
    marks = build([{"name": "chrf", "weight": 0.7, "beta": 1}, "bleu", "length"]).marks
    assert marks["chrf"] == {
        "version": found["chrf"], "char_order": 6, "word_order": 0, "beta": 1, "weight": 0.7,
    }  # fmt: skip
    assert marks["bleu"]["weight"] == pytest.approx(0.3)
    assert list(marks["length"]) == ["version", "least", "most"]


def test_every_reward_has_a_file_a_line_and_described_options() -> None:
    assert registry.built_in() == sorted([*OURS, "bleu", "language"])
    for name in registry.built_in():
        kind = registry.load(name)
        assert kind.__module__ == f"perdure.rewards.{name}"
        assert registry.describe(name).endswith((".", ":"))
        assert all(option.description for option in kind.Config.model_fields.values())


@pytest.mark.process
def test_rewards_need_no_torch() -> None:
    code = "import sys, perdure.rewards; perdure.rewards.build(['format', 'chrf', 'language'])\n"
    code += "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True)
    assert done.returncode == 0, done.stderr


# --- what others bring


def offer(monkeypatch: pytest.MonkeyPatch, **offers: str) -> None:
    found = [EntryPoint(name, value, registry.GROUP) for name, value in offers.items()]
    monkeypatch.setattr(registry, "offers", lambda group: found if group == registry.GROUP else [])


OWN = '''
from perdure.rewards import Reward

class Polite(Reward):
    """Whether an answer says please."""
    role = "gate"

    def __call__(self, samples):
        return [float("please" in sample.parsed.answer) for sample in samples]

def exclaims(samples):
    return [float(sample.parsed.answer.endswith("!")) for sample in samples]

NUMBER = 3
'''


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "their_rewards_22.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_third_partys_reward_is_found_by_its_entry_point(
    own: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, polite="their_rewards_22:Polite", number="their_rewards_22:NUMBER")
    samples = [Sample("p", text, row={"target": text}) for text in ("yes please", "yes")]
    assert build(["format", "chrf", "polite"])(samples).total == [1.2, 0.2]
    assert "polite" in registry.names()
    assert "is neither a Reward nor a function" in told("chrf", "number")[0][1]
    offer(monkeypatch, chrf="their_rewards_22:Polite")
    assert "offered more than once: perdure, their_rewards_22" in told("chrf")[0][1]
    offer(monkeypatch, gone="no_such_module_22:X")
    assert "reward 'gone' of no_such_module_22 cannot be imported" in told("gone", "chrf")[0][1]


def test_a_users_own_function_is_a_quality_and_needs_the_users_word(own: Path) -> None:
    entries = [{"name": "their_rewards_22:exclaims", "weight": 0.5}, "chrf"]
    with pytest.raises(UsageError, match="is Python code, which was not run"):
        build([f"{own}/their_rewards_22.py:exclaims"])
    samples = [Sample("p", text, row={"target": "Yes!"}) for text in ("Yes!", "Yes")]
    with trusting(True):
        rewards = build(entries, own)
        again = build(["their_rewards_22:exclaims"])
        polite = build(["their_rewards_22:Polite", "chrf"])
    assert rewards.weights == {"their_rewards_22:exclaims": 0.5, "chrf": 0.5}
    assert rewards(samples).total[0] == 1.0 > rewards(samples).total[1]
    assert (
        rewards.versions["their_rewards_22:exclaims"] == again.versions["their_rewards_22:exclaims"]
    )
    # Another version where anything in its file has changed, such as what it calls.
    (own / "their_rewards_22.py").write_text(
        (own / "their_rewards_22.py").read_text() + "\nX = 1\n"
    )
    with trusting(True):
        changed = build(entries, own).versions
    assert changed["their_rewards_22:exclaims"] != rewards.versions["their_rewards_22:exclaims"]
    assert polite(samples).total == [0.0, 0.0]
    with trusting(True):
        assert "did you mean" in told("their_rewards_22:exclaim")[0][2]
    assert issubclass(ConsentError, UsageError)


# --- what is told before training


def test_extras_of_sacrebleu_are_told_at_load(monkeypatch: pytest.MonkeyPatch) -> None:
    from sacrebleu.metrics import bleu as theirs

    def missing() -> Any:
        raise RuntimeError("\nJapanese tokenization requires extra dependencies\n")

    monkeypatch.setattr(theirs, "_get_tokenizer", lambda name: missing)
    from perdure.rewards import bleu

    monkeypatch.setattr(bleu, "_metric", bleu._metric.__wrapped__)
    rows = [{"source_lang": "en", "target_lang": code} for code in ("jpn", "ko")]
    with pytest.raises(UsageError) as error:
        build([{"name": "bleu", "tokenize": "ja-mecab"}])
    assert 'pip install "sacrebleu[ja]"' in str(error.value)
    rewards = Rewards([bleu.Bleu.__new__(bleu.Bleu)], {"": 1.0})
    rewards.rewards[0].name = "bleu"
    rewards.rewards[0].config = bleu.BleuConfig()
    with pytest.raises(UsageError) as error:
        rewards.check(rows)
    for code, name in (("ja", "Japanese"), ("ko", "Korean")):
        assert f'pip install "sacrebleu[{code}]"' in str(error.value)
        assert f"rl.rewards.bleu: {name}: tokenizer {code}-mecab" in str(error.value)


def test_bleu_cuts_words_by_the_language() -> None:
    row = {"source": "I like cats", "target": "我很喜欢猫", "target_lang": "zho-CN"}
    found = build(["bleu"])([Sample("p", "我喜欢猫", row=row)]).total
    assert found == pytest.approx([0.49760939], abs=1e-8)
    build(["bleu"]).check([row, {"target_lang": "x-velan"}, {}])
