"""Write the parts of the documentation that the code knows already.

    python docs/generate.py            write them
    python docs/generate.py --check    exit with 1 if one is out of date

docs/recipes.md comes from the recipe's fields, docs/cli.md from the commands' help, docs/rewards.md
from the rewards, and the tables of methods in README.md and docs/methods/index.md from the methods'
docstrings.
"""

from __future__ import annotations

import inspect
import re
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import typer
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from typer.testing import CliRunner

from perdure.cli import app
from perdure.methods import registry
from perdure.recipe.data import TaskConfig
from perdure.recipe.schema import MethodSpec, Recipe
from perdure.rewards import registry as rewards_registry
from perdure.streams.kinds.find import BUILT_IN as BUILT_IN_KINDS

ROOT = Path(__file__).parents[1]
NOTE = "<!-- Written by docs/generate.py; do not edit. -->"
START, END = "<!-- methods: written by docs/generate.py -->", "<!-- end of methods -->"
BUILT_IN = sorted(
    path.stem for path in (ROOT / "docs/methods").glob("*.md") if path.stem != "index"
)
LIMITS = {"gt": "> ", "ge": ">= ", "lt": "< ", "le": "<= "}


# --- recipes.md

CONVERSATIONS = [
    "## Conversations and chat templates",
    "The model's chat template writes every prompt and every answer, in training and in scoring: "
    "both together are what `apply_chat_template` gives for the conversation, up to the end of the "
    "answer's turn, which is learned too. What a template does is found out once, by rendering "
    "conversations.",
    "- **Which one.** `model.chat_template: auto` is the model's own; a Jinja file takes its "
    "place. It gets `messages`, `add_generation_prompt` and `tools`, and the variables of "
    "`chat_template_kwargs`; one that does not use `add_generation_prompt` works too. `audit`, "
    "`diagnose`, `repair` and `eval` read all models with the one that the tuned model was trained "
    "with, and say so.",
    "- **System turns** go in front of the first user's text where the template refuses or drops "
    "them.",
    "- **Templates that think.** Where a finished answer has an empty think block (Qwen 3), it "
    "belongs to the prompt. Where the prompt of a server opens a block that a finished answer does "
    "not have (DeepSeek R1), a line tells both, and answers are learned and scored behind what a "
    "server sends. An answer with a thought of its own (`<think>` in its text, or "
    "`reasoning_content`) is learned with it.",
    "- **Tools.** `tool_calls` and `reasoning_content` of messages, messages of the role `tool` "
    "and a column `tools` are handed to the template. A row that holds what the template does not "
    "show is refused with its file and line, and so is a conversation that the template refuses. A "
    "generated answer is compared with the call as the template writes it.",
    "- **Contents in parts.** A `content` may be a list of text parts, "
    '`[{"type": "text", "text": ...}]`. A template that takes such lists gets it as it is; for '
    "one that takes texts the parts are joined by single blanks, as transformers' own server does. "
    "Parts of another type, such as images, are a mistake with file and line.",
    "- **Which turns are learned.** Of a conversation the assistant's last message, unless the "
    "task says `train_on: all`: then each of the assistant's is a row of its own behind all that "
    "comes before it, as a server would ask for it. What follows the last one is left out. The "
    "last one alone is scored.",
    "- **Dates.** A template that writes the date writes that of the run's start, also when the "
    "run is resumed, scored, audited, diagnosed or repaired later.",
    "- **Special tokens in data**, such as `<|im_end|>` in a text, are read as such. A line names "
    "the first row and how many there are.",
]

DATA_FILES = [
    "## Values",
    "YAML reads `007` as 7 and `1_000` as 1000. Where a text belongs, such as a label, a value "
    "that would come out otherwise than it was written is refused, with the remedy to write it in "
    "quotes. `true` is not taken for the number 1. Of one file and one kind of mistake ten are "
    "listed, and one that more than three rows share is written once with their number; `perdure "
    "run RECIPE --all-mistakes` lists them all.",
    "## Files",
    "- **Encoding.** A text file is read as UTF-8, or as its byte order mark says. One that is not "
    "UTF-8 is recognised, and a line tells as what, with a word to see whether it is right; "
    "`encoding` of the task, or of `general` for its files, settles it. UTF-8 in which a few bytes "
    "are damaged is a mistake with its line, not another encoding.",
    "- **Delimiter.** Cells of .csv are separated by commas and of .tsv by tabs, if the header "
    "then has the task's columns. Else a semicolon, tab, bar or comma is recognised by the header "
    "and told; `delimiter` of the task settles it. A first line `sep=;` counts.",
    "- **Empty rows.** A row with nothing in a cell that is needed is left out, whatever the "
    "source, and how many were is told. It is a mistake if all are.",
    "- **Rows that are there twice** stay, and how many there are is told: within a split, "
    "between two of them, and between tasks (once for all, with how many test rows of one task "
    "another trains on), by prompt (white space and case aside) and by the whole row.",
    "- **Labels** are compared in Unicode NFC, with single blanks, and without signs that have no "
    "width; the declared form counts, else the one that most training rows have. Case counts: a "
    "label that differs only in case is named as such. `label_names` need not list what is a label "
    "already. Labels that the model's tokenizer writes with the same tokens are a mistake.",
    "- **Mistakes** are named by file and line, also a row that has too many tokens.",
]


def recipes() -> str:
    intro = [
        NOTE,
        "# Recipes: every key",
        "A recipe is a YAML file. `perdure recipes` lists those that ship, `perdure recipes copy "
        "NAME` copies one to edit, `perdure run RECIPE --check` validates one. Paths are relative "
        "to the recipe's folder. On the command line `section.key=value` replaces a value, and "
        "`stream.tasks.NAME.key=value` one of a task. An unknown key is an error that names the "
        "key probably meant. Where no default is given, nothing is set. A path must lead to a "
        "regular file. A recipe has at most 2 MB, 40 sections inside each other, and 500,000 "
        "values with all that its aliases repeat; tags such as `!!python/object` are refused.",
    ]
    options = [
        *DATA_FILES,
        *CONVERSATIONS,
        "## Options of the methods",
        "Under `method`, beside `name`. Also on the command line: `method.KEY=VALUE`.",
    ]
    for name in BUILT_IN:
        fields = registry.load(name).Config.model_fields
        title = f"### [{name}](methods/{name}.md)"
        options += [title, _table(fields) if fields else "No options."]
    return "\n\n".join([*intro, *_sections(Recipe, ""), *options]) + "\n"


def _sections(model: type[BaseModel], path: str, about: str = "") -> Iterator[str]:
    """A heading and a table for a section, then those of the sections in it."""
    yield f"## {path or 'At the top'}"
    if about:
        yield about[0].upper() + about[1:] + "."
    yield _table(model.model_fields)
    for name, field in model.model_fields.items():
        inner = _model_in(field.annotation)
        if inner is not None and inner is not MethodSpec:
            listed = get_origin(field.annotation) is list
            where = f"{path}.{name}".lstrip(".") + ("[]" if listed else "")
            yield from _sections(inner, where, field.description or "")


def _model_in(annotation: Any) -> type[BaseModel] | None:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return annotation
    found = (_model_in(each) for each in get_args(annotation))
    return next((each for each in found if each is not None), None)


def _table(fields: dict[str, FieldInfo]) -> str:
    lines = ["| key | value | default | meaning |", "|---|---|---|---|"]
    for name, field in fields.items():
        known = _of_kinds().get(name) if fields is TaskConfig.model_fields else None
        cells = (f"`{name}`", known or _values(field), _default(field), field.description or "")
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _of_kinds() -> dict[str, str]:
    """The values of a task's keys that its kind knows: Perdure's own, whatever is installed."""
    forms = ", ".join(f"`{form.name}`" for kind in BUILT_IN_KINDS for form in kind.formats)
    metrics = ", ".join(f"`{metric.name}`" for kind in BUILT_IN_KINDS for metric in kind.metrics)
    return {"format": forms, "metric": f"{metrics}, or your own as `module:function`"}


def _values(field: FieldInfo) -> str:
    limits = [
        sign + f"{getattr(limit, key):.10g}"
        for limit in field.metadata
        for key, sign in LIMITS.items()
        if getattr(limit, key, None) is not None
    ]
    return ", ".join([_type(field.annotation), *limits])


def _type(annotation: Any) -> str:
    origin, inside = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in inside)
    if origin is Union or origin is type(int | str):
        return " or ".join(_type(each) for each in inside if each is not type(None))
    if _model_in(annotation) is MethodSpec:
        return "a name, a section with `name` or `file` and options, or a list of them"
    if origin in (list, tuple):
        return "list of " + _plural(_type(inside[0]))
    if origin is dict:
        return "text: " + ("text" if inside[1] is Any else _type(inside[1]))
    if _model_in(annotation) is not None:
        return "section"
    names = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    return names.get(annotation, str(annotation))


def _plural(name: str) -> str:
    return name if name == "text" or name.startswith("`") else name + "s"


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    if value is None or value == "":
        return ""
    if isinstance(value, BaseModel):
        return "see below"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, list | tuple | dict) and not value:
        return ""
    if isinstance(value, list | tuple):
        return f"`[{', '.join(map(str, value))}]`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


# --- cli.md


def cli() -> str:
    parts = [
        NOTE,
        "# Commands",
        "Exit codes: 0 done; 2 wrong usage, recipe, data or model; 4 a run directory in the "
        "way, missing or damaged; 5 training could not go on; 130 interrupted; 143 and 138 "
        "stopped by SIGTERM and SIGUSR1, after [saving](runs.md#on-a-cluster). `audit` adds 1 for "
        "lost and 3 for undecided, `repair` 1 if nothing qualifies. "
        "Results go to stdout, progress and errors to stderr.",
        _help(()),
    ]
    for path in _commands(typer.main.get_command(app)):
        parts += [f"## perdure {' '.join(path)}", _help(path)]
    return "\n\n".join(parts) + "\n"


def _commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, inner in getattr(command, "commands", {}).items():
        yield (*path, name)
        yield from _commands(inner, (*path, name))


def _help(path: tuple[str, ...]) -> str:
    found = CliRunner().invoke(app, [*path, "--help"], prog_name="perdure", terminal_width=90)
    return f"```text\n{found.stdout.strip()}\n```"


# --- tables of methods


def method_table(cards: str) -> str:
    """The lines of `perdure methods`, each name linked to its card in the folder `cards`."""
    lines = ["| method | |", "|---|---|"]
    lines += [f"| [{name}]({cards}{name}.md) | {registry.describe(name)} |" for name in BUILT_IN]
    return "\n".join(lines)


def readme() -> str:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = f"{START}\n{method_table('docs/methods/')}\n{END}"
    return re.sub(f"{START}.*?{END}", lambda _: table, text, flags=re.S)


def index() -> str:
    return "\n\n".join(
        [
            NOTE,
            "# Methods against forgetting",
            "One card each: idea, paper, loss, cost, when to use it, recipe, what was checked. "
            "Options: [recipes.md](../recipes.md#options-of-the-methods). What each adds to memory "
            "and time: [scale.md](../scale.md).",
            method_table(""),
        ]
    ) + "\n"  # fmt: skip


# --- rewards.md

REWARDS = [
    "In reinforcement a model writes several completions for a prompt and learns from what each "
    "earns. A recipe lists the rewards by name, or with a weight and options:",
    "```text\nrl:\n  rewards:\n    - format\n    - {name: chrf, weight: 0.7}\n    - bleu\n"
    "    - language\n    - copying\n    - length\n    - {name: repetition, most: 0.4}\n```",
    "A completion's value is put together of them:",
    "```text\nR = 0    if it cannot be read, or a guard is 0\n"
    "R = w_format f + (product of gates) * sum w_k q_k    else\n```",
    "- **format** is 1 where the answer can be read: for `answer: tagged` by the strict parser, "
    "for `answer: plain` where there is one that was not cut. Its weight is 0.2.\n"
    "- **quality** says how good the answer is. The weights sum to 1; qualities without one share "
    "what the others leave.\n"
    "- A **guard** that is 0 takes all away, the format's part too. It has no weight.\n"
    "- A **gate** is a factor of the quality: at 0 only the format's part is left.",
    "No guard and no gate refuses the right answer itself. Answers that cannot be read are 0 "
    "whatever the rewards would say. A value that is no number from 0 to 1, an exception, a wrong "
    "count, and completions for which no quality has a value stop the run, with prompt, completion "
    "and reward named.",
]
OWN_REWARD = [
    "## A reward of your own",
    "A function of samples in a file beside the recipe is a quality, listed as "
    "`my_rewards:exclaims`; as that is code, the recipe also says `trust_remote_code: true` "
    "([security](security.md)).",
    """```python
# my_rewards.py
def exclaims(samples):
    return [float(sample.parsed.answer.endswith("!")) for sample in samples]
```""",
    "It gets all completions of a step that can be read and returns as many values from 0 to 1, or "
    "None for one to which it does not apply: the other qualities then share its weight. "
    "`--check` and the beginning of a run try it on a right answer. A sample "
    "has `prompt`, `completion`, `row` (the task's row), `source`, `target`, `source_lang`, "
    "`target_lang`, and `parsed.answer` and `parsed.thinking`. A class has options and another "
    "role:",
    """```python
from pydantic import Field

from perdure.rewards import Reward, RewardConfig, Sample, build


class PoliteConfig(RewardConfig):
    word: str = Field("please", description="what a polite answer has")


class Polite(Reward):
    \"\"\"Whether an answer is polite.\"\"\"

    role = "gate"
    version = "1"  # another one whenever the same sample would get another value
    Config = PoliteConfig

    def __call__(self, samples):
        return [float(self.config.word in sample.parsed.answer) for sample in samples]


scored = build(["format", "chrf"])([Sample("Bonjour ?", "Hello!", row={"target": "Hello!"})])
assert scored.total == [1.2]
```""",
    "A package offers it by an entry point, and `pip install` of it is enough:",
    """```toml
[project.entry-points."perdure.rewards"]
polite = "my_package.polite:Polite"
```""",
    "`check(directions)` may tell before any weight is loaded what it cannot do with the rows' "
    "languages. All that looks at a language comes with the extra `translation`.",
]


def rewards() -> str:
    kinds = {name: rewards_registry.load(name) for name in rewards_registry.built_in()}
    table = ["| reward | role | |", "|---|---|---|"]
    parts = []
    for name, kind in kinds.items():
        about = inspect.getdoc(sys.modules[kind.__module__]) or ""
        table.append(f"| [{name}](#{name}) | {kind.role} | {about.splitlines()[0]} |")
        fields = kind.Config.model_fields
        parts += [f"## {name}", _unwrapped(about), _table(fields) if fields else "No options."]
    page = [NOTE, "# Rewards", *REWARDS, "\n".join(table), *parts, *OWN_REWARD]
    return "\n\n".join(page) + "\n"


def _unwrapped(text: str) -> str:
    """A docstring as paragraphs; what is indented as a block of text."""
    found = []
    for part in re.split(r"\n\n+", text):
        if part.startswith("    "):
            found.append(f"```text\n{inspect.cleandoc(chr(10) + part)}\n```")
        else:
            found.append(" ".join(part.split()))
    return "\n\n".join(found)


PAGES: dict[str, typing.Callable[[], str]] = {
    "README.md": readme,
    "docs/cli.md": cli,
    "docs/methods/index.md": index,
    "docs/recipes.md": recipes,
    "docs/rewards.md": rewards,
}


def main(check: bool) -> int:
    old = 0
    for name, make in PAGES.items():
        path, text = ROOT / name, make()
        if path.exists() and path.read_text(encoding="utf-8") == text:
            continue
        old = 1
        if check:
            print(f"{name} is out of date: python docs/generate.py")
        else:
            path.write_text(text, encoding="utf-8")
            print(name)
    return old if check else 0


if __name__ == "__main__":
    raise SystemExit(main("--check" in sys.argv[1:]))
