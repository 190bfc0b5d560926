"""A server in the test's own event loop, on free ports, over real engines and sockets."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
import pytest
from teacher_proto import AsyncTeacherClient, codec
from teacher_proto.client.credentials import ClientCredentials
from teacher_proto.types import (
    Continuation,
    ScoreReply,
    ScoreRequest,
    Segment,
    ServerInfo,
    TokenPrompt,
)

from teacher_server.commands.serve import Server
from teacher_server.config import ServeConfig
from teacher_server.engines.adapter import Adapter
from teacher_server.engines.base import (
    CountsPasses,
    Engine,
    EngineDescription,
    Job,
    JobResult,
    PassCount,
)
from teacher_server.engines.torch.transformers import TransformersEngine
from teacher_server.settings.teachers import EngineSettings
from teacher_server.teachers import load

SCORE = "/teacher_proto.v1.TeacherScoringService/Score"
LONG = 60.0


class WatchedEngine:
    """A real engine that counts calls and can hold them at a gate, or be declared dead."""

    def __init__(self, inner: Engine) -> None:
        self.inner = inner
        self.jobs: list[Job] = []
        self.cancelled = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.start_gate = asyncio.Event()
        self.start_gate.set()
        self._arrived = asyncio.Condition()
        self._callbacks: list[Callable[[BaseException], None]] = []

    @property
    def description(self) -> EngineDescription:
        return self.inner.description

    async def start(self) -> None:
        await self.start_gate.wait()
        await self.inner.start()

    async def score(self, job: Job) -> JobResult:
        self.jobs.append(job)
        async with self._arrived:
            self._arrived.notify_all()
        try:
            await self.gate.wait()
            return await self.inner.score(job)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise

    def hold_adapters(self, adapters: Mapping[str, Adapter]) -> None:
        self.inner.hold_adapters(adapters)

    def pass_count(self) -> PassCount:
        assert isinstance(self.inner, CountsPasses)
        return self.inner.pass_count()

    def on_death(self, callback: Callable[[BaseException], None]) -> None:
        self._callbacks.append(callback)
        self.inner.on_death(callback)

    async def close(self) -> None:
        await self.inner.close()

    async def has_jobs(self, count: int) -> None:
        """Returns once ``count`` jobs arrived since ``hold``."""
        async with self._arrived, asyncio.timeout(LONG):
            await self._arrived.wait_for(lambda: len(self.jobs) >= count)

    def hold(self) -> None:
        """From now on jobs wait for ``gate``; the count starts at 0."""
        self.jobs.clear()
        self.gate.clear()

    def die(self) -> None:
        for callback in self._callbacks:
            callback(RuntimeError("killed by the test"))


@dataclass
class Running:
    server: Server
    task: asyncio.Task[int]
    engines: dict[str, WatchedEngine]
    client: AsyncTeacherClient
    http: httpx.AsyncClient
    info: ServerInfo

    def request(self, teacher: str = "default", **changes: Any) -> ScoreRequest:
        """A small valid request with ids of the teacher's vocabulary."""
        request = ScoreRequest(
            request_id="request-1",
            run="run",
            teacher=teacher,
            tokenizer_hash=self.info.teacher(teacher).identity.tokenizer_hash,
            prompt=TokenPrompt(ids(1, 2, 3)),
            continuations=(continuation(4, 5, 6), continuation(7, 8)),
            top_k=4,
            temperature=1.0,
        )
        return replace(request, **changes)

    async def score(self, request: ScoreRequest) -> ScoreReply:
        return await self.client.score(request, timeout=LONG)

    async def raw_score(self, body: bytes, timeout: float | None = LONG) -> bytes:  # noqa: ASYNC109
        """The reply's bytes by a plain gRPC call, without our client."""
        async with grpc.aio.insecure_channel(self.server.grpc_address) as channel:
            method: Any = channel.unary_unary(SCORE)
            reply: bytes = await method(body, timeout=timeout)
            return reply


async def eventually(condition: Callable[[], bool]) -> None:
    """Returns once the condition holds; fails after ``LONG`` seconds."""
    async with asyncio.timeout(LONG):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


def ids(*values: int) -> Any:
    return np.array(values, np.int32)


def continuation(*values: int, **changes: Any) -> Continuation:
    return Continuation((Segment(ids(*values)),), **changes)


def body_of(request: ScoreRequest) -> bytes:
    return codec.serialize(codec.encode_request(request))


def http_client(address: str, credentials: ClientCredentials) -> httpx.AsyncClient:
    headers = {"authorization": f"Bearer {credentials.token}"} if credentials.token else {}
    if credentials.ca is None:
        return httpx.AsyncClient(base_url=f"http://{address}", timeout=LONG, headers=headers)
    context = ssl.create_default_context(cafile=credentials.ca)
    if credentials.cert is not None:
        context.load_cert_chain(credentials.cert, credentials.key)
    base = f"https://{address}"
    return httpx.AsyncClient(base_url=base, timeout=LONG, headers=headers, verify=context)


@contextlib.asynccontextmanager
async def running(
    models: dict[str, Path],
    monkeypatch: pytest.MonkeyPatch,
    *,
    credentials: ClientCredentials | None = None,
    run: str = "run",
    **settings: Any,
) -> AsyncIterator[Running]:
    """A ready server over these models (float32), stopped at the end if it still runs;
    both clients show ``credentials``."""
    credentials = credentials or ClientCredentials()
    engines: dict[str, WatchedEngine] = {}

    def make(model: str, own: EngineSettings) -> Engine:
        inner = TransformersEngine(
            model, dtype="float32", device="cpu", deterministic=own.deterministic
        )
        name = next(n for n, path in models.items() if str(path) == model and n not in engines)
        engines[name] = WatchedEngine(inner)
        return engines[name]

    monkeypatch.setitem(load.ENGINES, "transformers", make)
    config = ServeConfig.model_validate(
        {
            "teachers": {name: {"model": str(path)} for name, path in models.items()},
            "grpc_port": 0,
            "http_port": 0,
        }
        | settings
    )
    server = Server(config)
    task = asyncio.create_task(server.run())
    ready = asyncio.create_task(server.ready.wait())
    await asyncio.wait((task, ready), timeout=LONG, return_when=asyncio.FIRST_COMPLETED)
    if task.done():
        ready.cancel()
        task.result()
    assert ready.done()
    for engine in engines.values():
        engine.jobs.clear()
    async with (
        AsyncTeacherClient(
            server.grpc_address, run=run, credentials=credentials, max_attempts=1
        ) as client,
        http_client(server.http_address, credentials) as http,
    ):
        info = await client.get_teacher(timeout=LONG)
        try:
            yield Running(server, task, engines, client, http, info)
        finally:
            for engine in engines.values():
                engine.gate.set()
            if not task.done():
                server.stop()
            await task
