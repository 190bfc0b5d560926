"""Many runs on one teacher: throughput, fair shares, latency under a flood, overload.

One real server process; every run is a process of its own over gRPC on loopback.

``runs``: 1, 2, 4, 8 and 16 runs of equal load on the transformers engine with a random
Llama of 5 million parameters in float32 (``--model`` takes another), 48 groups of 128
tokens in flight together. One run and eight alternate.

The other parts use an engine of set service time (``timed_engine``): 20,000
tokens/s, batches of 4096 tokens, jobs served one after the other.

``small``: a run that asks for one group of 64 tokens at a time beside one that keeps
96 groups of 1024 tokens waiting. ``flood``: seven runs with 4 groups of 1024 tokens
in flight each, and one with 400. ``overload``: ten times as many groups of 1024
tokens a second as the engine can do, refusals not retried; ``--soak`` for 60 s.
``shares``, ``windows``: see ``load_shares``, with their figures.

Figures:
    aggregate_ratio_8       tokens/s of eight runs over those of one, median of pairs
    jain_8                  Jain's index of the eight runs' tokens, the worst round
    small_p99_ratio         p99 of the small run's latency under the flood over
                            (3 x its median on an idle server + the time of one batch)
    flood_share             least share of the seven runs, over 1/8
    rejection_p99_ms        of refusals under overload, as the client sees them
    goodput_ratio           tokens/s under overload over those of a saturating load
    overload_memory_mb      growth of the server's resident memory during the overload
    scheduling_share        time inside the admission queue over engine time, ``runs``
    scheduler_us_per_request  check, offer, advance and leave of one request with
                            10,000 waiting of 64 runs on four priorities
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS, write_result
from benchmarks.load_client import Load
from benchmarks.load_fleet import Measured, Server, jain, measure, percentile, server
from benchmarks.load_shares import shares, windows

RATE = 20_000.0  # tokens/s of the timed engine
BATCH = 4096
COUNTS = (1, 2, 4, 8, 16)
IN_FLIGHT = 48
OVERLOAD_CLIENTS = 4
MIB = 1024 * 1024
Part = tuple[dict[str, float], dict[str, Any]]


def shares_of(found: Measured, runs: list[str]) -> list[float]:
    rates = [found.tokens_per_second(run) for run in runs]
    return [rate / sum(rates) for rate in rates]


def summary(found: Measured, runs: list[str]) -> dict[str, Any]:
    latencies = found.seconds("ok")
    if len(latencies) < 2 * len(runs):
        raise SystemExit(f"only {len(latencies)} answers of {len(runs)} runs: raise --seconds")
    shares = shares_of(found, runs)
    return {
        "tokens_per_second": found.tokens_per_second(),
        "shares": dict(zip(runs, shares, strict=True)),
        "jain": jain(shares),
        "p50_seconds": percentile(latencies, 50),
        "p99_seconds": percentile(latencies, 99),
        "requests": len(latencies),
        "server_memory_mb": found.memory_peak / MIB,
    }


def runs(model: Path, seconds: float) -> Part:
    """Equal runs on a real engine; the scheduler's part of its time."""
    rounds: list[tuple[int, dict[str, Any]]] = []
    with server(model, "engine.max_batch_tokens=2048") as teacher:
        for count in (8, 1, 2, 1, 8, 4, 8, 1, 16):
            names = [f"run-{number}" for number in range(count)]
            each = IN_FLIGHT // count
            loads = [Load(teacher.address, name, 32, 2, 48, in_flight=each) for name in names]
            paired = count in (1, 8)
            found = measure(teacher, loads, warm_up=3.0, seconds=seconds if paired else seconds / 2)
            rounds.append((count, summary(found, names)))
            print(f"{count} runs: {rounds[-1][1]['tokens_per_second']:.0f} tokens/s")
        engine = engine_seconds(teacher)
    by_count = {count: [found for n, found in rounds if n == count] for count in COUNTS}
    pairs = zip(by_count[8], by_count[1], strict=True)
    figures = {
        "aggregate_ratio_8": statistics.median(
            eight["tokens_per_second"] / one["tokens_per_second"] for eight, one in pairs
        ),
        "jain_8": min(found["jain"] for found in by_count[8]),
        "scheduling_share": teacher.report["scheduling_seconds"] / engine,
    }
    return figures, {"runs": {str(n): found for n, found in by_count.items()}} | {
        "scheduling": teacher.report | {"engine_seconds": engine}
    }


def engine_seconds(teacher: Server) -> float:
    """So far, by the server's own metrics."""
    import urllib.request

    with urllib.request.urlopen(f"http://{teacher.http_address}/metrics") as answer:
        lines = answer.read().decode().splitlines()
    return sum(
        float(line.split()[-1]) for line in lines if line.startswith("lsm_teacher_engine_seconds_t")
    )


def small(model: Path, seconds: float) -> Part:
    with server(model, f"engine.max_batch_tokens={BATCH}", rate=RATE) as teacher:
        own = Load(teacher.address, "small", 16, 1, 48, pause=0.02)
        flood = Load(teacher.address, "flood", 64, 1, 960, in_flight=96)
        idle = measure(teacher, [own], warm_up=0.5, seconds=3.0)
        found = measure(teacher, [own, flood], warm_up=1.5, seconds=seconds)
    service = statistics.median(idle.seconds("ok"))
    latencies = found.seconds("ok", "small")
    p99 = percentile(latencies, 99)
    details = {
        "own_seconds": service,
        "batch_seconds": BATCH / RATE,
        "p50_seconds": percentile(latencies, 50),
        "p99_seconds": p99,
        "requests": len(latencies),
        "latencies": latencies,
        "tokens_per_second": found.tokens_per_second(),
    }
    return {"small_p99_ratio": p99 / (3 * service + BATCH / RATE)}, {"small": details}


def flood(model: Path, seconds: float) -> Part:
    queue = ("limits.max_queue_tokens=131072", "limits.max_request_tokens=65536")
    with server(model, f"engine.max_batch_tokens={BATCH}", *queue, rate=RATE) as teacher:
        names = [f"run-{number}" for number in range(7)]
        loads = [Load(teacher.address, name, 64, 1, 960, in_flight=4) for name in names]
        loads.append(Load(teacher.address, "flood", 64, 1, 960, in_flight=400))
        found = measure(teacher, loads, warm_up=3.0, seconds=seconds)
    everyone = summary(found, [*names, "flood"])
    least = min(everyone["shares"][name] for name in names)
    return {"flood_share": least * 8}, {"flood": everyone}


def overload(model: Path, seconds: float) -> Part:
    settings = (
        f"engine.max_batch_tokens={BATCH}",
        "limits.max_queue_tokens=65536",
        "limits.max_request_tokens=65536",
        # Kept replies are memory that is asked for; here they fill up in the warm-up.
        f"replay.max_bytes={8 * MIB}",
    )
    with server(model, *settings, rate=RATE) as teacher:
        full = Load(teacher.address, "full", 64, 1, 960, in_flight=24)
        capacity = measure(teacher, [full], warm_up=1.0, seconds=6.0).tokens_per_second()
        rate = 10 * capacity / full.tokens / OVERLOAD_CLIENTS
        loads = [
            Load(teacher.address, f"run-{n}", 64, 1, 960, per_second=rate, retry=False)
            for n in range(OVERLOAD_CLIENTS)
        ]
        found = measure(teacher, loads, warm_up=5.0, seconds=seconds)
    refused = found.seconds("refused")
    figures = {
        "rejection_p99_ms": percentile(refused, 99) * 1e3,
        "goodput_ratio": found.tokens_per_second() / capacity,
        "overload_memory_mb": (found.memory_peak - found.memory_before) / MIB,
    }
    details = {
        "seconds": seconds,
        "capacity_tokens_per_second": capacity,
        "refused": len(refused),
        "refused_p50_ms": percentile(refused, 50) * 1e3,
        "answered": len(found.seconds("ok")),
        "late": len(found.seconds("late")),
    }
    return figures, {"overload": details}


def scheduler(waiting: int = 10_000, requests: int = 20_000) -> Part:
    """The pure core alone: microseconds for one request's whole way through it."""
    from teacher_server.queue.admission import AdmissionQueue
    from teacher_server.queue.policy import RunPolicy
    from teacher_server.queue.scheduler import Deadline, Ticket

    policies = [RunPolicy(f"run-{n}", 1.0 + n % 3, n % 4, 10**9) for n in range(64)]
    queue = AdmissionQueue(max_inflight_tokens=8192, max_queue_tokens=10**9)
    inflight: list[Ticket] = []
    made = 0

    def offer(now: float) -> None:
        nonlocal made
        made += 1
        policy = policies[made * 7919 % len(policies)]
        ticket = Ticket(100 + made % 1000, policy, Deadline(now + 60))
        queue.check(policy, ticket.tokens, now)
        if queue.offer(ticket, now):
            inflight.append(ticket)

    for _ in range(waiting):
        offer(0.0)
    begin = time.perf_counter()
    for step in range(requests):
        now = step * 1e-6
        offer(now)
        queue.leave(inflight.pop(step % len(inflight)), now, completed=True)
        inflight.extend(queue.advance(now)[0])
    spent = time.perf_counter() - begin
    return {"scheduler_us_per_request": spent / requests * 1e6}, {}


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench_load", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="for the part runs")
    parser.add_argument("--seconds", type=float, default=8.0, help="of every measurement")
    parser.add_argument("--soak", action="store_true", help="sixty seconds of overload")
    parser.add_argument("--only", nargs="*", metavar="PART", help="print these parts' figures")
    arguments = parser.parse_args()
    seconds = arguments.seconds
    with tempfile.TemporaryDirectory() as folder:
        from tests.support.models import make_tiny_model

        tiny = make_tiny_model(Path(folder, "tiny"))
        model = arguments.model or make_tiny_model(
            Path(folder, "model"), hidden_size=256, intermediate_size=704, num_hidden_layers=6
        )
        parts: dict[str, Callable[[], Part]] = {
            "runs": lambda: runs(model, seconds),
            "small": lambda: small(tiny, 2 * seconds),
            "flood": lambda: flood(tiny, seconds),
            "shares": lambda: shares(model, seconds),
            "windows": lambda: windows(model, seconds),
            "overload": lambda: overload(tiny, 60.0 if arguments.soak else seconds),
            "scheduler": scheduler,
        }
        figures: dict[str, float] = {}
        details: dict[str, Any] = {"seconds": seconds}
        for name in arguments.only or parts:
            part, more = parts[name]()
            figures, details = figures | part, details | more
            print(name, {key: round(value, 4) for key, value in part.items()})
    if not arguments.only:
        from benchmarks.load_plot import plot

        plot(details, RESULTS / "load.png")
        write_result("load", figures, details)


if __name__ == "__main__":
    main()
