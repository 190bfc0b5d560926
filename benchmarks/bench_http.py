"""What a call over one HTTP connection that stays open takes, as a plain client sees it.

A real server process with a random model of a few thousand parameters, one connection
on loopback, one call at a time; the model's forward is in ``score_ms``.

Figures:
    livez_ms   median of GET /livez
    readyz_ms  median of GET /readyz
    score_ms   median of POST /v1/score: a prompt of 3 ids, one continuation of 3, K=4
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.harness import write_result
from benchmarks.load_fleet import server

WARM_UP = 20


def call(connection: http.client.HTTPConnection, path: str, body: bytes | None) -> float:
    """Milliseconds until the answer is read."""
    begin = time.perf_counter()
    connection.request(
        "GET" if body is None else "POST", path, body, {"Content-Type": "application/json"}
    )
    answer = connection.getresponse()
    text = answer.read()
    spent = time.perf_counter() - begin
    if answer.status != 200:
        raise SystemExit(f"{path}: {answer.status} {text.decode()}")
    return spent * 1e3


def group(number: int) -> bytes:
    return json.dumps(
        {
            "request_id": str(number),
            "prompt": {"token_ids": [1, 2, 3]},
            "continuations": [{"token_ids": [4, 5, 6]}],
            "top_k": 4,
            "temperature": 1.0,
        }
    ).encode()


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench_http", description=__doc__.splitlines()[0])
    parser.add_argument("--repetitions", type=int, default=200)
    arguments = parser.parse_args()
    numbers = itertools.count()
    found: dict[str, list[float]] = {"livez": [], "readyz": [], "score": []}
    with tempfile.TemporaryDirectory() as folder:
        from tests.support.models import make_tiny_model

        with server(make_tiny_model(Path(folder, "tiny"))) as teacher:
            connection = http.client.HTTPConnection(teacher.http_address, timeout=60)
            for repetition in range(-WARM_UP, arguments.repetitions):
                for name, times in found.items():
                    path = "/v1/score" if name == "score" else f"/{name}"
                    body = group(next(numbers)) if name == "score" else None
                    spent = call(connection, path, body)
                    if repetition >= 0:
                        times.append(spent)
            connection.close()
    write_result(
        "http",
        {f"{name}_ms": statistics.median(times) for name, times in found.items()},
        {
            "repetitions": arguments.repetitions,
            "p99_ms": {
                name: statistics.quantiles(times, n=100, method="inclusive")[98]
                for name, times in found.items()
            },
        },
    )


if __name__ == "__main__":
    main()
