"""Metrics that are read from the queues and the engines whenever Prometheus asks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from teacher_server.engines.base import CountsPasses, Engine
from teacher_server.queue.admission import Admission
from teacher_server.queue.budget import ByteBudget


class RunQueues(Collector):
    """What waits now, by run: nothing is kept between two readings."""

    def __init__(self, admissions: Sequence[Admission], label: Callable[[str], str]) -> None:
        self._admissions = admissions
        self._label = label

    def collect(self) -> Iterator[GaugeMetricFamily]:
        waiting: dict[str, tuple[int, float]] = {}
        for admission in self._admissions:
            for run, (tokens, age) in admission.by_run().items():
                name = self._label(run)
                other_tokens, other_age = waiting.get(name, (0, 0.0))
                waiting[name] = other_tokens + tokens, max(other_age, age)
        tokens_of = GaugeMetricFamily(
            "lsm_teacher_run_queue_tokens",
            "Tokens of the run that wait, over all teachers.",
            labels=("run",),
        )
        age_of = GaugeMetricFamily(
            "lsm_teacher_run_queue_age_seconds",
            "Seconds that the first waiting request of the run has waited.",
            labels=("run",),
        )
        for name, (tokens, age) in waiting.items():
            tokens_of.add_metric((name,), tokens)
            age_of.add_metric((name,), age)
        yield tokens_of
        yield age_of


class BytesInFlight(Collector):
    """What bodies and replies hold now, by run."""

    def __init__(self, budget: ByteBudget, label: Callable[[str], str]) -> None:
        self._budget = budget
        self._label = label

    def collect(self) -> Iterator[GaugeMetricFamily]:
        held: dict[str, int] = {}
        for run, size in self._budget.by_run().items():
            name = self._label(run)
            held[name] = held.get(name, 0) + size
        family = GaugeMetricFamily(
            "lsm_teacher_run_bytes_in_flight",
            "Bytes that request bodies and replies of the run hold; those of callers without "
            "credentials are under the empty name.",
            labels=("run",),
        )
        for name, size in held.items():
            family.add_metric((name,), size)
        yield family


class EnginePasses(Collector):
    """Forward passes by teacher; the engine counts them in its own thread."""

    def __init__(self, engines: Mapping[str, Engine]) -> None:
        self._engines = engines

    def collect(self) -> Iterator[Metric]:
        label = ("teacher",)
        passes = CounterMetricFamily(
            "lsm_teacher_passes",
            "Forward passes; only the engine transformers counts them.",
            labels=label,
        )
        tokens = CounterMetricFamily(
            "lsm_teacher_pass_tokens",
            "Tokens that forward passes read, padding left out.",
            labels=label,
        )
        capacity = GaugeMetricFamily(
            "lsm_teacher_pass_capacity_tokens",
            "Tokens that one forward pass can read.",
            labels=label,
        )
        for name, engine in self._engines.items():
            room = engine.description.pass_tokens
            if not isinstance(engine, CountsPasses) or room is None:
                continue
            count = engine.pass_count()
            passes.add_metric((name,), count.passes)
            tokens.add_metric((name,), count.tokens)
            capacity.add_metric((name,), room)
        yield from (passes, tokens, capacity)
