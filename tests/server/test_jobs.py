"""Jobs of one request: the cost that its reply reports is theirs, added up."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from teacher_proto.errors import DeadlineError, OverloadedError

from teacher_server.engines.base import Job, ScoredSpan
from teacher_server.queue.policy import RunPolicy
from teacher_server.queue.scheduler import Deadline, Ticket
from teacher_server.scoring.jobs import (
    REST_OF_BLOCK,
    JobRunner,
    tokens_after,
    tokens_of,
    tokens_of_paths,
)
from teacher_server.settings.limits import LimitSettings
from teacher_server.settings.teachers import EngineSettings, TeacherSettings
from teacher_server.teachers.load import load_teachers
from tests.server.running import eventually

JOB = Job(
    prompt_ids=np.array([1, 2, 3], np.int32),
    spans=(ScoredSpan(np.array([4, 5], np.int32), np.array([0, 1], np.int32)),),
    top_k=4,
    temperature=1.0,
    vocabulary_limit=16,
)


async def test_a_runner_adds_up_what_its_jobs_take(tiny_model_dir: Path) -> None:
    teachers = await load_teachers(
        {"default": TeacherSettings(model=str(tiny_model_dir))},
        EngineSettings(device="cpu", dtype="float32"),
        # One ticket at a time: any is more than one token.
        LimitSettings(max_inflight_tokens=1),
    )
    teacher, policy, deadline = teachers.get("default"), RunPolicy("run"), Deadline(math.inf)
    runner = JobRunner(teacher, policy, deadline)
    try:
        first = await runner.run(JOB)
        waited = runner.cost.queue_seconds
        async with teacher.admission.slot(Ticket(tokens=1, policy=policy, deadline=deadline)):
            running = asyncio.create_task(runner.run(JOB))
            await eventually(lambda: teacher.admission.queue.queued_tokens > 0)
        second = await running
    finally:
        await teacher.engine.close()
    assert first.computed_tokens > 0
    assert first.engine_seconds > 0
    assert runner.cost.job_tokens == 2 * tokens_of(JOB) == 10
    assert runner.cost.computed_tokens == first.computed_tokens + second.computed_tokens
    assert runner.cost.engine_seconds == first.engine_seconds + second.engine_seconds
    assert runner.cost.queue_seconds > waited


async def test_what_a_request_did_not_ask_for_is_its_runs_again(tiny_model_dir: Path) -> None:
    teachers = await load_teachers(
        {"default": TeacherSettings(model=str(tiny_model_dir))},
        EngineSettings(device="cpu", dtype="float32"),
        LimitSettings(),
    )
    teacher, policy = teachers.get("default"), RunPolicy("run", tokens_per_minute=1000)
    try:
        with JobRunner(teacher, policy, Deadline(math.inf)) as runner:
            await runner.run(JOB, further=900)
            with pytest.raises(OverloadedError):
                teacher.admission.check(policy, 900)
        teacher.admission.check(policy, 900)
    finally:
        await teacher.engine.close()


async def test_a_request_that_has_begun_is_charged_and_not_refused(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its further jobs take what the quota does not hold: the next request waits for it."""
    teachers = await load_teachers(
        {"default": TeacherSettings(model=str(tiny_model_dir))},
        EngineSettings(device="cpu", dtype="float32"),
        LimitSettings(),
    )
    teacher, policy = teachers.get("default"), RunPolicy("run", tokens_per_minute=6)
    monkeypatch.setattr(teacher.admission, "_clock", lambda: 1.0)
    began = JobRunner(teacher, policy, Deadline(math.inf))
    other = RunPolicy("other", tokens_per_minute=6)
    late = JobRunner(teacher, other, Deadline(math.inf))
    try:
        await began.run(JOB)
        with pytest.raises(OverloadedError) as found:
            await JobRunner(teacher, policy, Deadline(math.inf)).run(JOB)
        assert found.value.retry_after == pytest.approx(40.0)
        await began.run(JOB, 2)
        assert began.cost.job_tokens == tokens_of(JOB) + 2
        with pytest.raises(OverloadedError) as found:
            await JobRunner(teacher, policy, Deadline(math.inf)).run(JOB)
        assert found.value.reason == "QUOTA_EXCEEDED"
        assert found.value.retry_after == pytest.approx(60.0)  # for 5 tokens and 1 of debt
        # The deadline of a request is that of its further jobs too.
        await late.run(JOB)
        late.deadline.at = 1.0
        with pytest.raises(DeadlineError, match="what was computed for it is lost"):
            await late.run(JOB, 2)
        late.deadline.at = 5.0
        with pytest.raises(DeadlineError):
            await late.run(JOB, 2, spare=4.0)
        assert late.cost.job_tokens == tokens_of(JOB)
    finally:
        await teacher.engine.close()


def test_what_paths_begin_with_counts_once() -> None:
    draw = np.random.default_rng(4)
    rollouts = draw.integers(0, 3, (2, 12)).astype(np.int32)
    paths = [
        np.concatenate([rollouts[which][:kept], draw.integers(0, 3, tail)]).astype(np.int32)
        for which, kept, tail in draw.integers(0, (2, 12, 4), (40, 3)).tolist()
    ]
    last = np.array([0], np.int32)
    paths = [path for path in paths if len(path)]
    job = replace(JOB, spans=tuple(ScoredSpan(path, last) for path in paths))
    nodes = {tuple(path[:end]) for path in paths for end in range(1, len(path) + 1)}
    assert tokens_of_paths(job) == len(JOB.prompt_ids) + len(nodes)
    assert tokens_of_paths(job) < tokens_of(job)
    read = tuple(ScoredSpan(ids.astype(np.int32), last) for ids in rollouts)
    known = {tuple(ids[:end]) for ids in rollouts for end in range(1, len(ids) + 1)}
    assert tokens_after(job, read) == len(nodes - known) + len(paths) * REST_OF_BLOCK
