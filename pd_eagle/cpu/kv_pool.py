"""SGLang's KV pool in host memory, committed on first use, without the copy kernel that SGLang
warms up; does not know which requests its slots belong to.
"""

from __future__ import annotations

from sglang.srt.mem_cache.memory_pool import MHATokenToKVPool

from pd_eagle.cpu.host_memory import untouched_zeros


class HostKVPool(MHATokenToKVPool):  # type: ignore[misc]  # SGLang is untyped
    """Commits memory on first use, and moves KV by indexing.

    A pool is sized for the longest conversations, and most of it is never used on a laptop.
    SGLANG_NATIVE_MOVE_KV_CACHE alone does not skip the warm-up (0.5.23).
    """

    def _create_buffers_normal(self) -> None:
        keys, values = self._kv_buffer_shapes()
        layers = range(self.layer_num)
        self.k_buffer = [untouched_zeros(keys, self.store_dtype) for _ in layers]
        self.v_buffer = [untouched_zeros(values, self.store_dtype) for _ in layers]

    def _init_kv_copy_and_warmup(self) -> None:
        self._kv_copy_config = None
        self.use_native_move_kv_cache = True
