"""What a neighbour feels of hostile requests: a small Score and a liveness call meanwhile.

A real server process with a random Llama and credentials, on loopback. The attacker is a
process of its own that keeps IN_FLIGHT requests of one kind in flight for ``--seconds``;
this process sends one small Score (3 + 5 tokens, K=4) over gRPC after the other and, beside
it, GET /livez.

Attacks:
    text_grpc, text_http    15 MiB of text as the prompt
    chat_grpc               a conversation of 15 MiB
    continuations           15 MiB of empty continuations
    metrics_only            6 MiB of the same with credentials that may ask no teacher
    json_lists              15 MiB of empty JSON lists
    text_within             text of limits.max_text_bytes, which is tokenized
    segments_within         as many segments as one request may hold; the reply is too large
    json_within             as many numbers as one JSON body may hold, ids that no token has

Figures, milliseconds:
    worst_score_ms, worst_livez_ms      the slowest call during any attack
    ATTACK_score_ms, ATTACK_livez_ms    during one; ``idle``: without any
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import httpx
import numpy as np
from teacher_proto import AsyncTeacherClient, codec
from teacher_proto.client.credentials import ClientCredentials
from teacher_proto.types import (
    ChatMessage,
    ChatPrompt,
    Continuation,
    Prompt,
    ScoreRequest,
    Segment,
    TextPrompt,
    TokenPrompt,
)

from benchmarks.harness import write_result
from benchmarks.load_fleet import server
from tests.support.models import make_tiny_model

MIB = 1024 * 1024
IN_FLIGHT = 2
PAUSE = 0.01  # between a neighbour's calls, seconds
LONG = 300.0
SCORE = "/teacher_proto.v1.TeacherScoringService/Score"
TOKENS = {run: f"{run}-token-0123456789abcdef0123456789" for run in ("alice", "mallory", "watcher")}
HEAD = b'{"prompt":{"token_ids":['
TAIL = b'1]},"continuations":[{"token_ids":[1]}],"top_k":1,"temperature":1.0}'
ALICE = ClientCredentials(token=TOKENS["alice"])
ONE_ID = TokenPrompt(np.array([1], np.int32))
SMALL = (Continuation((Segment(np.arange(4, 9, dtype=np.int32)),)),)


def message(prompt: Prompt, tokenizer: str, segments: int = 1, top_k: int = 1) -> bytes:
    one = Continuation((Segment(np.array([1], np.int32)),) * segments)
    request = ScoreRequest("attack", "", "default", tokenizer, prompt, (one,), top_k, 1.0)
    return codec.serialize(codec.encode_request(request))


def continuations(size: int, tokenizer: str) -> bytes:
    return message(TextPrompt("a"), tokenizer) + b"\x3a\x00" * (size // 2)


def chat(size: int) -> Prompt:
    return ChatPrompt((ChatMessage("user", "a" * size),))


def json_text(size: int) -> bytes:
    return b'{"prompt":{"text":"' + b"a" * size + b'"' + TAIL.removeprefix(b"1]")


# Name -> (wire, run, the body by the teacher's tokenizer).
ATTACKS: dict[str, tuple[str, str, Callable[[str], bytes]]] = {
    "text_grpc": ("grpc", "mallory", lambda t: message(TextPrompt("a" * 15 * MIB), t)),
    "text_http": ("http", "mallory", lambda t: json_text(15 * MIB)),
    "chat_grpc": ("grpc", "mallory", lambda t: message(chat(15 * MIB), t)),
    "continuations": ("grpc", "mallory", lambda t: continuations(15 * MIB, t)),
    "metrics_only": ("grpc", "watcher", lambda t: continuations(6 * MIB, t)),
    "json_lists": ("http", "mallory", lambda t: HEAD + b"[]," * (5 * MIB) + TAIL),
    "text_within": ("grpc", "mallory", lambda t: message(TextPrompt("a" * 4 * MIB), t)),
    "segments_within": ("grpc", "mallory", lambda t: message(ONE_ID, t, 16_384, 640)),
    "json_within": ("http", "mallory", lambda t: HEAD + b"9999999," * (MIB // 8 + 8_000) + TAIL),
}


def write_runs(path: Path) -> Path:
    path.touch(0o600)
    parts = [
        f"[runs.{run}]\n{'teachers = []' if run == 'watcher' else ''}\n"
        f'[[runs.{run}.tokens]]\ntoken = "{token}"\n'
        for run, token in TOKENS.items()
    ]
    path.write_text("".join(parts))
    return path


async def attack(name: str, facts: dict[str, Any], seconds: float) -> None:
    """The attacker: says ready, waits for a line, and tells how its requests ended."""
    wire, run, make = ATTACKS[name]
    async with AsyncTeacherClient(facts["grpc_address"], run="alice", credentials=ALICE) as client:
        info = await client.get_teacher(timeout=LONG)
    body = make(info.teacher("default").identity.tokenizer_hash)
    bearer = f"Bearer {TOKENS[run]}"
    ended: Counter[str] = Counter()
    options = [("grpc.max_send_message_length", -1)]
    async with (
        grpc.aio.insecure_channel(facts["grpc_address"], options) as channel,
        httpx.AsyncClient(base_url=f"http://{facts['http_address']}", timeout=LONG) as http,
    ):
        score: Any = channel.unary_unary(SCORE)
        headers = {"authorization": bearer, "content-type": "application/json"}

        async def once() -> str:
            if wire == "http":
                return str(
                    (await http.post("/v1/score", content=body, headers=headers)).status_code
                )
            try:
                await score(body, timeout=LONG, metadata=(("authorization", bearer),))
            except grpc.aio.AioRpcError as error:
                return error.code().name
            return "OK"

        async def keep_on() -> None:
            while time.monotonic() < end:
                ended[await once()] += 1

        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        end = time.monotonic() + seconds
        await asyncio.gather(*(keep_on() for _ in range(IN_FLIGHT)))
    print(json.dumps(ended), flush=True)


async def neighbour(
    facts: dict[str, Any], attacked: Callable[[], Awaitable[Any]]
) -> dict[str, list[float]]:
    """Seconds of every Score and liveness call while ``attacked`` runs."""
    found: dict[str, list[float]] = {"score": [], "livez": []}
    async with (
        AsyncTeacherClient(facts["grpc_address"], run="alice", credentials=ALICE) as client,
        httpx.AsyncClient(base_url=f"http://{facts['http_address']}", timeout=LONG) as http,
    ):
        info = await client.get_teacher(timeout=LONG)
        tokenizer = info.teacher("default").identity.tokenizer_hash

        async def score() -> None:
            prompt, name = TokenPrompt(np.array([1, 2, 3], np.int32)), uuid.uuid4().hex
            request = ScoreRequest(name, "alice", "default", tokenizer, prompt, SMALL, 4, 1.0)
            await client.score(request, timeout=LONG)

        async def livez() -> None:
            (await http.get("/livez")).raise_for_status()

        async def keep_on(name: str, call: Callable[[], Awaitable[None]]) -> None:
            while not over.done():
                begun = time.perf_counter()
                await call()
                found[name].append(time.perf_counter() - begun)
                await asyncio.sleep(PAUSE)

        await asyncio.gather(score(), livez())  # the first ones connect
        over = asyncio.ensure_future(attacked())
        await asyncio.gather(keep_on("score", score), keep_on("livez", livez))
    return found


async def measure(facts: dict[str, Any], name: str, seconds: float) -> dict[str, Any]:
    """The neighbour's calls, milliseconds, during one attack."""
    if name == "idle":
        return summary(await neighbour(facts, lambda: asyncio.sleep(seconds)), {})
    command = [sys.executable, "-m", "benchmarks.bench_attacks", "--attack", name]
    attacker = await asyncio.create_subprocess_exec(
        *command,
        *("--facts", json.dumps(facts), "--seconds", str(seconds)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    pipe, told = attacker.stdin, attacker.stdout
    assert pipe is not None
    assert told is not None
    await told.readline()

    async def attacked() -> None:
        pipe.write(b"\n")
        await attacker.wait()

    found = await neighbour(facts, attacked)
    return summary(found, json.loads(await told.read()))


def summary(found: dict[str, list[float]], ended: dict[str, int]) -> dict[str, Any]:
    calls = {
        f"{name}_{label}": 1000 * pick(seconds)
        for name, seconds in found.items()
        for label, pick in (("ms", max), ("median_ms", statistics.median))
    }
    return calls | {"calls": {n: len(s) for n, s in found.items()}, "attack_ended": ended}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=6.0, help="of each attack")
    parser.add_argument("--only", nargs="*", choices=list(ATTACKS), default=list(ATTACKS))
    parser.add_argument("--attack", help=argparse.SUPPRESS)
    parser.add_argument("--facts", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.attack:
        asyncio.run(attack(arguments.attack, arguments.facts, arguments.seconds))
        return
    details: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = make_tiny_model(Path(folder, "model"), max_position_embeddings=MIB)
        runs = write_runs(Path(folder, "runs.toml"))
        with server(model, f"access.credentials_file={runs}") as teacher:
            facts = {"grpc_address": teacher.address, "http_address": teacher.http_address}
            for name in ("idle", *arguments.only):
                details[name] = asyncio.run(measure(facts, name, arguments.seconds))
                print(name, details[name], flush=True)
    figures = {
        f"{name}_{call}_ms": found[f"{call}_ms"]
        for name, found in details.items()
        for call in ("score", "livez")
    }
    for call in ("score", "livez"):
        figures[f"worst_{call}_ms"] = max(
            found[f"{call}_ms"] for name, found in details.items() if name != "idle"
        )
    write_result("attacks", figures, details)


if __name__ == "__main__":
    main()
