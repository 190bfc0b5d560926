"""``serve`` with an engine that dies on the first job of a request; run as a program."""

from __future__ import annotations

import asyncio
import sys

from teacher_server import cli
from teacher_server.engines.base import Engine, Job, JobResult
from teacher_server.engines.torch.transformers import TransformersEngine
from teacher_server.settings.teachers import EngineSettings
from teacher_server.teachers import load
from tests.server.running import WatchedEngine

FATAL_TOP_K = 7


class Dying(WatchedEngine):
    async def score(self, job: Job) -> JobResult:
        if job.top_k == FATAL_TOP_K:
            self.die()
            await asyncio.Event().wait()
        return await super().score(job)


def make(model: str, settings: EngineSettings) -> Engine:
    return Dying(TransformersEngine(model, device="cpu"))


if __name__ == "__main__":
    load.ENGINES["transformers"] = make
    sys.exit(cli.main(["serve", *sys.argv[1:]]))
