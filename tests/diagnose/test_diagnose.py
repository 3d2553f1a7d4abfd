"""What was lost: the rule by hand, the probe against scikit-learn, and planted losses found."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from perdure.diagnose.case import Case
from perdure.diagnose.diagnose import diagnose, diagnose_task
from perdure.diagnose.lenient import lenient_match, named_label
from perdure.diagnose.measurements import Measured, Sizes, in_front, spread, trained_on
from perdure.diagnose.result import TaskDiagnosis, evidence
from perdure.diagnose.rule import (
    Decision,
    Figure,
    Figures,
    decide,
    drop_figure,
    half_way_figure,
    probe_figure,
)
from perdure.errors import DataError, ModelError, TrainingError, UsageError
from perdure.models.chat import Encoder
from perdure.protocol.batch import collate
from perdure.scoring.probe import chance_of, features, linear_probe
from perdure.streams.kinds import kind
from perdure.streams.rows import each_once
from perdure.streams.task import Task

pytestmark = pytest.mark.train

COLOURS = {"sky": "blue", "grass": "green", "blood": "red", "snow": "white"}
NEXT = {"blue": "green", "green": "red", "red": "white", "white": "blue"}
SIZES = Sizes(probe_rows=40, relearn_steps=12, learning_rate=2e-3, shots=0, batch=32)


def rows(first: int, count: int) -> list[dict[str, Any]]:
    things = list(COLOURS)
    return [
        {
            "prompt": [{"role": "user", "content": f"{things[i % 4]} {i}"}],
            "answer": COLOURS[things[i % 4]],
        }
        for i in range(first, first + count)
    ]


def colours(metric: Any = "label_likelihood", labelled: bool = True, test: int = 60) -> Task:
    return Task(
        "colours", rows(100, 40), (), rows(200, test), metric,
        labels=tuple(COLOURS.values()) if labelled else (), max_new_tokens=16,
    )  # fmt: skip


# --- the rule, by hand-made figures

UP, DOWN, AROUND = (Figure(m, m - 0.1, m + 0.1, 50) for m in (0.2, -0.2, 0.0))
SOON, LATE = (Figure(0.0, -0.1, 0.1, 50, more) for more in (30, 900))
LOST = {"score": DOWN, "written": DOWN}
NO_FORM = {**LOST, "lenient": DOWN, "forced": DOWN}
HELD = {**NO_FORM, "probe": UP, "probe_change": AROUND}
FELL_A_LITTLE = {**NO_FORM, "probe": AROUND, "probe_change": DOWN}
NO_PROBE = {"written": "free", "forced": "free", "probe": "free"}


def decided(found: dict[str, Figure], **never: str) -> tuple[str, str, int | None]:
    decision = decide(Figures(found, unavailable=never))
    assert decision.needs == ()
    assert decision.reason
    return decision.loss, decision.decided_by, decision.more_rows


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        ({"score": UP, "written": UP}, ("nothing", "score", None)),
        ({"score": UP, "written": SOON}, ("undecided", "written", 30)),
        ({"score": LATE, "written": SOON}, ("undecided", "written", 30)),
        ({"score": AROUND, "written": UP}, ("undecided", "score", None)),
        ({**LOST, "lenient": UP}, ("format", "lenient", None)),
        ({**LOST, "lenient": AROUND, "forced": UP}, ("format", "forced", None)),
        ({"score": UP, "written": DOWN, "lenient": DOWN, "forced": UP}, ("format", "forced", None)),
        ({**NO_FORM, "probe": DOWN}, ("knowledge", "probe", None)),
        ({**HELD, "relearned": UP}, ("alignment", "relearned", None)),
        ({**HELD, "relearned": AROUND, "shots": UP}, ("alignment", "shots", None)),
        ({**HELD, "relearned": DOWN, "shots": DOWN}, ("undecided", "", None)),
        ({**HELD, "relearned": SOON, "shots": LATE}, ("undecided", "relearned", 30)),
        ({**FELL_A_LITTLE, "relearned": UP}, ("alignment", "relearned", None)),
        (
            {**FELL_A_LITTLE, "relearned": DOWN, "shots": DOWN},
            ("knowledge", "probe_change", None),
        ),
        (
            {**FELL_A_LITTLE, "probe": SOON, "relearned": DOWN, "shots": LATE},
            ("undecided", "probe", 30),
        ),
        (
            {**FELL_A_LITTLE, "probe": LATE, "probe_change": AROUND, "relearned": DOWN,
             "shots": DOWN},
            ("undecided", "probe", 900),
        ),
    ],
)  # fmt: skip
def test_every_verdict_of_the_rule(found, expected):
    assert decided(found) == expected


def test_without_labels_format_and_alignment_are_told_apart_and_knowledge_is_not_claimed():
    lost = {"score": DOWN, "lenient": DOWN}
    assert decided({"score": DOWN, "lenient": UP}, **NO_PROBE)[0] == "format"
    assert decided({**lost, "relearned": UP}, **NO_PROBE)[0] == "alignment"
    left = decide(Figures({**lost, "relearned": DOWN, "shots": DOWN}, unavailable=NO_PROBE))
    assert (left.loss, left.more_rows) == ("undecided", None)
    assert "nothing brought the score back (lenient, relearned, shots)" in left.reason
    assert "without a probe lost knowledge cannot be shown (free)" in left.reason


def test_knowledge_is_not_claimed_if_nothing_tried_to_bring_the_score_back():
    never = {"relearned": "left out", "shots": "left out"}
    assert decided(FELL_A_LITTLE, **never)[:2] == ("undecided", "probe")


def test_the_border_itself_is_neither_above_nor_below():
    assert Figure(0.1, 0.0, 0.2, 9).side == "around"
    assert Figure(-0.1, -0.2, 0.0, 9).side == "around"
    assert Figure(0.1, 1e-9, 0.2, 9).side == "above"
    assert Figure(-0.1, -0.2, -1e-9, 9).side == "below"


def test_measures_are_asked_for_one_after_another_and_no_further_than_needed():
    def needs(found: dict[str, Figure]) -> tuple[str, ...]:
        return decide(Figures(found)).needs

    assert needs({}) == ("score", "written")
    assert needs(LOST) == ("lenient",)
    assert needs({**LOST, "lenient": UP}) == ()
    assert needs({**LOST, "lenient": DOWN}) == ("forced",)
    assert needs(NO_FORM) == ("probe",)
    assert needs({**NO_FORM, "probe": DOWN}) == ()
    assert needs(HELD) == ("relearned",)
    assert needs({**HELD, "relearned": DOWN}) == ("shots",)
    assert needs({**HELD, "relearned": UP}) == ()


# --- figures from rows, by hand


def test_the_drop_of_rows_that_did_not_change_is_the_rule_of_three():
    same = np.ones(59)
    figure = drop_figure(same, same, 0.05, 0.05)
    assert figure.mean == pytest.approx(0.05)
    assert figure.low == pytest.approx(0.05 - (1 - 0.05 ** (1 / 59)), abs=0.004)
    assert figure.rows == 59
    few = drop_figure(same[:10], same[:10], 0.05, 0.05)
    assert few.side == "around"
    # ln 0.05 / ln 0.95 = 58.4
    assert few.more_rows == pytest.approx(59 - 10, abs=2)
    lost = drop_figure(same, 1 - same, 0.05, 0.05)
    assert (lost.side, lost.mean, lost.more_rows) == ("below", pytest.approx(-0.95), None)


def test_rows_of_one_group_count_as_one_row():
    """60 rows that stayed show a drop below 1 in 20; 12 groups of five do not."""
    base, groups = np.ones(60), np.repeat(np.arange(12), 5)
    grouped = drop_figure(base, base, 0.05, 0.05, groups=groups)
    one_each = drop_figure(base[:12], base[:12], 0.05, 0.05)
    assert drop_figure(base, base, 0.05, 0.05).side == "above"
    assert grouped.side == "around"
    assert grouped.low == pytest.approx(one_each.low, abs=1e-9)
    assert grouped.more_rows == pytest.approx(5 * one_each.more_rows, abs=5)
    half = half_way_figure(base, base, 0 * base, 0.0, 0.05, groups=groups)
    assert half.low == pytest.approx(half_way_figure(*(base[:12], base[:12], 0 * base[:12]), 0.0,
                                                     0.05).low)  # fmt: skip
    probe = probe_figure(base, base, 0.5, 0.05, groups=groups)
    assert probe.low == pytest.approx(probe_figure(base[:12], base[:12], 0.5, 0.05).low)


def test_half_way_is_the_middle_of_base_and_tuned_but_never_below_that_of_base_and_chance():
    measured, base, tuned = np.array([1.0, 1, 0, 0]), np.ones(4), np.zeros(4)
    assert half_way_figure(measured, base, tuned, 0.0, 0.05).mean == pytest.approx(0.5 - 0.5)
    assert half_way_figure(measured, base, tuned, 0.25, 0.05).mean == pytest.approx(0.5 - 0.625)
    halves = np.full(4, 0.5)  # above chance: the tuned score is the lower end
    assert half_way_figure(measured, base, halves, 0.25, 0.05).mean == pytest.approx(0.5 - 0.75)


def test_half_way_sides_with_many_rows():
    base, tuned = np.ones(200), np.zeros(200)
    back = np.arange(200) % 10 < 7
    assert half_way_figure(back.astype(float), base, tuned, 0.0, 0.05).side == "above"
    assert half_way_figure(1.0 - back, base, tuned, 0.0, 0.05).side == "below"
    assert half_way_figure((np.arange(200) % 2).astype(float), base, tuned, 0.0, 0.05).side == (
        "around"
    )


def test_the_probe_border_is_a_quarter_of_the_lead_over_chance():
    base = np.ones(8)
    tuned = np.array([1.0] * 4 + [0.0] * 4)
    # 1 - (1 - 0.2) / 4 = 0.8
    assert probe_figure(base, tuned, 0.2, 0.05).mean == pytest.approx(0.5 - 0.8)
    many = np.ones(300)
    assert probe_figure(many, (np.arange(300) % 10 < 9).astype(float), 0.2, 0.05).side == "above"
    assert probe_figure(many, (np.arange(300) % 10 < 7).astype(float), 0.2, 0.05).side == "below"
    assert probe_figure(many, (np.arange(300) % 10 < 8).astype(float), 0.2, 0.05).side == "around"


# --- a lenient match


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("blue", "blue"),
        ("BLUE", "blue"),
        ("The answer is blue.", "blue"),
        ('"Blue"!', "blue"),
        ("azure, I think", "blue"),
        ("blue or red", None),
        ("bluebird", None),
        ("light blue", "light blue"),
        ("a light-blue one", "light blue"),
        ("", None),
        (" + ", "+"),
    ],
)
def test_the_one_label_that_a_text_names(text, expected):
    labels = ("blue", "red", "light blue", "+", "-")
    assert named_label(text, labels, {"azure": "blue", "crimson": "no label"}) == expected


def test_a_free_answer_is_found_in_order_and_whole():
    assert lenient_match("It is: New  YORK, of course", "New York") == 1.0
    assert lenient_match("York, New", "New York") == 0.0
    assert lenient_match("9", "At 9") == 0.0
    assert lenient_match("42", "4") == 0.0
    assert lenient_match("+", "+") == 1.0
    assert lenient_match("anything", "+") == 0.0


# --- the probe


def test_features_are_the_hidden_states_of_the_prompt(tiny):
    model, tokenizer = tiny
    encoder, some = Encoder(tokenizer), rows(0, 5)
    model.train()
    last = features(model, encoder, some, batch_size=2)
    mean = features(model, encoder, some, layer=1, position="mean")
    assert model.training
    assert last.shape == mean.shape == (5, 64)
    model.eval()
    for i, row in enumerate(some):
        ids = torch.tensor([encoder.prompt_ids(row)])
        with torch.no_grad():
            states = model(ids, output_hidden_states=True).hidden_states
        np.testing.assert_allclose(last[i], states[-1][0, -1], atol=1e-5)
        np.testing.assert_allclose(mean[i], states[2][0].mean(0), atol=1e-5)


def test_features_refuse_what_the_model_has_not(tiny):
    model, tokenizer = tiny
    with pytest.raises(UsageError, match="layer 3: the model has layers 0 to 2"):
        features(model, Encoder(tokenizer), rows(0, 1), layer=3)
    with pytest.raises(UsageError, match="position 'first': unknown"):
        features(model, Encoder(tokenizer), rows(0, 1), position="first")  # type: ignore[arg-type]
    with torch.no_grad():
        model.model.norm.weight.fill_(math.nan)
    with pytest.raises(TrainingError, match="hidden states that are not finite"):
        features(model, Encoder(tokenizer), rows(0, 1))


def test_the_probe_is_scikit_learns_on_standardised_features():
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    rng = np.random.default_rng(0)
    truth = rng.integers(0, 3, 120)
    x = rng.normal(size=(120, 20)) + 0.8 * np.eye(3, 20)[truth]
    x[:, 7] = 5.0  # says nothing, and has no spread
    labels = [("a", "b", "c")[k] for k in truth]
    found = linear_probe(x[:80], labels[:80], x[80:], labels[80:])
    plain = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=1000))
    expected = plain.fit(x[:80], labels[:80]).predict(x[80:])
    assert found.predictions == list(expected)
    assert found.accuracy == pytest.approx(np.mean(expected == np.array(labels[80:])))
    assert found.accuracy > found.chance == chance_of(labels[80:])


def test_the_probe_by_hand():
    x = np.array([[-1.0], [1.0]])
    found = linear_probe(x, ["no", "yes"], np.array([[-3.0], [0.2], [4.0]]), ["no", "no", "yes"])
    assert found.predictions == ["no", "yes", "yes"]
    assert found.correct.tolist() == [1, 0, 1]
    assert found.chance == pytest.approx(2 / 3)
    with pytest.raises(DataError, match="two labels"):
        linear_probe(x, ["no", "no"], x, ["no", "no"])


# --- the short training, and rows


def test_a_short_training_changes_the_model_and_then_undoes_it_bit_for_bit(tiny):
    model, tokenizer = tiny
    encoder = Encoder(tokenizer)
    model.train()
    frozen, held = model.model.layers[0].mlp.up_proj.weight, model.model.norm.weight
    frozen.requires_grad_(False)
    held.grad = gradient = torch.ones_like(held)
    before, state = copy.deepcopy(model.state_dict()), torch.get_rng_state()
    with trained_on(model, encoder, rows(0, 10), 3, 1e-3):
        assert not torch.equal(frozen, before["model.layers.0.mlp.up_proj.weight"])
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert held.grad is gradient
    assert not frozen.requires_grad
    assert held.requires_grad
    assert model.training
    with pytest.raises(KeyError), trained_on(model, encoder, rows(0, 10), 3, 1e-3):
        raise KeyError
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    with (
        pytest.raises(TrainingError, match="loss is not finite"),
        trained_on(model, encoder, rows(0, 10), 3, 1e30),
    ):
        pass
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_rows_are_dealt_in_turn_from_each_label():
    some = [{"prompt": str(i), "answer": a} for i, a in enumerate("aaabbc")]
    assert [r["prompt"] for r in spread(some, 5, True)] == ["0", "3", "5", "1", "4"]
    assert [r["prompt"] for r in spread(some, 9, True)] == ["0", "3", "5", "1", "4", "2"]
    assert [r["prompt"] for r in spread(some, 2, False)] == ["0", "1"]
    assert each_once(kind("generation"), [*some, *some], 3) == some[:3]


def test_examples_stand_after_the_instruction_and_before_the_question():
    system = {"role": "system", "content": "Name it."}
    task = Task("t", (), (), [{"prompt": [system, {"role": "user", "content": "q"}],
                               "answer": "a"}], "exact_match")  # fmt: skip
    shown = [{"prompt": [system, {"role": "user", "content": "x"}], "answer": "y"}]
    said = [(t["role"], t["content"]) for t in in_front(task, shown).test[0]["prompt"]]
    assert said == [("system", "Name it."), ("user", "x"), ("assistant", "y"), ("user", "q")]


# --- planted losses


def tune(model: Any, tokenizer: Any, data: list[dict[str, Any]], steps: int) -> Any:
    """A copy trained on all of `data` at once."""
    tuned, encoder = copy.deepcopy(model), Encoder(tokenizer)
    batch = collate([encoder.encode(row) for row in data], encoder.pad_id)
    optimizer = torch.optim.Adam(tuned.parameters(), lr=3e-3)
    for _ in range(steps):
        optimizer.zero_grad()
        tuned(**batch).loss.backward()
        torch.nn.utils.clip_grad_norm_(tuned.parameters(), 1.0)
        optimizer.step()
    return tuned.eval()


def answering(say: Any) -> list[dict[str, Any]]:
    return [{**row, "answer": say(row["answer"])} for row in rows(100, 40)]


@pytest.fixture(scope="module")
def base(tiny_model_dir: Path) -> tuple[Any, Any]:
    """The tiny model, trained in seconds to know the colours."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    return tune(model, tokenizer, rows(100, 40), 60), tokenizer


@pytest.fixture(scope="module")
def planted(base) -> dict[str, Any]:
    """Copies of the base, each with one loss; "blind" is one whose layers see their token only."""
    model, tokenizer = base
    blind = copy.deepcopy(model)
    with torch.no_grad():
        for layer in blind.model.layers:
            layer.self_attn.o_proj.weight.zero_()
    return {
        "same": copy.deepcopy(model),
        "format": tune(model, tokenizer, answering("The answer is {}.".format), 80),
        "azure": tune(model, tokenizer, answering("hue {}".format), 30),
        "alignment": tune(model, tokenizer, answering(NEXT.__getitem__), 20),
        "blind": blind,
    }


def examine(base: Any, tuned: Any, task: Task, **options: Any) -> TaskDiagnosis:
    found = diagnose(base, (tuned, base[1]), [task], sizes=options.pop("sizes", SIZES), **options)
    return found.tasks[0]


def test_nothing_lost_against_itself(base, planted):
    found = examine(base, planted["same"], colours(test=8))
    assert (found.loss, found.decided_by) == ("nothing", "score")
    assert found.means["score"] == {"base": 1.0, "tuned": 1.0}  # so there was something to lose
    assert "probe" not in found.means
    assert found.evidence[0]["base"] == found.evidence[0]["tuned"] == found.evidence[0]["answer"]


@pytest.mark.parametrize("metric", ["label_likelihood", "exact_match"])
def test_another_form_is_format(base, planted, metric):
    found = examine(base, planted["format"], colours(metric))
    assert (found.loss, found.decided_by) == ("format", "lenient")
    assert found.means["lenient"]["tuned"] > 0.9
    shown = found.evidence[0]
    assert shown["base"] == shown["answer"] == shown["found"]
    assert shown["tuned"] == f"The answer is {shown['answer']}."


def test_a_synonym_is_format_if_it_is_told(base, planted):
    names = {"colours": {f"hue {label}": label for label in COLOURS.values()}}
    hidden = {f"hue {label}": label for label in COLOURS.values()}
    task = colours("exact_match")
    renamed = replace(task, labels=("blue", "green", "red", "white"))
    found = examine(base, planted["azure"], renamed, names=names)
    assert (found.loss, found.decided_by) == ("format", "lenient")
    assert found.evidence[0]["tuned"] in hidden


def test_permuted_labels_are_alignment(base, planted):
    found = examine(base, planted["alignment"], colours())
    assert (found.loss, found.decided_by) == ("alignment", "relearned")
    assert found.means["score"]["tuned"] < 0.5 < 0.8 < found.means["probe"]["tuned"]
    shown = found.evidence[0]
    assert (shown["tuned"], shown["found"]) == (NEXT[shown["answer"]], shown["answer"])
    assert "and the probe held" in found.reason


def test_a_model_that_no_longer_sees_the_question_lost_knowledge(base, planted):
    found = examine(base, planted["blind"], colours())
    assert (found.loss, found.decided_by) == ("knowledge", "probe")
    assert found.means["probe"]["base"] > 0.9
    assert found.means["probe"]["tuned"] < 0.5
    assert "relearned" not in found.means
    shown = found.evidence[0]
    assert shown["base_probe"] == shown["answer"] == shown["base"]
    assert shown["tuned_probe"] == shown["found"] != shown["answer"]


def test_free_answers_have_no_probe(base, planted):
    free = colours("exact_match", labelled=False)
    assert examine(base, planted["format"], free).loss == "format"
    assert examine(base, planted["alignment"], free).loss == "alignment"
    blind = examine(base, planted["blind"], free, sizes=replace(SIZES, relearn_rows=0))
    assert blind.loss == "undecided"
    assert blind.unavailable["probe"] == "the task has no labels"
    assert "without a probe" in blind.reason


def test_rouge_is_explained_too(base, planted):
    assert examine(base, planted["format"], colours("rouge_l", labelled=False)).loss == "format"


def test_examples_in_the_prompt_are_tried_last_and_only_if_they_fit(base, planted):
    sizes = replace(SIZES, relearn_rows=0, shots=3)
    found = examine(base, planted["alignment"], colours(), sizes=sizes)
    assert found.unavailable["relearned"] == "left out"
    assert 0 <= found.means["shots"]["tuned"] <= 1
    model, tokenizer = copy.deepcopy(planted["alignment"]), copy.deepcopy(base[1])
    tokenizer.model_max_length = 20
    found = diagnose(base, (model, tokenizer), [colours()], sizes=sizes).tasks[0]
    assert "longer than the model's 20 tokens" in found.unavailable["shots"]


def test_too_few_rows_are_undecided_and_say_how_many_would_do(base, planted):
    nearly = copy.deepcopy(planted["same"])
    with torch.no_grad():
        nearly.model.norm.weight.mul_(1.0001)
    found = examine(base, nearly, colours(test=20))
    assert found.loss == "undecided"
    assert found.more_rows == pytest.approx(59 - 20, abs=2)
    assert f"about {found.more_rows} more test rows would decide" in found.why()
    again = examine(base, nearly, replace(colours(), test=rows(200, 20) * 5))
    assert again.rows == 20  # repeats are no evidence


def test_no_train_rows_leave_only_the_form(base, planted):
    task = replace(colours(), train=())
    found = examine(base, planted["alignment"], task)
    assert found.loss == "undecided"
    assert set(found.unavailable.values()) >= {"the task has no train rows"}
    one = replace(colours(), train=rows(100, 40)[::4])
    found = examine(base, planted["blind"], one, sizes=replace(SIZES, relearn_rows=0))
    assert found.unavailable["probe"] == "the train rows have one label only"


def test_a_probe_at_chance_in_the_base_says_nothing(base, planted):
    sides = [Measured(planted[n], base[1], sizes=SIZES) for n in ("blind", "same")]
    case = Case(sides[0], sides[1], colours(), {}, 0.05, 0.05, 0)
    case.measure("probe")
    assert "not surely above chance" in case.figures.unavailable["probe"]
    assert "probe" not in case.figures.found
    assert case.means["probe"]["base"] < 0.5 < case.means["probe"]["tuned"]


def test_the_users_models_stay_as_they_are(base, planted):
    tuned = planted["alignment"]
    states = [copy.deepcopy(m.state_dict()) for m in (base[0], tuned)]
    found = examine(base, tuned, colours())
    assert "relearned" in found.means  # so it was trained
    for model, state in zip((base[0], tuned), states, strict=True):
        assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())
        assert all(p.grad is None or p.requires_grad for p in model.parameters())


def test_a_base_is_measured_once_for_many_tuned_models(base, planted):
    asked: list[str] = []
    first = Measured(*base, sizes=SIZES, side="base", on_progress=lambda w, *_: asked.append(w))
    for name in ("alignment", "blind"):
        second = Measured(planted[name], base[1], sizes=SIZES)
        found = diagnose_task(first, second, colours())
        assert found.loss == {"alignment": "alignment", "blind": "knowledge"}[name]
        if name == "alignment":
            seen = len(asked)
    assert len(asked) == seen > 0


# --- what is refused


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        (colours(), {"max_drop": 0.0}, "--max-drop 0: must be above 0"),
        (colours(), {"alpha": 0.7}, "--alpha 0.7: must be between 0 and 0.5"),
        (colours(), {"sizes": Sizes(learning_rate=0.0)}, "--learning-rate 0: must be above 0"),
        (colours("perplexity"), {}, "task colours: with metric perplexity nothing is answered"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_loaded(task, options, message):
    with pytest.raises(UsageError, match=message):
        diagnose("no-such-folder/a/b", "no-such-folder/a/b", [task], **options)
    with pytest.raises(UsageError, match="no tasks"):
        diagnose("no-such-folder/a/b", "no-such-folder/a/b", [])
    with pytest.raises(ModelError):
        diagnose("no-such-folder/a/b", "no-such-folder/a/b", [colours()])


# --- evidence and the command


def test_evidence_is_what_the_verdict_says_row_by_row():
    answers = {
        "id": list("pqrs"), "prompt": list("pqrs"), "answer": list("aaaa"),
        "base_score": list("aaab"), "tuned_score": list("bbab"),
        "base_probe": list("aaaa"), "tuned_probe": list("baba"),
        "tuned_relearned": list("abaa"), "tuned_relearned_score": [1.0, 0.0, 1.0, 1.0],
    }  # fmt: skip
    before, after = np.array([1.0, 1, 1, 0]), np.array([0.0, 0, 1, 0])

    def shown(loss: Any, by: str) -> list[str]:
        decision = Decision(loss, "", by)
        return [row["id"] for row in evidence(decision, answers, "score", before, after)]

    assert shown("knowledge", "probe") == ["p"]
    assert shown("knowledge", "probe_change") == ["p"]
    assert shown("alignment", "relearned") == ["p"]
    assert shown("nothing", "score") == ["r"]
    assert shown("undecided", "") == ["p", "q"]


@pytest.fixture
def at_work(base, planted, tmp_path, monkeypatch) -> Path:
    for name, model in (("base", base[0]), ("tuned", planted["format"])):
        model.save_pretrained(tmp_path / name)
        base[1].save_pretrained(tmp_path / name)
    for split, data in (("train", rows(100, 40)), ("test", rows(200, 60))):
        lines = [{"text": r["prompt"][0]["content"], "label": r["answer"]} for r in data]
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    task = {"name": "colours", "format": "labels", "train": "train.jsonl", "test": "test.jsonl",
            "label_names": {v: v for v in COLOURS.values()}}  # fmt: skip
    (tmp_path / "recipe.yaml").write_text(json.dumps({"stream": {"tasks": [task]}}))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_command_prints_verdicts_and_evidence(at_work):
    from perdure.cli import app

    args = ["diagnose", "base", "tuned", "--tasks", "recipe.yaml", "--rows", "40"]
    text = CliRunner().invoke(app, args)
    assert text.exit_code == 0, text.output
    assert "format" in text.stdout
    assert "rows that show it" in text.stdout
    found = json.loads(CliRunner().invoke(app, [*args, "--json"]).stdout)
    (task,) = found["tasks"]
    assert (task["task"], task["loss"], task["rows"]) == ("colours", "format", 40)
    assert len(task["evidence"]) > 5
    assert set(task["figures"]["lenient"]) == {"mean", "low", "high", "rows", "more_rows"}
    assert task["evidence"][0]["tuned_written"].startswith("The answer is ")


def test_the_command_gives_label_names_as_other_spellings(at_work):
    from perdure.commands.diagnose import label_names
    from perdure.prepare import load_recipe

    recipe = load_recipe(Path("recipe.yaml"), tasks_only=True)
    spelled = {v: v for v in COLOURS.values()}
    assert label_names(recipe) == {"colours": spelled}
    # The number of a class is not what a model writes for it.
    numbered = recipe.stream.tasks[0].model_copy(update={"label_names": {"0": "red", **spelled}})
    recipe.stream.tasks[0] = numbered
    assert label_names(recipe) == {"colours": spelled}
