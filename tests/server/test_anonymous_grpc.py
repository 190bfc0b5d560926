"""What anybody may call over gRPC, health and reflection: a probe is answered at once whatever
others leave unfinished, and what they may leave is bounded in number, bytes and time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2

from teacher_server.grpc import health, interceptors
from teacher_server.grpc.places import Full, Places
from teacher_server.settings.limits import MIB
from tests.server.running import LONG, Running, eventually, running
from tests.support.http2 import message, raw_callers

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
# A request to list the services.
LIST = b"\x3a\x00"
BODY = 8 * MIB
CONNECTIONS = 300
LATE = grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
TOO_MANY = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(tiny_model_dir: Path) -> AsyncIterator[Running]:
    limits = {
        "max_request_bytes": BODY,
        "max_reply_bytes": MIB,
        "max_tokenizer_bytes": BODY,
        "max_connections": CONNECTIONS,
        "max_connections_per_address": CONNECTIONS,
        "body_seconds": 1.0,
        "write_seconds": 0.5,
    }
    with pytest.MonkeyPatch.context() as patch:
        async with running({"default": tiny_model_dir}, patch, limits=limits) as found:
            yield found


async def checked(server: Running) -> int:
    """The status of health, as a probe asks for it: over a new connection."""
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.insecure_channel(server.server.grpc_address, options=options) as opened:
        method: Any = opened.unary_unary(CHECK)
        reply = await method(b"", timeout=LONG)
    return int(health_pb2.HealthCheckResponse.FromString(reply).status)


async def cut(server: Running, reason: str) -> float:
    """Connections of gRPC that were ended for this reason."""
    start = f'lsm_teacher_connections_cut_total{{reason="{reason}",surface="grpc"}} '
    for line in (await server.http.get("/metrics")).text.splitlines():
        if line.startswith(start):
            return float(line.removeprefix(start))
    return 0.0


async def test_a_probe_waits_for_none_of_those_that_stall(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "READ_SECONDS", 1000.0)
    monkeypatch.setattr(health, "LATE_SECONDS", 1000.0)
    async with raw_callers(server.server.grpc_address, 100) as attackers:
        for attacker in attackers:
            for number in range(4):
                attacker.begin(1 + 2 * number, CHECK)
                await attacker.send(1 + 2 * number, message(BODY) + bytes(100))
        # Two requests of an address stay on their way; the others are refused.
        late = [asyncio.create_task(attacker.status()) for attacker in attackers]
        await asyncio.wait(late, return_when=asyncio.FIRST_COMPLETED)
        assert await checked(server) == health.SERVING
        await eventually(lambda: sum(one.done() for one in late) >= 98)
        assert {one.result() for one in late if one.done()} == {LATE}
        assert await checked(server) == health.SERVING
        # Of such a connection nothing is read for a while.
        slow = next(one for one, task in zip(attackers, late, strict=True) if task.done())
        slow.text = b""
        slow.begin(9, CHECK)
        await slow.send(9, message(0), end=True)
        assert await checked(server) == health.SERVING
        assert b"grpc-status" not in slow.text
        for task in late:
            task.cancel()


@pytest.mark.parametrize("method", [CHECK, WATCH])
async def test_who_does_not_take_an_answer_of_health_loses_the_connection(
    server: Running, method: str
) -> None:
    before = await cut(server, "unread_reply")
    async with raw_callers(server.server.grpc_address, 2, window=0) as attackers:
        for attacker in attackers:
            attacker.begin(1, method)
            await attacker.send(1, message(0), end=True)
        assert await checked(server) == health.SERVING
        async with asyncio.timeout(LONG):
            await asyncio.gather(*(attacker.ended.wait() for attacker in attackers))
            while await cut(server, "unread_reply") != before + 2:  # counted once it is ended
                pass


async def test_a_connection_checks_few_times_at_once(server: Running) -> None:
    async with raw_callers(server.server.grpc_address, 1, window=0) as (attacker,):
        for number in range(health.MOST_CHECKS + 1):
            attacker.begin(1 + 2 * number, CHECK)
            await attacker.send(1 + 2 * number, message(0), end=True)
        assert await attacker.status() == TOO_MANY


async def test_what_is_done_at_once_needs_no_place() -> None:
    places = Places(3, 2)
    event = asyncio.Event()
    waiting = [asyncio.create_task(places.finish(event.wait(), "a", LONG)) for _ in range(3)]
    with pytest.raises(Full):
        await asyncio.gather(*waiting)
    assert await places.finish(asyncio.sleep(0, "done"), "a", LONG) == "done"
    assert [places.take("b"), places.take("c")] == [True, False]
    event.set()
    await asyncio.wait(waiting)
    assert places.take("a")
    for owner in ("a", "b"):
        places.leave(owner)
    with pytest.raises(TimeoutError):
        await places.finish(asyncio.Event().wait(), "a", 0.0)
    assert [places.take("a") for _ in range(3)] == [True, True, False]


async def test_a_message_to_reflection_is_charged_and_has_its_time(server: Running) -> None:
    budget = server.server.service.budget.queue
    async with raw_callers(server.server.grpc_address, 1) as (attacker,):
        attacker.begin(1, REFLECTION)
        await attacker.send(1, message(len(LIST)) + LIST)
        await attacker.send(1, message(BODY) + bytes(1000))
        await eventually(lambda: budget.held == BODY)
        assert attacker.data > 0
        assert await attacker.status() == LATE
        assert b"limits.body_seconds=1" in attacker.text
    await eventually(lambda: budget.held == 0)


async def test_a_reply_of_reflection_that_nobody_takes_ends_the_connection(
    server: Running,
) -> None:
    before = await cut(server, "unread_reply")
    async with raw_callers(server.server.grpc_address, 1, window=0) as (attacker,):
        attacker.begin(1, REFLECTION)
        await attacker.send(1, message(len(LIST)) + LIST)
        async with asyncio.timeout(LONG):
            await attacker.ended.wait()
            while await cut(server, "unread_reply") != before + 1:  # counted once it is ended
                pass


async def test_an_address_has_few_streams_of_reflection(server: Running) -> None:
    async with raw_callers(
        server.server.grpc_address, interceptors.MOST_STREAMS_BY_OWNER + 1
    ) as attackers:
        for attacker in attackers:
            attacker.begin(1, REFLECTION)
        statuses = await asyncio.gather(*(attacker.status() for attacker in attackers))
    assert sorted(statuses) == [LATE] * interceptors.MOST_STREAMS_BY_OWNER + [TOO_MANY]


async def test_a_stream_of_reflection_ends(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interceptors, "STREAM_SECONDS", 0.1)
    async with raw_callers(server.server.grpc_address, 1) as (attacker,):
        attacker.begin(1, REFLECTION)
        assert await attacker.status() == LATE
        assert b"the stream was open for 0.1 s" in attacker.text
