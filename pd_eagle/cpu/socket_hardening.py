"""Protects an engine's sockets from other hosts and from foreign messages.

SGLang and torch trust what they receive on them, so they must listen on loopback, and a message
that is not SGLang's must not end the thread that reads them. It does not know the messages.
"""

from __future__ import annotations

import functools
import logging
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

from pd_eagle.overrides import Override

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

logger = logging.getLogger(__name__)

_PAUSE_S = 0.05


def _on_the_host_alone(create: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(create)
    def create_on_loopback(
        hostname: str, port: int, rank: int, world_size: int, timeout: Any, use_libuv: bool = True
    ) -> Any:
        if hostname != "127.0.0.1" or rank != 0:
            return create(hostname, port, rank, world_size, timeout, use_libuv)
        from torch.distributed import TCPStore

        listener = socket.create_server((hostname, port), reuse_port=False)
        return TCPStore(
            host_name=hostname,
            port=listener.getsockname()[1],
            world_size=world_size,
            is_master=True,
            timeout=timeout,
            master_listen_fd=listener.detach(),  # the store closes it
            use_libuv=use_libuv,
        )

    return create_on_loopback


def _restarted(thread_name: str) -> Callable[[Callable[[Any], None]], Callable[[Any], None]]:
    """Make a method that starts a thread start it again when the thread has failed."""

    def wrap(start: Callable[[Any], None]) -> Callable[[Any], None]:
        @functools.wraps(start)
        def start_and_keep(manager: Any) -> None:
            threads = _started_by(functools.partial(start, manager), thread_name)

            def keep(running: list[threading.Thread]) -> None:
                while True:
                    for thread in running:
                        thread.join()
                    if getattr(manager, "_stopped", False) or manager.server_socket.closed:
                        return
                    logger.warning("a foreign message ended %s: it goes on", thread_name)
                    time.sleep(_PAUSE_S)
                    running = _started_by(functools.partial(start, manager), thread_name)

            if threads:  # else it has another name, and would be started without end
                threading.Thread(target=keep, args=(threads,), daemon=True).start()

        return start_and_keep

    return wrap


def _started_by(start: Callable[[], None], name: str) -> list[threading.Thread]:
    before = set(threading.enumerate())
    start()
    return [thread for thread in _new(before) if f"({name})" in thread.name]


def _new(before: set[threading.Thread]) -> Iterable[threading.Thread]:
    return (thread for thread in threading.enumerate() if thread not in before)


_CONN = "sglang.srt.disaggregation"
_BECAUSE = "one message that is not SGLang's ends it, and with it every handoff"

STORE = Override(
    target="torch.distributed.rendezvous:_create_c10d_store",
    shape="hostname, port, rank, world_size, timeout, use_libuv",
    because="the store of an engine's ranks listens on every address of the host",
    new=_on_the_host_alone,
)
MOONCAKE_PREFILL = Override(
    target=f"{_CONN}.mooncake.conn:MooncakeKVManager.start_prefill_thread",
    shape="self",
    because=_BECAUSE,
    new=_restarted("bootstrap_thread"),
)
NIXL_PREFILL = Override(
    target=f"{_CONN}.nixl.conn:NixlKVManager._start_bootstrap_thread",
    shape="self",
    because=_BECAUSE,
    new=_restarted("bootstrap_thread_guarded"),
)
NIXL_DECODE = Override(
    target=f"{_CONN}.nixl.conn:NixlKVManager._start_decode_listener_thread",
    shape="self",
    because=_BECAUSE,
    new=_restarted("decode_listener_thread"),
)
