"""How long NIXL's agent takes to be ready to carry a KV pool, step by step: JSON on its last line.

    python -m benchmarks.gpu.agent [BYTES]

Runs in a process of its own, as SGLang's scheduler makes one: a UCX backend, a buffer for keys and
one for values of each layer.
"""

from __future__ import annotations

import json
import sys
import time
import uuid
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

LAYERS = 28


def steps(pool_bytes: int) -> Iterator[str]:
    """Yield the name of each step once it is done; the first is no part of NIXL."""
    import torch

    cuda = torch.cuda.is_available()
    buffers = [
        torch.zeros(pool_bytes // (2 * LAYERS), dtype=torch.uint8, device="cuda" if cuda else "cpu")
        for _ in range(2 * LAYERS)
    ]
    yield "torch and pool"
    from nixl._api import nixl_agent, nixl_agent_config

    yield "import"
    agent: Any = nixl_agent(str(uuid.uuid4()), nixl_agent_config(backends=[], num_threads=0))
    yield "agent"
    agent.create_backend("UCX", {})
    yield "backend"
    addresses = [(buffer.data_ptr(), buffer.numel(), 0, "") for buffer in buffers]
    agent.register_memory(addresses, "VRAM" if cuda else "DRAM")
    yield "registered"


def main(arguments: list[str]) -> int:
    pool_bytes = int(arguments[0]) if arguments else 2**30
    found: dict[str, float] = {}
    began = time.monotonic()
    for name in steps(pool_bytes):
        found[name] = round(time.monotonic() - began, 3)
        began = time.monotonic()
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
