"""The metrics of one server, for Prometheus, in a registry of their own."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence, Sized

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from teacher_proto.errors import EngineError, LsmError
from teacher_proto.types import ScoreRequest

from teacher_server.engines.base import Engine
from teacher_server.queue.admission import Admission
from teacher_server.queue.budget import ByteBudget
from teacher_server.telemetry.collectors import BytesInFlight, EnginePasses, RunQueues
from teacher_server.telemetry.cost import Cost
from teacher_server.telemetry.realignment_totals import RealignmentMetrics, RealignmentTotals

SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
TOP_K = (0, 1, 8, 16, 32, 64, 128, 256, 1024, 8192)
MAX_RUN_LABELS = 100
MAX_TOKENIZER_LABELS = 50
OTHER_RUNS = "(other)"


class Metrics:
    """Labels are bounded: the first ``MAX_RUN_LABELS`` runs have their own, the rest share one."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._runs: set[str] = set()
        self._tokenizers: set[str] = set()
        self._requests = Counter(
            "lsm_teacher_requests",
            "Calls by how they ended; reason is empty for those that succeeded.",
            ("surface", "method", "outcome", "reason"),
            registry=self.registry,
        )
        self._request_seconds = Histogram(
            "lsm_teacher_request_seconds",
            "Seconds of a call, from its arrival to its reply.",
            ("surface", "method"),
            buckets=SECONDS,
            registry=self.registry,
        )
        self._queue_seconds = Histogram(
            "lsm_teacher_queue_seconds",
            "Seconds that a scored request waited for the engine.",
            ("teacher",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self._overhead_seconds = Histogram(
            "lsm_teacher_overhead_seconds",
            "Seconds of a scored request that were neither queue nor engine.",
            ("teacher",),
            buckets=SECONDS,
            registry=self.registry,
        )
        self._engine_seconds = Counter(
            "lsm_teacher_engine_seconds",
            "Seconds of the engine for scored requests.",
            ("teacher",),
            registry=self.registry,
        )
        self._computed_tokens = Counter(
            "lsm_teacher_computed_tokens",
            "Tokens that went through the model; a shared prompt counts once.",
            ("teacher",),
            registry=self.registry,
        )
        self._scored_rows = Counter(
            "lsm_teacher_scored_tokens",
            "Rows that were returned.",
            ("run",),
            registry=self.registry,
        )
        self._run_tokens = Counter(
            "lsm_teacher_run_tokens",
            "Tokens of scored requests, of prompts and continuations.",
            ("run",),
            registry=self.registry,
        )
        self._rejections = Counter(
            "lsm_teacher_rejections",
            "Requests to score that were refused.",
            ("run", "reason"),
            registry=self.registry,
        )
        self._top_k = Histogram(
            "lsm_teacher_top_k",
            "K of a scored request.",
            buckets=TOP_K,
            registry=self.registry,
        )
        self._replayed = Counter(
            "lsm_teacher_replayed_requests",
            "Requests that were answered with the reply to an equal one.",
            registry=self.registry,
        )
        self._realigned = RealignmentMetrics(self.registry)
        self._ready = Gauge(
            "lsm_teacher_ready", "1 while the server takes work, else 0.", registry=self.registry
        )
        self._queue_tokens = Gauge(
            "lsm_teacher_queue_tokens",
            "Tokens that wait for the engine.",
            ("teacher",),
            registry=self.registry,
        )
        self._queue_age = Gauge(
            "lsm_teacher_queue_age_seconds",
            "Seconds that the first request in the queue has waited.",
            ("teacher",),
            registry=self.registry,
        )
        self._inflight_tokens = Gauge(
            "lsm_teacher_inflight_tokens",
            "Tokens inside the engine.",
            ("teacher",),
            registry=self.registry,
        )

        self._connections = Gauge(
            "lsm_teacher_connections",
            "Open connections of each port; those of gRPC as they were at most a moment ago.",
            ("surface",),
            registry=self.registry,
        )
        self._connections_cut = Counter(
            "lsm_teacher_connections_cut",
            "Connections that the server ended or had no room for, by reason.",
            ("surface", "reason"),
            registry=self.registry,
        )

    def watch_connections(self, surface: str, table: Sized) -> None:
        """Counts the table's connections whenever the metrics are asked for."""
        self._connections.labels(surface).set_function(lambda: len(table))

    def connection_cut(self, surface: str, reason: str) -> None:
        self._connections_cut.labels(surface, reason).inc()

    def watch_ready(self, ready: Callable[[], bool]) -> None:
        self._ready.set_function(ready)

    def watch_queue(self, teacher: str, admission: Admission) -> None:
        """Reads a teacher's queue whenever the metrics are asked for."""
        queue = admission.queue
        self._queue_tokens.labels(teacher).set_function(lambda: queue.queued_tokens)
        self._queue_age.labels(teacher).set_function(admission.oldest_wait)
        self._inflight_tokens.labels(teacher).set_function(lambda: queue.inflight_tokens)

    def watch_passes(self, engines: Mapping[str, Engine]) -> None:
        """Reads how full the engines' passes were, of those that know (by name of teacher)."""
        self.registry.register(EnginePasses(engines))

    def watch_runs(self, admissions: Sequence[Admission]) -> None:
        """Reads what each run has waiting, over all teachers, when the metrics are asked for."""
        self.registry.register(RunQueues(admissions, self._run_label))

    def watch_bytes(self, budget: ByteBudget) -> None:
        """Reads what bodies and replies hold whenever the metrics are asked for."""
        self.registry.register(BytesInFlight(budget, self._run_label))

    @contextlib.contextmanager
    def rejections(self, run: str) -> Iterator[None]:
        """Counts the refusal, if one is raised inside, under the run's name."""
        try:
            yield
        except EngineError:
            raise
        except LsmError as error:
            self._rejections.labels(self._run_label(run), error.reason).inc()
            raise

    def request(self, surface: str, method: str, outcome: str, reason: str, seconds: float) -> None:
        self._requests.labels(surface, method, outcome, reason).inc()
        self._request_seconds.labels(surface, method).observe(seconds)

    def scored(self, request: ScoreRequest, rows: int, cost: Cost, total_seconds: float) -> None:
        """One request that the engine answered with ``rows`` rows, from arrival to reply."""
        teacher, run = request.teacher, self._run_label(request.run)
        overhead = total_seconds - cost.queue_seconds - cost.engine_seconds
        self._queue_seconds.labels(teacher).observe(cost.queue_seconds)
        self._overhead_seconds.labels(teacher).observe(max(0.0, overhead))
        self._engine_seconds.labels(teacher).inc(cost.engine_seconds)
        self._computed_tokens.labels(teacher).inc(cost.computed_tokens)
        self._scored_rows.labels(run).inc(rows)
        self._run_tokens.labels(run).inc(cost.job_tokens)
        self._top_k.observe(request.top_k)

    def realigned(self, request: ScoreRequest, totals: RealignmentTotals) -> None:
        """One request whose rows were realigned to another tokenizer."""
        tokenizer = self._tokenizer_label(request.tokenizer_hash)
        self._realigned.add(request.teacher, tokenizer, totals)

    def replayed(self) -> None:
        self._replayed.inc()

    def exposition(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def _tokenizer_label(self, tokenizer_hash: str) -> str:
        """The hash's beginning, for the first MAX_TOKENIZER_LABELS; the rest share one."""
        short = tokenizer_hash[:12]
        if short not in self._tokenizers:
            if len(self._tokenizers) >= MAX_TOKENIZER_LABELS:
                return OTHER_RUNS
            self._tokenizers.add(short)
        return short

    def _run_label(self, run: str) -> str:
        if run not in self._runs:
            if len(self._runs) >= MAX_RUN_LABELS:
                return OTHER_RUNS
            self._runs.add(run)
        return run
