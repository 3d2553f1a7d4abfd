"""The command line: every command works as its help says, and `--json` prints JSON alone."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import finish, start, write_recipe
from typer.testing import CliRunner, Result

from perdure import recipes
from perdure.cli import app, recipes_app
from perdure.methods import registry

pytestmark = pytest.mark.unit

COMMANDS = ["demo", "run", "resume", "extend", "predict", "route", "export", "eval", "compare",
            "report", "methods", "metrics", "streams", "recipes", "recipes copy", "audit",
            "diagnose", "repair"]  # fmt: skip
HEAVY = {"torch", "transformers", "datasets", "trl", "peft", "accelerate", "matplotlib", "scipy",
         "rich", "jinja2", "numpy"}  # fmt: skip


def perdure(*args: str | Path, code: int = 0) -> Result:
    """Run a command in this process; its exit code must be `code`."""
    result = CliRunner().invoke(app, [str(arg) for arg in args], prog_name="perdure")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == code, result.output
    return result


def as_json(*args: str | Path) -> Any:
    """What a command prints to stdout under --json: one JSON value and nothing else."""
    return json.loads(perdure(*args, "--json").stdout)


def example(command: str) -> str:
    """The example that a command's help ends in."""
    last = perdure(*command.split(), "--help").stdout.rstrip().rpartition("\n\n")[2]
    found = re.fullmatch(r"Example: perdure (.+)", " ".join(last.split()))
    assert found, f"the help of {command} ends in {last!r}"
    return found[1]


# --- help, and what must be fast


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_ends_in_an_example_of_this_command(command: str) -> None:
    assert example(command).startswith(command)


def test_no_command_is_left_out_here() -> None:
    names = [c.name or c.callback.__name__ for c in app.registered_commands if c.callback]
    names += ["recipes", *(f"recipes {c.callback.__name__}" for c in recipes_app.registered_commands
                           if c.callback)]  # fmt: skip
    assert set(names) == set(COMMANDS)


def test_every_option_has_a_help_text() -> None:
    for command in COMMANDS:
        text = perdure(*command.split(), "--help").stdout
        options = re.findall(r"^  (?:-\w, )?(--[\w-]+)(.*(?:\n {6,}.*)*)", text, re.M)
        assert options
        for name, rest in options:
            assert re.search(r"  \S", rest), f"{command} {name}"


@pytest.mark.process
@pytest.mark.parametrize(
    "args", [["--help"], ["run", "--help"], ["audit", "--help"], ["methods"], ["streams"],
             ["recipes"], ["recipes", "--json"], ["--version"]]
)  # fmt: skip
def test_answers_at_once_without_torch(args: list[str]) -> None:
    program = (
        "import sys, time, atexit; from perdure.cli import main\n"
        "atexit.register(lambda: print(time.process_time(), *sys.modules, file=sys.stderr))\n"
        f"sys.argv = ['perdure', *{args!r}]; main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    seconds, *modules = done.stderr.split()
    assert HEAVY & set(modules) == set()
    assert float(seconds) < 2  # of this process; 0.2 on a machine that is not busy


@pytest.mark.process
def test_a_check_says_what_it_does_before_it_imports_anything_slow(inside: Path) -> None:
    program = (
        "import sys, time; from perdure import cli; from perdure.commands import begin\n"
        "write = begin.say_what\n"
        "def say(*how):\n"
        "    write(*how); print(time.process_time(), *sys.modules); sys.exit(0)\n"
        "cli.say_what = say\n"
        "sys.argv = ['perdure', 'run', 'recipe.yaml', '--check']; cli.main()"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr == "checking recipe.yaml, its data and its model's configuration\n"
    seconds, *modules = done.stdout.split()
    assert HEAVY & set(modules) == set()
    assert float(seconds) < 1


def test_wrong_usage_exits_with_2() -> None:
    assert "No such command" in perdure("lern", code=2).stderr
    assert "No such option" in perdure("run", "--chekc", code=2).stderr
    assert "Missing argument" in perdure("run", code=2).stderr


# --- lists


def test_methods_lists_each_in_one_line() -> None:
    lines = perdure("methods").stdout.splitlines()
    assert [line.split()[0] for line in lines] == registry.names()
    assert all(len(line.split()) > 3 for line in lines)
    assert as_json("methods")[0] == {"name": "derpp", "about": registry.describe("derpp")}


def test_one_method_with_its_options() -> None:
    text = perdure("methods", "replay").stdout
    assert "buffer_size: 64" in text
    assert "rows kept in all" in text
    options = as_json("methods", "replay")["options"]
    assert options["policy"]["default"] == "balanced"
    error = perdure("methods", "repaly", code=2).stderr
    assert 'did you mean "replay"?' in error


def test_metrics_with_range_direction_need_and_owner() -> None:
    from perdure.streams.kinds import metrics

    text = perdure("metrics").stdout.splitlines()
    assert [line.split()[0] for line in text] == metrics()
    assert text[0].split(None, 1)[1].startswith("0 to 1 ")
    found = {each["name"]: each for each in as_json("metrics")}
    assert list(found) == metrics()
    assert (found["perplexity"]["higher_is_better"], found["perplexity"]["high"]) == (False, None)
    assert found["exact_match"] == {
        "name": "exact_match", "label": found["exact_match"]["label"], "low": 0.0, "high": 1.0,
        "higher_is_better": True, "needs": "text", "pooling": "items", "from": "perdure",
    }  # fmt: skip
    assert "lower is better" in next(line for line in text if line.startswith("perplexity"))


def test_broken_packages_are_named_in_the_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib.metadata import EntryPoint

    from perdure.streams.kinds import find

    gone = EntryPoint("mine", "no_such_package.part:Mine", registry.GROUP)
    monkeypatch.setattr(registry, "_third_party", lambda: [gone])
    monkeypatch.setattr(find, "offers", lambda group: [gone] if group == find.METRICS else [])
    (line,) = (x for x in perdure("methods").stdout.splitlines() if x.startswith("mine "))
    assert "broken: method 'mine' of no_such_package cannot be imported" in line
    assert "there is no module no_such_package.part" in line
    assert "update or uninstall no_such_package" in line
    (found,) = (each for each in as_json("methods") if each["name"] == "mine")
    assert (found["whole"], "broken: " in found["about"]) == (False, True)
    (line,) = (x for x in perdure("metrics").stdout.splitlines() if x.startswith("mine "))
    assert (
        "broken: metric 'mine' of no_such_package cannot be imported: ModuleNotFoundError" in line
    )
    (found,) = (each for each in as_json("metrics") if each["name"] == "mine")
    assert "cannot be imported" in found["broken"]


def test_streams() -> None:
    assert perdure("streams").stdout.startswith("demo  ")
    names = [each["name"] for each in as_json("streams")]
    assert names == ["demo", "intents", "clinc150", "banking77", "topic3", "fewrel", "tacred"]
    for name in names:
        told, shown = as_json("streams", name), perdure("streams", name).stdout
        assert told["name"] == name
        assert shown.startswith(f"{name}: {told['about']}\n")
        assert told["licence"] in shown
        if name not in ("demo", "intents"):  # those were written for Perdure
            assert told["citation"] in shown
            assert all(f"{count:,}" in shown for count in told["rows"].values() if count)
        assert len(told["tasks"]) >= 2
        assert all(c in shown for task in told["tasks"] for c in task["classes"])
    assert "Larson et al. 2019" in as_json("streams", "clinc150")["citation"]
    assert as_json("streams", "clinc150")["rows"] == {
        "training": 15_000, "validation": 3_000, "test": 4_500
    }  # fmt: skip
    assert 'did you mean "clinc150"?' in perdure("streams", "clinc", code=2).stderr


def test_recipes_lists_and_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert [each["name"] for each in as_json("recipes")] == recipes.names()
    copied = perdure("recipes", "copy", "two-csv-files").stdout.split()
    assert copied == ["two-csv-files.yaml", "more-tickets.csv", "products.csv", "tickets.csv"]
    assert (tmp_path / "two-csv-files.yaml").read_bytes() == recipes.path(
        "two-csv-files"
    ).read_bytes()
    (tmp_path / "two-csv-files.yaml").unlink()
    (tmp_path / "tickets.csv").write_text("mine")
    error = perdure("recipes", "copy", "two-csv-files", code=4).stderr
    assert error == (
        "error: more-tickets.csv, products.csv, tickets.csv: exists already, and nothing was "
        "copied\n"
        "  give another folder: perdure recipes copy two-csv-files FOLDER\n"
    )
    assert (tmp_path / "tickets.csv").read_text() == "mine"
    assert not (tmp_path / "two-csv-files.yaml").exists()
    perdure("recipes", "copy", "two-csv-files", "new/shop.yaml")
    assert sorted(p.name for p in (tmp_path / "new").iterdir()) == [
        "more-tickets.csv", "products.csv", "shop.yaml", "tickets.csv"]  # fmt: skip
    perdure("recipes", "copy", "accelerate/fsdp2-8gpu", "new")
    assert (tmp_path / "new" / "fsdp2-8gpu.yaml").exists()
    assert perdure("recipes", "copy", "two-csv-flies", code=2).stderr == (
        'error: no recipe is called "two-csv-flies"\n'
        '  did you mean "two-csv-files"?\n'
        "  all of them: perdure recipes\n"
    )


def test_the_copied_recipe_is_ready_to_run(
    tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    perdure("recipes", "copy", "two-csv-files", "shop.yaml")
    plan = as_json("run", "shop.yaml", f"model.path={tiny_model_dir}", "--check")
    sizes = [(t["task"], t["train_rows"], t["validation_rows"], t["test_rows"], t["metric"])
             for t in plan["tasks"]]  # fmt: skip
    assert [size[0] for size in sizes] == ["department", "shelf"]
    assert [sum(size[1:4]) for size in sizes] == [36, 36]  # all rows of the two files
    assert sizes[1][3] == 9  # a quarter
    assert [size[4] for size in sizes] == ["label_likelihood", "exact_match"]
    assert plan["costs"][0].startswith("replay: a forward and backward pass")


# --- runs of the tiny model


@pytest.fixture(scope="module")
def shop(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the help's examples work: recipes, two runs, a base and a tuned model."""
    folder = tmp_path_factory.mktemp("shop")
    write_recipe(folder, tiny_model_dir, train__epochs=1)
    other = write_recipe(folder / "other", tiny_model_dir)
    text = other.read_text().replace('"name": "colour"', '"name": "colour again"')
    (folder / "other.yaml").write_text(
        json.dumps({"stream": {"tasks": [
            {**json.loads(text)["stream"]["tasks"][0],
             **{s: f"other/colour-{s}.jsonl" for s in ("train", "validation", "test")}}]}})
    )  # fmt: skip
    prose = [f"Text {i} is plain prose, as a model has read it before." for i in range(8)]
    (folder / "texts.txt").write_text("\n\n".join(prose))
    cwd = Path.cwd()
    try:
        os.chdir(folder)
        perdure("run", "recipe.yaml", "--out", "runs/shop")
        perdure("run", "recipe.yaml", "method.name=replay", "--out", "runs/shop-replay")
    finally:
        os.chdir(cwd)
    shutil.copytree(tiny_model_dir, folder / "base")
    shutil.copytree(folder / "runs/shop/checkpoints/task-2/model", folder / "tuned")
    (folder / "runs/pool").mkdir()  # `route` reads a router and loads no model
    (folder / "runs/pool/adapter_config.json").write_text("{}")
    group = {"name": "reviews", "adapter": "default", "instructions": ["Is a review positive?"]}
    (folder / "runs/pool/codebook.json").write_text(
        json.dumps({"threshold": 0.9, "accept": 0.9, "groups": [group]})
    )
    return folder


@pytest.fixture
def inside(shop: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(shop)
    rows = next(shop.rglob("count-train.jsonl")).read_text()
    (shop / "may.csv").write_text(
        "text,label\n"
        + "".join(f"{r['text']},{r['label']}\n" for r in map(json.loads, rows.splitlines()))
    )
    (shop / "new.csv").write_text("text\nzk colour new 1\n")
    return shop


@pytest.mark.parametrize("command", [c for c in COMMANDS if c != "demo"])
def test_the_example_of_the_help_runs(inside: Path, command: str) -> None:
    args = shlex.split(example(command))
    result = CliRunner().invoke(app, args, prog_name="perdure")
    verdicts = {"audit": (0, 1, 3), "repair": (0, 1)}.get(command, (0,))
    assert result.exit_code in verdicts, result.output
    assert result.stdout


def test_the_example_of_the_demo_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    """The demo itself takes minutes; what it would be asked for is checked here."""
    from perdure.loop import learn

    asked: dict[str, Any] = {}

    def demo(names: list[str], **options: Any) -> int:
        asked.update(options, methods=names)
        return 0

    monkeypatch.setattr("perdure.demo.demo", demo)
    perdure(*shlex.split(example("demo")))
    assert asked.pop("learn") is learn
    assert asked == {
        "methods": ["sequential", "replay"], "quick": True, "base": None, "seed": 0, "out": None,
        "json": False, "minutes": None,
    }  # fmt: skip


def test_run_prints_json_alone_and_never_overwrites(inside: Path) -> None:
    found = as_json("run", "recipe.yaml", "train.max_steps=1", "--out", "runs/json")
    assert found["tasks"] == ["colour", "count"]
    assert [row["after"] for row in found["scores"]] == [0, 1, 2]
    assert all(0 <= row["colour"] <= 1 for row in found["scores"])
    assert -1 <= found["backward_transfer"] <= 1
    assert len(found["general_perplexity"]) == 3
    assert found["state"] == "finished"
    assert "<html" in Path(found["report"]).read_text()
    before = sorted(p.name for p in Path("runs/json").iterdir())
    assert perdure("run", "recipe.yaml", "--out", "runs/json", code=4).stderr == (
        "reading recipe.yaml, its data and its model's configuration\n"
        "error: runs/json: exists already, and a run is never overwritten\n"
        "  go on with it: perdure resume runs/json\n"
        "  or choose another --out\n"
    )
    assert sorted(p.name for p in Path("runs/json").iterdir()) == before
    assert as_json("resume", "runs/json") == found  # finished: shown, not trained again


def test_run_makes_a_directory_of_its_own_name_and_time(inside: Path) -> None:
    found = as_json("run", "recipe.yaml", "train.max_steps=1", "name=my shop")
    assert re.fullmatch(r"runs/my-shop-\d{8}-\d{6}", found["run"])


def test_check_loads_no_weights_and_writes_nothing(
    inside: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from perdure import models

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("weights are loaded")

    monkeypatch.setattr(models.load, "load_base", refuse)
    before = sorted(Path("runs").iterdir())
    plan = as_json("run", "recipe.yaml", "--check", "--out", "runs/shop")
    assert sorted(Path("runs").iterdir()) == before
    task = plan["tasks"][0]
    assert (task["train_rows"], task["validation_rows"], task["test_rows"]) == (24, 8, 12)
    assert task["steps"] == 6  # 24 rows, 4 a step, 1 epoch
    assert 24 * 20 < task["train_tokens"] < 24 * task["longest"]
    assert plan["parameters"] == plan["trainable"] == 143_808
    assert plan["seconds"] > 0
    text = perdure("run", "recipe.yaml", "--check").stdout
    assert "24/8/12" in text
    assert "no weight was loaded, nothing was written" in text


def test_an_adapter_takes_less_memory_than_the_whole_model() -> None:
    from perdure.models import ModelFacts
    from perdure.models.training_memory import training_mb
    from perdure.recipe.data import StreamConfig
    from perdure.recipe.schema import ModelConfig, Recipe

    full = ModelFacts("Llama", 1000 * 2**20, 1000 * 2**20, 0, 0, 0, 0)
    lora = ModelFacts("Llama", 1000 * 2**20, 0, 0, 0, 0, 0)
    recipe = Recipe(
        model=ModelConfig(path="x"), stream=StreamConfig(name="demo"), method=["sequential"]
    )
    # 16 bytes a trained number (weight, gradient, two moments), 4 a frozen one, 600 MiB besides.
    assert training_mb(recipe, full, 8, 100, "fp32") == 16 * 1000 + 600
    assert training_mb(recipe, lora, 8, 100, "fp32") == 4 * 1000 + 600
    assert training_mb(recipe, lora, 8, 100, "bf16") == 2 * 1000 + 600


def test_scoring_takes_weights_one_layer_a_cache_and_logits() -> None:
    from perdure.models import ModelFacts
    from perdure.models.training_memory import scoring_mb

    facts = ModelFacts("Llama", 1000 * 2**20, 0, 1024, 8, 2**15, 0, cached=512)
    # 4 bytes a number; 64 rows of 256 tokens, 17 numbers wide as the layer; two rows of logits.
    read = 600 + 4 * 1000 + 17 * 64 + 64 * 2**15 * 8 // 2**20
    assert scoring_mb(facts, 64, 256, 0, "fp32") == read
    # 256 tokens more are written: keys and values of each layer, 512 numbers a token.
    assert scoring_mb(facts, 64, 256, 256, "fp32") == read + 64 * 512 * 8 * 512 * 4 // 2**20
    assert scoring_mb(facts, 0, 0, 0, "bf16") == 600 + 2 * 1000


def test_eval_repeats_recorded_scores(inside: Path) -> None:
    for after in (0, 1, 2):
        found = as_json("eval", "runs/shop", "--after", str(after))
        assert [row["task"] for row in found["scores"]] == ["colour", "count"]
        for row in found["scores"]:
            assert row["score"] == pytest.approx(row["recorded"], abs=1e-6)


def test_eval_says_which_template_rows_are_read_with(inside: Path) -> None:
    said = " ".join(perdure("eval", "runs/shop").output.split())
    assert "rows are read with the run's chat template (sha256 " in said


def test_eval_adds_tasks_never_seen(inside: Path) -> None:
    found = as_json("eval", "runs/shop-replay", "--tasks", "other.yaml")
    assert found["after"] == 2
    assert found["scores"][0]["recorded"] is None
    unseen = as_json("compare", "runs/shop-replay", "--out", "unseen.html")["runs"][0]["unseen"]
    assert [(u["task"], u["after"]) for u in unseen] == [("colour again", 2)]
    assert unseen[0]["score"] == found["scores"][0]["score"]
    again = as_json("eval", "runs/shop-replay", "--tasks", "other.yaml")
    assert again["scores"][0]["recorded"] == found["scores"][0]["score"]


def test_eval_refuses_what_would_spoil_a_run(inside: Path) -> None:
    error = perdure("eval", "runs/shop", "--tasks", "recipe.yaml", code=2).stderr
    assert error.startswith("error: task colour: the run has a task of this name already\n")
    error = perdure("eval", "runs/shop", "--after", "7", code=4).stderr
    assert error == ("error: runs/shop: has no model after 7 tasks\n  it has: 0 (the base), 1, 2\n")
    error = perdure("eval", "runs/nothing", code=4).stderr
    assert error.startswith("error: runs/nothing: not found")


def test_compare_and_report(inside: Path) -> None:
    found = as_json("compare", "runs/shop", "runs/shop-replay", "--out", "both.html")
    assert [run["method"] for run in found["runs"]] == ["sequential", "replay"]
    assert "<html" in Path("both.html").read_text()
    error = perdure("compare", "runs/shop", "--out", "both.html", code=4).stderr
    assert error == (
        "error: both.html: exists already\n  choose another --out, or remove it first\n"
    )
    told = as_json("report", "runs/shop")
    assert told["report"] == "runs/shop/report.html"
    ends = told["intervals"]["average_accuracy"]
    assert ends["low"] < told["average_accuracy"] < ends["high"]
    assert "sequential" in perdure("compare", "runs/shop", "--out", "one.html").stdout
    drawn = perdure("compare", "runs/shop", "--out", "two.html", "--figure", "two.svg").stdout
    assert "figure: two.svg" in drawn
    assert "<svg" in Path("two.svg").read_text()


def test_audit_verdicts_and_exit_codes(inside: Path) -> None:
    same = CliRunner().invoke(app, ["audit", "base", "base", "--tasks", "recipe.yaml", "--json"])
    assert same.exit_code == 0, same.output
    assert json.loads(same.stdout)["verdict"] == "kept"
    args = ["audit", "base", "tuned", "--tasks", "recipe.yaml", "--rows", "2"]
    lost = CliRunner().invoke(app, [*args, "--junit", "out.xml", "--json"])
    verdict = json.loads(lost.stdout)["verdict"]
    assert lost.exit_code == {"kept": 0, "lost": 1, "undecided": 3}[verdict]
    assert Path("out.xml").read_text().startswith("<?xml")
    wide = [*args, "--max-drop", "0.9", "--max-loss-rise", "90", "--undecided", "0"]
    result = CliRunner().invoke(app, wide)
    assert result.exit_code == 0, result.output
    assert "error: --undecided 300" in perdure(*args, "--undecided", "300", code=2).stderr
    assert perdure("audit", "base", "tunde", "--tasks", "recipe.yaml", code=2).stderr


def test_only_the_first_process_prints(inside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "1")
    result = perdure("run", "no-such.yaml", code=2)
    assert result.output == ""
    monkeypatch.setenv("RANK", "0")
    assert "error: no-such.yaml" in perdure("run", "no-such.yaml", code=2).stderr


@pytest.mark.process
def test_ctrl_c_says_how_to_go_on(inside: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    started = start(["run", str(inside / "recipe.yaml"), "train.epochs=400", "--out", str(out)])
    deadline = time.monotonic() + 250
    while not (out / "log.jsonl").exists():
        assert started.alive(), started.output.read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    os.kill(started.processes[0].pid, signal.SIGINT)
    text = finish(started, code=130)
    assert text.endswith(f"interrupted\n  resume with: perdure resume {out}\n")
    assert "Traceback" not in text
