"""A student's tokenizer that is not the teacher's, over both wires."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from teacher_proto.errors import ContractMismatchError, InvalidRequestError
from teacher_proto.tokenizer_hash import tokenizer_hash
from teacher_proto.types import (
    ChatMessage,
    ChatPrompt,
    Continuation,
    ContinuationScores,
    Level,
    PositionClass,
    Realignment,
    Returns,
    ScoreReply,
    ScoreRequest,
    Segment,
    SpecialRole,
    Status,
    TextPrompt,
    TokenizerUpload,
)
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from teacher_server.http.models import ScoreReplyBody
from teacher_server.realign.carry import Realigner
from teacher_server.realign.rows import teacher_rows
from teacher_server.realign.tables import PairTables, build_static
from teacher_server.realign.vocabulary import read_vocabulary
from tests.server.running import LONG, Running, body_of, continuation, ids, running
from tests.server.test_scoring import reference
from tests.support.models import make_tiny_model

pytestmark = pytest.mark.asyncio(loop_scope="module")

EVERYTHING = Returns(sampled=True, log_tail=True, realignment=True)
TEXT = "The student learns from every token; def score(self): return 12345 rows."


def upload(file: bytes, **changes: Any) -> TokenizerUpload:
    return replace(TokenizerUpload("run", tokenizer_hash(file), file), **changes)


@pytest.fixture(scope="session")
def student_file(other_tokenizer_model_dir: Path) -> bytes:
    return (other_tokenizer_model_dir / "tokenizer.json").read_bytes()


@pytest.fixture(scope="session")
def student(student_file: bytes) -> Tokenizer:
    return Tokenizer.from_str(student_file.decode())


@pytest.fixture(scope="session")
def teacher_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Like ``tiny_model_dir`` with distributions as peaked as those of real models."""
    return make_tiny_model(tmp_path_factory.mktemp("models") / "peaked", initializer_range=0.4)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def crossed(teacher_dir: Path, student_file: bytes) -> AsyncIterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        async with running({"default": teacher_dir}, patch) as server:
            levels = await server.client.register_tokenizer(upload(student_file), timeout=LONG)
            assert levels == {"default": Level.CROSS}
            yield server


def request(server: Running, file: bytes, tokens: list[int], **changes: Any) -> ScoreRequest:
    request = server.request(
        tokenizer_hash=tokenizer_hash(file),
        prompt=ChatPrompt((ChatMessage("user", "Hi"),)),
        continuations=(continuation(*tokens),),
        top_k=8,
        returns=EVERYTHING,
    )
    return replace(request, **changes)


def block(scores: ContinuationScores) -> Realignment:
    assert scores.realignment is not None, scores.detail
    return scores.realignment


async def test_a_foreign_rollout_has_the_rows_of_the_library(
    crossed: Running, teacher_dir: Path, student_file: bytes, student: Tokenizer
) -> None:
    """Against a plain forward of the teacher, carried over without the service."""
    tokens = student.encode(TEXT).ids
    server_request = request(crossed, student_file, tokens)
    reply = await crossed.score(server_request)
    job = crossed.engines["default"].jobs[-1]
    tokenizer = AutoTokenizer.from_pretrained(teacher_dir)
    chat = [{"role": "user", "content": "Hi"}]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    np.testing.assert_array_equal(job.prompt_ids, prompt)
    vocabularies = read_vocabulary(student_file), read_vocabulary(file_of(teacher_dir))
    realigner = Realigner(PairTables(*vocabularies, build_static(*vocabularies)))
    layout = realigner.plan(ids(*tokens))
    np.testing.assert_array_equal(job.sequences[0].token_ids, layout.teacher_ids)
    assert len(layout.teacher_ids) != len(tokens)
    rows = reference(teacher_dir, prompt, layout.teacher_ids.tolist()).double().numpy()
    top = np.argsort(-rows, axis=1, kind="stable")[:, : job.top_k]
    own = rows[np.arange(len(rows)), layout.teacher_ids]
    values = np.take_along_axis(rows, top, 1)
    expected = realigner.carry_over(
        layout,
        np.arange(len(tokens)),
        teacher_rows(layout.teacher_ids, top.astype(np.int32), values, own),
        top_k=8,
    )
    scores = reply.results[0]
    found = block(scores)
    np.testing.assert_array_equal(found.position_class, expected.position_class)
    assert (found.position_class != PositionClass.MASKED).mean() > 0.5
    np.testing.assert_array_equal(scores.valid_counts, expected.certified.counts)
    np.testing.assert_array_equal(scores.top_ids, expected.certified.ids)
    np.testing.assert_allclose(scores.top_log_probs, expected.certified.log_probs, atol=2e-4)
    assert scores.sampled_log_probs is not None
    assert scores.sampled_valid is not None
    known = expected.certified.sampled > -np.inf
    np.testing.assert_array_equal(scores.sampled_valid, known)
    np.testing.assert_allclose(
        scores.sampled_log_probs[known], expected.certified.sampled[known], atol=2e-4
    )
    np.testing.assert_allclose(found.coverage, expected.certified.coverage, atol=1e-4)
    # The chunks of a whole rollout: the likelihood of all its teacher tokens.
    assert found.chunk_log_likelihood.sum() == pytest.approx(own.sum(), abs=1e-2)
    assert scores.log_tail is not None
    np.testing.assert_allclose(np.exp(scores.log_tail), 1 - found.coverage, atol=1e-5)
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
    np.testing.assert_array_equal(got.top_ids, _of(full.top_ids)[chosen])
    np.testing.assert_allclose(got.top_log_probs, _of(full.top_log_probs)[chosen], atol=5e-5)
    np.testing.assert_allclose(
        got.sampled_log_probs, _of(full.sampled_log_probs)[chosen], atol=5e-5
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
                        _of(o.top_ids)[row].tolist(),
                        _of(o.top_log_probs)[row].tolist(),
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
    asked = np.column_stack([_of(whole.top_ids), np.full(len(tokens), -1), ids(*tokens)])
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
    assert got.top_ids is None
    assert got.realignment is None
    values, valid = _of(got.explicit_log_probs), _of(got.explicit_valid)
    listed = _of(whole.top_ids) >= 0
    np.testing.assert_array_equal(valid[:, :8] | ~listed, True)
    np.testing.assert_allclose(values[:, :8][listed], _of(whole.top_log_probs)[listed], atol=1e-3)
    assert not valid[:, 8].any()
    np.testing.assert_array_equal(valid[:, 9], _of(got.sampled_valid))
    np.testing.assert_allclose(values[:, 9], _of(got.sampled_log_probs), atol=5e-5)


async def test_turns_and_special_tokens(
    crossed: Running, student_file: bytes, student: Tokenizer
) -> None:
    """The student's end of turn is the teacher's; what has no counterpart is masked."""
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
    assert _of(scores.sampled_valid)[scored - 1]
    alone = continuation(start, *second)
    masked = (
        await crossed.score(
            request(crossed, student_file, [], continuations=(alone,), request_id="start")
        )
    ).results[0]
    assert block(masked).position_class[0] == PositionClass.MASKED
    assert _of(masked.valid_counts)[0] == 0
    assert not _of(masked.sampled_valid)[0]


async def test_what_cannot_be_carried_over_says_so(
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
    assert bad.top_ids is None
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
    assert _of(scores.valid_counts)[at] == 0
    assert (classes != PositionClass.MASKED).any()


async def test_http_gives_the_same_numbers_in_the_student_s_tokens(
    crossed: Running, student_file: bytes, student: Tokenizer
) -> None:
    by_grpc = await crossed.score(request(crossed, student_file, student.encode(TEXT).ids))
    body = {
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
        count = int(_of(scores.valid_counts)[row])
        assert got.top is not None
        assert [e.token_id for e in got.top] == _of(scores.top_ids)[row, :count].tolist()
        np.testing.assert_allclose(
            [e.log_prob for e in got.top], _of(scores.top_log_probs)[row, :count], atol=5e-5
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


async def test_a_tokenizer_registers_over_http(
    crossed: Running, student_file: bytes, student: Tokenizer
) -> None:
    role = f"{student.token_to_id('<|im_end|>')}:TURN_END"
    answer = await crossed.http.post(
        "/v1/tokenizers", content=student_file, params={"role": role, "run": "by-http"}
    )
    assert answer.json() == {
        "tokenizer_hash": tokenizer_hash(student_file),
        "levels": {"default": "CROSS"},
    }
    for content, params in ((b"{", {}), (student_file, {"role": "x:TURN_END"})):
        bad = await crossed.http.post("/v1/tokenizers", content=content, params=params)
        assert bad.status_code == 400
        assert bad.json()["error"]["fix"]


def changed(file: bytes, change: Any) -> bytes:
    document = json.loads(file)
    change(document)
    return json.dumps(document).encode()


def _extra_token(document: dict[str, Any]) -> None:
    size = len(document["model"]["vocab"])
    document["added_tokens"].append(
        {**document["added_tokens"][0], "id": size + 5, "content": "<think>"}
    )


async def test_equal_ordinary_tokens_give_the_teacher_s_own_rows(
    teacher_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The off-by-one canary: every row is that of the same request in the teacher's own
    tokenizer, through the realigner."""
    file = changed(file_of(teacher_dir), _extra_token)
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
            for row, count in enumerate(_of(other.valid_counts).tolist()):
                assert count >= 60  # the added tokens' ids are other ones
                mine = _row(same, row)
                theirs = _row(other, row)
                shared = set(mine) & set(theirs)
                assert len(shared) >= 60
                for token in shared:
                    assert theirs[token] == pytest.approx(mine[token], abs=5e-5)
            known = _of(other.sampled_valid)
            assert known.all()
            np.testing.assert_allclose(
                _of(other.sampled_log_probs), _of(same.sampled_log_probs), atol=5e-5
            )


def _row(scores: ContinuationScores, row: int) -> dict[int, float]:
    """The support of a row by id."""
    count = int(_of(scores.valid_counts)[row])
    pairs = zip(
        _of(scores.top_ids)[row, :count].tolist(),
        _of(scores.top_log_probs)[row, :count].tolist(),
        strict=True,
    )
    return dict(pairs)


async def test_registered_tokenizers_survive_a_restart(
    teacher_dir: Path,
    student_file: bytes,
    student: Tokenizer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    settings = {"tokenizers": {"folder": str(tmp_path / "tokenizers"), "max_count": 1}}
    tokens = student.encode(TEXT).ids
    replies: list[ScoreReply] = []
    for first in (True, False):
        async with running({"default": teacher_dir}, monkeypatch, **settings) as server:
            if first:
                with pytest.raises(ContractMismatchError) as unknown:
                    await server.score(request(server, student_file, tokens))
                assert unknown.value.reason == "UNKNOWN_TOKENIZER"
                for _ in range(2):
                    await server.client.register_tokenizer(upload(student_file), timeout=LONG)
            else:
                monkeypatch.setattr("teacher_server.realign.cache.build_static", None)
            replies.append(await server.score(request(server, student_file, tokens)))
    np.testing.assert_array_equal(replies[0].results[0].top_ids, replies[1].results[0].top_ids)
    monkeypatch.undo()
    (stored,) = (tmp_path / "tokenizers").glob("*/tokenizer.json")
    stored.write_bytes(student_file[:1000])
    async with running({"default": teacher_dir}, monkeypatch, **settings) as server:
        with pytest.raises(ContractMismatchError) as damaged:
            await server.score(request(server, student_file, tokens))
        assert damaged.value.reason == "UNKNOWN_TOKENIZER"
        await server.client.register_tokenizer(upload(student_file), timeout=LONG)
        await server.score(request(server, student_file, tokens))
        other = changed(student_file, _extra_token)
        await server.client.register_tokenizer(upload(other), timeout=LONG)
        with pytest.raises(ContractMismatchError):
            await server.score(request(server, student_file, tokens, request_id="gone"))
        await server.score(request(server, other, tokens, request_id="other"))
    assert stored.parent.exists() is False
    assert len(list((tmp_path / "tokenizers").glob("*/tokenizer.json"))) == 1


def _two_ids(document: dict[str, Any]) -> None:
    document["added_tokens"][0]["content"] = list(document["model"]["vocab"])[5]


def _negative(document: dict[str, Any]) -> None:
    document["added_tokens"][0]["id"] = -7


def _nameless(document: dict[str, Any]) -> None:
    document["added_tokens"].append({**document["added_tokens"][0], "id": 9999, "content": ""})


def _unigram(document: dict[str, Any]) -> None:
    document["model"] = {"type": "Unigram", "unk_id": 0, "vocab": [["a", -1.0], ["b", -2.0]]}


def _bad_merge(document: dict[str, Any]) -> None:
    document["model"]["merges"].append(["nowhere", "tobefound"])


def _enormous(document: dict[str, Any]) -> None:
    document["added_tokens"][0]["id"] = 2**31 - 1


@pytest.mark.parametrize(
    "change", [_two_ids, _negative, _nameless, _unigram, _bad_merge, _enormous]
)
async def test_files_that_cannot_be_used_are_refused(
    crossed: Running, student_file: bytes, change: Any
) -> None:
    with pytest.raises(InvalidRequestError) as found:
        await crossed.client.register_tokenizer(upload(changed(student_file, change)), timeout=LONG)
    assert found.value.what
    assert found.value.fix
    info = (await crossed.client.get_teacher(timeout=LONG)).teacher("default")
    assert len(info.tokenizers) == 2


async def test_uploads_that_contradict_themselves_are_refused(
    crossed: Running, student_file: bytes
) -> None:
    for wrong in (
        upload(student_file, tokenizer_hash="0" * 64),
        upload(student_file, special_tokens={300: SpecialRole.TURN_END}),
        replace(upload(student_file), file=b"{"),
        replace(upload(student_file), file=b"[" * 100_000),
    ):
        with pytest.raises(InvalidRequestError):
            await crossed.client.register_tokenizer(wrong, timeout=LONG)
    other_flags = changed(student_file, lambda d: d["added_tokens"][0].update(special=False))
    assert tokenizer_hash(other_flags) == tokenizer_hash(student_file)
    with pytest.raises(InvalidRequestError) as found:
        await crossed.client.register_tokenizer(upload(other_flags), timeout=LONG)
    assert found.value.reason == "TOKENIZER_CONTRADICTS"


async def test_a_file_over_the_limit_is_refused(
    teacher_dir: Path, student_file: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {"max_tokenizer_bytes": len(student_file) - 1}
    async with running({"default": teacher_dir}, monkeypatch, limits=limits) as server:
        with pytest.raises(InvalidRequestError, match="max_tokenizer_bytes"):
            await server.client.register_tokenizer(upload(student_file), timeout=LONG)


async def test_roles_are_those_of_the_run_that_gave_them(
    crossed: Running, student_file: bytes, student: Tokenizer
) -> None:
    """Where a run says that another token ends its turns, its rows put the end there."""
    end, text_end = student.token_to_id("<|im_end|>"), student.token_to_id("<|endoftext|>")
    roles = {end: SpecialRole.OTHER, text_end: SpecialRole.TURN_END}
    other = upload(student_file, run="other", special_tokens=roles)
    await crossed.client.register_tokenizer(other, timeout=LONG)
    tokens = student.encode(" the day").ids
    for run, wanted in (("run", end), ("other", text_end)):
        asked = request(crossed, student_file, [*tokens, wanted], run=run, request_id=f"role-{run}")
        scores = (await crossed.score(asked)).results[0]
        assert block(scores).position_class[-1] == PositionClass.SPECIAL
        assert _of(scores.sampled_valid)[-1]


async def test_extra_forwards_settle_more(
    teacher_dir: Path, student_file: bytes, student: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = student.encode(TEXT).ids
    found: list[ScoreReply] = []
    for rounds in (0, 2):
        settings = {"tokenizers": {"extra_rounds": rounds, "extra_least_open": 0.02}}
        async with running({"default": teacher_dir}, monkeypatch, **settings) as server:
            await server.client.register_tokenizer(upload(student_file), timeout=LONG)
            found.append(await server.score(request(server, student_file, tokens)))
            jobs = server.engines["default"].jobs
            assert len(jobs) == 1 + rounds
            metrics = (await server.http.get("/metrics")).text
            extra = sum(len(job.sequences) for job in jobs[1:])
            label = f'teacher="default",tokenizer="{tokenizer_hash(student_file)[:12]}"'
            assert f"lsm_teacher_realign_extra_rows_total{{{label}}} {float(extra)}" in metrics
    without, with_ = (reply.results[0] for reply in found)
    assert found[1].timing.computed_tokens > found[0].timing.computed_tokens
    kept = block(without).position_class != PositionClass.MASKED
    assert block(with_).open_mass[kept].sum() < 0.8 * block(without).open_mass[kept].sum()


async def test_the_teacher_s_length_counts(
    crossed: Running, student_file: bytes, student: Tokenizer
) -> None:
    tokens = student.encode("def score(self) " * 60).ids
    with pytest.raises(InvalidRequestError) as found:
        await crossed.score(request(crossed, student_file, tokens))
    assert found.value.where == "continuations[0]"
    assert "engine.max_length" in found.value.what


def _of(values: Any) -> Any:
    assert values is not None
    return values


def file_of(folder: Path) -> bytes:
    return (folder / "tokenizer.json").read_bytes()
