"""Tells a process that another one of its run has died, whatever it is waiting for itself.

A library that waits for a dead process in C ends after minutes, or never, and no signal's handler
runs meanwhile. So the first process holds a connection to each other one, on which nothing is said
but goodbye: the system closes it when a process dies.
"""

from __future__ import annotations

import os
import secrets
import selectors
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from perdure.errors import RunError, TrainingError, UsageError
from perdure.processes import broadcast, rank, say

GRACE = 5.0
"""Seconds in which a process may end by itself, with a message of its own."""
_MEET = 60.0
"""Seconds to wait for a connection, without which nothing is watched, or for the first process."""
_HELLO = 5.0
"""Seconds to wait for the first words of whoever has connected, or to be let in."""
_GOODBYE = b"\xff\xff\xff\xff"
_FIRST = 4


@contextmanager
def watched(go_on: str) -> Iterator[None]:
    """End this process soon after another one died inside the block. All of them enter it.

    Args: go_on: what is said then; the exit code is that of `TrainingError`.
    """
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield
        return
    watch = _Watch(world, go_on)
    well = False
    try:
        yield
        well = True
    except KeyboardInterrupt:  # all are asked to end, and some have yet to save
        well = True
        raise
    except (UsageError, RunError):  # all meet it, and the first one, which tells of it, maybe later
        watch.await_first()
        raise
    finally:
        watch.leave(well)


class _Watch:
    def __init__(self, world: int, go_on: str) -> None:
        self.world, self.go_on = world, go_on
        self.left, self.well = threading.Event(), False
        self.over = threading.Event()
        self.wake, self._woken = socket.socketpair()
        server = socket.create_server(("", 0)) if rank() == 0 else None
        token = secrets.token_hex(8)
        port, token = broadcast(f"{server.getsockname()[1] if server else 0} {token}").split()
        # Before any work, in which this process may die.
        known = {} if server else self._join(int(port), token.encode())
        self.thread = threading.Thread(
            target=self._work, args=(server, known, token.encode()), daemon=True
        )
        self.thread.start()

    def await_first(self) -> None:
        """Stay until the first process leaves too, so that it does not take us for dead."""
        if rank():
            self.over.wait(_MEET)

    def leave(self, well: bool) -> None:
        """Say goodbye, or, after an error, say nothing, so that the others end too."""
        self.well = well
        self.left.set()
        with suppress(OSError):
            self.wake.send(b"x")
        self.thread.join(2)

    def _work(
        self, server: socket.socket | None, peers: dict[socket.socket, int], token: bytes
    ) -> None:
        try:
            with suppress(OSError):
                peers = self._meet(server, token) if server else peers
                dead = self._watch(peers)
                self.over.set()
                if dead is not None:
                    self._end(dead)
        finally:
            self.over.set()
            for peer in (*peers, self.wake, self._woken):
                peer.close()

    def _meet(self, server: socket.socket, token: bytes) -> dict[socket.socket, int]:
        """The first process: wait for all others."""
        peers: dict[socket.socket, int] = {}
        with server:
            server.settimeout(_MEET)
            while len(peers) < self.world - 1 and not self.left.is_set():
                peer, _ = server.accept()
                peer.settimeout(_HELLO)
                said = _heard(peer, len(token) + _FIRST)
                if said[: len(token)] == token:
                    peers[_kept_alive(peer)] = int.from_bytes(said[len(token) :], "big")
                else:  # somebody else's
                    peer.close()
        return peers

    def _join(self, port: int, token: bytes) -> dict[socket.socket, int]:
        """Any other process: meet the first one, which listens already."""
        address = os.environ.get("MASTER_ADDR", "127.0.0.1")
        try:
            first = socket.create_connection((address, port), timeout=_HELLO)
            first.sendall(token + rank().to_bytes(_FIRST, "big"))
        except OSError:
            return {}
        return {_kept_alive(first): 0}

    def _watch(self, peers: dict[socket.socket, int]) -> int | None:
        """Wait until this process leaves (None), or another one is dead (its number)."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._woken, selectors.EVENT_READ)
            for peer in peers:
                selector.register(peer, selectors.EVENT_READ)
            while len(selector.get_map()) > 1:
                for key, _ in selector.select():
                    if key.fileobj is self._woken:
                        if self.well:
                            self._say(peers, _GOODBYE)
                        return None
                    peer = next(p for p in peers if p is key.fileobj)
                    said = _heard(peer)
                    if said == _GOODBYE:
                        selector.unregister(peer)
                        continue
                    dead = int.from_bytes(said, "big") if said else peers[peer]
                    if rank() == 0:
                        self._say(peers, dead.to_bytes(_FIRST, "big"))
                    return dead
        return None

    def _say(self, peers: dict[socket.socket, int], what: bytes) -> None:
        for peer in peers:
            with suppress(OSError):
                peer.sendall(what)

    def _end(self, dead: int) -> None:
        if self.left.wait(GRACE):
            return
        error = TrainingError(f"process {dead} of this run has ended", self.go_on)
        say(f"error: {error}")
        os._exit(error.exit_code)


def _heard(peer: socket.socket, size: int = _FIRST) -> bytes:
    try:
        return peer.recv(size, socket.MSG_WAITALL)
    except OSError:  # reset, or nothing was said in time
        return b""


def _kept_alive(peer: socket.socket) -> socket.socket:
    """Have the system notice within seconds that the other machine is gone."""
    peer.settimeout(None)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 4), ("TCP_KEEPINTVL", 2), ("TCP_KEEPCNT", 2)):
        if hasattr(socket, name):
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    return peer
