"""The checks that every method meets, each with a sentence that says where to look."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perdure.testing.learn import Runs, apart, learned, make, needs_a_run, train
from perdure.testing.tiny import save_tiny_model

if TYPE_CHECKING:
    from torch import Tensor

    from perdure.protocol.method import Method

SPLIT_TOLERANCE = 2e-6
"""Weights after four steps may differ by this where only the split of the batch differs (fp32)."""
LEAST_CHANGE = 1e-4
"""A method that acts moves some weight by more than this in four steps."""


def check_method(kind: type[Method], folder: Path | None = None, /, **options: Any) -> None:
    """Put a method through the checks that Perdure's own methods meet.

    - every option says what it does;
    - with its `noop_options` training is plain fine-tuning, to the bit (where it has any);
    - with its `example_options` it changes something, and how a batch is split does not matter;
    - its `saved` attributes are all that it needs to go on with the next task.

    A method is put on a `transformers.Trainer` by `perdure.attach`. One that chooses the rows that
    are trained on (`train_data`) or trains in several `phases` learns in runs of `perdure.learn`.

    Args:
        folder: of a tiny model to use (`save_tiny_model`); None makes one.
        options: set beside its `example_options`, which they replace by name.

    Raises:
        AssertionError: a check failed; it says which, and where to look.
        UsageError: the method's `example_options` or `noop_options` are no options of its.
    """
    for name, field in kind.Config.model_fields.items():
        assert field.description, f"option {name} has no description: give its Field one"
    if options:
        example = {**kind.example_options, **options}
        kind = type(kind.__name__, (kind,), {"example_options": example})
    make(kind, kind.example_options)
    with tempfile.TemporaryDirectory() as made:
        tiny = folder or save_tiny_model(Path(made))
        if needs_a_run(kind, tiny):
            check_in_runs(tiny, kind)
            return
        plain = learned(tiny, None, {})
        check_switched_off(tiny, kind, plain)
        check_split(tiny, kind, plain)
        check_saved_state(tiny, kind)


def check_switched_off(folder: Path, kind: type[Method], plain: Mapping[str, Tensor]) -> None:
    """With its `noop_options` a method changes nothing."""
    if kind.noop_options is not None:
        _assert_off(kind, apart(learned(folder, kind, kind.noop_options), plain))


def check_split(folder: Path, kind: type[Method], plain: Mapping[str, Tensor]) -> None:
    """With its `example_options` a method acts, and not by how a batch is split."""
    whole = learned(folder, kind, kind.example_options)
    _assert_on(kind, apart(whole, plain))
    for micro in (4, 1):
        moved = apart(learned(folder, kind, kind.example_options, micro), whole)
        _assert_whole_step(micro, moved)


def _assert_off(kind: type[Method], moved: float) -> None:
    assert moved == 0, (
        f"with noop_options {dict(kind.noop_options or {})} weights differ by {moved:.2g} from "
        "plain fine-tuning: does a hook draw from the global random state, or add a term of "
        "weight 0 that is not 0?"
    )


def _assert_on(kind: type[Method], moved: float) -> None:
    if kind.noop_options == kind.example_options:  # a method that is plain fine-tuning
        return
    assert moved > LEAST_CHANGE, (
        f"with example_options {dict(kind.example_options)} weights are those of plain "
        f"fine-tuning (they differ by {moved:.2g}): is the hook that should act overridden, its "
        "option read, and the example strong enough?"
    )


def _assert_whole_step(micro: int, moved: float) -> None:
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
    _assert_restored(
        apart(dict(model.named_parameters()), dict(twin.named_parameters())), method, restored
    )


def _assert_restored(moved: float, method: Method, restored: Method) -> None:
    assert moved == 0, (
        f"restored from what it saved, weights after the next task differ by {moved:.2g}: name "
        "every attribute that must survive in `saved`"
    )
    assert repr(method.state_dict()) == repr(restored.state_dict()), (
        "the states after the next task differ: name every attribute that must survive in `saved`"
    )


def check_in_runs(folder: Path, kind: type[Method]) -> None:
    """The same checks in whole runs, for a method that chooses rows or trains in phases."""
    with tempfile.TemporaryDirectory() as made:
        runs = Runs(folder, Path(made))
        plain = runs.learned(None)
        if kind.noop_options is not None:
            _assert_off(kind, apart(runs.learned(make(kind, kind.noop_options)), plain))
        method = make(kind, kind.example_options)
        whole = runs.learned(method)
        _assert_on(kind, apart(whole, plain))
        for micro in (4, 1):
            split = runs.learned(make(kind, kind.example_options), micro)
            _assert_whole_step(micro, apart(split, whole))
        killed, twin = (make(kind, kind.example_options) for _ in range(2))
        _assert_restored(apart(runs.learned(killed, twin=twin), whole), method, twin)
