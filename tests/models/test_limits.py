"""A foreign chat template has a limit of time, memory and length."""

from __future__ import annotations

import resource
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from perdure.errors import ModelError
from perdure.models import limits
from perdure.models.chat import Encoder
from perdure.models.limits import limited

pytestmark = pytest.mark.train
ENDLESS = (
    "{% for a in range(99999) %}{% for b in range(99999) %}{% set c = a * b %}"
    "{% endfor %}{% endfor %}"
)


def refused(tokenizer: Any, template: str, folder: Path) -> str:
    file = folder / "template.jinja"
    file.write_text(template)
    with pytest.raises(ModelError) as error:
        Encoder(tokenizer, str(file)).encode(
            {"prompt": [{"role": "user", "content": "a"}], "answer": "b"}
        )
    return str(error.value)


def test_time(tiny: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SECONDS", 0.2)
    began = time.process_time()
    assert "takes more than 0.2 seconds for one conversation" in refused(tiny[1], ENDLESS, tmp_path)
    assert time.process_time() - began < 30  # it would be hours
    assert signal.getitimer(signal.ITIMER_VIRTUAL)[0] == 0


def test_memory(tiny: Any, tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_AS)
    told = refused(tiny[1], "{{ 'x' * 3000000000 }}", tmp_path)
    assert "takes more than 256 MB of memory for one conversation" in told
    assert resource.getrlimit(resource.RLIMIT_AS) == before


def test_length(tiny: Any, tmp_path: Path) -> None:
    told = refused(tiny[1], "{{ 'x' * 20000000 }}", tmp_path)
    assert "takes more than 16,777,216 characters for one conversation" in told
    assert "model.chat_template: FILE, or none" in told


def test_what_keeps_to_them_is_returned() -> None:
    assert limited(lambda: "a" * 10, "a template") == "a" * 10
