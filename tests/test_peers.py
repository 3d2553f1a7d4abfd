"""A process that waits for a dead one ends soon, with a line to go on by."""

from __future__ import annotations

import io
import os
import signal
import socket
import sys
import threading
import time
from pathlib import Path

import pytest
from tiny_runs import finish, start_call

from perdure import peers
from perdure.errors import UsageError
from perdure.processes import say

pytestmark = pytest.mark.process


def waits(folder: str, seconds: float, fails: bool) -> None:
    """As a process that waits in a library; the second one leaves at once, or fails."""
    with peers.watched("go on with: perdure resume x"):
        rank = os.environ["RANK"]
        Path(folder, rank).write_text("")
        if rank == "1" and fails:
            raise SystemExit(3)
        if rank == "0" or seconds > 9:
            time.sleep(seconds)


def begun(folder: Path, processes: int) -> None:
    until = time.monotonic() + 100
    while len(list(folder.iterdir())) < processes:
        assert time.monotonic() < until
        time.sleep(0.05)
    time.sleep(0.5)  # to have met


@pytest.mark.parametrize("dies", [0, 1, 2])
def test_the_others_end_within_ten_seconds(dies: int, tmp_path: Path) -> None:
    three = start_call(waits, str(tmp_path), 60.0, False, processes=3)
    begun(tmp_path, 3)
    os.kill(three.processes[dies].pid, signal.SIGKILL)
    killed = time.monotonic()
    others = [p for number, p in enumerate(three.processes) if number != dies]
    for process in others:
        process.join(30)
    assert time.monotonic() - killed < 10
    assert [p.exitcode for p in others] == [5, 5]
    text = three.output.read_text()
    said = f"error: process {dies} of this run has ended\n  go on with: perdure resume x\n"
    assert text.count(said) == 2
    assert "Traceback" not in text


def test_one_that_fails_ends_the_others(tmp_path: Path) -> None:
    two = start_call(waits, str(tmp_path), 60.0, True, processes=2)
    two.processes[0].join(60)
    assert [p.exitcode for p in two.processes] == [5, 3]
    assert "error: process 1 of this run has ended" in two.output.read_text()


def all_refuse(grace: float, wait: float) -> None:
    """As processes that read the same recipe, the first one the slowest; each says so itself."""
    peers.GRACE = grace
    try:
        with peers.watched("go on with: perdure resume x"):
            if os.environ["RANK"] == "0":
                time.sleep(wait)
            raise UsageError("shop.yaml: no task")
    except UsageError:
        say("refused")
        raise SystemExit(2) from None


def test_what_all_refuse_is_told_by_the_first_however_late() -> None:
    """Else it would take the others for dead, and its own message would never be written."""
    text = finish(start_call(all_refuse, 0.2, 2.0, processes=2), code=2)
    assert sorted(text.splitlines()) == ["process 1: refused", "refused"]


def test_one_that_is_done_ends_nobody(tmp_path: Path) -> None:
    started = time.monotonic()
    assert finish(start_call(waits, str(tmp_path), peers.GRACE + 2, False, processes=2)) == ""
    assert time.monotonic() - started > peers.GRACE + 2


@pytest.mark.unit
def test_a_stranger_who_connects_and_says_nothing_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Such as a scanner of ports: whoever comes behind it is watched all the same."""
    monkeypatch.setattr(peers, "_HELLO", 0.1)
    watch = peers._Watch.__new__(peers._Watch)
    watch.world, watch.left = 2, threading.Event()
    server = socket.create_server(("127.0.0.1", 0))
    address = server.getsockname()
    with socket.create_connection(address), socket.create_connection(address) as other:
        other.sendall(b"token" + (1).to_bytes(peers._FIRST, "big"))
        met = watch._meet(server, b"token")
        assert list(met.values()) == [1]
        for peer in met:
            peer.close()


@pytest.mark.unit
def test_a_process_alone_watches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    before = threading.active_count()
    with peers.watched(""):
        assert threading.active_count() == before


@pytest.mark.unit
@pytest.mark.parametrize("unbuffered", [False, True])
def test_what_a_process_says_is_written_in_one_call(
    unbuffered: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else what two processes say at once stands within each other's lines."""
    calls: list[bytes] = []

    class Terminal(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, data: object) -> int:
            calls.append(bytes(data))  # type: ignore[call-overload]
            return len(calls[-1])

    terminal = io.BufferedWriter(Terminal())
    stderr = io.TextIOWrapper(terminal, line_buffering=True, write_through=unbuffered)
    monkeypatch.setattr(sys, "stderr", stderr)
    monkeypatch.setenv("RANK", "2")
    say("error: no\n  go on with: x")
    assert calls == [b"process 2: error: no\n  go on with: x\n"]
