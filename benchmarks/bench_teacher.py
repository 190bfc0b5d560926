"""What the service adds to its engine, and what a group saves.

A real server process over gRPC on loopback against the same engine called
directly in this process: SmolLM2-135M in float32, K=64, random ids, fresh in
every repetition, sides alternated, medians of the ratios pair by pair.

Figures:
    grpc_over_engine      tokens/s through the service over tokens/s of the engine,
                          four groups in flight
    group_speedup         eight responses of 128 tokens after one prompt of 384:
                          seconds as eight requests over seconds as one group. The
                          eight are in flight together, each after a prompt of its
                          own of that length, so that nothing can be shared
    codec_us_per_token    encode and decode of request and reply, per row
    overhead_us_per_token the client's wall time that is not engine time, per row,
                          one group in flight
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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from teacher_proto import AsyncTeacherClient, TeacherClient, codec
from teacher_proto.rows import Rows, Support, Values
from teacher_proto.types import (
    Continuation,
    ContinuationScores,
    Int32,
    ScoreReply,
    ScoreRequest,
    Segment,
    TeacherInfo,
    Timing,
    TokenPrompt,
)

from benchmarks.harness import alternate, median_ratio, print_table, write_result

TOP_K = 64
TIMEOUT = 600.0


class Requests:
    """Makes requests of random ids; no two have the same content."""

    def __init__(self, info: TeacherInfo, seed: int = 0) -> None:
        self._info = info
        self._random = np.random.default_rng(seed)
        self._count = 0

    def ids(self, length: int) -> Int32:
        return self._random.integers(0, self._info.vocabulary_size, length, dtype=np.int32)

    def group(self, prompt: int, responses: int, length: int) -> ScoreRequest:
        self._count += 1
        return ScoreRequest(
            request_id=str(self._count),
            run="bench",
            teacher=self._info.name,
            tokenizer_hash=self._info.identity.tokenizer_hash,
            prompt=TokenPrompt(self.ids(prompt)),
            continuations=tuple(
                Continuation((Segment(self.ids(length)),)) for _ in range(responses)
            ),
            top_k=TOP_K,
            temperature=1.0,
        )

    def apart(self, group: ScoreRequest) -> list[ScoreRequest]:
        """One request per response, each after a prompt of its own of the same length."""
        assert isinstance(group.prompt, TokenPrompt)
        length = len(group.prompt.token_ids)
        return [
            replace(
                group,
                request_id=f"{group.request_id}-{index}",
                prompt=TokenPrompt(self.ids(length)),
                continuations=(continuation,),
            )
            for index, continuation in enumerate(group.continuations)
        ]


def rows_of(requests: Sequence[ScoreRequest]) -> int:
    return sum(len(c.scored_positions) for r in requests for c in r.continuations)


@contextmanager
def server(
    model: Path,
    environment: dict[str, str] | None = None,
    *,
    device: str = "cpu",
    dtype: str = "float32",
) -> Iterator[str]:
    """Address of a teacher server process that is ready; None for this environment."""
    with tempfile.TemporaryDirectory() as folder:
        ready, log = Path(folder, "ready.json"), Path(folder, "log")
        arguments = ["--model", str(model.resolve()), "--dtype", dtype, "--device", device]
        arguments += ["--grpc-port", "0", "--http-port", "0", "--ready-file", str(ready)]
        with log.open("w") as sink:
            process = subprocess.Popen(
                [sys.executable, "-m", "teacher_server", "serve", *arguments],
                stderr=sink,
                env=environment,
                # Not the current folder, which would stand before PYTHONPATH.
                cwd=folder,
            )
        try:
            while not ready.exists():
                if process.poll() is not None:
                    raise SystemExit(f"the server ended:\n{log.read_text()}")
                time.sleep(0.1)
            yield json.loads(ready.read_text())["grpc_address"]
        finally:
            process.terminate()
            process.wait()


class Service:
    """The client and the direct engine on one event loop, as blocking calls."""

    def __init__(self, address: str, model: Path) -> None:
        from transformers.utils import logging

        from teacher_server.engines.torch.transformers import TransformersEngine

        logging.disable_progress_bar()
        self._runner = asyncio.Runner()
        self._engine = TransformersEngine(str(model), dtype="float32", device="cpu")
        self._client = AsyncTeacherClient(address, run="bench")
        self._runner.run(self._engine.start())
        info = self._runner.run(self._client.get_teacher(timeout=TIMEOUT))
        (self.info,) = info.teachers
        assert self.info.identity.weights_digest == self._engine.description.weights_digest

    def through(self, requests: Sequence[ScoreRequest]) -> list[ScoreReply]:
        """Over gRPC, all in flight at once."""

        async def run() -> list[ScoreReply]:
            calls = (self._client.score(request, timeout=TIMEOUT) for request in requests)
            return list(await asyncio.gather(*calls))

        return self._runner.run(run())

    def direct(self, requests: Sequence[ScoreRequest]) -> list[tuple[ContinuationScores, ...]]:
        """The engine called for the same supports."""
        from teacher_server.scoring.jobs import make_job
        from teacher_server.scoring.score import continuation_scores

        async def run() -> list[tuple[ContinuationScores, ...]]:
            jobs = []
            for request in requests:
                assert isinstance(request.prompt, TokenPrompt)
                jobs.append(make_job(request, request.prompt.token_ids, self.info.vocabulary_size))
            results = await asyncio.gather(*(self._engine.score(job) for job in jobs))
            return [tuple(continuation_scores(r, TOP_K) for r in result.rows) for result in results]

        return self._runner.run(run())

    def close(self) -> None:
        self._runner.run(self._client.close())
        self._runner.run(self._engine.close())
        self._runner.close()


def against_engine(
    service: Service, requests: Requests, repetitions: int
) -> dict[str, list[float]]:
    made: dict[int, list[ScoreRequest]] = {}

    def of(repetition: int) -> list[ScoreRequest]:
        if repetition not in made:
            made[repetition] = [requests.group(64, 4, 96) for _ in range(4)]
        return made[repetition]

    first = of(-1)
    for reply, scores in zip(service.through(first), service.direct(first), strict=True):
        for a, b in zip(reply.results, scores, strict=True):
            assert a.rows.support is not None
            assert b.rows.support is not None
            np.testing.assert_allclose(
                a.rows.support.log_probs, b.rows.support.log_probs, atol=5e-5
            )
    return alternate(
        {
            "engine": lambda repetition: _do(service.direct, of(repetition)),
            "grpc": lambda repetition: _do(service.through, of(repetition)),
        },
        repetitions,
        warmup=0,
    )


def groups(service: Service, requests: Requests, repetitions: int) -> dict[str, list[float]]:
    def separate(repetition: int) -> None:
        service.through(requests.apart(requests.group(384, 8, 128)))

    def grouped(repetition: int) -> None:
        service.through([requests.group(384, 8, 128)])

    return alternate({"separate": separate, "grouped": grouped}, repetitions)


def _do(call: Callable[[Sequence[ScoreRequest]], object], requests: Sequence[ScoreRequest]) -> None:
    call(requests)


def overhead(address: str, requests: Requests, repetitions: int) -> list[float]:
    """Microseconds per row, one group of 8 x 128 at a time, by the client a trainer uses."""
    found = []
    with TeacherClient(address, run="bench") as client:
        for repetition in range(-1, repetitions):
            request = requests.group(64, 8, 128)
            start = time.perf_counter()
            reply = client.score(request, timeout=TIMEOUT)
            seconds = time.perf_counter() - start - reply.timing.engine_seconds
            if repetition >= 0:
                found.append(seconds * 1e6 / rows_of([request]))
    return found


def codec_cost(info: TeacherInfo, requests: Requests, repetitions: int) -> list[float]:
    """Microseconds per row for a group of 8 x 512 rows."""
    random = np.random.default_rng(1)
    found = []
    for _ in range(repetitions):
        request = requests.group(384, 8, 512)
        results = tuple(
            ContinuationScores(
                rows=Rows(
                    support=Support(
                        random.integers(0, info.vocabulary_size, (512, TOP_K), dtype=np.int32),
                        -random.random((512, TOP_K), np.float32),
                        np.full(512, TOP_K, np.int32),
                    ),
                    sampled=Values(-random.random(512, np.float32), np.ones(512, np.bool_)),
                )
            )
            for _ in range(8)
        )
        reply = ScoreReply(request.request_id, info.identity, results, Timing())
        start = time.perf_counter()
        codec.decode_request(codec.serialize(codec.encode_request(request)))
        codec.decode_reply(codec.serialize(codec.encode_reply(reply)))
        found.append((time.perf_counter() - start) * 1e6 / rows_of([request]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench_teacher", description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="SmolLM2-135M, prepared when left out")
    parser.add_argument("--repetitions", type=int, default=7)
    arguments = parser.parse_args()
    model = arguments.model
    if model is None:
        from student_trainer.quickstart.prepare import smollm2_dir

        model = smollm2_dir(print)
    count = arguments.repetitions
    with server(model) as address:
        service = Service(address, model)
        try:
            requests = Requests(service.info)
            compared = against_engine(service, requests, count)
            grouping = groups(service, requests, count)
            added = overhead(address, requests, count)
            coded = codec_cost(service.info, requests, max(20, count))
        finally:
            service.close()
    tokens = 4 * (64 + 4 * 96)
    print_table(
        ("side", "median seconds", "tokens/s"),
        [
            (name, f"{statistics.median(times):.3f}", f"{size / statistics.median(times):.0f}")
            for name, times, size in (
                ("engine, 4 groups", compared["engine"], tokens),
                ("gRPC, 4 groups", compared["grpc"], tokens),
                ("8 requests of 384+128", grouping["separate"], 8 * 512),
                ("1 group of 384+8x128", grouping["grouped"], 8 * 512),
            )
        ],
    )
    write_result(
        "teacher",
        {
            "grpc_over_engine": median_ratio(compared["engine"], compared["grpc"]),
            "group_speedup": median_ratio(grouping["separate"], grouping["grouped"]),
            "codec_us_per_token": statistics.median(coded),
            "overhead_us_per_token": statistics.median(added),
        },
        {
            "model": service.info.model.rpartition("/")[2],
            "dtype": service.info.identity.dtype,
            "top_k": TOP_K,
            "repetitions": count,
            "seconds": compared | grouping,
            "overhead_us_per_token": added,
        },
    )


if __name__ == "__main__":
    main()
