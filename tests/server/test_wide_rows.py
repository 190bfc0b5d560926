"""Rows before numbers, of a teacher whose tokenizer has them and a student's that has not."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
import pytest_asyncio
from teacher_proto.rows import WideRows
from teacher_proto.types import ScoreReply, Status
from tokenizers import Tokenizer

from teacher_server.engines.base import Job, JobResult
from teacher_server.realign.pair.vocabulary import read_vocabulary
from teacher_server.realign.requests.request_frames import rows_frame
from teacher_server.scoring import realigned_path
from teacher_server.workers.session import Session
from tests.server.crossed import block, file_of, request, upload
from tests.server.running import LONG, Running, running
from tests.support.models import make_tiny_model

pytestmark = pytest.mark.asyncio(loop_scope="module")
TEXT = "return 734 + self.total - 28190 rows"


def numbers() -> tuple[str, ...]:
    draw = random.Random(4)
    return tuple(
        f"the rows are {draw.randint(0, 999)} or {draw.randint(0, 99)}" for _ in range(400)
    )


@pytest.fixture(scope="module")
def numbers_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "numbers"
    return make_tiny_model(folder, seed=2, texts=numbers(), vocabulary_size=520)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(numbers_dir: Path, student_file: bytes) -> AsyncIterator[Running]:
    settings = {"extra_rounds": 0}
    with pytest.MonkeyPatch.context() as patch:
        async with running({"default": numbers_dir}, patch, tokenizers=settings) as server:
            await server.client.register_tokenizer(upload(student_file), timeout=LONG)
            yield server


async def scored(
    server: Running, file: bytes, student: Tokenizer, name: str, patch: pytest.MonkeyPatch
) -> tuple[ScoreReply, list[tuple[Job, JobResult]]]:
    """The reply to a request, and the engine's jobs for it."""
    inner, jobs = server.engines["default"].inner, list[tuple[Job, JobResult]]()
    score = inner.score

    async def listened(job: Job) -> JobResult:
        jobs.append((job, await score(job)))
        return jobs[-1][1]

    patch.setattr(inner, "score", listened)
    tokens = student.encode(TEXT).ids
    reply = await server.score(request(server, file, tokens, request_id=name, top_k=2))
    assert reply.results[0].status is Status.OK
    return reply, jobs


async def ended_early(server: Running) -> float:
    """Requests that did without rows for want of memory."""
    lines = (await server.http.get("/metrics")).text.splitlines()
    (line,) = (one for one in lines if 'ended_early_total{reason="memory"' in one)
    return float(line.split()[-1])


async def test_rows_along_a_rollout_are_wide_where_numbers_are_likely(
    served: Running,
    numbers_dir: Path,
    student_file: bytes,
    student: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    table = read_vocabulary(file_of(numbers_dir)).token_bytes
    expected = [token for token, data in enumerate(table) if data.removeprefix(b" ").isdigit()]
    assert len(expected) > 100
    reserved, reserve = list[int](), Session.reserve

    async def noted(session: Session, size: int) -> None:
        reserved.append(size)
        await reserve(session, size)

    monkeypatch.setattr(Session, "reserve", noted)
    reply, jobs = await scored(served, student_file, student, "wide", monkeypatch)
    rollouts = [pair for pair in jobs if pair[0].want_sampled]
    ((job, result),) = rollouts
    assert job.wide_ids is not None
    assert job.wide_ids.tolist() == expected
    (rows,) = result.rows
    assert isinstance(rows, WideRows)
    assert len(rows.wide) > 0
    said = rows_frame(result.rows).nbytes - 8 - 1  # how many are wide, and that it is finite
    assert sum(map(realigned_path._row_bytes, result.rows)) == said
    assert len(jobs) > 1, "there were context-free rows"
    assert all(other.wide_ids is None for other, _ in jobs if not other.want_sampled)

    # Where they would take more than a reply's rows may, the request goes without and says so.
    assert await ended_early(served) == 0
    monkeypatch.setattr(realigned_path, "ROWS_PER_REPLY", 0)
    without, jobs = await scored(served, student_file, student, "without", monkeypatch)
    ((job, _),) = [pair for pair in jobs if pair[0].want_sampled]
    assert job.wide_ids is None
    assert await ended_early(served) == 1
    assert reserved[1] < reserved[0], "room for wide rows is taken only where there may be any"
    wide_block, block_without = block(reply.results[0]), block(without.results[0])
    assert wide_block.open_mass.sum() < block_without.open_mass.sum()
    assert not np.array_equal(wide_block.coverage, block_without.coverage)
