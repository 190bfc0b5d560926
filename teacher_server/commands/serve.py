"""``teacher-server serve``: a gRPC and an HTTP server over one set of engines.

Both servers listen before the models load, so that liveness and readiness can be
asked from the start. The first of these to happen ends the run:

    SIGTERM, SIGINT   not ready at once, work in progress completes, exit code 0;
                      143 or 130 when it needed longer than drain_seconds; a
                      second signal ends the process at once
    an engine's death not ready at once, work in progress fails with a retryable
                      error, exit code 1
    a server's end    exit code 1

SIGHUP reads credentials and certificates again and opens the audit log anew.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
from collections.abc import Coroutine
from functools import partial
from typing import Any, NoReturn, TypeVar

from teacher_proto.errors import EXIT_OK, EXIT_RUNTIME, ConfigurationError, LsmError
from teacher_proto.program.distribution import VERSION
from teacher_proto.tracing import export_traces

from teacher_server.access.descriptors import connection_bounds, raise_descriptor_limit
from teacher_server.access.guard import UNKNOWN, Guard, make_guard
from teacher_server.commands.ready_file import prepare_ready_file, ready_file
from teacher_server.config import ServeConfig
from teacher_server.failures import as_exception, is_ending
from teacher_server.grpc.server import GrpcServer
from teacher_server.http.access import record_unrouted
from teacher_server.http.app import make_app
from teacher_server.http.server import HttpServer
from teacher_server.lanes import let_waiting_threads_sleep, share_the_interpreter
from teacher_server.lifecycle import Lifecycle
from teacher_server.listen import address, check_exposure, keep_silent_ones_out, listen
from teacher_server.memory import give_back_as_it_grows, give_freed_memory_back
from teacher_server.queue.budget import ByteBudget
from teacher_server.scoring.replay import ReplayWindow
from teacher_server.scoring.service import TeacherService
from teacher_server.teachers.load import load_teachers
from teacher_server.teachers.teacher import Teachers
from teacher_server.telemetry.log import configure_logging
from teacher_server.telemetry.metrics import Metrics
from teacher_server.telemetry.stderr import json_stderr, log_failures_of
from teacher_server.tokenizers.pairs import StudentTokenizers

log = logging.getLogger(__name__)

# How long replies may take to leave once their work has ended, seconds.
FLUSH_SECONDS = 5.0
# Seconds between two looks at what is due besides calls.
LOOK_EVERY = 1.0

T = TypeVar("T")


def serve(config: ServeConfig) -> int:
    """Runs the server until it is stopped; returns the exit code."""
    check_exposure(
        config.host,
        credentials=config.access.configured,
        encrypted=config.tls.cert is not None,
        insecure_plaintext=config.insecure_plaintext,
    )
    check_has_teacher(config)
    prepare_ready_file(config.ready_file)
    guard = make_guard(config)
    with json_stderr() as stream:
        configure_logging(config.log_level, stream)
        share_the_interpreter()
        give_freed_memory_back()
        engines = {teacher.engine(config.engine).name for teacher in config.teachers.values()}
        if engines == {"transformers"}:  # vLLM brings its own settings of threads
            let_waiting_threads_sleep()
        flush_traces = export_traces("teacher-server")
        try:
            return asyncio.run(Server(config, guard).run())
        except (LsmError, KeyboardInterrupt):
            raise
        except Exception:
            log.exception("the server failed")
            return EXIT_RUNTIME
        finally:
            flush_traces()


def check_has_teacher(config: ServeConfig) -> None:
    """Raises ConfigurationError when nothing would be served."""
    if not config.teachers:
        raise ConfigurationError(
            "no teacher is configured",
            where="teachers",
            fix="give --model PATH, or --teacher NAME=PATH for each teacher",
        )


class Server:
    """One run of the program: bind, load, serve, drain."""

    def __init__(self, config: ServeConfig, guard: Guard | None = None) -> None:
        self._config = config
        self.guard = guard or make_guard(config)
        self.lifecycle = Lifecycle(lambda: self.guard.failure)
        self.service = TeacherService(
            lifecycle=self.lifecycle,
            limits=config.limits.server_limits(),
            replay=ReplayWindow(
                max_entries=config.replay.max_entries,
                max_bytes=config.replay.max_bytes,
                max_seconds=config.replay.max_seconds,
            ),
            metrics=Metrics(),
            budget=ByteBudget(
                config.limits.bytes_in_flight,
                config.limits.bytes_in_flight_per_run,
                config.limits.max_reply_bytes,
            ),
            server_version=VERSION,
            policies={run: own.policy(run) for run, own in config.runs.items()},
        )
        self.bounds = connection_bounds(config.limits, raise_descriptor_limit())
        self.ready = asyncio.Event()
        self._stopped: asyncio.Queue[int] = asyncio.Queue()
        self._signal: int | None = None
        self.grpc_address = self.http_address = ""

    async def run(self) -> int:
        """Serves until the first of signal, engine death and end of a server.

        Raises:
            ConfigurationError: an address cannot be bound, or a model not loaded.
        """
        config = self._config
        log_failures_of(asyncio.get_running_loop())
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self.guard.close)
            listener = stack.enter_context(listen(config.host, config.http_port, "http_port"))
            keep_silent_ones_out(listener, config.limits.header_seconds)
            grpc_server = GrpcServer(self.service, self.guard, config.limits, self.bounds)
            self.grpc_address = await grpc_server.start(config.host, config.grpc_port)
            stack.push_async_callback(grpc_server.stop, FLUSH_SECONDS)
            self.http_address = address(config.host, listener.getsockname()[1])
            app = make_app(self.service, self.guard, timeout_seconds=config.http_timeout_seconds)
            http_server = HttpServer(
                app,
                listener,
                self.guard.certificates,
                self.bounds,
                config.limits,
                cut=partial(self.service.metrics.connection_cut, "http"),
                refused=self._refused_http,
            )
            self.service.metrics.watch_connections("http", http_server.table)
            http_server.start()
            stack.push_async_callback(http_server.stop)
            self._watch_signals()
            log.info("listening on %s (gRPC) and %s (HTTP)", self.grpc_address, self.http_address)

            loading = self._watched(
                load_teachers(config.teachers, config.engine, config.limits), stack
            )
            self._watched(self._end_of(grpc_server.wait_closed(), "gRPC"), stack)
            self._watched(self._end_of(http_server.wait_closed(), "HTTP"), stack)
            stopping = self._watched(self._stopped.get(), stack)
            await asyncio.wait((loading, stopping), return_when=asyncio.FIRST_COMPLETED)
            if stopping.done():
                loading.cancel()
                self.lifecycle.drain()
                return EXIT_OK if self._signal is not None else stopping.result()
            teachers = loading.result()
            stack.push_async_callback(close_engines, teachers)
            return await self._serve(teachers, grpc_server, stopping)

    async def _serve(
        self, teachers: Teachers, grpc_server: GrpcServer, stopping: asyncio.Task[int]
    ) -> int:
        for teacher in teachers:
            teacher.engine.on_death(self._engine_died)
        students = await asyncio.to_thread(
            StudentTokenizers, self._config.tokenizers, list(teachers)
        )
        try:
            return await self._ready(teachers, students, grpc_server, stopping)
        finally:
            await students.close()

    async def _ready(
        self,
        teachers: Teachers,
        students: StudentTokenizers,
        grpc_server: GrpcServer,
        stopping: asyncio.Task[int],
    ) -> int:
        """Serves until ``stopping`` is done, and drains; returns the exit code."""
        # The collector need not look through models and libraries again: each time it
        # does, nothing is answered for a quarter of a second.
        gc.collect()
        gc.freeze()
        self.service.become_ready(teachers, students)
        grpc_server.tell(serving=True)
        with ready_file(self._config.ready_file, self._ready_facts(teachers)):
            log.info("ready: %s", ", ".join(teachers.names))
            self.ready.set()
            looking = asyncio.create_task(self._look(grpc_server))
            # Not before: loading a model takes and frees more than any message.
            trimming = asyncio.create_task(give_back_as_it_grows())
            code = await stopping
            self.lifecycle.drain()
            await cancel(looking)
            await cancel(trimming)
        grpc_server.drain()
        refusal = self.lifecycle.refusal()
        if self._signal is None:
            await self.service.abandon(refusal)
            return code
        log.info("draining for at most %g s", self._config.drain_seconds)
        if not await self.lifecycle.drained(self._config.drain_seconds):
            log.warning("work was still in progress after %g s", self._config.drain_seconds)
            await self.service.abandon(refusal)
            return 128 + self._signal
        return EXIT_OK

    async def _look(self, grpc_server: GrpcServer) -> None:
        """Does what is due between calls, and keeps gRPC's health true; for ever."""
        while True:
            await asyncio.sleep(LOOK_EVERY)
            self.guard.look()
            grpc_server.tell(serving=self.lifecycle.ready)

    def _ready_facts(self, teachers: Teachers) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "grpc_address": self.grpc_address,
            "http_address": self.http_address,
            "teachers": list(teachers.names),
        }

    def _engine_died(self, error: BaseException) -> None:
        log.error("an engine died", exc_info=as_exception(error))
        self.lifecycle.die()
        self._stopped.put_nowait(EXIT_RUNTIME)

    def _refused_http(self, peer: tuple[str, int] | None, error: LsmError) -> None:
        self.service.metrics.request("http", UNKNOWN, "refused", error.reason, 0.0)
        record_unrouted(self.guard, peer, error)

    async def _end_of(self, server: Coroutine[Any, Any, None], name: str) -> None:
        try:
            await server
        except BaseException as error:
            if is_ending(error):
                raise
            log.exception("the %s server failed", name)
        else:
            log.error("the %s server ended", name)
        self.lifecycle.die()
        self._stopped.put_nowait(EXIT_RUNTIME)

    def _watch_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop, number)
        loop.add_signal_handler(signal.SIGHUP, self.guard.reload)

    def stop(self, number: int = signal.SIGTERM) -> None:
        """What a signal does: the server takes no new work and ``run`` drains and returns."""
        if self._signal is not None:
            stop_at_once(number)
        self._signal = number
        self.lifecycle.drain()
        self._stopped.put_nowait(EXIT_OK)

    @staticmethod
    def _watched(work: Coroutine[Any, Any, T], stack: contextlib.AsyncExitStack) -> asyncio.Task[T]:
        task = asyncio.ensure_future(work)
        stack.push_async_callback(cancel, task)
        return task


def stop_at_once(number: int) -> NoReturn:
    """Ends the process without waiting for threads that compute."""
    log.warning("a second signal: ending at once")
    logging.shutdown()
    os._exit(128 + number)


async def cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def close_engines(teachers: Teachers) -> None:
    for teacher in teachers:
        await teacher.engine.close()
