"""SEQ*: its phases by switch, a decoder's warm-up against plain loops, prototypes, recipes."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from class_runs import CLASSES, save_decoder, save_encoder, weights, write_class_recipe
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F

import perdure
from perdure import recipes
from perdure.errors import ModelError, RecipeError, UsageError
from perdure.learners import build
from perdure.learners.listener import Folders
from perdure.learners.training import regroup
from perdure.methods import registry
from perdure.methods.seq_star import BODY, HEADS
from perdure.models.classifier import class_loss, views
from perdure.models.heads import Heads, class_means
from perdure.models.prepared_classes import PreparedClasses
from perdure.prepare import prepare
from perdure.protocol.step import Phase
from perdure.recipe.schema import HeadConfig
from perdure.run import Run

pytestmark = pytest.mark.unit

OLD = r"^heads\.parts\.(?:0)\."
BERT, LLAMA = ({"model_type": name} for name in ("bert", "llama"))


def method_of(**options: Any) -> Any:
    return registry.load("seq_star")(registry.load_config("seq_star", options))


def phases(config: dict[str, str], task: int, **options: Any) -> list[Phase]:
    names = dict.fromkeys(("body.x.weight", *(f"heads.parts.{k}.weight" for k in range(task + 1))))
    model = SimpleNamespace(
        config=SimpleNamespace(**config), named_parameters=lambda: names.items()
    )
    ctx = SimpleNamespace(model=model, task_index=task)
    return list(method_of(**options).phases(ctx))


# --- switches


def test_states_of_a_task_by_body() -> None:
    """Specification, 2.4 and table 2.2: an encoder's warm-up has its heads, a decoder's has not."""
    assert phases(BERT, 0) == [Phase("warm-up", 3), Phase(freeze=BODY)]
    assert phases(LLAMA, 0) == [
        Phase("warm-up", 1, freeze=HEADS, objective="lm"),
        Phase(freeze=BODY),
    ]
    for config in (BERT, LLAMA):
        assert phases(config, 1) == [Phase(freeze=f"{BODY}|{OLD}")]
    assert phases(LLAMA, 0, warmup_loss="ce")[0] == Phase("warm-up", 3)
    assert phases(LLAMA, 0, warmup_epochs=2)[0].epochs == 2
    assert phases(LLAMA, 0, warmup_epochs=0) == [Phase(freeze=BODY)]


def test_each_switch_alone() -> None:
    seq = {"freeze_body": False, "freeze_old_heads": False}
    assert phases(LLAMA, 1, **seq) == phases(BERT, 1, **seq) == [Phase()]
    assert phases(BERT, 1, **{**seq, "freeze_old_heads": True}) == [Phase(freeze=OLD)]
    assert phases(BERT, 1, **{**seq, "freeze_body": True}) == [Phase(freeze=BODY)]
    by_rate = phases(BERT, 1, freeze_mode="lr_zero")
    assert by_rate == [Phase(freeze=BODY, hold=OLD)]
    # No gradient into a decoder's features: the body does not move. An encoder has one.
    no_grad = {**seq, "feature_grad": False}
    assert phases(LLAMA, 1, **no_grad) == [Phase(freeze=BODY)]
    assert phases(BERT, 1, **no_grad) == [Phase()]
    assert phases(LLAMA, 0, warmup_loss="ce", feature_grad=False)[0] == Phase(
        "warm-up", 3, freeze=BODY
    )
    assert not phases(BERT, 1, frozen_eval_mode=False)[0].frozen_eval
    raw = phases(BERT, 1, prototype="raw")
    assert raw == [Phase(freeze=f"{BODY}|{OLD}", objective="prototypes")]
    assert phases(BERT, 1, prototype="normalized")[0].objective == "normalized prototypes"
    assert [p.name for p in phases(BERT, 0, prototype="raw")] == ["warm-up", "main"]


def test_official_is_the_released_codes_switches() -> None:
    found = phases(LLAMA, 1, official=True)
    assert found == [Phase(freeze=BODY, hold=OLD, frozen_eval=False)]
    seq = {"freeze_body": False, "freeze_old_heads": False, "official": True}
    assert phases(LLAMA, 1, **seq) == [Phase(freeze=BODY, frozen_eval=False)]
    assert phases(BERT, 1, **seq) == [Phase(frozen_eval=False)]
    assert "as the released code" in method_of(official=True).says
    assert method_of().says == ""


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"freeze_body": False, "warmup_epochs": 1}, "warmup_epochs"),
        ({"freeze_body": False, "warmup_loss": "lm"}, "warmup_loss"),
        ({"freeze_body": False, "prototype": "raw"}, "prototype"),
        ({"warmup_epochs": 0, "warmup_loss": "ce"}, "warmup_loss"),
    ],
)
def test_options_without_an_effect_are_refused(options: dict[str, Any], key: str) -> None:
    with pytest.raises(UsageError, match=f"{key}.*has no effect"):
        registry.load_config("seq_star", options)


def test_what_a_plan_counts() -> None:
    """Epochs in which the body learns and those of heads alone, by switch."""
    seq = {"freeze_body": False, "freeze_old_heads": False}
    for options, decoder, task, found in (
        ({}, False, 0, (3, 5)),
        ({}, True, 0, (1, 5)),
        ({}, True, 1, (0, 5)),
        (seq, False, 2, (5, None)),
        ({**seq, "official": True}, True, 2, (0, 5)),
        ({"warmup_loss": "ce", "feature_grad": False}, True, 0, (0, 8)),
        ({"prototype": "raw"}, False, 0, (3, 0)),
    ):
        assert method_of(**options).epochs(task, 5, decoder) == found


# --- freezing by hand


def test_a_rate_of_0_is_not_a_gradient_of_0_by_hand() -> None:
    """Specification, example 16: what AdamW does to a parameter that should stay."""

    def stepped(second: str) -> float:
        w = torch.nn.Parameter(torch.tensor(1.0, dtype=torch.float64))
        optimizer = torch.optim.AdamW([w], lr=1e-3, weight_decay=0.01)
        w.grad = torch.tensor(0.5, dtype=torch.float64)
        optimizer.step()
        assert w.item() == pytest.approx(0.99899, abs=1e-8)
        w.grad = None if second == "none" else torch.full_like(w, 0.7 * (second == "rate"))
        if second == "rate":
            module = torch.nn.Module()
            module.register_parameter("w", w)
            regroup(optimizer, module, {"w": 0.0})
        optimizer.step()
        return w.item()

    assert stepped("rate") == pytest.approx(0.99899, abs=1e-8)
    assert stepped("none") == pytest.approx(0.99899, abs=1e-8)
    assert stepped("zero gradient") == pytest.approx(0.99830995, abs=1e-8)


def test_an_old_head_stays_by_hand() -> None:
    """Specification, example 17: its gradient is there and is discarded."""
    heads = Heads(2, "linear")
    heads.grow(1)
    heads.grow(1)
    with torch.no_grad():
        for part, row in zip(heads.parts, ((0.5, 0.5), (-0.2, 0.1)), strict=True):
            part.weight.copy_(torch.tensor([row]))
            part.bias.zero_()
    logits = heads(torch.tensor([[1.0, 2.0]]))
    torch.testing.assert_close(logits, torch.tensor([[1.5, 0.0]]))
    class_loss(logits, torch.tensor([1])).backward()
    old, new = (part.weight.grad for part in heads.parts)
    torch.testing.assert_close(old, torch.tensor([[0.817574, 1.635149]]))
    torch.testing.assert_close(new, torch.tensor([[-0.817574, -1.635149]]))


@pytest.mark.train
@pytest.mark.parametrize("mode", ["requires_grad", "lr_zero"])
def test_old_heads_stay_in_either_mode(mode: str, tmp_path: Path) -> None:
    method = {"name": "seq_star", "warmup_epochs": 0, "freeze_mode": mode}
    recipe = write_class_recipe(
        tmp_path, save_encoder(tmp_path / "m"), method=method, train__max_grad_norm=0
    )
    run = Run.open(learn(tmp_path / "run", recipe))
    one, three = (weights(run.path, k) for k in (1, 3))
    # What stays is not trained, whichever way; and the rate that is told is the new head's.
    trained = [f["value"] for f in run.facts() if f["name"] == "trained_parameters"]
    assert trained == [64, 64, 64]
    assert {row["learning_rate"] for row in run.log_rows()} == {1e-2}
    assert torch.equal(one["heads.parts.0.weight"], three["heads.parts.0.weight"])
    # Nothing is clipped, so that both modes give the new heads the same weights.
    plain = {**method, "freeze_mode": "requires_grad"}
    other = write_class_recipe(tmp_path / "o", tmp_path / "m", method=plain, train__max_grad_norm=0)
    for name, found in weights(learn(tmp_path / "o/run", other)).items():
        torch.testing.assert_close(found, three[name], atol=1e-6, rtol=0)


# --- prototypes


def test_prototypes_by_hand() -> None:
    """Specification, example 11: raw means by dot product and by cosine, and a slow reference."""
    features = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.5, 0.5], [0.5, 0.7]])
    labels, query = torch.tensor([0, 0, 1, 1]), torch.tensor([[0.9, 0.8]])
    means, counts = class_means(features, labels, 3, normalized=False)
    torch.testing.assert_close(means[:2], torch.tensor([[2.0, 0.0], [0.5, 0.6]]))
    assert counts.tolist() == [2, 2, 0]
    for form, logits, best in (("linear", [1.8, 0.93], 0), ("cosine", [0.747409, 0.988858], 1)):
        heads = Heads(2, form)
        heads.grow(2)
        heads.place(means[:2], torch.tensor([True, True]))
        found = heads(query)
        torch.testing.assert_close(found, torch.tensor([logits]))
        assert views(found, [0, 0], [0, 1])[0].item() == best
    unit, _ = class_means(features, labels, 3, normalized=True)
    slow = torch.stack([f / sum(x * x for x in f) ** 0.5 for f in features])
    torch.testing.assert_close(unit[1], (slow[2] + slow[3]) / 2)


def test_only_chosen_classes_are_placed() -> None:
    heads = Heads(2, "linear")
    heads.grow(1)
    heads.grow(2)
    before = [part.weight.detach().clone() for part in heads.parts]
    heads.place(torch.ones(3, 2), torch.tensor([False, False, True]))
    assert torch.equal(heads.parts[0].weight, before[0])
    assert torch.equal(heads.parts[1].weight[0], before[1][0])
    assert heads.parts[1].weight[1].tolist() == [1.0, 1.0]
    assert heads.parts[1].bias[1].item() == 0.0  # type: ignore[index,union-attr]


@pytest.mark.train
def test_a_run_of_prototypes_is_their_means(tmp_path: Path) -> None:
    """No step but the warm-up's: each head is its rows' mean feature, read one row at a time."""
    method = {"name": "seq_star", "warmup_epochs": 1, "prototype": "raw"}
    recipe = write_class_recipe(tmp_path, save_encoder(tmp_path / "m"), method=method)
    run = learn(tmp_path / "run", recipe)
    assert {(r["after"], r["phase"]) for r in Run.open(run).log_rows()} == {(1, "warm-up")}
    # The warm-up's 16, and under the body as it is then each training and test row once.
    assert "the body read 88 texts, 88 needed" in (run / "perdure.log").read_text("utf-8")
    learner = learner_of(tmp_path / "again", recipe)
    learner.restore(run / "checkpoints/task-3", 3)
    model: Any = learner.model.eval()
    for number, task in enumerate(learner.stream):
        for own, name in enumerate(task.labels):
            rows = [row for row in task.train if row["label"] == name]
            found = [
                model.features(
                    (ids := torch.tensor([learner.encode(row)["input_ids"]])), torch.ones_like(ids)
                )[0]
                for row in rows
            ]
            expected = torch.stack(found).mean(0)
            column = CLASSES.index(name) - 2 * number
            assert column in (0, 1), own
            torch.testing.assert_close(
                model.heads.parts[number].weight[column], expected, atol=1e-5, rtol=0
            )


# --- a decoder's warm-up


def learn(out: Path, recipe: Path, overrides: Any = ()) -> Path:
    if not out.exists():
        run = Run.create(out, perdure.load_recipe(recipe, overrides))
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            perdure.learn(run.recipe, run)
        finally:
            torch.set_num_threads(threads)
    return out


def learner_of(folder: Path, recipe: Path) -> Any:
    ready = prepare(perdure.load_recipe(recipe))
    return build(
        ready.recipe, ready.stream, methods=ready.methods, precision="fp32",
        folders=Folders.below(folder), encoder=ready.encoder,
    )  # fmt: skip


def test_a_row_with_its_answer_by_hand(tmp_path: Path) -> None:
    from small_tokenizer import make_tokenizer

    tokenizer: Any = make_tokenizer()
    encoder = PreparedClasses(tokenizer, None, 400, "last")
    row = {"text": "xq 1", "label": "red"}
    found = encoder.encode_answer(row)
    front = tokenizer("Input sentence: xq 1\n The label:")["input_ids"]
    assert found["input_ids"][: len(front)] == front == encoder.encode(row)["input_ids"]
    answer = found["input_ids"][len(front) :]
    assert answer[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(answer[:-1]) == " red"
    assert found["labels"] == [-100] * len(front) + answer
    # A long text is cut for its answer: the template stays, and all of it fits.
    limit = len(encoder.encode({"text": "x y z", "label": ""})["input_ids"])
    short = PreparedClasses(tokenizer, None, limit, "last")
    cut = short.encode_answer({"text": "x y z", "label": "red"})
    assert len(cut["input_ids"]) <= limit
    text = tokenizer.decode(cut["input_ids"][: -len(answer)])
    assert text.startswith("Input sentence: x")
    assert text.endswith("The label:")
    assert cut["labels"][-len(answer) :] == answer


@pytest.mark.train
@pytest.mark.parametrize(
    ("name", "tied"), [("llama", False), ("llama", True), ("gpt2", True), ("gpt_neox", False)]
)
def test_the_warm_up_is_a_plain_loop_over_answers(name: str, tied: bool, tmp_path: Path) -> None:
    """Three steps of all rows, each row run alone: mean over the names' tokens and the ends."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = save_decoder(tmp_path / "m", name, tied)
    rate, decay = 1e-3, 0.1
    recipe = write_class_recipe(
        tmp_path, folder, model__pooling="auto", train__weight_decay=decay,
        train__batch_size=16, train__micro_batch_size=8, train__learning_rate=rate,
        train__optimizer="adamw_torch", method={"name": "seq_star", "warmup_epochs": 3},
    )  # fmt: skip
    learner = learner_of(tmp_path / "run", recipe)
    learner.fit(0)
    ours = {n.removeprefix("body."): p for n, p in learner.model.named_parameters()}

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).train()
    if not tied:
        model.get_output_embeddings().requires_grad_(False)
    matrices = [p for p in model.parameters() if p.requires_grad and p.dim() > 1]
    others = [p for p in model.parameters() if p.requires_grad and p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}],
        lr=rate,
    )
    for _ in range(3):
        losses: list[Tensor] = []
        for row in learner.stream.tasks[0].train:
            front = tokenizer(f"Input sentence: {row['text']}\n The label:")["input_ids"]
            answer = tokenizer(f" {row['label']}", add_special_tokens=False)["input_ids"]
            whole = [*front, *answer, tokenizer.eos_token_id]
            logits = model(input_ids=torch.tensor([whole])).logits[0]
            for place in range(len(front), len(whole)):
                losses.append(-F.log_softmax(logits[place - 1], -1)[whole[place]])
        torch.stack(losses).mean().backward()
        torch.nn.utils.clip_grad_norm_([*matrices, *others], 1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert set(ours) > set(dict(model.base_model.named_parameters()))
    before = dict(AutoModelForCausalLM.from_pretrained(folder).base_model.named_parameters())
    for key, value in model.base_model.named_parameters():
        torch.testing.assert_close(ours[key], value, atol=2e-5, rtol=0)
    moved = [not torch.equal(before[n], p) for n, p in model.base_model.named_parameters()]
    assert sum(moved) == len(moved)


@pytest.mark.train
def test_a_warm_up_leaves_heads_and_files_as_they_are(tmp_path: Path) -> None:
    """Specification, 2.4: no head learns in it; the head that writes text is stored nowhere."""
    folder = save_decoder(tmp_path / "m")
    recipe = write_class_recipe(tmp_path, folder, model__pooling="auto")
    learner = learner_of(tmp_path / "run", recipe)
    fresh = learner_of(tmp_path / "run", recipe)
    fresh._grow(0)
    drawn = fresh.model.heads.parts[0].weight.detach().clone()
    seen: list[Tensor] = []
    train = learner._train

    def spied(session: Any, phase: Phase) -> None:
        train(session, phase)
        seen.append(learner.model.heads.parts[0].weight.detach().clone())

    learner._train = spied
    learner.fit(0)
    assert torch.equal(seen[0], drawn)
    assert not torch.equal(seen[1], drawn)
    assert not any("lm_head" in name for name, _ in learner.model.named_parameters())
    learner.save(tmp_path / "saved")
    found = load_file(tmp_path / "saved/model/body.safetensors")
    assert "body.embed_tokens.weight" in found
    assert not any("lm_head" in name for name in found)


@pytest.mark.train
def test_a_decoders_head_is_there_only_for_its_warm_up(tmp_path: Path) -> None:
    folder = save_decoder(tmp_path / "m")
    for number, (method, has) in enumerate(
        [("seq_star", True), ("sequential", False),
         ({"name": "seq_star", "warmup_loss": "ce"}, False),
         ({"name": "seq_star", "warmup_epochs": 0}, False)]
    ):  # fmt: skip
        recipe = write_class_recipe(
            tmp_path / str(number), folder, model__pooling="auto", method=method
        )
        learner = learner_of(tmp_path / "run", recipe)
        assert bool(learner.model._language) == has


@pytest.mark.train
def test_a_gradient_reaches_a_decoder_under_a_head(tmp_path: Path) -> None:
    """Trap 1 of the specification is avoided, and offered by name."""
    folder = save_decoder(tmp_path / "m")
    seq = {"name": "seq_star", "freeze_body": False, "freeze_old_heads": False}
    base = load_file(folder / "model.safetensors")
    for grad in (True, False):
        recipe = write_class_recipe(
            tmp_path / str(grad), folder, model__pooling="auto",
            method={**seq, "feature_grad": grad},
        )  # fmt: skip
        found = weights(learn(tmp_path / str(grad) / "run", recipe), 1)
        moved = [
            not torch.equal(base[n.replace("body.", "model.", 1)], w)
            for n, w in found.items()
            if n.startswith("body.")
        ]
        assert all(moved) if grad else not any(moved)


@pytest.mark.train
def test_a_log_says_that_a_run_is_official(tmp_path: Path) -> None:
    method = {"name": "seq_star", "official": True}
    recipe = write_class_recipe(tmp_path, save_encoder(tmp_path / "m"), method=method)
    learn(tmp_path / "run", recipe)
    assert "seq_star: official: it computes as" in (tmp_path / "run/perdure.log").read_text()
    page = (tmp_path / "run/report.html").read_text()
    assert "As released" in page
    assert "seq_star (official: true)" in page


# --- refused before weights are loaded


@pytest.mark.train
def test_what_cannot_write_is_told_before_weights_are_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import PreTrainedModel

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("weights are loaded")

    encoder = save_encoder(tmp_path / "bert")
    headless = save_encoder(tmp_path / "llama", "llama")
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", refuse)
    for folder, method, why in (
        (encoder, {"name": "seq_star", "warmup_loss": "lm"}, "sees the whole text at once"),
        (headless, {"name": "seq_star"}, "without a language-model head"),
    ):
        recipe = write_class_recipe(tmp_path / why[:4], folder, method=method)
        with pytest.raises(UsageError, match=why) as told:
            prepare(perdure.load_recipe(recipe))
        assert "warmup_loss: ce" in str(told.value)
        assert "recipe.yaml:1: method.name: seq_star has the model write" in str(told.value)
    recipe = write_class_recipe(
        tmp_path / "ce", headless, method={"name": "seq_star", "warmup_loss": "ce"}
    )
    assert prepare(perdure.load_recipe(recipe)).model is not None


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({"model_type": "t5", "is_encoder_decoder": True}, "is an encoder-decoder"),
        ({"model_type": "vit"}, "is of type vit, neither an encoder nor a decoder of texts"),
    ],
)
def test_no_body_of_a_classifier(config: dict[str, Any], why: str, tmp_path: Path) -> None:
    import json

    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=why):
        prepare(perdure.load_recipe(write_class_recipe(tmp_path, folder)))


def test_entities_are_asked_for_and_there_are_none(tmp_path: Path) -> None:
    recipe = write_class_recipe(
        tmp_path, save_encoder(tmp_path / "m"), model__pooling="entity_starts"
    )
    with pytest.raises(RecipeError, match=r"recipe\.yaml:1: model\.pooling: has no effect"):
        prepare(perdure.load_recipe(recipe))


# --- recipes that ship

CARD = Path(__file__).parents[2] / "docs/methods/seq_star.md"


def card_rows() -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """The card's table of the paper's names: options of the method and of the head by recipe."""
    import re

    from ruamel.yaml import YAML

    def read(cell: str) -> dict[str, Any]:
        return YAML(typ="safe").load("{" + cell.strip().strip("`") + "}") or {}

    rows = re.findall(r"^\| [^|]+ \| ([\w-]+) \|([^|]*)\|([^|]*)\|$", CARD.read_text(), re.M)
    return {name: (read(method), read(head)) for name, method, head in rows if name != "recipe"}


def test_the_papers_names_are_recipes_with_the_cards_options() -> None:
    from ruamel.yaml import YAML

    table = card_rows()
    shipped = [n.partition("/")[2] for n in recipes.names() if n.startswith("seq_star/")]
    others = {n for n in shipped if n == "lora" or n.startswith("pythia-")}
    assert sorted(table) == sorted(set(shipped) - others)
    assert len(table) == 7
    for name, (method, head) in table.items():
        recipe = YAML(typ="safe").load(recipes.path(f"seq_star/{name}").read_text("utf-8"))
        assert recipe["method"] == {"name": "seq_star", **method}
        assert recipe["model"]["head"] == head
        registry.load_config("seq_star", method)
        HeadConfig(**head)


def test_the_named_variants_are_the_papers_strategies() -> None:
    """Tags of the paper's names: B, C, W, P and the head, told from the phases."""
    for name, (method, head) in card_rows().items():
        first, later = phases(BERT, 0, **method), phases(BERT, 1, **method)
        tags = name.removeprefix("seq-").split("-")
        assert (len(first) == 2) == ("w" in tags)
        assert (BODY in later[0].freeze) == ("fixb" in name)
        assert (OLD in later[0].freeze) == name.endswith("c")
        assert (head.get("preallocate") == "all") == ("p" in tags)
        assert head["type"] == ("linear" if "lin" in tags else "cosine")


@pytest.mark.parametrize("name", [n for n in recipes.names() if n.startswith("seq_star/")])
def test_recipes_of_named_streams_are_valid(name: str) -> None:
    from perdure import streams

    recipe_of = recipes.path(name)
    short = name.partition("/")[2]
    assert f"perdure run {short}.yaml" in recipes.command(name)
    assert recipes.describe(name)
    stream = short.removeprefix("pythia-") if short.startswith("pythia-") else "clinc150"
    assert stream in streams.CLASS_STREAMS
    recipe = perdure.load_recipe(recipe_of, check_files=False)
    assert recipe.stream.name == stream
    assert (recipe.train.batch_size, recipe.train.max_grad_norm) == (4, 0)
    assert (recipe.train.learning_rate, recipe.train.weight_decay) == (1e-5, 5e-4)
    if short.startswith("pythia-"):
        lengths = {"clinc150": 50, "banking77": 64, "topic3": 256, "fewrel": 100, "tacred": 128}
        assert recipe.train.max_length == lengths[stream]
        assert recipe.train.epochs == (3 if stream == "topic3" else 5)
        assert recipe.model.path == "EleutherAI/pythia-410m-deduped"
    # The overrides that its comment names, for the other rows of the table.
    told = re.findall(r"^#   .*?  +((?:[a-z_.]+=\S+ ?)+)", recipe_of.read_text("utf-8"), re.M)
    assert told or not short.startswith("pythia-")
    for line in told:
        changed = perdure.load_recipe(recipe_of, line.split(), check_files=False)
        assert changed != recipe
