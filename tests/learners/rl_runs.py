"""Small runs of tasks with `learn: rl` on the tiny random model; nothing here is about learning."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NAMES = ("one", "two")


def write_recipe(folder: Path, model: Path, **changes: Any) -> Path:
    """A task by reinforcement and one supervised; `changes` are keys like `rl__group`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in NAMES:
        rows = [{"prompt": f"say {name} {i}", "answer": f"word {i}"} for i in range(12)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"max_test_rows": 4, "metric": "chrf"}
    recipe: dict[str, Any] = {
        "model": {"path": str(model)},
        "gauges": {"every": 0},
        "stream": {
            "tasks": [
                {**task, "name": "one", "train": "one.jsonl", "learn": "rl", "max_new_tokens": 8},
                {**task, "name": "two", "train": "two.jsonl"},
            ]
        },
        "method": "sequential",
        "train": {"batch_size": 8, "learning_rate": 1e-3, "precision": "fp32", "max_steps": 2},
        "rl": {"rewards": ["chrf"], "group": 4, "max_steps": 4},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            recipe.setdefault(section, {})[name] = value
        else:
            recipe[section] = value
    path = folder / "recipe.yaml"
    path.write_text(json.dumps(recipe))
    return path


def fixed(self: Any, prompt_ids: Sequence[Sequence[int]], *_: Any, **__: Any) -> Any:
    """In place of sampling: completions that the prompt and their place in its group decide."""
    seen: dict[tuple[int, ...], int] = defaultdict(int)
    found = []
    for ids in prompt_ids:
        number = seen[tuple(ids)] = seen[tuple(ids)] + 1
        words = f"word {sum(ids) % 7} {'word ' * number}"
        written = self.judge.encoder.tokenizer(words, add_special_tokens=False)["input_ids"]
        found.append([*written[:7], min(self.judge.stops)])
    return found, None


def with_fixed_completions(recipe: str, out: str, folder: str) -> None:
    """Run a recipe, all completions being `fixed`; in a process of its own, or as one of several.

    Writes FOLDER/seen-RANK.pt: `gradients` of the last step, as the optimizer gets them, and what
    each of the process's own completions `earned`, with its tokens.
    """
    import torch
    from transformers import TrainerCallback

    import perdure
    from perdure.learners.rl import RLTrainer
    from perdure.processes import rank
    from perdure.run import Run

    seen: dict[str, Any] = {}
    train, judged = RLTrainer.train, RLTrainer._calculate_rewards

    class Keep(TrainerCallback):
        def on_pre_optimizer_step(self, *_: Any, model: Any = None, **__: Any) -> None:
            named = [(n.removeprefix("module."), p) for n, p in model.named_parameters()]
            seen["gradients"] = {n: p.grad.clone() for n, p in named if p.grad is not None}

    def kept(self: Any, *args: Any, **more: Any) -> Any:
        self.add_callback(Keep())
        return train(self, *args, **more)

    def noted(self: Any, inputs: Any, prompts: Any, completions: Any, ids: Any) -> Any:
        found = judged(self, inputs, prompts, completions, ids)
        first = self.accelerator.process_index * len(ids)
        own = found[first : first + len(ids), 0].tolist()
        seen["earned"] = list(zip(own, map(len, ids), strict=True))
        return found

    RLTrainer._generate_single_turn = fixed  # type: ignore[method-assign]
    RLTrainer.train = kept  # type: ignore[method-assign]
    RLTrainer._calculate_rewards = noted  # type: ignore[method-assign]
    read = perdure.load_recipe(recipe)
    perdure.learn(read, Run.create(out, read))
    torch.save(seen, f"{folder}/seen-{rank()}.pt")
