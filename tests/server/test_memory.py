"""What large bodies leave in the allocator's heaps goes back to the system."""

from __future__ import annotations

import asyncio
import gc
import os
import platform
import subprocess
import sys

import grpc
import pytest
from teacher_proto.processes.memory import give_back_free_pages
from teacher_proto.rows import required
from teacher_proto.types import ChatMessage, ChatPrompt, ScoreRequest

from teacher_server import memory
from teacher_server.http.models import ScoreBody
from tests.server.running import Running, body_of, eventually
from tests.support.http2 import message, raw_caller

MIB = 1 << 20
BLOCK = 32 * 1024
DOCUMENT = {
    "prompt": {"text": "a"},
    "continuations": [{"token_ids": [1]}],
    "top_k": 1,
    "temperature": 1.0,
}


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="its heaps are glibc's")
def test_free_pages_in_the_middle_of_a_heap_are_given_back() -> None:
    blocks = [bytearray(b"a") * BLOCK for _ in range(96 * MIB // BLOCK)]
    last = bytearray(b"a") * BLOCK  # what lies behind them keeps them from being given back
    del blocks
    before = memory.resident()
    give_back_free_pages()
    assert before - memory.resident() > 48 * MIB
    assert last


async def test_pages_are_given_back_when_the_process_has_grown_and_not_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given, looked, has = 0, 0, 100 * MIB

    def give() -> None:
        nonlocal given
        given += 1

    def resident() -> int:
        nonlocal looked
        looked += 1
        return has

    async def look_on() -> None:
        until = looked + 3
        await eventually(lambda: looked >= until)

    monkeypatch.setattr(memory, "give_back_free_pages", give)
    monkeypatch.setattr(memory, "resident", resident)
    monkeypatch.setattr(memory, "LOOK_SECONDS", 0.001)
    watching = asyncio.create_task(memory.give_back_as_it_grows())
    await look_on()
    has += memory.GROWTH - 1
    await look_on()
    assert given == 0
    has += 1
    await eventually(lambda: given == 1)
    await look_on()
    assert given == 1, "it has grown no more"
    has -= memory.GROWTH
    await look_on()
    has += memory.GROWTH
    await eventually(lambda: given == 2)
    has, before = 0, has  # the system does not say for a moment
    await look_on()
    has = before
    await look_on()
    assert given == 2
    watching.cancel()


async def test_a_server_gives_back_what_large_messages_left(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = asyncio.Event()
    loop = asyncio.get_running_loop()
    monkeypatch.setattr(
        memory, "give_back_free_pages", lambda: loop.call_soon_threadsafe(given.set)
    )
    monkeypatch.setattr(memory, "GROWTH", MIB)
    async with raw_caller(server.server.grpc_address) as caller:
        caller.begin(1, "/teacher_proto.v1.TeacherScoringService/Score")
        await caller.send(1, message(12 * MIB) + bytes(12 * MIB))
        await asyncio.wait_for(given.wait(), 60)


@pytest.mark.parametrize("wire", ["grpc", "http"])
async def test_a_request_is_freed_with_its_answer(server: Running, wire: str) -> None:
    text = "a" * (required(server.info.limits.max_text_bytes, "limit") + 1)
    kept = (ScoreRequest, ScoreBody)

    async def refused() -> None:
        if wire == "grpc":
            prompt = ChatPrompt((ChatMessage("user", text[:-1]), ChatMessage("user", "b")))
            with pytest.raises(grpc.aio.AioRpcError):
                await server.raw_score(body_of(server.request(prompt=prompt)))
            return
        answer = await server.http.post("/v1/score", json=DOCUMENT | {"prompt": {"text": text}})
        assert answer.json()["error"]["reason"] == "LIMIT_EXCEEDED"

    await refused()
    gc.collect()
    gc.disable()
    try:
        await refused()
        await server.raw_score(body_of(server.request()))
        assert (await server.http.post("/v1/score", json=DOCUMENT)).status_code == 200
        # The client may have its answer before the server's task has ended; what a cycle holds
        # stays for ever.
        await eventually(lambda: not any(isinstance(one, kept) for one in gc.get_objects()))
    finally:
        gc.enable()


HEAPS_OF_THREADS = """
import ctypes, os, sys, threading
from teacher_server import memory

if "bounded" in sys.argv:
    memory.give_freed_memory_back()
here = threading.Barrier(33)

def allocate():
    kept = [bytearray(100_000) for _ in range(10)]
    here.wait()
    del kept

threads = [threading.Thread(target=allocate) for _ in range(32)]
for one in threads:
    one.start()
here.wait()
for one in threads:
    one.join()
libc = ctypes.CDLL(None)
libc.fdopen.restype = ctypes.c_void_p
out = ctypes.c_void_p(libc.fdopen(os.dup(1), b"w"))
libc.malloc_info(0, out)
libc.fflush(out)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="its heaps are glibc's")
def test_threads_share_one_heap() -> None:
    def heaps(*arguments: str) -> int:
        told = subprocess.run(
            [sys.executable, "-c", HEAPS_OF_THREADS, *arguments],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "MALLOC_ARENA_MAX": "32"},
        )
        return told.stdout.count("<heap nr=")

    found = heaps("bounded")
    assert found <= memory.HEAPS < heaps(), found
