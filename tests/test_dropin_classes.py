"""`perdure.attach` on a trainer of `AutoModelForSequenceClassification`: what works trains, and
what it cannot do is refused before it trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_tokenizer import make_tokenizer
from torch.nn import functional as F
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

import perdure
from perdure.engine.trainer_classes import accuracy
from perdure.errors import UsageError

pytestmark = pytest.mark.train

WORDS = ("red sky", "blue sea", "warm sun", "cold snow")
WORKING: dict[str, dict[str, Any]] = {
    "sequential": {},
    "replay": {"buffer_size": 6},
    "ewc": {"rows": 4, "lam": 50},
    "lwf": {},
    "eaft": {"alpha": 50},  # of a model that is sure of nothing yet
    "freeze": {"layers": 1},
    "rewind": {"grid": [0.5], "tolerance": 100},
    "derpp": {"buffer_size": 6},
    "ema": {"decay": 0.8},
}
FAMILIES = ("bert", "roberta", "distilbert", "gpt2", "llama", "gpt_neox")


def classifier(family: str = "bert", labels: int = 4, cls: Any = None, **more: Any) -> Any:
    size = len(make_tokenizer())
    sizes = {
        "vocab_size": size, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
        "intermediate_size": 16, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 16,
        "pad_token_id": 0, "num_labels": labels, "max_position_embeddings": 64,
        "bos_token_id": 1, "eos_token_id": 1,
    }  # fmt: skip
    no_dropout = (
        "hidden_dropout_prob", "attention_probs_dropout_prob", "dropout", "attention_dropout",
        "seq_classif_dropout", "embd_pdrop", "attn_pdrop", "resid_pdrop",
    )  # fmt: skip
    sizes |= dict.fromkeys(no_dropout, 0.0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = AutoConfig.for_model(family, **sizes, **more)
        return (cls or AutoModelForSequenceClassification).from_config(config)


def rows_of(classes: tuple[int, ...], count: int = 4) -> list[dict[str, Any]]:
    tokenizer = make_tokenizer()
    return [
        {"input_ids": tokenizer(f"{WORDS[c]} {i}{' and' * (i % 3)}")["input_ids"], "label": c}
        for i in range(count)
        for c in classes
    ]


def trainer_of(
    out: Path, model: Any, classes: tuple[int, ...] = (0, 1), micro: int = 4, **given: Any
) -> Trainer:
    args = TrainingArguments(
        str(out), max_steps=2, per_device_train_batch_size=micro,
        gradient_accumulation_steps=4 // micro, learning_rate=0.05, optim="sgd",
        lr_scheduler_type="constant", use_cpu=True, bf16=False, logging_steps=1,
        save_strategy="no", disable_tqdm=True, report_to="none", dataloader_pin_memory=False,
    )  # fmt: skip
    tokenizer = make_tokenizer()
    tokenizer.padding_side = "right"  # as of the families that number positions from the left
    base: dict[str, Any] = {
        "model": model, "args": args, "train_dataset": rows_of(classes),
        "eval_dataset": rows_of(classes, 2), "processing_class": tokenizer,
        "data_collator": DataCollatorWithPadding(tokenizer),
    }  # fmt: skip
    return Trainer(**(base | given))


def learned(
    out: Path, name: str, model: Any, micro: int = 4, options: Any = None
) -> tuple[dict[str, Any], list[dict[str, Any]], Any]:
    """Weights after two tasks of two classes each, the second one's log, and the method."""
    methods: Any = [{"name": name, **(WORKING[name] if options is None else options)}]
    for index, classes in enumerate(((0, 1), (2, 3))):
        trainer = trainer_of(out, model, classes, micro)
        if micro < 4:
            trainer.model_accepts_loss_kwargs = False
        perdure.attach(trainer, *methods, task=f"task {index}", task_index=index)
        trainer.train()
        methods = trainer.methods  # type: ignore[attr-defined]
    weights = {n: p.detach().clone() for n, p in model.named_parameters()}
    return weights, trainer.state.log_history, methods[0]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return learned(tmp_path_factory.mktemp("plain"), "sequential", classifier())[0]


@pytest.mark.parametrize("name", WORKING)
def test_it_acts_and_not_by_how_the_batch_is_split(
    tmp_path: Path, name: str, plain: dict[str, Any]
) -> None:
    whole, log, method = learned(tmp_path, name, classifier())
    reads = name not in ("sequential", "freeze", "ema")  # those look at no row
    assert method.classes == ((0, 1, 2, 3) if reads else ())
    small, _, _ = learned(tmp_path, name, classifier(), micro=2)
    for key, value in whole.items():
        torch.testing.assert_close(value, small[key], atol=5e-6, rtol=0)
    if name != "sequential":
        assert max(float((whole[n] - plain[n]).abs().max()) for n in plain) > 1e-5
    assert all(0 < row["loss"] < 20 for row in log if "loss" in row)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["replay", "ewc", "lwf", "eaft", "freeze", "rewind", "derpp"])
def test_of_each_family_it_learns_or_is_refused_in_attach(
    tmp_path: Path, family: str, name: str
) -> None:
    _, log, method = learned(tmp_path, name, classifier(family))
    assert len([row for row in log if "loss" in row]) == 2
    if name == "ewc":
        fisher = {n: float(f.max()) for n, f in method.fisher.items()}
        assert max(fisher.values()) > 1e-6
        assert len([n for n, most in fisher.items() if most > 0]) > len(fisher) / 2


@pytest.mark.parametrize("family", FAMILIES)
def test_a_method_sees_the_models_own_logits(tmp_path: Path, family: str) -> None:
    model = classifier(family)
    trainer = trainer_of(tmp_path, model)
    perdure.attach(trainer, "replay")
    session: Any = trainer.session  # type: ignore[attr-defined]
    rows = session.task.train[:3]
    seen = session.forward([dict(row) for row in rows])
    for i, row in enumerate(rows):  # each alone, in plain torch
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([row["input_ids"]])).logits[0]
        torch.testing.assert_close(seen.logits[i], logits, atol=1e-5, rtol=0)
        loss = F.cross_entropy(logits[None], torch.tensor([row["labels"]]))
        assert seen.nll[i].item() == pytest.approx(loss.item(), abs=1e-5)
        with torch.no_grad():
            alone = session.forward([dict(row)]).features
        torch.testing.assert_close(seen.features[i], alone[0], atol=1e-5, rtol=0)


def test_old_classes_alone_are_held(tmp_path: Path) -> None:
    """The head has all classes from the beginning; what it says of new ones is noise."""
    model = classifier()
    first = trainer_of(tmp_path, model)
    perdure.attach(first, "lwf")
    first.train()
    assert all("method/lwf" not in row for row in first.state.log_history)
    second = trainer_of(tmp_path, model, (2, 3))
    perdure.attach(second, *first.methods, task_index=1)  # type: ignore[attr-defined]
    assert second.session.classes.old == ((0, 1),)  # type: ignore[attr-defined]
    with torch.no_grad():
        model.classifier.bias[2:] += 3.0
    session: Any = second.session  # type: ignore[attr-defined]
    main = session.forward([dict(row) for row in session.task.train[:4]])
    (method,) = second.methods  # type: ignore[attr-defined]
    assert method.loss(session.context, main, None)["lwf"].item() == pytest.approx(0, abs=1e-9)
    with torch.no_grad():
        model.classifier.bias[0] += 3.0
    main = session.forward([dict(row) for row in session.task.train[:4]])
    assert method.loss(session.context, main, None)["lwf"].item() > 0.1


def test_replay_by_class_and_herding(tmp_path: Path) -> None:
    for family in ("bert", "gpt2"):
        options = {"buffer_size": 4, "balance": "class", "choose": "herding"}
        _, _, method = learned(tmp_path, "replay", classifier(family), options=options)
        assert [entry["class"] for entry in method.kept] == [0, 1, 2, 3]
        assert [entry["row"]["labels"] for entry in method.kept] == [0, 1, 2, 3]


def test_held_out_rows_are_measured_by_accuracy(tmp_path: Path) -> None:
    trainer = trainer_of(tmp_path, classifier())
    perdure.attach(trainer, "rewind")
    session: Any = trainer.session  # type: ignore[attr-defined]
    model, rows = session.model, session.task.validation
    with torch.no_grad():
        right = sum(
            int(model(input_ids=torch.tensor([row["input_ids"]])).logits.argmax()) == row["labels"]
            for row in rows
        )
    assert accuracy(session, rows) == session.score(session.task) == right / len(rows)
    assert session.task.higher_is_better


def test_token_types_of_pairs_stay_with_a_row(tmp_path: Path) -> None:
    data = [
        {**row, "token_type_ids": [0, *[1] * (len(row["input_ids"]) - 1)]}
        for row in rows_of((0, 1))
    ]
    trainer = trainer_of(tmp_path, classifier(), train_dataset=data)
    perdure.attach(trainer, "replay")
    session: Any = trainer.session  # type: ignore[attr-defined]
    row = session.task.train[2]
    assert row["token_type_ids"] == data[2]["token_type_ids"]
    with torch.no_grad():
        own = session.model(
            **{k: torch.tensor([row[k]]) for k in ("input_ids", "token_type_ids")}
        ).logits
        found = session.forward([dict(row)]).logits
    torch.testing.assert_close(found, own)
    trainer.train()


def unlike(out: Path, labels: Any) -> Trainer:
    data = [{**row, "label": label} for row, label in zip(rows_of((0, 1)), labels, strict=True)]
    return trainer_of(out, classifier(problem_type=None), train_dataset=data)


REFUSED: dict[str, tuple[Any, Any, str]] = {
    # name: method, trainer, and what is said
    "general": ("general_replay", None, "replays general texts"),
    "gere": ({"name": "gere", "label_weight": 0}, None, "replays general texts"),
    "joint": ("joint", None, "chooses the rows or trains in phases"),
    "lora_sequence": ("lora_sequence", None, "attach: lora_sequence: .*one for all classes"),
    "seq_star": ("seq_star", None, "attach: seq_star: .*one for all classes"),
    "half": ({"name": "replay", "mix": "half"}, None, "the batch is the trainer's own"),
    "quota": (
        {"name": "replay", "balance": "class", "buffer_size": 3}, None, "fewer rows than the 4",
    ),
    "no held-out rows": (
        "rewind", lambda out: trainer_of(out, classifier(), eval_dataset=None), "there are none",
    ),
    "regression": (
        "replay", lambda out: trainer_of(out, classifier(labels=1)), "predicts 1 labels as",
    ),
    "several labels": (
        "replay",
        lambda out: trainer_of(out, classifier(problem_type="multi_label_classification")),
        "4 labels as multi_label_classification",
    ),
    "numbers": ("replay", lambda out: unlike(out, [0.5] * 8), "labels are no classes"),
    "tokens": (
        "replay",
        lambda out: trainer_of(out, classifier(cls=AutoModelForTokenClassification)),
        "a classifier of another kind",
    ),
    "summed steps": (
        "replay", lambda out: trainer_of(out, classifier(), micro=2), "passes over num_items",
    ),
    "freeze": ({"name": "freeze", "layers": 2}, None, "leaves none of the model's 2 layers"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_cannot_do_is_refused_in_attach(tmp_path: Path, name: str) -> None:
    method, make, why = REFUSED[name]
    trainer = trainer_of(tmp_path, classifier()) if make is None else make(tmp_path)
    with pytest.raises(UsageError, match=why) as told:
        perdure.attach(trainer, method)
    assert told.value.remedy
    assert "format:" not in str(told.value)  # of recipes; a trainer has none
    assert trainer.state.global_step == 0


def test_which_classes_are_old_must_be_known(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="lwf: it holds old classes, and which"):
        perdure.attach(trainer_of(tmp_path, classifier(), (2, 3)), "lwf", task_index=1)
    trainer = trainer_of(tmp_path, classifier(), (2, 3))
    perdure.attach(trainer, "lwf", task_index=1, classes=[1, 0])
    assert trainer.session.classes.old == ((0, 1),)  # type: ignore[attr-defined]
    assert trainer.session.classes.seen == ((0, 1, 2, 3),)  # type: ignore[attr-defined]


def test_ewc_holds_the_old_rows_of_a_head_that_has_grown(tmp_path: Path) -> None:
    small = classifier(labels=2)
    first = trainer_of(tmp_path, small)
    perdure.attach(first, {"name": "ewc", "rows": 4, "lam": 50})
    first.train()
    grown = classifier(labels=4)
    state = dict(small.state_dict())
    for name in ("classifier.weight", "classifier.bias"):
        whole = grown.state_dict()[name].clone()
        whole[:2] = state[name]
        state[name] = whole
    grown.load_state_dict(state)
    second = trainer_of(tmp_path, grown, (2, 3))
    perdure.attach(second, *first.methods, task_index=1)  # type: ignore[attr-defined]
    (method,) = second.methods  # type: ignore[attr-defined]
    assert method.fisher["classifier.weight"].shape == (4, 16)
    assert not method.fisher["classifier.weight"][2:].any()
    assert method.fisher["classifier.weight"][:2].any()
    second.train()
