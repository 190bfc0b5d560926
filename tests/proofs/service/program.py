"""``teacher-server serve`` as the proofs need it: watched, and with a guard broken on purpose.

    python -m tests.proofs.service.program OPTIONS SERVE-ARGUMENTS...

OPTIONS is JSON: ``rate``, tokens per second of an engine of set service time (0: the real
one); ``journal``, a file that gets "MARK SECONDS" for every job as its computing starts, with
the first id of its prompt and the monotonic clock; ``tasks``, a file that gets the number of
the event loop's tasks on SIGUSR1; ``broken``, one of ``BREAKS`` or nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import math
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from teacher_proto import codec

from benchmarks.timed_engine import TimedEngine
from teacher_server import cli
from teacher_server.access.guard import Guard
from teacher_server.commands.serve import Server
from teacher_server.engines.base import Engine, Job, JobResult
from teacher_server.engines.torch.transformers import TransformersEngine
from teacher_server.http import app as http_app
from teacher_server.lanes import Lanes
from teacher_server.queue.admission import Admission
from teacher_server.queue.scheduler import Deadline, Ticket
from teacher_server.scoring import service
from teacher_server.settings.teachers import EngineSettings
from teacher_server.teachers import load
from teacher_server.teachers.teacher import Teachers

VOCABULARY = 320
MAX_LENGTH = 8192
PASS_TOKENS = 1024
MOST_LEAKS = 3 * 600  # of a leaking server: memory, descriptors and tasks, 300 MB in all


def no_deadlines() -> None:
    """Nothing expires: what is late is computed and answered all the same."""

    @contextlib.asynccontextmanager
    async def without_end(deadline: float, started: float) -> AsyncIterator[None]:
        yield

    def endless(self: Deadline, at: float) -> None:
        self.at = math.inf

    service._until = without_end
    Deadline.__init__ = endless  # type: ignore[method-assign]


def one_run() -> None:
    """The queue takes everybody for one run."""
    slot = Admission.slot

    def as_one(self: Admission, ticket: Ticket) -> Any:
        ticket.policy = replace(ticket.policy, run="everybody")
        return slot(self, ticket)

    Admission.slot = as_one  # type: ignore[method-assign]


def handler_fails() -> None:
    """A wrong JSON body is a failure of the handler."""
    parse = http_app.parse_score_body

    def fails(body: bytes) -> Any:
        try:
            return parse(body)
        except Exception as error:
            raise RuntimeError("nobody thought of this") from error

    http_app.parse_score_body = fails


def leaks() -> None:
    """Every request that is decoded stays in memory, with a descriptor and a task."""
    kept: list[Any] = []
    decode = codec.decode_request
    loop: list[asyncio.AbstractEventLoop] = []
    begin = Server.run

    async def run(self: Server) -> int:
        loop.append(asyncio.get_running_loop())
        return await begin(self)

    def start_task() -> None:
        kept.append(asyncio.ensure_future(asyncio.Event().wait()))

    def leaky(body: Any) -> Any:
        if len(kept) < MOST_LEAKS:
            kept.append(os.urandom(1 << 19))
            kept.append(os.dup(0))
            loop[0].call_soon_threadsafe(start_task)
        return decode(body)

    codec.decode_request = leaky
    Server.run = run  # type: ignore[method-assign]


def crashes() -> None:
    """A message that cannot be decoded ends the process, as a fault of native code would."""
    decode = codec.decode_request

    def deadly(body: Any) -> Any:
        try:
            return decode(body)
        except Exception:
            os._exit(70)

    codec.decode_request = deadly


def lets_in() -> None:
    """Everybody is let in, whatever they show."""
    Guard.admit = lambda self, caller, authorization, names: None  # type: ignore[method-assign]


def on_the_loop() -> None:
    """What belongs into other threads is done on the event loop."""

    async def at_once(self: Lanes, work: Callable[[], Any], **about: Any) -> Any:
        return work()

    Lanes.run = at_once  # type: ignore[method-assign]


def tells() -> None:
    """The guard writes into the log what callers show."""
    admit = Guard.admit

    def talkative(self: Guard, caller: Any, authorization: Any, names: Any) -> None:
        logging.getLogger("teacher_server").warning("shown: %s", list(authorization))
        admit(self, caller, authorization, names)

    Guard.admit = talkative  # type: ignore[method-assign]


def any_teacher() -> None:
    """Whatever teacher is named, one answers."""
    get = Teachers.get

    def some(self: Teachers, name: str) -> Any:
        return get(self, self.names[0])

    Teachers.get = some  # type: ignore[method-assign]


def stays_ready() -> None:
    """SIGTERM ends the process at once, with work in progress."""

    def stop(self: Server, number: int = signal.SIGTERM) -> None:
        os._exit(128 + number)

    Server.stop = stop  # type: ignore[method-assign]


BREAKS: dict[str, Callable[[], None]] = {
    made.__name__: made
    for made in (
        no_deadlines,
        one_run,
        handler_fails,
        leaks,
        crashes,
        lets_in,
        on_the_loop,
        tells,
        any_teacher,
        stays_ready,
    )
}


def journal(path: Path) -> Callable[[Job], None]:
    file = path.open("a", buffering=1)
    return lambda job: print(int(job.prompt_ids[0]), time.monotonic(), file=file)


def watch_engine(rate: float, note: Callable[[Job], None]) -> None:
    def timed(model: str, settings: EngineSettings) -> Engine:
        return TimedEngine(
            rate=rate,
            pass_tokens=PASS_TOKENS,
            vocabulary_size=VOCABULARY,
            max_length=MAX_LENGTH,
            began=note,
        )

    if rate:
        load.ENGINES["transformers"] = timed
        return
    score = TransformersEngine.score

    async def noted(self: TransformersEngine, job: Job) -> JobResult:
        note(job)
        return await score(self, job)

    TransformersEngine.score = noted  # type: ignore[method-assign]


def count_tasks(path: Path) -> None:
    def write(number: int, frame: object) -> None:
        part = path.with_suffix(".part")
        part.write_text(str(len(asyncio.all_tasks(asyncio.get_running_loop()))))
        part.replace(path)

    signal.signal(signal.SIGUSR1, write)


def main() -> int:
    options = json.loads(sys.argv[1])
    note = journal(Path(options["journal"])) if "journal" in options else lambda job: None
    watch_engine(options.get("rate", 0.0), note)
    if "tasks" in options:
        count_tasks(Path(options["tasks"]))
    if options.get("broken"):
        BREAKS[options["broken"]]()
    return cli.main(["serve", *sys.argv[2:]])


if __name__ == "__main__":
    sys.exit(main())
