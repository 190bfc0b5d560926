"""A reply that its caller cannot read is refused before it is computed, with its size."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import grpc
import numpy as np
import pytest
from teacher_proto import AsyncTeacherClient, codec
from teacher_proto.errors import InvalidRequestError
from teacher_proto.rows import Rows, Support, Values
from teacher_proto.status import from_rpc_error
from teacher_proto.types import (
    Continuation,
    ContinuationScores,
    Realignment,
    RenderRequest,
    Returns,
    ScoreReply,
    ScoreRequest,
    Segment,
    TeacherIdentity,
    TextPrompt,
    Timing,
    TokenPrompt,
)

from teacher_server.refusals.sizes import reply_bytes
from teacher_server.scoring.context import GRPC
from tests.server.running import LONG, Running, body_of, continuation, ids

pytestmark = pytest.mark.asyncio(loop_scope="module")
READ_BY_LIBRARIES = 4 << 20


def full_reply(rows: int, tokens: int, k: int, explicit: int) -> ScoreReply:
    """A reply in which every part that there can be is there, as large as it gets."""
    values = Values(np.ones(rows, np.float32), np.ones(rows, bool))
    digest, mass = "f" * 64, np.ones(rows, np.float32)
    identity = TeacherIdentity(digest, digest, "bfloat16", "q" * 64, digest, digest, digest)
    block = Realignment(
        mass,
        mass,
        mass,
        np.ones(rows, np.uint8),
        np.ones(rows, np.int32),
        np.ones(tokens, np.float32),
        np.ones(rows, np.uint8),
    )
    found = Rows(
        support=Support(
            np.ones((rows, k), np.int32), np.ones((rows, k), np.float32), np.ones(rows, np.int32)
        ),
        sampled=values,
        log_tail=values,
        explicit=Values(np.ones((rows, explicit), np.float32), np.ones((rows, explicit), bool)),
    )
    scores = ContinuationScores(rows=found, realignment=block)
    return ScoreReply("\u20ac" * 256, identity, (scores,) * 3, Timing(1.5, 2.5, 3.5, 2**62))


@pytest.mark.parametrize("rows", [1, 2, 7, 300])
@pytest.mark.parametrize("k", [1, 5, 300])
@pytest.mark.parametrize("explicit", [1, 9])
async def test_no_reply_is_larger_than_it_was_said_to_be(rows: int, k: int, explicit: int) -> None:
    tokens = rows + 400  # given tokens have chunks too
    asked = Continuation(
        (Segment(np.ones(rows, np.int32)), Segment(np.ones(400, np.int32), scored=False)),
        explicit_ids=np.ones((rows, explicit), np.int32),
    )
    request = ScoreRequest(
        "\u20ac" * 256,
        "r",
        "t",
        "h",
        TokenPrompt(ids(1)),
        (asked,) * 3,
        k,
        1.0,
        Returns(True, True, True),
    )
    found = codec.serialize(codec.encode_reply(full_reply(rows, tokens, k, explicit)))
    assert len(found) <= reply_bytes(request, 8)
    plain = replace(request, returns=Returns(True, True, False))
    bare = full_reply(rows, tokens, k, explicit)
    bare = replace(bare, results=tuple(replace(one, realignment=None) for one in bare.results))
    assert len(codec.serialize(codec.encode_reply(bare))) <= reply_bytes(plain, 8)


async def test_what_the_caller_reads_holds_exactly(shared: Running) -> None:
    request = shared.request()
    bound = reply_bytes(request, GRPC.bytes_per_entry)
    await shared.raw_score(body_of(replace(request, max_reply_bytes=bound)))
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await shared.raw_score(body_of(replace(request, max_reply_bytes=bound - 1)))
    error = from_rpc_error(refused.value)
    assert (error.reason, error.where) == ("REPLY_TOO_LARGE", "max_reply_bytes")
    assert f"would take {bound} bytes" in error.what


def large(server: Running, **changes: Any) -> ScoreRequest:
    """A request whose reply is more than gRPC libraries read."""
    rows = continuation(*[5] * 256)
    size = server.info.teacher("default").vocabulary_size
    return server.request(continuations=(rows,) * 10, top_k=size, **changes)


async def test_a_stock_client_loses_no_computed_reply(shared: Running) -> None:
    engine = shared.engines["default"]
    with pytest.raises(grpc.aio.AioRpcError) as lost:  # what it is without the field
        await shared.raw_score(body_of(large(shared, request_id="lost")))
    assert lost.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    engine.jobs.clear()
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await shared.raw_score(body_of(large(shared, max_reply_bytes=READ_BY_LIBRARIES)))
    error = from_rpc_error(refused.value)
    assert (error.reason, error.where) == ("REPLY_TOO_LARGE", "max_reply_bytes")
    assert f"the caller reads {READ_BY_LIBRARIES}" in error.what
    assert engine.jobs == []
    fits = replace(large(shared, max_reply_bytes=READ_BY_LIBRARIES), top_k=100)
    reply = codec.decode_reply(await shared.raw_score(body_of(fits)))
    assert len(reply.results) == 10
    # The reply that was lost is kept: whoever reads more, and sends the same bytes, gets it.
    engine.jobs.clear()
    address = shared.server.grpc_address
    async with AsyncTeacherClient(address, run="run", max_reply_bytes=-1) as unbounded:
        found = await unbounded.score(large(shared, request_id="lost"), timeout=LONG)
    assert len(found.results) == 10
    assert engine.jobs == []


async def test_our_client_says_what_it_reads_where_that_is_less(shared: Running) -> None:
    engine = shared.engines["default"]
    address = shared.server.grpc_address
    async with AsyncTeacherClient(address, run="run", max_reply_bytes=READ_BY_LIBRARIES) as small:
        for known in (False, True):
            if known:
                await small.get_teacher(timeout=LONG)
            engine.jobs.clear()
            with pytest.raises(InvalidRequestError, match="the caller reads 4194304") as refused:
                await small.score(large(shared), timeout=LONG)
            assert refused.value.reason == "REPLY_TOO_LARGE"
            assert engine.jobs == []
        asked = [TextPrompt("the cat sat " * 20)] * 3
        assert len(await small.render(asked, teacher="default", timeout=LONG)) == 3


async def test_a_request_sent_again_has_the_same_bytes_once_the_limits_are_known(
    shared: Running,
) -> None:
    engine = shared.engines["default"]
    request = shared.request(request_id="before and after")
    async with AsyncTeacherClient(shared.server.grpc_address, run="run") as client:
        first = await client.score(request, timeout=LONG)
        await client.get_teacher(timeout=LONG)
        engine.jobs.clear()
        again = await client.score(request, timeout=LONG)
    assert engine.jobs == []  # the reply was kept
    assert len(again.results) == len(first.results)


async def test_a_client_without_bounds_is_served(shared: Running) -> None:
    unbounded = {"max_reply_bytes": -1, "max_request_bytes": -1}
    async with AsyncTeacherClient(shared.server.grpc_address, run="run", **unbounded) as client:
        assert len((await client.score(large(shared), timeout=LONG)).results) == 10
        asked = [TextPrompt("the cat sat")] * 3
        assert len(await client.render(asked, teacher="default", timeout=LONG)) == 3


async def test_http_has_the_same_bound(shared: Running) -> None:
    body = {
        "prompt": {"token_ids": [1, 2]},
        "continuations": [{"token_ids": [5] * 20}],
        "top_k": 20,
        "temperature": 1,
    }
    whole = await shared.http.post("/v1/score", json=body)
    assert whole.status_code == 200
    refused = await shared.http.post("/v1/score", json=body | {"max_reply_bytes": 10_000})
    assert refused.status_code == 400
    assert refused.json()["error"]["reason"] == "REPLY_TOO_LARGE"
    wrong = await shared.http.post("/v1/score", json=body | {"max_reply_bytes": 0})
    assert wrong.json()["error"]["where"] == "max_reply_bytes"


async def test_a_rendering_holds_as_many_prompts_as_the_caller_reads(shared: Running) -> None:
    prompts = [codec.encode_render_prompt(TextPrompt("the cat sat " * 20)) for _ in range(8)]
    sizes = []
    async with grpc.aio.insecure_channel(shared.server.grpc_address) as channel:
        method: Any = channel.unary_unary("/teacher_proto.v1.TeacherScoringService/Render")
        for readable in (None, 3_000, 10):
            request = RenderRequest("run", "default", max_reply_bytes=readable)
            body = codec.serialize(codec.encode_render(request, prompts))
            reply = await method(body, timeout=LONG)
            sizes.append(len(reply))
            found = codec.decode_rendered(reply, request, len(prompts))
            if readable is None:
                assert len(found) == len(prompts)
            elif readable == 3_000:
                assert len(found) < len(prompts)
                assert all(one.refusal is None for one in found)
            else:
                assert found[0].refusal is not None
                assert found[0].refusal.reason == "REPLY_TOO_LARGE"
    assert sizes[1] <= 3_000 < sizes[0]
