"""Text is refused before it is tokenized where it cannot fit, and holds up nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from teacher_proto.errors import InvalidRequestError
from teacher_proto.types import ChatMessage, ChatPrompt, Continuation, Segment, TextPrompt

from teacher_server.realign.requests import request as realigned_request
from teacher_server.teachers.tokenizer import TextTokenizer
from tests.server.crossed import upload
from tests.server.running import LONG, Running, ids, running
from tests.support.models import make_tiny_model

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def long_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher that reads a million tokens, so that a text of 4 MiB may fit."""
    directory = tmp_path_factory.mktemp("models") / "long"
    return make_tiny_model(directory, max_position_embeddings=MIB)


class Encoded:
    """What reached the tokenizer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.texts: list[str] = []
        self.begun = asyncio.Event()
        loop, encode = asyncio.get_running_loop(), TextTokenizer.encode

        def watched(tokenizer: TextTokenizer, text: str, check: Any = None) -> Any:
            self.texts.append(text)
            loop.call_soon_threadsafe(self.begun.set)
            return encode(tokenizer, text, check)

        monkeypatch.setattr(TextTokenizer, "encode", watched)


def chat(size: int) -> ChatPrompt:
    return ChatPrompt((ChatMessage("user", "a" * size),), True, {})


def told(raised: pytest.ExceptionInfo[InvalidRequestError]) -> tuple[str, str]:
    return raised.value.reason, raised.value.where


@pytest.mark.parametrize(
    ("prompt", "where"),
    [
        (TextPrompt("a" * 5 * MIB), "prompt.text"),
        (chat(5 * MIB), "prompt.chat"),
        (ChatPrompt((ChatMessage("user", "a", {"note": "b" * 5 * MIB}),), True, {}), "prompt.chat"),
        (
            ChatPrompt((ChatMessage("user", "a"),), True, {"tools": ["b" * 5 * MIB]}),
            "prompt.chat",
        ),
    ],
    ids=["text", "chat", "extra", "template_arguments"],
)
async def test_more_text_than_the_limit_is_never_tokenized(
    server: Running, monkeypatch: pytest.MonkeyPatch, prompt: Any, where: str
) -> None:
    encoded = Encoded(monkeypatch)
    for request in (server.request(prompt=prompt), server.request(teacher_prompt=prompt)):
        with pytest.raises(InvalidRequestError, match=r"limits\.max_text_bytes") as raised:
            await server.score(request)
        field = "teacher_prompt" if request.teacher_prompt else "prompt"
        assert told(raised) == ("LIMIT_EXCEEDED", where.replace("prompt", field, 1))
    assert encoded.texts == []
    assert server.engines["default"].jobs == []


@pytest.mark.parametrize("prompt", [TextPrompt("a" * MIB), chat(MIB)], ids=["text", "chat"])
async def test_text_that_cannot_fit_the_model_is_never_tokenized(
    server: Running, monkeypatch: pytest.MonkeyPatch, prompt: Any
) -> None:
    encoded = Encoded(monkeypatch)
    with pytest.raises(InvalidRequestError, match=r"tokens or more.*engine\.max_length") as raised:
        await server.score(server.request(prompt=prompt))
    assert told(raised)[0] == "LIMIT_EXCEEDED"
    assert encoded.texts == []


@pytest.mark.parametrize("prompt", [TextPrompt("a" * 4 * MIB), chat(3 * MIB)], ids=["text", "chat"])
async def test_text_of_more_tokens_than_a_request_may_have_is_never_tokenized(
    long_dir: Path, monkeypatch: pytest.MonkeyPatch, prompt: Any
) -> None:
    """A teacher that reads a million tokens, and requests of fewer."""
    limits = {"max_request_tokens": 200_000}
    async with running({"default": long_dir}, monkeypatch, limits=limits) as server:
        encoded = Encoded(monkeypatch)
        with pytest.raises(InvalidRequestError, match=r"tokens or more.*max_request_tokens") as got:
            await server.score(server.request(prompt=prompt))
        assert told(got)[0] == "LIMIT_EXCEEDED"
        assert encoded.texts == []


@pytest.mark.parametrize("size", [100, 1500])
async def test_a_prompt_beyond_a_request_is_told_as_the_prompt_however_it_shows(
    tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """By its bytes before it is tokenized, or by its tokens."""
    limits = {"max_request_tokens": 20}
    async with running({"default": tiny_model_dir}, monkeypatch, limits=limits) as server:
        encoded = Encoded(monkeypatch)
        with pytest.raises(InvalidRequestError, match="max_request_tokens") as got:
            await server.score(server.request(prompt=TextPrompt("q1" * (size // 2))))
        assert got.value.where == "prompt.text"
        assert got.value.fix.startswith("shorten it")
        assert bool(encoded.texts) == (size == 100)


async def test_texts_of_continuations_count_together(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = Encoded(monkeypatch)
    half = "a" * (5 * MIB // 2)
    body = {
        "prompt": {"token_ids": [1]},
        "continuations": [{"text": half}, {"segments": [{"text": half}]}],
        "top_k": 1,
        "temperature": 1.0,
    }
    error = (await server.http.post("/v1/score", json=body)).json()["error"]
    assert error["reason"] == "LIMIT_EXCEEDED"
    assert "limits.max_text_bytes" in error["what"]
    assert encoded.texts == []


async def test_a_text_of_too_many_tokens_is_refused_with_their_number(server: Running) -> None:
    text = "q" * (server.info.teacher("default").max_length + 1)
    with pytest.raises(InvalidRequestError, match="the text is 513 tokens"):
        await server.score(server.request(prompt=TextPrompt(text)))


async def test_a_text_that_just_fits_is_scored(server: Running) -> None:
    text = "q" * (server.info.teacher("default").max_length - 1)
    one = (Continuation((Segment(ids(1)),)),)
    reply = await server.score(server.request(prompt=TextPrompt(text), continuations=one))
    assert len(reply.results) == 1


@pytest.mark.parametrize("wire", ["grpc", "http"])
@pytest.mark.parametrize("kind", [TextPrompt, lambda text: chat(len(text))], ids=["text", "chat"])
async def test_others_are_answered_while_a_long_text_is_tokenized(
    long_dir: Path, monkeypatch: pytest.MonkeyPatch, wire: str, kind: Callable[[str], Any]
) -> None:
    text = "q" * (4 * MIB - 1024)
    limits = {"max_request_tokens": MIB}
    async with running({"default": long_dir}, monkeypatch, limits=limits) as server:
        encoded = Encoded(monkeypatch)
        if wire == "grpc":
            work: Any = server.score(server.request(prompt=kind(text)))
        else:
            given = {"text": text}
            if kind is not TextPrompt:
                given = {"messages": [{"role": "user", "content": text}]}  # type: ignore[dict-item]
            body = {"prompt": given, "top_k": 1, "temperature": 1.0}
            body["continuations"] = [{"token_ids": [1]}]
            work = server.http.post("/v1/score", json=body)
        long = asyncio.create_task(work)
        async with asyncio.timeout(LONG):
            await encoded.begun.wait()
        for number in range(3):
            await server.score(replace(server.request(), request_id=f"small {number}"))
            assert (await server.http.get("/livez")).status_code == 200
        assert not long.done()
        if wire == "grpc":
            with pytest.raises(InvalidRequestError, match="the text is"):
                await long
        else:
            assert "the text is" in (await long).json()["error"]["what"]


async def test_ids_of_another_tokenizer_are_bounded_before_they_are_encoded(
    tiny_model_dir: Path, student_file: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {"max_text_bytes": 1000, "max_request_tokens": 1500}
    async with running({"default": tiny_model_dir}, monkeypatch, limits=limits) as server:
        registered = upload(student_file)
        await server.client.register_tokenizer(registered, timeout=LONG)
        planned: list[object] = []
        monkeypatch.setattr(
            realigned_request, "plan_continuation", lambda *given: planned.append(given)
        )
        for tokens, name in ((1200, "max_text_bytes"), (1600, "max_request_tokens")):
            long = Continuation((Segment(np.full(tokens, 97, np.int32)),))
            request = server.request(
                tokenizer_hash=registered.tokenizer_hash,
                prompt=TextPrompt("a"),
                continuations=(long,),
            )
            with pytest.raises(InvalidRequestError, match=name):
                await server.score(request)
        assert planned == []
