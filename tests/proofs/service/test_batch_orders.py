"""A sequence's bytes do not depend on what is computed with it: proof 20."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from teacher_proto.errors import PoisonedReplyError
from teacher_proto.rows import Rows
from teacher_proto.types import ScoreReply, ScoreRequest, TokenPrompt

from teacher_server.engines.base import Job, JobResult
from tests.proofs.ledger import Proof, count
from tests.server.running import Running, WatchedEngine, continuation, ids, running

SEQUENCES = 200
ORDERS = 20
AT_ONCE = 16
ENGINE = {"deterministic": True}
SEED = 20


class OffByOne(WatchedEngine):
    """Gives the rows of a job one place late where another job is in the engine with it."""

    inside = 0

    async def score(self, job: Job) -> JobResult:
        self.inside += 1
        try:
            result = await super().score(job)
            shift = self.inside > 1
        finally:
            self.inside -= 1
        rows = tuple(shifted(row) for row in result.rows) if shift else result.rows
        return replace(result, rows=rows)


def shifted(rows: Rows) -> Rows:
    support = rows.support
    assert support is not None
    changed = replace(
        support,
        ids=np.roll(support.ids, 1, axis=0),
        log_probs=np.roll(support.log_probs, 1, axis=0),
    )
    return replace(rows, support=changed)


def sequences(server: Running, number: int, round_: int) -> list[ScoreRequest]:
    """The same sequences for every round, under ids of the round, so that each is computed."""
    chance = random.Random(SEED)
    made = []
    for index in range(number):
        prompt = [chance.randrange(300) for _ in range(chance.randint(1, 40))]
        own = [chance.randrange(300) for _ in range(chance.randint(2, 40))]
        made.append(
            server.request(
                request_id=f"{round_}-{index}",
                prompt=TokenPrompt(ids(*prompt)),
                continuations=(continuation(*own),),
            )
        )
    return made


def rows(reply: ScoreReply) -> bytes:
    found = reply.results[0].rows
    assert found.support is not None
    assert found.sampled is not None
    arrays = (found.support.ids, found.support.log_probs, found.sampled.values)
    return b"".join(array.tobytes() for array in arrays)


async def asking(server: Running, asked: ScoreRequest) -> bytes:
    """The rows; none where the client itself sees that they cannot be right."""
    try:
        return rows(await server.score(asked))
    except PoisonedReplyError:
        return b""


async def differing(model: Path, number: int, orders: int) -> int:
    """How many replies of all orders differ from the sequence's reply when it was alone."""
    with pytest.MonkeyPatch.context() as patch:
        async with running({"default": model}, patch, engine=ENGINE) as server:
            alone = [rows(await server.score(asked)) for asked in sequences(server, number, 0)]
            found = 0
            for order in range(1, orders + 1):
                waiting = list(enumerate(sequences(server, number, order)))
                random.Random(order).shuffle(waiting)

                async def work(left: list[tuple[int, ScoreRequest]]) -> int:
                    wrong = 0
                    while left:
                        index, asked = left.pop()
                        wrong += await asking(server, asked) != alone[index]
                    return wrong

                found += sum(await asyncio.gather(*(work(waiting) for _ in range(AT_ONCE))))
    return found


async def canary(model: Path) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.server.running.WatchedEngine", OffByOne)
        return await differing(model, 20, 1)


async def test_batch_orders_leave_bytes_alone(tiny_model_dir: Path) -> None:
    assert await differing(tiny_model_dir, 20, 3) == 0
    assert await canary(tiny_model_dir) > 0


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_proof_20_sequences_alone_and_in_any_order(tiny_model_dir: Path, proof: Proof) -> None:
    number, orders = count(SEQUENCES), count(ORDERS)
    proof.figure("sequences", number)
    proof.figure("orders", orders)
    differ = asyncio.run(differing(tiny_model_dir, number, orders))
    proof.figure("replies_that_differ", differ, exactly=0)
    caught = asyncio.run(canary(tiny_model_dir))
    proof.control("an engine that is off by one in company", failed=caught > 0)
    proof.settle()
