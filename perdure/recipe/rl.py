"""The recipe's section `rl`: how tasks with `learn: rl` are learned from rewards."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal

from pydantic import Field

from perdure.recipe.mistakes import Mistake
from perdure.recipe.section import Section

Loss = Literal["dapo", "bnpo", "grpo", "dr_grpo"]


class RLConfig(Section):
    """Every setting of `trl.GRPOConfig` that changes what is learned; none is left to its default.

    Source: Shao et al. 2024 (GRPO), equation 3; Hu 2025 (REINFORCE++).
    """

    rewards: list[str | dict[str, Any]] = Field(
        description="what a completion earns: names, or {name: ..., weight: ..., option: ...}"
    )
    algorithm: Literal["grpo", "reinforce++"] = Field(
        "grpo", description="grpo: against its group's mean; reinforce++: against the whole batch"
    )
    group: int = Field(8, gt=1, description="completions of a prompt")
    temperature: float = Field(1.0, gt=0, description="that completions are sampled at")
    top_p: float = Field(1.0, gt=0, le=1, description="share of probability that is sampled from")
    top_k: int = Field(0, ge=0, description="most likely tokens that are sampled from; 0: all")
    scale: Literal["group", "batch", "none"] = Field(
        "group", description="whose standard deviation an advantage is divided by"
    )
    loss: Loss = Field(
        "dapo",
        description="mean over the step's tokens (dapo), each micro-batch's (bnpo), each "
        "completion's own (grpo), or the longest allowed length (dr_grpo)",
    )
    clip: float = Field(0.2, gt=0, description="how far the ratio to the sampling policy counts")
    clip_high: float | None = Field(None, gt=0, description="the same upwards; else as clip")
    dual_clip: float | None = Field(
        None, gt=1, description="largest ratio that counts where the advantage is negative"
    )
    iterations: int = Field(1, gt=0, description="optimizer steps on the same completions")
    mask_truncated: bool = Field(
        False, description="leave completions out of the loss that were cut at max_new_tokens"
    )
    backend: Literal["transformers", "vllm"] = Field(
        "transformers", description="what writes the completions"
    )
    batch_size: int | None = Field(
        None, gt=0, description="completions per optimizer step; else as train"
    )
    micro_batch_size: int | None = Field(
        None, gt=0, description="completions per forward pass and process; else as train"
    )
    learning_rate: float | None = Field(None, gt=0, description="highest rate; else as train")
    max_steps: int | None = Field(None, gt=0, description="optimizer steps at most; else as train")
    epochs: float | None = Field(None, gt=0, description="passes over the prompts; else as train")

    def mistakes(self) -> Iterator[Mistake]:
        if not self.rewards:
            yield Mistake(("rewards",), "the list is empty", "for example [format, chrf]")
        if self.algorithm == "reinforce++" and self.scale != "group":
            what = "has no effect with algorithm: reinforce++, which divides by the batch's"
            yield Mistake(("scale",), what, "leave it out")
        if self.iterations == 1:
            for key, default in (("clip", 0.2), ("clip_high", None), ("dual_clip", None)):
                if getattr(self, key) != default:
                    what = "has no effect with iterations: 1, where the ratio is 1"
                    yield Mistake((key,), what, "leave it out")
        elif self.dual_clip is not None:
            key = "clip" if self.clip_high is None else "clip_high"
            most = 1 + (self.clip if self.clip_high is None else self.clip_high)
            if self.dual_clip < most:  # TRL would cut the ratio there whatever the advantage is
                what = f"is below 1 + {key}, {most:g}, where a positive advantage is clipped"
                yield Mistake(("dual_clip",), what, f"write {most:g} or more; usual is 3")

    def changes(self) -> dict[str, Any]:
        """The keys of `train` that are other for these tasks."""
        names = ("batch_size", "micro_batch_size", "learning_rate", "max_steps", "epochs")
        return {name: value for name in names if (value := getattr(self, name)) is not None}
