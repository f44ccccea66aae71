"""The store of an engine's ranks on loopback, and KV threads that foreign messages do not end."""

from __future__ import annotations

import datetime
import importlib
import os
import queue
import socket
import threading
from pathlib import Path
from typing import Any

from pd_eagle.cpu import socket_hardening
from pd_eagle.overrides import shape_errors


def _listening(port: int) -> list[str]:
    """Return the addresses, as the kernel writes them, on which somebody listens on `port`."""
    found = []
    for file in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(file).read_text().splitlines()[1:]:
            address, number = line.split()[1].split(":")
            if int(number, 16) == port and line.split()[3] == "0A":
                found.append(address)
    return found


def test_the_store_listens_on_loopback_alone() -> None:
    rendezvous = importlib.import_module("torch.distributed.rendezvous")
    assert shape_errors([socket_hardening.STORE]) == []
    create = socket_hardening.STORE.new(rendezvous._create_c10d_store)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    limit = datetime.timedelta(seconds=20)
    store = create("127.0.0.1", port, 0, 1, limit)
    other = create("127.0.0.1", port, 1, 1, limit)
    store.set("a", "b")
    assert other.get("a") == b"b"
    assert _listening(port) == ["0100007F"]


class Manager:
    """As SGLang's KV managers do it: a thread that one bad message ends."""

    class _Socket:
        closed = False

    def __init__(self) -> None:
        self.server_socket = self._Socket()
        self.messages: queue.Queue[bytes] = queue.Queue()
        self.heard: queue.Queue[int] = queue.Queue()

    def start(self) -> None:
        def bootstrap_thread() -> None:
            while message := self.messages.get():
                self.heard.put(int(message))

        threading.Thread(target=bootstrap_thread, daemon=True).start()


def test_a_thread_that_a_message_ended_goes_on(monkeypatch: Any) -> None:
    failed: list[type[BaseException]] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: failed.append(args.exc_type))
    manager = Manager()
    socket_hardening._restarted("bootstrap_thread")(Manager.start)(manager)
    for message in (b"1", b"garbage", b"2", b"\xff", b"\xfe", b"3"):
        manager.messages.put(message)
    assert [manager.heard.get(timeout=10) for _ in range(3)] == [1, 2, 3]
    assert failed == [ValueError] * 3
    manager.server_socket.closed = True
    manager.messages.put(b"")  # the end of the engine


def test_it_does_not_start_again_where_the_socket_is_closed() -> None:
    manager = Manager()
    before = set(threading.enumerate())
    socket_hardening._restarted("bootstrap_thread")(Manager.start)(manager)
    started = [thread for thread in threading.enumerate() if thread not in before]
    manager.server_socket.closed = True
    manager.messages.put(b"")
    for thread in started:
        thread.join(10)
        assert not thread.is_alive()
    assert not {t for t in threading.enumerate() if t not in before}, os.getpid()
