"""Scores over both wires: the numbers, the prompts, several teachers, refusals."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from teacher_proto.errors import (
    ContractMismatchError,
    InvalidRequestError,
    UnknownTeacherError,
)
from teacher_proto.types import (
    ChatMessage,
    ChatPrompt,
    Continuation,
    Level,
    Returns,
    ScoreReply,
    Segment,
    Status,
    TextPrompt,
    TokenizerUpload,
    TokenPrompt,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.server.running import LONG, Running, body_of, continuation, ids, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

ALL = Returns(sampled=True, log_tail=True)


def reference(model_dir: Path, prompt: list[int], tokens: list[int]) -> torch.Tensor:
    """float32 [n, V]: log-probabilities by a plain forward of transformers."""
    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=torch.float32)
    with torch.no_grad():
        logits = model(torch.tensor([prompt + tokens])).logits[0]
    return torch.log_softmax(logits[len(prompt) - 1 : -1].float(), dim=-1)


async def test_the_reply_reports_what_it_took(shared: Running) -> None:
    one = shared.request(request_id="timed", continuations=(continuation(4, 5, 6),))
    timing = (await shared.score(one)).timing
    # The prompt and the response; its last token is scored and never read.
    assert timing.computed_tokens == 3 + 2
    assert timing.engine_seconds > 0
    assert 0 <= timing.queue_seconds <= timing.total_seconds
    assert timing.engine_seconds <= timing.total_seconds


async def test_rows_are_those_of_a_plain_forward(shared: Running, tiny_model_dir: Path) -> None:
    reply = await shared.score(shared.request(returns=ALL))
    expected = reference(tiny_model_dir, [1, 2, 3], [4, 5, 6])
    scores = reply.results[0]
    assert scores.status is Status.OK
    assert scores.rows.support is not None
    assert scores.rows.sampled is not None
    assert scores.rows.log_tail is not None
    values, order = expected.topk(4, dim=-1)
    np.testing.assert_array_equal(scores.rows.support.ids, order.numpy())
    np.testing.assert_allclose(scores.rows.support.log_probs, values.numpy(), atol=1e-4)
    own = expected[torch.arange(3), torch.tensor([4, 5, 6])]
    np.testing.assert_allclose(scores.rows.sampled.values, own.numpy(), atol=1e-4)
    tail = np.log1p(-np.exp(values.double().numpy()).sum(axis=1))
    np.testing.assert_allclose(scores.rows.log_tail.values, tail, atol=1e-4)
    assert reply.identity == shared.info.teacher("default").identity


async def test_only_what_is_asked_for_comes_back(shared: Running) -> None:
    explicit = np.array([[9, -1], [319, 0]], np.int32)
    reply = await shared.score(
        shared.request(
            continuations=(
                continuation(4, 5, 6, rows=ids(0, 2), explicit_ids=explicit),
                continuation(7),
            ),
            top_k=0,
            returns=Returns(sampled=False),
        )
    )
    first, second = reply.results
    assert first.rows.support is first.rows.sampled is first.rows.log_tail is None
    assert first.rows.explicit is not None
    np.testing.assert_array_equal(first.rows.explicit.valid, [[True, False], [True, True]])
    assert second.rows.explicit is None


async def test_ids_beyond_the_student_s_vocabulary_stay_out_of_supports(shared: Running) -> None:
    whole = await shared.score(shared.request(top_k=320))
    cut = await shared.score(shared.request(top_k=50, student_vocabulary_size=50, returns=ALL))
    for everything, some in zip(whole.results, cut.results, strict=True):
        assert everything.rows.support is not None
        assert some.rows.support is not None
        assert some.rows.log_tail is not None
        keep = everything.rows.support.ids < 50
        rows = len(keep)
        np.testing.assert_array_equal(
            some.rows.support.ids, everything.rows.support.ids[keep].reshape(rows, 50)
        )
        np.testing.assert_allclose(
            some.rows.support.log_probs,
            everything.rows.support.log_probs[keep].reshape(rows, 50),
            atol=5e-5,
        )
        outside = np.exp(everything.rows.support.log_probs.astype(np.float64))
        outside = np.log(np.where(keep, 0, outside).sum(axis=1))
        np.testing.assert_allclose(some.rows.log_tail.values, outside, atol=1e-4)


async def test_a_conversation_of_turns_equals_the_flat_sequence(shared: Running) -> None:
    turns = Continuation((Segment(ids(4, 5)), Segment(ids(6, 7), scored=False), Segment(ids(8))))
    reply = await shared.score(shared.request(continuations=(turns,)))
    flat = await shared.score(
        shared.request(request_id="flat", continuations=(continuation(4, 5, 6, 7, 8),))
    )
    got, whole = reply.results[0], flat.results[0]
    assert got.rows.sampled is not None
    assert whole.rows.sampled is not None
    np.testing.assert_allclose(
        got.rows.sampled.values, whole.rows.sampled.values[[0, 1, 4]], atol=5e-5
    )


async def test_chat_and_text_prompts_are_the_template_s_ids(
    shared: Running, tiny_model_dir: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    messages = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prompt_ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    chat = ChatPrompt(tuple(ChatMessage(m["role"], m["content"]) for m in messages))
    by_ids = await shared.score(
        shared.request(prompt=TokenPrompt(ids(*prompt_ids)), request_id="ids")
    )
    by_chat = await shared.score(shared.request(prompt=chat, request_id="chat"))
    by_text = await shared.score(shared.request(prompt=TextPrompt(text), request_id="text"))
    job = shared.engines["default"].jobs[-1]
    np.testing.assert_array_equal(job.prompt_ids, prompt_ids)
    assert_equal_scores(by_ids, by_chat)
    assert_equal_scores(by_ids, by_text)


async def test_teacher_prompt_replaces_the_prompt_on_the_teacher_s_side(shared: Running) -> None:
    other = await shared.score(
        shared.request(teacher_prompt=TokenPrompt(ids(30, 31)), request_id="replaced")
    )
    direct = await shared.score(shared.request(prompt=TokenPrompt(ids(30, 31))))
    assert_equal_scores(other, direct)


async def test_a_template_that_refuses_is_the_request_s_error(shared: Running) -> None:
    prompt = ChatPrompt((ChatMessage("user", "Hi"),), template_arguments={"chat_template": "x"})
    with pytest.raises(InvalidRequestError) as found:
        await shared.score(shared.request(prompt=prompt))
    assert found.value.where == "prompt.chat.template_arguments"


async def test_several_teachers_have_their_own_tokenizers(
    tiny_model_dir: Path, other_tokenizer_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = {"english": tiny_model_dir, "code": other_tokenizer_model_dir}
    async with running(models, monkeypatch) as server:
        assert [teacher.name for teacher in server.info.teachers] == ["english", "code"]
        for name, size in (("english", 320), ("code", 352)):
            info = server.info.teacher(name)
            assert info.vocabulary_size == size
            assert info.tokenizers == {info.identity.tokenizer_hash: Level.SAME}
            top = await server.score(server.request(name, top_k=size, request_id=name))
            assert top.results[0].rows.support is not None
            assert top.results[0].rows.support.ids.shape == (3, size)
        foreign = server.info.teacher("code").identity.tokenizer_hash
        with pytest.raises(ContractMismatchError) as found:
            await server.score(server.request("english", tokenizer_hash=foreign))
        assert found.value.reason == "UNKNOWN_TOKENIZER"
        with pytest.raises(UnknownTeacherError, match="english, code"):
            await server.score(replace(server.request("code"), teacher="maths"))
        with pytest.raises(InvalidRequestError) as unnamed:
            await server.score(replace(server.request("code"), teacher=""))
        assert unnamed.value.where == "teacher"
        answer = await server.http.post("/v1/score", json=http_body(teacher=None))
        assert answer.status_code == 400


async def test_registering_a_tokenizer_tells_its_level(
    shared: Running, tiny_model_dir: Path, other_tokenizer_model_dir: Path
) -> None:
    from teacher_proto.tokenizer_hash import tokenizer_hash

    def upload(folder: Path) -> TokenizerUpload:
        file = (folder / "tokenizer.json").read_bytes()
        return TokenizerUpload("run", tokenizer_hash(file), file)

    levels = await shared.client.register_tokenizer(upload(tiny_model_dir), timeout=LONG)
    assert levels == {"default": Level.SAME}
    lie = replace(upload(other_tokenizer_model_dir), tokenizer_hash="0" * 64)
    with pytest.raises(InvalidRequestError):
        await shared.client.register_tokenizer(lie, timeout=LONG)
    with pytest.raises(ContractMismatchError) as unknown:
        await shared.score(shared.request(tokenizer_hash="0" * 64))
    assert unknown.value.reason == "UNKNOWN_TOKENIZER"


async def test_malformed_messages_are_invalid_arguments(shared: Running) -> None:
    for body in (b"", b"\xff\xff\xff", body_of(shared.request())[:-3]):
        with pytest.raises(grpc.aio.AioRpcError) as found:
            await shared.raw_score(body)
        assert found.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_request_over_the_byte_limit_is_refused_by_name(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = {"default": tiny_model_dir}
    async with running(models, monkeypatch, limits={"max_request_bytes": 500}) as server:
        await server.score(server.request())
        with pytest.raises(InvalidRequestError, match=r"limits\.max_request_bytes"):
            await server.score(server.request(run="r" * 400))
        long = http_body(prompt={"text": "x" * 500})
        answer = await server.http.post("/v1/score", json=long)
        assert answer.status_code == 413
        assert "limits.max_request_bytes" in answer.json()["error"]["fix"]


def http_body(**changes: Any) -> dict[str, Any]:
    body: dict[str, Any] = {
        "prompt": {"token_ids": [1, 2, 3]},
        "continuations": [{"token_ids": [4, 5, 6]}, {"token_ids": [7, 8]}],
        "top_k": 4,
        "temperature": 1.0,
    }
    return {key: value for key, value in (body | changes).items() if value is not None}


async def test_http_gives_the_same_numbers_as_grpc(shared: Running) -> None:
    explicit = [[9, -1], [319, 0]]
    over_grpc = await shared.score(
        shared.request(
            continuations=(
                continuation(4, 5, 6, rows=ids(0, 2), explicit_ids=np.array(explicit, np.int32)),
                continuation(7, 8),
            ),
            temperature=0.7,
            returns=ALL,
        )
    )
    answer = await shared.http.post(
        "/v1/score",
        json=http_body(
            continuations=[
                {"token_ids": [4, 5, 6], "rows": [0, 2], "explicit_ids": explicit},
                {"segments": [{"token_ids": [7]}, {"token_ids": [8], "scored": True}]},
            ],
            temperature=0.7,
            returns={"log_tail": True},
        ),
    )
    assert answer.status_code == 200, answer.text
    reply = answer.json()
    assert reply["identity"]["digest"] == over_grpc.identity.digest
    assert [row["row"] for row in reply["results"][0]["rows"]] == [0, 2]
    for result, scores in zip(reply["results"], over_grpc.results, strict=True):
        rows = result["rows"]
        assert [[e["token_id"] for e in row["top"]] for row in rows] == listed(
            scores.rows.support.ids
        )
        assert [[e["log_prob"] for e in row["top"]] for row in rows] == listed(
            scores.rows.support.log_probs
        )
        assert [row["sampled_log_prob"] for row in rows] == listed(scores.rows.sampled.values)
        assert [row["log_tail"] for row in rows] == listed(scores.rows.log_tail.values)
    first = reply["results"][0]["rows"]
    assert [[e["token_id"] for e in row["explicit"]] for row in first] == [[9], [319, 0]]
    block = over_grpc.results[0].rows.explicit
    assert block is not None
    got = [e["log_prob"] for row in first for e in row["explicit"]]
    assert got == block.values[block.valid].tolist()


def listed(values: Any) -> Any:
    assert values is not None
    return values.tolist()


def assert_equal_scores(one: ScoreReply, other: ScoreReply) -> None:
    """Exact equality of every number."""
    for a, b in zip(one.results, other.results, strict=True):
        ours, theirs = a.rows.arrays(), b.rows.arrays()
        for name in ("top_ids", "top_log_probs", "sampled_log_probs"):
            np.testing.assert_array_equal(ours.get(name), theirs.get(name))
