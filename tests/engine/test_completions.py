"""Methods on a `trl.GRPOTrainer`: completions are their labels, and a KL is scaled as TRL's own."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from grpo_trainers import grpo, length, nothing
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM, TrainerCallback

import perdure
from perdure.engine.completions import labelled_batch, step_counts, trained_tokens
from perdure.errors import UsageError
from perdure.protocol.batch import ForwardOutput

pytestmark = pytest.mark.train

BETA = 0.7


def lora() -> Any:
    from peft import LoraConfig

    return LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"])


def moved(model: Any) -> None:
    """Move what is trained off the reference, where each estimate of the KL is flat."""
    by = 0.3 if hasattr(model, "peft_config") else 0.03
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += by * torch.randn(parameter.shape, generator=generator)


class Keep(TrainerCallback):
    """Keeps the gradient of each step, as the optimizer gets it."""

    def __init__(self) -> None:
        self.steps: list[dict[str, torch.Tensor]] = []

    def on_pre_optimizer_step(self, *_: Any, model: Any = None, **__: Any) -> None:
        self.steps.append(
            {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        )


def gradients(trainer: Any, batches: list[Any], record: bool) -> list[dict[str, torch.Tensor]]:
    """Train, and give the gradient of each step; completions are recorded, or those of before.

    Completions are cut to unlike lengths, and none is left of one.
    """
    make, kept, before = trainer._generate_and_score_completions, Keep(), iter(list(batches))

    def completions(inputs: Any) -> Any:
        if record:
            found = make(inputs)
            for i, mask in enumerate(found["completion_mask"]):
                mask[(5 * i) % 8 :] = 0
            found["num_items_in_batch"] = found["completion_mask"].sum()
            batches.append(found)
        torch.manual_seed(0)  # they are shuffled next
        return dict(batches[-1] if record else next(before))

    trainer._generate_and_score_completions = completions
    trainer.add_callback(kept)
    moved(trainer.model)
    trainer.train()
    return kept.steps


def closest(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """The largest difference, over the largest entry."""
    assert ours.keys() == theirs.keys()
    largest = max(float(g.abs().max()) for g in theirs.values())
    assert largest > 1e-3, "nothing to compare"
    return max(float((ours[n] - g).abs().max()) for n, g in theirs.items()) / largest


KINDS = ("grpo", "bnpo", "dr_grpo", "cispo", "sapo", "vespo")
CASES: list[tuple[str, dict[str, Any]]] = [
    *[
        (tuning, {"gradient_accumulation_steps": a, "temperature": t})
        for tuning in ("full", "lora")
        for a in (1, 2)
        for t in (1.0, 0.8)
    ],
    *[("lora", {"gradient_accumulation_steps": 2, "loss_type": kind}) for kind in KINDS],
    ("lora", {"loss_type": "luspo", "importance_sampling_level": "sequence"}),
    # With the policy's own gradient, and off the policy that wrote them.
    ("full", {"reward": length, "gradient_accumulation_steps": 2, "loss_type": "grpo"}),
    ("lora", {"steps_per_generation": 2, "max_steps": 2}),
    ("lora", {"steps_per_generation": 2, "max_steps": 2, "use_bias_correction_kl": True}),
    ("lora", {"num_iterations": 2, "max_steps": 2, "loss_type": "bnpo"}),
]


@pytest.mark.parametrize(("tuning", "options"), CASES)
def test_the_kl_has_the_gradients_of_trls_own_beta(
    tiny_model_dir: Path, tiny: Any, tmp_path: Path, tuning: str, options: dict[str, Any]
) -> None:
    options = {"max_grad_norm": 0.0, "max_steps": 1, "reward": nothing, **options}
    if tuning == "lora":
        options["peft"] = lora()
    batches: list[Any] = []
    theirs = gradients(grpo(tiny, tmp_path / "trl", beta=BETA, **options), batches, True)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    base = {n: p.clone() for n, p in model.named_parameters()} if tuning == "full" else None
    by_ratio = options.pop("use_bias_correction_kl", False)
    trainer = grpo((model, tiny[1]), tmp_path / "ours", **options)
    names = {n for n, _ in trainer.model.named_parameters()}
    kl = {"name": "kl", "beta": BETA, "estimator": "k3_ratio" if by_ratio else "k3"}
    perdure.attach(trainer, kl, base=base)
    ours = gradients(trainer, batches, False)
    assert len(ours) == len(theirs) == options["max_steps"]
    for mine, own in zip(ours, theirs, strict=True):
        assert closest(mine, own) < 1e-5
    assert {n for n, _ in trainer.model.named_parameters()} == names  # and no adapter is added
    assert trainer.ref_model is None


@pytest.mark.parametrize("reference", ["base", "previous"])
def test_no_logits_are_made_and_no_second_model(
    tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reference: str
) -> None:
    """With TRL's tiles made smaller than the vocabulary of 512, nothing has a value for each token
    of the text and each word."""
    import trl.trainer.utils

    monkeypatch.setattr(trl.trainer.utils, "_CHUNKED_LOGPROB_CHUNK_SIZE", 128)
    trainer = grpo(tiny, tmp_path, peft=lora(), learning_rate=0.5)
    perdure.attach(trainer, {"name": "kl", "reference": reference, "beta": 1.0})
    model, words = trainer.model, len(tiny[1])
    frozen = trainer.session._frozen
    if reference == "base":  # the adapter is switched off
        assert not frozen
    else:
        assert set(frozen["previous"]) == {n for n, _ in model.named_parameters() if "lora" in n}
    shapes: list[tuple[int, ...]] = []

    class Shapes(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):  # type: ignore[no-untyped-def]
            found = func(*args, **(kwargs or {}))
            for one in found if isinstance(found, (tuple, list)) else [found]:
                if torch.is_tensor(one) and one.dim() and one.shape[-1] == words:
                    shapes.append(tuple(one.shape))
            return found

    ran: list[int] = []
    head = model.get_output_embeddings()
    head.register_forward_hook(lambda *_: ran.append(1))
    loss_of = trainer.compute_loss

    def watched(*args: Any, **kwargs: Any) -> Any:
        before = len(ran)
        with Shapes():
            found = loss_of(*args, **kwargs)
            found.backward(retain_graph=True)
        assert len(ran) == before, "the head ran"
        return found

    trainer.compute_loss = watched
    trainer.train()
    assert ran  # while completions were written
    hidden = model.config.hidden_size
    assert [s for s in shapes if s != (hidden, words)] == []  # the head's own weights, transposed


def test_a_batch_by_hand() -> None:
    inputs = {
        "prompt_ids": torch.tensor([[0, 5], [6, 7]]),
        "prompt_mask": torch.tensor([[0, 1], [1, 1]]),
        "completion_ids": torch.tensor([[8, 9, 0], [10, 11, 12]]),
        "completion_mask": torch.tensor([[1, 1, 0], [1, 1, 1]]),
        "tool_mask": torch.tensor([[1, 1, 1], [1, 0, 1]]),  # 11 is what a tool wrote
    }
    batch = labelled_batch(inputs)
    assert batch["input_ids"].tolist() == [[0, 5, 8, 9, 0], [6, 7, 10, 11, 12]]
    assert batch["attention_mask"].tolist() == [[0, 1, 1, 1, 0], [1, 1, 1, 1, 1]]
    assert batch["labels"].tolist() == [[-100, -100, 8, 9, -100], [-100, -100, 10, -100, 12]]
    seen = ForwardOutput(torch.nn.Linear(1, 1), batch)
    assert seen.labels.tolist() == [8, 9, 10, 12]  # in the order of the trained tokens
    assert inputs["completion_ids"][trained_tokens(inputs)].tolist() == [8, 9, 10, 12]


def counts(kind: str, **options: Any) -> Any:
    """Of two completions, of one and three tokens, in a step of two micro-batches."""
    mask = torch.tensor([[1, 0, 0], [1, 1, 1]])
    trainer = SimpleNamespace(
        loss_type=kind, current_gradient_accumulation_steps=2, max_completion_length=5,
        args=SimpleNamespace(steps_per_generation=4),
        accelerator=SimpleNamespace(num_processes=3), **options,
    )  # fmt: skip
    return step_counts(trainer, {"completion_mask": mask, "num_items_in_batch": torch.tensor(60)})


@pytest.mark.parametrize(
    ("kind", "mean"),
    [
        # Values 8, 1, 2, 3 of the four tokens. 60 tokens in four micro-batches of each process, so
        # 30 in a step; one of its 6 shares is seen
        ("dapo", 14 / 30 * 6),
        ("grpo", (8 + 2) / 2),
        ("bnpo", 14 / 4),
        ("dr_grpo", 14 / (2 * 5)),
        ("luspo", 14 / 2),
    ],
)
def test_means_over_tokens_by_hand(kind: str, mean: float) -> None:
    seen = ForwardOutput(torch.nn.Linear(1, 1), {}, counts(kind))
    assert float(seen.token_mean(torch.tensor([8.0, 1, 2, 3]))) == pytest.approx(mean)


def test_an_unknown_loss_type_is_told() -> None:
    with pytest.raises(UsageError, match="loss_type odd"):
        counts("odd")
