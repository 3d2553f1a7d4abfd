"""Adapters that methods ask for: what others see of them, where they begin, what stays frozen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import write_recipe

import perdure
from perdure.errors import UsageError
from perdure.models.adapters import attach_lora
from perdure.prepare import prepare
from perdure.protocol.method import Method, MethodConfig, Requires
from perdure.protocol.step import Phase
from perdure.recipe.schema import LoraConfig
from perdure.run import Run

pytestmark = pytest.mark.train


class Grows(Method):
    """A new adapter for each task after the first: fresh, or a copy of the one before."""

    adapters = True
    like = False
    together = False

    def __init__(self) -> None:
        super().__init__(MethodConfig())
        self.begun: list[tuple[str, ...]] = []

    def begin_task(self, ctx: Any) -> None:
        name = f"task{ctx.task_index + 1}" if ctx.task_index else "default"
        before = ctx.adapters.names
        if ctx.task_index:
            ctx.adapters.add(name, like=before[-1] if self.like else None)
        ctx.adapters.use([*before, name] if self.together and ctx.task_index else [name], [name])


def learn(recipe: Path, out: Path, *methods: Method, resume: bool = False) -> Run:
    run = Run.open(out) if resume else Run.create(out, perdure.load_recipe(recipe))
    ready = replace(prepare(run.recipe), methods=methods)
    perdure.learn(run.recipe, run, prepared=ready)
    return run


def recipe_of(folder: Path, model: Path, **changes: Any) -> Path:
    train = {"learning_rate": 2e-2, "max_steps": 3, "batch_size": 4, "precision": "fp32"}
    return write_recipe(
        folder, model, model__tuning="lora", train=train, gauges={"every": 0}, **changes
    )


def test_the_previous_model_has_the_adapters_that_it_had(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Not the one that is trained now: that would be the model itself, at a distance of 0."""

    class Compares(Method):
        requires = Requires(teacher="previous", logits=True)
        gaps: list[tuple[int, float]] = []  # noqa: RUF012

        def loss(self, ctx: Any, main: Any, extra: Any) -> Mapping[str, Any]:
            before = ctx.adapters.active
            old = ctx.frozen("previous")(main.batch)
            assert ctx.adapters.active == before
            assert ctx.adapters.trained == before[-1:]
            gap = float((old.logits - main.logits.detach()).abs().max())
            self.gaps.append((ctx.task_index, gap))
            return {}

    grows = Grows()
    compares = Compares(MethodConfig())
    learn(recipe_of(tmp_path, tiny_model_dir), tmp_path / "run", compares, grows)
    first, *_, second, _, _ = [gap for _, gap in compares.gaps]
    assert [index for index, _ in compares.gaps] == [0] * 3 + [1] * 3
    assert first < 1e-5
    # The second adapter begins as the base, and the previous model has learned the first task.
    assert second > 1e-2


def test_a_phase_from_the_base_begins_with_an_adapters_first_values(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Also where the adapter is a copy, and where the run went on after it was added."""

    class Again(Method):
        starts: dict[int, dict[str, Any]]
        seen: dict[int, dict[str, Any]]

        def begin_task(self, ctx: Any) -> None:
            self.starts[ctx.task_index] = ctx.snapshot()

        def phases(self, ctx: Any) -> Sequence[Phase]:
            return (Phase("one"), Phase("two", start="base", freeze="lora_A"))

        def after_step(self, ctx: Any) -> None:
            if ctx.step.phase.name == "two" and ctx.step.index == 1:
                self.seen[ctx.task_index] = {
                    n: p.detach().clone() for n, p in ctx.model.named_parameters() if "lora_A" in n
                }

    grows, again = Grows(), Again(MethodConfig())
    grows.like = True
    again.starts, again.seen = {}, {}
    run = learn(recipe_of(tmp_path, tiny_model_dir), tmp_path / "run", again, grows)
    for index, name in enumerate(("default", "task2")):
        mine = {n: w for n, w in again.starts[index].items() if f".{name}." in n and "lora_A" in n}
        assert mine
        assert all(torch.equal(again.seen[index][n], w) for n, w in mine.items())
    first = load_file(run.path / "checkpoints/task-2/first/task2.safetensors")
    assert first.keys() == again.starts[1].keys()
    assert all(torch.equal(first[n], w) for n, w in again.starts[1].items())
    assert any(bool(w.any()) for n, w in first.items() if "lora_B" in n)  # of the copied one


def test_first_values_are_there_again_when_a_run_goes_on(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    from perdure.learners import build
    from perdure.learners.listener import Folders

    grows = Grows()
    grows.like = True
    run = learn(recipe_of(tmp_path, tiny_model_dir), tmp_path / "run", grows)
    ready = prepare(run.recipe)
    learner = build(
        run.recipe, ready.stream, methods=(Grows(),), precision="fp32", encoder=ready.encoder,
        folders=Folders.below(run.path), batch_split=(4, 1),
    )  # fmt: skip
    folder = run.path / "checkpoints/task-2"
    learner.restore(folder, 2)
    first = load_file(folder / "first/task2.safetensors")
    base = learner.base_weights()
    assert base.keys() == first.keys()
    assert all(torch.equal(base[n], w) for n, w in first.items())


def test_what_a_phase_freezes_stays_frozen_when_it_goes_on(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    """The trainer's own way to load several adapters makes all of one trainable again."""

    class Freezes(Method):
        stop = 0

        def phases(self, ctx: Any) -> Sequence[Phase]:
            return (Phase("half", freeze="lora_A"),)

        def after_step(self, ctx: Any) -> None:
            assert not any(
                p.requires_grad for n, p in ctx.model.named_parameters() if "lora_A" in n
            )
            if (1, self.stop) == (ctx.task_index, ctx.step.index):
                raise KeyboardInterrupt

    recipe = recipe_of(tmp_path, tiny_model_dir, save={"steps": 1})
    found = []
    for name, stop in (("whole", 0), ("stopped", 2)):
        method = Freezes(MethodConfig())
        method.stop = stop
        if stop:
            with pytest.raises(KeyboardInterrupt):
                learn(recipe, tmp_path / name, method, Grows())
            method.stop = 0
        run = learn(recipe, tmp_path / name, method, Grows(), resume=bool(stop))
        saved = run.path / "checkpoints/task-2/model/task2/adapter_model.safetensors"
        found.append(load_file(saved))
    assert all(torch.equal(w, found[1][n]) for n, w in found[0].items())


def test_what_is_asked_for_too_late_or_of_no_adapter_is_refused(tiny: Any, tmp_path: Path) -> None:
    from types import SimpleNamespace

    from perdure.engine.session import TaskSession
    from perdure.models.chat import Encoder
    from perdure.testing import FIRST

    def session(model: Any) -> TaskSession:
        return TaskSession(model, Encoder(tiny[1]), FIRST, cache=tmp_path)

    with pytest.raises(UsageError, match="the model has none") as told:
        session(tiny[0]).context.adapters.add("one")
    assert told.value.remedy == ("write model.tuning: lora",)
    made = session(attach_lora(tiny[0], LoraConfig(r=2)))
    made.context.adapters.add("one")
    with pytest.raises(UsageError, match="no adapter is to be trained"):
        made.context.adapters.use(["one"], [])
    made.join(SimpleNamespace(process_index=0, num_processes=1))  # type: ignore[arg-type]
    for call in (
        lambda: made.context.adapters.add("two"),
        lambda: made.context.adapters.use(["one"], ["one"]),
    ):
        with pytest.raises(UsageError, match="while a phase is trained"):
            call()
    assert made.context.adapters.names == ("default", "one")


def test_a_fresh_adapter_depends_on_seed_and_name_alone(tiny: Any, tmp_path: Path) -> None:
    from perdure.engine.session import TaskSession
    from perdure.models.chat import Encoder
    from perdure.testing import FIRST

    model = attach_lora(tiny[0], LoraConfig(r=2))

    def a_of(name: str, seed: int) -> torch.Tensor:
        ctx = TaskSession(model, Encoder(tiny[1]), FIRST, cache=tmp_path, seed=seed).context
        ctx.adapters.add(name)
        found = next(iter(ctx.adapters.matrices(name).values()))[0].detach().clone()
        model.delete_adapter(name)
        return found

    state = torch.get_rng_state()
    one = a_of("one", 0)
    assert torch.equal(state, torch.get_rng_state())
    torch.rand(5)
    assert torch.equal(one, a_of("one", 0))
    assert not torch.equal(one, a_of("two", 0))
    assert not torch.equal(one, a_of("one", 1))
