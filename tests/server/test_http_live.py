"""HTTP while time passes: bodies that never end, clients that leave, counts."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import httpx
import pytest

from tests.server.running import Running, eventually
from tests.server.test_scoring import http_body


async def test_a_body_without_a_length_is_bounded_while_it_is_read(server: Running) -> None:
    limit = server.info.limits.max_request_bytes
    sent = 0

    async def endless() -> Any:
        nonlocal sent
        while True:
            sent += 65536
            yield b" " * 65536

    # The server may close the connection before the answer is read.
    with contextlib.suppress(httpx.WriteError, httpx.ReadError, httpx.RemoteProtocolError):
        answer = await server.http.post(
            "/v1/score", content=endless(), headers={"content-type": "application/json"}
        )
        assert answer.status_code == 413
    assert sent < limit + 2**23
    assert (await server.http.get("/livez")).status_code == 200


async def test_a_client_that_goes_away_cancels_its_work(server: Running) -> None:
    engine = server.engines["default"]
    engine.hold()
    asking = asyncio.create_task(server.http.post("/v1/score", json=http_body()))
    await engine.has_jobs(1)
    asking.cancel()
    await eventually(lambda: engine.cancelled == 1)
    metrics = (await server.http.get("/metrics")).text
    assert 'outcome="cancelled"' in metrics
    assert 'lsm_teacher_inflight_tokens{teacher="default"} 0.0' in metrics


async def test_the_time_a_request_gives_itself_ends_it(server: Running) -> None:
    engine = server.engines["default"]
    engine.hold()
    answer = await server.http.post("/v1/score", json=http_body(timeout_seconds=0.2))
    assert answer.status_code == 504
    assert answer.json()["error"]["reason"] == "DEADLINE_EXCEEDED"
    assert engine.cancelled == 1


async def test_metrics_count_by_outcome_run_and_reason(server: Running) -> None:
    await server.score(server.request())
    await server.http.post("/v1/score", json=http_body(top_k=-1))
    text = (await server.http.get("/metrics")).text
    for line in (
        'lsm_teacher_requests_total{method="Score",outcome="ok",reason="",surface="grpc"} 1.0',
        'lsm_teacher_requests_total{method="Score",outcome="refused",reason="INVALID_REQUEST",'
        'surface="http"} 1.0',
        'lsm_teacher_scored_tokens_total{run="run"} 5.0',
        "lsm_teacher_ready 1.0",
        'lsm_teacher_queue_tokens{teacher="default"} 0.0',
    ):
        assert line in text, line


async def test_a_connection_that_ends_inside_the_body_is_no_failure(server: Running) -> None:
    host, _, port = server.server.http_address.rpartition(":")
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b'Content-Length: 1000\r\n\r\n{"prompt":'
    )
    await writer.drain()
    await eventually(lambda: server.server.lifecycle.active == 1)
    writer.close()
    await eventually(lambda: server.server.lifecycle.active == 0)
    metrics = (await server.http.get("/metrics")).text
    assert 'outcome="cancelled",reason="CLIENT_CLOSED"' in metrics


@pytest.mark.parametrize(
    "path", ["/%0A", "/docs%0A", "/page/app/main.js%0A", "/docs/swagger-ui.css%0A"]
)
async def test_a_line_break_after_a_page_is_another_path(server: Running, path: str) -> None:
    """Where nobody needs credentials, no guard of paths stands before the pages' own."""
    assert (await server.http.get(path.removesuffix("%0A"))).status_code == 200
    assert (await server.http.get(path)).status_code == 404
