"""A teacher server whose engine takes a set time and no processor.

Every row is the uniform distribution. One job is served at a time, for its scored
tokens times the seconds a token that a file names, read again at every job.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from teacher_proto.rows import Rows, Support, Values

from teacher_server import cli
from teacher_server.engines.base import EngineDescription, Job, JobResult
from teacher_server.scoring.jobs import tokens_of
from teacher_server.teachers import load


class TimedEngine:
    """An engine (teacher_server/engines/base.py) of set service time."""

    def __init__(self, model: str, rate: Path) -> None:
        config = json.loads(Path(model, "config.json").read_text())
        self._rate = rate
        self._free_at = 0.0
        self.description = EngineDescription(
            engine="timed",
            model=model,
            weights_digest="uniform",
            dtype="float32",
            quantization="",
            adapter_digest="",
            vocabulary_size=config["vocab_size"],
            max_length=config["max_position_embeddings"],
            deterministic=True,
        )

    async def start(self) -> None:
        pass

    async def score(self, job: Job) -> JobResult:
        tokens = sum(len(span.positions) for span in job.spans)
        seconds = tokens * float(self._rate.read_text())
        self._free_at = max(self._free_at, time.monotonic()) + seconds
        await asyncio.sleep(self._free_at - time.monotonic())
        rows = tuple(self._rows(len(span.positions), job) for span in job.spans)
        return JobResult(rows, computed_tokens=tokens_of(job), engine_seconds=seconds)

    def _rows(self, count: int, job: Job) -> Rows:
        log_prob = -np.log(self.description.vocabulary_size)
        return Rows(
            support=Support(
                np.tile(np.arange(job.top_k, dtype=np.int32), (count, 1)),
                np.full((count, job.top_k), log_prob, np.float32),
                np.full(count, job.top_k, np.int32),
            ),
            sampled=Values(np.full(count, log_prob, np.float32), np.ones(count, np.bool_)),
        )

    def on_death(self, callback: Callable[[BaseException], None]) -> None:
        pass

    async def close(self) -> None:
        pass


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds-per-token", type=Path, required=True, metavar="FILE")
    arguments, rest = parser.parse_known_args()
    load.ENGINES["transformers"] = lambda model, _: TimedEngine(model, arguments.seconds_per_token)
    sys.exit(cli.main(["serve", *rest]))
