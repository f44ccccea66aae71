"""Who listens where, and what a neighbour's message does: real engines, NIXL and Mooncake."""

from __future__ import annotations

import ipaddress
import os
import re
import struct
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import zmq

from tests.engine.serving import ServerProcess, tree

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.timeout(600)
_LISTEN = "0A"
_GARBAGE = [b"\xff\x00 hello from a port scanner"]


@pytest.fixture(scope="module", params=["nixl", "mooncake"])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    log = tmp_path_factory.mktemp("neighbours") / "server.log"
    with ServerProcess(log, DISAGG_TRANSFER_BACKEND=request.param) as running:
        yield running


def listeners(pids: set[int]) -> dict[tuple[str, int], set[int]]:
    """Return the addresses that `pids` listen on for TCP, and which of them do."""
    owners: dict[str, set[int]] = {}
    for pid in pids:
        for name in os.listdir(f"/proc/{pid}/fd"):
            try:
                target = os.readlink(f"/proc/{pid}/fd/{name}")
            except OSError:
                continue
            if found := re.fullmatch(r"socket:\[(\d+)\]", target):
                owners.setdefault(found[1], set()).add(pid)
    heard: dict[tuple[str, int], set[int]] = {}
    for file in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(file).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == _LISTEN and fields[9] in owners:
                address, port = fields[1].split(":")
                heard.setdefault((_address(address), int(port, 16)), set()).update(
                    owners[fields[9]]
                )
    return heard


def _address(text: str) -> str:
    words = [int(text[i : i + 8], 16) for i in range(0, len(text), 8)]
    return str(ipaddress.ip_address(b"".join(struct.pack("=I", word) for word in words)))


def is_loopback(address: str) -> bool:
    found = ipaddress.ip_address(address)
    mapped = getattr(found, "ipv4_mapped", None)
    return (mapped or found).is_loopback


def complete(server: ServerProcess) -> int:
    body = {"model": "default", "prompt": "The capital of", "max_tokens": 4, "temperature": 0}
    return server.post("/v1/completions", body)[0]


def test_every_socket_of_the_tree_is_on_loopback(server: ServerProcess) -> None:
    assert complete(server) == 200
    heard = listeners(tree(server.process.pid))
    assert len(heard) >= 3, heard  # HTTP, bootstrap, KV
    others = {where: pids for where, pids in heard.items() if not is_loopback(where[0])}
    if "mooncake" not in server.get("/health")[1]["transfer_backend"]:
        assert not others, f"not on loopback: {others}"
        return
    # Its transfer and its handshake take every address (0.3.13): README has the firewall's line.
    assert {address for address, _ in others} == {"0.0.0.0", "::"}, others
    schedulers = [
        pid for worker in server.get("/health")[1]["workers"] for pid in worker["scheduler_pids"]
    ]
    owners = [pid for pids in others.values() for pid in pids]
    assert sorted(owners) == sorted(2 * schedulers), (others, schedulers)


def test_a_foreign_message_to_any_socket_ends_no_handoff(server: ServerProcess) -> None:
    front = server.process.pid
    context = zmq.Context()
    for (address, port), pids in listeners(tree(front)).items():
        if front in pids:
            continue
        sender = context.socket(zmq.PUSH)
        sender.setsockopt(zmq.LINGER, 500)
        sender.connect(f"tcp://{address}:{port}")
        for garbage in (_GARBAGE, [b""], [b"NixlMsgGuard", b"None"], [b"1", b"2"]):
            try:
                sender.send_multipart(garbage, zmq.NOBLOCK)
            except zmq.Again:
                break  # it speaks no ZMQ
        sender.close()
    context.term()
    time.sleep(1.0)
    assert [complete(server) for _ in range(3)] == [200] * 3
    workers = server.get("/health")[1]["workers"]
    assert [worker["restarts"] for worker in workers] == [0, 0]
