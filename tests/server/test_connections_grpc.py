"""Callers that send no end, take no reply, or only sit there: what they hold over gRPC is
bounded, and beside them others are served."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2
from teacher_proto import AsyncTeacherClient, TeacherClient, channel
from teacher_proto.client.credentials import ClientCredentials

from teacher_server.grpc import server as server_module
from teacher_server.grpc.connections import Connections
from teacher_server.grpc.exchange import Exchange
from teacher_server.grpc.sockets import Sockets
from teacher_server.queue.budget import Owner
from teacher_server.queue.byte_accounts import UNREAD_AT_ONCE
from teacher_server.settings.limits import MIB
from tests.server.processes import command, serving
from tests.server.raw_http import connected
from tests.server.running import (
    LONG,
    SCORE,
    Running,
    body_of,
    continuation,
    eventually,
    http_client,
    running,
)
from tests.support.http2 import message, raw_caller, raw_callers

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHECK, WATCH = "/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"
REFLECTION = "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo"
GET_TEACHER = "/teacher_proto.v1.TeacherScoringService/GetTeacher"
REGISTER = "/teacher_proto.v1.TeacherScoringService/RegisterTokenizer"
BODY = 8 * MIB
CONNECTIONS = 32


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def strict(tiny_model_dir: Path) -> AsyncIterator[Running]:
    """A server of little patience: its budget holds two of the largest bodies of a caller."""
    limits = {
        "max_request_bytes": BODY,
        "max_reply_bytes": MIB,
        "max_tokenizer_bytes": BODY,
        "max_bytes_in_flight": 64 * MIB,
        "max_bytes_in_flight_per_run": 20 * MIB,
        "max_connections": CONNECTIONS,
        "max_connections_per_address": CONNECTIONS,
        "header_seconds": 1.0,
        "body_seconds": 1.0,
        "write_seconds": 0.5,
    }
    with pytest.MonkeyPatch.context() as patch:
        async with running({"default": tiny_model_dir}, patch, limits=limits) as found:
            yield found


async def checked(address: str, request: bytes = b"") -> int:
    """The status of health, by a new connection that waits until it comes about."""
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.max_reconnect_backoff_ms", 100)]
    async with grpc.aio.insecure_channel(address, options=options) as opened:
        method: Any = opened.unary_unary(CHECK)
        reply = await method(request, timeout=LONG, wait_for_ready=True)
    return int(health_pb2.HealthCheckResponse.FromString(reply).status)


async def test_bodies_without_an_end_hold_what_is_charged_and_are_ended(strict: Running) -> None:
    budget = strict.server.service.budget
    async with raw_callers(strict.server.grpc_address, 12) as attackers:
        sending = []
        for attacker in attackers:
            attacker.begin(1, SCORE)
            body = message(BODY) + bytes(BODY - 1)
            sending.append(asyncio.create_task(attacker.send(1, body)))
        await eventually(lambda: budget.queue.held > BODY)
        for number in range(5):
            await strict.score(strict.request(request_id=f"beside-{number}"))
            assert budget.queue.held <= 64 * MIB
        statuses = await asyncio.gather(*(attacker.status() for attacker in attackers))
        for task in sending:
            task.cancel()
    assert set(statuses) <= {
        grpc.StatusCode.DEADLINE_EXCEEDED.value[0],
        grpc.StatusCode.RESOURCE_EXHAUSTED.value[0],
    }
    assert grpc.StatusCode.DEADLINE_EXCEEDED.value[0] in statuses
    await eventually(lambda: budget.queue.held == 0)


async def test_the_refusal_of_a_slow_body_names_the_setting(strict: Running) -> None:
    async with raw_caller(strict.server.grpc_address) as attacker:
        attacker.begin(1, SCORE)
        await attacker.send(1, message(10))
        assert await attacker.status() == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
        assert b"limits.body_seconds=1" in attacker.text
    text = (await strict.http.get("/metrics")).text
    assert 'method="Score",outcome="refused",reason="BODY_TOO_SLOW"' in text


async def test_a_registration_that_stops_is_ended(strict: Running) -> None:
    async with raw_caller(strict.server.grpc_address) as attacker:
        attacker.begin(1, REGISTER)
        await eventually(lambda: strict.server.service.budget.queue.held == BODY)
        assert await attacker.status() == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
    await eventually(lambda: strict.server.service.budget.queue.held == 0)


async def test_replies_that_nobody_takes_hold_what_is_charged_and_are_cut(strict: Running) -> None:
    budget = strict.server.service.budget
    async with raw_callers(strict.server.grpc_address, 4, window=0) as attackers:
        for number, attacker in enumerate(attackers):
            request = strict.request(request_id=f"unread-{number}", top_k=320)
            request = replace(request, continuations=(continuation(*range(5, 45)),))
            body = body_of(request)
            attacker.begin(1, SCORE)
            await attacker.send(1, message(len(body)) + body, end=True)
        await eventually(lambda: budget.queue.held > 4 * 100_000)
        await strict.score(strict.request(request_id="beside"))
        await asyncio.gather(*(attacker.ended.wait() for attacker in attackers))
    assert all(attacker.data == 0 for attacker in attackers)
    line = 'connections_cut_total{reason="unread_reply",surface="grpc"} 4.0'
    async with asyncio.timeout(LONG):  # counted once they are ended
        while line not in (await strict.http.get("/metrics")).text:
            pass
    await eventually(lambda: budget.queue.held == 0)


async def test_calls_without_bodies_hold_what_their_replies_are(strict: Running) -> None:
    """Replies that nobody takes are small, however large a message could have been."""
    budget = strict.server.service.budget
    async with raw_callers(strict.server.grpc_address, 8, window=0) as attackers:
        for attacker in attackers:
            for stream in range(1, 21, 2):
                attacker.begin(stream, GET_TEACHER)
                await attacker.send(stream, message(0), end=True)
        await strict.score(strict.request(request_id="beside-names"))
        await eventually(lambda: 0 < budget.queue.held < 80 * 4096)
        await asyncio.gather(*(attacker.ended.wait() for attacker in attackers))
    await eventually(lambda: budget.queue.held == 0)


async def test_small_messages_that_arrive_slowly_are_not_refused(strict: Running) -> None:
    budget, engine = strict.server.service.budget, strict.engines["default"]
    before = len(engine.jobs)
    bodies = {
        stream: body_of(strict.request(request_id=f"slow-{stream}")) for stream in range(1, 17, 2)
    }
    async with raw_caller(strict.server.grpc_address) as slow:
        for stream, body in bodies.items():
            slow.begin(stream, SCORE)
            await slow.send(stream, message(len(body)) + body[:50])
        # Some are charged with what they may be, and there is no room for all of them.
        await eventually(lambda: budget.queue.held > BODY)
        for stream, body in bodies.items():
            await slow.send(stream, body[50:], end=True)
        await eventually(lambda: len(engine.jobs) == before + len(bodies))
    await eventually(lambda: budget.queue.held == 0)


async def test_stalled_bodies_of_both_wires_keep_no_small_request_out(strict: Running) -> None:
    """Of one address without credentials, where small ones are stalled as well."""
    head = (
        b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n{"
    )
    budget = strict.server.service.budget
    async with contextlib.AsyncExitStack() as stack:
        for size in [BODY] * 6 + [MIB] * 12:
            peer = await stack.enter_async_context(connected(strict.server.http_address))
            await peer.send(head % size)
        await eventually(lambda: budget.queue.held >= BODY + MIB)
        assert budget.queue.held <= 20 * MIB, "one address has a part of all"
        await strict.score(strict.request(request_id="beside-stalled"))
        assert (await strict.http.post("/v1/score", json={})).status_code == 400
    await eventually(lambda: budget.queue.held == 0)


async def test_a_reset_in_a_message_is_no_wrong_request(strict: Running) -> None:
    async def refused() -> list[str]:
        lines = (await strict.http.get("/metrics")).text.splitlines()
        labels = 'method="Score",outcome="refused",reason="INVALID_REQUEST",surface="grpc"'
        return [line for line in lines if "_requests_total" in line and labels in line]

    before = await refused()
    async with raw_caller(strict.server.grpc_address) as caller:
        for stream in range(1, 41, 2):
            caller.begin(stream, SCORE)
            await caller.send(stream, message(1000) + bytes(100))
        await eventually(lambda: strict.server.lifecycle.active >= 8)
        for stream in range(1, 41, 2):
            caller.reset(stream)
        await eventually(lambda: strict.server.lifecycle.active == 0)
    text = (await strict.http.get("/metrics")).text
    assert 'method="Score",outcome="cancelled",reason="CANCELLED"' in text
    assert await refused() == before


async def test_who_waits_for_room_is_calling(
    strict: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = strict.server.service.budget
    made: dict[str, Exchange] = {}
    enter = Exchange.__aenter__

    async def noted(exchange: Exchange) -> Exchange:
        # Of other peers as well: calls of the tests before may begin only now.
        made[exchange.caller.peer] = exchange
        return await enter(exchange)

    monkeypatch.setattr(Exchange, "__aenter__", noted)
    async with contextlib.AsyncExitStack() as stack:
        for port in range(UNREAD_AT_ONCE):
            owner = Owner("", f"127.0.0.1:{port}", "127.0.0.1")
            await stack.enter_async_context(budget.hold(owner, budget.queue.unread, unread=True))
        (caller,) = await stack.enter_async_context(raw_callers(strict.server.grpc_address, 1))
        caller.begin(1, GET_TEACHER)
        await caller.send(1, message(0), end=True)
        await eventually(lambda: caller.peer in made)
        calls = made[caller.peer]._connections.calls
        assert calls[caller.peer] == 1
        assert caller.data == 0
    await eventually(lambda: calls[caller.peer] == 0)


async def test_a_call_that_is_given_up_leaves_nothing_behind(strict: Running) -> None:
    engine = strict.engines["default"]
    budget = strict.server.service.budget
    engine.hold()
    waiting = asyncio.create_task(strict.score(strict.request(request_id="given-up")))
    await engine.has_jobs(1)
    assert budget.queue.held > 0
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await eventually(lambda: budget.queue.held == 0)
    engine.gate.set()


async def test_who_was_sent_a_reply_is_known_until_it_is_gone(
    strict: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: set[Connections] = set()
    enter = Exchange.__aenter__

    async def noted(exchange: Exchange) -> Exchange:
        found.add(exchange._connections)
        return await enter(exchange)

    monkeypatch.setattr(Exchange, "__aenter__", noted)
    async with raw_callers(strict.server.grpc_address, 3) as (served, refused, gave_up):
        for caller, path in ((served, GET_TEACHER), (refused, SCORE), (gave_up, SCORE)):
            caller.begin(1, path)
        await served.send(1, message(0), end=True)
        await refused.send(1, message(1) + b"\xff", end=True)
        gave_up.reset(1)
        assert await served.status() == grpc.StatusCode.OK.value[0]
        assert await refused.status() == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        (kept,) = found
        assert kept.answered & {served.peer, refused.peer, gave_up.peer} == {served.peer}
        name = served.peer
    await eventually(lambda: name not in kept.answered)


async def test_silent_connections_are_ended(strict: Running) -> None:
    host, _, port = strict.server.grpc_address.rpartition(":")
    opened = [await asyncio.open_connection(host, int(port)) for _ in range(8)]
    async with asyncio.timeout(LONG):
        for reader, writer in opened:
            while await reader.read(4096):
                pass
            writer.close()


async def test_a_new_caller_finds_room_among_connections_that_only_sit_there(
    strict: Running,
) -> None:
    """They speak HTTP/2, so that no time-out of a handshake ends them."""
    async with raw_callers(strict.server.grpc_address, 2 * CONNECTIONS) as attackers:
        assert await checked(strict.server.grpc_address) == 1
        await strict.score(strict.request(request_id="among"))
        async with http_client(strict.server.http_address, ClientCredentials()) as http:
            assert (await http.get("/livez")).status_code == 200
        await eventually(lambda: sum(not one.ended.is_set() for one in attackers) < CONNECTIONS)


async def test_a_new_caller_finds_room_among_connections_that_called_once(strict: Running) -> None:
    address = strict.server.grpc_address
    async with raw_callers(address, CONNECTIONS - 5) as neighbours, raw_callers(address, 5) as last:
        for caller in (*neighbours, *last):
            with contextlib.suppress(ConnectionError):  # it may have given way before it called
                caller.begin(1, GET_TEACHER)
                await caller.send(1, message(0), end=True)
        assert await checked(strict.server.grpc_address) == 1
        await strict.score(strict.request(request_id="among-idle"))
        await eventually(lambda: any(one.ended.is_set() for one in (*neighbours, *last)))


async def test_health_takes_a_name_and_no_more(strict: Running) -> None:
    address = strict.server.grpc_address
    assert await checked(address) == health_pb2.HealthCheckResponse.SERVING
    for request in (bytes(513), bytes(BODY), b"\xff"):
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await checked(address, request)
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    with pytest.raises(grpc.aio.AioRpcError) as unknown:
        await checked(address, health_pb2.HealthCheckRequest(service="x").SerializeToString())
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND
    async with raw_caller(address) as attacker:
        attacker.begin(1, CHECK)
        await attacker.send(1, message(BODY) + bytes(100))
        assert await attacker.status() == grpc.StatusCode.DEADLINE_EXCEEDED.value[0]


async def test_health_is_watched_by_few(strict: Running) -> None:
    await checked(strict.server.grpc_address)  # there is room, whatever other tests opened
    async with grpc.aio.insecure_channel(strict.server.grpc_address) as opened:
        method: Any = opened.unary_stream(WATCH)
        first = method(b"")
        assert health_pb2.HealthCheckResponse.FromString(await first.read()).status == 1
        second = method(b"")
        assert health_pb2.HealthCheckResponse.FromString(await second.read()).status == 1
        assert await method(b"").code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        first.cancel()
        async with asyncio.timeout(LONG):  # the server learns of it a moment later
            while not await watches(method(b"")):
                pass
        second.cancel()


async def watches(call: Any) -> bool:
    try:
        found: bool = await call.read() is not grpc.aio.EOF
    except grpc.aio.AioRpcError:
        return False
    call.cancel()
    return found


async def test_reflection_takes_names_and_no_more(strict: Running) -> None:
    async with grpc.aio.insecure_channel(strict.server.grpc_address) as opened:
        method: Any = opened.stream_stream(REFLECTION)
        call = method(iter([bytes(5000)]), timeout=LONG)
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            await call.read()
        assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert await call.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_client_does_not_notice_that_its_quiet_connection_was_ended(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "server_options", quickly_idle)
    async with running({"default": tiny_model_dir}, monkeypatch) as server:
        address = server.server.grpc_address
        async with (
            AsyncTeacherClient(address, run="quiet") as ours,
            grpc.aio.insecure_channel(address) as stock,
        ):
            method: Any = stock.unary_unary(GET_TEACHER)
            for number in range(3):
                await ours.score(server.request(request_id=f"quiet-{number}"), timeout=LONG)
                await method(b"", timeout=LONG)
                await eventually(lambda: not peers(server))


async def test_a_body_without_an_end_does_not_hold_up_the_end(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {"body_seconds": 1000.0}
    async with running({"default": tiny_model_dir}, monkeypatch, limits=limits) as server:
        host, _, port = server.server.grpc_address.rpartition(":")
        _, silent = await asyncio.open_connection(host, int(port))
        async with raw_caller(server.server.grpc_address) as attacker:
            attacker.begin(1, SCORE)
            await attacker.send(1, message(10))
            await eventually(lambda: server.server.lifecycle.active == 1)
            server.server.stop()
            assert await attacker.status() == grpc.StatusCode.UNAVAILABLE.value[0]
            assert b"shutting down" in attacker.text
        assert await server.task == 0
        silent.close()


def quickly_idle(*arguments: Any) -> Any:
    options = dict(channel.server_options(*arguments))
    return tuple((options | {channel.MAX_IDLE: 300}).items())


def peers(server: Running) -> Collection[Any]:
    """The connections to the gRPC port."""
    return Sockets(int(server.server.grpc_address.rpartition(":")[2])).look()


async def test_a_process_of_few_files_serves_beside_more_connections_than_it_may_have(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    few = ["bash", "-c", 'ulimit -n 256 && exec "$0" "$@"', *command("serve")]
    arguments = ("--model", str(tiny_model_dir), "--set", "limits.header_seconds=600")
    with serving(tmp_path, *arguments, start=few) as program, contextlib.ExitStack() as stack:
        address, http = program.facts["grpc_address"], program.facts["http_address"]
        neighbour = stack.enter_context(TeacherClient(address, run="neighbour", max_attempts=1))
        neighbour.get_teacher(timeout=LONG)
        host, _, port = address.rpartition(":")
        for _ in range(300):
            stack.enter_context(socket.create_connection((host, int(port))))
        for _ in range(3):
            assert await checked(address) == health_pb2.HealthCheckResponse.SERVING
            async with http_client(http, ClientCredentials()) as asking:
                assert (await asking.get("/livez")).status_code == 200
            neighbour.get_teacher(timeout=LONG)
        assert program.end() == 0
        assert program.log.stat().st_size < 20_000
