"""A student's tokenizer that is not the teacher's, over both wires."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from teacher_proto.errors import InvalidRequestError
from teacher_proto.tokenizer_hash import tokenizer_hash
from teacher_proto.types import (
    Continuation,
    ContinuationScores,
    Level,
    MaskReason,
    PositionClass,
    Returns,
    ScoreReply,
    Segment,
    Status,
    TextPrompt,
)
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from teacher_server.engines.base import EngineDescription
from teacher_server.engines.torch.transformers import TransformersEngine
from teacher_server.http.models import ScoreReplyBody
from teacher_server.realign.pair.static_tables import build_static
from teacher_server.realign.pair.tables import PairTables
from teacher_server.realign.pair.vocabulary import read_vocabulary
from teacher_server.realign.realigner import Realigner
from teacher_server.realign.walk.context_free import ContextFreeRows
from teacher_server.realign.walk.rows import teacher_rows
from teacher_server.scoring.jobs import tokens_after
from teacher_server.scoring.realigned_path import EXTRA_ROUNDS
from tests.server.crossed import (
    EVERYTHING,
    TEXT,
    block,
    changed,
    extra_token,
    file_of,
    given,
    request,
    upload,
)
from tests.server.running import LONG, Running, body_of, continuation, ids, running
from tests.server.test_scoring import reference

pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_a_foreign_rollout_has_the_rows_of_the_library(
    crossed: Running, teacher_dir: Path, student_file: bytes, student: Tokenizer
) -> None:
    """Against a plain forward of the teacher, realigned without the service."""
    tokens = student.encode(TEXT).ids
    server_request = request(crossed, student_file, tokens)
    reply = await crossed.score(server_request)
    job, *context_free_jobs = crossed.engines["default"].jobs
    tokenizer = AutoTokenizer.from_pretrained(teacher_dir)
    chat = [{"role": "user", "content": "Hi"}]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    np.testing.assert_array_equal(job.prompt_ids, prompt)
    vocabularies = read_vocabulary(student_file), read_vocabulary(file_of(teacher_dir))
    realigner = Realigner(PairTables(*vocabularies, build_static(*vocabularies)))
    layout = realigner.lay_out(ids(*tokens))
    np.testing.assert_array_equal(job.spans[0].token_ids, layout.teacher_ids)
    assert len(layout.teacher_ids) != len(tokens)
    rows = reference(teacher_dir, prompt, layout.teacher_ids.tolist()).double().numpy()
    top = np.argsort(-rows, axis=1, kind="stable")[:, : job.top_k]
    own = rows[np.arange(len(rows)), layout.teacher_ids]
    values = np.take_along_axis(rows, top, 1)
    read = teacher_rows(layout.teacher_ids, top.astype(np.int32), values, own)
    positions, context_free = np.arange(len(tokens)), ContextFreeRows(realigner.tables)
    first = realigner.realign(layout, positions, read, top_k=8, context_free=context_free)
    (context_free_job,) = context_free_jobs
    assert [int(s.token_ids[0]) for s in context_free_job.spans] == first.walked.wanted.tolist()
    assert len(context_free_job.spans) > 5
    for token in first.walked.wanted.tolist():
        behind = reference(teacher_dir, context_free_job.prompt_ids.tolist(), [token, 0])[1]
        best = behind.topk(context_free_job.top_k)
        ids_, log_probs = best.indices.numpy()[None], best.values.double().numpy()[None]
        realigner.learn(context_free, np.array([token]), ids_.astype(np.int32), log_probs)
    expected = realigner.realign(layout, positions, read, top_k=8, context_free=context_free)
    assert not len(expected.walked.wanted)
    scores = reply.results[0]
    found = block(scores)
    np.testing.assert_array_equal(found.position_class, expected.position_class)
    assert (found.position_class != PositionClass.MASKED).mean() > 0.5
    np.testing.assert_array_equal(scores.rows.support.counts, expected.certified.counts)
    np.testing.assert_array_equal(scores.rows.support.ids, expected.certified.ids)
    np.testing.assert_allclose(
        scores.rows.support.log_probs, expected.certified.log_probs, atol=2e-4
    )
    assert scores.rows.sampled is not None
    known = expected.certified.sampled > -np.inf
    np.testing.assert_array_equal(scores.rows.sampled.valid, known)
    np.testing.assert_allclose(
        scores.rows.sampled.values[known], expected.certified.sampled[known], atol=2e-4
    )
    np.testing.assert_allclose(found.coverage, expected.certified.coverage, atol=1e-4)
    # The chunks of a whole rollout: the likelihood of all its teacher tokens.
    assert found.chunk_log_likelihood.sum() == pytest.approx(own.sum(), abs=1e-2)
    assert scores.rows.log_tail is not None
    np.testing.assert_allclose(np.exp(scores.rows.log_tail.values), 1 - found.coverage, atol=1e-5)
    assert reply.timing.computed_tokens >= len(layout.teacher_ids)


async def test_a_repeated_request_gets_the_same_bytes(
    crossed: Running, student_file: bytes, student: Tokenizer
) -> None:
    body = body_of(request(crossed, student_file, student.encode(TEXT).ids, request_id="again"))
    before = len(crossed.engines["default"].jobs)
    first, second = await crossed.raw_score(body), await crossed.raw_score(body)
    assert first == second
    assert len(crossed.engines["default"].jobs) == before + 1


async def test_get_teacher_lists_the_level(crossed: Running, student_file: bytes) -> None:
    info = (await crossed.client.get_teacher(timeout=LONG)).teacher("default")
    assert info.tokenizers == {
        info.identity.tokenizer_hash: Level.SAME,
        tokenizer_hash(student_file): Level.CROSS,
    }


async def test_selected_rows_are_those_of_all_rows(
    crossed: Running, student_file: bytes, student: Tokenizer
) -> None:
    tokens = student.encode(TEXT).ids
    whole = await crossed.score(request(crossed, student_file, tokens))
    chosen = ids(*range(1, len(tokens), 3))
    some = await crossed.score(
        request(
            crossed,
            student_file,
            tokens,
            request_id="rows",
            continuations=(continuation(*tokens, rows=chosen),),
        )
    )
    got, full = some.results[0], whole.results[0]
    np.testing.assert_array_equal(got.rows.support.ids, given(full.rows.support).ids[chosen])
    np.testing.assert_allclose(
        got.rows.support.log_probs, given(full.rows.support).log_probs[chosen], atol=5e-5
    )
    np.testing.assert_allclose(
        got.rows.sampled.values, given(full.rows.sampled).values[chosen], atol=5e-5
    )
    mine, theirs = block(got), block(full)
    np.testing.assert_array_equal(mine.position_class, theirs.position_class[chosen])
    np.testing.assert_allclose(
        mine.chunk_log_likelihood[mine.chunk_index],
        theirs.chunk_log_likelihood[theirs.chunk_index[chosen]],
        atol=5e-4,
    )


async def test_no_row_knows_what_follows_it(
    crossed: Running, student_file: bytes, student: Tokenizer
) -> None:
    """Everything from a token on is rewritten: its row and those before are equal or masked."""
    tokens = student.encode(TEXT).ids
    apart: list[float] = []
    for cut in range(3, len(tokens), 5):
        other = student.encode(" values; the day was warm").ids
        replies = [
            await crossed.score(request(crossed, student_file, kept, request_id=f"cut-{cut}-{n}"))
            for n, kept in enumerate((tokens, tokens[:cut] + other))
        ]
        first, second = (reply.results[0] for reply in replies)
        classes = [block(one).position_class[: cut + 1] for one in (first, second)]
        both = np.flatnonzero(
            (classes[0] != PositionClass.MASKED) & (classes[1] != PositionClass.MASKED)
        )
        for row in both.tolist():
            a, b = (
                dict(
                    zip(
                        given(o.rows.support).ids[row].tolist(),
                        given(o.rows.support).log_probs[row].tolist(),
                        strict=True,
                    )
                )
                for o in (first, second)
            )
            shared = (set(a) & set(b)) - {-1}
            apart.append(sum(abs(np.exp(a[t]) - np.exp(b[t])) for t in shared) / 2)
    assert len(apart) > 50
    assert np.mean(apart) <= 0.002, sorted(apart)[-5:]


async def test_explicit_ids_and_no_support(
    crossed: Running, student_file: bytes, student: Tokenizer
) -> None:
    tokens = student.encode(TEXT).ids
    whole = (await crossed.score(request(crossed, student_file, tokens))).results[0]
    asked = np.column_stack([given(whole.rows.support).ids, np.full(len(tokens), -1), ids(*tokens)])
    got = (
        await crossed.score(
            request(
                crossed,
                student_file,
                tokens,
                request_id="explicit",
                top_k=0,
                returns=Returns(),
                continuations=(continuation(*tokens, explicit_ids=asked.astype(np.int32)),),
            )
        )
    ).results[0]
    assert got.rows.support is None
    assert got.realignment is None
    values, valid = given(got.rows.explicit).values, given(got.rows.explicit).valid
    listed = given(whole.rows.support).ids >= 0
    np.testing.assert_array_equal(valid[:, :8] | ~listed, True)
    np.testing.assert_allclose(
        values[:, :8][listed], given(whole.rows.support).log_probs[listed], atol=1e-3
    )
    assert not valid[:, 8].any()
    np.testing.assert_array_equal(valid[:, 9], given(got.rows.sampled).valid)
    np.testing.assert_allclose(values[:, 9], given(got.rows.sampled).values, atol=5e-5)


async def test_turns_and_special_tokens(
    crossed: Running, student_file: bytes, student: Tokenizer
) -> None:
    """The student's end of turn is the teacher's by its role, a token of the same text by that."""
    end, start = student.token_to_id("<|im_end|>"), student.token_to_id("<|im_start|>")
    first, second = student.encode(" the day").ids, student.encode(" user asks").ids
    turns = Continuation(
        (
            Segment(ids(*first, end)),
            Segment(ids(start, *second), scored=False),
            Segment(ids(*first, end)),
        )
    )
    asked = request(crossed, student_file, [], continuations=(turns,), request_id="turns")
    scores = (await crossed.score(asked)).results[0]
    found = block(scores)
    scored = len(first) + 1
    assert len(found.coverage) == 2 * scored
    assert found.position_class[scored - 1] == PositionClass.SPECIAL
    assert given(scores.rows.sampled).valid[scored - 1]
    alone = continuation(start, *second)
    asked = request(crossed, student_file, [], continuations=(alone,), request_id="start")
    carried = (await crossed.score(asked)).results[0]
    assert block(carried).position_class[0] == PositionClass.SPECIAL
    assert given(carried.rows.sampled).valid[0]
    job = [job for job in crossed.engines["default"].jobs if job.want_sampled][-1]
    teacher = crossed.server.service.teachers.get("default").tokenizer
    assert teacher.token_text(int(job.spans[0].token_ids[0])) == "<|im_start|>"


async def test_what_cannot_be_realigned_says_so(
    crossed: Running, student_file: bytes, student: Tokenizer
) -> None:
    fine = student.encode(" the day").ids
    size = student.get_vocab_size()
    reply = await crossed.score(
        request(
            crossed,
            student_file,
            [],
            continuations=(continuation(*fine), continuation(*fine, size)),
            student_vocabulary_size=size + 8,
            request_id="padded",
        )
    )
    good, bad = reply.results
    assert good.status is Status.OK
    assert bad.status is Status.NOT_REALIGNED
    assert f"id {size} at index {len(fine)}" in bad.detail
    assert bad.rows.support is None
    with pytest.raises(InvalidRequestError) as found:
        await crossed.score(request(crossed, student_file, [size]))
    assert found.value.where == "continuations[0].segments[0].token_ids"


async def test_bytes_that_are_no_text_are_masked(
    crossed: Running, student_file: bytes, student: Tokenizer
) -> None:
    half = student.encode("\u754c").ids[:1]
    tokens = [*student.encode(" the").ids, *half, *student.encode(" day was").ids]
    scores = (await crossed.score(request(crossed, student_file, tokens))).results[0]
    classes = block(scores).position_class
    at = len(student.encode(" the").ids)
    assert classes[at] == PositionClass.MASKED
    assert given(scores.rows.support).counts[at] == 0
    assert (classes != PositionClass.MASKED).any()


async def test_http_gives_the_same_numbers_in_the_student_s_tokens(
    crossed: Running, student_file: bytes, student: Tokenizer
) -> None:
    by_grpc = await crossed.score(request(crossed, student_file, student.encode(TEXT).ids))
    body = {
        "run": "run",
        "prompt": {"messages": [{"role": "user", "content": "Hi"}]},
        "continuations": [{"text": TEXT}],
        "top_k": 8,
        "temperature": 1.0,
        "tokenizer_hash": tokenizer_hash(student_file),
        "returns": {"sampled": True, "log_tail": True, "realignment": True},
    }
    answer = await crossed.http.post("/v1/score", json=body)
    assert answer.status_code == 200, answer.text
    result = ScoreReplyBody.model_validate(answer.json()).results[0]
    scores = by_grpc.results[0]
    found = block(scores)
    assert len(result.rows) == len(found.coverage)
    for row, got in enumerate(result.rows):
        assert got.token == student.decode([got.token_id], skip_special_tokens=False)
        count = int(given(scores.rows.support).counts[row])
        assert got.top is not None
        assert [e.token_id for e in got.top] == given(scores.rows.support).ids[row, :count].tolist()
        np.testing.assert_allclose(
            [e.log_prob for e in got.top],
            given(scores.rows.support).log_probs[row, :count],
            atol=5e-5,
        )
        assert got.realignment is not None
        assert got.realignment.position_class == PositionClass(found.position_class[row]).name
        assert got.realignment.coverage == pytest.approx(found.coverage[row], abs=1e-5)
    assert result.chunk_log_likelihood == pytest.approx(
        found.chunk_log_likelihood.tolist(), abs=1e-3
    )
    unknown = await crossed.http.post("/v1/score", json=body | {"tokenizer_hash": "0" * 64})
    assert unknown.status_code == 412
    assert unknown.json()["error"]["reason"] == "UNKNOWN_TOKENIZER"
    assert "RegisterTokenizer" in unknown.json()["error"]["fix"]


async def test_equal_ordinary_tokens_give_the_teacher_s_own_rows(
    teacher_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The off-by-one canary: every row is that of the same request in the teacher's own
    tokenizer, through the realigner."""
    file = changed(file_of(teacher_dir), extra_token)
    text = "What is the capital of France? The weather was cold."
    tokens = Tokenizer.from_str(file.decode()).encode(text).ids
    async with running({"default": teacher_dir}, monkeypatch) as server:
        levels = await server.client.register_tokenizer(upload(file), timeout=LONG)
        assert levels == {"default": Level.REMAP}
        prompt = TextPrompt("The teacher reads")
        end = Tokenizer.from_str(file.decode()).token_to_id("<|im_end|>")
        group = (continuation(*tokens, end), continuation(*tokens[4:]))
        own = await server.score(server.request(prompt=prompt, continuations=group, top_k=64))
        foreign = await server.score(
            request(server, file, [], prompt=prompt, continuations=group, top_k=64, request_id="f")
        )
        for same, other in zip(own.results, foreign.results, strict=True):
            assert set(block(other).position_class.tolist()) == {PositionClass.REMAP}
            for row, count in enumerate(given(other.rows.support).counts.tolist()):
                assert count >= 60  # the added tokens' ids are other ones
                mine = _row(same, row)
                theirs = _row(other, row)
                shared = set(mine) & set(theirs)
                assert len(shared) >= 60
                for token in shared:
                    assert theirs[token] == pytest.approx(mine[token], abs=5e-5)
            known = given(other.rows.sampled).valid
            assert known.all()
            np.testing.assert_allclose(
                given(other.rows.sampled).values, given(same.rows.sampled).values, atol=5e-5
            )


def _row(scores: ContinuationScores, row: int) -> dict[int, float]:
    """The support of a row by id."""
    count = int(given(scores.rows.support).counts[row])
    pairs = zip(
        given(scores.rows.support).ids[row, :count].tolist(),
        given(scores.rows.support).log_probs[row, :count].tolist(),
        strict=True,
    )
    return dict(pairs)


async def test_extra_forwards_settle_more(
    teacher_dir: Path, student_file: bytes, student: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = student.encode(TEXT).ids
    found: list[ScoreReply] = []
    for rounds in (0, 2):
        tokenizers = {
            "extra_rounds": rounds,
            "extra_rows_per_token": 4.0,
            "context_free_rows": False,
        }
        async with running({"default": teacher_dir}, monkeypatch, tokenizers=tokenizers) as server:
            await server.client.register_tokenizer(upload(student_file), timeout=LONG)
            found.append(await server.score(request(server, student_file, tokens)))
            jobs = server.engines["default"].jobs
            assert len(jobs) == 1 + rounds
            assert sum(len(job.spans) for job in jobs[1:]) <= 4 * len(jobs[0].spans[0].positions)
            metrics = (await server.http.get("/metrics")).text
            extra = sum(len(job.spans) for job in jobs[1:])
            label = f'teacher="default",tokenizer="{tokenizer_hash(student_file)[:12]}"'
            assert f"lsm_teacher_realign_extra_rows_total{{{label}}} {float(extra)}" in metrics
    without, with_ = (reply.results[0] for reply in found)
    assert found[1].timing.computed_tokens > found[0].timing.computed_tokens
    assert block(with_).open_mass.sum() < 0.95 * block(without).open_mass.sum()
    masked = [(block(one).position_class == PositionClass.MASKED).sum() for one in (with_, without)]
    assert masked[0] <= masked[1]


async def test_extra_rows_are_the_default_where_the_engine_keeps_prefixes(
    teacher_dir: Path, student_file: bytes, student: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = student.encode(TEXT).ids
    description = vars(TransformersEngine)["description"]
    settings: dict[str, Any] = {"context_free_rows": False}
    none: dict[str, Any] = {"extra_rows_per_token": 0.0}
    for keeps, own in ((False, {}), (True, none), (True, {})):

        def told(engine: TransformersEngine, keeps: bool = keeps) -> EngineDescription:
            whole: EngineDescription = description.fget(engine)
            return replace(whole, keeps_prefixes=keeps)

        monkeypatch.setattr(TransformersEngine, "description", property(told))
        tokenizers = settings | own
        async with running({"default": teacher_dir}, monkeypatch, tokenizers=tokenizers) as server:
            await server.client.register_tokenizer(upload(student_file), timeout=LONG)
            await server.score(request(server, student_file, tokens))
            rollouts, *rounds = server.engines["default"].jobs
            metrics = (await server.http.get("/metrics")).text
        rows = sum(len(job.spans) for job in rounds)
        if keeps and not own:
            assert 1 <= len(rounds) <= EXTRA_ROUNDS
            assert 0 < rows <= 0.3 * len(rollouts.spans[0].positions)
        else:
            assert rows == 0
        charged = len(rollouts.prompt_ids) + len(rollouts.spans[0].token_ids)
        charged += sum(tokens_after(job, rollouts.spans) for job in rounds)
        assert f'lsm_teacher_run_tokens_total{{run="run"}} {float(charged)}' in metrics


async def test_the_teacher_s_length_counts(
    crossed: Running, student_file: bytes, student: Tokenizer
) -> None:
    tokens = student.encode("def score(self) " * 60).ids
    with pytest.raises(InvalidRequestError) as found:
        await crossed.score(request(crossed, student_file, tokens))
    assert found.value.where == "continuations[0]"
    assert "engine.max_length" in found.value.what


async def test_coarse_rows_over_both_wires(
    crossed: Running, student_file: bytes, student: Tokenizer
) -> None:
    """Where they are asked for they stand in place of masked rows, with ids and their rest."""
    label = 'mask_reason="DOUBTFUL",position_class="{}",teacher="default",tokenizer="{}"'

    async def counted(kind: str) -> float:
        labels = label.format(kind, tokenizer_hash(student_file)[:12])
        text = (await crossed.http.get("/metrics")).text
        name = f"lsm_teacher_realigned_mask_reasons_total{{{labels}}} "
        lines = [line for line in text.splitlines() if line.startswith(name)]
        return float(lines[0].removeprefix(name)) if lines else 0.0

    tokens = student.encode(f"{TEXT} 1/3 = 0.333333; unbelievable retokenisation").ids
    plain = (await crossed.score(request(crossed, student_file, tokens))).results[0]
    was = {kind: await counted(kind) for kind in ("MASKED", "COARSE")}
    returns = replace(EVERYTHING, coarse=True)
    scores = (await crossed.score(request(crossed, student_file, tokens, returns=returns))).results[
        0
    ]
    masked, found = block(plain), block(scores)
    np.testing.assert_array_equal(masked.mask_reason, found.mask_reason)
    coarse = found.position_class == PositionClass.COARSE
    assert coarse.any()
    np.testing.assert_array_equal(coarse, masked.position_class != found.position_class)
    assert (masked.position_class[coarse] == PositionClass.MASKED).all()
    tail = given(scores.rows.log_tail)
    assert tail.valid[coarse].all()
    np.testing.assert_allclose(np.exp(tail.values) + found.coverage, 1.0, atol=1e-5)
    assert (found.coverage[coarse] >= 0.1).all()
    doubtful = int((found.mask_reason[coarse] == MaskReason.DOUBTFUL).sum())
    assert await counted("COARSE") == was["COARSE"] + doubtful
    assert await counted("MASKED") == was["MASKED"]
    body = {
        "run": "run",
        "prompt": {"messages": [{"role": "user", "content": "Hi"}]},
        "continuations": [{"token_ids": tokens}],
        "top_k": 8,
        "temperature": 1.0,
        "tokenizer_hash": tokenizer_hash(student_file),
        "returns": {"log_tail": True, "realignment": True, "coarse": True},
    }
    answer = await crossed.http.post("/v1/score", json=body)
    shown = ScoreReplyBody.model_validate(answer.json()).results[0].rows
    for row, got in enumerate(shown):
        realigned = given(got.realignment)
        assert realigned.position_class == PositionClass(found.position_class[row]).name
        reason = int(given(found.mask_reason)[row])
        assert realigned.mask_reason == (MaskReason(reason).name if reason else None)
        if coarse[row]:
            assert got.top
            assert got.log_tail == pytest.approx(float(tail.values[row]), abs=1e-4)
    unseen = await crossed.http.post(
        "/v1/score", json=body | {"returns": {"log_tail": True, "coarse": True}}
    )
    assert unseen.json()["error"]["where"] == "returns.coarse"
