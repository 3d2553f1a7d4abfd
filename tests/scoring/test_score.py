"""Scores of tasks and general text, against slow plain references and in several processes."""

import json
import math
import os
from dataclasses import replace

import pytest
import torch
from tiny_runs import finish, start_call
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from perdure.errors import DataError
from perdure.models.chat import Encoder
from perdure.processes import over_ranks
from perdure.scoring import general_loss, score_task
from perdure.scoring.metrics import chrf
from perdure.streams.task import Task

pytestmark = pytest.mark.train

LABELS = ("yes", "no", "not at all", "perhaps")
TEXTS = ["red", "What is a name?", "a much longer sentence about nothing", "Import it.", "x y z"]


def row(text, answer, system=None):
    turns = [{"role": "system", "content": system}] if system else []
    return {"prompt": [*turns, {"role": "user", "content": text}], "answer": answer}


def task(metric, **changes):
    rows = [row(text, LABELS[i % 4]) for i, text in enumerate(TEXTS * 2)]
    return replace(
        Task("mood", (), (), tuple(rows), metric, labels=LABELS, max_new_tokens=7), **changes
    )


@pytest.fixture
def strong(tiny_model_dir, tiny):
    """The tiny model with weights large enough to have opinions, and an encoder."""
    config = AutoConfig.from_pretrained(tiny_model_dir)
    config.initializer_range = 0.15
    config.tie_word_embeddings = False
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_config(config).eval()
    return model, Encoder(tiny[1])


@torch.no_grad()
def plain_sum(model, encoder, a_row, answer):
    """Log-likelihood of an answer and of its tokens' mean, from one full row."""
    prompt, scored = encoder.prompt_ids(a_row), encoder.answer_ids(answer)
    table = model(torch.tensor([prompt + scored])).logits[0].log_softmax(-1)
    return sum(float(table[len(prompt) - 1 + k, t]) for k, t in enumerate(scored))


@torch.no_grad()
def plain_greedy(model, encoder, a_row, count):
    """The most likely token again and again, the whole row each time: no cache, no batch."""
    ids, written = encoder.prompt_ids(a_row), []
    stop = encoder.answer_ids("")[-1]
    while len(written) < count and (not written or written[-1] != stop):
        written.append(int(model(torch.tensor([ids + written])).logits[0, -1].argmax()))
    return encoder.tokenizer.decode(written, skip_special_tokens=True).strip()


def test_label_likelihood_equals_full_rows(strong):
    model, encoder = strong
    found = score_task(model, encoder, task("label_likelihood"), batch_size=3)
    expected = [
        max(LABELS, key=lambda label, r=r: plain_sum(model, encoder, r, label))
        for r in task("label_likelihood").test
    ]
    assert [item["prediction"] for item in found.items] == expected
    right = [
        float(p == r["answer"]) for p, r in zip(expected, task("exact_match").test, strict=True)
    ]
    assert [item["score"] for item in found.items] == right
    assert found.score == sum(right) / len(right)
    assert found.metric == "label_likelihood"
    assert found.higher_is_better


def test_items_keep_the_group_that_a_row_declares(strong):
    rows = task("label_likelihood").test
    some = task("label_likelihood", test=({**rows[0], "group": "p. 7"}, rows[1]))
    found = score_task(*strong, some).items
    assert [item.get("group") for item in found] == ["p. 7", None]


def test_a_label_by_hand(strong):
    """With a head of zeros every token has probability 1/V, so the label of fewest tokens wins."""
    model, encoder = strong
    nn.init.zeros_(model.lm_head.weight)
    lengths = {label: len(encoder.answer_ids(label)) for label in LABELS}
    found = score_task(model, encoder, task("label_likelihood"))
    assert {i["prediction"] for i in found.items} == {min(LABELS, key=lambda x: lengths[x])}


def test_items_say_what_was_asked_and_have_stable_ids(strong):
    model, encoder = strong
    rows = (row("red", "yes"), row("red", "no"), row("red", "yes"), row("red", "yes", "Be brief."))
    items = score_task(model, encoder, task("label_likelihood", test=rows)).items
    assert [set(item) for item in items] == [{"id", "score", "prediction", "answer", "prompt"}] * 4
    ids = [item["id"] for item in items]
    assert ids[0] == "682ae9c7b61c12f2"
    assert ids[2] == ids[0] + "-2"
    assert len(set(ids)) == 4
    assert items[1]["answer"] == "no"
    assert items[0]["prompt"] == "red"
    assert items[3]["prompt"] == "system: Be brief.\nuser: red"
    json.dumps(items)


def test_perplexity_equals_cross_entropy_over_all_answer_tokens(strong):
    model, encoder = strong
    one = task("perplexity")
    found = score_task(model, encoder, one, batch_size=4)
    sums = [plain_sum(model, encoder, r, r["answer"]) for r in one.test]
    tokens = [len(encoder.answer_ids(r["answer"])) for r in one.test]
    assert found.score == pytest.approx(math.exp(-sum(sums) / sum(tokens)), rel=1e-4)
    assert [i["tokens"] for i in found.items] == tokens
    for item, total, count in zip(found.items, sums, tokens, strict=True):
        assert item["loss"] == pytest.approx(-total / count, abs=1e-4)
        assert item["score"] == pytest.approx(math.exp(item["loss"]))
    assert not found.higher_is_better


def test_perplexity_by_hand(strong):
    model, encoder = strong
    nn.init.zeros_(model.lm_head.weight)
    assert score_task(model, encoder, task("perplexity")).score == pytest.approx(
        model.config.vocab_size, rel=1e-4
    )


@pytest.mark.parametrize("metric", ["exact_match", "rouge_l", "chrf"])
def test_generation_equals_plain_greedy(strong, metric):
    model, encoder = strong
    written = [plain_greedy(model, encoder, r, 7) for r in task(metric).test]
    assert len(set(written)) > 2  # the prompts matter
    rows = tuple(
        row(r["prompt"][0]["content"], w) for r, w in zip(task(metric).test, written, strict=True)
    )
    found = score_task(model, encoder, task(metric, test=rows), batch_size=3)
    assert [item["prediction"] for item in found.items] == written
    assert found.score == pytest.approx(1.0)
    found = score_task(model, encoder, task(metric), batch_size=4)
    if metric == "chrf":
        scores = [chrf(w, r["answer"]) for w, r in zip(written, task(metric).test, strict=True)]
        assert [item["score"] for item in found.items] == scores


def test_generation_stops_at_the_end_of_the_answer(strong):
    model, encoder = strong
    end = encoder.answer_ids("")[-1]
    nn.init.zeros_(model.lm_head.weight)
    with torch.no_grad():  # the state at the last place of the prompt now gives the end token
        ids = torch.tensor([encoder.prompt_ids(row("red", "yes"))])
        model.lm_head.weight[end] = model.model(ids)[0][0, -1]
    steps = []
    model.register_forward_hook(lambda *_: steps.append(1))
    found = score_task(model, encoder, task("exact_match", test=(row("red", "yes"),)))
    assert found.items[0]["prediction"] == ""
    assert len(steps) == 1


@pytest.mark.parametrize("metric", ["label_likelihood", "exact_match", "perplexity"])
def test_scoring_leaves_everything_as_it_was(strong, metric):
    model, encoder = strong
    clean = score_task(model, encoder, task(metric))
    model.generation_config.update(do_sample=True, repetition_penalty=5.0, temperature=3.0)
    model.config.use_cache = False
    settings = model.generation_config.to_dict()
    model.train()
    model.model.layers[1].eval()  # as a frozen layer would be
    flags = [m.training for m in model.modules()]
    torch.manual_seed(7)
    state = torch.get_rng_state()
    found = score_task(model, encoder, task(metric))
    assert found == clean
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in model.modules()] == flags
    assert model.generation_config.to_dict() == settings
    assert model.config.use_cache is False
    assert all(p.grad is None for p in model.parameters())


def test_lora_generates_and_scores(strong):
    from peft import LoraConfig, get_peft_model

    model, encoder = strong
    before = score_task(model, encoder, task("chrf"))
    lora = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(model, lora)
    found = score_task(model, encoder, task("chrf"), batch_size=3)
    assert [i["prediction"] for i in found.items] == [
        plain_greedy(model.eval(), encoder, r, 7) for r in task("chrf").test
    ]
    with model.disable_adapter():
        assert score_task(model, encoder, task("chrf")).items == before.items


def test_rows_split_and_progress(strong):
    model, encoder = strong
    seen = []
    one = task("label_likelihood", validation=task("exact_match").test)
    found = score_task(
        model, encoder, one, split="validation", max_rows=7, batch_size=2,
        on_progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert len(found.items) == 7
    assert seen[-1] == (7, 7)
    assert seen == sorted(seen)
    assert len(seen) > 1


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"test": ()}, "'mood': the test split has no rows"),
        ({"labels": ()}, "needs the declared labels"),
        ({"labels": ("yes", "no")}, "answer 'not at all' is none of its labels"),
    ],
)
def test_a_task_that_cannot_be_scored_says_why(strong, changes, says):
    with pytest.raises(DataError, match=says):
        score_task(*strong, task("label_likelihood", **changes))


def test_general_loss_equals_cross_entropy(strong):
    model, encoder = strong
    texts = ["The import statement", "a", "A class definition is an executable statement. " * 5]
    found = general_loss(model, encoder, texts, max_tokens=20, batch_size=2)
    total = count = 0.0
    for text in texts:
        ids = torch.tensor([encoder.tokenizer(text)["input_ids"][:20]])
        if ids.shape[1] > 1:
            with torch.no_grad():
                loss = nn.functional.cross_entropy(
                    model(ids).logits[0, :-1], ids[0, 1:], reduction="sum"
                )
            total, count = total + float(loss), count + ids.shape[1] - 1
    assert found.tokens == count
    assert found.loss == pytest.approx(total / count, abs=1e-4)
    assert found.perplexity == pytest.approx(math.exp(found.loss))
    assert len(found.items) == 2  # "a" is one token: nothing to predict
    with pytest.raises(DataError, match="no text has two tokens"):
        general_loss(model, encoder, ["a"])


def test_over_ranks_alone():
    seen = []
    assert over_ranks([1, 2, 3], lambda b: b * b, on_progress=seen.append) == [1, 4, 9]
    assert seen == [1, 2, 3]


def _score_all(model, encoder, accelerator=None):
    metrics = ("label_likelihood", "exact_match", "perplexity")
    found = {
        m: vars(score_task(model, encoder, task(m), batch_size=3, accelerator=accelerator))
        for m in metrics
    }
    general = general_loss(
        model, encoder, TEXTS, batch_size=2, accelerator=accelerator, max_tokens=16
    )
    return found | {"general": vars(general)}


def _one_of_two(folder):
    os.environ["ACCELERATE_USE_CPU"] = "true"
    from accelerate import Accelerator
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor
    from transformers import AutoTokenizer

    accelerator = Accelerator(cpu=True)
    model = AutoModelForCausalLM.from_pretrained(folder)
    encoder = Encoder(AutoTokenizer.from_pretrained(folder))
    found = {"replicated": _score_all(model, encoder, accelerator)}
    for layer in model.model.layers:
        fully_shard(layer)
    fully_shard(model)
    found["fsdp2"] = _score_all(model, encoder, accelerator)
    assert all(isinstance(p, DTensor) for p in model.parameters())  # sharded again after scoring
    (folder / f"found-{os.environ['RANK']}.json").write_text(json.dumps(found))
    torch.distributed.destroy_process_group()


def _assert_near(found, expected):
    """Equal, and numbers equal within 1e-4."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys()
        for key, one in expected.items():
            _assert_near(found[key], one)
    elif isinstance(expected, list):
        assert len(found) == len(expected)
        for one, other in zip(found, expected, strict=True):
            _assert_near(one, other)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, abs=1e-4, rel=1e-4)
    else:
        assert found == expected


@pytest.mark.process
def test_two_processes_score_as_one(strong, tmp_path):
    """Whether each process has the whole model or FSDP2 shards it."""
    model, encoder = strong
    model.save_pretrained(tmp_path)
    encoder.tokenizer.save_pretrained(tmp_path)
    finish(start_call(_one_of_two, tmp_path, processes=2))
    expected = _score_all(model, encoder)
    for rank in range(2):
        found = json.loads((tmp_path / f"found-{rank}.json").read_text())
        _assert_near(found["replicated"], expected)
        _assert_near(found["fsdp2"], expected)


def test_labels_that_a_tokenizer_cannot_tell_apart_are_not_scored(strong):
    """A tokenizer of whole words knows neither of two labels, and writes both as <unk>."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    known = {"<unk>": 0, "</s>": 1, "good": 2, "bad": 3}
    words = Tokenizer(WordLevel(known, unk_token="<unk>"))
    words.pre_tokenizer = WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>", eos_token="</s>")
    encoder = Encoder(tokenizer, "none")
    mine = {"labels": ("großartig", "furchtbar"), "test": (row("red", "furchtbar"),)}
    with pytest.raises(DataError, match='"großartig" and "furchtbar" are the same tokens in'):
        score_task(strong[0], encoder, task("label_likelihood", **mine))
    mine = {"labels": ("good", "bad"), "test": (row("red", "bad"),)}
    assert score_task(strong[0], encoder, task("label_likelihood", **mine)).score in (0.0, 1.0)
