"""Context-free rows: asked for once, whoever needs them, and the same for all."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from teacher_proto.errors import DeadlineError
from teacher_proto.rows import Rows, Support, Values
from teacher_proto.tokenizer_hash import tokenizer_hash
from teacher_proto.types import PositionClass, ScoreRequest, Status, TextPrompt
from tokenizers import Tokenizer

from teacher_server.engines.base import Job, JobResult, ScoredSpan
from teacher_server.lanes import Lanes
from teacher_server.realign.pair.static_tables import build_static
from teacher_server.realign.pair.tables import PairTables
from teacher_server.realign.pair.vocabulary import read_vocabulary
from teacher_server.realign.paired import Pair
from teacher_server.realign.realigner import Realigner
from teacher_server.realign.requests.further_rows import context_free_prompt, learn_context_free
from teacher_server.realign.walk.context_free import ContextFreeRows
from teacher_server.refusals.facts import StudentFacts, TeacherFacts
from teacher_server.scoring.context import GRPC, RequestContext
from teacher_server.scoring.jobs import JobRunner, tokens_of
from teacher_server.scoring.realigned_path import realigned_scores
from teacher_server.settings.limits import LimitSettings
from teacher_server.settings.tokenizers import TokenizerSettings
from teacher_server.telemetry.realignment_totals import EndedEarly
from tests.realign.toys import SPACE, toy
from tests.server.crossed import TEXT, block, file_of, given, request, upload
from tests.server.running import LONG, continuation, ids, running
from tests.support.realigning import InProcess

pytestmark = pytest.mark.asyncio(loop_scope="module")
OTHER = "A teacher that writes def loss(x): return 9 * x; nothing else is judged."


def first_id(sequence: ScoredSpan) -> int:
    return int(sequence.token_ids[0])


async def test_each_is_asked_for_once_and_counted(
    teacher_dir: Path, student_file: bytes, student: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = student.encode(TEXT).ids
    async with running({"default": teacher_dir}, monkeypatch) as server:
        await server.client.register_tokenizer(upload(student_file), timeout=LONG)
        first = await server.score(request(server, student_file, tokens))
        second = await server.score(request(server, student_file, tokens, request_id="second"))
        own, context_free, again = server.engines["default"].jobs
        assert len(own.spans[0].token_ids) == len(again.spans[0].token_ids)
        vocabulary = read_vocabulary(file_of(teacher_dir))
        np.testing.assert_array_equal(context_free.prompt_ids, context_free_prompt(vocabulary))
        assert all(s.positions.tolist() == [1] for s in context_free.spans)
        told = (first.timing.computed_tokens, second.timing.computed_tokens)
        assert told[0] - told[1] >= len(context_free.spans)
        for part in ("top_ids", "top_log_probs", "valid_counts", "sampled_log_probs"):
            mine, theirs = (one.results[0].rows.arrays()[part] for one in (first, second))
            np.testing.assert_allclose(mine, theirs, atol=1e-5)
        metrics = (await server.http.get("/metrics")).text
        label = f'teacher="default",tokenizer="{tokenizer_hash(student_file)[:12]}"'
        count = float(len(context_free.spans))
        assert f"lsm_teacher_realign_context_free_rows_total{{{label}}} {count}" in metrics
        # Another temperature is another distribution.
        await server.score(request(server, student_file, tokens, temperature=2.0))
        *_, warm = server.engines["default"].jobs
        assert {first_id(s) for s in warm.spans} & {first_id(s) for s in context_free.spans}


@pytest.mark.parametrize("rounds", [0, 2])
async def test_what_others_asked_for_changes_nothing(
    rounds: int,
    teacher_dir: Path,
    student_file: bytes,
    student: Tokenizer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tokens = student.encode(TEXT).ids
    found = []
    settings = {"tokenizers": {"extra_rounds": rounds, "extra_least_open": 0.02}}
    for before in ([], student.encode(OTHER).ids):
        async with running({"default": teacher_dir}, monkeypatch, **settings) as server:
            await server.client.register_tokenizer(upload(student_file), timeout=LONG)
            if before:
                await server.score(request(server, student_file, before, request_id="other"))
            found.append((await server.score(request(server, student_file, tokens))).results[0])
    np.testing.assert_array_equal(found[0].rows.support.ids, found[1].rows.support.ids)
    np.testing.assert_allclose(
        given(found[0].rows.support.log_probs), found[1].rows.support.log_probs, atol=1e-5
    )
    blocks = [block(one) for one in found]
    np.testing.assert_array_equal(blocks[0].position_class, blocks[1].position_class)
    np.testing.assert_allclose(blocks[0].open_mass, blocks[1].open_mass, atol=1e-5)


async def test_without_them_more_is_open(
    teacher_dir: Path, student_file: bytes, student: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = student.encode(TEXT).ids
    found = []
    for asks in (True, False):
        settings = {"tokenizers": {"context_free_rows": asks}}
        async with running({"default": teacher_dir}, monkeypatch, **settings) as server:
            await server.client.register_tokenizer(upload(student_file), timeout=LONG)
            found.append(
                block((await server.score(request(server, student_file, tokens))).results[0])
            )
            assert len(server.engines["default"].jobs) == 1 + asks
    masked = [(one.position_class == PositionClass.MASKED).mean() for one in found]
    assert masked[0] <= masked[1]
    assert found[0].open_mass.sum() != pytest.approx(found[1].open_mass.sum(), rel=1e-3)


async def test_a_row_that_is_not_finite_leaves_its_token_open(
    teacher_dir: Path, student_file: bytes
) -> None:
    vocabularies = read_vocabulary(student_file), read_vocabulary(file_of(teacher_dir))
    realigner = Realigner(PairTables(*vocabularies, build_static(*vocabularies)))
    context_free = ContextFreeRows(realigner.tables)
    first, second = np.flatnonzero(realigner.tables.has_extension)[:2].tolist()
    special = next(iter(vocabularies[1].specials))
    sure = Rows(Support(ids(special)[None], np.zeros((1, 1), np.float32), np.ones(1, np.int32)))
    learn_context_free(np.array([first, second]), (None, sure), realigner, context_free)
    assert context_free.known[[first, second]].all()
    assert context_free.extension_share[first] == 1.0
    assert context_free.extension_share[second] == 0.0


@pytest.mark.parametrize("answered", [1, 2, 3, 4])
@pytest.mark.parametrize("deterministic", [False, True])
async def test_rows_of_an_extra_round_may_ask_for_them_too(
    answered: int, deterministic: bool
) -> None:
    """As long as there is time, which is up after ``answered`` of four jobs.

    What precedes the student's "c" is "a", "b" to the teacher, whose rollout has "bc": the row
    behind "b" is there after a round only, and it is the first to hold a "c".
    """
    student = toy("abcd" + SPACE, [("c", "d")])
    teacher = toy("abcd" + SPACE, [("b", "c"), (SPACE, "b")])
    behind = {"a": {"b": 0.6, "bc": 0.4}, "b": {"c": 0.9, "a": 0.1}}
    asked: list[Job] = []

    class Toy(JobRunner):
        async def run(
            self,
            job: Job,
            tokens: int | None = None,
            *,
            further: int = 0,
            spare: float = 0.0,
        ) -> JobResult:
            if len(asked) == answered:
                raise DeadlineError("too late", fix="none")
            asked.append(job)
            return JobResult(tuple(answer(job, one) for one in job.spans), tokens_of(job), 0.0)

    def answer(job: Job, sequence: ScoredSpan) -> Rows:
        read = [*job.prompt_ids.tolist(), *sequence.token_ids.tolist()]
        top_ids = np.full((len(sequence.positions), job.top_k), -1, np.int32)
        log_probs = np.zeros(top_ids.shape, np.float32)
        own = np.full(len(top_ids), -9.0, np.float32)
        for row, position in enumerate(sequence.positions.tolist()):
            last = teacher.token_bytes[read[len(job.prompt_ids) + position - 1]].decode()
            for slot, (token, mass) in enumerate(behind.get(last, {"a": 1.0}).items()):
                top_ids[row, slot] = teacher.token_bytes.index(token.encode())
                log_probs[row, slot] = np.log(mass)
                if top_ids[row, slot] == sequence.token_ids[position]:
                    own[row] = np.log(mass)
        return Rows(
            support=Support(top_ids, log_probs, (top_ids >= 0).sum(1, dtype=np.int32)),
            sampled=Values(own, np.ones(len(own), np.bool_)),
        )

    tables = PairTables(student, teacher, build_static(student, teacher))
    tokens = student.encoder.encode(b"abca").ids.tolist()
    toy_request = ScoreRequest(
        request_id="toy",
        run="run",
        teacher="toy",
        tokenizer_hash=student.hash,
        prompt=TextPrompt(""),
        continuations=(continuation(*tokens),),
        top_k=4,
        temperature=1.0,
    )
    nothing: Any = None
    context = RequestContext(
        call=SimpleNamespace(surface=GRPC),
        request=toy_request,
        size=0,
        teacher=SimpleNamespace(
            facts=TeacherFacts("toy", teacher.size, 4, 64, "", "", deterministic=deterministic)
        ),
        policy=nothing,
        limits=LimitSettings().server_limits(),
        lanes=Lanes(),
        students=nothing,
        seen=nothing,
        entry=nothing,
    )
    scored = realigned_scores(
        context,
        ids(len(teacher.token_bytes) - 1),
        InProcess(Pair(tables)),
        StudentFacts(student.size, realigned=True),
        TokenizerSettings(extra_rounds=1, extra_rows_per_token=1.0),
        Toy(context.teacher, nothing, nothing),
    )
    if answered < 4 and deterministic:
        with pytest.raises(DeadlineError):
            await scored
        return
    (scores,), totals = await scored
    assert scores.status is Status.OK
    assert len(asked) == answered
    assert totals.ended_early is (EndedEarly.DEADLINE if answered < 4 else None)
    if answered < 4:
        return
    own, before, extra, after = asked
    assert own.want_sampled
    first = [teacher.token_bytes.index(token) for token in (b"a", b"b", b"bc")]
    assert [first_id(one) for one in before.spans] == first
    assert [first_id(one) for one in after.spans] == [teacher.token_bytes.index(b"c")]
    assert int(extra.spans[0].token_ids[-2]) == teacher.token_bytes.index(b"b")
