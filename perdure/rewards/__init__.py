"""What a completion earns in reinforcement: one file a reward, and how they are put together.

    rewards = build(["format", "chrf", "language", "copying", "length", "repetition"])
    scored = rewards([Sample(prompt, completion, truncated=False, row=row, answer="tagged")])
    scored.total        [1.2]
    scored.parts        {"format": [1.0], "chrf": [1.0], ...}

Nothing here knows of models, tokens or trainers.
"""

from perdure.rewards.base import Reward, RewardConfig, Sample
from perdure.rewards.compose import Rewards, Scored, build, mistakes
from perdure.rewards.of_recipe import check_rewards, recipe_mistakes, with_format

__all__ = [
    "Reward",
    "RewardConfig",
    "Rewards",
    "Sample",
    "Scored",
    "build",
    "check_rewards",
    "mistakes",
    "recipe_mistakes",
    "with_format",
]
