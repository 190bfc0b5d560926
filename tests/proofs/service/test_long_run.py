"""Hours in minutes: every call again and again, memory, descriptors and tasks watched.

Proofs 21 and 24; the second also registers and evicts tokenizers all the time.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from teacher_proto import AsyncTeacherClient
from teacher_proto.errors import DeadlineError, InvalidRequestError, TeacherUnavailableError
from teacher_proto.types import ChatMessage, ChatPrompt, TextPrompt, TokenizerUpload

from tests.proofs.ledger import MINUTES, TRIAL, Proof
from tests.proofs.service.teacher import LONG, MIB, Watched, teacher, tokens, until
from tests.server.crossed import upload

# Kept replies and tokenizers are memory that is asked for; they fill up in the warm-up.
SETTINGS = ("replay.max_bytes=4194304", "tokenizers.max_count=3")
CALLERS = 4
PAUSE = 0.02  # between a caller's calls: the machine is shared with the server
SAMPLE = 5.0  # seconds
TOKENIZERS = 12
SPARE = 8  # processes: the one they are forked from, and those that are just ending
WARM_UP = 0.2  # of the whole time


@dataclass
class Mix:
    """Callers that go through every kind of call, on connections of their own."""

    server: Watched
    student: bytes = b""
    failures: Counter[str] = field(default_factory=Counter)
    calls: Counter[str] = field(default_factory=Counter)
    random: random.Random = field(default_factory=lambda: random.Random(21))
    numbers: itertools.count[int] = field(default_factory=itertools.count)

    async def run(self, until_: Callable[[], bool]) -> None:
        await asyncio.gather(*(self._caller(until_) for _ in range(CALLERS)))

    async def _caller(self, over: Callable[[], bool]) -> None:
        while not over():
            async with (
                AsyncTeacherClient(self.server.grpc, run="run", max_attempts=1) as grpc,
                httpx.AsyncClient(base_url=f"http://{self.server.http}", timeout=LONG) as http,
            ):
                calls: list[Callable[[Any, Any], Awaitable[None]]] = [
                    self.score, self.score_json, self.render, self.describe, self.refused,
                    self.cancelled, self.late, self.left,
                ]  # fmt: skip
                if self.student:
                    calls += [self.register, self.realigned]
                # A new connection every so often, as trainers come and go.
                for _ in range(self.random.randint(20, 60)):
                    if over():
                        break
                    await self._one(self.random.choice(calls), grpc, http)
                    await asyncio.sleep(PAUSE)

    async def _one(self, call: Callable[[Any, Any], Awaitable[None]], *wires: Any) -> None:
        name = call.__name__
        self.calls[name] += 1
        try:
            await call(*wires)
        except Exception as error:
            self.failures[f"{name}: {type(error).__name__}: {str(error)[:200]}"] += 1

    def request(self, **changes: Any) -> Any:
        number = next(self.numbers)
        return self.server.request(number % 250, f"soak-{number}", **changes)

    async def score(self, grpc: Any, http: Any) -> None:
        own = tuple(tokens(self.random.randint(1, 60)) for _ in range(self.random.randint(1, 4)))
        await grpc.score(self.request(continuations=own), timeout=LONG)

    async def score_json(self, grpc: Any, http: Any) -> None:
        prompt = {"messages": [{"role": "user", "content": f"hello {next(self.numbers)}"}]}
        body = {"prompt": prompt, "continuations": [{"text": "of the"}], "top_k": 4}
        (await http.post("/v1/score", json=body | {"temperature": 1.0})).raise_for_status()

    async def render(self, grpc: Any, http: Any) -> None:
        await grpc.render([TextPrompt("a text")], teacher="default", timeout=LONG)
        (await http.post("/v1/render", json={"prompts": [{"text": "a"}]})).raise_for_status()

    async def describe(self, grpc: Any, http: Any) -> None:
        await grpc.get_teacher(timeout=LONG)
        for path in ("/v1/teacher", "/livez", "/readyz", "/metrics", "/", "/page/page.css"):
            (await http.get(path)).raise_for_status()

    async def refused(self, grpc: Any, http: Any) -> None:
        try:
            await grpc.score(self.request(top_k=-1), timeout=LONG)
        except InvalidRequestError:
            pass
        else:
            raise AssertionError("it was not refused")
        headers = {"content-type": "application/json"}
        assert (await http.post("/v1/score", content=b"{", headers=headers)).status_code == 400
        assert (await http.get("/nowhere")).status_code == 404

    async def cancelled(self, grpc: Any, http: Any) -> None:
        work = asyncio.create_task(grpc.score(self.request(), timeout=LONG))
        await asyncio.sleep(0.005 * self.random.random())
        work.cancel()
        await asyncio.gather(work, return_exceptions=True)

    async def late(self, grpc: Any, http: Any) -> None:
        with contextlib.suppress(DeadlineError, TeacherUnavailableError):  # or before it connects
            await grpc.score(self.request(), timeout=0.001)

    async def left(self, grpc: Any, http: Any) -> None:
        """A caller that goes away in the middle of a body."""
        host, _, port = self.server.http.rpartition(":")
        _, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"POST /v1/score HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n{")
        await writer.drain()
        writer.close()

    async def register(self, grpc: Any, http: Any) -> None:
        """One of more tokenizers than are kept."""
        await grpc.register_tokenizer(self._tokenizer(), timeout=LONG)

    async def realigned(self, grpc: Any, http: Any) -> None:
        """Registers, and asks at once; whoever was evicted meanwhile is told so."""
        own = self._tokenizer()
        await grpc.register_tokenizer(own, timeout=LONG)
        prompt = ChatPrompt((ChatMessage("user", "Hi"),))
        asked = self.request(tokenizer_hash=own.tokenizer_hash, prompt=prompt,
                             continuations=(tokens(12),))  # fmt: skip
        try:
            await grpc.score(asked, timeout=LONG)
        except Exception as error:
            if getattr(error, "reason", "") != "UNKNOWN_TOKENIZER":
                raise

    def _tokenizer(self) -> TokenizerUpload:
        document = json.loads(self.student)
        size = len(document["model"]["vocab"])
        document["added_tokens"].append(
            {
                **document["added_tokens"][0],
                "id": size + 1,
                "content": f"<extra {self.random.randrange(TOKENIZERS)}>",
            }
        )
        document["model"]["vocab"]["<unused>"] = size
        return upload(json.dumps(document).encode())


@dataclass
class Watch:
    """Bytes, descriptors and tasks of the server, sampled."""

    server: Watched
    times: list[float] = field(default_factory=list)
    bytes_: list[int] = field(default_factory=list)

    async def run(self, lasting: float, pause: float) -> None:
        end = time.monotonic() + lasting
        while time.monotonic() < end:
            await asyncio.sleep(pause)
            self.times.append(time.monotonic())
            self.bytes_.append(self.server.memory())

    def slope(self) -> float:
        """MiB per minute, by least squares over what came after the warm-up."""
        skip = int(len(self.times) * WARM_UP)
        times, values = np.array(self.times[skip:]), np.array(self.bytes_[skip:]) / MIB
        if len(times) < 3:
            return float("nan")
        return float(np.polyfit((times - times[0]) / 60, values, 1)[0])


def counts(server: Watched) -> dict[str, int]:
    return {"descriptors": server.descriptors(), "tasks": server.tasks()}


def settled(server: Watched, baseline: dict[str, int], seconds: float = 30.0) -> dict[str, int]:
    """What there is more of than before, once it has had time to go.

    A call that was cancelled keeps its channel of grpc.aio open, here in the callers' process,
    until Python's collector has found the two.
    """

    def more() -> dict[str, int]:
        gc.collect()
        found = {name: n - baseline[name] for name, n in counts(server).items()}
        return {name: n for name, n in found.items() if n > 0}

    try:
        until(lambda: not more(), seconds, pause=0.2)
    except AssertionError:
        return more()
    return {}


async def lasting(mix: Mix, watch: Watch, seconds: float, pause: float) -> None:
    end = time.monotonic() + seconds
    await asyncio.gather(mix.run(lambda: time.monotonic() >= end), watch.run(seconds, pause))


def warmed_up(mix: Mix, seconds: float = 5.0) -> dict[str, int]:
    """The baseline: what a server opens once is open after a while."""
    end = time.monotonic() + seconds
    asyncio.run(mix.run(lambda: time.monotonic() >= end))
    until(lambda: mix.server.metric("lsm_teacher_inflight_tokens") == 0)
    lowest = counts(mix.server)
    for _ in range(10):
        time.sleep(0.3)
        lowest = {name: min(n, lowest[name]) for name, n in counts(mix.server).items()}
    return lowest


def long_run(proof: Proof, model: Path, folder: Path, student: bytes) -> None:
    minutes = MINUTES if not TRIAL else 0.3
    settings = (*SETTINGS, *(("tokenizers.max_pairs=2",) if student else ()))
    with teacher(model, folder / "a", *settings) as server:
        mix, watch = Mix(server, student), Watch(server)
        baseline = warmed_up(mix, 10.0)
        asyncio.run(lasting(mix, watch, 60 * minutes, SAMPLE if not TRIAL else 0.5))
        proof.figure("minutes", minutes)
        proof.figure("calls", sum(mix.calls.values()))
        proof.figure("failures", sum(mix.failures.values()), exactly=0)
        # Half a minute says nothing about a slope.
        proof.figure("memory_mb_per_minute", watch.slope(), at_most=1.0 if minutes > 2 else 100.0)
        proof.figure("memory_mb", watch.bytes_[-1] / MIB)
        more = settled(server, baseline)
        for name in ("descriptors", "tasks"):
            proof.figure(f"{name}_left_over", more.get(name, 0), exactly=0)
        proof.figure("alive", server.alive, exactly=1)
        proof.figure("processes", server.children(), at_most=TOKENIZERS + SPARE)
        proof.details |= {
            "failures": dict(mix.failures.most_common(20)),
            "calls": dict(mix.calls),
            "memory_mb": [
                round(n / MIB, 1) for n in watch.bytes_[:: max(1, len(watch.bytes_) // 60)]
            ],
            "left_over": more,
            "threads": server.threads(),
        }
    with teacher(model, folder / "b", *settings, broken="leaks") as server:
        mix, watch = Mix(server, student), Watch(server)
        baseline = warmed_up(mix, 2.0)
        asyncio.run(lasting(mix, watch, 15.0, 0.5))
        more = settled(server, baseline, seconds=2.0)
        proof.control("a server whose memory leaks", failed=watch.slope() > 1.0)
        proof.control("a server whose tasks leak", failed=more.get("tasks", 0) > 0)
        proof.control("a server whose descriptors leak", failed=more.get("descriptors", 0) > 0)
    proof.settle()


def test_every_call_leaves_nothing_behind(
    tiny_model_dir: Path, student_file: bytes, tmp_path: Path
) -> None:
    with teacher(tiny_model_dir, tmp_path, *SETTINGS) as server:
        mix = Mix(server, student_file)
        baseline = warmed_up(mix, 2.0)
        done = sum(mix.calls.values())
        asyncio.run(mix.run(lambda: sum(mix.calls.values()) >= done + 100))
        assert mix.failures == {}
        more = settled(server, baseline)
        assert (more.get("tasks", 0), more.get("descriptors", 0)) == (0, 0)


@pytest.mark.soak
@pytest.mark.timeout(60 * MINUTES + 600)
def test_proof_21_a_long_run(tiny_model_dir: Path, tmp_path: Path, proof: Proof) -> None:
    long_run(proof, tiny_model_dir, tmp_path, b"")


@pytest.mark.soak
@pytest.mark.timeout(60 * MINUTES + 600)
def test_proof_24_a_long_run_with_tokenizers(
    tiny_model_dir: Path, student_file: bytes, tmp_path: Path, proof: Proof
) -> None:
    long_run(proof, tiny_model_dir, tmp_path, student_file)
