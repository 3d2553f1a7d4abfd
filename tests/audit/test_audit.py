"""The audit of real models: tiny ones trained here, adapters, and SmolLM2-135M."""

from __future__ import annotations

import copy
import json
import math
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from perdure.audit.audit import Sizes, audit, same_weights
from perdure.errors import ModelError, UsageError
from perdure.models.chat import Encoder
from perdure.models.generate import Sample, sample_texts, start_of_user_turn
from perdure.protocol.batch import collate
from perdure.scoring.kl import sampled_kl, token_kl
from perdure.streams.task import GeneralText, Task, TaskStream

pytestmark = pytest.mark.unit

COLOURS = {"sky": "blue", "grass": "green", "blood": "red", "snow": "white"}
SIZES = Sizes(kl_texts=24, kl_tokens=12, general_tokens=24, batch=32)


def rows(count: int) -> list[dict[str, Any]]:
    things = list(COLOURS)
    return [
        {
            "prompt": [{"role": "user", "content": f"{things[i % 4]} {i}"}],
            "answer": COLOURS[things[i % 4]],
        }
        for i in range(count)
    ]


def colours(count: int = 160, metric: Any = "label_likelihood") -> Task:
    test = rows(count)
    return Task("colours", test[:8], (), test, metric, labels=tuple(COLOURS.values()))


def texts(count: int = 24) -> list[str]:
    from pydoc_data.topics import topics

    return [topics[name][:300] for name in sorted(topics)[:count]]


def add_noise(model: Any, scale: float) -> Any:
    """A copy with Gaussian noise in every weight, relative to the weight's own spread."""
    noisy = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in noisy.parameters():
            spread = weight.std() if weight.ndim > 1 else 0.0
            weight += scale * spread * torch.randn(weight.shape, generator=generator)
    return noisy


@pytest.fixture(scope="module")
def trained(tiny_model_dir: Path) -> tuple[Any, Any]:
    """The tiny model, trained in seconds to know the colours and some of the general text."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    encoder = Encoder(tokenizer)
    data = [encoder.encode(row) for row in rows(24)]
    data += [encoder.encode_text(text, 24) for text in texts(12)]
    batch = collate(data, encoder.pad_id)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    model.train()
    for _ in range(40):
        optimizer.zero_grad()
        model(**batch).loss.backward()
        optimizer.step()
    model.eval()
    return model, tokenizer


@pytest.fixture(scope="module")
def folders(trained: tuple[Any, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    model, tokenizer = trained
    root = tmp_path_factory.mktemp("audit")
    kinds = {"base": model, "noisy": add_noise(model, 1.0), "nearly": add_noise(model, 1e-4)}
    for name, one in kinds.items():
        one.save_pretrained(root / name)
        tokenizer.save_pretrained(root / name)
    return {name: root / name for name in kinds}


# --- whole audits


def test_a_model_against_itself_keeps_everything_whatever_the_number_of_items(folders):
    stream = TaskStream((colours(12),), GeneralText(held_out=texts(4)))
    found = audit(folders["base"], folders["base"], stream, max_kl=0.01, sizes=SIZES)
    assert found.identical_weights
    assert [(m.kind, m.verdict) for m in found.measures] == [
        ("loss", "kept"),
        ("kl", "kept"),
        ("task", "kept"),
    ]
    assert [m.change for m in found.measures] == [0, 0, 0]
    assert found.exit_code() == 0
    assert found.flips == ()


def test_noise_in_the_weights_is_lost_everywhere(folders):
    seen = []
    found = audit(
        folders["base"],
        folders["noisy"],
        [colours()],
        texts(),
        max_kl=0.05,
        sizes=SIZES,
        on_progress=lambda what, done, total: seen.append((what, done, total)),
    )
    assert [m.verdict for m in found.measures] == ["lost", "lost", "lost"]
    assert found.exit_code() == 1
    loss, kl, task = found.measures
    assert loss.items == kl.items == 24
    assert 0.05 < loss.low <= loss.change <= loss.high
    assert task.base > 0.9  # so there was something to lose
    assert (task.items, task.broken - task.mended) == (160, round(-160 * task.change))
    assert len(found.flips) == task.broken + task.mended
    assert {f["change"] for f in found.flips} <= {"right -> wrong", "wrong -> right"}
    assert [m.alpha for m in found.measures] == [pytest.approx(0.05 / 3)] * 3
    assert [what for what, done, total in seen if done == total] == [
        "general loss: base",
        "general loss: tuned",
        "KL: sampling",
        "KL: comparing",
        "colours: base",
        "colours: tuned",
    ]


def test_a_hair_of_noise_is_kept_by_the_statistics(folders):
    found = audit(
        folders["base"], folders["nearly"], [colours(200)], texts(), max_drop=0.05, sizes=SIZES
    )
    assert not found.identical_weights
    loss, kl, task = found.measures
    assert (loss.verdict, kl.verdict, task.verdict) == ("kept", None, "kept")
    assert 0 < kl.change < 1e-4
    assert task.low == pytest.approx(-(1 - 0.025 ** (1 / 200)), rel=0.05)  # KL is not judged


def test_too_few_rows_are_undecided_and_repeats_do_not_help(folders):
    few = colours(20)
    repeated = Task("colours", (), (), [*few.test] * 10, few.metric, labels=few.labels)
    found = audit(folders["base"], folders["nearly"], [repeated], measures=["tasks"], max_drop=0.05)
    (task,) = found.measures
    assert (task.verdict, task.items) == ("undecided", 20)
    assert task.note == "180 repeated rows left out"
    # ln 0.05 / ln 0.95 = 58.4
    assert task.more_items == pytest.approx(59 - 20, abs=2)
    assert (found.exit_code(), found.exit_code(undecided=0)) == (3, 0)


def test_rows_of_one_group_and_of_one_prompt_count_as_one(folders):
    test = colours(100).test
    grouped = [{**row, "group": str(i // 5)} for i, row in enumerate(test)]
    # Two answers to one question: only case and white space differ.
    twins = [{**row, "answer": "blue"} for row in test[1:11]]
    twins = [
        {**row, "prompt": [{"role": "user", "content": f" {row['prompt'][0]['content'].upper()} "}]}
        for row in twins
    ]
    for rows_, items, groups in (
        (test, 100, None),
        (grouped, 100, 20),
        ([*test, *twins], 110, 100),
    ):
        task = Task("colours", (), (), rows_, "label_likelihood", labels=tuple(COLOURS.values()))
        found = audit(folders["base"], folders["nearly"], [task], measures=["tasks"], max_drop=0.05)
        (measure,) = found.measures
        assert (measure.items, measure.groups) == (items, groups)
        # A few pairs count as much as all pairs would: the imagined group is the largest.
        assert measure.verdict == ("kept" if groups is None else "undecided")


def test_the_noise_floor_scores_the_base_again_and_refuses_a_margin_below_it(folders):
    seen: list[str] = []
    found = audit(
        folders["base"],
        folders["nearly"],
        [colours(120)],
        texts(),
        max_kl=0.1,
        max_drop=0.05,
        sizes=SIZES,
        noise_floor=2,
        on_progress=lambda what, done, total: seen.append(what),
    )
    loss, kl, task = found.measures
    assert 0 < loss.noise_floor < 0.02  # bf16 moves it; another batch and order hardly
    assert 0 < kl.noise_floor < 0.02
    assert task.noise_floor is not None
    order = list(dict.fromkeys(what for what in seen if what.startswith("general loss")))
    assert order == ["general loss: base", "general loss: base again", "general loss: tuned"]
    assert "KL: base again" in seen
    without = audit(folders["base"], folders["nearly"], [colours(120)], texts(), max_kl=0.1,
                    max_drop=0.05, sizes=SIZES)  # fmt: skip
    assert [m.change for m in without.measures] == [m.change for m in found.measures]
    assert [m.noise_floor for m in without.measures] == [None] * 3
    below = loss.noise_floor / 2
    with pytest.raises(UsageError, match=f"--max-loss-rise {below:g}: general loss") as caught:
        audit(folders["base"], folders["nearly"], general=texts(), measures=["loss"], sizes=SIZES,
              max_loss_rise=below, noise_floor=2)  # fmt: skip
    assert f"by {loss.noise_floor:.4g} by itself" in str(caught.value)


def test_the_noise_floor_is_the_largest_move_of_the_mean_over_the_same_items(folders):
    from perdure.models import load_saved
    from perdure.scoring.perplexity import general_loss

    sizes = Sizes(general_tokens=24, batch=1)
    (loss,) = audit(
        folders["base"], folders["nearly"], general=texts(6), measures=["loss"], sizes=sizes,
        noise_floor=1,
    ).measures  # fmt: skip
    model, tokenizer = load_saved(folders["base"])
    means = []
    for dtype in (torch.float32, torch.bfloat16):
        model = model.to(dtype)
        order = texts(6)
        if dtype == torch.bfloat16:
            random.Random("0 0").shuffle(order)
        items = general_loss(model, Encoder(tokenizer), order, max_tokens=24, batch_size=1).items
        means.append(sum(item["loss"] for item in items) / len(items))
    assert loss.base == pytest.approx(means[0], abs=1e-6)
    assert loss.noise_floor == pytest.approx(abs(means[1] - means[0]), abs=1e-6)
    assert loss.noise_floor > 0


def test_the_ruler_changes_order_batch_and_precision_and_nothing_else(trained):
    from perdure.audit.measuring import Pair, Ruler

    model, tokenizer = trained
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    pair = Pair(model, tokenizer, model, tokenizer, {}, Sizes(batch=8))
    items = list(range(20))
    ways = list(Ruler(4, seed=1).ways(pair, items))
    assert [next(one.parameters()).dtype for one, _, _ in ways] == [
        torch.bfloat16, torch.float32, torch.bfloat16, torch.float32
    ]  # fmt: skip
    assert ways[1][0] is model
    assert [size for _, _, size in ways] == [4, 16, 1, 4]
    assert all(sorted(order) == items != order for _, order, _ in ways)
    assert len({tuple(order) for _, order, _ in ways}) == 4
    assert all(torch.equal(before[name], now) for name, now in model.state_dict().items())


def test_fail_fast_stops_at_the_first_loss(folders):
    found = audit(
        folders["base"], folders["noisy"], [colours()], texts(), sizes=SIZES, fail_fast=True
    )
    assert [m.name for m in found.measures] == ["general loss"]
    assert found.skipped == ("KL from base", "colours")
    assert found.exit_code() == 1
    assert found.measures[0].alpha == pytest.approx(0.05 / 2)  # as if all were measured


def test_perplexity_of_a_task_is_judged_in_nats(folders):
    found = audit(
        folders["base"],
        folders["noisy"],
        [colours(40, "perplexity")],
        measures=["tasks"],
        sizes=SIZES,
    )
    (task,) = found.measures
    assert (task.kind, task.metric, task.verdict) == ("loss", "log perplexity", "lost")
    assert task.margin == 0.05
    assert found.flips == ()


def test_generated_answers_flip_with_both_predictions(folders):
    found = audit(
        folders["base"],
        folders["noisy"],
        [Task("colours", (), (), rows(24), "exact_match", max_new_tokens=4)],
        measures=["tasks"],
        sizes=SIZES,
    )
    (task,) = found.measures
    assert task.base > 0.9
    flip = next(f for f in found.flips if f["change"] == "right -> wrong")
    assert flip["base_prediction"] == flip["answer"] != flip["tuned_prediction"]


def test_the_same_seed_gives_the_same_audit(folders):
    def once(seed: int) -> Any:
        found = audit(folders["base"], folders["nearly"], max_kl=0.01, sizes=SIZES, seed=seed)
        return found.measures

    assert once(0) == once(0)
    assert once(0)[0].change != once(1)[0].change


def test_an_adapter_is_audited_like_any_model(folders, trained, tmp_path):
    from peft import LoraConfig, get_peft_model

    model = copy.deepcopy(trained[0])
    model.name_or_path = model.config._name_or_path = str(folders["base"])
    lora = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    lora.save_pretrained(tmp_path / "fresh")  # B is zero: computes what the base computes
    with torch.no_grad():
        for name, weight in lora.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 1.0, generator=torch.Generator().manual_seed(1))
    lora.save_pretrained(tmp_path / "wild")
    fresh = audit(folders["base"], tmp_path / "fresh", general=texts(), max_kl=0.01, sizes=SIZES)
    assert [m.verdict for m in fresh.measures] == ["kept", "kept"]
    assert not fresh.identical_weights
    wild = audit(folders["base"], tmp_path / "wild", general=texts(), max_kl=0.01, sizes=SIZES)
    assert [m.verdict for m in wild.measures] == ["lost", "lost"]


def test_rounding_to_bf16_is_no_change(folders, trained, tmp_path):
    """A base in bf16 is compared with an adapter on the same base in bf16."""
    from peft import LoraConfig, get_peft_model

    model = copy.deepcopy(trained[0])
    model.name_or_path = model.config._name_or_path = str(folders["base"])
    lora = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear"))
    lora.save_pretrained(tmp_path / "fresh")
    found = audit(
        folders["base"], tmp_path / "fresh", general=texts(), max_kl=0.01, sizes=SIZES,
        precision="bf16",
    )  # fmt: skip
    assert [m.change for m in found.measures] == [0, 0]


def test_loaded_models_are_taken_as_they_are(trained):
    model, tokenizer = trained
    before = torch.get_rng_state()
    found = audit((model, tokenizer), (model, tokenizer), max_kl=0.01, sizes=SIZES)
    assert found.measures[0].change == 0
    assert torch.equal(before, torch.get_rng_state())


# --- what is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_drop": 0.0}, "--max-drop 0: must be above 0"),
        ({"max_drop": 2.0}, "--max-drop 2: no score can drop by so much"),
        ({"max_loss_rise": -1.0}, "--max-loss-rise -1: must be above 0"),
        ({"max_kl": math.inf}, "--max-kl inf: must be above 0"),
        ({"precision": "fp8"}, "--precision fp8: unknown"),
        ({"alpha": 0.7}, "--alpha 0.7: must be between 0 and 0.5"),
        ({"measures": ["los"]}, "no measure is called 'los'"),
        ({"measures": ["kl"]}, "nothing to decide"),
    ],
)
def test_wrong_usage_is_told_before_anything_is_loaded(options, message):
    with pytest.raises(UsageError, match=message) as caught:
        audit("no-such-folder/a/b", "no-such-folder/a/b", [colours()], **options)
    assert caught.value.exit_code == 2


def test_other_tokenizers_are_refused_for_losses_but_not_for_tasks(trained, tmp_path):
    from small_tokenizer import make_tokenizer

    model, tokenizer = trained
    other = make_tokenizer(300)
    with pytest.raises(ModelError, match="the tokenizers differ"):
        audit((model, tokenizer), (model, other), general=texts(), sizes=SIZES)
    found = audit((model, tokenizer), (model, other), [colours(8)], measures=["tasks"], sizes=SIZES)
    assert found.measures[0].items == 8


def test_missing_model_is_a_model_error(folders):
    with pytest.raises(ModelError, match="no such folder"):
        audit(folders["base"], folders["base"] / "not" / "here", [colours(8)])


# --- KL


def test_token_kl_by_hand():
    base = torch.tensor([[0.0, 0.0], [math.log(3), 0.0]])  # (1/2, 1/2), (3/4, 1/4)
    tuned = torch.tensor([[math.log(3), 0.0], [math.log(3), 0.0]])
    expected = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    assert token_kl(base, tuned).tolist() == pytest.approx([expected, 0.0])


def test_tokens_added_to_the_tuned_model_count_against_it():
    base = torch.tensor([[0.0, 0.0]])
    tuned = torch.tensor([[0.0, 0.0, math.log(2)]])  # half of it on a new token
    assert token_kl(base, tuned).tolist() == pytest.approx([math.log(2)])


def test_sampled_kl_against_a_plain_loop(trained):
    base, tokenizer = trained
    tuned = add_noise(base, 0.3)
    samples = sample_texts(base, Encoder(tokenizer), texts=5, tokens=9, seed=1, batch_size=2)
    found = sampled_kl(base, tuned, samples, batch_size=3)
    for value, sample in zip(found, samples, strict=True):
        total = 0.0
        for at in range(sample.given, len(sample.ids)):
            ids = torch.tensor([sample.ids[:at]])
            with torch.no_grad():
                p = base(input_ids=ids).logits[0, -1].double().softmax(-1)
                q = tuned(input_ids=ids).logits[0, -1].double().softmax(-1)
            total += float((p * (p / q).log()).sum())
        assert value == pytest.approx(total / (len(sample.ids) - sample.given), rel=1e-3)
        assert value > 0


def test_samples_are_the_models_own_distribution(trained):
    """The first token of many samples has the frequencies that the model predicts."""
    model, tokenizer = trained
    encoder = Encoder(tokenizer)
    start = start_of_user_turn(encoder)
    samples = sample_texts(model, encoder, texts=2000, tokens=1, seed=0, batch_size=500)
    with torch.no_grad():
        p = model(input_ids=torch.tensor([start])).logits[0, -1].softmax(-1)
    counts = torch.bincount(torch.tensor([s.ids[-1] for s in samples]), minlength=len(p))
    common = p > 0.02
    assert common.sum() >= 2
    spread = (p * (1 - p) / 2000).sqrt()
    assert ((counts / 2000 - p)[common].abs() < 4 * spread[common]).all()


def test_samples_begin_in_a_users_turn_and_end_with_it(trained):
    model, tokenizer = trained
    encoder = Encoder(tokenizer)
    assert tokenizer.decode(start_of_user_turn(encoder)) == "<|im_start|>user\n"
    samples = sample_texts(model, encoder, texts=40, tokens=6, seed=0, batch_size=40)
    assert len({tuple(s.ids) for s in samples}) > 20
    for sample in samples:
        assert sample.given < len(sample.ids) <= sample.given + 6
        written = sample.ids[sample.given :]
        assert tokenizer.eos_token_id not in written[:-1]
    # The same texts, as the same draws decide, go on where the others ended.
    longer = sample_texts(model, encoder, texts=40, tokens=6, batch_size=40, past_end=True)
    stop = tokenizer.eos_token_id
    went_on = 0
    for short, long in zip(samples, longer, strict=True):
        assert long.ids[: len(short.ids)] == short.ids
        went_on += len(long.ids) > len(short.ids)
        assert long.ids[-1] == stop or len(long.ids) == long.given + 6
        assert (stop, stop) not in list(pairwise(long.ids))
    assert went_on > 0
    plain = Encoder(tokenizer, "none")
    assert start_of_user_turn(plain) == [tokenizer.eos_token_id]  # it has no BOS


def test_too_small_a_vocabulary_is_refused(trained):
    model, _ = trained
    with pytest.raises(ModelError, match="predicts 512 tokens, the base's tokenizer has 600"):
        sampled_kl(model, model, [Sample([1, 2, 3], 1)], vocabulary=600)


def test_same_weights(trained):
    model, _ = trained
    other = copy.deepcopy(model)
    assert same_weights(model, other)
    with torch.no_grad():
        other.model.layers[1].mlp.up_proj.weight[3, 5] += 1e-4
    assert not same_weights(model, other)
    assert not same_weights(model, copy.deepcopy(model).to(torch.bfloat16))


# --- the real thing


@pytest.mark.real
def test_smollm2_kept_against_itself_and_lost_with_noise(smollm2_dir: Path):
    from perdure.models import load_saved

    base = load_saved(smollm2_dir)
    sizes = Sizes(kl_texts=12, kl_tokens=6, general_tokens=16, batch=12)
    stream = TaskStream((), GeneralText(held_out=texts(12)))
    same = audit(base, base, stream, max_kl=0.05, sizes=sizes)
    assert [(m.verdict, m.change) for m in same.measures] == [("kept", 0), ("kept", 0)]
    noisy = add_noise(base[0], 0.5)
    found = audit(base, (noisy, base[1]), stream, max_kl=0.05, sizes=sizes)
    assert [m.verdict for m in found.measures] == ["lost", "lost"]


# --- the guide


def blocks(language: str) -> list[str]:
    text = (Path(__file__).parents[2] / "docs" / "audit.md").read_text(encoding="utf-8")
    return [part.split("```")[0] for part in text.split(f"```{language}\n")[1:]]


@pytest.fixture
def at_work(folders, tmp_path, monkeypatch) -> Path:
    """A folder as the guide has it: base, tuned, tasks.yaml, its data, and texts.txt."""
    (tmp_path / "base").symlink_to(folders["base"])
    (tmp_path / "tuned").symlink_to(folders["noisy"])
    recipe = next(b for b in blocks("yaml") if b.startswith("stream:"))
    (tmp_path / "tasks.yaml").write_text(recipe, encoding="utf-8")
    lines = [f"{row['prompt'][0]['content']},{row['answer']}" for row in rows(100)]
    for split in ("train", "test"):
        (tmp_path / f"topic-{split}.csv").write_text("\n".join(["question,topic", *lines]))
    (tmp_path / "texts.txt").write_text("\n".join(t[:50].replace("\n", " ") for t in texts()))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_guides_commands_do_what_it_says(at_work):
    import shlex
    from xml.etree import ElementTree

    from typer.testing import CliRunner

    from perdure.cli import app

    commands = [line for block in blocks("bash") for line in block.splitlines()]
    commands = [line for line in commands if "--scores" not in line]  # in test_scores.py
    assert len(commands) == 2
    outputs = []
    for command in commands:
        program, *arguments = shlex.split(command)
        assert program == "perdure"
        found = CliRunner().invoke(app, arguments)
        assert found.exit_code == 1, found.output
        outputs.append(found.stdout)
    assert "lost" in outputs[0]
    suite = ElementTree.parse(at_work / "audit.xml").getroot()
    assert [c.get("name") for c in suite.findall("testcase")][-1] == "topic"
    found = json.loads(outputs[1])
    assert (found["verdict"], found["measures"][-1]["name"]) == ("lost", "KL from base")
    # The CI's line is the first command with its output in a file.
    assert commands[0] in next(b for b in blocks("yaml") if "actions" in b)


def test_the_guides_python(at_work, capsys):
    (code,) = blocks("python")
    with pytest.raises(SystemExit) as caught:
        exec(compile(code, "docs/audit.md", "exec"), {})
    assert caught.value.code == 1
    assert "general loss lost" in capsys.readouterr().out


def test_the_guides_item_counts():
    for measures, counts in ((1, (149, 59, 29)), (5, (228, 90, 44))):
        for margin, count in zip((0.02, 0.05, 0.1), counts, strict=True):
            assert math.ceil(math.log(0.05 / measures) / math.log(1 - margin)) == count
