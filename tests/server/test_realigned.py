"""A student's tokenizer that is not the teacher's, over both wires."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
from teacher_proto import codec
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
    TokenPrompt,
)
from tokenizers import Tokenizer

from teacher_server.realign.tables import build_static
from teacher_server.realign.tables import PairTables
from teacher_server.realign.vocabulary import read_vocabulary
from tests.server.running import LONG, Running, body_of, continuation, ids, running

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


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def crossed(shared: Running, student_file: bytes) -> AsyncIterator[Running]:
    levels = await shared.client.register_tokenizer(upload(student_file), timeout=LONG)
    assert levels == {"default": Level.CROSS}
    yield shared


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


async def test_a_foreign_rollout_is_scored(
    crossed: Running, student_file: bytes, student: Tokenizer
) -> None:
    tokens = student.encode(TEXT).ids
    reply = await crossed.score(request(crossed, student_file, tokens))
    scores = reply.results[0]
    assert scores.status is Status.OK
    found = block(scores)
    assert found.coverage.shape == (len(tokens),)
    print(found, scores.valid_counts, scores.sampled_log_probs)
