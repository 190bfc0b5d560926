"""Bodies that stall and replies that nobody reads hold bytes of the budget, and no more."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import time
import weakref
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.types import Receive, Scope, Send
from teacher_proto.client.credentials import ClientCredentials
from teacher_proto.errors import LsmError, OverloadedError

from teacher_server.http import body as http_body_module
from teacher_server.http.body import UNDECLARED, Charge
from teacher_server.http.errors import error_response
from teacher_server.queue.budget import ByteBudget, Owner
from teacher_server.settings.limits import LimitSettings
from tests.access.pki import ALICE, BOB, RUNS_WITHOUT_CERTIFICATES, write_secret
from tests.server.raw_http import Answer, Peer, alone, connected
from tests.server.running import LONG, Running, eventually, running
from tests.server.test_scoring import http_body

MIB = 1024 * 1024
LIMITS = {
    "max_request_bytes": 2 * MIB,
    "max_tokenizer_bytes": 2 * MIB,
    "max_reply_bytes": 4 * MIB,
    "max_bytes_in_flight": 16 * MIB,
    "max_bytes_in_flight_per_run": 8 * MIB,
}
LARGE = 20 * MIB


@pytest.fixture
async def tight(
    tiny_model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Running]:
    """A server whose runs may hold the body and reply of one large request each."""
    file = write_secret(tmp_path / "runs.toml", RUNS_WITHOUT_CERTIFICATES)
    async with running(
        {"default": tiny_model_dir},
        monkeypatch,
        credentials=ClientCredentials(token=ALICE),
        run="alice",
        access={"credentials_file": file},
        limits=LIMITS,
    ) as found:
        yield found


async def post(peer: Peer, token: str, length: int, body: bytes) -> None:
    await peer.send(
        b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Authorization: Bearer %b\r\nContent-Length: %d\r\n\r\n" % (token.encode(), length)
    )
    await peer.send(body)


async def test_stalled_bodies_hold_the_share_of_their_run(tight: Running) -> None:
    budget = tight.server.service.budget
    size = 2 * MIB - 1
    async with contextlib.AsyncExitStack() as stack:
        peers = [
            await stack.enter_async_context(connected(tight.server.http_address)) for _ in range(6)
        ]
        for peer in peers:
            await post(peer, ALICE, size, b" " * 1000)
        await eventually(lambda: tight.server.lifecycle.active == len(peers))
        assert budget.by_run() == {"alice": size}
        # Small ones of the same run, and large ones of another, go past them.
        assert (await tight.http.post("/v1/score", json=http_body())).status_code == 200
        async with connected(tight.server.http_address) as neighbour:
            await post(neighbour, BOB, size, b" " * size)
            assert (await neighbour.answer()).error["reason"] == "MALFORMED_JSON"
        assert budget.by_run() == {"alice": size}
        # Who waited for room is read when the one before it has left.
        await peers[0].send(b" " * (size - 1000))
        assert (await peers[0].answer()).status == 400
        await eventually(lambda: budget.by_run() == {"alice": size})
    await eventually(lambda: budget.by_run() == {})


class Echo:
    """Reads a body, answers with ``LARGE`` bytes, and charges alice for both."""

    def __init__(self, budget: ByteBudget) -> None:
        self.budget = budget
        self.read: list[int] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        charge = Charge(self.budget, Owner("alice"), time.monotonic() + LONG)
        body = await charge.read(Request(scope, receive), lambda size: None, LARGE)
        self.read.append(len(body))
        await charge.answer(bytes(LARGE))(scope, receive, send)


async def test_a_reply_is_charged_until_it_has_left() -> None:
    budget = ByteBudget(64 * MIB, 64 * MIB, LARGE)
    async with (
        alone(Echo(budget), LimitSettings()) as server,
        connected(server.address) as peer,
    ):
        await peer.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await eventually(lambda: budget.by_run() == {"alice": LARGE})
        assert len((await peer.answer()).body) == LARGE
        await eventually(lambda: budget.by_run() == {})


async def test_a_reply_that_nobody_reads_is_charged_until_its_connection_ends() -> None:
    budget = ByteBudget(64 * MIB, 64 * MIB, LARGE)
    hasty = LimitSettings(write_seconds=0.2)
    async with alone(Echo(budget), hasty) as server, connected(server.address) as peer:
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await peer.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        await eventually(lambda: budget.by_run() == {"alice": LARGE})
        await eventually(lambda: budget.by_run() == {})
        assert server.cut == ["unread_reply"]


async def test_a_body_without_a_length_is_charged_as_it_comes() -> None:
    budget = ByteBudget(64 * MIB, 64 * MIB)
    app = Echo(budget)
    chunk = b"%x\r\n%b\r\n" % (UNDECLARED, bytes(UNDECLARED))
    async with alone(app, LimitSettings()) as server, connected(server.address) as peer:
        await peer.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        await eventually(lambda: budget.by_run() == {"alice": UNDECLARED})
        await peer.send(chunk * 4)
        await eventually(lambda: budget.by_run() == {"alice": 4 * UNDECLARED})
        await peer.send(b"0\r\n\r\n")
        assert (await peer.answer()).status == 200
        assert app.read == [4 * UNDECLARED]
        await eventually(lambda: budget.by_run() == {})


@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_is_read_as_it_was_sent(chunked: bool) -> None:
    budget = ByteBudget(64 * MIB, 64 * MIB)
    sent = bytes(number * number % 251 for number in range(300_001))
    found: list[bytes] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        charge = Charge(budget, Owner("alice"), time.monotonic() + LONG)
        found.append(bytes(await charge.read(Request(scope, receive), lambda size: None, LARGE)))
        await charge.answer(b"{}")(scope, receive, send)

    async with alone(app, LimitSettings()) as server, connected(server.address) as peer:
        if chunked:
            await peer.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
            for part in (sent[:70_000], sent[70_000:70_001], sent[70_001:]):
                await peer.send(b"%x\r\n%b\r\n" % (len(part), part))
            await peer.send(b"0\r\n\r\n")
        else:
            head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
            await peer.send(head % len(sent) + sent)
        assert (await peer.answer()).status == 200
    assert found == [sent]


async def test_a_body_whose_length_is_known_has_its_place_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    made: list[int] = []

    class Counted(bytearray):
        def __init__(self, size: int) -> None:
            made.append(size)
            super().__init__(size)

        def __iadd__(self, more: object) -> Counted:
            raise AssertionError("the body is copied while it arrives")

    monkeypatch.setattr(http_body_module, "bytearray", Counted, raising=False)
    app = Echo(ByteBudget(64 * MIB, 64 * MIB))
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    async with alone(app, LimitSettings()) as server, connected(server.address) as peer:
        await peer.send(head % (2 * MIB) + bytes(2 * MIB))
        assert (await peer.answer()).status == 200
    assert (app.read, made) == ([2 * MIB], [2 * MIB])


class Part:
    """Stands for what a handler holds of a body."""


async def test_a_refused_body_is_let_go_of_when_it_is_answered() -> None:
    parts: list[weakref.ref[Part]] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        part = Part()
        parts.append(weakref.ref(part))
        try:
            while True:
                await receive()
        except LsmError as error:
            await error_response(error)(scope, receive, send)

    head = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    gc.disable()
    try:
        async with alone(app, LimitSettings()) as server, connected(server.address) as peer:
            await peer.send(head + b"none\r\n")
            assert (await peer.answer()).error["reason"] == "MALFORMED_HTTP"
            await eventually(lambda: parts[0]() is None)
    finally:
        gc.enable()


async def test_who_waits_for_room_is_not_read_meanwhile() -> None:
    budget = ByteBudget(LARGE + 4 * MIB, LARGE + 4 * MIB)
    app = Echo(budget)
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % LARGE
    async with (
        alone(app, LimitSettings()) as server,
        connected(server.address) as first,
        connected(server.address) as second,
    ):
        await first.send(head)
        await eventually(lambda: budget.by_run() == {"alice": LARGE})
        sending = asyncio.create_task(second.send(head + bytes(LARGE)))
        await first.send(bytes(LARGE))
        assert not sending.done()
        answers: list[Answer] = [await first.answer(), await second.answer()]
        await sending
        assert [answer.status for answer in answers] == [200, 200]
        assert app.read == [LARGE, LARGE]


async def test_metrics_show_what_is_held(tight: Running) -> None:
    async with connected(tight.server.http_address) as peer:
        await post(peer, ALICE, 1000, b"")
        await eventually(lambda: tight.server.service.budget.by_run() == {"alice": 1000})
        text = (await tight.http.get("/metrics")).text
        assert 'lsm_teacher_connections{surface="http"}' in text
        await peer.send(json.dumps(http_body()).encode().ljust(1000))
        assert (await peer.answer()).status == 200


class Asked(Echo):
    """Answers with ``LARGE`` bytes once there is room for them; everybody is an owner."""

    def __init__(self, budget: ByteBudget) -> None:
        super().__init__(budget)
        self.most = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        owner = Owner("", f"10.0.0.{len(self.read)}:1", f"10.0.0.{len(self.read)}")
        self.read.append(0)
        charge = Charge(self.budget, owner, time.monotonic() + LONG)
        async with contextlib.aclosing(charge):  # also where it is refused
            try:
                await charge.read(Request(scope, receive), lambda size: None, LARGE)
                await charge.expect(LARGE)
                self.most = max(self.most, self.budget.queue.held)
                answer: Response = charge.answer(bytes(LARGE))
            except LsmError as error:
                answer = PlainTextResponse(f"{error.reason}: {error.what}")
            await answer(scope, receive, send)


async def test_replies_that_do_not_fit_together_come_one_after_the_other() -> None:
    """Each holds its room until its caller has read it: who reads one after the other in an
    order of its own would wait for a reply that waits for the room of the next one's."""
    app = Asked(ByteBudget(LARGE + 2 * MIB, LARGE + 2 * MIB, LARGE))
    async with (
        alone(app, LimitSettings()) as server,
        contextlib.AsyncExitStack() as stack,
    ):
        peers = [await stack.enter_async_context(connected(server.address)) for _ in range(6)]
        for peer in peers:
            await peer.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        answers = await asyncio.gather(*(peer.answer() for peer in peers))
        assert [len(answer.body) for answer in answers] == [LARGE] * 6
        assert app.most <= LARGE + 2 * MIB
        await eventually(lambda: app.budget.queue.held == 0)


async def test_a_reply_that_could_never_be_held_is_refused_and_leaves_nothing() -> None:
    app = Asked(ByteBudget(16 * MIB, 16 * MIB))
    async with (
        alone(app, LimitSettings()) as server,
        contextlib.AsyncExitStack() as stack,
    ):
        peers = [await stack.enter_async_context(connected(server.address)) for _ in range(6)]
        for peer in peers:
            await peer.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
            assert (await peer.answer()).body.startswith(b"LIMIT_EXCEEDED: 20971520 bytes")
        assert app.budget.queue.held == 0


async def test_a_slow_small_body_gives_its_room_to_one_that_waits() -> None:
    budget = ByteBudget(16 * MIB, 4 * MIB)
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"

    class OfOneAddress(Echo):
        async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
            peer = f"10.0.0.1:{len(self.read)}"
            self.read.append(0)
            charge = Charge(self.budget, Owner("", peer, "10.0.0.1"), time.monotonic() + LONG)
            async with contextlib.aclosing(charge):
                try:
                    await charge.read(Request(scope, receive), lambda size: None, LARGE)
                    answer: Response = charge.answer(b"{}")
                except OverloadedError as error:
                    answer = PlainTextResponse(f"{error.reason}: {error.what}")
                await answer(scope, receive, send)

    large = 4 * MIB - 256 * 1024  # all that is not kept for small ones
    async with (
        alone(OfOneAddress(budget), LimitSettings()) as server,
        connected(server.address) as stalled,
        connected(server.address) as slow,
        connected(server.address) as waiting,
    ):
        await stalled.send(head % large)
        await eventually(lambda: budget.queue.held == large)
        await slow.send(head % (256 * 1024) + b" ")
        await eventually(lambda: budget.queue.held == 4 * MIB)
        await waiting.send(head % 10 + bytes(10))
        assert (await waiting.answer()).status == 200
        told = (await slow.answer()).body
        assert b"TOO_MANY_BYTES: there is no room for a body that arrives slowly" in told


@pytest.mark.parametrize("more", [-1, 0, 1])
@pytest.mark.parametrize("chunked", [False, True])
async def test_a_body_as_large_as_may_be_is_read_with_and_without_its_length(
    chunked: bool, more: int
) -> None:
    """The bytes that it may have fit the budget; twice those of what was there before do not."""
    most = 5 * MIB
    budget = ByteBudget(64 * MIB, 6 * MIB)
    limits = LimitSettings(max_request_bytes=most).server_limits()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        charge = Charge(budget, Owner("alice"), time.monotonic() + LONG)
        async with contextlib.aclosing(charge):
            try:
                body = await charge.read_json(Request(scope, receive), limits)
                answer: Response = PlainTextResponse(str(len(body)))
            except LsmError as error:
                answer = PlainTextResponse(error.reason)
            await answer(scope, receive, send)

    sent = bytes(most + more)
    head = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    async with alone(app, LimitSettings()) as server, connected(server.address) as peer:
        if chunked:
            sent = b"".join(
                b"%x\r\n%b\r\n" % (len(part), part)
                for part in (sent[begin : begin + MIB] for begin in range(0, len(sent), MIB))
            )
            await peer.send(head + b"Transfer-Encoding: chunked\r\n\r\n" + sent + b"0\r\n\r\n")
        else:
            await peer.send(head + b"Content-Length: %d\r\n\r\n" % len(sent))
            if more <= 0:  # else the length alone has the answer, and nothing more is read
                await peer.send(sent)
        told = (await peer.answer()).body.decode()
    assert told == ("REQUEST_TOO_LARGE" if more > 0 else str(most + more))
    assert budget.queue.held == 0
