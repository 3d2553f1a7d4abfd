"""The command line: one function a command, with its options; the work is in `perdure.commands`.

Exit codes: 0 done, 2 wrong usage, recipe, data or model, 4 a run directory in the way, missing or
damaged, 5 training could not go on, 130 interrupted (`perdure.errors`), 143 and 138 stopped by
SIGTERM and SIGUSR1 (`perdure.stopping`); `audit` adds 1 for lost and 3 for undecided, `repair` 1
for nothing found.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from perdure.commands import audit_options, repair_options
from perdure.commands.begin import say_what
from perdure.commands.errors import handle_errors
from perdure.commands.export import export
from perdure.commands.extend import extend
from perdure.commands.options import (
    Accept,
    Adapter,
    DemoBase,
    DemoMethods,
    DemoMinutes,
    DemoName,
    Json,
    NewRun,
    RunPath,
    Trust,
)
from perdure.commands.predict import predict
from perdure.commands.progress import lenient_stderr
from perdure.commands.route import route

app = typer.Typer(
    name="perdure",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # rich takes a tenth of a second to import
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Example: perdure demo --quick",
)
recipes_app = typer.Typer(rich_markup_mode=None)

Every = Annotated[bool, typer.Option("--all-mistakes", help="List all mistakes, not ten a file.")]


def main() -> None:
    """Entry point of the `perdure` command."""
    # Threads that wait by spinning make a step ten times slower as soon as anything else wants a
    # core (SmolLM2 on two cores: 20 s where it takes 2.5). OpenMP reads this once, with torch.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    lenient_stderr()
    app()


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"perdure {version('perdure')}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Fine-tune a language model on one task after another, and see what it forgot."""


@app.command(
    epilog="Example: perdure demo --quick --methods sequential,replay",
    short_help="See methods at work on a small model",
)
@handle_errors
def demo(
    what: DemoName = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="The smallest size, in at most 4 minutes.")
    ] = False,
    minutes: DemoMinutes = None,
    methods: DemoMethods = None,
    base: DemoBase = None,
    seed: Annotated[int, typer.Option(min=0, help="Same seed, same scores.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Must not exist.  [default: runs/demo-TIME]"),
    ] = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Teach a small model tasks in turn, with each method, and show what was forgotten.

    Two tasks of short answers, or with `intents` six tasks of new classes.
    """
    from perdure.commands import demo as command

    options = {"quick": quick, "base": base, "seed": seed, "out": out, "minutes": minutes}
    raise typer.Exit(command.demo(what, methods, as_json, **options))


@app.command(
    epilog="Example: perdure run recipe.yaml method.name=replay train.learning_rate=5e-5",
    short_help="Learn a recipe's tasks in order",
)
@handle_errors
def run(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A YAML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY=VALUE]...", help="Values to use instead of the recipe's."),
    ] = None,
    out: NewRun = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Validate recipe and data, estimate time; load no weights."),
    ] = False,
    all_mistakes: Every = False,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Learn RECIPE's tasks in order; scores and checkpoints go to a new run directory."""
    say_what(recipe, check, as_json)
    from perdure.commands import learn

    learn.run(recipe, overrides or [], out, check, as_json, all_mistakes)


@app.command(
    epilog="Example: perdure resume runs/shop", short_help="Go on with a run that was interrupted"
)
@handle_errors
def resume(
    run: RunPath,
    accept_changes: Accept = False,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Go on with a run that was interrupted, with the same result as if it had not been."""
    from perdure.commands import learn

    learn.resume(run, as_json, accept_changes)


app.command(
    epilog="Example: perdure extend runs/shop --data may.csv",
    short_help="Learn more tasks where a finished run ended",
)(extend)
app.command(
    epilog="Example: perdure predict runs/shop new.csv --out answers.jsonl",
    short_help="Answer rows without labels by a run's model",
)(predict)
app.command(
    epilog="Example: perdure route runs/pool 'Is this review positive?'",
    short_help="Show which of a run's adapters answers a text",
)(route)
app.command(
    epilog="Example: perdure export runs/shop --to merged --out shop-model",
    short_help="Write a run's model as a folder for other programs",
)(export)


@app.command(
    name="eval",
    epilog="Example: perdure eval runs/shop --tasks other.yaml",
    short_help="Score a run's model again, also on other tasks",
)
@handle_errors
def evaluate(
    run: RunPath,
    tasks: Annotated[
        Path | None,
        typer.Option(metavar="RECIPE", help="Score the tasks of this recipe instead."),
    ] = None,
    after: Annotated[
        int | None,
        typer.Option(metavar="I", min=0, help="After I tasks; 0: base model.  [default: last]"),
    ] = None,
    accept_changes: Accept = False,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Score RUN's model again, also on tasks it never saw; new scores join the run's."""
    from perdure.commands import evaluate

    evaluate.evaluate(run, tasks, after, as_json, accept_changes)


@app.command(
    epilog="Example: perdure compare runs/shop runs/shop-replay --out compare.html",
    short_help="Show runs side by side: table and page",
)
@handle_errors
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run directories.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Must not exist.  [default: compare-TIME.html]"),
    ] = None,
    figure: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Also a picture: .png, .svg or .pdf; must not exist."),
    ] = None,
    table: Annotated[
        str | None,
        typer.Option(metavar="FORM", help="Only a table: csv, latex or markdown, to --out FILE."),
    ] = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Show runs side by side: a table, an HTML page with figures, and a picture if asked for.

    Runs that differ in their seed alone are one method: the mean over seeds with its interval.
    """
    from perdure.commands import show

    show.compare(runs, out, figure, as_json, table)


@app.command(
    epilog="Example: perdure report runs/shop", short_help="Write a run's HTML report again"
)
@handle_errors
def report(
    run: RunPath,
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Must not exist.  [default: RUN/report.html, renewed]"),
    ] = None,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Write RUN's HTML report again, for a run in progress too."""
    from perdure.commands import show

    show.report(run, out, as_json)


@app.command(
    epilog="Example: perdure methods replay", short_help="List the methods against forgetting"
)
@handle_errors
def methods(
    name: Annotated[
        str | None, typer.Argument(metavar="[NAME]", help="Show one method and its options.")
    ] = None,
    as_json: Json = False,
) -> None:
    """List the methods against forgetting, one line each."""
    from perdure.commands import lists

    lists.methods(name, as_json)


@app.command(epilog="Example: perdure metrics --json", short_help="List what can be scored")
@handle_errors
def metrics(as_json: Json = False) -> None:
    """List the metrics, for `metric:` in a recipe: range, direction, what scoring needs, whose."""
    from perdure.commands import lists

    lists.metrics(as_json)


@app.command(
    epilog="Example: perdure streams clinc150", short_help="List the built-in streams of tasks"
)
@handle_errors
def streams(
    name: Annotated[
        str | None,
        typer.Argument(help="a stream: its tasks, classes, sizes, licence and citation"),
    ] = None,
    as_json: Json = False,
) -> None:
    """List the built-in streams of tasks, for `stream: {name: ...}` in a recipe."""
    from perdure.commands import lists

    lists.streams(name, as_json)


@recipes_app.callback(
    invoke_without_command=True,
    epilog="Example: perdure recipes --json",
    short_help="List the recipes, or copy one to edit",
)
@handle_errors
def recipes(context: typer.Context, as_json: Json = False) -> None:
    """List the recipes that ship with Perdure, and copy one to edit."""
    if context.invoked_subcommand is None:
        from perdure.commands import lists

        lists.recipes(as_json)


@recipes_app.command(epilog="Example: perdure recipes copy two-csv-files shop")
@handle_errors
def copy(
    name: Annotated[str, typer.Argument(metavar="NAME", help="As `perdure recipes` lists it.")],
    destination: Annotated[
        Path, typer.Argument(metavar="[DEST]", help="A folder, or the new .yaml file.")
    ] = Path(),
) -> None:
    """Copy a recipe, and the sample data it reads; nothing is ever overwritten."""
    from perdure.commands import lists

    lists.copy_recipe(name, destination)


app.add_typer(recipes_app, name="recipes")
app.command(
    epilog="Example: perdure audit base tuned --tasks recipe.yaml --junit audit.xml",
    short_help="Test whether a tuned model kept what it could",
)(audit_options.audit)


@app.command(
    epilog="Example: perdure diagnose base tuned --tasks recipe.yaml",
    short_help="Tell what was lost: knowledge, alignment, format",
)
@handle_errors
def diagnose(
    base: Annotated[
        str, typer.Argument(metavar="BASE", help="The model that could do the tasks, as in audit.")
    ],
    tuned: Annotated[str, typer.Argument(metavar="TUNED", help="The model to examine, likewise.")],
    tasks: Annotated[
        Path, typer.Option(metavar="RECIPE", help="Diagnose its tasks.", show_default=False)
    ],
    max_drop: Annotated[
        float, typer.Option(help="Drop of a task's score, 0 to 1, that is no loss.")
    ] = 0.05,
    alpha: Annotated[float, typer.Option(help="Chance of error at each interval's end.")] = 0.05,
    rows: Annotated[
        int | None, typer.Option(min=2, help="Test rows a task at most.  [default: all]")
    ] = None,
    relearn: Annotated[
        int, typer.Option(min=0, help="Train rows of the short training; 0: none.")
    ] = 10,
    learning_rate: Annotated[float, typer.Option(help="Of the short training.")] = 1e-4,
    shots: Annotated[
        int, typer.Option(min=0, help="Train rows as examples in the prompt; 0: none.")
    ] = 4,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    adapter: Adapter = None,
    accept_changes: Accept = False,
    trust_remote_code: Trust = False,
    as_json: Json = False,
) -> None:
    """Tell what TUNED lost on each task: knowledge, alignment, the answers' format, or nothing."""
    from perdure.commands import diagnose as command

    command.diagnose(
        base, tuned, tasks, as_json, max_drop=max_drop, alpha=alpha, rows=rows, relearn=relearn,
        learning_rate=learning_rate, shots=shots, seed=seed, accept_changes=accept_changes,
        adapter=adapter,
    )  # fmt: skip


app.command(
    epilog="Example: perdure repair base tuned --general texts.txt --task recipe.yaml",
    short_help="Take back a part of a tuning that cost general ability",
)(repair_options.repair)
