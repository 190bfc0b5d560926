"""Requests by the OpenAPI document, valid and not, and mutated bodies: proofs 13 and 14."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from teacher_proto import codec
from teacher_proto.types import (
    ChatMessage,
    ChatPrompt,
    RenderRequest,
    TextPrompt,
    TokenizerUpload,
)

from tests.proofs.ledger import Proof, count
from tests.proofs.service import fuzzer
from tests.proofs.service.openapi import Case, Maker
from tests.proofs.service.teacher import LONG, MIB, SCORE, Watched, teacher

AT_ONCE = 16
# A connection each, so that a body that was refused unread disturbs no other.
CONNECTIONS = httpx.Limits(max_connections=AT_ONCE, max_keepalive_connections=AT_ONCE)
SEED = 15
# Kept replies and tokenizers are memory that is asked for; here they fill up first.
SMALL = ("replay.max_bytes=4194304", "tokenizers.max_count=4")


async def statuses(server: Watched, cases: Sequence[Case]) -> list[tuple[Case, int]]:
    """The status of each, in any order; 0 where the server's answer is none."""
    waiting = list(cases)
    found: list[tuple[Case, int]] = []
    base = f"http://{server.http}"
    async with httpx.AsyncClient(base_url=base, timeout=LONG, limits=CONNECTIONS) as http:

        async def work() -> None:
            while waiting:
                case = waiting.pop()
                try:
                    answer = await http.request(
                        case.method, case.path, headers=case.headers, content=case.body
                    )
                except httpx.TransportError:
                    found.append((case, 0))
                else:
                    found.append((case, answer.status_code))

        await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    return found


def by_the_document(server: Watched, each: int) -> dict[str, Counter[int]]:
    """Operation -> how often each status came, of so many requests."""
    document = json.loads(server.get("/openapi.json")[1])
    maker = Maker(document, SEED)
    found: dict[str, Counter[int]] = {}
    for method, path, operation in maker.operations():
        cases = list(maker.cases(method, path, operation, each))
        answers = asyncio.run(statuses(server, cases))
        found[f"{method.upper()} {path}"] = Counter(status for _, status in answers)
        for case, status in answers:
            if status >= 500 or status == 0:
                print(status, case.method, case.path, case.headers, case.body[:300])
    return found


def failures(found: dict[str, Counter[int]]) -> int:
    return sum(n for seen in found.values() for code, n in seen.items() if code >= 500 or code == 0)


def test_requests_by_the_document_fail_nobody(plain: Watched) -> None:
    found = by_the_document(plain, 24)
    assert failures(found) == 0, found
    assert {"POST /v1/score", "GET /livez"} <= set(found)
    assert found["POST /v1/score"][400], "nothing was wrong"


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_proof_13_requests_by_the_openapi_document(
    tiny_model_dir: Path, tmp_path: Path, proof: Proof
) -> None:
    each = count(500)
    with teacher(tiny_model_dir, tmp_path / "a", *SMALL) as server:
        found = by_the_document(server, each)
        other = fuzzer.statuses(server.http, each, SEED, tmp_path)
    if other is not None:
        proof.figure("schemathesis_requests", other.total(), at_least=each)
        # Of a request that is given no time, 504 is the answer.
        fine = sum(n for code, n in other.items() if 0 < code < 500 or code == 504)
        proof.figure("schemathesis_server_errors", other.total() - fine, exactly=0)
    proof.figure("requests", sum(sum(seen.values()) for seen in found.values()))
    proof.figure("server_errors", failures(found), exactly=0)
    proof.details["statuses"] = {name: dict(seen) for name, seen in found.items()}
    scored = found["POST /v1/score"][200]
    proof.figure("scored", scored, at_least=1)
    with teacher(tiny_model_dir, tmp_path / "b", *SMALL, broken="handler_fails") as server:
        broken = by_the_document(server, max(20, each // 10))
    proof.control("a handler that fails on wrong JSON", failed=failures(broken) > 0)
    proof.settle()


RENDER, TEACHER, REGISTER = (
    SCORE.removesuffix("Score") + name for name in ("Render", "GetTeacher", "RegisterTokenizer")
)


def grpc_seeds(server: Watched, file: bytes) -> list[tuple[str, bytes]]:
    chat = ChatPrompt((ChatMessage("user", "hello"),))
    prompts = [codec.encode_render_prompt(prompt) for prompt in (chat, TextPrompt("text"))]
    render = codec.encode_render(RenderRequest(run="run", teacher="default"), prompts)
    upload = TokenizerUpload("run", "v2-" + "0" * 64, file[:2000])
    return [
        (SCORE, server.body(7, "seed")),
        (SCORE, server.body(7, "chat", prompt=chat)),
        (SCORE, server.body(7, "text", prompt=TextPrompt("some text"))),
        (RENDER, codec.serialize(render)),
        (TEACHER, b"\x0a\x07default"),
        *((REGISTER, part) for part in map(codec.serialize, codec.encode_tokenizer(upload))),
    ]


def http_seeds(file: bytes) -> list[tuple[str, bytes]]:
    prompt = {"token_ids": [1, 2, 3]}
    rest: dict[str, Any] = {"top_k": 4, "temperature": 1.0}
    messages = {"messages": [{"role": "user", "content": "hello"}]}
    bodies = [
        {"prompt": prompt, "continuations": [{"token_ids": [4, 5]}], **rest},
        {"prompt": messages, "continuations": [{"text": "of the"}], **rest},
        {"prompt": {"text": "a text"}, "continuations": [{"segments": [{"text": "b"}]}], **rest},
    ]
    return [
        *(("/v1/score", json.dumps(body).encode()) for body in bodies),
        ("/v1/render", json.dumps({"prompts": [prompt, messages]}).encode()),
        ("/v1/tokenizers", file[:2000]),
        ("/v1/tokenizers", file),
    ]


def mutated(seed: bytes, chance: random.Random) -> bytes:
    """The bytes with one to four faults in them."""
    data = bytearray(seed)
    for _ in range(chance.randint(1, 4)):
        place = chance.randrange(len(data) + 1)
        kind = chance.randrange(7)
        if kind == 6 and (digits := [i for i, byte in enumerate(data) if 48 <= byte < 58]):
            data[chance.choice(digits)] = 48 + chance.randrange(10)
        elif kind == 0 and data:
            data[place % len(data)] ^= 1 << chance.randrange(8)
        elif kind == 1 and data:
            data[place % len(data)] = chance.choice((0, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        elif kind == 2:
            del data[place:]
        elif kind == 3:
            data[place:place] = chance.randbytes(chance.randint(1, 16))
        elif kind == 4:
            part = data[place : place + chance.randint(1, 64)]
            data[place:place] = part * chance.randint(1, 8)
        else:
            data[place:place] = b"\xff" * chance.randint(1, 9) + b"\x01"  # long varints
    return bytes(data)


class Storm:
    """Mutated bodies on both wires, by seed; counts how they ended."""

    def __init__(self, server: Watched, file: bytes, seed: int = SEED) -> None:
        self.server = server
        self.random = random.Random(seed)
        self.grpc_seeds = grpc_seeds(server, file)
        self.http_seeds = http_seeds(file)
        self.ended: Counter[str] = Counter()

    async def run(self, bodies: int) -> None:
        """Three quarters as protobuf. Ends early when the server is gone."""
        left = {"grpc": bodies - bodies // 4, "http": bodies // 4}
        base = f"http://{self.server.http}"
        async with (
            grpc.aio.insecure_channel(self.server.grpc) as channel,
            httpx.AsyncClient(base_url=base, timeout=LONG, limits=CONNECTIONS) as http,
        ):
            methods: dict[str, Any] = {
                path: channel.stream_unary(path) if path == REGISTER else channel.unary_unary(path)
                for path in (SCORE, RENDER, TEACHER, REGISTER)
            }

            async def over_grpc() -> str:
                path, seed = self.random.choice(self.grpc_seeds)
                body = mutated(seed, self.random)
                try:
                    await methods[path](iter([body]) if path == REGISTER else body, timeout=LONG)
                except grpc.aio.AioRpcError as error:
                    return error.code().name
                return "OK"

            async def over_http() -> str:
                path, seed = self.random.choice(self.http_seeds)
                body = mutated(seed, self.random)
                headers = {"content-type": "application/json"}
                try:
                    answer = await http.post(path, content=body, headers=headers)
                except httpx.HTTPError as error:
                    return type(error).__name__
                return str(answer.status_code)

            async def work(wire: str) -> None:
                while left[wire] > 0 and self.server.alive:
                    left[wire] -= 1
                    self.ended[await (over_grpc() if wire == "grpc" else over_http())] += 1

            await asyncio.gather(*(work(wire) for wire in left for _ in range(AT_ONCE)))

    @property
    def wrong(self) -> int:
        """Answers that are no answer to what a caller did wrong."""
        wrong = ("INTERNAL", "UNKNOWN", "DATA_LOSS")
        return sum(
            n
            for name, n in self.ended.items()
            if name in wrong or name.startswith("5") or name.endswith("Error")
        )


def test_mutated_bodies_are_refused(plain: Watched, student_file: bytes) -> None:
    storm = Storm(plain, student_file)
    asyncio.run(storm.run(600))
    assert plain.alive
    assert storm.wrong == 0, storm.ended
    assert {"OK", "INVALID_ARGUMENT", "400"} <= set(storm.ended), storm.ended


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_proof_14_mutated_bodies(
    tiny_model_dir: Path, student_file: bytes, tmp_path: Path, proof: Proof
) -> None:
    bodies = count(100_000)
    with teacher(tiny_model_dir, tmp_path / "a", *SMALL) as server:
        first = Storm(server, student_file, seed=1)
        asyncio.run(first.run(bodies // 20))
        before = server.memory()
        storm = Storm(server, student_file)
        for part in range(10):
            asyncio.run(storm.run(bodies // 10))
            proof.say(f"{(part + 1) * bodies // 10} bodies")
        proof.figure("bodies", sum(storm.ended.values()), exactly=bodies // 10 * 10)
        proof.figure("crashes", not server.alive, exactly=0)
        proof.figure("server_errors", storm.wrong, exactly=0)
        proof.figure("memory_growth_mb", (server.memory() - before) / MIB, at_most=64)
        proof.details["ended"] = dict(storm.ended)
    with teacher(tiny_model_dir, tmp_path / "b", *SMALL, broken="crashes") as server:
        asyncio.run(Storm(server, student_file).run(200))
        proof.control("a decoder whose faults end the process", failed=not server.alive)
    with teacher(tiny_model_dir, tmp_path / "c", *SMALL, broken="leaks") as server:
        before = server.memory()
        asyncio.run(Storm(server, student_file).run(3000))
        grown = (server.memory() - before) / MIB if server.alive else 0.0
        proof.control("a decoder that keeps what it reads", failed=grown > 64)
    proof.settle()
