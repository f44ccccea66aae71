"""Processes killed under real engines: nothing hangs, nothing is left, and the service says so."""

from __future__ import annotations

import os
import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import openai

from pd_eagle import demo
from tests.engine.serving import ServerProcess, alive, tree

if TYPE_CHECKING:
    from pathlib import Path

LONG: dict[str, Any] = {
    "model": demo.NAME,
    "messages": [{"role": "user", "content": "Count to a thousand."}],
    "max_tokens": 2000,
    "temperature": 0,
    "stream": True,
    "extra_body": {"ignore_eos": True},
}


class Reader(threading.Thread):
    """Reads one endless stream and notes when and how it ended."""

    def __init__(self, server: ServerProcess) -> None:
        super().__init__(daemon=True)
        self._client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="x", max_retries=0)
        self.streaming = threading.Event()
        self.error: openai.APIError | None = None
        self.ended_at = 0.0

    def run(self) -> None:
        try:
            for number, _ in enumerate(self._client.chat.completions.create(**LONG)):
                if number == 3:
                    self.streaming.set()
        except openai.APIError as error:
            self.error = error
        self.ended_at = time.monotonic()


def test_kill_scheduler_then_front(tmp_path: Path) -> None:
    # Nobody may come to the rescue here: what a death does to requests is the question.
    alone = {"RETRY_LIMIT": "0", "RESUME": "off", "RESTART_LIMIT": "0"}
    with ServerProcess(tmp_path / "server.log", **alone) as server:
        readers = [Reader(server) for _ in range(4)]
        for reader in readers:
            reader.start()
        assert all(reader.streaming.wait(60) for reader in readers)

        killed_at = time.monotonic()
        os.kill(server.worker("decode-0")["scheduler_pids"][0], signal.SIGKILL)
        for reader in readers:
            reader.join(10)
            assert reader.error is not None
            assert "decode-0" in str(reader.error)
            assert reader.ended_at - killed_at < 2.0

        status, health = server.get("/health")
        assert status == 503
        assert health["status"] == "failed"
        decode = server.worker("decode-0")
        assert decode["state"] == "failed"
        assert "scheduler" in decode["last_error"]
        assert server.get("/health/live")[0] == 200
        assert server.post("/v1/chat/completions", LONG | {"extra_body": None})[0] == 503

        everything = tree(server.process.pid)
        assert len(everything) >= 5  # front, zygote, host, scheduler, detokenizer
        server.process.kill()
        until = time.monotonic() + 5
        while alive(everything) and time.monotonic() < until:
            time.sleep(0.02)
        assert not alive(everything)
