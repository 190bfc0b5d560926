"""Cancelling at every stage of a request, with a neighbour beside it: proof 10."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from teacher_proto import codec
from teacher_proto.types import ScoreReply, ScoreRequest, TokenPrompt
from transformers.models.llama.modeling_llama import LlamaModel

from teacher_server.engines.base import Job, JobResult
from tests.proofs.ledger import Proof, count
from tests.server.running import LONG, Running, WatchedEngine, continuation, ids, running
from tests.support.gate import Gate, gated

TIMES = 50
STAGES = ("the body", "the queue", "the engine's line", "between chunks", "the reply")
LIMITS = {"max_inflight_tokens": 512}
ENGINE = {"deterministic": True, "max_batch_tokens": 32}


class Room:
    """A server, the gate before its model, and the bytes of a neighbour that was left alone."""

    def __init__(self, server: Running, gate: Gate) -> None:
        self.server = server
        self.gate = gate
        self.alone: bytes = b""
        self.number = 0

    @property
    def queue(self) -> Any:
        (teacher,) = self.server.server.service.teachers
        return teacher.admission.queue

    @property
    def held(self) -> int:
        """Tokens that wait or are in flight."""
        return int(self.queue.queued_tokens + self.queue.inflight_tokens)

    def request(self, name: str, length: int) -> ScoreRequest:
        self.number += 1
        return self.server.request(
            request_id=f"{name}-{self.number}",
            prompt=TokenPrompt(ids(1, 2, 3)),
            continuations=(continuation(*(n % 300 for n in range(length))),),
        )

    def ask(self, name: str, length: int = 20) -> asyncio.Task[ScoreReply]:
        return asyncio.create_task(self.server.score(self.request(name, length)))

    async def holds(self, tokens: int) -> None:
        async with asyncio.timeout(LONG):
            while self.held != tokens:  # noqa: ASYNC110
                await asyncio.sleep(0)


@asynccontextmanager
async def room(model: Path, patch: pytest.MonkeyPatch) -> AsyncIterator[Room]:
    with gated(LlamaModel) as gate:
        async with running({"default": model}, patch, limits=LIMITS, engine=ENGINE) as server:
            found = Room(server, gate)
            found.alone = rows(await found.ask("alone"))
            yield found


def rows(reply: ScoreReply) -> bytes:
    support = reply.results[0].rows.support
    assert support is not None
    return support.ids.tobytes() + support.log_probs.tobytes()


async def cancelled_at(here: Room, stage: str) -> tuple[float, bool]:
    """(seconds from cancelling until nothing of the request is held, whether the neighbour's
    bytes are those of a neighbour that was left alone)."""
    active = here.server.server.lifecycle
    gate = here.gate
    gate.forget()
    if stage == "the body":
        neighbour = here.ask("neighbour")
        host, _, port = here.server.server.http_address.rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        head = b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        writer.write(head + b'Content-Length: 100000\r\n\r\n{"prompt"')
        await until(lambda: active.active == 2 or neighbour.done())
        same = rows(await neighbour) == here.alone
        await until(lambda: active.active == 1)
        began = time.monotonic()
        writer.close()
        await until(lambda: active.active == 0)
        return time.monotonic() - began, same
    if stage == "the reply":
        return await cancelled_in_reply(here)
    gate.shut()
    lengths = {"the queue": 507, "the engine's line": 40, "between chunks": 200}
    first = here.ask("first", lengths[stage] if stage != "the engine's line" else 40)
    await gate.reached()
    victim = first
    if stage != "between chunks":
        held = here.held
        victim = here.ask("victim")
        await here.holds(held + 23)
    before = here.held - (203 if victim is first else 23)
    began = time.monotonic()
    victim.cancel()
    await here.holds(before)
    freed = time.monotonic() - began
    neighbour = here.ask("neighbour")
    gate.open()
    same = rows(await neighbour) == here.alone
    await asyncio.gather(first, victim, return_exceptions=True)
    return freed, same


async def cancelled_in_reply(here: Room) -> tuple[float, bool]:
    """The caller leaves when its rows are there and its reply is being written."""
    begun, go_on = threading.Event(), threading.Event()
    encode = codec.encode_reply

    def held_back(*arguments: Any, **named: Any) -> Any:
        begun.set()
        assert go_on.wait(LONG)
        return encode(*arguments, **named)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(codec, "encode_reply", held_back)
        victim = here.ask("victim")
        assert await asyncio.to_thread(begun.wait, LONG)
        patch.undo()
        began = time.monotonic()
        victim.cancel()
        await here.holds(0)
        await until(lambda: here.server.server.lifecycle.active == 0)
        freed = time.monotonic() - began
        neighbour = here.ask("neighbour")
        go_on.set()
        return freed, rows(await neighbour) == here.alone


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(LONG):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0)


class Deaf(WatchedEngine):
    """Goes on with what nobody waits for, and keeps its place meanwhile."""

    async def score(self, job: Job) -> JobResult:
        work: Awaitable[JobResult] = asyncio.ensure_future(self.inner.score(job))
        try:
            return await asyncio.shield(work)
        except asyncio.CancelledError:
            await work
            raise


async def at_every_stage(model: Path, times: int) -> dict[str, list[tuple[float, bool]]]:
    found: dict[str, list[tuple[float, bool]]] = {}
    with pytest.MonkeyPatch.context() as patch:
        async with room(model, patch) as here:
            for stage in STAGES:
                found[stage] = [await cancelled_at(here, stage) for _ in range(times)]
    return found


async def deaf_engine_keeps_its_place(model: Path) -> bool:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.server.running.WatchedEngine", Deaf)
        async with room(model, patch) as here:
            here.gate.forget()
            here.gate.shut()
            victim = here.ask("victim", 200)
            await here.gate.reached()
            victim.cancel()
            await asyncio.gather(victim, return_exceptions=True)
            await until(lambda: here.server.server.lifecycle.active == 0)
            for _ in range(100):
                await asyncio.sleep(0)
            kept = here.held > 0
            here.gate.open()
            await until(lambda: here.held == 0)
    return kept


async def test_cancelling_frees_the_place_at_every_stage_and_leaves_neighbours_alone(
    tiny_model_dir: Path,
) -> None:
    found = await at_every_stage(tiny_model_dir, 1)
    assert all(same for calls in found.values() for _, same in calls)
    assert await deaf_engine_keeps_its_place(tiny_model_dir)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_proof_10_cancelling_at_five_stages(tiny_model_dir: Path, proof: Proof) -> None:
    times = count(TIMES)
    found = asyncio.run(at_every_stage(tiny_model_dir, times))
    for stage, calls in found.items():
        name = f"{stage.replace(' ', '_').replace(chr(39), '')}_freed_ms"
        proof.figure(name, 1000 * max(freed for freed, _ in calls), at_most=100)
    same = sum(same for calls in found.values() for _, same in calls)
    proof.figure("neighbours_equal", same, exactly=times * len(STAGES))
    deaf = asyncio.run(deaf_engine_keeps_its_place(tiny_model_dir))
    proof.control("an engine that goes on with what nobody waits for", failed=deaf)
    proof.settle()
