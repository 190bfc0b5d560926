"""Bodies in chunks take turns, in pieces of few chunks, and a part of the event loop's time; so
does what everybody may have, slice by slice."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

import pytest
from starlette.types import Receive, Scope, Send
from teacher_proto.errors import InvalidRequestError

from teacher_server.http.connection.connection import Connection
from teacher_server.http.connection.exchange import FEW, LINES, SLICE
from teacher_server.http.connection.host import CALLER_KEY
from teacher_server.http.connection.turns import AT_ONCE, LONGEST, SHARE, Turns
from teacher_server.http.errors import error_response
from teacher_server.settings.limits import LimitSettings
from tests.server.raw_http import alone, connected
from tests.server.running import LONG


class Clock:
    """Processor time that passes when a piece of work says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


async def finished(turns: Turns, clock: Clock, costs: list[float]) -> list[int]:
    """Adds a piece of work for each cost, and returns the order in which they were done."""
    done: list[int] = []
    over = asyncio.Event()

    def piece(number: int) -> None:
        clock.now += costs[number]
        done.append(number)
        if len(done) == len(costs):
            over.set()

    for number in range(len(costs)):
        turns.add(lambda number=number: piece(number))
    await asyncio.wait_for(over.wait(), LONG)
    return done


async def test_pieces_are_done_in_their_order() -> None:
    clock = Clock()
    turns = Turns(clock)
    assert await finished(turns, clock, [AT_ONCE / 10] * 30) == list(range(30))
    assert await finished(turns, clock, [0.0] * 3) == list(range(3))


def pauses_of(turns: Turns, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Seconds of the pauses that these turns make from now on, each of which is over at once."""
    loop = asyncio.get_running_loop()
    pauses: list[float] = []
    later = loop.call_later

    def watched(seconds: float, call: object, *rest: object) -> asyncio.TimerHandle:
        if getattr(call, "__self__", None) is turns:
            pauses.append(seconds)
            seconds = 0.0
        return later(seconds, call, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(loop, "call_later", watched)
    return pauses


async def test_much_work_leaves_the_loop_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    turns = Turns(clock)
    pauses = pauses_of(turns, monkeypatch)
    cost = 2 * AT_ONCE
    await finished(turns, clock, [cost] * 10)
    # One part of the time is work; whoever comes last does not wait for it.
    assert pauses[:9] == pytest.approx([(SHARE - 1) * cost] * 9)
    pauses.clear()
    await finished(turns, clock, [AT_ONCE / 4] * 8)
    assert 1 <= len(pauses) <= 3


async def test_who_comes_last_does_not_wait_for_all_that_was_done_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    turns = Turns(clock)
    pauses = pauses_of(turns, monkeypatch)
    for _ in range(2000):
        with turns.charged():
            clock.now += 2 * LONGEST
    assert await finished(turns, clock, [2 * AT_ONCE] * 3) == [0, 1, 2]
    assert pauses[:2] == pytest.approx([LONGEST, (SHARE - 1) * 2 * AT_ONCE])


async def test_work_that_fails_holds_up_nobody() -> None:
    turns, clock = Turns(), Clock()

    def fails() -> None:
        raise RuntimeError("for a test")

    told: list[object] = []
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(lambda loop, context: told.append(context["exception"]))
    turns.add(fails)
    assert await finished(turns, clock, [0.0] * 2) == [0, 1]
    assert len(told) == 1


async def pieces_of(body: bytes, monkeypatch: pytest.MonkeyPatch) -> tuple[list[bytes], int]:
    """The pieces in which a body in chunks is parsed, and the answer's status."""
    pieces: list[bytes] = []
    parse = Connection.parse

    def watched(self: Connection, data: bytes) -> None:
        pieces.append(data)
        parse(self, data)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        try:
            while (await receive())["more_body"]:
                pass
        except InvalidRequestError as error:
            await error_response(error)(scope, receive, send)
            return
        headers = [(b"content-length", b"2")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"{}"})

    monkeypatch.setattr(Connection, "parse", watched)
    async with alone(app, LimitSettings()) as server, connected(server.address) as peer:
        await peer.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
        status = (await peer.answer()).status
    return pieces[1:], status  # after the head


@pytest.mark.parametrize("chunk", [1, 100, 4096, 50_000])
async def test_a_piece_has_few_chunks_or_few_bytes(
    monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    count = max(1, min(5000, 200_000 // chunk))
    body = b"%x\r\n%b\r\n" % (chunk, b"a" * chunk) * count + b"0\r\n\r\n"
    pieces, status = await pieces_of(body, monkeypatch)
    assert (b"".join(pieces), status) == (body, 200)
    assert all(len(piece) <= FEW or piece.count(b"\n") <= LINES for piece in pieces)
    if chunk > FEW:  # where chunks are large there are few pieces, as many as are read at once
        assert len(pieces) < len(body) // (8 * FEW)


async def test_line_feeds_of_a_body_are_no_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    body = b"%x\r\n%b\r\n" % (50_000, b"\n" * 50_000) * 20 + b"0\r\n\r\n"
    pieces, status = await pieces_of(body, monkeypatch)
    assert (b"".join(pieces), status) == (body, 200)
    assert len(pieces) < len(body) // (8 * FEW)


@pytest.mark.parametrize(
    "before", [b"", b"1\r\na\r\n", b"%x\r\n%b\r\n" % (9 * FEW, b"\n" * 9 * FEW)]
)
@pytest.mark.parametrize("lines", [1000, 20_000])
async def test_what_follows_the_last_chunk_is_read_in_small_pieces(
    monkeypatch: pytest.MonkeyPatch, before: bytes, lines: int
) -> None:
    """There a line ends at a line feed."""
    trailer = b"a:\n" * lines + b"\r\n"
    pieces, status = await pieces_of(before + b"00\r\n" + trailer, monkeypatch)
    assert status == (200 if lines == 1000 else 400)  # an end of so many bytes is not read
    read = b"".join(pieces)
    for begin, piece in zip(
        itertools.accumulate(map(len, pieces), initial=0), pieces, strict=False
    ):
        if begin + len(piece) > len(before):
            assert len(piece) <= FEW or piece.count(b"\n") <= LINES
    assert read.startswith(before)


async def sent(body: bytes, caller: object, monkeypatch: pytest.MonkeyPatch) -> tuple[bytes, int]:
    """What a caller reads of this body, and how many turns its slices took."""
    asked: list[Turns] = []
    add = Turns.add

    def counting(self: Turns, piece: Callable[[], None]) -> None:
        asked.append(self)
        add(self, piece)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if caller is not None:
            scope[CALLER_KEY] = caller
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    monkeypatch.setattr(Turns, "add", counting)
    async with alone(app, LimitSettings()) as server, connected(server.address) as peer:
        await peer.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        return (await peer.answer()).body, asked.count(server.server.host.sending)


@pytest.mark.parametrize(
    ("size", "turns"), [(0, 0), (SLICE, 0), (SLICE + 1, 1), (8 * SLICE, 7), (8 * SLICE + 5, 8)]
)
async def test_what_everybody_may_have_takes_a_turn_for_each_further_slice(
    monkeypatch: pytest.MonkeyPatch, size: int, turns: int
) -> None:
    body = bytes(n % 251 for n in range(SLICE)) * 9
    assert await sent(body[:size], None, monkeypatch) == (body[:size], turns)


async def test_the_reply_of_a_caller_who_was_let_in_takes_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    body = b"a" * (8 * SLICE)
    assert await sent(body, "a run", monkeypatch) == (body, 0)


class Costly:
    """Processor time of which ``cost`` seconds pass with every piece of work."""

    def __init__(self, cost: float) -> None:
        self.cost = cost
        self.now = 0.0

    def __call__(self) -> float:
        self.now += self.cost
        return self.now


async def test_small_answers_do_not_hold_up_the_large_one_after_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """However many there were: probes, refusals of strangers, small files of the pages."""
    bodies = {"/small": b"{}", "/large": bytes(3 * SLICE)}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        body = bodies[scope["path"]]
        headers = [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    cost = LONGEST / 20
    async with alone(app, LimitSettings()) as server, connected(server.address) as peer:
        server.server.host.sending = turns = Turns(Costly(cost))
        pauses = pauses_of(turns, monkeypatch)
        for path in ["/small"] * 20 + ["/large"]:
            await peer.send(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % path.encode())
            assert (await peer.answer()).body == bodies[path]
    # Before each further slice: the one before it, and the turn itself.
    assert pauses[:2] == pytest.approx([(SHARE - 1) * 2 * cost] * 2)
