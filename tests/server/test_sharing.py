"""Several runs on one teacher, by order and content: shares, floods, quotas, drain."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from teacher_proto.errors import DeadlineError, OverloadedError, TeacherUnavailableError
from teacher_proto.types import ScoreReply, ScoreRequest, TokenPrompt

from tests.server.running import Running, ids, running
from tests.server.test_promises import TOKENS, queued
from tests.server.test_scoring import assert_equal_scores, http_body


def one_at_a_time(requests_waiting: int) -> dict[str, int]:
    """Limits that let one ``Running.request`` into the engine and so many wait."""
    return {
        "max_inflight_tokens": TOKENS,
        "max_queue_tokens": TOKENS * requests_waiting,
        "max_request_tokens": TOKENS,
    }


def asked(server: Running, run: str, number: int, mark: int) -> ScoreRequest:
    """A request whose prompt's first id, ``mark``, names the run to the engine."""
    return server.request(
        run=run, request_id=f"{run}-{number}", prompt=TokenPrompt(ids(mark, number % 300, 3))
    )


async def wait_in_line(
    server: Running, counts: dict[str, int]
) -> tuple[list[asyncio.Task[ScoreReply]], dict[str, int]]:
    """Requests of every run, all waiting behind one that the engine holds; run -> mark."""
    engine = server.engines["default"]
    engine.hold()
    tasks = [asyncio.create_task(server.score(asked(server, "first", 0, 99)))]
    await engine.has_jobs(1)
    marks = {run: 100 + index for index, run in enumerate(counts)}
    waiting = 0
    for run, count in counts.items():
        for number in range(count):
            tasks.append(asyncio.create_task(server.score(asked(server, run, number, marks[run]))))
        waiting += count
        await queued(server, waiting * TOKENS)
    return tasks, marks


async def served(server: Running, tasks: list[Any], marks: dict[str, int]) -> list[str]:
    """Lets the engine go and returns whose requests it got, in order."""
    engine = server.engines["default"]
    engine.gate.set()
    await asyncio.gather(*tasks)
    names = {mark: run for run, mark in marks.items()}
    return [names[int(job.prompt_ids[0])] for job in engine.jobs[1:]]


async def test_a_flood_leaves_every_other_run_its_turn(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = one_at_a_time(200)
    async with running({"default": tiny_model_dir}, monkeypatch, limits=limits) as server:
        counts = {"flood": 60} | {f"run-{number}": 4 for number in range(7)}
        order = await served(server, *await wait_in_line(server, counts))
    assert sorted(order[:32]) == sorted([run for run in counts for _ in range(4)])
    for turn in range(4):
        assert set(order[8 * turn : 8 * turn + 8]) == set(counts), "not one each"


async def test_weights_and_priorities_of_the_settings_hold(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = {"heavy": {"weight": 3.0}, "urgent": {"priority": 1}}
    async with running(
        {"default": tiny_model_dir}, monkeypatch, limits=one_at_a_time(99), runs=runs
    ) as server:
        counts = {"light": 10, "heavy": 10, "urgent": 3}
        order = await served(server, *await wait_in_line(server, counts))
    assert order[:3] == ["urgent"] * 3
    assert order[3:15].count("heavy") == 9


async def test_a_flood_is_refused_and_others_still_find_room(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = one_at_a_time(8)
    async with running({"default": tiny_model_dir}, monkeypatch, limits=limits) as server:
        tasks, _ = await wait_in_line(server, {"flood": 4})
        with pytest.raises(OverloadedError, match="the part of one run") as found:
            await server.score(asked(server, "flood", 9, 100))
        assert found.value.reason == "RUN_QUEUE_FULL"
        assert found.value.retry_after is not None
        others = [
            asyncio.create_task(server.score(asked(server, f"run-{number}", 0, 101)))
            for number in range(4)
        ]
        await queued(server, 8 * TOKENS)
        metrics = (await server.http.get("/metrics")).text
        assert f'lsm_teacher_run_queue_tokens{{run="flood"}} {4.0 * TOKENS}' in metrics
        assert f'lsm_teacher_run_queue_tokens{{run="run-3"}} {1.0 * TOKENS}' in metrics
        assert 'lsm_teacher_run_queue_age_seconds{run="flood"}' in metrics
        assert 'lsm_teacher_rejections_total{reason="RUN_QUEUE_FULL",run="flood"} 1.0' in metrics
        server.engines["default"].gate.set()
        await asyncio.gather(*tasks, *others)
        metrics = (await server.http.get("/metrics")).text
        assert f'lsm_teacher_run_tokens_total{{run="flood"}} {4.0 * TOKENS}' in metrics
        assert 'lsm_teacher_run_queue_tokens{run="flood"}' not in metrics


async def test_a_quota_is_told_with_the_time_to_come_back(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = {"small": {"tokens_per_minute": TOKENS}}
    async with running({"default": tiny_model_dir}, monkeypatch, runs=runs) as server:
        await server.score(server.request(run="small", request_id="taken"))
        with pytest.raises(OverloadedError, match=f"tokens_per_minute={TOKENS}") as found:
            await server.score(server.request(run="small", request_id="refused"))
        assert found.value.reason == "QUOTA_EXCEEDED"
        assert found.value.retry_after is not None
        assert 0 < found.value.retry_after <= 60
        answer = await server.http.post("/v1/score", json=http_body(run="small"))
        assert answer.status_code == 429
        assert 0 < int(answer.headers["retry-after"]) <= 60
        await server.score(server.request(run="another"))
        await server.score(server.request(run="small", request_id="taken"))  # replayed: no tokens


async def test_an_overload_is_told_before_the_request_is_looked_at(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = one_at_a_time(1)
    async with running({"default": tiny_model_dir}, monkeypatch, limits=limits) as server:
        tasks, _ = await wait_in_line(server, {"run": 1})
        wrong = server.request(prompt=TokenPrompt(ids(1, 2, 10**6)))
        with pytest.raises(OverloadedError):
            await server.score(wrong)
        server.engines["default"].gate.set()
        await asyncio.gather(*tasks)


async def test_expired_and_cancelled_requests_never_compute_and_neighbours_keep_their_rows(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(
        {"default": tiny_model_dir},
        monkeypatch,
        limits=one_at_a_time(200),
        engine={"deterministic": True},
    ) as server:
        expected = [await server.score(asked(server, "alone", n, 101)) for n in range(6)]
        tasks, _ = await wait_in_line(server, {"late": 0, "kept": 6})
        hurried = [
            server.client.score(asked(server, "late", number, 100), timeout=0.05 + 0.01 * number)
            for number in range(20)
        ]
        dropped = [
            asyncio.create_task(server.score(asked(server, "dropped", n, 102))) for n in range(10)
        ]
        ended = await asyncio.gather(*hurried, return_exceptions=True)
        # One that expires while it is sent may be told so as a teacher that is not there.
        assert {type(one) for one in ended} <= {DeadlineError, TeacherUnavailableError}
        await queued(server, 16 * TOKENS)
        for task in dropped:
            task.cancel()
        await queued(server, 6 * TOKENS)
        engine = server.engines["default"]
        engine.gate.set()
        kept = (await asyncio.gather(*tasks))[1:]
        assert {int(job.prompt_ids[0]) for job in engine.jobs} == {99, 101}
        for one, other in zip(kept, expected, strict=True):
            assert_equal_scores(one, other)


async def test_a_drain_completes_what_runs_and_what_waits(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(
        {"default": tiny_model_dir},
        monkeypatch,
        limits=one_at_a_time(64),
        engine={"deterministic": True},
    ) as server:
        expected = [await server.score(asked(server, "alone", n, 100)) for n in range(31)]
        tasks, _ = await wait_in_line(server, {"run": 31})
        server.server.stop()
        assert not server.server.lifecycle.ready
        with pytest.raises(TeacherUnavailableError) as found:
            await server.score(server.request(request_id="too late"))
        assert found.value.reason == "DRAINING"
        server.engines["default"].gate.set()
        replies = await asyncio.gather(*tasks)
        assert await server.task == 0
    assert len(replies) == 32
    for one, other in zip(replies[1:], expected, strict=True):
        assert_equal_scores(one, other)
        assert np.isfinite(one.timing.queue_seconds)
