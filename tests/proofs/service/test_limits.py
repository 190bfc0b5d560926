"""Every limit one below, at and one above, on both wires: proof 15.

``CASES`` has a row for every key of ``LimitSettings`` that bounds what a request may hold, and
``ELSEWHERE`` names the test of every other one; a new key without either fails.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from teacher_proto import codec
from teacher_proto.errors import LsmError
from teacher_proto.status import from_rpc_error
from teacher_proto.types import (
    RenderRequest,
    Returns,
    ScoreRequest,
    TextPrompt,
    TokenizerUpload,
    TokenPrompt,
)

from teacher_server.scoring import score as score_module
from teacher_server.settings.limits import LimitSettings
from tests.proofs.ledger import Proof
from tests.server.crossed import upload
from tests.server.running import (
    LONG,
    SCORE,
    Running,
    body_of,
    continuation,
    eventually,
    ids,
    running,
)

ROOT = Path(__file__).parents[3]
PROMPT = 3  # tokens of every prompt here
LIMITS = {
    "max_request_bytes": 16_384,
    "max_reply_bytes": 40_000,
    "max_continuations": 3,
    "max_explicit_ids": 4,
    "max_top_k": 20,
    "max_request_tokens": 300,
    "max_queue_tokens": 300,
    "max_inflight_tokens": 100,
    "max_text_bytes": 100,
    "max_render_prompts": 3,
}
# Limits of connections and times, which no single request can be one above.
BUDGET = "tests/server/test_budget.py"
CONNECTIONS = "tests/server/test_connections_http.py"
HOSTILE = "tests/server/test_hostile_http.py"
ELSEWHERE: dict[str, tuple[str, str]] = {
    "max_bytes_in_flight": (BUDGET, "test_what_could_never_be_held_is_refused_with_the_setting"),
    "max_bytes_in_flight_per_run": (
        BUDGET,
        "test_a_run_waits_for_its_own_bytes_and_holds_up_nobody",
    ),
    "max_connections": (CONNECTIONS, "test_health_is_answered_when_every_connection_is_busy"),
    "max_connections_per_address": (
        "tests/server/test_connection_table.py",
        "test_the_address_with_most_connections_gives_way",
    ),
    "header_seconds": (CONNECTIONS, "test_headers_that_do_not_end_end_the_connection"),
    "body_seconds": (HOSTILE, "test_a_body_that_does_not_come_is_waited_for_so_long"),
    "write_seconds": (CONNECTIONS, "test_a_reply_that_nobody_reads_ends_with_its_connection"),
}
EXCESS = (-1, 0, 1)


@dataclass(frozen=True)
class Answer:
    """``refused``: what the caller was told, empty when it was served."""

    refused: str = ""
    server_error: bool = False


class Bench:
    """One server and the student's tokenizer; makes a request one off each limit."""

    def __init__(self, server: Running, student: bytes) -> None:
        self.server = server
        self.student = student
        self.number = 0

    def request(self, **changes: Any) -> ScoreRequest:
        self.number += 1
        return self.server.request(request_id=f"limit-{self.number}", **changes)

    async def told(self, work: Awaitable[Any]) -> Answer:
        try:
            await work
        except grpc.aio.AioRpcError as error:
            return await self.told(failing(from_rpc_error(error)))
        except LsmError as error:
            return Answer(f"{error.what} {error.fix}", error.reason in ("INTERNAL", "UNKNOWN"))
        return Answer()

    async def score(self, **changes: Any) -> Answer:
        return await self.told(self.server.score(self.request(**changes)))

    async def post(self, path: str, **content: Any) -> Answer:
        answer = await self.server.http.post(path, **content)
        if answer.status_code == 200:
            return Answer()
        error = answer.json()["error"]
        return Answer(f"{error['what']} {error['fix']}", answer.status_code >= 500)

    async def raw_render(self, body: bytes) -> None:
        """Our own client would send the prompts in several requests."""
        async with grpc.aio.insecure_channel(self.server.server.grpc_address) as channel:
            method: Any = channel.unary_unary(SCORE.removesuffix("Score") + "Render")
            await method(body, timeout=LONG)

    async def score_json(self, **changes: Any) -> Answer:
        return await self.post("/v1/score", json=json_body(**changes))

    # Each takes what the request has beyond the limit, and gives one answer for each wire.

    async def max_request_bytes(self, excess: int) -> list[Answer]:
        size = LIMITS["max_request_bytes"] + excess
        body = body_of(self.request())
        left = size - len(body) - 5  # a field that nobody knows: tag and length of 2 + 3 bytes
        padded = body + b"\xa2\x06" + varint(left) + bytes(left)
        text = json.dumps(json_body()).encode()
        headers = {"content-type": "application/json"}
        return [
            await self.told(self.server.raw_score(padded)),
            await self.post("/v1/score", content=text.ljust(size), headers=headers),
        ]

    async def max_reply_bytes(self, excess: int) -> list[Answer]:
        """In rows: the size of a reply is estimated from their number."""
        most = await self._most_rows()
        return [await self._rows(most + excess)]

    async def _most_rows(self) -> int:
        low, high = 1, 290
        assert (await self._rows(high)).refused
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if (await self._rows(middle)).refused else (middle, high)
        return low

    async def _rows(self, rows: int) -> Answer:
        many = continuation(*[1] * rows)
        return await self.score(continuations=(many,), top_k=20, returns=Returns(log_tail=True))

    async def max_continuations(self, excess: int) -> list[Answer]:
        count = LIMITS["max_continuations"] + excess
        return [
            await self.score(continuations=(continuation(4),) * count),
            await self.score_json(continuations=[{"token_ids": [4]}] * count),
        ]

    async def max_explicit_ids(self, excess: int) -> list[Answer]:
        width = LIMITS["max_explicit_ids"] + excess
        own = continuation(4, 5, explicit_ids=np.zeros((2, width), np.int32))
        listed = {"token_ids": [4, 5], "explicit_ids": [[0] * width] * 2}
        return [
            await self.score(continuations=(own,)),
            await self.score_json(continuations=[listed]),
        ]

    async def max_top_k(self, excess: int) -> list[Answer]:
        top_k = LIMITS["max_top_k"] + excess
        return [await self.score(top_k=top_k), await self.score_json(top_k=top_k)]

    async def max_request_tokens(self, excess: int) -> list[Answer]:
        left = LIMITS["max_request_tokens"] + excess - PROMPT
        lengths = (100, 100, left - 200)
        listed = [{"token_ids": [4] * length} for length in lengths]
        return [
            await self.score(continuations=tuple(continuation(*[4] * n) for n in lengths), top_k=1),
            await self.score_json(continuations=listed, top_k=1),
        ]

    async def max_queue_tokens(self, excess: int) -> list[Answer]:
        """A run whose request leaves so much less than no room in a queue of others'."""
        engine = self.server.engines["default"]
        (teacher,) = self.server.server.service.teachers
        engine.hold()
        held = [asyncio.create_task(self.score(**of_tokens(100, "first")))]
        await engine.has_jobs(1)
        for waiting in (140, 280):
            run = f"run-{waiting}"
            held.append(asyncio.create_task(self.score(**of_tokens(140, run))))
            await eventually(lambda wanted=waiting: teacher.admission.queue.queued_tokens == wanted)
        last = asyncio.create_task(self.score(**of_tokens(20 + excess, "last")))
        await eventually(
            lambda: last.done() or teacher.admission.queue.queued_tokens == 300 + excess
        )
        engine.gate.set()
        answers = await asyncio.gather(*held, last)
        assert not any(answer.refused for answer in answers[:-1])
        return [answers[-1]]

    async def max_inflight_tokens(self, excess: int) -> list[Answer]:
        """What goes beyond it waits: told here as a refusal that names the key."""
        engine = self.server.engines["default"]
        (teacher,) = self.server.server.service.teachers
        queue = teacher.admission.queue
        engine.hold()
        first = asyncio.create_task(self.score(**of_tokens(60, "first")))
        await engine.has_jobs(1)
        second = asyncio.create_task(self.score(**of_tokens(40 + excess, "second")))
        await eventually(lambda: len(engine.jobs) == 2 or queue.queued_tokens > 0)
        waits = queue.queued_tokens > 0
        engine.gate.set()
        assert await asyncio.gather(first, second) == [Answer(), Answer()]
        return [Answer("limits.max_inflight_tokens" if waits else "")]

    async def max_tokenizer_bytes(self, excess: int) -> list[Answer]:
        file = self.student + b" " * (1 + excess)
        own: TokenizerUpload = upload(file)
        return [
            await self.told(self.server.client.register_tokenizer(own, timeout=LONG)),
            await self.post("/v1/tokenizers", content=file),
        ]

    async def max_text_bytes(self, excess: int) -> list[Answer]:
        text = "a" * (LIMITS["max_text_bytes"] + excess)
        return [
            await self.score(prompt=TextPrompt(text)),
            await self.score_json(prompt={"text": text}),
            await self.score_json(continuations=[{"text": text}]),
        ]

    async def max_render_prompts(self, excess: int) -> list[Answer]:
        count = LIMITS["max_render_prompts"] + excess
        prompts = [codec.encode_render_prompt(TextPrompt("a"))] * count
        asked = codec.encode_render(RenderRequest(run="run", teacher="default"), prompts)
        listed = [{"text": "a"}] * count
        return [
            await self.told(self.raw_render(codec.serialize(asked))),
            await self.post("/v1/render", json={"prompts": listed}),
        ]


CASES: dict[str, Callable[[Bench, int], Awaitable[list[Answer]]]] = {
    name: getattr(Bench, name) for name in (*LIMITS, "max_tokenizer_bytes")
}


async def failing(error: BaseException) -> None:
    raise error


def json_body(**changes: Any) -> dict[str, Any]:
    body: dict[str, Any] = {
        "prompt": {"token_ids": [1, 2, 3]},
        "continuations": [{"token_ids": [4, 5]}],
        "top_k": 4,
        "temperature": 1.0,
    }
    return body | changes


def of_tokens(tokens: int, run: str) -> dict[str, Any]:
    """A request of so many tokens of this run."""
    own = continuation(*[4] * (tokens - PROMPT))
    return {"run": run, "prompt": TokenPrompt(ids(1, 2, 3)), "continuations": (own,), "top_k": 1}


def varint(value: int) -> bytes:
    """Of three bytes, whatever the value."""
    return bytes([value & 127 | 128, value >> 7 & 127 | 128, value >> 14 & 127])


@asynccontextmanager
async def bench(model: Path, student: bytes, patch: pytest.MonkeyPatch) -> AsyncIterator[Bench]:
    limits = LIMITS | {"max_tokenizer_bytes": len(student) + 1}
    async with running({"default": model}, patch, limits=limits) as server:
        yield Bench(server, student)


def wrong(name: str, excess: int, answers: list[Answer]) -> list[str]:
    """What a limit did that it must not do: a failure, or a refusal that does not name it."""
    found = []
    for wire, answer in enumerate(answers):
        asked = f"{name} {excess:+d} ({wire}): {answer}"
        if answer.server_error:
            found.append(f"a server error: {asked}")
        elif excess <= 0 and answer.refused:
            found.append(f"refused within the limit: {asked}")
        elif excess > 0 and f"limits.{name}" not in answer.refused:
            found.append(f"the limit is not named: {asked}")
    return found


async def every_limit(model: Path, student: bytes) -> list[str]:
    found: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        async with bench(model, student, patch) as here:
            for name, case in CASES.items():
                for excess in EXCESS:
                    found += wrong(name, excess, await case(here, excess))
    return found


async def unchecked_sizes(model: Path, student: bytes) -> list[str]:
    """What the proof finds where nobody looks at sizes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(score_module, "check_sizes", lambda *_, **__: None)
        async with bench(model, student, patch) as here:
            return wrong("max_request_tokens", 1, await here.max_request_tokens(1))


def test_every_limit_has_a_case() -> None:
    keys = set(LimitSettings.model_fields)
    assert set(CASES) | set(ELSEWHERE) == keys
    assert not set(CASES) & set(ELSEWHERE)
    for path, test in ELSEWHERE.values():
        assert re.search(rf"def {test}\b", (ROOT / path).read_text()), test


async def test_every_limit_holds_exactly_and_is_named(
    tiny_model_dir: Path, student_file: bytes
) -> None:
    assert await every_limit(tiny_model_dir, student_file) == []
    assert await unchecked_sizes(tiny_model_dir, student_file) != []


async def many_positions(model: Path) -> list[Answer]:
    """4096 rows with K=128, and one more than the teacher's longest sequence."""
    with pytest.MonkeyPatch.context() as patch:
        async with running({"default": model}, patch) as server:
            here = Bench(server, b"")
            longest = server.info.teacher("default").max_length
            return [
                await here.score(continuations=(continuation(*[5] * 4096),), top_k=128),
                await here.score(continuations=(continuation(*[5] * (longest - PROMPT)),), top_k=1),
                await here.score(
                    continuations=(continuation(*[5] * (longest - PROMPT + 1)),), top_k=1
                ),
            ]


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_proof_15_every_limit(
    tiny_model_dir: Path, long_model_dir: Path, student_file: bytes, proof: Proof
) -> None:
    found = asyncio.run(every_limit(tiny_model_dir, student_file))
    proof.figure("limits", len(CASES), at_least=1)
    proof.figure(
        "limits_without_a_case",
        len(set(LimitSettings.model_fields) - {*CASES, *ELSEWHERE}),
        exactly=0,
    )
    proof.figure("wrong_answers", len(found), exactly=0)
    proof.details["wrong"] = found
    large, longest, beyond = asyncio.run(many_positions(long_model_dir))
    proof.figure("4096_positions_of_128_scored", not large.refused, exactly=1)
    named = not longest.refused and "engine.max_length" in beyond.refused
    proof.figure("longest_sequence_named", named, exactly=1)
    unseen = asyncio.run(unchecked_sizes(tiny_model_dir, student_file))
    proof.control("a server that does not look at sizes", failed=unseen != [])
    proof.settle()
