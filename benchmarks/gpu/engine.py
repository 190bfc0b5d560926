"""The transformers engine on a GPU, through the service."""

from __future__ import annotations

import asyncio
import statistics
import time
from pathlib import Path
from typing import Any

from teacher_proto import AsyncTeacherClient

from benchmarks.bench_teacher import TIMEOUT, Requests, rows_of, server
from benchmarks.gpu.models import parameters


def measure_engine(
    shape: str, model: Path, device: str, repetitions: int, sizes: tuple[int, int, int, int]
) -> tuple[dict[str, float | None], dict[str, Any]]:
    """Tokens of responses per second, K = 64.

    Args:
        sizes: groups in flight, tokens of a prompt, responses to it, tokens of each.
    """
    groups, prompt, responses, length = sizes
    seconds, engine_seconds = [], []

    async def run(address: str) -> int:
        client = AsyncTeacherClient(address, run="bench")
        try:
            requests = Requests((await client.get_teacher(timeout=TIMEOUT)).teachers[0])
            for repetition in range(-1, repetitions):
                made = [requests.group(prompt, responses, length) for _ in range(groups)]
                begin = time.perf_counter()
                calls = (client.score(request, timeout=TIMEOUT) for request in made)
                replies = await asyncio.gather(*calls)
                if repetition >= 0:
                    seconds.append(time.perf_counter() - begin)
                    engine_seconds.append(sum(r.timing.engine_seconds for r in replies))
            return rows_of(made)
        finally:
            await client.close()

    begin = time.perf_counter()
    with server(model, device=device, dtype="bfloat16") as address:
        ready = time.perf_counter() - begin
        rows = asyncio.run(run(address))
    computed = rows + groups * prompt
    median = statistics.median(seconds)
    details = {
        "groups": groups,
        "prompt_tokens": prompt,
        "responses": responses,
        "response_tokens": length,
        "parameters": parameters(shape),
        "ready_seconds": ready,
        "seconds": seconds,
        "engine_seconds_of_requests": engine_seconds,
        "computed_tokens_per_second": computed / median,
        "model_tflops": 2 * parameters(shape) * computed / median / 1e12,
    }
    return {f"engine_{shape}_rows_per_second": rows / median}, details
