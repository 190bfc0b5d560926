"""Deadlines, cancellation, overload, replay, drain and an engine's death."""

from __future__ import annotations

import asyncio
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from teacher_proto import codec
from teacher_proto.errors import DeadlineError, OverloadedError, TeacherUnavailableError

from teacher_server.grpc.servicer import SERVICE
from teacher_server.telemetry.cost import Cost
from teacher_server.telemetry.log import JsonFormatter
from teacher_server.telemetry.metrics import MAX_RUN_LABELS, OTHER_RUNS, Metrics
from tests.server.running import LONG, Running, body_of, eventually, running
from tests.server.test_scoring import http_body
from tests.server.test_validation import VALID

TOKENS = 8  # of ``Running.request``
TIGHT = {"max_inflight_tokens": TOKENS, "max_queue_tokens": TOKENS, "max_request_tokens": TOKENS}


async def healthy(server: Running, service: str = "") -> bool:
    async with grpc.aio.insecure_channel(server.server.grpc_address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        reply = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=LONG)
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


async def test_a_ready_server_says_so_everywhere(server: Running) -> None:
    assert await healthy(server)
    assert await healthy(server, SERVICE)
    assert (await server.http.get("/readyz")).status_code == 200
    assert (await server.http.get("/livez")).status_code == 200


async def test_overload_answers_at_once_and_says_when_to_come_back(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running({"default": tiny_model_dir}, monkeypatch, limits=TIGHT) as server:
        engine = server.engines["default"]
        engine.hold()
        admitted = [
            asyncio.create_task(server.score(server.request(request_id=f"kept-{number}")))
            for number in range(2)
        ]
        await engine.has_jobs(1)
        await queued(server, TOKENS)
        with pytest.raises(OverloadedError, match=r"limits\.max_queue_tokens") as found:
            await server.score(server.request(request_id="refused"))
        assert found.value.retry_after is not None
        answer = await server.http.post("/v1/score", json=http_body())
        assert answer.status_code == 429
        assert int(answer.headers["retry-after"]) >= 1
        assert answer.json()["error"]["retry_after"] > 0
        engine.gate.set()
        await asyncio.gather(*admitted)
        await server.score(server.request(request_id="refused"))


async def queued(server: Running, tokens: int) -> None:
    """Returns once exactly ``tokens`` wait in the queue."""
    (teacher,) = server.server.service.teachers
    await eventually(lambda: teacher.admission.queue.queued_tokens == tokens)


async def test_work_that_expires_in_the_queue_never_reaches_the_engine(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running({"default": tiny_model_dir}, monkeypatch, limits=TIGHT) as server:
        engine = server.engines["default"]
        engine.hold()
        first = asyncio.create_task(server.score(server.request(request_id="first")))
        await engine.has_jobs(1)
        with pytest.raises(DeadlineError):
            await server.client.score(server.request(request_id="late"), timeout=0.3)
        await queued(server, 0)
        engine.gate.set()
        await first
        assert len(engine.jobs) == 1


async def test_cancelling_stops_queued_and_running_work_only_of_the_caller(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running({"default": tiny_model_dir}, monkeypatch, limits=TIGHT) as server:
        engine = server.engines["default"]
        engine.hold()
        inflight = asyncio.create_task(server.score(server.request(request_id="inflight")))
        await engine.has_jobs(1)
        waiting = asyncio.create_task(server.score(server.request(request_id="waiting")))
        await queued(server, TOKENS)
        waiting.cancel()
        await queued(server, 0)
        follower = asyncio.create_task(server.score(server.request(request_id="follower")))
        await queued(server, TOKENS)
        inflight.cancel()
        await engine.has_jobs(2)  # the follower took the place
        engine.gate.set()
        await follower
        assert engine.cancelled == 1


async def test_a_repeated_request_gets_the_same_bytes_without_the_engine(server: Running) -> None:
    engine = server.engines["default"]
    body = body_of(server.request())
    first = await server.raw_score(body)
    assert await server.raw_score(body) == first
    assert len(engine.jobs) == 1
    other = codec.decode_reply(await server.raw_score(body_of(server.request(top_k=3))))
    assert other.results[0].rows.support is not None
    assert other.results[0].rows.support.ids.shape == (3, 3)
    assert len(engine.jobs) == 2
    await server.raw_score(body_of(server.request(run="another")))
    assert len(engine.jobs) == 3


async def test_a_joined_request_outlives_a_cancelled_original(server: Running) -> None:
    engine = server.engines["default"]
    body = body_of(server.request())
    engine.hold()
    original = asyncio.create_task(server.raw_score(body))
    await engine.has_jobs(1)
    joiner = asyncio.create_task(server.raw_score(body))
    (running,) = server.server.service._replay._running.values()
    await eventually(lambda: running.waiters == 2)
    original.cancel()
    await eventually(lambda: running.waiters == 1)
    engine.gate.set()
    reply = codec.decode_reply(await joiner)
    assert reply.request_id == "request-1"
    assert (len(engine.jobs), engine.cancelled) == (1, 0)


async def active(server: Running, count: int) -> None:
    """Returns once exactly ``count`` requests are in progress."""
    await eventually(lambda: server.server.lifecycle.active == count)


async def test_a_drain_completes_what_is_in_flight_and_refuses_the_rest(server: Running) -> None:
    engine = server.engines["default"]
    engine.hold()
    inflight = [
        asyncio.create_task(server.score(server.request(request_id=f"kept-{number}")))
        for number in range(4)
    ]
    over_http = asyncio.create_task(server.http.post("/v1/score", json=http_body()))
    await engine.has_jobs(5)
    server.server.stop()
    with pytest.raises(TeacherUnavailableError) as refused:
        await server.score(server.request(request_id="late"))
    assert refused.value.reason == "DRAINING"
    not_ready = await server.http.get("/readyz")
    assert not_ready.status_code == 503
    assert not_ready.json()["error"]["reason"] == "DRAINING"
    assert not await healthy(server)
    assert not await healthy(server, SERVICE)
    assert not server.task.done()
    engine.gate.set()
    await asyncio.gather(*inflight)
    assert (await over_http).status_code == 200
    assert await server.task == 0


async def test_a_drain_that_takes_too_long_fails_the_rest_with_a_retryable_error(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running({"default": tiny_model_dir}, monkeypatch, drain_seconds=0) as server:
        engine = server.engines["default"]
        engine.hold()
        inflight = asyncio.create_task(server.score(server.request()))
        await engine.has_jobs(1)
        server.server.stop()
        with pytest.raises(TeacherUnavailableError):
            await inflight
        assert await server.task == 143


async def test_an_engine_s_death_ends_readiness_and_the_run(server: Running) -> None:
    engine = server.engines["default"]
    engine.hold()
    inflight = asyncio.create_task(server.score(server.request()))
    await engine.has_jobs(1)
    engine.die()
    assert not server.server.lifecycle.ready
    with pytest.raises(TeacherUnavailableError) as found:
        await inflight
    assert found.value.reason == "ENGINE_DEAD"
    assert await server.task == 1


async def test_a_request_is_one_line_without_its_contents(
    server: Running, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="teacher_server.request")
    await server.http.post(
        "/v1/score", json=http_body(continuations=[{"text": "confidential"}], run="nightly")
    )
    with pytest.raises(grpc.aio.AioRpcError):
        await server.raw_score(body_of(server.request(run="a\nb")))
    lines = [JsonFormatter().format(record) for record in caplog.records]
    assert len(lines) == 2
    fields: list[dict[str, Any]] = [json.loads(line) for line in lines]
    assert fields[0]["run"] == "nightly"
    assert fields[0]["outcome"] == "ok"
    assert fields[0]["engine_seconds"] > 0
    assert "confidential" not in lines[0]
    assert fields[1]["reason"] == "INVALID_REQUEST"
    assert "run" not in fields[1]


def test_run_labels_are_bounded() -> None:
    metrics = Metrics()
    for number in range(MAX_RUN_LABELS + 5):
        request = replace(VALID, run=f"run-{number}", top_k=1)
        metrics.scored(request, 1, Cost(job_tokens=4), 0.0)
    text = metrics.exposition().decode()
    assert text.count("lsm_teacher_scored_tokens_total{") == MAX_RUN_LABELS + 1
    assert f'lsm_teacher_scored_tokens_total{{run="{OTHER_RUNS}"}} 5.0' in text
