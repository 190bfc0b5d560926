"""What a refused call held is let go of when it is answered, not when the garbage collector
comes by."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
from teacher_proto import codec
from teacher_proto.errors import InvalidRequestError
from teacher_proto.types import ScoreRequest

from teacher_server.failures import forget_frames
from tests.server.running import running


@pytest.fixture
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Body:
    pass


def test_an_error_forgets_what_the_calls_held_that_it_came_through(no_collector: None) -> None:
    held: list[weakref.ref[Body]] = []

    def fails() -> None:
        body = Body()
        held.append(weakref.ref(body))
        raise ValueError("inner")

    try:
        try:
            fails()
        except ValueError as error:
            raise KeyError("outer") from error
    except KeyError as error:
        kept = error
    assert held[0]() is not None
    forget_frames(kept)
    assert held[0]() is None
    assert str(kept.__cause__) == "inner"


async def test_a_refused_call_is_forgotten_when_it_is_answered(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, no_collector: None
) -> None:
    decode, loop = codec.decode_request, asyncio.get_running_loop()
    gone: list[asyncio.Event] = []
    held: list[weakref.ref[ScoreRequest]] = []

    def decoded(body: bytes) -> ScoreRequest:
        request, event = decode(body), asyncio.Event()
        gone.append(event)
        held.append(weakref.ref(request, lambda _: loop.call_soon_threadsafe(event.set)))
        return request

    async with running({"default": tiny_model_dir}, monkeypatch) as server:
        monkeypatch.setattr(codec, "decode_request", decoded)
        for _ in range(2):
            with pytest.raises(InvalidRequestError):
                await server.score(server.request(temperature=1e-9))
        async with asyncio.timeout(10):
            await asyncio.gather(*(event.wait() for event in gone))
    assert len(gone) == 2
