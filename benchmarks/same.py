"""Does Perdure still compute what it computed before? Records of two checkouts, bit for bit.

    python benchmarks/same.py record OUT.json [--only PATTERN] [--root CHECKOUT] [--keep DIR]
    python benchmarks/same.py compare BEFORE.json AFTER.json [--only PATTERN] [--renamed]
    python benchmarks/same.py reopen DIR OUT.json [--only PATTERN] [--root CHECKOUT]

`record` learns two tiny tasks with a tiny model: each method, full and LoRA, in one and two
processes, straight and killed within task 2 and resumed; then every command with `--json`. Of a run
it keeps losses, scores, scored rows, what was printed, and hashes of all saved weights; the last
ones themselves go to OUT.safetensors. `compare` prints one line for each item that differs and
exits with 1 if any does. Items of one process must be equal bit for bit, items of two within 1e-6
(losses and scores relative, weights absolute). `--renamed` is for methods that got other names:
their losses are compared by size, their names and descriptions not at all. `reopen` has a checkout
show, score and resume the run directories that `record --keep DIR` left there (DIR must not move:
recipes hold absolute paths).

Commands run in forks of this process, which imports torch and its kin once and nothing of Perdure;
two items start new interpreters (`python -m perdure`, `torchrun`), to show that it is the same.
One process tree at a time, one thread each.
"""

from __future__ import annotations

import argparse
import fnmatch
import gc
import hashlib
import importlib
import itertools
import json
import math
import os
import random
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRL_EXPERIMENTAL_SILENCE": "1",
    "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "100",
}  # fmt: skip
PRELOAD = (
    "torch", "transformers.trainer", "transformers.models.llama.modeling_llama", "trl", "peft",
    "accelerate", "datasets", "safetensors.torch", "scipy.stats", "matplotlib.figure", "psutil",
    "matplotlib.backends.backend_svg", "rich.table", "pydantic", "ruamel.yaml", "jinja2", "typer",
    "sacrebleu", "rouge_score.rouge_scorer", "numpy",
)  # fmt: skip
TOLERANCE = 1e-6
LAUNCHERS = {
    "fresh": ["-m"],
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"],
}
COMMANDS = [
    "methods", "streams", "recipes", "run {sequential} --check",
    "run {gere} model.tuning=lora --check", "run {gere-official} --check",
    "run {sequential} --out run", "run {gere} --out gere", "resume run", "eval run",
    "eval run --after 0", "eval gere --tasks {other}", "compare run gere --out page.html",
    "report run", "audit {model} run --tasks {sequential} --max-kl 1", "audit {model} gere",
    "diagnose {model} run --tasks {sequential} --relearn 4 --shots 2",
    "repair {model} run --general {texts} --task {sequential} --max-task-loss 0.5 --out repaired",
    "repair {model} run --general {texts} --task {sequential} --steps 3 --out trained",
    "demo --quick --base {model} --out demo",
]  # fmt: skip
"""Each is run with `--json`; {words} stand for files."""
Spec = dict[str, Any]


def ways(name: str, old: Spec, new: Spec | None = None, **both: Any) -> tuple[Spec, ...]:
    """A method of GeRe's family as a name of its own, and as options of `gere`."""
    return {"name": name, **(new or {}), **both}, {"name": "gere", **old, **both}


HELD: Spec = {"weight": 1.0, "insert": 2}
KL = {"temperature": 1.5, "t2": True, "top": 8}
DYNAMIC = {"weight": "dynamic", "label_weight": 0.5, "samples": 4}
LAYERS = {"layers": [0, -1], "teacher": "previous"}
NO_FLOOR = {"noise_floor": 0.0}
UNOFFICIAL = {"scope": "row", "mix": "insert"}
"""What makes `gere_official` what `gere` was with options that are rare."""
TWO_PASS = {**UNOFFICIAL, "stats": "two_pass"}
"""And that with the margin."""
RENAMED: dict[str, tuple[Spec, ...]] = {
    "gere-kl": ways("gere_kl", {"loss": "kl"}, **HELD),
    "gere-l1": ways("gere_distance", {"loss": "l1"}, {"norm": "l1", **NO_FLOOR}, **HELD),
    "gere-l2": ways("gere_distance", {"loss": "l2"}, {"norm": "l2", **NO_FLOOR}, **HELD),
    "gere-label": ways("general_replay", {"loss": "label"}, insert=2),
    "gere-official": ways("gere_official", {"official": True}, weight=1.0),
    "gere-kl-options": ways(
        "gere_official", {}, {**UNOFFICIAL, "kl_mask": True}, loss="kl", weight_max=5.0,
        **{f"kl_{k}": v for k, v in KL.items()}, **DYNAMIC,
    ),
    "gere-kl-fixed": ways("gere_kl", {"loss": "kl", **{f"kl_{k}": v for k, v in KL.items()}}, KL),
    "gere-l1-options": ways(
        "gere_official", {}, UNOFFICIAL | NO_FLOOR, loss="l1", **DYNAMIC, **LAYERS
    ),
    "gere-label-options": ways(
        "general_replay", {"loss": "label"}, {}, label_weight=0.5, insert=3, samples=4,
        max_tokens=20,
    ),
    "gere-options": ways(
        "gere_official", {}, TWO_PASS, weight_max=50.0, k=0.5, noise_floor="measured",
        reduction="elements", **DYNAMIC, **LAYERS,
    ),
    "gere-tokens": ways("gere_official", {}, TWO_PASS, reduction="tokens"),
    "gere-official-kl": ways("gere_official", {"official": True}, loss="kl", weight="dynamic"),
    "gere-official-l2": ways(
        "gere_official", {"official": True}, NO_FLOOR, loss="l2", weight="dynamic"
    ),
}  # fmt: skip
"""Label -> spellings of the same method, newest first: the first that a checkout knows is used."""
METHODS: dict[str, tuple[Spec, ...]] = {
    **{name: ({"name": name},) for name in ("eaft", "joint", "lwf", "replay", "sequential")},
    "ewc": ({"name": "ewc", "lam": 5.0, "rows": 4},),
    "freeze": ({"name": "freeze", "layers": 1},),
    "rewind": ({"name": "rewind", "grid": [0.3, 0.6, 0.9]},),
    "gere": ({"name": "gere", **HELD},),
    **{label: RENAMED[label] for label in list(RENAMED)[:5]},
}
MICRO = {"train": {"micro_batch_size": 1}}
OWN = {"general": {"source": "none", "replay_rows": 0, "held_out_rows": 0}}
LORA_BF16 = {"model": {"tuning": "lora"}, "train": {"precision": "bf16"}}
BUDGET = {"gauges": {"every": 1}, "stop_when": {"kl": 0.02, "action": "rewind"}}
EXTRAS: dict[str, tuple[Sequence[Spec | str], Mapping[str, Mapping[str, Any]]]] = {
    "combined": (["ewc", "replay", "gere"], {}),
    "gere-tokens-micro": (["gere-tokens"], MICRO),
    "gere-own-texts": ([{"name": "gere", **HELD, "max_tokens": 24}], OWN),
    "gere-label-own-texts": (["gere-label"], OWN),
    **{label: ([label], {}) for label in list(RENAMED)[5:]},
    "gere-official-micro": (["gere-official"], MICRO),
    "gere-official-kl-micro": (["gere-official-kl"], MICRO),
    "gere-official-lora-bf16": (["gere-official"], LORA_BF16),
    "ewc-online": ([{"name": "ewc", "lam": 5.0, "rows": 4, "tasks": "online", "decay": 0.5}], {}),
    "replay-reservoir": ([{"name": "replay", "policy": "reservoir", "buffer_size": 8}], {}),
    "joint-current": ([{"name": "joint", "start": "current"}], {}),
    "stop-rewind": (["sequential"], BUDGET),
}  # fmt: skip
"""More runs, each straight and in one process: methods (a label, or options) and recipe keys."""
NAMING = re.compile(r"methods?|costs|method/.*|.*perdure_methods.*")
VOLATILE = re.compile(r"time|.*seconds(_left)?|memory_mb|tokens_per_second|commit|.*version")


def make_inputs(folder: Path) -> None:
    """A model of two layers, its tokenizer, two tasks and general text; all by fixed seeds."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    nouns = ["river", "stone", "lamp", "bread", "garden", "window", "paper", "north"]
    rng = random.Random(0)
    texts = [
        f"Text {i}: {' '.join(rng.choices(nouns, k=4 + i % 14))} was there." for i in range(16)
    ]
    (folder / "texts.txt").write_text("\n\n".join(texts))
    for split, count in (("train", 24), ("validation", 6), ("test", 10)):
        signs, answers = [], []
        for i in range(count):
            noun, sign = rng.choice(nouns), rng.randrange(2)
            text = f"{('zk', 'xq')[sign]} {noun}{' lamp' * rng.randrange(5)} {split} {i}"
            signs.append({"text": text, "label": ("red", "blue")[sign]})
            answers.append({"prompt": f"{split} {i}: say {noun} {noun}", "answer": f"the {noun}"})
        for name, rows in (("sign", signs), ("say", answers)):
            lines = "".join(json.dumps(row) + "\n" for row in rows)
            (folder / f"{name}-{split}.jsonl").write_text(lines)
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    bpe.train_from_iterator(texts, trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    ))  # fmt: skip
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=special[2], pad_token=special[0], model_max_length=256,
        additional_special_tokens=special, padding_side="left",
    )  # fmt: skip
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + "
        "'<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=256,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id, tie_word_embeddings=True,
    ))  # fmt: skip
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    for step in range(60):  # so that there is general ability to lose
        ids = tokenizer(texts[step % 16], return_tensors="pt")["input_ids"]
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")


def write_recipe(
    path: Path, methods: Sequence[Spec], changes: Mapping[str, Mapping[str, Any]]
) -> Path:
    """A recipe beside the data; `changes` are by section, "" is the top."""
    splits = ("train", "validation", "test")
    sign, say = ({split: f"{name}-{split}.jsonl" for split in splits} for name in ("sign", "say"))
    sign |= {"name": "sign", "format": "labels", "instruction": "Which colour?"}
    say |= {"name": "say", "format": "prompt", "metric": "chrf", "max_new_tokens": 4}
    recipe: dict[str, Any] = {
        "name": "same",
        "model": {"path": str(path.parent / "model")},
        "stream": {"tasks": [sign, say]},
        "general": {"source": "texts.txt", "replay_rows": 8, "held_out_rows": 4, "max_tokens": 32},
        "method": list(methods) if len(methods) > 1 else methods[0],
        "train": {"learning_rate": 5e-3, "batch_size": 4, "precision": "fp32"},
        "gauges": {"every": 2},
        "save": {"steps": 2},
    }
    for section, values in changes.items():
        (recipe.setdefault(section, {}) if section else recipe).update(values)
    path.write_text(json.dumps(recipe))  # JSON is YAML
    return path


# --- commands


def child(call: Callable[[], Any], folder: Path, output: Path, environment: dict[str, str]) -> int:
    """Fork a process that ends in `call()`; stdout and stderr go to OUTPUT.out and .err."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    code: Any = 1
    try:
        os.chdir(folder)
        os.environ.update(environment)
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(f"{output}.{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        call()
        code = 0
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 1)


def second_task(folder: Path) -> int:
    """Steps of task 2 that the log of the run directory FOLDER/run has."""
    file = folder / "run" / "log.jsonl"
    return file.read_text().count('"after": 2') if file.exists() else 0


def kill_self(event: str, args: tuple[Any, ...]) -> None:
    """Audit hook: die by SIGKILL as the log is opened to append to three steps of task 2.

    A kill from outside would come at another step each time.
    """
    if event != "open" or not str(args[0]).endswith("run/log.jsonl") or "a" not in str(args[1]):
        return
    if second_task(Path(str(args[0])).resolve().parents[1]) >= 3:
        os.kill(os.getpid(), signal.SIGKILL)


class Commands:
    """Runs `perdure` of one checkout, in forks of this process."""

    def __init__(self, root: Path, work: Path) -> None:
        self.root, self.work = str(root.resolve()), work
        folders = {"PYTHONPATH": self.root, "PERDURE_CACHE": f"{work}/cache"}
        self.environment = {**ENVIRONMENT, **folders, "HF_HOME": f"{work}/hub"}

    def __call__(
        self, folder: Path, *args: Any, processes: int = 1, kill: bool = False,
        launcher: Sequence[str] = (),
    ) -> dict[str, Any]:  # fmt: skip
        """Run `perdure ARGS` in `folder`; its exit code and what it printed, as JSON if it is."""
        folder.mkdir(parents=True, exist_ok=True)
        output = Path(tempfile.mkdtemp(dir=self.work)) / "output"

        def perdure() -> None:
            if launcher:
                os.execv(sys.executable, [sys.executable, *launcher, "perdure", *map(str, args)])
            if kill and os.environ.get("RANK", "0") == "0":
                sys.addaudithook(kill_self)
            sys.path.insert(0, self.root)
            sys.argv = ["perdure", *map(str, args)]
            cli = importlib.import_module("perdure.cli")
            assert str(cli.__file__).startswith(self.root), cli.__file__
            cli.main()

        environments = [self.environment]
        if processes > 1:  # as torchrun would
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                found = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(probe.getsockname()[1])}
            found |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", **self.environment}
            environments = [{**found, "RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
        pids = [child(perdure, folder, output, each) for each in environments]
        code = self.wait(pids, folder if kill else None)
        text, errors = (output.with_suffix(end).read_text() for end in (".out", ".err"))
        failed = code not in (0, 1, 3) or "Traceback" in errors
        if kill and code != -signal.SIGKILL:
            raise SystemExit(f"not killed, but ended with {code}: {errors[-3000:]}")
        if failed and not kill:
            print(f"exit code {code}: {args}: {errors.strip()[-600:]}", file=sys.stderr)
        try:
            printed = json.loads(text)
        except ValueError:
            printed = text
        told = {"exit": code, "printed": printed, "error": errors if failed else ""}
        return steady(told, self.work)

    def wait(self, pids: list[int], killed: Path | None) -> int:
        """The first one's exit code; if one of several dies, the others are killed after it."""
        codes: dict[int, int] = {}
        until = time.monotonic() + 300
        while len(codes) < len(pids):
            time.sleep(0.01)
            left = [pid for pid in pids if pid not in codes]
            for pid in left:
                if (done := os.waitpid(pid, os.WNOHANG))[0]:
                    codes[pid] = os.waitstatus_to_exitcode(done[1])
            # The hook may not see a log that is written another way: then from outside.
            late = time.monotonic() > until or (killed is not None and second_task(killed) >= 5)
            for pid in left if late or any(codes.values()) else ():
                if pid not in codes:
                    os.kill(pid, signal.SIGKILL)
        return codes[pids[0]]


def steady(data: Any, work: Path) -> Any:
    """JSON data without what differs from run to run: times, memory, versions, paths."""
    if isinstance(data, dict):
        return {k: steady(v, work) for k, v in data.items() if not VOLATILE.fullmatch(k)}
    if isinstance(data, list):
        return [steady(value, work) for value in data]
    if not isinstance(data, str):
        return data
    return re.sub(r"(WORK|/\S*)/(?=inputs/)", "", data.replace(str(work), "WORK"))


def fits(key: str, pattern: str) -> bool:
    return fnmatch.fnmatch(key, pattern) or pattern in key


# --- record


class Record:
    """Items by name, `METHOD/TUNING/PROCESSES/straight`, and the last weights of runs."""

    def __init__(self, out: Path, root: Path, only: str, work: Path) -> None:
        self.out, self.only, self.work, self.perdure = out, only, work, Commands(root, work)
        self.items: dict[str, Any] = {}
        self.weights: dict[str, Any] = {}
        self.started = time.monotonic()

    def add(self, key: str, printed: dict[str, Any], run: Path | None = None) -> None:
        """Keep what a command printed and, if it left a run directory or a model, what is there."""
        from safetensors.torch import load_file, save

        item: dict[str, Any] = {"command": printed}
        if run is not None:
            item |= {name: self.lines(run / f"{name}.jsonl") for name in ("log", "scores")}
            item["rows"] = {
                file.name: [[row.get(k) for k in ("id", "score", "prediction")]
                            for row in map(json.loads, file.read_text().splitlines())]
                for file in sorted(run.glob("items/*"))
            }  # fmt: skip
            item["weights"] = {}
            for file in sorted([*run.glob("checkpoints/*/**/*.safetensors"), *run.glob("model/*")]):
                if file.suffix == ".safetensors":
                    tensors = load_file(file)
                    digest = hashlib.sha256(save(tensors)).hexdigest()
                    item["weights"][str(file.relative_to(run))] = digest
                    if file.parts[-3:-1] != ("task-1", "model") and file.parent.name == "model":
                        self.weights |= {f"{key}:{name}": t for name, t in tensors.items()}
        self.items[key] = item
        print(f"{time.monotonic() - self.started:5.0f} s  {key}", flush=True)

    def lines(self, file: Path) -> list[Any]:
        """Lines of a run's JSON Lines file; of those that tell of the same the last."""
        last = {}
        for line in file.read_text().splitlines() if file.exists() else ():
            row = json.loads(line)
            last[tuple(row.get(k) for k in ("kind", "after", "task", "phase", "step"))] = row
        return steady(list(last.values()), self.work)

    def write(self) -> None:
        from safetensors.torch import save_file

        seconds = round(time.monotonic() - self.started)
        about = {"root": self.perdure.root, "seconds": seconds}
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.out.write_text(json.dumps({"about": about, "items": self.items}, indent=1))
        save_file(self.weights, self.out.with_suffix(".safetensors"))
        print(f"{len(self.items)} items in {seconds} s: {self.out}")


def spelled(specs: Sequence[Spec | str], known: Sequence[str]) -> list[Spec]:
    """The options of each method, a label in the first spelling that this checkout knows."""
    every = [(x,) if isinstance(x, dict) else METHODS.get(x) or RENAMED[x] for x in specs]
    return [next((way for way in each if way["name"] in known), each[-1]) for each in every]


def plans() -> Iterator[tuple[str, str, int, str, Sequence[Spec | str], Mapping[str, Any]]]:
    """Label, tuning, processes, way, methods and recipe keys of every run."""
    for label, tuning in itertools.product(METHODS, ("full", "lora")):
        for processes, way in itertools.product((1, 2), ("straight", "resumed")):
            yield label, tuning, processes, way, [label], {"model": {"tuning": tuning}}
    yield "gere", "full", 1, "fresh", ["gere"], {}
    yield "gere", "full", 2, "torchrun", ["gere"], {}
    for label, (methods, changes) in EXTRAS.items():
        yield label, "extra", 1, "straight", methods, changes


def record_runs(record: Record, inputs: Path, known: Sequence[str], keep: Path | None) -> None:
    perdure = record.perdure
    for label, tuning, processes, way, methods, changes in plans():
        key, name = f"{label}/{tuning}/{processes}/{way}", f"{label}-{tuning}"
        if not fits(key, record.only):
            continue
        folder, launcher = record.work / "runs" / key.replace("/", "-"), LAUNCHERS.get(way, ())
        recipe = write_recipe(inputs / f"{name}.yaml", spelled(methods, known), changes)
        printed = perdure(
            folder, "run", recipe, "--out", "run", "--json", kill=way == "resumed",
            processes=1 if launcher else processes, launcher=launcher,
        )  # fmt: skip
        if keep is not None and processes == 1 and not launcher:
            state = "interrupted" if way == "resumed" else "finished"
            shutil.copytree(folder / "run", keep / state / name)
        if way == "resumed":
            printed = perdure(folder, "resume", "run", "--json", processes=processes)
        record.add(key, printed, folder / "run")
        if launcher and (forked := record.items.get(f"{label}/{tuning}/{processes}/straight")):
            same = all(record.items[key][part] == forked[part] for part in ("log", "weights"))
            print(f"         {way} and forked: losses and weights {'equal' if same else 'DIFFER'}")
        shutil.rmtree(folder)


def record_commands(record: Record, inputs: Path, known: Sequence[str]) -> None:
    """What each command prints with `--json`, mostly on two runs of their own."""
    names = {"model": inputs / "model", "texts": inputs / "texts.txt"}
    for label in ("sequential", "gere", "gere-official"):
        path, changes = inputs / f"commands-{label}.yaml", {"train": {"epochs": 6}}
        names[label] = write_recipe(path, spelled([label], known), {**changes})
    names["other"] = inputs / "other.yaml"
    sign = {"name": "sign again", "format": "labels", "train": "sign-train.jsonl"}
    names["other"].write_text(json.dumps({"stream": {"tasks": [sign]}}))
    every = COMMANDS + [f"methods {name}" for name in known]
    wanted = [line for line in every if fits(f"commands/{line}", record.only)]
    for line in every:
        if line in wanted or (wanted and line.startswith("run") and "--out" in line):
            args = [str(names.get(word[1:-1], word)) for word in line.split()]
            folder = record.work / "commands"
            left = folder / args[args.index("--out") + 1] if "--out" in args else None
            record.add(f"commands/{line}", record.perdure(folder, *args, "--json"), left)


def reopen(record: Record, kept: Path) -> None:
    """Show, compare, score and go on with copies of the run directories in `kept`."""
    for run in sorted([*kept.glob("finished/*"), *kept.glob("interrupted/*")]):
        folder = record.work / run.parent.name / run.name
        shutil.copytree(run, folder / "run")
        for line in ("compare run --out compare.html", "resume run", "eval run"):
            key = f"{run.parent.name}/{run.name}/{line.split()[0]}"
            if fits(key, record.only):
                printed = record.perdure(folder, *line.split(), "--json")
                record.add(key, printed, folder / "run" if line == "resume run" else None)


# --- compare


def unnamed(data: Any) -> Any:
    """Without the names of methods and their descriptions; their losses by size."""
    if isinstance(data, list):
        return [unnamed(value) for value in data]
    if not isinstance(data, dict):
        return data
    losses = sorted(v for k, v in data.items() if k.startswith("method/"))
    left = {k: unnamed(v) for k, v in data.items() if not NAMING.fullmatch(k)}
    return {**left, "method/*": losses} if losses else left


def differences(a: Any, b: Any, tolerance: float, at: str = "") -> Iterator[str]:
    """Where two JSON values differ; numbers within the relative `tolerance` do not."""
    if isinstance(a, dict) and isinstance(b, dict):
        for key in sorted({*a, *b}):
            if key in a and key in b:
                yield from differences(a[key], b[key], tolerance, f"{at}/{key}")
            else:
                yield f"{at}/{key} is only in the {'first' if key in a else 'second'}"
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            yield from differences(x, y, tolerance, f"{at}/{i}")
    elif isinstance(a, list) and isinstance(b, list):
        yield f"{at} has {len(a)} entries, then {len(b)}"
    elif repr(a) != repr(b):
        numbers = isinstance(a, int | float) and isinstance(b, int | float)
        if not (numbers and math.isclose(a, b, rel_tol=tolerance, abs_tol=tolerance / 1000)):
            yield f"{at}: {str(a)[:70]!r} is now {str(b)[:70]!r}"


def compare(before: Path, after: Path, only: str, renamed: bool) -> int:
    """Print what differs, a line an item; 1 if anything does."""
    from safetensors.torch import load_file

    first, second = (json.loads(path.read_text())["items"] for path in (before, after))
    weights, others = (load_file(path.with_suffix(".safetensors")) for path in (before, after))
    moved: dict[str, float] = {}
    for name, tensor in weights.items():
        other = others.get(name)
        alike = other is not None and other.shape == tensor.shape and other.dtype == tensor.dtype
        gap = float((tensor.double() - other.double()).abs().max()) if alike else math.inf
        key = name.rpartition(":")[0]
        moved[key] = max(moved.get(key, 0.0), gap)
    keys = {key for key in (*first, *second) if fits(key, only)}
    keys -= {key for key in keys if renamed and "/methods" in key}
    bad = 0
    for key in sorted(keys):
        found = [f"only in {after if key in second else before}"]
        gap = moved.get(key, 0.0)
        if key in first and key in second:
            a, b = (unnamed(each[key]) if renamed else each[key] for each in (first, second))
            tolerance = TOLERANCE if key.split("/")[2:3] == ["2"] else 0.0
            if tolerance and gap <= tolerance:
                a, b = ({**each, "weights": None} for each in (a, b))
            found = list(differences(a, b, tolerance))
        if found:
            bad += 1
            print(f"{key}: {len(found)} differ, last weights by {gap:.2g}: {found[0]}")
    print(f"{len(keys)} items, {bad} differ")
    return 1 if bad else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("record", "reopen"):
        each = commands.add_parser(name)
        if name == "reopen":
            each.add_argument("kept", type=Path, metavar="DIR")
        each.add_argument("out", type=Path, metavar="OUT.json")
        each.add_argument("--root", type=Path, default=Path(__file__).resolve().parents[1])
        each.add_argument("--keep", type=Path, help="record: leave run directories in a new folder")
    each = commands.add_parser("compare")
    each.add_argument("before", type=Path)
    each.add_argument("after", type=Path)
    each.add_argument("--renamed", action="store_true", help="methods may have other names")
    for each in commands.choices.values():
        each.add_argument("--only", default="*", help="items that fit, or have this in their name")
    wanted = parser.parse_args()
    if wanted.command == "compare":
        return compare(wanted.before, wanted.after, wanted.only, wanted.renamed)
    os.environ.update(ENVIRONMENT)  # before torch is imported
    for module in PRELOAD:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # accelerate collects garbage often, which takes 0.3 s with all that is imported
    with tempfile.TemporaryDirectory(prefix="same-") as name:
        work = Path(name)
        record = Record(wanted.out, wanted.root, wanted.only, work)
        if wanted.command == "reopen":
            reopen(record, wanted.kept)
        else:
            keep = wanted.keep and wanted.keep.resolve()
            inputs = (keep or work) / "inputs"
            inputs.mkdir(parents=True)
            os.waitpid(child(lambda: make_inputs(inputs), work, work / "inputs", {}), 0)
            listed = record.perdure(work, "methods", "--json")["printed"]
            known = [method["name"] for method in listed]
            record_runs(record, inputs, known, keep)
            record_commands(record, inputs, known)
        record.write()
    return 0


if __name__ == "__main__":
    sys.exit(main())
