"""The client of a vLLM server of rollouts, against a scripted one: real sockets, no vLLM."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from teacher_proto.errors import LsmError

from student_trainer.rollout.vllm import server as client
from student_trainer.rollout.vllm.core import DIED, Request
from student_trainer.rollout.vllm.sampler import Draws
from student_trainer.rollout.vllm.server import ServerCore

# Seconds: longer than any pause of a test's server, and than a loaded machine's.
SILENCE = 1.5
PAUSE = 0.05
FACTS = {"/version": {"version": "0.32.0"}, "/get_world_size": {"world_size": 1}}


class Stream:
    """One response, as the scripted server writes it."""

    def __init__(self, handler: BaseHTTPRequestHandler) -> None:
        self._handler = handler

    def token(self, ended: bool = False, rank: int | None = 0) -> None:
        own = {"token_ids": [7], "logprobs": {"content": [{"logprob": -1.0, "rank": rank}]}}
        event = {"choices": [{**own, "finish_reason": "stop" if ended else None}]}
        self._handler.wfile.write(b"data: " + json.dumps(event).encode() + b"\n\n")

    def wait_for_the_end(self) -> None:
        """Until the client has closed its side."""
        assert self._handler.rfile.read(1) == b""


Script = Callable[[int, Stream], None]


@contextmanager
def scripted(script: Script) -> Iterator[str]:
    """The address of a server that calls ``script`` with the number of each request and its
    stream, which ends when it returns."""
    numbers = itertools.count()

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *arguments: Any) -> None:
            pass

        def _begin(self) -> None:
            self.send_response(200)
            self.end_headers()

        def do_GET(self) -> None:
            self._begin()
            self.wfile.write(json.dumps(FACTS[self.path]).encode())

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self._begin()
            script(next(numbers), Stream(self))

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        running = threading.Thread(target=server.serve_forever, args=(PAUSE,))
        running.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            running.join()


def requests(count: int) -> list[Request]:
    return [Request([5, 6], Draws(1, 1, "p", n, 60, 1.0, 1.0), [2]) for n in range(count)]


def test_one_that_waits_while_others_are_written_is_no_dead_server() -> None:
    first, pause = threading.Event(), threading.Event()
    tokens = int(1.5 * SILENCE / PAUSE)

    def script(number: int, stream: Stream) -> None:
        if number:
            assert first.wait(60)
        else:
            for _ in range(tokens):
                stream.token()
                pause.wait(PAUSE)
        stream.token(ended=True)
        first.set()

    with scripted(script) as address:
        core = ServerCore(address, sequences=1, answer_seconds=SILENCE)
        found = list(core.write(requests(2)))
    assert sorted(len(response.token_ids) for response in found) == [1, tokens + 1]


@pytest.mark.parametrize("tokens", [0, 2])
def test_a_server_that_says_nothing_any_more_is_an_error(tokens: int) -> None:
    def script(number: int, stream: Stream) -> None:
        for _ in range(tokens):
            stream.token()
        stream.wait_for_the_end()

    with scripted(script) as address:
        core = ServerCore(address, sequences=2, answer_seconds=0.4)
        with pytest.raises(LsmError, match=r"said nothing for 0\.4 seconds") as died:
            list(core.write(requests(5)))
    assert died.value.reason == DIED


def test_what_no_response_can_be_made_of_is_an_error() -> None:
    with scripted(lambda number, stream: stream.token(ended=True, rank=None)) as address:
        core = ServerCore(address, sequences=2, answer_seconds=SILENCE)
        with pytest.raises(LsmError, match="TypeError") as died:
            list(core.write(requests(1)))
    assert died.value.reason == DIED


def test_whoever_stops_gives_up_every_request_and_sends_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The third connects once the second was given up, which is after the stop."""
    arrived: list[int] = []
    second, given_up = threading.Event(), threading.Event()
    connected = itertools.count()

    class Late(HTTPConnection):
        def connect(self) -> None:
            if next(connected) == 2:
                assert given_up.wait(60)
            super().connect()

    def script(number: int, stream: Stream) -> None:
        arrived.append(number)
        if number == 0:
            assert second.wait(60)
        if number == 1:
            second.set()
            stream.wait_for_the_end()
            given_up.set()
        stream.token(ended=True)

    with scripted(script) as address:
        core = ServerCore(address, sequences=2, answer_seconds=60)
        monkeypatch.setattr(client, "HTTPConnection", Late)
        with closing(core.write(requests(3))) as written:
            next(written)
    assert given_up.is_set()
    assert arrived == [0, 1], "nothing is asked after the stop"
