"""No code of a stranger runs without the user's word, whichever command meets it first.

Every command of the command line, and the Python functions beside them, is handed model folders,
adapters, run directories and recipes whose code would write a mark. Without `trust_remote_code`
there must be no mark; with it there must be one, so that each test is known to reach the place.
"""

from __future__ import annotations

import ast
import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from tiny_runs import write_recipe
from typer.main import get_command
from typer.testing import CliRunner

import perdure
from perdure.cli import app
from perdure.consent import ConsentError, given, trusting
from perdure.errors import ModelError, PerdureError, RecipeError, printable
from perdure.seals import seal

pytestmark = pytest.mark.train

CODE = "from pathlib import Path\nPath({mark!r}).write_text('ran')\nraise SystemExit(7)\n"
RECIPES = ("model", "method", "metric", "task_file")
"""What brings the code in a recipe."""


@dataclass
class Strange:
    """Files with code that writes `mark`."""

    folder: Path
    mark: Path
    tiny: Path

    def code(self, name: str) -> Path:
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(CODE.format(mark=str(self.mark)))
        return path

    def model(self, name: str = "downloaded") -> Path:
        """A model folder that brings code, with a file beside the weights that says yes to it."""
        folder = self.folder / name
        shutil.copytree(self.tiny, folder)
        config = json.loads((folder / "config.json").read_text())
        config["model_type"] = "strange"
        config["auto_map"] = {
            "AutoConfig": "strange.Config",
            "AutoModelForCausalLM": "strange.Model",
        }
        (folder / "config.json").write_text(json.dumps(config))
        self.code(f"{name}/strange.py")
        base = {"path": str(folder), "trust_remote_code": True}
        (folder / "perdure_base.json").write_text(json.dumps(base))
        return folder

    def adapter(self) -> Path:
        """An adapter whose own files name a base that brings code."""
        folder = self.folder / "adapter"
        folder.mkdir()
        base = self.model("base-of-adapter")
        about = {"peft_type": "LORA", "base_model_name_or_path": str(base), "r": 2}
        (folder / "adapter_config.json").write_text(json.dumps(about))
        shutil.copy(base / "perdure_base.json", folder / "perdure_base.json")
        return folder

    def changes(self, what: str) -> dict[str, Any]:
        """What makes a recipe of `write_recipe` one that needs code."""
        if what == "model":
            return {"model__path": str(self.model())}
        if what == "method":
            return {"method": {"file": str(self.code("evil_method.py"))}}
        if what == "task_file":
            self.code("evil_functions.py")
            task = self.folder / "evil.yaml"
            task.write_text(
                "task: evil\ndataset_path: json\noutput_type: multiple_choice\n"
                "doc_to_text: !function evil_functions.text\n"
            )
            return {"general": {"source": "none", "tasks": [str(task)]}}
        return {}

    def recipe(self, what: str, **more: Any) -> Path:
        changes = {"train__max_steps": 1, **self.changes(what), **more}
        path = write_recipe(self.folder / "recipe", self.tiny, **changes)
        if what == "metric":
            found = json.loads(path.read_text())
            found["stream"]["tasks"][0]["metric"] = f"{self.code('evil_metric.py')}:f"
            path.write_text(json.dumps(found))
        return path

    def run(self, what: str) -> Path:
        """A run directory of somebody else, whose own recipe says yes."""
        folder = self.folder / "somebodys-run"
        folder.mkdir()
        said = json.loads(self.recipe(what, trust_remote_code=True).read_text())
        for task in said["stream"]["tasks"]:
            for split in ("train", "validation", "test"):
                task[split] = str(self.folder / "recipe" / task[split])
        said["name"] = "somebodys"
        (folder / "recipe.yaml").write_text(yaml.safe_dump(said))
        (folder / "environment.json").write_text('{"precision": "fp32"}')
        return folder

    def learned(self) -> Path:
        """A run directory whose last model brings code."""
        folder = self.run("none")
        place = folder / "checkpoints" / "task-1" / "model"
        place.parent.mkdir(parents=True)
        self.model().rename(place)
        return folder

    def sealed(self) -> Path:
        """The same, whose last model counts as whole."""
        folder = self.learned()
        seal(folder / "checkpoints" / "task-1", {})
        return folder

    def rows(self) -> Path:
        """Texts to ask a model."""
        (self.folder / "rows.txt").write_text("xq a\n")
        return self.folder / "rows.txt"

    def finished(self) -> Path:
        """A run of somebody else that has ended, with a method in a file."""
        recipe = write_recipe(self.folder / "clean-data", self.tiny, train__max_steps=1)
        loaded = perdure.load_recipe(recipe)
        run = perdure.Run.create(self.folder / "ended", loaded)
        perdure.learn(loaded, run)
        said = yaml.safe_load((run.path / "recipe.yaml").read_text())
        said |= {"method": {"file": str(self.code("evil_method.py"))}, "trust_remote_code": True}
        (run.path / "recipe.yaml").write_text(yaml.safe_dump(said))
        shutil.copy(self.folder / "clean-data" / "count-train.jsonl", self.folder / "may.jsonl")
        return run.path


@pytest.fixture
def strange(tmp_path: Path, tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Strange:
    monkeypatch.chdir(tmp_path)
    return Strange(tmp_path, tmp_path / "mark", tiny_model_dir)


MODELS = {"audit": ("tiny", "X", "--rows", "2"),
          "diagnose": ("tiny", "X", "--tasks", "R", "--rows", "2"),
          "repair": ("tiny", "X", "--general", "pydoc", "--task", "R")}  # fmt: skip
"""Commands that take two models: X is the strange one, R a recipe without code."""


def cases() -> list[tuple[str, str, list[str]]]:
    """(command, what is strange, arguments), in which words in capitals stand for paths."""
    found = [(name, what, ["RECIPE", "--out", "new"]) for name in ("run",) for what in RECIPES]
    found += [("run", what, ["RECIPE", "--check"]) for what in RECIPES]
    found += [("resume", what, ["RUN"]) for what in RECIPES]
    found += [("eval", what, ["RUN"]) for what in ("model", "metric", "task_file")]
    found += [("eval", "other recipe", ["CLEAN-RUN", "--tasks", "RECIPE", "--after", "0"])]
    found += [("demo", "model", ["--quick", "--base", "X", "--out", "new"])]
    for command, arguments in MODELS.items():
        for what in ("model", "adapter", "learned"):
            # `repair` puts the adapter on BASE, whatever the adapter names.
            if (command, what) != ("repair", "adapter"):
                found.append((command, what, list(arguments)))
    found += [("audit", "metric", ["tiny", "tiny", "--tasks", "RECIPE"])]
    found += [("export", what, ["X", "--out", "new"]) for what in ("model", "adapter", "learned")]
    found += [("predict", "model", ["RUN", "ROWS"]), ("predict", "sealed", ["X", "ROWS"])]
    # A run that is extended needs its method's code; it must have finished.
    found += [("extend", "finished", ["X", "--data", "may.jsonl", "--out", "new"])]
    return found


QUIET = {"report": ["RUN"], "compare": ["RUN", "--out", "page.html"]}
"""Commands that read run directories and need none of their code, with or without the word."""
NO_INPUT = {"methods", "metrics", "streams", "recipes"}
OF_A_CODEBOOK = {"route"}
"""It reads no recipe and no model: see tests/commands/test_route.py."""


def typed(strange: Strange, what: str, words: list[str]) -> list[str]:
    """The words of a command with paths in them."""
    made: dict[str, Callable[[], Path]] = {
        "RECIPE": lambda: strange.recipe("metric" if what == "other recipe" else what),
        "RUN": lambda: strange.run(what),
        "CLEAN-RUN": lambda: strange.run("none"),
        "R": lambda: write_recipe(strange.folder / "clean", strange.tiny),
        "X": getattr(strange, what, strange.model),
        "tiny": lambda: strange.tiny,
        "ROWS": strange.rows,
    }
    return [str(made[word]()) if word in made else word for word in words]


def test_every_command_is_here() -> None:
    known = {command for command, _, _ in cases()} | set(QUIET) | NO_INPUT | OF_A_CODEBOOK
    assert known == set(get_command(app).commands)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("command", "what", "words"), cases(), ids=lambda v: "-".join(v) if isinstance(v, list) else v
)
def test_a_command_runs_no_code_without_the_word(
    strange: Strange, command: str, what: str, words: list[str]
) -> None:
    line = [command, *typed(strange, what, words)]
    refused = CliRunner().invoke(app, line)
    assert not strange.mark.exists()
    assert refused.exit_code == 2, refused.output
    assert "--trust-remote-code" in refused.stderr
    assert "which was not run" in refused.stderr
    assert not (strange.folder / "new").exists()
    CliRunner().invoke(app, [*line, "--trust-remote-code"])
    assert strange.mark.exists()


@pytest.mark.parametrize("command", QUIET)
@pytest.mark.parametrize("what", RECIPES)
def test_a_record_is_shown_without_its_code(strange: Strange, command: str, what: str) -> None:
    shown = CliRunner().invoke(app, [command, *typed(strange, what, QUIET[command])])
    assert shown.exit_code == 0, shown.output
    assert not strange.mark.exists()


@pytest.mark.parametrize("what", RECIPES)
def test_the_recipe_that_the_user_runs_is_a_word(strange: Strange, what: str) -> None:
    CliRunner().invoke(app, ["run", str(strange.recipe(what, trust_remote_code=True)), "--check"])
    assert strange.mark.exists()


def test_the_line_to_type_is_told(strange: Strange) -> None:
    run = strange.run("method")
    told = CliRunner().invoke(app, ["resume", str(run)]).stderr
    assert f"{strange.folder}/evil_method.py: is Python code, which was not run" in told
    assert "read that code; if you trust it, say so: " in told
    assert told.rstrip().endswith(" --trust-remote-code")


def test_a_check_names_all_that_it_could_not_check(strange: Strange) -> None:
    path = strange.recipe("metric", **strange.changes("method"), **strange.changes("task_file"))
    with pytest.raises(RecipeError) as error:
        perdure.load_recipe(path)
    places = [str(m).partition(": ")[2].partition(": ")[0] for m in error.value.mistakes]
    assert sorted(places) == ["general.tasks.0", "method.file", "stream.tasks.0.metric"]
    assert not strange.mark.exists()


def test_the_former_key_is_told(strange: Strange) -> None:
    path = strange.recipe("none", model__trust_remote_code=True)
    with pytest.raises(RecipeError, match="write trust_remote_code: true at the top"):
        perdure.load_recipe(path)


# --- the Python functions


def functions() -> dict[str, tuple[str, Callable[[Strange, bool], Any]]]:
    """Name -> what is strange, and a call with the word or without."""
    from perdure.audit.audit import audit
    from perdure.diagnose.diagnose import diagnose
    from perdure.models import load_saved
    from perdure.predictor import open_predictor
    from perdure.repair.search import repair

    def tasks(strange: Strange) -> Any:
        from perdure.prepare import stream_of

        return stream_of(perdure.load_recipe(write_recipe(strange.folder / "r", strange.tiny)))

    def learn(strange: Strange, word: bool) -> Any:
        run = perdure.Run.open(strange.folder / "somebodys-run", trust_remote_code=word)
        return perdure.learn(run.recipe, run)

    x: Callable[[Strange], Path] = lambda s: s.folder / "downloaded"  # noqa: E731
    return {
        "load_saved": ("model", lambda s, word: load_saved(x(s), trust_remote_code=word)),
        "audit": ("model", lambda s, word: audit(s.tiny, x(s), (), ["a b"],
                                                 trust_remote_code=word)),
        "diagnose": ("model", lambda s, word: diagnose(s.tiny, x(s), tasks(s),
                                                       trust_remote_code=word)),
        "repair": ("model", lambda s, word: repair(s.tiny, x(s), tasks(s).tasks, [*"abcdefgh"],
                                                   trust_remote_code=word)),
        "learn": ("run", learn),
        "load_predictor": ("run", lambda s, word: perdure.load_predictor(
            s.folder / "somebodys-run", trust_remote_code=word)),
        "open_predictor": ("run", lambda s, word: open_predictor(
            s.folder / "somebodys-run", trust_remote_code=word).learner),
        "AdapterPool": ("model", lambda s, word: perdure.AdapterPool(
            x(s), {"one": plain_adapter(s)}, trust_remote_code=word)),
        "AdapterPool.load": ("adapter", lambda s, word: perdure.AdapterPool.load(
            s.folder / "adapter", trust_remote_code=word)),
    }  # fmt: skip


def plain_adapter(strange: Strange) -> Path:
    """An adapter without code."""
    from perdure.models import load_base, save_model
    from perdure.recipe.schema import ModelConfig

    config, folder = ModelConfig(path=str(strange.tiny), tuning="lora"), strange.folder / "plain"
    if not folder.exists():
        save_model(*load_base(config), folder, config)
    return folder


def test_every_function_that_takes_the_word_is_here() -> None:
    """By its name, or its class's; `Run.open` hands the word to `learn`."""
    found, home = set(), Path(perdure.__file__).parent
    for file in home.rglob("*.py"):
        if file == home / "cli.py" or file.parent.name == "commands":
            continue  # `cases` has the commands
        tree = ast.parse(file.read_text("utf-8"))
        scopes = [("", tree.body)]
        scopes += [(n.name, n.body) for n in ast.walk(tree) if isinstance(n, ast.ClassDef)]
        for owner, body in scopes:
            for node in body:
                if not isinstance(node, ast.FunctionDef):
                    continue
                takes = {one.arg for one in (*node.args.args, *node.args.kwonlyargs)}
                if "trust_remote_code" in takes:
                    name = "" if node.name == "__init__" else node.name
                    found.add(f"{owner}.{name}".strip("."))
    assert found - {"Run.open"} == functions().keys() - {"learn"}


@pytest.mark.parametrize("name", functions())
def test_a_function_runs_no_code_without_the_word(strange: Strange, name: str) -> None:
    what, call = functions()[name]
    {"model": strange.model, "adapter": strange.adapter}.get(what, lambda: strange.run("method"))()
    with pytest.raises(ConsentError):
        call(strange, False)
    assert not strange.mark.exists()
    with pytest.raises(SystemExit):
        call(strange, True)
    assert strange.mark.exists()


def test_a_word_holds_inside_its_block_alone() -> None:
    assert not given()
    with trusting(True):
        with trusting(False):
            assert given()
        assert given()
    assert not given()


def test_an_attention_kernel_of_the_hub_is_code(tiny_model_dir: Path) -> None:
    from perdure.models import inspect_base
    from perdure.recipe.schema import ModelConfig

    with pytest.raises(ConsentError, match=r"model\.attention: somebody/kernel: is code"):
        inspect_base(ModelConfig(path=str(tiny_model_dir), attention="somebody/kernel"))


def test_an_adapter_cannot_name_a_module_to_import(strange: Strange) -> None:
    from perdure.models import load_saved

    strange.code("evil_core.py")
    folder = strange.folder / "adapter"
    folder.mkdir()
    about = {"peft_type": "LORA", "base_model_name_or_path": str(strange.tiny), "r": 2,
             "target_modules": ["q_proj"], "task_type": "CAUSAL_LM",
             "megatron_config": {"a": 1}, "megatron_core": "evil_core"}  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(about))
    with pytest.raises(ConsentError, match=r"names Python code to import \(evil_core\)"):
        load_saved(folder)
    assert not strange.mark.exists()


def test_a_config_cannot_name_an_attention_kernel_of_the_hub(strange: Strange) -> None:
    from perdure.models import inspect_base
    from perdure.recipe.schema import ModelConfig

    folder = strange.folder / "kernel"
    shutil.copytree(strange.tiny, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"attn_implementation": "somebody/kernel"})
    )
    with pytest.raises(ConsentError, match="names a hub repository's attention kernel"):
        inspect_base(ModelConfig(path=str(folder)))


# --- pickles


class Bomb:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("where", ["weights", "adapter"])
def test_a_pickle_is_refused_by_name(strange: Strange, where: str) -> None:
    import torch

    from perdure.models import load_saved

    folder = strange.folder / "pickled"
    if where == "weights":
        shutil.copytree(strange.tiny, folder)
        (folder / "model.safetensors").unlink()
        file = folder / "pytorch_model.bin"
    else:
        folder.mkdir()
        about = {"peft_type": "LORA", "base_model_name_or_path": str(strange.tiny), "r": 2,
                 "target_modules": ["q_proj"], "task_type": "CAUSAL_LM"}  # fmt: skip
        (folder / "adapter_config.json").write_text(json.dumps(about))
        file = folder / "adapter_model.bin"
    torch.save({"weight": Bomb(strange.mark)}, file)
    with pytest.raises(ModelError, match="holds a pickle with more than tensors in it"):
        load_saved(folder)
    assert not strange.mark.exists()
    pickle.loads(pickle.dumps(Bomb(strange.mark)))
    assert strange.mark.exists()  # the bomb is a bomb


# --- what a terminal obeys


def test_nothing_from_outside_steers_the_terminal(strange: Strange) -> None:
    title, clear, csi, flip = "\x1b]0;owned\x07", "\x1b[2J", "\x9b2J", "\u202etxt.exe"
    for steers in (title, clear, csi, flip):
        assert not set(printable(f"a{steers}\n")) & set("\x1b\x07\x9b\u202e")
    assert printable("caf\u00e9 \U0001f468\u200d\U0001f469\u00a0\tok\n") == (
        "caf\u00e9 \U0001f468\u200d\U0001f469\u00a0\tok\n"
    )
    path = strange.recipe("none")
    rows = (strange.folder / "recipe" / "colour-test.jsonl").read_text().splitlines()
    label = json.dumps({"text": "a", "label": f"{title}{clear}red"})
    (strange.folder / "recipe" / "colour-test.jsonl").write_text("\n".join([*rows, label]) + "\n")
    found = CliRunner().invoke(app, ["run", str(path), "--check",
                                     'stream.tasks.0.labels=["red","blue"]'])  # fmt: skip
    assert found.exit_code == 2
    assert "red" in found.stderr
    assert not set(found.stderr) & set("\x1b\x07\x9b")


def test_an_error_is_printable_whatever_it_quotes() -> None:
    assert "\x1b" not in str(PerdureError("label \x1b[2J", "write \x1b[31m"))
