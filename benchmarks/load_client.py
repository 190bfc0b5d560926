"""One training run as the service sees it: a process that asks for scores.

    python -m benchmarks.load_client SPEC

SPEC is a ``Load`` as JSON. The process connects, prints a line, reads "BEGIN END"
(seconds of the monotonic clock, which all processes share) and asks from BEGIN to
END; then it prints its ``Answer`` list as JSON.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from dataclasses import asdict, dataclass

import numpy as np
from teacher_proto import AsyncTeacherClient
from teacher_proto.errors import DeadlineError, OverloadedError, TeacherUnavailableError
from teacher_proto.types import (
    Continuation,
    Int32,
    ScoreRequest,
    Segment,
    TeacherInfo,
    TokenPrompt,
)

TIMEOUT = 120.0


@dataclass(frozen=True)
class Load:
    """What a run asks for.

    Attributes:
        prompt, responses, length: of a group, tokens.
        in_flight: groups asked for at once, one after the other without a pause
            (a closed loop), or
        per_second: groups sent, at random times, whatever has come back.
        pause: mean seconds between a reply and the next request in a closed loop.
        retry: whether refusals are retried as the client does by itself.
    """

    address: str
    run: str
    prompt: int
    responses: int
    length: int
    top_k: int = 32
    in_flight: int = 1
    per_second: float = 0.0
    pause: float = 0.0
    retry: bool = True

    @property
    def tokens(self) -> int:
        return self.prompt + self.responses * self.length


@dataclass(frozen=True)
class Answer:
    """Times of one request; ``outcome``: ok, refused or late."""

    run: str
    begin: float
    end: float
    tokens: int
    outcome: str


class Run:
    def __init__(self, load: Load, info: TeacherInfo, client: AsyncTeacherClient) -> None:
        self._load = load
        self._info = info
        self._client = client
        self._random = random.Random(load.run)
        self._ids = np.random.default_rng()
        self._count = 0
        self.answers: list[Answer] = []

    def _tokens(self, length: int) -> Int32:
        return self._ids.integers(0, self._info.vocabulary_size, length, dtype=np.int32)

    def _group(self) -> ScoreRequest:
        load = self._load
        self._count += 1
        return ScoreRequest(
            request_id=str(self._count),
            run=load.run,
            teacher=self._info.name,
            tokenizer_hash=self._info.identity.tokenizer_hash,
            prompt=TokenPrompt(self._tokens(load.prompt)),
            continuations=tuple(
                Continuation((Segment(self._tokens(load.length)),)) for _ in range(load.responses)
            ),
            top_k=load.top_k,
            temperature=1.0,
        )

    async def ask(self) -> None:
        request, begin = self._group(), time.monotonic()
        try:
            await self._client.score(request, timeout=TIMEOUT)
            outcome = "ok"
        except OverloadedError:
            outcome = "refused"
        except (DeadlineError, TeacherUnavailableError):
            outcome = "late"
        self.answers.append(
            Answer(self._load.run, begin, time.monotonic(), self._load.tokens, outcome)
        )

    async def loop(self, end: float) -> None:
        while time.monotonic() < end:
            await self.ask()
            if self._load.pause:
                await asyncio.sleep(self._random.expovariate(1 / self._load.pause))

    async def stream(self, end: float) -> None:
        asking: set[asyncio.Task[None]] = set()
        due = time.monotonic()
        while (due := due + self._random.expovariate(self._load.per_second)) < end:
            await asyncio.sleep(due - time.monotonic())
            task = asyncio.create_task(self.ask())
            asking.add(task)
            task.add_done_callback(asking.discard)
        await asyncio.sleep(end - time.monotonic())
        for task in asking:
            task.cancel()

    async def until(self, end: float) -> None:
        """Asks until ``end``; what is in flight then is cancelled."""
        if self._load.per_second:
            await self.stream(end)
            return
        loops = [asyncio.create_task(self.loop(end)) for _ in range(self._load.in_flight)]
        await asyncio.sleep(max(0.0, end - time.monotonic()))
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)


async def main(load: Load) -> None:
    attempts = None if load.retry else 1
    async with AsyncTeacherClient(load.address, run=load.run, max_attempts=attempts) as client:
        (info,) = (await client.get_teacher(timeout=TIMEOUT)).teachers
        print("ready", flush=True)
        line = await asyncio.to_thread(sys.stdin.readline)
        begin, end = map(float, line.split())
        run = Run(load, info, client)
        await asyncio.sleep(max(0.0, begin - time.monotonic()))
        await run.until(end)
        print(json.dumps([asdict(answer) for answer in run.answers]), flush=True)


if __name__ == "__main__":
    asyncio.run(main(Load(**json.loads(sys.argv[1]))))
