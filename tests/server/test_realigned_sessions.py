"""Realigned requests in the process of their tokenizer: stopped, killed, lied to, side by side."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import psutil
import pytest
import pytest_asyncio
from teacher_proto.errors import DeadlineError, InvalidRequestError
from teacher_proto.types import ContinuationScores, ScoreReply, Status
from tokenizers import Tokenizer

from teacher_server.engines.base import Job, JobResult
from teacher_server.frames import Frame
from teacher_server.realign.pair.static_tables import build_static
from teacher_server.realign.pair.tables import PairTables
from teacher_server.realign.pair.vocabulary import read_vocabulary
from teacher_server.realign.paired import Pair
from teacher_server.tokenizers.pairs import StudentTokenizers
from teacher_server.workers.process import StudentProcess
from teacher_server.workers.session import Session
from teacher_server.workers.turns import Turns
from tests.server.crossed import TEXT, file_of, request, student_processes, upload
from tests.server.running import LONG, Running, body_of, continuation, eventually, running
from tests.support.realigning import InProcess

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def crossed(teacher_dir: Path, student_file: bytes) -> AsyncIterator[Running]:
    settings = {"extra_rounds": 1, "extra_least_open": 0.02}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("teacher_server.workers.pool.MAX_FAILURES", 1000)
        async with running({"default": teacher_dir}, patch, tokenizers=settings) as server:
            await server.client.register_tokenizer(upload(student_file), timeout=LONG)
            yield server


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kinds of the messages to students' processes."""
    kinds: list[str] = []
    ask = StudentProcess.ask

    async def listened(self: StudentProcess, frame: Frame, *given: Any, **more: Any) -> Frame:
        kinds.append(frame.kind)
        return await ask(self, frame, *given, **more)

    monkeypatch.setattr(StudentProcess, "ask", listened)
    return kinds


def students() -> list[psutil.Process]:
    return [child for children in student_processes().values() for child in children]


@pytest_asyncio.fixture(autouse=True, loop_scope="module")
async def nothing_stays_held(crossed: Running) -> AsyncIterator[None]:
    """A test that fails while it holds the engine fails alone."""
    yield
    crossed.engines["default"].gate.set()


def asked(server: Running, file: bytes, tokens: list[int], name: str, **changes: Any) -> Any:
    return request(server, file, tokens, request_id=name, **changes)


def same(mine: ScoreReply, theirs: ScoreReply) -> None:
    assert len(mine.results) == len(theirs.results)
    for one, other in zip(mine.results, theirs.results, strict=True):
        assert (one.status, one.detail) == (other.status, other.detail)
        left, right = arrays_of(one), arrays_of(other)
        assert left.keys() == right.keys()
        for name in left:
            assert left[name].tobytes() == right[name].tobytes(), name


def arrays_of(scores: ContinuationScores) -> dict[str, Any]:
    block = {} if scores.realignment is None else vars(scores.realignment)
    return {**scores.rows.arrays(), **block}


async def test_a_caller_that_leaves_leaves_nothing_behind(
    crossed: Running, student_file: bytes, student: Tokenizer, said: list[str]
) -> None:
    tokens = student.encode(TEXT).ids
    engine = crossed.engines["default"]
    engine.hold()
    going = asyncio.create_task(crossed.score(asked(crossed, student_file, tokens, "cancelled")))
    await engine.has_jobs(1)
    assert "drop" not in said
    going.cancel()
    await eventually(lambda: "drop" in said)
    engine.gate.set()
    reply = await crossed.score(asked(crossed, student_file, tokens, "after a cancel"))
    assert reply.results[0].status is Status.OK


async def test_a_deadline_ends_the_request_in_its_process_too(
    crossed: Running, student_file: bytes, student: Tokenizer, said: list[str]
) -> None:
    tokens = student.encode(TEXT).ids
    engine = crossed.engines["default"]
    engine.hold()
    late = asked(crossed, student_file, tokens, "late")
    with pytest.raises(DeadlineError):
        await crossed.client.score(late, timeout=1.0)
    await eventually(lambda: "start" not in said or "drop" in said)
    engine.gate.set()
    reply = await crossed.score(asked(crossed, student_file, tokens, "after a deadline"))
    assert reply.results[0].status is Status.OK


async def test_a_process_that_is_killed_within_a_request_costs_that_request_alone(
    crossed: Running, student_file: bytes, student: Tokenizer
) -> None:
    tokens = student.encode(TEXT).ids
    before = await crossed.score(asked(crossed, student_file, tokens, "before"))
    engine = crossed.engines["default"]
    engine.hold()
    body = body_of(asked(crossed, student_file, tokens, "killed"))
    going = asyncio.create_task(crossed.raw_score(body))
    await engine.has_jobs(1)
    (process,) = students()
    os.kill(process.pid, signal.SIGKILL)
    engine.gate.set()
    with pytest.raises(grpc.aio.AioRpcError) as found:
        await going
    assert found.value.code() is grpc.StatusCode.UNAVAILABLE
    after = await crossed.score(asked(crossed, student_file, tokens, "restarted"))
    assert students() != [process]
    same(after, before)


async def test_requests_side_by_side_have_the_rows_of_each_alone(
    crossed: Running, student_file: bytes, student: Tokenizer
) -> None:
    texts = [TEXT, "def loss(x): return 9 * x; nothing else", "a b c 12345 the day was warm"]
    groups = [[student.encode(text).ids[n:] for n in range(3)] for text in texts]
    requests = [
        asked(crossed, student_file, [], f"n{n}", continuations=tuple(continuation(*c) for c in g))
        for n, g in enumerate(groups)
    ]
    alone = [await crossed.score(one) for one in requests]
    again = [replace(one, request_id=f"{one.request_id} again") for one in requests]
    together = await asyncio.gather(*map(crossed.score, again))
    for mine, theirs in zip(together, alone, strict=True):
        for one, other in zip(mine.results, theirs.results, strict=True):
            np.testing.assert_array_equal(
                arrays_of(one)["position_class"], arrays_of(other)["position_class"]
            )
            np.testing.assert_allclose(
                arrays_of(one)["coverage"], arrays_of(other)["coverage"], atol=1e-4
            )


async def test_runs_with_one_tokenizer_share_its_process_and_each_takes_its_own_turns(
    crossed: Running, student_file: bytes, student: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = student.encode(TEXT).ids
    await crossed.client.register_tokenizer(upload(student_file, run="other"), timeout=LONG)
    engine = crossed.engines["default"]
    engine.hold()
    mine = asyncio.create_task(crossed.score(asked(crossed, student_file, tokens, "mine")))
    await engine.has_jobs(1)
    theirs = asked(crossed, student_file, tokens, "theirs", run="other")
    other = asyncio.create_task(crossed.score(theirs))
    await engine.has_jobs(2)
    assert len(students()) == 1
    cancelled = engine.cancelled
    other.cancel()
    await eventually(lambda: engine.cancelled == cancelled + 1)
    taken: list[str] = []
    take = Turns.take

    def counted(self: Turns, run: str, quick: bool = True) -> Any:
        taken.append(run)
        return take(self, run, quick)

    monkeypatch.setattr(Turns, "take", counted)
    engine.gate.set()
    await mine
    assert set(taken) == {"run"}


async def test_a_refusal_after_the_plan_ends_the_request_in_its_process(
    crossed: Running, student_file: bytes, student: Tokenizer, said: list[str]
) -> None:
    tokens = student.encode("def score(self) " * 60).ids
    jobs = len(crossed.engines["default"].jobs)
    with pytest.raises(InvalidRequestError, match="max_length"):
        await crossed.score(asked(crossed, student_file, tokens, "long"))
    await eventually(lambda: "drop" in said)
    assert len(crossed.engines["default"].jobs) == jobs
    assert "rows" not in said


async def test_rows_that_are_not_finite_are_said_of_their_continuation_alone(
    crossed: Running, student_file: bytes, student: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    group = tuple(continuation(*student.encode(text).ids) for text in (TEXT, " the day was warm"))
    inner = crossed.engines["default"].inner
    score = inner.score

    async def spoilt(job: Job) -> JobResult:
        result = await score(job)
        if not job.want_sampled:
            return result
        return replace(result, rows=(None, *result.rows[1:]))

    monkeypatch.setattr(inner, "score", spoilt)
    reply = await crossed.score(asked(crossed, student_file, [], "spoilt", continuations=group))
    first, second = reply.results
    assert first.status is Status.NON_FINITE
    assert first.detail == "the teacher's logits are not finite"
    assert first.rows.support is None
    assert first.realignment is None
    assert second.status is Status.OK


async def test_a_group_of_many_continuations(
    crossed: Running, student_file: bytes, student: Tokenizer
) -> None:
    tokens = student.encode(TEXT).ids
    group = tuple(continuation(*tokens[: 2 + n % 9]) for n in range(200))
    reply = await crossed.score(asked(crossed, student_file, [], "many", continuations=group))
    lengths = [len(arrays_of(one)["coverage"]) for one in reply.results]
    assert lengths == [2 + n % 9 for n in range(200)]


async def test_the_process_gives_the_bytes_of_the_realigner_itself(
    crossed: Running,
    teacher_dir: Path,
    student_file: bytes,
    student: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokens = student.encode(TEXT).ids
    by_process = await crossed.score(asked(crossed, student_file, tokens, "by process"))
    vocabularies = read_vocabulary(student_file), read_vocabulary(file_of(teacher_dir))
    pair = Pair(PairTables(*vocabularies, build_static(*vocabularies)))

    @asynccontextmanager
    async def session(*given: Any) -> AsyncIterator[InProcess]:
        yield InProcess(pair)

    monkeypatch.setattr(StudentTokenizers, "session", session)
    same(await crossed.score(asked(crossed, student_file, tokens, "by itself")), by_process)


def nan(frame: Frame, student: Tokenizer) -> None:
    frame.arrays["sampled_log_probs"][:] = np.nan


def above_zero(frame: Frame, student: Tokenizer) -> None:
    frame.arrays["top_log_probs"][0] = 1.0


def twice(frame: Frame, student: Tokenizer) -> None:
    frame.arrays["top_ids"][0] = frame.arrays["top_ids"][0, 0]


def beyond(frame: Frame, student: Tokenizer) -> None:
    frame.arrays["top_ids"][0, 0] = student.get_vocab_size()


def too_many(frame: Frame, student: Tokenizer) -> None:
    frame.arrays["valid_counts"][0] = 1000


def no_probability(frame: Frame, student: Tokenizer) -> None:
    frame.arrays["coverage"][0] = 7.0


def no_chunk(frame: Frame, student: Tokenizer) -> None:
    frame.arrays["chunk_index"][0] = 1 << 20


def cut(frame: Frame, student: Tokenizer) -> None:
    frame.arrays["coverage"] = frame.arrays["coverage"][:-1]


@pytest.mark.parametrize(
    "lie", [nan, above_zero, twice, beyond, too_many, no_probability, no_chunk, cut]
)
async def test_a_process_that_lies_is_ended_and_its_request_refused(
    lie: Callable[[Frame, Tokenizer], None],
    crossed: Running,
    student_file: bytes,
    student: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokens = student.encode(TEXT).ids
    ask = Session.ask

    async def lying(self: Session, frame: Frame) -> Frame:
        answer = await ask(self, frame)
        if answer.kind == "done":
            answer.arrays.update({name: a.copy() for name, a in answer.arrays.items()})
            lie(answer, student)
        return answer

    await crossed.score(asked(crossed, student_file, tokens, f"before {lie.__name__}"))
    (process,) = students()
    with monkeypatch.context() as patch:
        patch.setattr(Session, "ask", lying)
        with pytest.raises(InvalidRequestError) as found:
            await crossed.score(asked(crossed, student_file, tokens, lie.__name__))
    assert found.value.reason == "TOKENIZER_REFUSED"
    await eventually(lambda: process not in students())
    reply = await crossed.score(asked(crossed, student_file, tokens, f"after {lie.__name__}"))
    assert reply.results[0].status is Status.OK
