"""The trainer of a task with `learn: rl`: `trl.GRPOTrainer` on the task's prompts and rewards.

What TRL would decide by a default of its own is decided by the recipe (`rl`). Prompts are the
encoder's, to the token, as in supervised learning and scoring; rewards see a completion's own
tokens. Each optimizer step's completions are written by the weights before it, so that a run that
was killed goes on with the next generation batch and ends with the same weights.
"""

from __future__ import annotations

import copy
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from datasets import Dataset
from torch import Tensor
from trl import GRPOConfig, GRPOTrainer

from perdure.engine.batching import drawn_rows, epoch_rows, steps_of
from perdure.errors import RunError, UsageError, task_named
from perdure.files import write_atomic
from perdure.learners.reinforce import penalties, reinforce_advantages
from perdure.learners.rollouts import Judge, PromptSampler, differing
from perdure.learners.training import RatedTrainer, arguments
from perdure.models.adapters import old_name_unsaid
from perdure.models.anatomy import unwrapped
from perdure.models.generate import generating_with, stop_ids, stopping_at
from perdure.models.weights import evaluating
from perdure.protocol.method import name_of
from perdure.rewards import build

if TYPE_CHECKING:
    from perdure.models.chat import Encoder
    from perdure.protocol.step import Phase
    from perdure.recipe.rl import RLConfig
    from perdure.recipe.schema import Recipe
    from perdure.streams.task import Row, Task

MARKS = "rollouts.json"
"""In a checkpoint inside a task: what must be the same where it goes on."""
FLAT = 1e-8
"""Standard deviation of a group whose completions all earned the same."""
DEAD, PATIENCE = 0.6, 10
"""Groups without a difference in their rewards that are too many, as a share, for so many steps."""
MOSTLY = 0.5
"""Share of completions that are cut off from which on this is why nothing is earned."""
LOGGED = {
    "reward": "reward",
    "reward_std": "reward_std",
    "frac_reward_zero_std": "dead_groups",
    "completions/clipped_ratio": "truncated",
    "completions/mean_length": "length",
    "entropy": "entropy",
    "clip_ratio/region_mean": "clipped",
}
"""TRL's name of a figure, and ours after `rl/`."""


def spreads(rewards: Tensor, group: int) -> Tensor:
    """Standard deviation of the rewards within each group, (groups,), with n - 1.

    Args: rewards: (completions,), each `group` of them behind one another.
    """
    return rewards.double().view(-1, group).std(1)


class RLTrainer(RatedTrainer, GRPOTrainer):
    """See the module. `judge`, `prompts` and `order` are given before TRL's own set-up reads them.

    Args:
        judge: gives completions what they earn.
        settings: the recipe's.
        warn: is told, in one line, what the user should know.
    """

    def __init__(
        self,
        *,
        judge: Judge,
        settings: RLConfig,
        order: PromptSampler,
        warn: Callable[[str], None],
        **given: Any,
    ) -> None:
        self.judge, self.settings, self.order, self.warn = judge, settings, order, warn
        encoder = judge.encoder
        texts = judge.prompts
        self.ids = {
            text: encoder.prompt_ids(row) for text, row in zip(texts, judge.rows, strict=True)
        }
        rows = Dataset.from_dict({"prompt": texts, "row": list(range(len(texts)))})
        super().__init__(reward_funcs=judge.reward, train_dataset=rows, **given)
        self.eos_token_ids = sorted(judge.stops)
        if not self.use_vllm:
            self.generation_config.eos_token_id = self.eos_token_ids
        self.spent: dict[str, float] = defaultdict(float)
        self.begun: float | None = None  # of the step that is being made
        self.steps_spent = self.dead = 0
        self.earned: Tensor | None = None

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        return self.order

    def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
        return [list(self.ids[text]) for text in prompts], None, {}

    def _generate(self, prompts: list[str]) -> Any:
        begun = time.perf_counter()
        with self.accelerator.autocast(), self.sampling():
            found = super()._generate(prompts)
        self.spent["generation"] += time.perf_counter() - begun
        return found

    def _generate_single_turn(self, *args: Any, **kwargs: Any) -> Any:
        """Sampled is the policy itself, as in scores: without dropout, and by the recipe's settings
        alone, where `transformers` fills in what the model's own ones say of others (`min_p`)."""
        if self.use_vllm:
            return self._cut(*super()._generate_single_turn(*args, **kwargs))
        own, base = copy.deepcopy(self.generation_config), unwrapped(self.model)
        with (
            evaluating(self.model),
            generating_with(base, own),
            stopping_at(base, self.judge.encoder.end_ids),
        ):
            return self._cut(*super()._generate_single_turn(*args, **kwargs))

    def _cut(self, written: list[list[int]], log_probs: Any, *others: Any) -> Any:
        """Without what was written behind an end of several tokens, of which TRL knows nothing."""
        kept = [self.judge.cut(ids)[0] for ids in written]
        if log_probs is not None:
            log_probs = [own[: len(ids)] for own, ids in zip(log_probs, kept, strict=True)]
        return kept, log_probs, *others

    def _calculate_rewards(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> Tensor:
        begun = time.perf_counter()
        cut = [not self.judge.cut(ids)[1] for ids in completion_ids_list]
        self.truncated = torch.tensor(cut, device=self.accelerator.device)
        share = self.accelerator.gather(self.truncated).float().mean()
        self._metrics["train"]["completions/clipped_ratio"][-1] = float(share)
        given = (inputs, prompts, completions, completion_ids_list)
        found: Tensor = super()._calculate_rewards(*given)
        self.spent["rewards"] += time.perf_counter() - begun
        self.earned = found[:, 0]
        return found

    def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
        with old_name_unsaid():
            found: dict[str, Any] = super()._generate_and_score_completions(inputs)
        if self.settings.mask_truncated:
            found["completion_mask"] *= ~self.truncated.unsqueeze(1)
            tokens = found["completion_mask"].sum()
            found["num_items_in_batch"] = self.accelerator.gather(tokens).sum()
        if self.settings.algorithm == "reinforce++" and self.earned is not None:
            rank, mine = self.accelerator.process_index, len(found["advantages"])
            # In fp64: whitened values cancel in the gradient, which processes must agree on.
            found["advantages"] = reinforce_advantages(
                self.earned[rank * mine : (rank + 1) * mine].double(),
                found["completion_mask"],
                penalties(self, found),
                total=lambda values: self.accelerator.reduce(values, reduction="sum"),
            ).to(self.earned.dtype)
        if self.earned is not None:
            self._look_for_dead_groups(self.earned)
        return found

    def _look_for_dead_groups(self, rewards: Tensor) -> None:
        """Note the spread within groups, and tell the user, once in a task, where most have none.

        TRL's figures of the same names are of the whole batch, one or both by `scale_rewards`.

        Args: rewards: (completions,), of all processes, group by group.
        """
        spread = spreads(rewards, self.num_generations)
        dead = float((spread < FLAT).double().mean())
        figures = self._metrics["train"]
        figures["reward_std"][-1], figures["frac_reward_zero_std"][-1] = float(spread.mean()), dead
        if self.settings.algorithm == "reinforce++":  # compares with the batch, not in the group
            dead = float(spreads(rewards, len(rewards)) < FLAT)
        self.dead = self.dead + 1 if dead > DEAD else 0
        if self.dead != PATIENCE:
            return
        earned, nothing = float(rewards.float().mean()), not bool((rewards != 0).any())
        cut = figures["completions/clipped_ratio"][-1] if nothing else 0.0
        remedy = "raise rl.temperature or rl.group, take harder prompts, or a reward of finer steps"
        if cut >= MOSTLY:
            remedy = (
                f"{cut:.0%} of the completions were cut off at max_new_tokens, so earn nothing: "
                "raise it, or warm the model up on answers that end before"
            )
        elif nothing:
            remedy = "no completion earns anything: warm the model up on answers in the wanted form"
            remedy += " first"
        self.warn(
            f"{task_named(self.session.task.name)}: in {PATIENCE} steps more than {DEAD:.0%} of "
            "the groups had equal rewards for all their completions, so that nothing is learned "
            f"from them (mean reward {earned:.3g}): {remedy}"
        )

    def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        self.session.count_tokens(inputs["prompt_mask"].sum() + inputs["completion_mask"].sum())
        return super().compute_loss(model, inputs, *args, **kwargs)

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        if self.begun is None:
            self.begun = time.perf_counter()
        return super().training_step(*args, **kwargs)

    def _maybe_log_save_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Called at the end of each step, after the optimizer's part."""
        if self.begun is not None:
            if torch.cuda.is_available():  # else the next step would wait for this one's kernels
                torch.cuda.synchronize()
            self.spent["step"] += time.perf_counter() - self.begun
            self.begun, self.steps_spent = None, self.steps_spent + 1
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        figures = self._metrics["train"]
        named: defaultdict[str, list[float]] = defaultdict(list)
        for name, values in figures.items():
            ours = LOGGED.get(name) or (name if name.startswith("reward/") else "")
            if ours:
                named[f"rl/{ours}"] = values
        self._metrics["train"] = named
        if self.steps_spent and "loss" in logs:
            seconds, steps = self.spent, self.steps_spent
            if reference := self.session.reference_time.take():
                seconds["reference"] = reference
            seconds["update"] = seconds.pop("step") - sum(seconds.values())
            logs |= {f"rl/seconds_{part}": s / steps for part, s in seconds.items()}
            self.spent, self.steps_spent = defaultdict(float), 0
        super().log(logs, *args, **kwargs)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """TRL writes one beside each checkpoint; a run has its report."""

    def marks(self) -> dict[str, Any]:
        """What must be the same where a run goes on: rewards, prompts and their order, and the
        models that methods compare with, by a hash of their weights too."""
        methods: Any = getattr(self, "methods", ())
        order = {name: getattr(self.order, name) for name in ("rows", "prompts", "group", "seed")}
        teachers = {name_of(m): m.requires.teacher for m in methods if m.requires.teacher}
        hashes = self.session.references
        return {**self.judge.marks(), "order": order, "reference": teachers, "hashes": hashes}

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        if self.is_world_process_zero():
            folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
            write_atomic(folder / MARKS, json.dumps(self.marks()) + "\n")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        path = Path(resume_from_checkpoint) / MARKS
        was, now = json.loads(path.read_text("utf-8")), self.marks()
        if told := list(differing(was, now)):
            raise RunError(
                f"{path.parent}: cannot be gone on from: {', '.join(told)}",
                [
                    "put back what it was, and the task goes on",
                    f"or delete the folder {path.parent.parent}: the task begins again",
                ],
            )
        super()._load_from_checkpoint(resume_from_checkpoint, model)


def rl_trainer(
    model: Any,
    encoder: Encoder,
    recipe: Recipe,
    task: Task,
    rows: Sequence[Row],
    phase: Phase,
    folder: Path,
    *,
    split: tuple[int, int],
    bf16: bool,
    note: Callable[[str], None],
    warn: Callable[[str], None],
) -> RLTrainer:
    """Make the trainer of a phase of a task with `learn: rl`, ready but for its methods.

    Args:
        recipe: with the task's own settings in `train` (`Recipe.of_task`).
        split: completions of a micro-batch on one process, and micro-batches in a step.
        note: is told what writes the completions; warn: what the user should know.
    """
    settings = recipe.rl
    assert settings is not None  # the recipe was checked: a task is learned by rl
    micro, accumulation = split
    prompts = drawn_rows(recipe, task.learn)
    args = arguments(
        recipe,
        folder,
        steps=steps_of(recipe, epoch_rows(recipe, task, len(rows)), phase.epochs),
        micro_batch=micro,
        accumulation=accumulation,
        bf16=bf16,
        of=GRPOConfig,
        gradient_checkpointing=recipe.train.gradient_checkpointing,
        num_generations=settings.group,
        steps_per_generation=accumulation,
        num_iterations=settings.iterations,
        max_completion_length=task.max_new_tokens,
        temperature=settings.temperature,
        top_p=settings.top_p,
        top_k=settings.top_k,
        repetition_penalty=1.0,
        beta=0.0,  # the method `kl` has it
        use_bias_correction_kl=False,
        epsilon=settings.clip,
        epsilon_high=settings.clip_high,
        delta=settings.dual_clip,
        loss_type=settings.loss,
        scale_rewards=settings.scale,
        importance_sampling_level="token",
        mask_truncated_completions=False,  # TRL knows ends of one token only: masked here
        disable_dropout=False,
        use_vllm=settings.backend == "vllm",
        log_completions=False,
    )
    stops = set(stop_ids(unwrapped(model), encoder))
    tokenizer = encoder.tokenizer
    if tokenizer.pad_token is None:  # TRL gives it one, which would be saved with the model
        tokenizer = copy.deepcopy(tokenizer)
    note(f"{task_named(task.name)}: completions are written by {settings.backend}")
    with settings_kept(unwrapped(model)):
        return RLTrainer(
            judge=Judge(build(settings.rewards, recipe.folder), encoder, task, rows, stops),
            settings=settings,
            order=PromptSampler(
                len(rows), prompts, settings.group, settings.iterations * accumulation, recipe.seed
            ),
            warn=warn,
            model=model,
            args=args,
            processing_class=tokenizer,
        )


@contextmanager
def settings_kept(model: Any) -> Iterator[None]:
    """Take back what TRL writes into a model's settings, which are saved with it."""
    text, written, tags = model.config.get_text_config(), model.generation_config, model.model_tags
    pad = (text.pad_token_id, written.pad_token_id)
    try:
        yield
    finally:
        text.pad_token_id, written.pad_token_id = pad
        model.model_tags = tags


def require_vllm(recipe: Recipe) -> None:
    """Refuse `rl.backend: vllm` where there is none that TRL takes: TRL itself only warns.

    Raises:
        UsageError: with the version that was found, and those that TRL takes.
    """
    from importlib.metadata import packages_distributions, requires, version

    from packaging.requirements import Requirement
    from packaging.version import Version

    needed = [Requirement(one) for one in requires("trl") or ()]
    takes = next((one.specifier for one in needed if one.name == "vllm"), None)
    names = packages_distributions().get("vllm", ())
    found = version("vllm" if "vllm" in names else names[0]) if names else None
    if found and (takes is None or takes.contains(Version(found).base_version)):  # as TRL compares
        return
    wrong = f"vllm is {found}, and trl {version('trl')} takes {takes}"
    raise UsageError(
        f"{recipe.place('rl.backend')}: {wrong if found else 'vllm is not installed'}",
        f'pip install "vllm{takes or ""}", or write backend: transformers',
    )
