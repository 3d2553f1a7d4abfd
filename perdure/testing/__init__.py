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
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from perdure.testing.needs import chooses_rows, make, needs_runs, own_learner
from perdure.testing.tiny import (
    CHAT_TEMPLATE,
    FIRST,
    GENERAL,
    SECOND,
    make_tokenizer,
    save_tiny_model,
    task_of,
)

__all__ = [
    "CHAT_TEMPLATE", "FIRST", "GENERAL", "SECOND", "apart", "check_method", "check_saved_state",
    "check_split", "check_switched_off", "check_whole_runs", "chooses_rows", "learned",
    "learned_in_a_run", "make", "make_tokenizer", "needs_runs", "own_learner", "save_tiny_model",
    "task_of", "train",
]  # fmt: skip

if TYPE_CHECKING:
    from torch import Tensor

    from perdure.protocol.method import Method

    Learn: TypeAlias = Callable[..., dict[str, Tensor]]

BATCH, STEPS = 8, 2
SPLIT_TOLERANCE = 2e-6
"""Weights after four steps may differ by this where only the split of the batch differs (fp32)."""
SEEN = 1e-4
"""Weights that differ by more show that a method acts."""
CLIP = 1.0
"""The norm that gradients are clipped to. It hides what only scales the loss: see `unclipped`."""
RATE = 0.1


def train(
    model: Any,
    tokenizer: Any,
    out: Path,
    methods: Sequence[Method],
    index: int,
    micro: int = BATCH,
    clip: float = CLIP,
) -> Any:
    """Train the first task (`index` 0) or the second for a few steps of SGD; returns the trainer.

    Args:
        micro: rows of a micro-batch; the optimizer's batch is `BATCH` rows all the same.
        clip: the norm that gradients are clipped to; 0: they are not.
    """
    import os

    from transformers import PrinterCallback, Trainer, TrainingArguments

    import perdure
    from perdure.models.chat import Encoder
    from perdure.protocol.batch import collate

    encoder, task = Encoder(tokenizer), (FIRST, SECOND)[index]
    world = int(os.environ.get("WORLD_SIZE", "1"))
    args = TrainingArguments(
        str(out / f"task-{index}"), max_steps=STEPS, per_device_train_batch_size=micro // world,
        gradient_accumulation_steps=BATCH // micro, learning_rate=_rate(clip), optim="sgd",
        lr_scheduler_type="constant", max_grad_norm=clip, use_cpu=True, save_strategy="no",
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
    trainer.remove_callback(PrinterCallback)
    if methods:
        perdure.attach(
            trainer, *methods, general=GENERAL, task=task.name, task_index=index,
            cache=out / "cache",
        )  # fmt: skip
    trainer.train()
    for name in ("_is_accelerate_prepared", "forward", "_original_forward"):
        model.__dict__.pop(name, None)  # what a trainer leaves, and the next would build on
    return trainer


def _rate(clip: float) -> float:
    """A rate at which a step is about as long without clipping."""
    return RATE if clip else RATE / 5


def learned(
    folder: Path,
    kind: type[Method] | None,
    options: Mapping[str, Any],
    micro: int = BATCH,
    clip: float = CLIP,
) -> dict[str, Tensor]:
    """The weights after both tasks, learned with a method of this class; None: with none."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    methods = [] if kind is None else [make(kind, options)]
    with tempfile.TemporaryDirectory() as out:
        for index in (0, 1):
            train(model, tokenizer, Path(out), methods, index, micro, clip)
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def learned_in_a_run(
    folder: Path,
    kind: type[Method] | None,
    options: Mapping[str, Any],
    micro: int = BATCH,
    clip: float = CLIP,
    tuning: str | None = None,
) -> dict[str, Tensor]:
    """As `learned`, by Perdure's own learner, for what `perdure.attach` refuses.

    Args: tuning: None: with LoRA where the method adds adapters.
    """
    with tempfile.TemporaryDirectory() as out:
        plain_descent = {
            "optimizer": "sgd", "learning_rate": _rate(clip), "micro_batch_size": micro,
            "max_grad_norm": clip,
        }  # fmt: skip
        tuning = tuning or _tuning(kind)
        return _run(folder, kind, options, Path(out) / "run", tuning=tuning, train=plain_descent)


def _tuning(kind: type[Method] | None) -> str:
    return "lora" if kind is not None and kind.adapters else "full"


def _moved(whole: Mapping[str, Tensor], plain: Mapping[str, Tensor]) -> float:
    """How far a method moved weights from plain fine-tuning; those that only it has are moved."""
    return apart(whole, plain) if whole.keys() == plain.keys() else float("inf")


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
    - no hook writes to weights or gradients itself: it returns them;
    - `perdure.learn` learns two tasks with it, with all weights and with an adapter, and a run
      that is interrupted between the tasks and within the second ends with the same weights.

    Nothing is printed but what the method itself prints.

    It learns on a `transformers.Trainer`. A method that chooses the rows that are trained on
    (`train_data`), adds adapters, routes (`router`) or trains in several `phases` learns in runs of
    `perdure.learn` throughout; one that adds adapters in runs with `tuning: lora` alone.

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
        kind = type(
            kind.__name__, (kind,), {"example_options": example, "__module__": kind.__module__}
        )
    make(kind, kind.example_options)
    from perdure.reports.silence import silent

    with tempfile.TemporaryDirectory() as made, silent():
        tiny = folder or save_tiny_model(Path(made))
        in_runs = needs_runs(kind, tiny)
        in_a_run = partial(learned_in_a_run, tuning=_tuning(kind))
        learn: Learn = in_a_run if in_runs else learned
        plain, clip = learn(tiny, None, {}), CLIP
        if _moved(check_hooks(tiny, kind, learn), plain) <= SEEN:
            # What only scales the loss is hidden by clipping, and so is what it does wrong.
            clip, learn = 0.0, partial(learn, clip=0.0)
            plain = learn(tiny, None, {})
        check_switched_off(tiny, kind, plain, learn)
        check_split(tiny, kind, plain, learn)
        if not in_runs:
            check_saved_state(tiny, kind, clip)
        check_whole_runs(tiny, kind, clip)


def check_hooks(folder: Path, kind: type[Method], learn: Learn = learned) -> dict[str, Tensor]:
    """No hook writes to weights itself; returns the weights learned with `example_options`."""
    from perdure.testing.watch import watched

    seen, wrote = watched(kind)
    found = learn(folder, seen, kind.example_options)
    assert not wrote, (
        f"{wrote[0]}, which a resume, a shard or another method would not know of: return what is "
        "to change (gradients from gradients, weights from end_task or serving)"
    )
    return found


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
    assert not acts or _moved(whole, plain) > SEEN, (
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


def check_saved_state(folder: Path, kind: type[Method], clip: float = CLIP) -> None:
    """A method restored from what it saved after a task learns the next one alike."""
    import copy

    from transformers import AutoModelForCausalLM, AutoTokenizer

    from perdure.engine.method_state import load_methods, save_methods

    model = AutoModelForCausalLM.from_pretrained(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    with tempfile.TemporaryDirectory() as made:
        out, method = Path(made), make(kind, kind.example_options)
        train(model, tokenizer, out, [method], 0, clip=clip)
        save_methods(out / "state", [method])
        twin, restored = copy.deepcopy(model), make(kind, kind.example_options)
        load_methods(out / "state", [restored], twin)
        train(model, tokenizer, out, [method], 1, clip=clip)
        train(twin, tokenizer, out, [restored], 1, clip=clip)
    moved = apart(dict(model.named_parameters()), dict(twin.named_parameters()))
    assert moved == 0, (
        f"restored from what it saved, weights after the next task differ by {moved:.2g}: name "
        "every attribute that must survive in `saved`"
    )
    assert repr(method.state_dict()) == repr(restored.state_dict()), (
        "the states after the next task differ: name every attribute that must survive in `saved`"
    )


def check_whole_runs(folder: Path, kind: type[Method], clip: float = CLIP) -> None:
    """`perdure.learn` learns two tasks with a method, full and LoRA, interrupted or not."""
    with tempfile.TemporaryDirectory() as made:
        options, out, clipped = kind.example_options, Path(made), {"max_grad_norm": clip}
        first = _tuning(kind)
        whole = _run(folder, kind, options, out / "whole", tuning=first, train=clipped)
        if first == "full":
            _run(folder, kind, options, out / "lora", tuning="lora", train=clipped)
        for when, where in (("after the first task", (1, 0)), ("within a task", (1, STEPS))):
            again = _run(
                folder, kind, options, out / when, tuning=first, interrupted=where, train=clipped
            )
            moved = apart(whole, again)
            assert moved == 0, (
                f"a run that was interrupted {when} and went on ends with weights that "
                f"differ by {moved:.2g}: name every attribute that must survive in `saved`"
            )


def _run(
    folder: Path,
    kind: type[Method] | None,
    options: Mapping[str, Any],
    out: Path,
    *,
    tuning: str = "full",
    interrupted: tuple[int, int] | None = None,
    train: Mapping[str, Any] = {},
) -> dict[str, Tensor]:
    """Learn both tasks by Perdure's own learner; returns the weights that it saved.

    Args: interrupted: in which task, and at its end of which step; 0: as it begins.
    """
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
        first: int | None = None

        def begin_task(self, ctx: Any) -> None:
            if self.on and interrupted == (ctx.task_index, 0):
                raise KeyboardInterrupt

        def after_step(self, ctx: Any) -> None:
            if self.on and interrupted == (ctx.task_index, ctx.step.index):
                _wait_for_a_checkpoint(out, ctx.step.index - 1)
                raise KeyboardInterrupt
            if ctx.task_index:
                self.first = self.first or ctx.step.index

    stream = TaskStream((FIRST, SECOND), GeneralText(replay=GENERAL))
    recipe = Recipe.model_validate(
        {
            "model": {"path": str(folder), "tuning": tuning},
            "stream": {"tasks": [{"name": t.name, "train": "in-memory.jsonl"} for t in stream]},
            "method": "sequential",
            "train": {"max_steps": STEPS, "batch_size": BATCH, "precision": "fp32", **train},
            "scoring": {"max_test_rows": 2},
            "gauges": {"every": 0},
            "save": {"steps": 1},
        }
    )
    ready = prepare(recipe, stream=stream)
    run, stop = Run.create(out, recipe), Interrupts(MethodConfig())
    for stop.on in (True, False) if interrupted else (False,):
        stop.first = None
        methods = (stop,) if kind is None else (make(kind, options), stop)
        with suppress(KeyboardInterrupt):
            learn(recipe, run, prepared=replace(ready, methods=methods))
    # Else a checkpoint within the task was not gone on from, and nothing is shown by the end.
    assert stop.first == max(1, interrupted[1] if interrupted else 1), "it began the task anew"
    saved = out / "checkpoints/task-2/model"
    if tuning == "full":
        return load_file(saved / "model.safetensors")
    files = sorted(saved.rglob("adapter_model.safetensors"))
    return {f"{f.parent.name}.{n}": w for f in files for n, w in load_file(f).items()}


def _wait_for_a_checkpoint(run: Path, step: int) -> None:
    """Wait until the checkpoint of a step is whole; it is sealed while training goes on."""
    import time

    from perdure.seals import is_sealed

    for _ in range(600):
        if any(is_sealed(path) for path in run.glob(f"**/checkpoint-{step}")):
            return
        time.sleep(0.1)
    raise AssertionError(f"{run}: no whole checkpoint of step {step}")
