"""GeRe where there is a GPU: the compiled kernel, no wait for the device, accelerate's FSDP2."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from small_tasks import FIRST, GENERAL, general_method
from test_gere_dropin import GERE, SET_UPS, arguments, margins, rows

import perdure
from perdure.engine.attach import attach
from perdure.engine.sampler import EpochSampler
from perdure.engine.session import TaskSession
from perdure.engine.trainer import PerdureTrainer
from perdure.mechanisms import margin
from perdure.models.chat import Encoder
from perdure.protocol.batch import ROWS, HostRows, collate
from perdure.streams.task import GeneralText

pytestmark = [
    pytest.mark.train,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
]


@pytest.mark.parametrize("shape", [(4, 512, 2048), (3, 517, 576), (2, 7, 21), (1, 1, 4)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("floor", [0.0, 0.2])
def test_the_compiled_kernel_equals_plain_torch(
    shape: tuple[int, int, int], dtype: torch.dtype, floor: float
) -> None:
    kernel = margin._kernel()
    assert kernel is not None
    g = torch.Generator("cuda").manual_seed(sum(shape))
    h = torch.randn(shape, generator=g, device="cuda")
    x = (h + 0.5 * torch.randn(shape, generator=g, device="cuda")).to(dtype)
    mask = torch.rand(shape[:2], generator=g, device="cuda") < 0.8
    p = torch.rand(shape[2], generator=g, device="cuda")
    n = -p
    n[0] = p[0] = h[0, 0, 0]  # no width: the fourth state
    rest = (margin.pack(margin.flags(h, n, p)), mask, n, p, floor)
    (sums, *others), (exact, *expected) = kernel(x, *rest), margin.plain(x, *rest)
    torch.testing.assert_close(sums, exact, rtol=1e-5, atol=1e-5)
    for found, wanted in zip(others, expected, strict=True):  # counts, flips and signs: integers
        assert torch.equal(found, wanted)


def test_a_state_that_is_no_number_reaches_the_loss() -> None:
    x = torch.zeros(1, 2, 8, device="cuda")
    n, p = -torch.ones(8, device="cuda"), torch.ones(8, device="cuda")
    codes, mask = margin.pack(margin.flags(x, n, p)), torch.ones(1, 2, device="cuda")
    x[0, 1, 3] = float("nan")
    assert margin.outside(x, codes, mask, n, p)[0].isnan().all()


@pytest.mark.parametrize("name", SET_UPS)
def test_the_first_step_of_a_drop_in_costs_nothing(tiny: Any, tmp_path: Path, name: str) -> None:
    make, options = SET_UPS[name]
    trainer = make(*tiny, tmp_path, use_cpu=False, **options)
    perdure.attach(trainer, GERE, general=GENERAL)
    trainer.train()
    first, second, _ = margins(trainer)
    assert first == 0.0
    assert second > 0


@contextmanager
def waits() -> Iterator[list[str]]:
    """Where the host waits for the device inside the block."""
    found: list[str] = []
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as seen:
            warnings.simplefilter("always")
            yield found
    finally:
        torch.cuda.set_sync_debug_mode("default")
    found += [f"{w.filename}:{w.lineno}" for w in seen if "synchroniz" in str(w.message)]


def test_a_wait_is_noticed() -> None:
    with waits() as found:
        torch.ones(1, device="cuda").item()
    assert len(found) == 1
    assert __file__ in found[0]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"kind": "gere_kl"},
        {"weight": "dynamic"},
        {"kind": "general_replay"},
        {"kind": "gere_distance"},
        {"layers": [0, -1]},
    ],
)
def test_perdures_own_learner_does_not_wait_for_gere(
    tiny: Any, tmp_path: Path, monkeypatch: Any, options: dict[str, Any]
) -> None:
    model, tokenizer = tiny[0].to("cuda"), tiny[1]
    method = general_method(insert=3, **options)
    encoded, pad = rows(tokenizer), tokenizer.pad_token_id
    session = TaskSession(
        model, Encoder(tokenizer), FIRST, methods=[method],
        general=GeneralText(replay=GENERAL), batch_size=4, cache=tmp_path / "cache",
    )  # fmt: skip
    method.begin_task(session.context)
    trainer = PerdureTrainer(
        model=model, processing_class=tokenizer, train_dataset=encoded,
        args=arguments(
            tmp_path, use_cpu=False, remove_unused_columns=False, logging_steps=1, max_steps=4
        ),
        data_collator=lambda batch: {**collate(batch, pad), ROWS: HostRows(batch)},
    )  # fmt: skip
    trainer.session = session
    trainer.sampler = EpochSampler([len(row["input_ids"]) for row in encoded], 4, 0)
    attach(trainer, method, session=session)
    by_step: list[list[str]] = []
    plain_loss = method.loss

    def watched(*args: Any) -> Any:
        with waits() as found:
            terms = plain_loss(*args)
        by_step.append(found)
        return terms

    monkeypatch.setattr(method, "loss", watched)

    trainer.train()
    if method.name == "gere":
        assert margins(trainer)[0] == 0.0
    assert by_step[1:] == [[], [], []]  # the first reads the cache's thresholds


@pytest.mark.process
def test_accelerates_fsdp2(tiny_model_dir: Path, tmp_path: Path) -> None:
    from tiny_runs import free_port

    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "1", "--master_port",
         str(free_port()), __file__, str(tiny_model_dir), str(tmp_path)],
        capture_output=True, text=True, timeout=200, check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    first, second, _ = map(float, (tmp_path / "margins.txt").read_text().split())
    assert first == 0.0
    assert second > 0


def main(model_dir: str, out: str) -> None:
    from test_gere_dropin import plain
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(model_dir)
    trainer = plain(
        model, AutoTokenizer.from_pretrained(model_dir), Path(out), use_cpu=False, fsdp=True,
        fsdp_config={"version": 2, "reshard_after_forward": True,
                     "auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
                     "transformer_layer_cls_to_wrap": ["LlamaDecoderLayer"]},
    )  # fmt: skip
    perdure.attach(trainer, GERE, general=GENERAL)
    trainer.train()
    assert any(hasattr(p, "placements") for p in trainer.model.parameters())
    Path(out, "margins.txt").write_text(" ".join(map(str, margins(trainer))))


if __name__ == "__main__":
    main(*sys.argv[1:])
