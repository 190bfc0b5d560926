"""Requests of a student whose tokenizer is not the teacher's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
from teacher_proto.tokenizer_hash import tokenizer_hash
from teacher_proto.types import (
    ChatMessage,
    ChatPrompt,
    ContinuationScores,
    Realignment,
    Returns,
    ScoreRequest,
    TokenizerUpload,
)

from tests.server.running import Running, continuation

EVERYTHING = Returns(sampled=True, log_tail=True, realignment=True)
TEXT = "The student learns from every token; def score(self): return 12345 rows."


def student_processes() -> dict[int, list[psutil.Process]]:
    """The children of the process that students' processes are forked from, by its number.
    Other tests of one session have processes of other kinds beside them."""
    return {
        one.pid: one.children()
        for one in psutil.Process().children()
        if "teacher_server.workers.inside.fork_server" in one.cmdline()
    }


def upload(file: bytes, **changes: Any) -> TokenizerUpload:
    return replace(TokenizerUpload("run", tokenizer_hash(file), file), **changes)


def request(server: Running, file: bytes, tokens: list[int], **changes: Any) -> ScoreRequest:
    request = server.request(
        changes.get("teacher", "default"),
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


def changed(file: bytes, change: Any) -> bytes:
    document = json.loads(file)
    change(document)
    return json.dumps(document).encode()


def extra_token(document: dict[str, Any]) -> None:
    size = len(document["model"]["vocab"])
    document["added_tokens"].append(
        {**document["added_tokens"][0], "id": size, "content": "<think>"}
    )


def given(values: Any) -> Any:
    assert values is not None
    return values


def file_of(folder: Path) -> bytes:
    return (folder / "tokenizer.json").read_bytes()
