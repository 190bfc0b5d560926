"""How the tests run vLLM: small, without compiling, on whatever device it was built for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from teacher_server.engines.vllm.engine import VllmEngine

# vLLM would bind its threads to all cores but one of them.
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
OPTIONS = {"enforce_eager": True, "kv_cache_memory_bytes": 512 * 2**20}


def vllm_engine(model: Path, **changes: Any) -> VllmEngine:
    """An engine that was not started; ``options`` of ``changes`` are added to ours."""
    from teacher_server.engines.vllm.engine import VllmEngine

    options = OPTIONS | changes.pop("options", {})
    return VllmEngine(str(model), **({"max_batch_tokens": 512} | changes), options=options)
