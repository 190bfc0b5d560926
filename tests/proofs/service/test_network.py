"""Replies that are lost and a network that is faulty: proofs 11 and 12."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from teacher_proto import AsyncTeacherClient
from teacher_proto.channel import client_options
from teacher_proto.errors import LsmError
from teacher_proto.types import ScoreReply

from tests.proofs.ledger import Proof, count
from tests.proofs.service.proxy import FAULTS, proxy
from tests.proofs.service.teacher import LONG, SCORE, Watched, teacher

AT_ONCE = 5
DEADLINE = 5.0  # of a call through the faulty proxy
GRACE = 1.0  # after it
FIRST_MARK = 10


def json_body(mark: int, request_id: str) -> dict[str, Any]:
    named = {"request_id": request_id} if request_id else {}
    return named | {
        "prompt": {"token_ids": [mark, *range(1, 16)]},
        "continuations": [{"token_ids": list(range(48))}],
        "top_k": 8,
        "temperature": 1.0,
    }


async def over_grpc(server: Watched, address: str, mark: int) -> bytes:
    """One attempt on a connection of its own."""
    async with grpc.aio.insecure_channel(address, client_options(address)) as channel:
        score: Any = channel.unary_unary(SCORE)
        reply: bytes = await score(server.body(mark, f"dropped-{mark}"), timeout=LONG)
        return reply


async def over_http(server: Watched, address: str, mark: int) -> bytes:
    async with httpx.AsyncClient(base_url=f"http://{address}", timeout=LONG) as http:
        answer = await http.post("/v1/score", json=json_body(mark, f"dropped-{mark}"))
        answer.raise_for_status()
        return answer.content


WIRES: dict[str, Callable[[Watched, str, int], Awaitable[bytes]]] = {
    "grpc": over_grpc,
    "http": over_http,
}


async def dropped(server: Watched, wire: str, times: int) -> tuple[int, int]:
    """(pairs of equal bytes, most engine calls of one request) of so many requests whose
    reply is dropped once it was computed; each is asked for again, twice."""
    ask = WIRES[wire]
    offset = FIRST_MARK + (150 if wire == "http" else 0)
    before = len(server.started())

    async def one(number: int) -> bool:
        mark = offset + number
        async with proxy(server.grpc if wire == "grpc" else server.http, ["dropped reply"]) as way:
            try:
                await ask(server, way.address, mark)
            except (grpc.aio.AioRpcError, httpx.HTTPError):
                pass
            else:
                raise AssertionError("the reply was not dropped")
            again = await ask(server, way.address, mark)
            return again == await ask(server, way.address, mark)

    same = 0
    for begin in range(0, times, AT_ONCE):
        ended = await asyncio.gather(*(one(n) for n in range(begin, min(times, begin + AT_ONCE))))
        same += sum(ended)
    calls = Counter(mark for mark, _ in server.started()[before:])
    return same, max(calls.values())


def test_a_reply_that_was_lost_is_computed_once(plain: Watched) -> None:
    for wire in WIRES:
        assert asyncio.run(dropped(plain, wire, 2)) == (2, 1)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_proof_11_replies_dropped_after_they_were_computed(
    tiny_model_dir: Path, tmp_path: Path, proof: Proof
) -> None:
    times = count(100)
    with teacher(tiny_model_dir, tmp_path / "a") as server:
        for wire in WIRES:
            same, calls = asyncio.run(dropped(server, wire, times))
            proof.figure(f"equal_bytes_{wire}", same, exactly=times)
            proof.figure(f"engine_calls_each_{wire}", calls, at_most=1)
    with teacher(tiny_model_dir, tmp_path / "b", "replay.max_entries=0") as server:
        _, calls = asyncio.run(dropped(server, "grpc", 2))
    proof.control("a server that keeps no replies", failed=calls > 1)
    proof.settle()


@dataclass
class Outcome:
    """How calls through a fault ended that had ``deadline`` seconds themselves."""

    deadline: float = DEADLINE
    hangs: int = 0
    corrupt: int = 0
    ended: Counter[str] = field(default_factory=Counter)

    async def one(self, call: Awaitable[Any], expected: Any) -> None:
        began = time.monotonic()
        try:
            async with asyncio.timeout(self.deadline + 2 * GRACE):
                found = await call
        except TimeoutError:
            self.ended["a hang"] += 1
        except (LsmError, httpx.HTTPError, ValueError) as error:
            self.ended[type(error).__name__] += 1
        else:
            self.ended["a reply"] += 1
            self.corrupt += found != expected
        self.hangs += time.monotonic() - began > self.deadline + GRACE


def arrays(reply: ScoreReply) -> bytes:
    support = reply.results[0].rows.support
    assert support is not None
    return support.ids.tobytes() + support.log_probs.tobytes() + support.counts.tobytes()


def listed(answer: httpx.Response) -> Any:
    return answer.raise_for_status().json()["results"]


class Calls:
    """Calls of both wires through a proxy, each on a connection of its own."""

    def __init__(self, server: Watched, deadline: float) -> None:
        self.server = server
        self.deadline = deadline
        self.number = 0

    async def grpc(self, address: str) -> bytes:
        self.number += 1
        asked = self.server.request(5, f"faulty-{self.number}")
        async with AsyncTeacherClient(address, run="run", max_attempts=1) as client:
            return arrays(await client.score(asked, timeout=self.deadline))

    async def http(self, address: str) -> Any:
        """An HTTP client bounds the whole call: its own time-outs are for each read."""
        async with httpx.AsyncClient(base_url=f"http://{address}", timeout=None) as http:
            try:
                async with asyncio.timeout(self.deadline):
                    return listed(await http.post("/v1/score", json=json_body(5, "")))
            except TimeoutError:
                raise httpx.ReadTimeout("the deadline passed") from None


async def through_faults(
    server: Watched, times: int, deadline: float = DEADLINE
) -> dict[str, Outcome]:
    """Fault and wire -> how so many calls ended."""
    calls = Calls(server, deadline)
    found: dict[str, Outcome] = {}
    for wire, address in (("grpc", server.grpc), ("http", server.http)):
        call = getattr(calls, wire)
        expected = await call(address)
        for fault in (*FAULTS, "stall"):
            outcome = found[f"{fault}, {wire}"] = Outcome(deadline)
            # A stall lasts until the deadline: a fifth of the delays are of this kind.
            left = times if fault != "stall" else max(1, times // 5)
            while left > 0:
                together = min(left, 2 * AT_ONCE)
                async with proxy(address, [fault] * together, seed=left) as way:
                    await asyncio.gather(
                        *(outcome.one(call(way.address), expected) for _ in range(together))
                    )
                    assert len(way.struck) >= together, "the fault did not strike"
                left -= together
    return found


async def altered(server: Watched) -> Outcome:
    """Replies with one digit of a log-probability changed on their way."""

    def change(data: bytes) -> bytes:
        head, mark, tail = data.partition(b'"log_prob"')
        place = tail.find(b".") + 1
        digit = b"3" if tail[place : place + 1] != b"3" else b"4"
        return head + mark + tail[:place] + digit + tail[place + 1 :] if mark else data

    outcome = Outcome()
    call = Calls(server, DEADLINE).http
    expected = await call(server.http)
    async with proxy(server.http) as way:
        way.change = change
        await outcome.one(call(way.address), expected)
    return outcome


async def without_a_deadline(server: Watched) -> Outcome:
    outcome = Outcome(deadline=1.0)
    async with (
        proxy(server.grpc, ["stall"]) as way,
        grpc.aio.insecure_channel(way.address) as channel,
    ):
        score: Any = channel.unary_unary(SCORE)
        await outcome.one(score(server.body(5, "endless")), b"")
    return outcome


def check_quick(found: dict[str, Outcome]) -> None:
    for name, outcome in found.items():
        assert (outcome.hangs, outcome.corrupt) == (0, 0), (name, outcome)
        passes = name.startswith(("delay", "one-byte"))
        assert set(outcome.ended) == {"a reply"} or not passes, (name, outcome)


def test_a_faulty_network_hangs_nobody_and_corrupts_nothing(
    plain: Watched,
) -> None:
    check_quick(asyncio.run(through_faults(plain, 2, deadline=1.5)))
    assert asyncio.run(altered(plain)).corrupt == 1


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_proof_12_a_faulty_network(tiny_model_dir: Path, tmp_path: Path, proof: Proof) -> None:
    times = count(50)
    with teacher(tiny_model_dir, tmp_path, "engine.deterministic=true") as server:
        found = asyncio.run(through_faults(server, times))
        proof.figure("hangs", sum(one.hangs for one in found.values()), exactly=0)
        proof.figure("corrupt_arrays", sum(one.corrupt for one in found.values()), exactly=0)
        for wire in WIRES:
            for fault in ("delay", "one-byte chunks"):
                name = f"{fault.replace(' ', '_').replace('-', '_')}_{wire}_replies"
                proof.figure(name, found[f"{fault}, {wire}"].ended["a reply"], exactly=times)
        held = server.metric("lsm_teacher_inflight_tokens")
        proof.figure("tokens_left_in_the_engine", held, exactly=0)
        proof.details["ended"] = {name: dict(one.ended) for name, one in found.items()}
        changed = asyncio.run(altered(server))
        proof.control("a proxy that changes a digit", failed=changed.corrupt > 0)
        endless = asyncio.run(without_a_deadline(server))
        proof.control("a client without a deadline", failed=endless.hangs > 0)
    proof.settle()
