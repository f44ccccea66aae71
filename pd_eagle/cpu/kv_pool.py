"""SGLang's KV pool for host memory, without the copy kernel that it warms up; does not know who
moves what.
"""

from __future__ import annotations

from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool


class HostKVPool(MHATokenToKVPool):  # type: ignore[misc]  # SGLang is untyped
    """Moves KV by indexing; SGLANG_NATIVE_MOVE_KV_CACHE alone leaves the warm-up (0.5.23)."""

    def _init_kv_copy_and_warmup(self) -> None:
        self._kv_copy_config = None
        self.use_native_move_kv_cache = True
