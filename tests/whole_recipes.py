"""Recipes on tiny data that are right and that together write out every key, for `mutations`."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

Recipe = dict[str, Any]
Path_ = tuple[str | int, ...]
CLASSES = ("red", "blue", "cold", "warm")
WORDS = ("xq", "zk", "vv", "jj")
TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>\\n' "
    "}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
QUIZ = {
    "task": "quiz", "dataset_path": "json", "dataset_kwargs": {"data_files": "quiz.jsonl"},
    "test_split": "train", "output_type": "multiple_choice", "doc_to_text": "{{question}}",
    "doc_to_choice": "{{choices}}", "doc_to_target": "{{gold}}", "metric_list": [{"metric": "acc"}],
}  # fmt: skip
REWARD = (
    "def words(samples):\n    return [min(1, len(s.completion.split()) / 9) for s in samples]\n"
)
TRAIN: Recipe = {"learning_rate": 1e-3, "batch_size": 4, "max_length": 256, "precision": "fp32"}
SMALL = {
    "buffer_size": 8, "rows": 4, "insert": 2, "samples": 4, "max_tokens": 16, "layers": 1,
    "warmup_epochs": 1,
}  # fmt: skip
"""Options of methods in place of defaults that are for larger data; of `layers` where it is one."""


def jsonl(*rows: Any) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def write_data(folder: Path) -> None:
    """All files that the recipes below name, and places that are no file to read."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random(0)
    texts = [f"{WORDS[i % 4]} said {i}{' word' * draw.randrange(4)}" for i in range(24)]
    rows = [(text, CLASSES[i % 4], f"g{i // 2}", f"may{i % 2}") for i, text in enumerate(texts)]
    cells = "".join(f'"{t}";{c};{g};{m}\n' for t, c, g, m in rows)
    answers = [{"prompt": f"say {i}", "answer": f"word {i}"} for i in range(16)]
    turns = [("user", "hello {}"), ("assistant", "yes {}"), ("user", "more {}"),
             ("assistant", "no {}")]  # fmt: skip
    marked = [
        {"tokens": f"Ann{i} works for Acme{i} now".split(), "head": [0, 1], "tail": [3, 4],
         "label": CLASSES[i % 4], "note": None} for i in range(24)
    ]  # fmt: skip
    quiz = {"question": "What swims?", "choices": ["a stone", "a trout"], "gold": 1, "passage": "p"}
    files = {
        "colour.csv": "said;colour;who;month\n" + cells,
        "colour.tsv": "said\tcolour\twho\tmonth\n" + cells.replace(";", "\t"),
        "faq.jsonl": jsonl(*answers),
        "chat.jsonl": jsonl(
            *({"messages": [{"role": r, "content": c.format(i)} for r, c in turns]}
              for i in range(12))
        ),
        "classes.jsonl": jsonl(*({"text": t, "label": c, "month": m} for t, c, _, m in rows)),
        "relations.jsonl": jsonl(*marked),
        "translations.jsonl": jsonl(
            *({"source": f"good day {i}", "target": f"guten Tag {i}", "domain": "talk",
               "reasoning": "a greeting"} for i in range(12))
        ),
        "en.txt": "".join(f"good day {i}\n" for i in range(12)),
        "de.txt": "".join(f"guten Tag {i}\n" for i in range(12)),
        "general.txt": "\n\n".join(f"General text {i} is of many things." for i in range(16)),
        "general.jsonl": jsonl(*({"body": f"Other text {i} of more things."} for i in range(16))),
        "quiz.jsonl": jsonl(*({**quiz, "question": f"What swims {i}?"} for i in range(6))),
        "quiz.yaml": json.dumps(QUIZ),
        "template.jinja": TEMPLATE,
        "mine.py": REWARD,
        "hub/rows.jsonl": jsonl(*answers),
        "folder/a.txt": "a",
    }  # fmt: skip
    for name, text in files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(text, "utf-8")
    _write_parquet(folder / "classes.parquet", rows)
    for ending in (".csv", ".tsv", ".jsonl", ".parquet", ".txt", ".yaml", ".py", ".jinja", ""):
        os.mkfifo(folder / f"pipe{ending}")
        (folder / f"loop{ending}").symlink_to(f"loop{ending}")
        (folder / f"zero{ending}").symlink_to("/dev/zero")
        (folder / f"dir{ending}").mkdir()


def _write_parquet(path: Path, rows: list[tuple[str, str, str, str]]) -> None:
    import pyarrow
    from pyarrow import parquet

    texts, labels, groups, months = zip(*rows, strict=True)
    table = {"text": texts, "label": labels, "who": groups, "month": months}
    parquet.write_table(pyarrow.table({k: list(v) for k, v in table.items()}), path)


def recipes(decoder: Path, encoder: Path) -> dict[str, Recipe]:
    """Right recipes by name; None stands where a key is left at "not set"."""
    tasks, classes = _tasks(), _classes()
    small = {"path": str(decoder), "tuning": "full"}
    whole = {
        "tasks": {**_frame(small, tasks), **_top(decoder)},
        "hub": _hub(small),
        "translation": _frame(small, _translation()),
        "rl": {**_frame(small, _by_rewards()), **_rl(), "trust_remote_code": True},
        "classes": {**_frame(_body(encoder), classes), "scoring": {"probes": ["linear"]}},
        "relations": _frame({**_body(encoder), "pooling": "entity_starts", "template":
                             "{text} {head} {tail}"}, _relations()),
        "named": {**_frame(_body(encoder), _named()), "scoring": {"max_test_rows": 4}},
        "lm_eval": {**_frame(small, tasks), "trust_remote_code": True, "general": {
            "source": "none", "tasks": ["quiz.yaml"], "limit": 2, "num_fewshot": 1,
            "group": "passage"}},
    }  # fmt: skip
    for name, method in _methods():
        of_classes = name in ("seq_star", "lora_sequence")
        data = classes if of_classes else tasks
        adapters = {**small, "tuning": "lora", "lora": {"r": 4, "alpha": 8, "dropout": 0.0}}
        model = adapters if name in ("olora", "moelora", "lcia", "ema") else small
        if of_classes:
            tuning = {"tuning": "lora"} if name == "lora_sequence" else {}
            model = {**_body(encoder), **tuning}
        whole[f"method {name}"] = {**_frame(model, data), "method": method}
    return {name: json.loads(json.dumps(recipe)) for name, recipe in whole.items()}


def _frame(model: Recipe, stream: Recipe) -> Recipe:
    frame = {"model": dict(model), "stream": stream, "method": "sequential", "train": dict(TRAIN),
             "gauges": {"every": 0}}  # fmt: skip
    if "tasks" in stream:
        frame["general"] = {"source": "general.txt", "replay_rows": 4, "held_out_rows": 3,
                            "max_tokens": 24}  # fmt: skip
    return frame


def _top(decoder: Path) -> Recipe:
    """Every key of the sections that any recipe has."""
    return {
        "name": "whole", "seed": 3, "order_matters": True, "trust_remote_code": False,
        "model": {
            "path": str(decoder), "revision": None, "tuning": "lora",
            "lora": {"r": 4, "alpha": 8, "dropout": 0.1, "target_modules": ["q_proj", "v_proj"]},
            "attention": "eager", "chat_template": "template.jinja",
            "chat_template_kwargs": {"enable_thinking": False}, "max_prompt_length": 64,
            "fsdp_size": 0,
        },
        "general": {
            "source": "general.txt", "encoding": "utf-8", "held_out_source": "general.jsonl",
            "column": "body", "replay_rows": 6, "held_out_rows": 4, "max_tokens": 24,
        },
        "method": [{"name": "replay", "buffer_size": 8}, {"name": "ema", "decay": 0.9}],
        "train": {
            "learning_rate": 1e-3, "epochs": 1, "max_steps": 2, "batch_size": 4,
            "micro_batch_size": 2, "max_length": 128, "warmup": 0.1, "schedule": "linear",
            "weight_decay": 0.01, "max_grad_norm": 1.0, "precision": "fp32",
            "optimizer": "adamw_torch", "gradient_checkpointing": False, "log_steps": 1,
            "report_to": [],
        },
        "scoring": {"batch_size": 4, "max_test_rows": 4, "max_drop": 0.05, "max_loss_rise": 0.1,
                    "probes": []},
        "gauges": {"every": 1, "texts": 2, "rows": 2},
        "stop_when": {"flip_share": 0.9, "kl": 9.0, "action": "stop"},
        "save": {"tasks": "last", "steps": 1, "minutes": 5},
    }  # fmt: skip


def _tasks() -> Recipe:
    colour: Recipe = {
        "name": "colour", "format": "labels", "train": "colour.csv", "test": "colour.tsv",
        "validation": None, "columns": {"text": "{month}: {said}", "label": "colour"},
        "group": "who", "delimiter": ";", "encoding": "utf-8", "instruction": "Which colour?",
        "labels": ["red", "blue", "cold", "fire"], "label_names": {"warm": "fire"},
        "metric": "label_likelihood", "max_new_tokens": 4, "max_train_rows": 12,
        "max_validation_rows": 4, "max_test_rows": 6, "validation_share": 0.2, "learn": "sft",
    }  # fmt: skip
    colour["delimiter"] = None  # the .tsv has another
    chat = {"name": "chat", "format": "chat", "train": "chat.jsonl", "train_on": "all",
            "test_share": 0.3, "metric": "perplexity"}  # fmt: skip
    return {"scenario": "domain-incremental", "order": ["chat", "colour"], "tasks": [colour, chat],
            "name": None, "folder": None, "data": None}  # fmt: skip


def _hub(model: Recipe) -> Recipe:
    task = {"name": "faq", "dataset": "hub", "subset": "default", "format": "prompt",
            "train": "train", "metric": "exact_match", "max_new_tokens": 4,
            "columns": {"prompt": "prompt"}, "delimiter": None}  # fmt: skip
    general = {"source": "hub", "subset": "default", "split": "train", "column": "prompt",
               "replay_rows": 2, "held_out_rows": 2}  # fmt: skip
    return {**_frame(model, {"tasks": [task]}), "general": general}


def _translation() -> Recipe:
    lines = {"name": "lines", "format": "translation", "direction": "en-de", "metric": "chrf",
             "train": {"source": "en.txt", "target": "de.txt"}, "max_new_tokens": 4,
             "instruction": "Translate: {source}"}  # fmt: skip
    tagged = {"name": "tagged", "format": "translation", "direction": "en-de", "answer": "tagged",
              "prefill": "<think>", "train": "translations.jsonl", "max_new_tokens": 4,
              "columns": {"domain": "domain"}}  # fmt: skip
    more = {"name": "more", "format": "translation", "direction": "en-de", "test_of": "lines",
            "train": {"source": "en.txt", "target": "de.txt"}, "metric": "chrf",
            "max_new_tokens": 4}  # fmt: skip
    bare = {"name": "bare", "format": "translation", "direction": "en-de", "learn": "none",
            "test": "translations.jsonl", "max_new_tokens": 4}  # fmt: skip
    return {"tasks": [lines, tagged, more, bare]}


def _by_rewards() -> Recipe:
    task = {"format": "translation", "direction": "en-de", "train": "translations.jsonl",
            "max_new_tokens": 6, "metric": "chrf", "max_test_rows": 2}  # fmt: skip
    until = {"reach": {"chrf": [0.0, 0.9], "format": 0.0}, "every": 1, "rows": 2}
    return {"tasks": [{**task, "name": "warm", "until": until},
                      {**task, "name": "by rewards", "learn": "rl"}]}  # fmt: skip


def _rl() -> Recipe:
    from perdure.rewards import registry

    listed = [
        {"name": name, **registry.load(name).Config().model_dump(mode="json")}
        for name in registry.built_in()
    ]
    section = {
        "rewards": [*listed, "mine:words"], "algorithm": "grpo", "group": 2, "temperature": 1.0,
        "top_p": 1.0, "top_k": 0, "scale": "group", "loss": "dapo", "clip": 0.2, "clip_high": 0.3,
        "dual_clip": 3.0, "iterations": 2, "mask_truncated": False, "backend": "transformers",
        "batch_size": 4, "micro_batch_size": 4, "learning_rate": 1e-3, "max_steps": 2, "epochs": 1,
    }  # fmt: skip
    section["rewards"][0]["weight"] = 0.4
    return {"rl": section}


def _body(encoder: Path) -> Recipe:
    return {"path": str(encoder), "pooling": "mean", "truncate": "right",
            "template": "It says: {text}", "head": {
        "type": "cosine", "scale": 2.0, "learn_scale": True, "preallocate": 0,
        "learning_rate": 1e-2, "weight_decay": 0.01}}  # fmt: skip


def _classes() -> Recipe:
    return {"data": {
        "name": "data", "format": "classes", "train": "classes.parquet", "validation": None,
        "test": None, "columns": {"text": "text"}, "group": "who", "tasks": 2, "by": None,
        "task": "part", "order": "frequency", "order_seed": None, "repeat": False,
        "rows_per_class": 4, "dev_from": "train", "fix_label_names": True, "no_class": "warm",
        "validation_share": 0.2, "test_share": 0.2, "max_test_rows": 6, "metric": None,
        "labels": None, "label_names": None, "learn": "sft", "dataset": None,
        "subset": None, "until": None, "test_of": None, "delimiter": None, "encoding": None,
        "instruction": None, "direction": None, "answer": "plain", "prefill": "",
        "max_new_tokens": 32, "max_train_rows": None, "max_validation_rows": None,
        "train_on": "last"}}  # fmt: skip


def _relations() -> Recipe:
    tasks = [["red", "blue"], ["cold", "warm"]]
    return {"data": {"format": "relations", "train": "relations.jsonl", "tasks": tasks,
                     "columns": {"label": "label"}}}  # fmt: skip


def _named() -> Recipe:
    return {"name": "intents", "folder": None}


def _methods() -> Iterator[tuple[str, Recipe]]:
    """Each method with all its options: as they are, or `SMALL`."""
    from perdure.methods import registry

    for name in registry.names():
        options = registry.load(name).Config().model_dump(mode="json")
        for key, value in SMALL.items():
            plain = isinstance(options.get(key, ""), int | None)
            if plain and (name, key) != ("gere_official", "insert"):  # of mix: insert alone
                options[key] = value
        yield name, {"name": name, **options}


# --- the keys there are


def schema_keys() -> set[str]:
    """Every key of a recipe, of each method and of each reward, as "section.key"."""
    from perdure.methods import registry
    from perdure.recipe.schema import Recipe as Whole
    from perdure.rewards import registry as rewards

    found = set(_fields(Whole))
    for name in registry.names():
        found |= {f"{name}: {key}" for key in registry.load(name).Config.model_fields}
    for name in rewards.built_in():
        found |= {f"{name}: {key}" for key in rewards.load(name).Config.model_fields}
    return found


def _fields(model: type[BaseModel], before: str = "") -> Iterator[str]:
    from perdure.recipe.mistakes import _section_in  # what it holds, by its type

    for name, field in model.model_fields.items():
        yield f"{before}{name}"
        inner = _section_in(field.annotation)
        if inner is not None and name != "method":
            yield from _fields(inner, f"{before}{name}.")


def places(data: Any, at: Path_ = ()) -> Iterator[Path_]:
    """The path of every key and item in a recipe."""
    inner = data.items() if isinstance(data, dict) else enumerate(data)
    for key, value in inner:
        yield (*at, key)
        if isinstance(value, dict | list):
            yield from places(value, (*at, key))


def key_of(recipe: Recipe, place: Path_) -> str:
    """The name by which `schema_keys` knows the key at a place."""
    node: Any = recipe
    for depth, part in enumerate(place):
        holder, node = node, node[part]
        listed = depth > 0 and isinstance(holder, dict) and "name" in holder
        if listed and holder is not recipe and place[0] == "method" and part != "name":
            return f"{holder['name']}: {part}"
        if listed and place[:2] == ("rl", "rewards") and part not in ("name", "weight"):
            return f"{holder['name']}: {part}"
    return ".".join(str(part) for part in place if isinstance(part, str))
