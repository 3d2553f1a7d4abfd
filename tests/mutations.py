"""Recipes and data files with one thing changed at random, tried as `perdure run --check` does.

    PERDURE_MUTATIONS=all pytest tests/test_mutations.py      every kind of change at every key
    python tests/mutations.py [SHARE [SEED]]                  a share, with counts and failures

What must hold of each: the check ends within `SECONDS` of CPU time, in "valid" or in a message of
at most `LONGEST` characters; and what it calls valid learns one step a task, unless its loss is not
finite.
"""

from __future__ import annotations

import copy
import functools
import io
import json
import math
import os
import random
import re
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import mutated_data
import whole_recipes
from whole_recipes import Path_, Recipe

SECONDS, WALL = 10.0, 60.0
LONGEST = 20_000
MEMORY = 3 << 30
"""Bytes that a case may take beside what is imported: more is not what a tiny model needs."""


class Case(NamedTuple):
    """A change of one kind at one place: of a recipe a key, of a data file the whole of it."""

    base: str
    kind: str
    place: Path_

    def __str__(self) -> str:
        return f"{self.base}: {'.'.join(map(str, self.place))}: {self.kind}"


class Raw(str):
    """YAML text that is written as it stands."""

    __slots__ = ()


Change = Callable[[random.Random, Any], Any]


def _scaled(factor: float) -> Change:
    def change(draw: random.Random, value: Any) -> Any:
        number = isinstance(value, int | float) and not isinstance(value, bool)
        return type(value)(value * factor) if number else factor

    return change


def _place(kind: str) -> Change:
    """A place that is no regular file, with the ending of what stood there."""

    def change(draw: random.Random, value: Any) -> Any:
        ending = Path(value).suffix if isinstance(value, str) else ""
        return f"{kind}{ending}"

    return change


def _shorter(draw: random.Random, value: Any) -> Any:
    if isinstance(value, dict) and value:
        gone = draw.choice(list(value))
        return {key: item for key, item in value.items() if key != gone}
    return value[1:] if isinstance(value, list | str) else []


def _other_way(draw: random.Random, value: Any) -> Any:
    """The same in another type: a number as text, text as a number, a list as one text."""
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int | float):
        return Raw(json.dumps(str(value)))
    return json.dumps(value) if isinstance(value, dict | list) else len(str(value))


def _nested(depth: int) -> Change:
    return lambda draw, value: Raw("[" * depth + "]" * depth)


def _bomb(draw: random.Random, value: Any) -> Raw:
    lines = ["{a0: &b0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &b{i} [{', '.join([f'*b{i - 1}'] * 10)}]" for i in range(1, 10)]
    return Raw(", ".join(lines) + "}")


def _words(*words: Any) -> Change:
    return lambda draw, value: copy.deepcopy(draw.choice(words))


VALUES: dict[str, Change] = {
    "nothing": _words(None),
    "true": _words(True),
    "false": _words(False),
    "empty text": _words(""),
    "blank text": _words("   ", "\n"),
    "empty list": _words([]),
    "empty section": _words({}),
    "zero": _words(0),
    "minus one": _words(-1),
    "one": _words(1),
    "two": _words(2),
    "three": _words(3),
    "99": _words(99),
    "a fraction": _words(0.5),
    "a mixed number": _words(1.5),
    "a billion": _words(10**9),
    "a huge whole number": _words(10**30),
    "more digits than int() takes": _words(Raw("9" * 5000)),
    "1e30": _words(1e30),
    "1e308": _words(1e308),
    "1e-300": _words(1e-300),
    "not a number": _words(Raw(".nan")),
    "infinity": _words(Raw(".inf")),
    "less than infinity": _words(Raw("-.inf")),
    "a tenth": _scaled(0.1),
    "tenfold": _scaled(10),
    "a million times": _scaled(1e6),
    "negative": _scaled(-1),
    "a date": _words(Raw("2024-01-01")),
    "an octal": _words(Raw("0o17"), Raw("007"), Raw("1_000"), Raw("0x1F")),
    "a long text": _words("x" * 100_000),
    "NUL": _words("a\0b.csv", "\0"),
    "a long name": lambda draw, value: _place("n" * 300)(draw, value),
    "a stranger's home": _words("~nosuchuser/x.csv"),
    "a parent": _words("..", "/", "/proc", "/proc/self/mem"),
    "a package": _words("package:__main__", "package:", "package:os", "package:..",
                        "package:perdure"),
    "half a character": _words(Raw(r'"\ud83d"')),
    "an emoji": _words(Raw(r'"\ud83d\ude00"'), "😀"),
    "control characters": _words("\x1b]0;owned\x07\x1b[2J", "\u202eabc", "a\u2028b", "a\x85b"),
    "a template": _words("{text", "{}", "{0}", "{text!r:>9999999999}", "{{x}}", "{a.b[c]}"),
    "a pattern": _words("(((((", "[z-a]", "*", "a{9999999}"),
    "jinja": _words("{% for i in range(10**9) %}x{% endfor %}", "{{ 'x' * 3000000000 }}", "{{",
                    "{%"),
    "a special token": _words("<|im_end|>\n<|im_start|>assistant\nX", "<|im_end|>"),
    "own code": _words("mine:words", "mine:nothing", "no_module:f", "mine.py:words", ":",
                       "a:b:c"),
    "in a list": lambda draw, value: [value],
    "in a section": lambda draw, value: {"a": value},
    "twice": lambda draw, value: [*value, *value] if isinstance(value, list) else [value, value],
    "less of it": _shorter,
    "in another type": _other_way,
    "odd items": _words([1, None, {"a": []}], [[]], [True], [1e400], {"": 1}, {"a": {"b": None}}),
    "many items": lambda draw, value: [f"item {i}" for i in range(5000)],
    "a long key": lambda draw, value: {"k" * 5000: value},
    "300 brackets": _nested(300),
    "5000 brackets": _nested(5000),
    "an alias bomb": _bomb,
    "a Python object": _words(*map(Raw, (
        "!!python/object:os.system {}", "!!python/name:os.system ''", "!unknown x", "!!binary x",
        "!!set {a}", "!!int x", "!!timestamp x", "!!omap [a: 1]"))),
    "a pipe": _place("pipe"),
    "a loop of links": _place("loop"),
    "a device": _place("zero"),
    "a folder": _place("dir"),
    "upper case": lambda draw, value: value.upper() if isinstance(value, str) else "UPPER",
    "one letter less": lambda draw, value: value[:-1] if isinstance(value, str) else "tru",
}  # fmt: skip
"""What a key's value becomes, by the kind of change."""
AROUND = (
    "missing", "misspelt", "a number as key", "a key of nothing", "written twice",
    "many keys beside it", "merged with itself", "as another key", "another recipe's",
)  # fmt: skip
"""Changes of the section around a key."""
KINDS = (*VALUES, *AROUND)


def cases(recipes: dict[str, Recipe]) -> list[Case]:
    """Every kind of change at every key, of each key at its first place in any of the recipes."""
    first: dict[str, tuple[str, Path_]] = {}
    for name, recipe in recipes.items():
        for place in whole_recipes.places(recipe):
            first.setdefault(whole_recipes.key_of(recipe, place), (name, place))
    return [Case(name, kind, place) for name, place in first.values() for kind in KINDS]


def sample(every: list[Case], count: int, seed: int) -> list[Case]:
    """Cases of which each kind comes about as often as the others, as does each place."""
    draw = random.Random(seed)
    kinds: dict[str, list[Case]] = {kind: [] for kind in KINDS}
    for case in draw.sample(every, len(every)):
        kinds[case.kind].append(case)
    seen: Counter[Any] = Counter()  # by base and place
    found: list[Case] = []
    while len(found) < min(count, len(every)):
        for left in kinds.values():
            if left and len(found) < count:
                near = range(min(60, len(left)))
                least = min(near, key=lambda i, left=left: seen[left[i][::2]])
                case = left.pop(least)
                seen[case[::2]] += 1
                found.append(case)
    return found


def mutated(recipes: dict[str, Recipe], case: Case) -> str:
    """The text of a recipe with one change."""
    # Strings seed a generator alike in any process, and tuples do not.
    draw = random.Random(str(case))
    recipe = copy.deepcopy(recipes[case.base])
    holder: Any = recipe
    for part in case.place[:-1]:
        holder = holder[part]
    key = case.place[-1]
    if case.kind in VALUES:
        holder[key] = VALUES[case.kind](draw, holder[key])
    elif case.kind == "missing":
        del holder[key]
    elif case.kind in ("as another key", "another recipe's"):
        other = recipes[draw.choice(list(recipes))] if case.kind != "as another key" else recipe
        node: Any = copy.deepcopy(other)
        for part in draw.choice(list(whole_recipes.places(other))):
            node = node[part]
        holder[key] = node
    elif isinstance(holder, dict):
        _beside(draw, holder, key, case.kind)
    else:
        holder.append(holder[key])
    return text_of(recipe)


def _beside(draw: random.Random, holder: dict[Any, Any], key: Any, kind: str) -> None:
    if kind == "misspelt":
        holder[key[:-1] or "k"] = holder.pop(key)
    elif kind == "a number as key":
        holder[draw.choice([1, 1.5, Raw(".nan"), Raw("true"), Raw("2024-01-01")])] = holder[key]
    elif kind == "a key of nothing":
        holder[draw.choice([Raw("null"), "", Raw("[a]"), Raw("{a: 1}")])] = holder[key]
    elif kind == "written twice":
        holder[Raw(json.dumps(key))] = holder[key]
    elif kind == "many keys beside it":
        holder.update({f"{key}{i}": i for i in range(2000)})
    else:
        holder[key] = Raw(f"&a {{<<: *a, x: {text_of(holder[key])}}}")


def text_of(value: Any, depth: int = 0) -> str:
    """A value as YAML, each key of the upper sections on a line of its own."""
    between = ",\n" if depth < 3 else ", "
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        parts = (f"{text_of(k, 9)}: {text_of(v, depth + 1)}" for k, v in value.items())
        return "{" + between.join(parts) + "}"
    if isinstance(value, list | tuple):
        return "[" + between.join(text_of(item, depth + 1) for item in value) + "]"
    if isinstance(value, float) and not math.isfinite(value):
        return ".nan" if math.isnan(value) else ".inf" if value > 0 else "-.inf"
    return json.dumps(value, ensure_ascii=False)


# --- to try them


class TooSlowError(BaseException):
    """More than `SECONDS` of CPU time or `WALL` of time; no code of ours catches it."""


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        how: "refused", "learned" or "accepted" (right or not finite), or what is wrong:
            "traceback", "slow", "long" (a message), "failed" (a run of what was accepted, which
            ended in a message or without having learned).
        told: the message or the traceback.
        seconds: CPU time of the check.
        code: the exit code.
    """

    how: str
    told: str = ""
    seconds: float = 0.0
    code: int = 0

    @property
    def wrong(self) -> bool:
        return self.how in ("traceback", "slow", "long", "failed")


@contextmanager
def _limited(seconds: float) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TooSlowError

    kept = [signal.signal(s, stop) for s in (signal.SIGPROF, signal.SIGALRM)]
    signal.setitimer(signal.ITIMER_PROF, seconds)
    signal.setitimer(signal.ITIMER_REAL, WALL * max(1.0, seconds / SECONDS))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        for number, handler in zip((signal.SIGPROF, signal.SIGALRM), kept, strict=True):
            signal.signal(number, handler)


def _command(words: list[str], seconds: float, codes: tuple[int, ...]) -> Outcome:
    """Run `perdure WORDS` in this process; `codes` are the exit codes that it may have."""
    from typer.testing import CliRunner

    from perdure.cli import app

    began = time.process_time()
    try:
        with _limited(seconds):
            result = CliRunner().invoke(app, words)
    except TooSlowError:
        return Outcome("slow", traceback.format_exc()[-3000:], time.process_time() - began)
    took = time.process_time() - began
    error = result.exception
    if error is not None and not isinstance(error, SystemExit):
        told = "".join(traceback.format_exception(error))[-3000:]
        return Outcome("slow" if isinstance(error, TooSlowError) else "traceback", told, took)
    if len(result.output) > LONGEST:
        return Outcome("long", f"{len(result.output):,}: {result.output[:500]}", took)
    code = result.exit_code
    if "Traceback" in result.output or code not in codes:
        return Outcome("traceback", f"{code}: {result.output[-2000:]}", took, code)
    refused = code or "the run would be refused" in result.output
    return Outcome("refused" if refused else "accepted", result.output, took, code)


def check(recipe: Path) -> Outcome:
    """`perdure run RECIPE --check`."""
    return _command(["run", str(recipe), "--check"], SECONDS, (0, 2))


def one_step(recipe: Path, more: Iterable[str] = ()) -> Outcome:
    """Learn each task for one step, in a folder beside the recipe that is removed again."""
    out = recipe.parent / "out"
    shutil.rmtree(out, ignore_errors=True)
    words = ["run", str(recipe), "--out", str(out), *more]
    found = _command(words, 20 * SECONDS, (0, 2, 4, 5))
    lacks = unlearned(out) if found.how == "accepted" else ""
    shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(recipe.parent / "wandb", ignore_errors=True)
    broken = found.how == "refused" and found.code == 5 and NOT_FINITE.search(found.told)
    if broken or (found.how == "accepted" and not lacks):
        return replace(found, how="learned")
    if lacks:
        return replace(found, how="failed", told=lacks)
    return found if found.how != "refused" else replace(found, how="failed")


NOT_FINITE = re.compile(r"is not finite|are not finite|gives NaN")
"""What the one failure says that no check can foresee; its exit code is 5."""


def unlearned(run: Path) -> str:
    """What a run that ended without a message did not do; "" if it learned and scored all."""
    if not (run / "finished").is_file():
        return "the run is not marked as finished"
    log, scores = (
        [json.loads(line) for line in (run / name).read_text("utf-8").split("\n") if line]
        if (run / name).is_file() else []
        for name in ("log.jsonl", "scores.jsonl")
    )  # fmt: skip
    tasks = json.loads((run / "stream.json").read_text("utf-8"))
    made = {line["after"] for line in log if line["step"] > 0 and math.isfinite(line["loss"])}
    for number, task in enumerate(tasks, 1):
        # A head of class means makes no step.
        means = rf"{re.escape(task['name'])}: (normalized )?prototypes of [1-9]\d* rows"
        placed = re.search(means, (run / "perdure.log").read_text("utf-8")) is not None
        if task.get("learn") != "none" and number not in made and not placed:
            return f"no step of task {number}, {task['name']}, was logged"
    last = [line for line in scores if line["kind"] == "task" and line["after"] == len(tasks)]
    if not last or not all(math.isfinite(line["score"]) for line in last):
        return "the last model has no score"
    return ""


def attempt(recipe: Path, learn: bool, more: Iterable[str] = ()) -> Outcome:
    """Check a recipe, and learn a step of what is accepted."""
    found = check(recipe)
    if found.how != "accepted" or not learn:
        return found
    ran = one_step(recipe, more)
    return ran if not ran.wrong else replace(ran, how="failed")


SHORT = ("train.max_steps=1", "scoring.max_test_rows=2")


def shortened(recipe: Recipe) -> list[str]:
    """What makes a run of a recipe one of one step a task."""
    return [*SHORT, "rl.max_steps=1"] if "rl" in recipe else list(SHORT)


@contextmanager
def quick() -> Iterator[None]:
    """This machine's speed is measured once, and no report is drawn."""
    import perdure.loop
    from perdure import models

    kept = models.measure_speed, perdure.loop.write_report
    models.measure_speed = functools.lru_cache(models.measure_speed)
    perdure.loop.write_report = lambda *_: None  # type: ignore[assignment]
    try:
        yield
    finally:
        models.measure_speed, perdure.loop.write_report = kept


@contextmanager
def folder_of(root: Path) -> Iterator[dict[str, Recipe]]:
    """The recipes, with their models and data in `root`, which is the current folder inside."""
    from class_runs import save_encoder

    from perdure.testing import save_tiny_model

    before = Path.cwd()
    decoder, encoder = save_tiny_model(root / "decoder"), save_encoder(root / "encoder")
    whole_recipes.write_data(root / "data")
    os.chdir(root / "data")
    try:
        with quick():
            yield whole_recipes.recipes(decoder, encoder)
    finally:
        os.chdir(before)


def forked(call: Callable[[], Outcome]) -> Outcome:
    """An outcome of a process of its own, which ends whatever happens in it."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            import resource

            pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
            most = pages * os.sysconf("SC_PAGE_SIZE") + MEMORY
            resource.setrlimit(resource.RLIMIT_AS, (most, most))
            os.close(read)
            found = call()
            with open(write, "w", encoding="utf-8") as file:
                file.write(json.dumps([found.how, found.told[-6000:], found.seconds, found.code]))
        finally:
            os._exit(0)
    os.close(write)
    with open(read, encoding="utf-8") as file:
        text = file.read()
    os.waitpid(child, 0)
    return Outcome(*json.loads(text)) if text else Outcome("traceback", "the process died")


def tries(
    recipes: dict[str, Recipe], share: float, seed: int, only: str = "", data: bool = False
) -> Iterator[tuple[str, Path, list[str]]]:
    """Write one mutated recipe, or file, after the other in the current folder.

    Yields: what is changed, the recipe's file, and what makes its run a short one.
    """
    file = Path("mutated.yaml")
    if not data:
        every = [case for case in cases(recipes) if only in str(case)]
        for case in sample(every, math.ceil(share * len(every)), seed):
            file.write_text(mutated(recipes, case), "utf-8", "surrogatepass")
            yield str(case), file, shortened(recipes[case.base])
        return
    recipes = mutated_data.more_recipes(recipes)
    named = [case for case in mutated_data.all_cases() if only in ": ".join(case)]
    for name, kind in random.Random(seed).sample(named, math.ceil(share * len(named))):
        recipe = recipes[mutated_data.FILES[name]]
        file.write_text(text_of(recipe), "utf-8")
        back = mutated_data.put(Path.cwd(), name, kind)
        try:
            yield f"{name}: {kind}", file, shortened(recipe)
        finally:
            back()


def main(
    share: float = 1.0, seed: int = 0, learn: bool = True, only: str = "", data: bool = False
) -> int:
    """Try a share of all cases and print what is wrong, and how many there were of each outcome."""
    import tempfile

    import slow_imports  # noqa: F401  # before anything is forked

    counts: Counter[str] = Counter()
    slowest = 0.0
    with tempfile.TemporaryDirectory() as root, folder_of(Path(root)) as recipes:
        for told, file, more in tries(recipes, share, seed, only, data):
            found = forked(functools.partial(attempt, file, learn, more))
            counts[found.how] += 1
            if found.how != "learned":
                slowest = max(slowest, found.seconds)
            if found.wrong:
                print(f"--- {told}: {found.how} ({found.seconds:.1f} s)\n{found.told[-1500:]}",
                      flush=True)  # fmt: skip
            if sum(counts.values()) % 100 == 0:
                print(dict(counts), file=sys.stderr, flush=True)
    print(f"{sum(counts.values())} cases: {dict(counts)}; slowest {slowest:.1f} s")
    return sum(counts[how] for how in ("traceback", "slow", "long", "failed"))


if __name__ == "__main__":
    from argparse import ArgumentParser

    parser = ArgumentParser(description=__doc__)
    parser.add_argument("share", type=float, nargs="?", default=1.0)
    parser.add_argument("seed", type=int, nargs="?", default=0)
    parser.add_argument("--no-run", action="store_true", help="only check")
    parser.add_argument("--only", default="", help="cases with this in their name")
    parser.add_argument("--data", action="store_true", help="data files instead of recipes")
    args = parser.parse_args()
    sys.stdout = io.TextIOWrapper(sys.stdout.buffer, "utf-8", errors="backslashreplace")
    sys.exit(bool(main(args.share, args.seed, not args.no_run, args.only, args.data)))
