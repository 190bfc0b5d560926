"""Before a server is ready: what it answers, what stops it, what makes it ready."""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
from pathlib import Path

import grpc
import httpx
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from teacher_proto import AsyncTeacherClient
from teacher_proto.errors import ConfigurationError, EngineError, TeacherUnavailableError

from teacher_server.commands.serve import Server
from teacher_server.config import ServeConfig
from teacher_server.engines.base import Engine, EngineDescription, Job, JobResult
from teacher_server.engines.probe import self_score
from teacher_server.engines.torch.transformers import TransformersEngine
from teacher_server.settings.teachers import EngineSettings
from teacher_server.teachers import load
from teacher_server.teachers.teacher import identity_of
from teacher_server.teachers.tokenizer import load_tokenizer
from tests.server.running import LONG, WatchedEngine, eventually

DESCRIPTION = EngineDescription(
    engine="transformers",
    model="m",
    weights_digest="abc",
    dtype="float32",
    quantization="",
    adapter_digest="",
    vocabulary_size=10,
    max_length=8,
    deterministic=False,
)


def loading_server(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[Server, list[WatchedEngine]]:
    """A server whose engine waits for its ``start_gate`` before it loads."""
    engines: list[WatchedEngine] = []

    def make(path: str, own: EngineSettings) -> Engine:
        engine = WatchedEngine(TransformersEngine(path, device="cpu"))
        engine.start_gate.clear()
        engines.append(engine)
        return engine

    monkeypatch.setitem(load.ENGINES, "transformers", make)
    config = ServeConfig.model_validate(
        {"teachers": {"default": {"model": str(model)}}, "grpc_port": 0, "http_port": 0}
    )
    return Server(config), engines


async def health_of(server: Server) -> int:
    async with grpc.aio.insecure_channel(server.grpc_address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        reply = await stub.Check(health_pb2.HealthCheckRequest(), timeout=LONG)
        return int(reply.status)


async def test_a_loading_server_is_live_and_not_ready(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, engines = loading_server(tiny_model_dir, monkeypatch)
    task = asyncio.create_task(server.run())
    await eventually(lambda: bool(engines) and bool(server.http_address))
    base = f"http://{server.http_address}"
    async with (
        httpx.AsyncClient(base_url=base) as http,
        AsyncTeacherClient(server.grpc_address, run="run", max_attempts=1) as client,
    ):
        assert (await http.get("/livez")).status_code == 200
        for path in ("/readyz", "/v1/teacher"):
            answer = await http.get(path)
            assert answer.status_code == 503
            assert answer.json()["error"]["reason"] == "STARTING"
        with pytest.raises(TeacherUnavailableError) as found:
            await client.get_teacher(timeout=LONG)
        assert found.value.reason == "STARTING"
        assert await health_of(server) == health_pb2.HealthCheckResponse.NOT_SERVING
        engines[0].start_gate.set()
        await asyncio.wait_for(server.ready.wait(), LONG)
        assert (await http.get("/readyz")).status_code == 200
        assert await health_of(server) == health_pb2.HealthCheckResponse.SERVING
    server.stop()
    assert await task == 0


async def test_a_signal_while_loading_ends_the_run_at_once(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, engines = loading_server(tiny_model_dir, monkeypatch)
    task = asyncio.create_task(server.run())
    await eventually(lambda: bool(engines) and bool(server.http_address))
    server.stop()
    assert await task == 0
    assert not server.ready.is_set()


class Distorted:
    """A started engine whose log-probabilities are moved by a constant."""

    def __init__(self, inner: Engine, shift: float) -> None:
        self.inner = inner
        self.shift = np.float32(shift)
        self.description = inner.description

    async def score(self, job: Job) -> JobResult:
        result = await self.inner.score(job)
        rows = []
        for row in result.rows:
            assert row is not None
            assert row.support is not None
            shifted = row.support.log_probs + self.shift
            support = dataclasses.replace(row.support, log_probs=shifted)
            rows.append(dataclasses.replace(row, support=support))
        return dataclasses.replace(result, rows=tuple(rows))


async def test_the_self_score_refuses_rows_that_are_no_distributions(
    tiny_model_dir: Path,
) -> None:
    engine = TransformersEngine(str(tiny_model_dir), dtype="float32", device="cpu")
    await engine.start()
    try:
        await self_score(engine)
        with pytest.raises(EngineError, match="self-score"):
            await self_score(Distorted(engine, 3.0))  # type: ignore[arg-type]
    finally:
        await engine.close()


def test_the_identity_s_digest_is_the_documented_one() -> None:
    identity = identity_of(DESCRIPTION, "hash")
    canonical = (
        '{"adapter_digest":"","dtype":"float32","quantization":"",'
        '"tokenizer_hash":"hash","weights_digest":"abc"}'
    )
    assert identity.digest == hashlib.sha256(canonical.encode()).hexdigest()
    for change in ("weights_digest", "dtype", "quantization", "adapter_digest"):
        other = dataclasses.replace(DESCRIPTION, **{change: "other"})
        assert identity_of(other, "hash").digest != identity.digest
    assert identity_of(DESCRIPTION, "another").digest != identity.digest


def test_a_tokenizer_never_cuts_and_adds_nothing(tiny_model_dir: Path, tmp_path: Path) -> None:
    from tokenizers import Tokenizer

    for file in tiny_model_dir.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    cutting = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    cutting.enable_truncation(4)
    cutting.enable_padding(length=64)
    cutting.save(str(tmp_path / "tokenizer.json"))
    text = "the teacher reads what the student wrote" * 5
    tokenizer = load_tokenizer(str(tmp_path))
    plain = load_tokenizer(str(tiny_model_dir))
    assert tokenizer.hash == plain.hash
    np.testing.assert_array_equal(tokenizer.encode(text), plain.encode(text))
    assert len(tokenizer.encode(text)) > 64
    assert len(tokenizer.encode("")) == 0


def test_a_folder_without_a_tokenizer_is_a_configuration_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"tokenizer\.json"):
        load_tokenizer(str(tmp_path))
