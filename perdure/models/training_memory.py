"""What training and scoring take of memory, and checkpoints of the disk, told from sizes alone."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from perdure.models.inspect import ModelFacts
    from perdure.recipe.schema import Recipe

OPTIMIZER_BYTES = {
    "adafactor": 0.1,
    "sgd": 0.0,
    "lion_32bit": 4.0,
    "lion_8bit": 1.0,
    "adamw_8bit": 2.0,
    "paged_adamw_8bit": 2.0,
    "adamw_torch_8bit": 2.0,
}
"""Optimizer state in bytes a trained number; 8 (two fp32 moments) for all others."""
PROCESS_MB = 600
"""A Python process with torch and transformers, before any model."""
TRAINED_BYTES = 4
"""A number that is trained is kept and saved in fp32, whatever the base is in."""


def training_mb(
    recipe: Recipe,
    facts: ModelFacts,
    micro: int,
    longest: int,
    precision: str,
) -> int:
    """Peak of one process in MiB; with `fsdp_size`, weights and their state are shared out.

    Args: micro: rows of a micro-batch; longest: tokens of the longest of them.
    """
    train = recipe.train
    frozen = facts.parameters - facts.trainable
    state = (
        frozen * (2 if precision == "bf16" else 4)
        + facts.trainable * (4 + 4 + OPTIMIZER_BYTES.get(train.optimizer, 8.0))
    ) / max(1, recipe.model.fsdp_size)
    width = 1 if precision == "bf16" else 2
    tokens = micro * longest
    layers = tokens * facts.hidden * 34 * width
    kept = layers + 4 * facts.layers * tokens * facts.hidden
    if not train.gradient_checkpointing:
        kept = layers * facts.layers
    logits = 3 * 4 * tokens * facts.vocab
    return round(PROCESS_MB + (state + kept + logits) / 2**20)


def scoring_mb(facts: ModelFacts, rows: int, longest: int, written: int, precision: str) -> int:
    """Peak of one process while it scores, in MiB: no gradients, one layer's activations.

    Args: rows: in a pass; longest: tokens of the longest; written: tokens that are generated.
    """
    width = 2 if precision == "bf16" else 4
    layer = rows * longest * facts.hidden * 17 * width
    cache = rows * (longest + written) * facts.layers * facts.cached * width if written else 0
    logits = 2 * 4 * rows * facts.vocab
    return round(PROCESS_MB + (facts.parameters * width + layer + cache + logits) / 2**20)


def copies_mb(recipe: Recipe, copies: int, trained: int) -> int:
    """So many fp32 copies of the trained numbers, in MiB a process: sharded as these are."""
    return round(copies * trained * 4 / 2**20 / max(1, recipe.model.fsdp_size))


def adapters_mb(count: int, numbers: int) -> float:
    """So many adapters of so many numbers each, in MiB, in memory or on the disk."""
    return count * numbers * TRAINED_BYTES / 2**20


def checkpoints_mb(recipe: Recipe, tasks: int, trained: int) -> float:
    """The checkpoints of so many tasks' ends on the disk, in MiB, and where `save` asks for it the
    two within a task. What methods keep there is not in it.

    Args: trained: numbers, of which a checkpoint holds all.
    """
    save = recipe.save
    # With `last`, the one before goes once the new one is whole.
    ends = tasks if save.tasks == "all" else min(tasks, 2)
    state = OPTIMIZER_BYTES.get(recipe.train.optimizer, 8.0)
    within = 2 * (TRAINED_BYTES + state) if (save.steps or save.minutes) and tasks else 0.0
    return (ends * TRAINED_BYTES + within) * trained / 2**20
