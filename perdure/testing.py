"""Put a method of your own through the checks that every method of Perdure meets.

    from perdure.testing import check_method

    def test_my_method():
        check_method(MyMethod)

The model is a tiny random one made on the spot, so this says that the mechanics are right (it acts,
it can be switched off, the split of a batch and a resume change nothing), not that it helps.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from perdure.streams.kinds import EXACT_MATCH
from perdure.streams.task import Task

if TYPE_CHECKING:
    from torch import Tensor

    from perdure.protocol.method import Method

    Learn: TypeAlias = Callable[..., dict[str, Tensor]]

CHAT_TEMPLATE = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
GENERAL = [
    "The import statement finds a module and binds names in the local scope.",
    "A lambda expression yields a function object, as a def statement does.",
    "Comparisons can be chained arbitrarily, and each is evaluated at most once.",
    "The del statement removes a binding from a namespace.",
    "Strings are immutable sequences of code points.",
    "An empty class body needs pass.",
]
BATCH, STEPS = 8, 2
SPLIT_TOLERANCE = 2e-6
"""Weights after four steps may differ by this where only the split of the batch differs (fp32)."""


def task_of(name: str, words: Sequence[str]) -> Task:
    """A task of one row a word, `words` its answers."""
    rows = [
        {"prompt": [{"role": "user", "content": f"{name} {i} {w}"}], "answer": w}
        for i, w in enumerate(words)
    ]
    return Task(name, rows, rows[:4], rows[4:8], EXACT_MATCH.name)


FIRST = task_of("colour", ["red", "blue", "deep green", "red"] * 4)
SECOND = task_of("count", ["one", "two", "twenty two", "one"] * 4)


def make_tokenizer(vocab_size: int = 512) -> Any:
    """A byte-level BPE tokenizer with a ChatML template, trained on the standard library's text."""
    from pydoc_data.topics import topics

    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([topics[name] for name in sorted(topics)[:20]], trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=special,
        model_max_length=512,
        padding_side="left",
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def save_tiny_model(folder: Path) -> Path:
    """Write a 3-layer Llama (hidden 64, vocabulary 512, fp32) of seeded random weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = make_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config).float()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def train(
    model: Any, tokenizer: Any, out: Path, methods: Sequence[Method], index: int, micro: int = BATCH
) -> Any:
    """Train the first task (`index` 0) or the second for a few steps of SGD; returns the trainer.

    Args: micro: rows of a micro-batch; the optimizer's batch is `BATCH` rows all the same.
    """
    import os

    from transformers import Trainer, TrainingArguments

    import perdure
    from perdure.models.chat import Encoder
    from perdure.protocol.batch import collate

    encoder, task = Encoder(tokenizer), (FIRST, SECOND)[index]
    world = int(os.environ.get("WORLD_SIZE", "1"))
    args = TrainingArguments(
        str(out / f"task-{index}"), max_steps=STEPS, per_device_train_batch_size=micro // world,
        gradient_accumulation_steps=BATCH // micro, learning_rate=0.1, optim="sgd",
        lr_scheduler_type="constant", max_grad_norm=1.0, use_cpu=True, save_strategy="no",
        logging_steps=1, disable_tqdm=True, train_sampling_strategy="sequential",
        remove_unused_columns=False, report_to="none", dataloader_pin_memory=False,
        ddp_find_unused_parameters=False,
    )  # fmt: skip
    trainer = Trainer(
        model=model, args=args, processing_class=tokenizer,
        train_dataset=[encoder.encode(row) for row in task.train],
        eval_dataset=[encoder.encode(row) for row in task.validation],
        data_collator=lambda rows: collate(rows, encoder.pad_id),
    )  # fmt: skip
    if methods:
        perdure.attach(
            trainer, *methods, general=GENERAL, task=task.name, task_index=index,
            cache=out / "cache",
        )  # fmt: skip
    trainer.train()
    for name in ("_is_accelerate_prepared", "forward", "_original_forward"):
        model.__dict__.pop(name, None)  # what a trainer leaves, and the next would build on
    return trainer


def make(kind: type[Method], options: Mapping[str, Any]) -> Method:
    """A method of this class with these options, validated."""
    from perdure.methods.registry import load_config

    return kind(load_config(kind, options))


def chooses_rows(kind: type[Method]) -> bool:
    """Whether a method chooses the rows that are trained on, which takes Perdure's own learner."""
    from perdure.protocol.method import Method as Base

    return kind.train_data is not Base.train_data


def needs_runs(kind: type[Method], folder: Path) -> bool:
    """Whether `perdure.attach` would refuse a method: it chooses rows, or trains in phases."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from perdure.engine.session import TaskSession
    from perdure.models.chat import Encoder
    from perdure.protocol.method import Method as Base

    if chooses_rows(kind) or kind.phases is Base.phases:
        return chooses_rows(kind)
    method = make(kind, kind.example_options)
    encoder = Encoder(AutoTokenizer.from_pretrained(folder))
    model = AutoModelForCausalLM.from_pretrained(folder)
    session = TaskSession(model, encoder, FIRST, methods=[method], cache=folder / "cache")
    phases = method.phases(session.context)
    return len(phases) != 1 or phases[0].epochs is not None or phases[0].start != "current"


def learned(
    folder: Path, kind: type[Method] | None, options: Mapping[str, Any], micro: int = BATCH
) -> dict[str, Tensor]:
    """The weights after both tasks, learned with a method of this class; None: with none."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    methods = [] if kind is None else [make(kind, options)]
    with tempfile.TemporaryDirectory() as out:
        for index in (0, 1):
            train(model, tokenizer, Path(out), methods, index, micro)
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def learned_in_a_run(
    folder: Path, kind: type[Method] | None, options: Mapping[str, Any], micro: int = BATCH
) -> dict[str, Tensor]:
    """As `learned`, by Perdure's own learner, for what `perdure.attach` refuses."""
    with tempfile.TemporaryDirectory() as out:
        plain_descent = {"optimizer": "sgd", "learning_rate": 0.1, "micro_batch_size": micro}
        return _run(folder, kind, options, Path(out) / "run", train=plain_descent)


def apart(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    """The largest difference between two sets of weights of equal names."""
    assert a.keys() == b.keys()
    return max(float((a[n].detach() - b[n].detach()).abs().max()) for n in a)


def check_method(kind: type[Method], folder: Path | None = None, /, **options: Any) -> None:
    """Put a method through the checks that Perdure's own methods meet.

    - every option says what it does;
    - with its `noop_options` training is plain fine-tuning, to the bit (unless they are None);
    - with its `example_options` it changes something, and how a batch is split does not matter;
    - its `saved` attributes are all that it needs to go on with the next task;
    - `perdure.learn` learns two tasks with it, with all weights and with an adapter, and a run
      that is interrupted between the tasks and goes on ends with the same weights.

    It learns on a `transformers.Trainer`. A method that chooses the rows that are trained on
    (`train_data`) or trains in several `phases` learns in runs of `perdure.learn` throughout.

    Args:
        folder: of a tiny model to use (`save_tiny_model`); None makes one.
        options: set beside its `example_options`, which they replace by name.

    Raises:
        AssertionError: a check failed; it says which, and where to look.
        UsageError: `example_options`, `noop_options` or `options` are not the method's.
    """
    for name, field in kind.Config.model_fields.items():
        assert field.description, f"option {name} has no description: give its Field one"
    if options:
        example = {**kind.example_options, **options}
        kind = type(kind.__name__, (kind,), {"example_options": example})
    make(kind, kind.example_options)
    with tempfile.TemporaryDirectory() as made:
        tiny = folder or save_tiny_model(Path(made))
        learn = learned_in_a_run if needs_runs(kind, tiny) else learned
        plain = learn(tiny, None, {})
        check_switched_off(tiny, kind, plain, learn)
        check_split(tiny, kind, plain, learn)
        if learn is learned:
            check_saved_state(tiny, kind)
        check_whole_runs(tiny, kind)


def check_switched_off(
    folder: Path, kind: type[Method], plain: Mapping[str, Tensor], learn: Learn = learned
) -> None:
    """With its `noop_options` a method changes nothing."""
    if kind.noop_options is None:
        return
    moved = apart(learn(folder, kind, kind.noop_options), plain)
    assert moved == 0, (
        f"with noop_options {dict(kind.noop_options)} weights differ by {moved:.2g} from plain "
        "fine-tuning: does a hook draw from the global random state, or add a term of weight 0 "
        "that is not 0?"
    )


def check_split(
    folder: Path, kind: type[Method], plain: Mapping[str, Tensor], learn: Learn = learned
) -> None:
    """With its `example_options` a method acts, and not by how a batch is split."""
    whole = learn(folder, kind, kind.example_options)
    acts = kind.noop_options is None or bool(kind.noop_options) or bool(kind.example_options)
    assert not acts or apart(whole, plain) > 1e-4, (
        f"with example_options {dict(kind.example_options)} weights are those of plain "
        "fine-tuning: is the hook that should act overridden, its option read, and the example "
        "strong enough to be seen in two steps a task?"
    )
    for micro in (4, 1):
        moved = apart(learn(folder, kind, kind.example_options, micro), whole)
        assert moved <= SPLIT_TOLERANCE, (
            f"with micro-batches of {micro} rows weights differ by {moved:.2g} from those of the "
            "same batch in one: average with token_mean, row_mean or position_mean, which count "
            "the whole optimizer step, and draw extra rows by ctx.draw"
        )


def check_saved_state(folder: Path, kind: type[Method]) -> None:
    """A method restored from what it saved after a task learns the next one alike."""
    import copy

    from transformers import AutoModelForCausalLM, AutoTokenizer

    from perdure.engine.method_state import load_methods, save_methods

    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with tempfile.TemporaryDirectory() as made:
        out, method = Path(made), make(kind, kind.example_options)
        train(model, tokenizer, out, [method], 0)
        save_methods(out / "state", [method])
        twin, restored = copy.deepcopy(model), make(kind, kind.example_options)
        load_methods(out / "state", [restored], twin)
        train(model, tokenizer, out, [method], 1)
        train(twin, tokenizer, out, [restored], 1)
    moved = apart(dict(model.named_parameters()), dict(twin.named_parameters()))
    assert moved == 0, (
        f"restored from what it saved, weights after the next task differ by {moved:.2g}: name "
        "every attribute that must survive in `saved`"
    )
    assert repr(method.state_dict()) == repr(restored.state_dict()), (
        "the states after the next task differ: name every attribute that must survive in `saved`"
    )


def check_whole_runs(folder: Path, kind: type[Method]) -> None:
    """`perdure.learn` learns two tasks with a method, full and LoRA, interrupted or not."""
    with tempfile.TemporaryDirectory() as made:
        options, out = kind.example_options, Path(made)
        whole = _run(folder, kind, options, out / "whole")
        again = _run(folder, kind, options, out / "again", interrupted=True)
        _run(folder, kind, options, out / "lora", tuning="lora")
    moved = apart(whole, again)
    assert moved == 0, (
        f"a run that was interrupted after the first task and went on ends with weights that "
        f"differ by {moved:.2g}: name every attribute that must survive in `saved`"
    )


def _run(
    folder: Path,
    kind: type[Method] | None,
    options: Mapping[str, Any],
    out: Path,
    *,
    tuning: str = "full",
    interrupted: bool = False,
    train: Mapping[str, Any] = {},
) -> dict[str, Tensor]:
    """Learn both tasks by Perdure's own learner; returns the weights that it saved."""
    from contextlib import suppress
    from dataclasses import replace

    from safetensors.torch import load_file

    from perdure import Recipe, Run, TaskStream, learn
    from perdure.prepare import prepare
    from perdure.protocol.method import Method as Base
    from perdure.protocol.method import MethodConfig
    from perdure.streams.task import GeneralText

    class Interrupts(Base):
        on = True

        def begin_task(self, ctx: Any) -> None:
            if self.on and ctx.task_index:
                raise KeyboardInterrupt

    stream = TaskStream((FIRST, SECOND), GeneralText(replay=GENERAL))
    recipe = Recipe.model_validate(
        {
            "model": {"path": str(folder), "tuning": tuning},
            "stream": {"tasks": [{"name": t.name, "train": "in-memory.jsonl"} for t in stream]},
            "method": "sequential",
            "train": {"max_steps": STEPS, "batch_size": BATCH, "precision": "fp32", **train},
            "scoring": {"max_test_rows": 2},
            "gauges": {"every": 0},
        }
    )
    ready = prepare(recipe, stream=stream)
    run, stop = Run.create(out, recipe), Interrupts(MethodConfig())
    for stop.on in (True, False) if interrupted else (False,):
        methods = (stop,) if kind is None else (make(kind, options), stop)
        with suppress(KeyboardInterrupt):
            learn(recipe, run, prepared=replace(ready, methods=methods))
    name = "adapter_model" if tuning == "lora" else "model"
    return load_file(out / "checkpoints/task-2/model" / f"{name}.safetensors")
