"""Deadlines that pass: proof 9. (The quick form is in tests/server/test_promises.py.)"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from teacher_proto import AsyncTeacherClient
from teacher_proto.errors import DeadlineError

from tests.proofs.ledger import Proof, count
from tests.proofs.service.teacher import LONG, Watched, teacher, tokens

pytestmark = [pytest.mark.soak, pytest.mark.timeout(600)]

RATE = 200.0
SETTINGS = ("limits.max_inflight_tokens=216", "limits.max_request_tokens=1024")
AT_ONCE = 5
FIRST_MARK = 10  # below are the marks of what keeps the engine busy


@dataclass(frozen=True)
class Late:
    """How a request ended whose deadline was to pass; ``seconds`` after it."""

    mark: int
    deadline: float
    seconds: float
    told: bool


async def expired(server: Watched, wire: str, times: int) -> list[Late]:
    """So many requests with deadlines of 1 and 200 ms, while the engine works on others."""
    async with (
        AsyncTeacherClient(server.grpc, run="run", max_attempts=1) as client,
        AsyncTeacherClient(server.grpc, run="busy", max_attempts=1) as other,
        httpx.AsyncClient(base_url=f"http://{server.http}", timeout=LONG) as http,
    ):

        async def keep_busy(number: int) -> None:
            """Requests of a second each, of which one always waits for the engine."""
            sent = 0
            while True:
                asked = server.request(
                    number, f"busy-{wire}-{number}-{sent}", run="busy", continuations=(tokens(184),)
                )
                await other.score(asked, timeout=LONG)
                sent += 1

        async def grpc(mark: int, within: float) -> bool:
            try:
                await client.score(server.request(mark, f"{wire}-{mark}"), timeout=within)
            except DeadlineError:
                return True
            return False

        async def over_http(mark: int, within: float) -> bool:
            body = {
                "prompt": {"token_ids": [mark, *range(1, 16)]},
                "continuations": [{"token_ids": list(range(48))}],
                "top_k": 8,
                "temperature": 1.0,
                "timeout_seconds": within,
            }
            return (await http.post("/v1/score", json=body)).status_code == 504

        ask = grpc if wire == "grpc" else over_http

        async def one(number: int) -> Late:
            timeout = (0.001, 0.2)[number % 2]
            mark = FIRST_MARK + number
            deadline = time.monotonic() + timeout
            told = await ask(mark, timeout)
            return Late(mark, deadline, time.monotonic() - deadline, told)

        busy = [asyncio.create_task(keep_busy(number)) for number in range(4)]
        while len(server.started()) < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        found: list[Late] = []
        for begin in range(0, times, AT_ONCE):
            found += await asyncio.gather(*(one(n) for n in range(begin, begin + AT_ONCE)))
        for task in busy:
            task.cancel()
        await asyncio.gather(*busy, return_exceptions=True)
        return found


def started_late(server: Watched, found: list[Late]) -> int:
    """How many of these requests started to compute after their deadline."""
    starts = dict(server.started())
    return sum(starts.get(late.mark, 0.0) > late.deadline for late in found)


def test_proof_09_deadlines_of_1_and_200_ms(
    tiny_model_dir: Path, tmp_path: Path, proof: Proof
) -> None:
    times = max(AT_ONCE, count(100))
    for wire in ("grpc", "http"):
        with teacher(tiny_model_dir, tmp_path / wire, *SETTINGS, rate=RATE) as server:
            found = asyncio.run(expired(server, wire, times))
            proof.figure(f"told_{wire}", sum(late.told for late in found), exactly=times)
            latest = 1000 * max(late.seconds for late in found)
            proof.figure(f"latest_error_ms_{wire}", latest, at_most=50)
            proof.figure(f"started_late_{wire}", started_late(server, found), exactly=0)
    broken = tmp_path / "broken"
    with teacher(tiny_model_dir, broken, *SETTINGS, rate=RATE, broken="no_deadlines") as server:
        found = asyncio.run(expired(server, "http", AT_ONCE))
        late = started_late(server, found)
    proof.control("a server that ignores deadlines", failed=late > 0)
    proof.settle()
