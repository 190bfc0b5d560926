"""Drain, overload and floods in full length: proofs 6, 7 and 8."""

from __future__ import annotations

import asyncio
import signal
import threading
from pathlib import Path

import httpx
import pytest
from teacher_proto import AsyncTeacherClient

from benchmarks.load_client import Load
from benchmarks.load_fleet import Measured, jain, measure, percentile
from tests.proofs.ledger import Proof, count, seconds
from tests.proofs.service.teacher import LONG, MIB, Watched, teacher, tokens, until

pytestmark = [pytest.mark.soak, pytest.mark.timeout(600)]

IN_FLIGHT = 32
TOKENS = 64
RATE = 20_000.0  # tokens per second of the timed engine
BATCH = 4096
QUEUE = 65_536
SLOW = 1000.0
GROUP = {"prompt": 64, "responses": 1, "length": 960}  # 1024 tokens
RUNS = [f"run-{number}" for number in range(7)]


async def in_flight(server: Watched, round_: int) -> tuple[int, float, int]:
    """(replies that came, seconds until not ready, exit code) of a SIGTERM with 32 in flight,
    half of them over each wire."""
    body = {
        "prompt": {"token_ids": list(range(16))},
        "continuations": [{"token_ids": list(range(48))}],
        "top_k": 8,
        "temperature": 1.0,
    }
    async with (
        AsyncTeacherClient(server.grpc, run="run", max_attempts=1) as client,
        httpx.AsyncClient(base_url=f"http://{server.http}", timeout=LONG) as http,
    ):

        async def over_http(number: int) -> bool:
            answer = await http.post("/v1/score", json=body | {"request_id": f"h{number}"})
            return answer.status_code == 200

        async def over_grpc(number: int) -> bool:
            await client.score(server.request(number, f"{round_}-{number}"), timeout=LONG)
            return True

        # All of them wait behind one that takes the engine seconds.
        first = server.request(0, "first", continuations=(tokens(2 * int(SLOW)),))
        plug = asyncio.create_task(client.score(first, timeout=LONG))
        await asyncio.to_thread(until, server.started)
        asked = [
            asyncio.create_task(wire(number))
            for number in range(IN_FLIGHT // 2)
            for wire in (over_http, over_grpc)
        ]

        def held() -> bool:
            names = ("lsm_teacher_inflight_tokens", "lsm_teacher_queue_tokens")
            return sum(map(server.metric, names)) >= 16 + 2 * int(SLOW) + IN_FLIGHT * TOKENS

        await asyncio.to_thread(until, held)

        def stop() -> float:
            server.program.process.send_signal(signal.SIGTERM)
            return until(lambda: not ready(server))

        not_ready = await asyncio.to_thread(stop)
        ended = await asyncio.gather(*asked, return_exceptions=True)
        await asyncio.gather(plug, return_exceptions=True)
    code = await asyncio.to_thread(server.program.process.wait, LONG)
    return sum(one is True for one in ended), not_ready, code


def ready(server: Watched) -> bool:
    try:
        return server.get("/readyz")[0] == 200
    except OSError:
        return False  # it has ended


def test_proof_06_sigterm_with_32_in_flight(
    tiny_model_dir: Path, tmp_path: Path, proof: Proof
) -> None:
    rounds = count(10)
    done, codes, waits = 0, [], []
    for number in range(rounds):
        with teacher(tiny_model_dir, tmp_path / str(number), rate=SLOW) as server:
            replies, not_ready, code = asyncio.run(in_flight(server, number))
        done, codes, waits = done + replies, [*codes, code], [*waits, not_ready * 1000]
    proof.figure("completed", done, exactly=IN_FLIGHT * rounds)
    proof.figure("not_ready_ms", max(waits), at_most=200)
    proof.figure("exits_0", codes.count(0), exactly=rounds)
    with teacher(tiny_model_dir, tmp_path / "c", rate=SLOW, broken="stays_ready") as server:
        replies, _, code = asyncio.run(in_flight(server, 0))
    proof.control("SIGTERM that ends at once", failed=replies < IN_FLIGHT and code != 0)
    proof.settle()


class QueueWatch:
    """The most tokens that waited, read from the server's metrics while the context lasts."""

    def __init__(self, server: Watched) -> None:
        self.server = server
        self.most = 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> QueueWatch:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(0.5):
            self.most = max(self.most, self.server.metric("lsm_teacher_queue_tokens"))


def overload(server: Watched, lasting: float, capacity: float) -> tuple[Measured, float]:
    """Ten times what the engine can do, refusals not retried; and the most that waited."""
    clients = 4
    loads = [
        Load(server.grpc, f"run-{n}", **GROUP, per_second=10 * capacity / 1024 / clients,
             retry=False)
        for n in range(clients)
    ]  # fmt: skip
    with QueueWatch(server) as watch:
        found = measure(server.fleet, loads, warm_up=5.0, seconds=lasting)
    return found, watch.most


def overloaded_settings(queue: int) -> list[str]:
    return [
        f"engine.max_batch_tokens={BATCH}",
        f"limits.max_queue_tokens={queue}",
        f"limits.max_request_tokens={QUEUE}",
        # Kept replies are memory that is asked for; here they fill up in the warm-up.
        f"replay.max_bytes={8 * MIB}",
    ]


def test_proof_07_ten_times_overload(tiny_model_dir: Path, tmp_path: Path, proof: Proof) -> None:
    settings = overloaded_settings(QUEUE)
    with teacher(tiny_model_dir, tmp_path / "a", *settings, rate=RATE) as server:
        full = Load(server.grpc, "full", **GROUP, in_flight=24)
        capacity = measure(
            server.fleet, [full], warm_up=1.0, seconds=seconds(10)
        ).tokens_per_second()
        found, most = overload(server, seconds(60), capacity)
    refused = found.seconds("refused")
    proof.figure("queue_tokens_over_bound", most / QUEUE, at_most=1)
    growth = (found.memory_peak - found.memory_before) / MIB
    proof.figure("memory_growth_mb", growth, at_most=64)
    proof.figure("rejection_p99_ms", percentile(refused, 99) * 1000, at_most=50)
    proof.figure("goodput_ratio", found.tokens_per_second() / capacity, at_least=0.9)
    proof.details["refused"] = len(refused)
    proof.details["capacity_tokens_per_second"] = capacity
    endless = overloaded_settings(10**9)
    with teacher(tiny_model_dir, tmp_path / "b", *endless, rate=RATE) as server:
        _, most = overload(server, seconds(5), capacity)
    proof.control("a queue without a bound", failed=most > QUEUE)
    proof.settle()


def shares(server: Watched, flood: int, lasting: float) -> list[float]:
    """Shares of the tokens of seven runs with 4 groups in flight and one with ``flood``."""
    loads = [Load(server.grpc, name, **GROUP, in_flight=4) for name in RUNS]
    loads.append(Load(server.grpc, "flood", **GROUP, in_flight=flood))
    found = measure(server.fleet, loads, warm_up=seconds(3), seconds=lasting)
    rates = [found.tokens_per_second(name) for name in (*RUNS, "flood")]
    return [rate / sum(rates) for rate in rates]


def test_proof_08_one_run_floods(tiny_model_dir: Path, tmp_path: Path, proof: Proof) -> None:
    settings = [
        f"engine.max_batch_tokens={BATCH}",
        "limits.max_queue_tokens=131072",
        "limits.max_request_tokens=65536",
    ]
    with teacher(tiny_model_dir, tmp_path / "a", *settings, rate=RATE) as server:
        flooded = shares(server, 400, seconds(20))
        even = shares(server, 4, seconds(15))
    proof.figure("least_share", 8 * min(flooded[:7]), at_least=0.8)
    proof.figure("jain_at_equal_load", jain(even), at_least=0.95)
    proof.details |= {"flooded": flooded, "even": even}
    with teacher(tiny_model_dir, tmp_path / "b", *settings, rate=RATE, broken="one_run") as server:
        unfair = shares(server, 400, seconds(10))
    proof.control("a queue that takes all for one run", failed=8 * min(unfair[:7]) < 0.8)
    proof.settle()
