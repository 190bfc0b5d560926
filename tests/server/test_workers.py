"""Students' tokenizers that crash, stall or explode, and the service that goes on beside them."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import pytest_asyncio
from teacher_proto.errors import InvalidRequestError, TeacherUnavailableError
from teacher_proto.types import ScoreReply
from tokenizers import Tokenizer

from teacher_server.workers.failures import MAX_FAILURES
from teacher_server.workers.inside.components import MAX_TOKENS
from tests.server.crossed import TEXT, changed, request, student_processes, upload
from tests.server.running import LONG, Running, eventually, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

MIB = 2**20
SECONDS = 2.0
MEMORY = 384 * MIB


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def guarded(teacher_dir: Path, student_file: bytes) -> AsyncIterator[Running]:
    """A server whose steps are short, with the neighbour's tokenizer registered."""
    settings = {"worker_seconds": SECONDS, "worker_memory_bytes": MEMORY}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("teacher_server.workers.session.BASE_SECONDS", SECONDS)
        patch.setattr("teacher_server.tokenizers.texts.BASE_SECONDS", 0.5)
        async with running({"default": teacher_dir}, patch, tokenizers=settings) as server:
            await server.client.register_tokenizer(
                upload(student_file, run="neighbour"), timeout=LONG
            )
            yield server


async def neighbours_score(
    server: Running, file: bytes, student: Tokenizer, name: str
) -> ScoreReply:
    tokens = student.encode(TEXT).ids
    return await server.score(request(server, file, tokens, run="neighbour", request_id=name))


async def live(server: Running) -> None:
    assert (await server.http.get("/livez")).status_code == 200


async def live_until(server: Running, done: asyncio.Task[Any]) -> None:
    """Asks for liveness, again and again, until the task is done."""
    while not done.done():
        await live(server)
        await asyncio.wait((done,), timeout=0.05)


async def refused(server: Running, file: bytes, run: str) -> str:
    """Why a file is refused; meanwhile the server lives, and its memory stays as it was."""
    memory = psutil.Process().memory_info().rss
    registering = asyncio.create_task(
        server.http.post("/v1/tokenizers", content=file, params={"run": run})
    )
    await live_until(server, registering)
    answer = registering.result()
    assert answer.status_code == 400, answer.text
    # The client that sends the file lives in this process too.
    assert psutil.Process().memory_info().rss < memory + 64 * MIB + 8 * len(file)
    error = answer.json()["error"]
    assert error["fix"]
    return f"{error['reason']}: {error['what']}"


def with_part(name: str, node: Any) -> Callable[[dict[str, Any]], None]:
    return lambda document: document.update({name: node})


def replaces(pattern: Any, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": pattern, "content": content}


DOUBLING = [replaces({"String": "a"}, "aa")] * 24
NESTED: dict[str, Any] = {"type": "NFC"}
for _ in range(8):
    NESTED = {"type": "Sequence", "normalizers": [NESTED]}


def _many_added(document: dict[str, Any]) -> None:
    like = document["added_tokens"][0]
    first = len(document["model"]["vocab"])
    document["added_tokens"] += [
        {**like, "id": first + n, "content": f"<{n}>" + "x" * 100} for n in range(2**14)
    ]


def _no_number(document: dict[str, Any]) -> None:
    document["model"]["dropout"] = float("nan")


def _no_dropout(document: dict[str, Any]) -> None:
    document["model"]["dropout"] = 7


def _panics(document: dict[str, Any]) -> None:
    document["model"]["continuing_subword_prefix"] = "\u00e9" * 3


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (with_part("normalizer", {"type": "Sequence", "normalizers": DOUBLING}), "its normalizer"),
        (with_part("decoder", {"type": "Sequence", "decoders": DOUBLING}), "its decoder"),
        (with_part("normalizer", replaces({"Regex": ""}, "a" * 100)), "normalizer Replace"),
        (with_part("normalizer", replaces({"Regex": "b*"}, "a" * 300)), "256 times as long"),
        (with_part("normalizer", {"type": "Prepend", "prepend": "a" * 2**24}), "256 times as long"),
        (with_part("normalizer", NESTED), "nested"),
        (with_part("normalizer", {"type": "Precompiled", "precompiled_charsmap": ""}), "Precomp"),
        (with_part("decoder", {"type": "CTC", "pad_token": "a"}), "'CTC'"),
        (_many_added, "added tokens"),
        (_no_number, "NaN is no number"),
        (_no_dropout, "cannot be used"),
        (_panics, "makes the tokenizers library fail"),
    ],
)
async def test_what_may_explode_is_refused_by_name(
    guarded: Running, student_file: bytes, student: Tokenizer, change: Any, named: str
) -> None:
    what = await refused(guarded, changed(student_file, change), "attacker")
    assert what.startswith("TOKENIZER_REFUSED: ")
    assert named in what
    await neighbours_score(guarded, student_file, student, f"after-{what[-40:-20]}")


async def test_a_vocabulary_of_a_million_is_refused_before_it_is_looked_at_closely(
    guarded: Running,
) -> None:
    vocab = {f"{n}": n for n in range(10**6)}
    file = json.dumps({"model": {"type": "BPE", "vocab": vocab, "merges": []}}).encode()
    assert f"1000000 tokens; {MAX_TOKENS} can be read" in await refused(guarded, file, "attacker")


async def test_json_that_is_nested_without_end_is_refused(guarded: Running) -> None:
    assert "is not JSON" in await refused(guarded, b'{"model":' + b"[" * 10**6, "attacker")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
async def test_a_file_in_another_encoding_than_the_library_s_is_refused(
    guarded: Running, student_file: bytes, encoding: str
) -> None:
    file = student_file.decode().encode(encoding)
    assert "is not JSON in UTF-8" in await refused(guarded, file, "attacker")


async def test_a_file_that_takes_too_long_or_too_much_memory_is_refused(
    guarded: Running, student_file: bytes, student: Tokenizer
) -> None:
    """Of a kind that no rule about components knows."""

    def slow(document: dict[str, Any]) -> None:
        vocab, size = document["model"]["vocab"], 200_000
        first = max(vocab.values()) + 1
        vocab |= {f"a{'b' * (n % 50)}{n}": first + n for n in range(size)}
        document["added_tokens"] = []

    what = await refused(guarded, changed(student_file, slow), "attacker")
    assert f"took more than {SECONDS:g} s" in what or "took more memory" in what
    await neighbours_score(guarded, student_file, student, "after-slow")


async def test_a_process_that_is_killed_is_started_again(
    guarded: Running, student_file: bytes, student: Tokenizer
) -> None:
    expected = await neighbours_score(guarded, student_file, student, "before")
    (children,) = student_processes().values()
    for child in children:
        child.kill()
    await eventually(lambda: all(c.status() == psutil.STATUS_ZOMBIE for c in children))
    reply = await neighbours_score(guarded, student_file, student, "after-kill")
    assert reply.results[0].rows.support is not None
    assert expected.results[0].rows.support is not None
    assert (reply.results[0].rows.support.ids == expected.results[0].rows.support.ids).all()


async def test_the_process_they_are_forked_from_is_started_again(
    guarded: Running, student_file: bytes, student: Tokenizer
) -> None:
    await neighbours_score(guarded, student_file, student, "before-the-fork-server")
    ((number, children),) = student_processes().items()
    os.kill(number, signal.SIGKILL)
    await eventually(lambda: not any(child.is_running() for child in children))
    await eventually(lambda: number not in student_processes() and len(student_processes()) == 1)

    async def answered() -> bool:
        await live(guarded)
        try:
            await neighbours_score(guarded, student_file, student, "after-the-fork-server")
        except TeacherUnavailableError:
            return False
        return True

    async with asyncio.timeout(LONG):
        while not await answered():
            pass


async def test_a_process_that_never_answers_is_ended(
    guarded: Running, student_file: bytes, student: Tokenizer
) -> None:
    await neighbours_score(guarded, student_file, student, "before-stop")
    (children,) = student_processes().values()
    for child in children:
        child.suspend()
    asking = asyncio.create_task(neighbours_score(guarded, student_file, student, "stopped"))
    await live_until(guarded, asking)
    with pytest.raises(InvalidRequestError, match="took more than"):
        await asking
    await neighbours_score(guarded, student_file, student, "after-stop")


async def test_an_expression_that_backtracks_costs_its_own_run_alone_and_not_for_long(
    guarded: Running, student_file: bytes, student: Tokenizer
) -> None:
    """Each match stays within what the library allows, and there are thousands."""

    def backtracks(document: dict[str, Any]) -> None:
        split = {"type": "Split", "pattern": {"Regex": "a*a*(?=[^a])"}, "behavior": "Isolated"}
        split["invert"] = False  # type: ignore[assignment]
        parts = [split, document["pre_tokenizer"]]
        document["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": parts}

    file = changed(student_file, backtracks)
    await guarded.client.register_tokenizer(upload(file, run="attacker"), timeout=LONG)
    body = {
        "run": "attacker",
        "tokenizer_hash": upload(file).tokenizer_hash,
        "prompt": {"text": "Hi"},
        "continuations": [{"text": "a" * 3000}],
        "top_k": 1,
        "temperature": 1.0,
    }
    for attempt in range(MAX_FAILURES + 1):
        asking = asyncio.create_task(guarded.http.post("/v1/score", json=body))
        await neighbours_score(guarded, student_file, student, f"beside-{attempt}")
        await live_until(guarded, asking)
        error = asking.result().json()["error"]
        why, reason = f"failed {MAX_FAILURES} times", "TOKENIZER_REFUSED"
        if attempt < MAX_FAILURES:
            why, reason = "the request took more than", "LIMIT_EXCEEDED"
        assert (asking.result().status_code, error["reason"]) == (400, reason), error
        assert why in error["what"]
