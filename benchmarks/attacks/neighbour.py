"""A normal run beside an attack: small Scores over gRPC and liveness calls, one after the other.

Every call has a deadline. Every eighth Score comes over a connection of its own, and every
other liveness call does.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from teacher_proto import AsyncTeacherClient
from teacher_proto.client.credentials import ClientCredentials
from teacher_proto.errors import LsmError
from teacher_proto.types import Continuation, ScoreRequest, Segment, TokenPrompt

from benchmarks.attacks.target import MIB, TOKENS

ALICE = ClientCredentials(token=TOKENS["alice"])
PAUSE = 0.01  # between calls, seconds
DEADLINE = 10.0
RECOVERY = 30.0  # for the first call of all, which is made again and again
LATE = 1.0  # a call that is not back so long after its deadline hangs
SAMPLE_SECONDS = 0.1
SMALL = (Continuation((Segment(np.arange(4, 9, dtype=np.int32)),)),)


def client(facts: dict[str, Any], attempts: int | None = 1) -> AsyncTeacherClient:
    """``attempts``: at a call; None for as many as its deadline allows."""
    return AsyncTeacherClient(
        facts["grpc_address"], run="alice", credentials=ALICE, max_attempts=attempts
    )


async def tokenizer_of(facts: dict[str, Any]) -> str:
    """The hash of the teacher's tokenizer, over a new connection."""
    async with client(facts, attempts=None) as teacher:
        info = await teacher.get_teacher(timeout=RECOVERY)
        return info.teacher("default").identity.tokenizer_hash


@dataclass
class Neighbour:
    """What a run beside the attack saw.

    Attributes:
        score, livez: seconds of each call that came back, however it ended.
        hangs: calls that were not back after their deadline.
        reconnected: kept connections that were closed while they were idle.
        failed: calls that ended in an error, by kind.
        memory: resident bytes of the server's process: before, and at most meanwhile.
        workers: the same of its child processes together.
    """

    score: list[float] = field(default_factory=list)
    livez: list[float] = field(default_factory=list)
    hangs: int = 0
    reconnected: int = 0
    failed: dict[str, int] = field(default_factory=dict)
    memory: list[int] = field(default_factory=list)
    workers: list[int] = field(default_factory=list)

    async def watch(
        self, facts: dict[str, Any], tokenizer: str, attacked: Callable[[], Awaitable[None]]
    ) -> None:
        """Calls until ``attacked`` returns."""
        base = f"http://{facts['http_address']}"
        async with (
            client(facts) as kept,
            httpx.AsyncClient(base_url=base, timeout=DEADLINE) as http,
        ):

            async def score(number: int) -> None:
                prompt, name = TokenPrompt(np.array([1, 2, 3], np.int32)), uuid.uuid4().hex
                asked = ScoreRequest(name, "alice", "default", tokenizer, prompt, SMALL, 4, 1.0)
                if number % 8:
                    await kept.score(asked, timeout=DEADLINE)
                    return
                # gRPC refuses a new connection while others fill its bound, until the next look
                # at them; then a client asks again, and the wait counts.
                async with client(facts, attempts=None) as own:
                    await own.score(asked, timeout=DEADLINE)

            async def livez(number: int) -> None:
                if number % 2:
                    # An idle connection may be closed at any time; then HTTP asks again.
                    with contextlib.suppress(httpx.RemoteProtocolError, httpx.ReadError):
                        (await http.get("/livez")).raise_for_status()
                        return
                    self.reconnected += 1
                async with httpx.AsyncClient(base_url=base, timeout=DEADLINE) as own:
                    (await own.get("/livez")).raise_for_status()

            for number in range(2):  # connect
                await asyncio.gather(score(number), livez(number))
            self._sample(facts)
            over = asyncio.ensure_future(attacked())

            async def keep_on(seconds: list[float], call: Callable[[int], Awaitable[None]]) -> None:
                number = 0
                while not over.done():
                    number += 1
                    await self._timed(seconds, call, number)
                    await asyncio.sleep(PAUSE)

            async def sample() -> None:
                while not over.done():
                    self._sample(facts)
                    await asyncio.sleep(SAMPLE_SECONDS)

            await asyncio.gather(
                keep_on(self.score, score), keep_on(self.livez, livez), sample(), over
            )

    async def _timed(
        self, seconds: list[float], call: Callable[[int], Awaitable[None]], number: int
    ) -> None:
        begun = time.perf_counter()
        try:
            async with asyncio.timeout(DEADLINE + LATE):
                await call(number)
        except TimeoutError:
            self.hangs += 1
        except (LsmError, httpx.HTTPError) as error:
            name = type(error).__name__
            self.failed[name] = self.failed.get(name, 0) + 1
        seconds.append(time.perf_counter() - begun)

    def _sample(self, facts: dict[str, Any]) -> None:
        self.memory.append(resident(facts["pid"]))
        self.workers.append(sum(resident(pid) for pid in descendants(facts["pid"])))

    def figures(self) -> dict[str, Any]:
        return {
            "score_p99_ms": 1000 * percentile(self.score, 99),
            "score_median_ms": 1000 * statistics.median(self.score),
            "livez_worst_ms": 1000 * max(self.livez),
            "livez_median_ms": 1000 * statistics.median(self.livez),
            "hangs": self.hangs,
            "reconnected": self.reconnected,
            "failed": self.failed,
            "memory_mb": (max(self.memory) - self.memory[0]) / MIB,
            "workers_mb": (max(self.workers) - self.workers[0]) / MIB,
            "calls": {"score": len(self.score), "livez": len(self.livez)},
        }


def percentile(values: list[float], percent: int) -> float:
    """The largest of fewer than a hundred."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, len(ordered) * percent // 100)]


def resident(pid: int) -> int:
    """Bytes; 0 when the process has ended."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return 1024 * int(line.split()[1])
    return 0


def descendants(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in list(Path(f"/proc/{pid}/task").iterdir()):
            for child in map(int, (task / "children").read_text().split()):
                found += [child, *descendants(child)]
    return found
