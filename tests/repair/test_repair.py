"""Repair: each rule by hand, and tiny models whose damage lies in one known group of layers."""

from __future__ import annotations

import copy
import json
import math
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from perdure.errors import DataError, ModelError, RecipeError, RunError, UsageError
from perdure.models.chat import Encoder
from perdure.protocol.batch import collate
from perdure.repair import Grid, Repair, Sizes, repair
from perdure.repair.candidates import (
    BASE,
    TUNED,
    Candidate,
    layer_groups,
    mixed,
    pruned,
    rewind,
    rewound,
)
from perdure.repair.choice import contenders, find, notes, qualifies, reason
from perdure.repair.halves import Half, deal, halve, read_tasks, read_texts
from perdure.repair.path import grown, load_line, stored_dtype
from perdure.repair.result import Figures, Point, goodness, kept_share, percent, regained_share
from perdure.streams.task import Task

pytestmark = pytest.mark.unit

COLOURS = {"sky": "blue", "grass": "green", "blood": "red", "snow": "white"}
SIZES = Sizes(texts=16, general_tokens=24, rows=32, batch=32)
GRID = Grid(factors=(0.5, 0.8), shares=(0.1,))


def rows(count: int, first: int = 0) -> list[dict[str, Any]]:
    things = list(COLOURS)
    return [
        {
            "prompt": [{"role": "user", "content": f"{things[i % 4]} {i}"}],
            "answer": COLOURS[things[i % 4]],
        }
        for i in range(first, first + count)
    ]


def colours(count: int = 32, metric: Any = "label_likelihood") -> Task:
    return Task("colour", rows(24, 100), (), rows(count), metric, labels=tuple(COLOURS.values()))


def texts(count: int = 24) -> list[str]:
    from pydoc_data.topics import topics

    return [topics[name][:300] for name in sorted(topics)[:count]]


def train(model: Any, batch: Any, steps: int, only: str = "", rate: float = 3e-3) -> None:
    """Adam on one batch; only the parameters in whose name `only` is found move."""
    moved = [p for n, p in model.named_parameters() if re.search(only, n) and p.requires_grad]
    optimizer = torch.optim.Adam(moved, lr=rate)
    for _ in range(steps):
        model.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    model.eval()


def add_noise(model: Any, only: str, scale: float) -> None:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if only in name and weight.ndim > 1:
                weight += scale * weight.std() * torch.randn(weight.shape, generator=generator)


@pytest.fixture(scope="module")
def folders(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base that knows some text; tuned: colours learned in layers 0 and 2, then noise in layer 1.

    The rows that are scored are those that were learned: what is tested are weights, not skill.

    `adapter` is the same as LoRA: what is learned and what is noise are in other layers.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    root = tmp_path_factory.mktemp("repair")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    encoder = Encoder(tokenizer)
    prose = [encoder.encode_text(text, 24) for text in texts(16)]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        base = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
        train(base, collate(prose, encoder.pad_id), 60)
        base.save_pretrained(root / "base")
        learned = [encoder.encode(row) for row in rows(32)]
        both = collate([*learned, *prose], encoder.pad_id)
        tuned = copy.deepcopy(base)
        train(tuned, both, 80, r"layers\.[02]\.")
        add_noise(tuned, "layers.1.", 1.0)
        tuned.save_pretrained(root / "tuned")
        base.name_or_path = base.config._name_or_path = str(root / "base")
        lora = get_peft_model(base, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"))
        train(lora, both, 100, r"layers\.[02]\.", 1e-2)
        for name, weight in lora.named_parameters():
            if "layers.1." in name and "lora_B" in name:
                with torch.no_grad():
                    weight.normal_(0, 0.05)
        lora.save_pretrained(root / "adapter")
    for name in ("base", "tuned"):
        tokenizer.save_pretrained(root / name)
    return {path.name: path for path in root.iterdir()}


@pytest.fixture(scope="module")
def repaired(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Repair:
    out = tmp_path_factory.mktemp("out") / "repaired"
    return repair(
        folders["base"], folders["tuned"], [colours()], texts(16), out=out, grid=GRID, sizes=SIZES
    )


# --- the three rules, by hand


def test_rewinding_by_hand() -> None:
    first, last = torch.tensor([0.0, 2.0]), torch.tensor([1.0, 4.0])
    assert rewound(first, last, 0.25).tolist() == [0.25, 2.5]
    odd, end = torch.tensor([0.1, 1e8]), torch.tensor([0.3, 1.0])
    assert torch.equal(rewound(odd, end, 0.0), odd)
    assert torch.equal(rewound(odd, end, 1.0), end)


def test_a_factor_for_each_group_by_hand() -> None:
    start = {"low": torch.tensor([1.0]), "top": torch.tensor([1.0])}
    end = {"low": torch.tensor([3.0]), "top": torch.tensor([3.0])}
    candidate = Candidate("groups", (0.5, 1.0, 0.0))
    found = dict(mixed(candidate, start, end, {"low": 0, "top": 2}))
    assert {name: value.item() for name, value in found.items()} == {"low": 2.0, "top": 1.0}
    assert dict(mixed(rewind(0.25), start, end, {"low": 0, "top": 2}))["top"].item() == 1.5


def test_pruning_by_hand() -> None:
    first = torch.tensor([1.0, 2.0, 0.0, 4.0])
    last = torch.tensor([2.0, 2.2, 0.0, 3.0])  # relative changes 1, 0.1, none, 0.25
    assert pruned(first, last, 0.0) is last
    assert torch.equal(pruned(first, last, 0.25), torch.tensor([1.0, 2.2, 0.0, 3.0]))
    assert torch.equal(pruned(first, last, 0.5), torch.tensor([1.0, 2.2, 0.0, 4.0]))
    assert torch.equal(pruned(first, last, 1.0), first)
    from_zero = pruned(torch.tensor([0.0, 1.0]), torch.tensor([1e-9, 9.0]), 0.5)
    assert from_zero.tolist() == [0.0, 9.0]  # a change from 0 is the largest there is
    start, end = {"w": first}, {"w": last}
    whole = dict(mixed(Candidate("prune", share=0.25), start, end, {"w": 1}))
    assert torch.equal(whole["w"], torch.tensor([1.0, 2.2, 0.0, 3.0]))


def test_pruning_against_a_plain_loop() -> None:
    draw = torch.Generator().manual_seed(0)
    first = torch.randn(13, 7, generator=draw)
    last = first + 0.1 * torch.randn(13, 7, generator=draw)
    pairs = list(zip(first.flatten().tolist(), last.flatten().tolist(), strict=True))
    largest = sorted(range(91), key=lambda i: -abs(pairs[i][1] - pairs[i][0]) / abs(pairs[i][0]))
    undone = set(largest[: round(0.3 * 91)])
    slow = [a if i in undone else b for i, (a, b) in enumerate(pairs)]
    assert pruned(first, last, 0.3).flatten().tolist() == slow


def test_layers_are_cut_into_thirds() -> None:
    names = ["model.embed_tokens.weight"]
    names += [f"model.layers.{i}.mlp.up_proj.weight" for i in range(6)]
    names += ["model.norm.weight", "lm_head.weight"]
    assert list(layer_groups(names).values()) == [0, 0, 0, 1, 1, 2, 2, 2, 2]
    # A model that declares its final norm first; experts have numbers of their own.
    other = ["decoder.embed_positions.weight", "decoder.final_layer_norm.weight",
             "decoder.layers.0.experts.7.w", "decoder.layers.2.experts.0.w"]  # fmt: skip
    assert list(layer_groups(other).values()) == [0, 2, 0, 2]


# --- figures by hand


def test_shares_by_hand() -> None:
    assert kept_share(0.2, 0.7, 0.6) == pytest.approx(0.8)
    assert kept_share(0.2, 0.7, 0.8) == pytest.approx(1.2)
    assert kept_share(0.5, 0.5, 0.5) == 1.0  # nothing gained, nothing lost
    assert kept_share(0.5, 0.4, 0.39) == 0.0
    assert regained_share(2.0, 3.0, 2.25) == pytest.approx(0.75)
    assert math.isnan(regained_share(2.0, 2.0, 1.0))
    assert goodness("perplexity", math.e) == pytest.approx(-1)
    assert goodness("exact_match", 0.5) == 0.5
    assert (percent(0.614), percent(math.nan), percent(-0.2)) == ("61 %", "–", "−20 %")


def point(candidate: Candidate, general: float, score: float) -> Point:
    """A point of one task whose base is (2.0, 0.2) and tuned model (3.0, 0.7)."""
    kept = {"t": kept_share(0.2, 0.7, score)}
    figures = Figures(general, {"t": score})
    return Point(candidate, figures, regained_share(2.0, 3.0, general), kept)


def test_what_qualifies_and_what_is_about_as_good() -> None:
    base, tuned = point(BASE, 2.0, 0.2), point(TUNED, 3.0, 0.7)
    best, near, far = (point(rewind(a), g, 0.7) for a, g in ((0.5, 2.4), (0.6, 2.41), (0.7, 2.43)))
    lost, worse = point(rewind(0.2), 2.1, 0.68), point(rewind(0.9), 3.1, 0.7)
    assert qualifies(best, tuned, 0.02)
    assert not qualifies(lost, tuned, 0.02)  # 96 % of the gain
    assert qualifies(lost, tuned, 0.04)
    assert not qualifies(worse, tuned, 0.02)
    every = [base, tuned, far, near, lost, best, worse]
    assert contenders(every, 0.02) == [best, near]  # 0.02 of the 1.0 that was lost
    assert contenders(every, 0.04) == [lost]
    assert contenders([base, tuned, worse], 0.02) == []
    # Below the base's loss of 2.0 all are equal, and those that kept most come first.
    beyond, enough = point(rewind(0.3), 1.8, 0.7), point(rewind(0.4), 2.01, 0.75)
    assert contenders([base, tuned, beyond, best, enough], 0.02) == [enough, beyond]


def test_reasons_and_notes_by_hand() -> None:
    base, tuned = point(BASE, 2.0, 0.2), point(TUNED, 3.0, 0.7)
    assert reason([base, tuned], 0.02).startswith("no candidate keeps 98 % of the gain")
    fine = Point(TUNED, Figures(2.0, {"t": 0.7}), math.nan, {"t": 1.0})
    assert reason([base, fine], 0.02) == "the tuned model lost nothing on the general texts"
    idle = Point(BASE, base.figures, 1.0, {"t": 1.0})
    assert "no better than the base on any task" in reason([idle, tuned], 0.02)
    assert contenders([idle, tuned, point(rewind(0.5), 2.5, 0.7)], 0.02) == []
    half = Half(("x",), (Task("t", (), (), rows(20), "exact_match"),))
    # One of 20 rows is 0.05 of the score and 0.1 of the gain of 0.5.
    assert list(notes([base, tuned], half, {"t": "exact_match"}, 0.02)) == [
        "t: one search row is 10 % of the gain, so a loss of 2 % cannot be told: no row may be lost"
    ]
    assert list(notes([base, tuned], half, {"t": "exact_match"}, 0.1)) == []
    (none,) = notes([tuned, base], half, {"t": "exact_match"}, 0.02)
    assert none.startswith("t: the tuned model gained nothing on it")


class Two:
    """What the search must know: weights in the middle and the top group differ."""

    adapter = False
    groups = {"middle": 1, "top": 2}  # noqa: RUF012


def test_the_search_moves_one_group_after_the_other() -> None:
    """The loss is 2 + the middle's factor; the task is right while the top's is 0.5 or more."""

    def measure(candidate: Candidate) -> Point:
        _, middle, top = candidate.factors
        return point(candidate, 2 + middle * (1 - candidate.share), 0.2 + 0.5 * (top >= 0.5))

    grid = Grid(factors=(0.4, 0.6), shares=(0.1,))
    found = find(measure, Two(), grid, 0.02)
    assert [str(p.candidate) for p in found] == [
        "base", "tuned", "rewind 0.4", "rewind 0.6",
        "groups 0.6 / 0 / 0.6", "groups 0.6 / 0.3 / 0.6", "groups 1 / 0 / 1",
        "groups 0.6 / 0 / 0", "groups 0.6 / 0 / 0.3", "groups 1 / 1 / 0",
        "prune 0.1",
    ]  # fmt: skip
    assert str(contenders(found, 0.02)[0].candidate) == "groups 0.6 / 0 / 0.6"
    assert len(found) == grid.evaluations(Two())


def test_the_search_of_an_adapter_and_of_one_group() -> None:
    class Adapter(Two):
        adapter = True
        groups = {"top": 2}  # noqa: RUF012

    def measure(candidate: Candidate) -> Point:
        return point(candidate, 3.0, 0.7)

    grid = Grid(factors=(0.5,))
    assert [str(p.candidate) for p in find(measure, Adapter(), grid, 0.02)] == [
        "base", "tuned", "rewind 0.5"]  # fmt: skip
    assert grid.evaluations(Adapter()) == 3


# --- halves


def test_halves_share_nothing_and_depend_on_content_only() -> None:
    search, report = halve(texts(), [colours(40)], (20, 24), seed=0)
    assert not set(search.texts) & set(report.texts)
    assert search.counts == {"general texts": 10, "colour": 12} == report.counts
    one, other = ({repr(row) for row in half.tasks[0].test} for half in (search, report))
    assert not one & other
    assert len(one | other) == 24
    backwards = Task("colour", (), (), rows(40)[::-1], "exact_match")
    again, _ = halve(texts()[::-1], [backwards], (20, 24), seed=0)
    assert again.texts == search.texts
    assert {repr(row) for row in again.tasks[0].test} == one
    another, _ = halve(texts(), [colours(40)], (20, 24), seed=1)
    assert another.texts != search.texts


def test_repeats_count_once_and_rows_of_one_prompt_stay_together() -> None:
    same = [{**row, "answer": answer} for row in rows(6) for answer in ("a", "b", "a")]
    search, report = halve(["x", "x ", "y"], [Task("t", (), (), same, "chrf")], (9, 99), seed=0)
    assert len(search.texts) == len(report.texts) == 1
    sides = [[row["prompt"][0]["content"] for row in half.tasks[0].test]
             for half in (search, report)]  # fmt: skip
    assert not set(sides[0]) & set(sides[1])
    assert [len(side) for side in sides] == [6, 6]
    assert all(side.count(prompt) == 2 for side in sides for prompt in side)


def test_deal_by_hand() -> None:
    items = ["a", "b", "c", "d", "e"]
    both = deal(items, str, 0, 4)
    assert [len(side) for side in both] == [2, 2]
    assert set(both[0]) | set(both[1]) < set(items)
    assert deal(items[::-1], str, 0, 4) == both


@pytest.mark.parametrize(
    ("some", "task", "message"),
    [
        (["one", " one"], colours(), "no two different texts"),
        (["one", "two"], Task("t", (), (), rows(1) * 3, "chrf"), "task t: has no two test rows"),
    ],
)
def test_too_little_for_two_halves(some: list[str], task: Task, message: str) -> None:
    with pytest.raises(DataError, match=message):
        halve(some, [task], (64, 200), 0)


def test_texts_are_read_from_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n\n \nthree\n")
    (tmp_path / "a.jsonl").write_text('{"text": "one"}\n{"text": ""}\n')
    (tmp_path / "b.jsonl").write_text('{"txt": "one"}\n')
    (tmp_path / "empty.txt").write_text("\n")
    assert read_texts(str(tmp_path / "a.txt")) == ["one\ntwo", "three"]
    assert read_texts(str(tmp_path / "a.jsonl")) == ["one"]
    assert len(read_texts("pydoc")) > 20
    for name, message in (
        ("b.jsonl", 'no column "text"'), ("empty.txt", "empty"), ("no.txt", "no such file"),
        ("a.csv", 'files ending in ".csv" are not read'),
    ):  # fmt: skip
        with pytest.raises(RecipeError, match=message):
            read_texts(str(tmp_path / name))


# --- whole repairs


def test_the_damaged_group_is_undone_and_the_task_kept(
    repaired: Repair, folders: dict[str, Path]
) -> None:
    chosen = repaired.chosen
    assert chosen is not None
    assert chosen.kind == "groups"
    assert chosen.factors[1] == 0
    assert repaired.report is not None
    assert repaired.report.regained > 0.9
    assert repaired.report.kept["colour"] >= 0.98
    uniform = [p for p in repaired.points if p.candidate.kind == "rewind" and p.worst >= 0.98]
    best = next(p for p in repaired.points if p.candidate == chosen)
    assert all(best.regained > p.regained + 0.1 for p in uniform)
    from transformers import AutoModelForCausalLM

    base, tuned, written = (
        AutoModelForCausalLM.from_pretrained(folder).state_dict()
        for folder in (folders["base"], folders["tuned"], repaired.folder / "model")
    )
    factor = {"0": chosen.factors[0], "1": 0.0, "2": chosen.factors[2]}
    for name, weight in written.items():
        layer = name.split(".")[2] if ".layers." in name else "0"
        expected = base[name] + factor[layer] * (tuned[name] - base[name])
        torch.testing.assert_close(weight, expected)


def test_the_report_is_measured_on_the_other_half(
    repaired: Repair, folders: dict[str, Path]
) -> None:
    from perdure.models import load_saved
    from perdure.scoring.perplexity import general_loss
    from perdure.scoring.score import score_task

    _, report = halve(texts(16), [colours()], (SIZES.texts, SIZES.rows), 0)
    model, tokenizer = load_saved(repaired.folder / "model")
    found = general_loss(model, Encoder(tokenizer), report.texts, max_tokens=SIZES.general_tokens)
    assert repaired.report is not None
    assert repaired.report.repaired.general == pytest.approx(found.loss, abs=1e-5)
    score = score_task(model, Encoder(tokenizer), report.tasks[0]).score
    assert repaired.report.repaired.scores == {"colour": score}
    base, tuned = repaired.report.base.general, repaired.report.tuned.general
    share = (tuned - found.loss) / (tuned - base)
    assert repaired.report.regained == pytest.approx(share, abs=1e-4)
    assert repaired.rows["search"] == repaired.rows["report"] == {"general texts": 8, "colour": 16}


def test_the_curve_has_every_candidate(repaired: Repair) -> None:
    assert repaired.folder is not None
    assert sorted(p.name for p in repaired.folder.iterdir()) == [
        "curve.json", "curve.svg", "model"]  # fmt: skip
    curve = json.loads((repaired.folder / "curve.json").read_text())
    assert [c["name"] for c in curve["candidates"]] == [str(p.candidate) for p in repaired.points]
    assert curve["chosen"] == str(repaired.chosen)
    assert curve["candidates"][0]["general_regained"] == 1
    assert curve["candidates"][1]["gain_kept"] == {"colour": 1}
    picture = (repaired.folder / "curve.svg").read_text()
    assert "<svg" in picture
    assert not [p for p in repaired.folder.parent.iterdir() if p.name.startswith(".")]


def test_bf16_weights_stay_bf16(folders: dict[str, Path], tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for name in ("base", "tuned"):
        model = AutoModelForCausalLM.from_pretrained(folders[name]).to(torch.bfloat16)
        model.save_pretrained(tmp_path / name)
        AutoTokenizer.from_pretrained(folders[name]).save_pretrained(tmp_path / name)
    line = load_line(str(tmp_path / "base"), str(tmp_path / "tuned"))
    assert {w.dtype for w in (*line.start.values(), *line.end.values())} == {torch.bfloat16}
    assert line.model.dtype == torch.float32
    line.put(rewind(0.5))
    line.round()
    kept = {n: p.clone() for n, p in line.model.named_parameters()}
    line.save(tmp_path / "out")
    written = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert written.dtype == torch.bfloat16
    assert all(torch.equal(p.float(), kept[n]) for n, p in written.named_parameters())


def test_an_adapter_is_scaled_and_written_as_one(folders: dict[str, Path], tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    line = load_line(str(folders["base"]), str(folders["adapter"]))
    line.put(Candidate("groups", (1.0, 0.25, 0.5)))
    ids = torch.tensor([[5, 6, 7, 8]])
    plain = AutoModelForCausalLM.from_pretrained(folders["base"])
    pair = line.end
    with torch.no_grad():
        for layer, factor in ((0, 1.0), (1, 0.25), (2, 0.5)):
            for name, module in plain.model.layers[layer].named_modules():
                stem = f"base_model.model.model.layers.{layer}.{name}"
                if f"{stem}.lora_A.default.weight" in pair:
                    a, b = (pair[f"{stem}.lora_{x}.default.weight"] for x in "AB")
                    module.weight += factor * (16 / 8) * b @ a
        torch.testing.assert_close(line.model.eval()(ids).logits, plain(ids).logits)
    found = repair(
        folders["base"], folders["adapter"], [colours()], texts(16), out=tmp_path / "out",
        grid=GRID, sizes=SIZES,
    )  # fmt: skip
    assert found.chosen is not None
    assert {p.candidate.kind for p in found.points} == {"base", "tuned", "rewind", "groups"}
    assert found.report is not None
    assert found.report.regained > 0.5
    base = AutoModelForCausalLM.from_pretrained(folders["base"])
    loaded = PeftModel.from_pretrained(base, str(tmp_path / "out" / "model")).eval()
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids).logits, found.model.eval()(ids).logits)
    from perdure.models import load_saved

    again, _ = load_saved(tmp_path / "out")
    with torch.no_grad():
        torch.testing.assert_close(again(ids).logits, loaded(ids).logits)


def test_a_few_steps_of_gere_are_one_more_candidate(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    for number, tuned in enumerate(("tuned", "adapter")):
        found = repair(
            folders["base"], folders[tuned], [colours()], texts(16), out=tmp_path / str(number),
            steps=2, grid=Grid(factors=(0.8,), shares=()), sizes=SIZES,
        )  # fmt: skip
        kinds = [p.candidate.kind for p in found.points]
        assert kinds.count("gere") == 1
        trained = found.points[-1]
        begin = next(p for p in found.points if p.candidate.factors == trained.candidate.factors)
        assert trained.figures.general != begin.figures.general
        assert found.rows["search"]["general texts"] == 4  # as many others are trained on
        better = trained.figures.general < begin.figures.general and trained.worst >= 0.98
        assert found.chosen == (trained if better else begin).candidate
        assert (tmp_path / str(number) / "model").is_dir()


# --- what is refused


def test_nothing_is_overwritten_and_nothing_is_left_behind(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "mine").write_text("mine")
    with pytest.raises(RunError, match="there: exists already"):
        repair("no/such/base", "no/such/tuned", [colours()], texts(16), out=tmp_path / "there")
    assert (tmp_path / "there" / "mine").read_text() == "mine"
    with pytest.raises(ModelError):
        repair("no/such/base", folders["tuned"], [colours()], texts(16), out=tmp_path / "new")
    assert [p.name for p in tmp_path.iterdir()] == ["there"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_task_loss": 1.0}, "--max-task-loss 1: must be 0 or more and below 1"),
        ({"max_task_loss": -0.1}, "--max-task-loss -0.1"),
        ({"steps": -1}, "--steps -1: must be 0 or more"),
        ({"precision": "fp8"}, "--precision fp8: unknown"),
        ({"tasks": []}, "no task"),
        ({"general": ["one", "two"], "steps": 3}, "--steps: too few general texts"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_loaded(
    options: dict[str, Any], message: str
) -> None:
    given = {"tasks": [colours()], "general": texts(16), **options}
    with pytest.raises(UsageError, match=message) as caught:
        repair("no/such/base", "no/such/tuned", **given)
    assert caught.value.exit_code == 2
    assert not isinstance(caught.value, ModelError)


def test_two_models_that_do_not_belong_together(
    folders: dict[str, Path], tiny_model_dir: Path, tmp_path: Path
) -> None:
    from small_tokenizer import make_tokenizer
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    with pytest.raises(UsageError, match="has the same weights as"):
        load_line(str(folders["base"]), str(folders["base"]))
    with pytest.raises(ModelError, match=r"is an adapter and .* is a full model"):
        load_line(str(folders["adapter"]), str(folders["tuned"]))
    with pytest.raises(ModelError, match="holds an adapter, not a base model"):
        load_line(str(folders["adapter"]), str(folders["adapter"]))
    config = LlamaConfig.from_pretrained(folders["base"])
    for key, value, message in (
        ("num_hidden_layers", 2, "not the same kind of model: model.layers.2"),
        ("intermediate_size", 64, r"\(128, 64\) in the base and \(64, 64\) in the tuned model"),
    ):
        other = copy.deepcopy(config)
        setattr(other, key, value)
        if hasattr(other, "layer_types") and other.layer_types:
            other.layer_types = other.layer_types[: other.num_hidden_layers]
        folder = tmp_path / key
        LlamaForCausalLM(other).save_pretrained(folder)
        AutoTokenizer.from_pretrained(tiny_model_dir).save_pretrained(folder)
        with pytest.raises(ModelError, match=message):
            load_line(str(folders["base"]), str(folder))
    folder = tmp_path / "tokens"
    LlamaForCausalLM(config).save_pretrained(folder)
    make_tokenizer(300).save_pretrained(folder)
    with pytest.raises(ModelError, match="the tokenizers differ"):
        load_line(str(folders["base"]), str(folder))


@pytest.mark.parametrize(
    ("key", "value"), [("use_dora", True), ("bias", "all"), ("peft_type", "IA3")]
)
def test_adapters_that_do_not_scale(
    folders: dict[str, Path], tmp_path: Path, key: str, value: Any
) -> None:
    config = json.loads((folders["adapter"] / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, key: value}))
    with pytest.raises(ModelError, match=str(value)) as caught:
        load_line(str(folders["base"]), str(tmp_path))
    assert "merge_and_unload" in str(caught.value)


def test_new_tokens_are_the_tuned_models_own() -> None:
    first, last = torch.zeros(2, 3), torch.ones(3, 3)
    assert grown("e", first, last).tolist() == [[0.0] * 3, [0.0] * 3, [1.0] * 3]
    assert grown("e", first, torch.ones(2, 3)) is first
    with pytest.raises(ModelError, match=r"e: is \(3, 3\) in the base and \(2, 3\)"):
        grown("e", last, first)


def test_the_type_that_weights_were_stored_in() -> None:
    third = torch.tensor([1 / 3])
    assert stored_dtype([third, third]) == torch.float32
    assert stored_dtype([third.half().float()]) == torch.float16
    assert stored_dtype([third.bfloat16().float(), torch.ones(2)]) == torch.bfloat16


# --- the command and the guide


def blocks(language: str) -> list[str]:
    text = (Path(__file__).parents[2] / "docs" / "repair.md").read_text(encoding="utf-8")
    return [part.split("```")[0] for part in text.split(f"```{language}\n")[1:]]


@pytest.fixture
def at_work(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder as the guide has it: base, tuned, tasks.yaml, its data, and texts.txt."""
    for name in ("base", "tuned"):
        (tmp_path / name).symlink_to(folders[name])
    (tmp_path / "tasks.yaml").write_text(blocks("yaml")[0], encoding="utf-8")
    for split, some in (("train", rows(24, 100)), ("test", rows(40))):
        lines = [f"{row['prompt'][0]['content']},{row['answer']}" for row in some]
        (tmp_path / f"colour-{split}.csv").write_text("\n".join(["text,label", *lines]))
    (tmp_path / "texts.txt").write_text("\n\n".join(" ".join(t[:60].split()) for t in texts(16)))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def perdure(*args: str, code: int) -> Any:
    from perdure.cli import app

    result = CliRunner().invoke(app, list(args), prog_name="perdure")
    assert result.exit_code == code, result.output
    return result


def test_the_guides_commands_do_what_it_says(at_work: Path) -> None:
    first, second = [line for block in blocks("bash") for line in block.splitlines()]
    done = perdure(*shlex.split(first)[1:], code=0)
    output = done.stdout
    assert "repair: rows are read with " in " ".join(done.output.split())
    assert "Candidates on the search half (8 texts, 20 rows)" in output  # of 16 and 40
    assert "Report half, which the search never saw" in output
    assert "model: tuned-repaired/model" in output
    found = CliRunner()
    from perdure.cli import app

    audited = found.invoke(app, shlex.split(second)[1:])
    assert audited.exit_code in (0, 1, 3), audited.output
    error = perdure(*shlex.split(first)[1:], code=4).stderr
    assert error.startswith("error: tuned-repaired: exists already, and nothing is overwritten")


def test_the_guides_python(at_work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = blocks("python")
    exec(compile(code, "docs/repair.md", "exec"), {})
    assert "rewind 0.5" in capsys.readouterr().out
    assert (at_work / "mended" / "config.json").is_file()


def test_where_nothing_qualifies_only_the_curve_is_written(at_work: Path) -> None:
    args = ["repair", "tuned", "base", "--general", "texts.txt", "--task", "tasks.yaml",
            "--rows", "8", "--texts", "8", "--precision", "bf16", "--json"]  # fmt: skip
    found = json.loads(perdure(*args, code=1).stdout)
    assert found["chosen"] is None
    assert "take the base" in found["reason"]
    assert sorted(p.name for p in Path("base-repaired").iterdir()) == ["curve.json", "curve.svg"]
    assert json.loads(Path("base-repaired/curve.json").read_text())["report"] is None


def test_wrong_files_are_told_by_the_command(at_work: Path) -> None:
    args = ["repair", "base", "tuned", "--general", "texts.txt", "--task", "tasks.yaml"]
    error = perdure(*args, "--task", "tasks.yaml", code=2).stderr
    assert error.startswith("error: --task tasks.yaml: a task called colour was given already")
    error = perdure(*args[:3], "--general", "text.txt", *args[5:], code=2).stderr
    assert "did you mean" in error
    assert read_tasks([Path("tasks.yaml")])[0].name == "colour"
    assert not Path("tuned-repaired").exists()


@pytest.mark.parametrize(
    ("metric", "base", "tuned", "kept", "words"),
    [
        ("exact_match", 0.2, 0.6, 0.5, "50 % of the gain kept"),
        ("exact_match", 0.5, 0.5, 1.0, "no gain; no worse"),
        ("exact_match", 0.5, 0.4, 0.0, "no gain; worse"),
        ("perplexity", 9.0, 4.0, 0.5, "50 % of the gain kept"),  # less is better
        ("perplexity", 4.0, 9.0, 1.0, "no gain; no worse"),
    ],
)
def test_what_the_table_says_of_a_gain(
    metric: str, base: float, tuned: float, kept: float, words: str
) -> None:
    from types import SimpleNamespace

    from perdure.repair.result import _reported

    sides = {
        name: SimpleNamespace(general=3.0, scores={"task": score})
        for name, score in (("base", base), ("tuned", tuned), ("repaired", tuned))
    }
    report: Any = SimpleNamespace(**sides, regained=1.0, kept={"task": kept})
    table = _reported(SimpleNamespace(metrics={"task": metric}), report)  # type: ignore[arg-type]
    assert list(table.columns[-1].cells)[-1] == words
