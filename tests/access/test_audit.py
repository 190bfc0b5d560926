"""The audit log under those who are not let in, and on a disk that is full."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from teacher_proto.errors import TeacherUnavailableError

from teacher_server.access import strangers
from teacher_server.access.audit import AuditLog
from teacher_server.access.strangers import MOST_KINDS, OTHERS, SECONDS, Line, Strangers, network
from tests.access.pki import OLD
from tests.server.running import LONG, SCORE, Running, eventually

HEALTH = "/grpc.health.v1.Health/"


def refusal(reason: str = "UNAUTHENTICATED", peer: str = "10.0.0.7:1", **changes: str) -> Line:
    return {
        "surface": "http",
        "method": "GET /metrics",
        "peer": peer,
        "status": "401",
        "reason": reason,
    } | changes


def test_a_kind_of_refusal_has_one_line_and_then_a_count_a_minute() -> None:
    found = Strangers()
    assert found.add(refusal(), 0.0) == refusal()
    for number in range(1000):
        assert found.add(refusal(peer=f"10.0.0.{number % 250}:{number}"), 1.0) is None
    assert [*found.due(SECONDS - 1)] == []
    assert [*found.due(SECONDS)] == [refusal(peer="10.0.0.0/24") | {"count": 1000}]
    assert [*found.due(SECONDS)] == []
    assert found.add(refusal(), SECONDS + 1) is None
    assert [*found.due(2 * SECONDS)] == [refusal(peer="10.0.0.0/24") | {"count": 1}]
    assert [*found.due(3 * SECONDS)] == []
    assert found.add(refusal(), 3 * SECONDS) == refusal(), "it was quiet for a minute"


def test_other_kinds_have_lines_of_their_own_up_to_a_number() -> None:
    found = Strangers()
    kinds = [refusal(peer=f"10.{number}.0.1:5") for number in range(MOST_KINDS)]
    assert [found.add(kind, 0.0) for kind in kinds] == kinds
    first = found.add(refusal(peer="11.0.0.1:5"), 0.0)
    assert first == refusal(OTHERS, peer=OTHERS, surface=OTHERS, method=OTHERS, status=OTHERS)
    for number in range(5000):
        assert found.add(refusal(peer=f"12.{number % 250}.{number // 250}.1:5"), 0.0) is None
    (line,) = found.due(SECONDS)
    assert line["count"] == 5000
    assert line["peer"] == OTHERS


@pytest.mark.parametrize(
    ("peer", "expected"),
    [
        ("127.0.0.1:50", "127.0.0.0/24"),
        ("ipv4:127.0.0.9:50", "127.0.0.0/24"),
        ("ipv6:%5B2001:db8:1:2::3%5D:50", "2001:db8:1::/48"),
        ("2001:db8:1:9::3:50", "2001:db8:1::/48"),
        ("unix:/tmp/socket", OTHERS),
        ("", OTHERS),
    ],
)
def test_networks(peer: str, expected: str) -> None:
    assert network(peer) == expected


def test_the_counts_are_written_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    for _ in range(500):
        log.refused(refusal())
    log.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line.get("count") for line in lines] == [None, None, 499]
    assert path.stat().st_size < 1000


def test_no_count_is_lost_while_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "audit.jsonl"
    log = AuditLog(path)
    moved = path.rename(tmp_path / "moved.jsonl")
    path.symlink_to("/dev/full")
    log.reopen()
    with pytest.raises(TeacherUnavailableError):
        log.refused(refusal())
    for _ in range(41):
        log.refused(refusal())
    monkeypatch.setattr(strangers, "SECONDS", 0.0)
    log.look()
    path.unlink()
    moved.rename(path)
    log.reopen()
    log.look()
    log.look()
    log.close()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line.get("event", line.get("count")) for line in lines] == ["start", "writable", 42]


@pytest.mark.asyncio(loop_scope="module")
async def test_strangers_do_not_fill_the_disk(guarded: Running) -> None:
    path = guarded.server.guard.audit._path  # type: ignore[union-attr]
    bad = {"authorization": f"Bearer {OLD}"}
    assert (await guarded.http.get("/metrics", headers=bad)).status_code == 401
    await guarded.score(guarded.request(run="alice", request_id="before"))
    before = path.stat().st_size
    async with grpc.aio.insecure_channel(guarded.server.grpc_address) as channel:
        method: Any = channel.unary_unary(SCORE)
        for _ in range(150):
            assert (await guarded.http.get("/metrics", headers=bad)).status_code == 401
            with pytest.raises(grpc.aio.AioRpcError):
                await method(b"", timeout=LONG)
    assert path.stat().st_size - before < 1000
    await guarded.score(guarded.request(run="alice", request_id="after"))
    assert json.loads(path.read_text().splitlines()[-1])["request_id"] == "after"


@pytest.mark.asyncio(loop_scope="module")
async def test_readiness_tells_that_no_call_can_be_recorded_and_recovers(guarded: Running) -> None:
    guard = guarded.server.guard
    path = guard.audit._path  # type: ignore[union-attr]
    moved = path.rename(path.with_name("moved.jsonl"))
    path.symlink_to("/dev/full")
    guard.reload()
    async with grpc.aio.insecure_channel(guarded.server.grpc_address) as channel:
        watch: Any = channel.unary_stream(HEALTH + "Watch")(b"")
        states: list[int] = []

        async def state() -> int:
            states.append(health_pb2.HealthCheckResponse.FromString(await watch.read()).status)
            return states[-1]

        assert await state() == health_pb2.HealthCheckResponse.SERVING
        try:
            assert (await guarded.http.get("/v1/teacher")).status_code == 503
            answer = await guarded.http.get("/readyz")
            assert answer.status_code == 503
            assert answer.json()["error"]["reason"] == "AUDIT_FAILED"
            assert (await guarded.http.get("/livez")).status_code == 200
            assert await state() == health_pb2.HealthCheckResponse.NOT_SERVING
        finally:
            path.unlink()
            moved.rename(path)
            guard.reload()
        # Nobody calls: the server finds out by itself.
        assert await state() == health_pb2.HealthCheckResponse.SERVING
        assert (await guarded.http.get("/readyz")).status_code == 200
        watch.cancel()
    await eventually(lambda: guarded.server.lifecycle.ready)
    assert '"event": "writable"' in path.read_text()
