"""The metrics of teacher-server, from the registry that /metrics shows."""

from __future__ import annotations

from prometheus_client.core import Metric

from teacher_server.queue.budget import ByteBudget
from teacher_server.telemetry.metrics import Metrics
from tools.reference.markdown import code, section, table

LABELS = {
    "mask_reason": "why a realigned row is masked or coarse ([realignment](../realignment.md))",
    "method": "`Score`, `GetTeacher` or `RegisterTokenizer`, on either wire",
    "outcome": "`ok`; `refused` (the request, the state or the load does not allow it); "
    "`failed` (the server's fault); `cancelled` (nobody waits for it any more)",
    "position_class": "class of a realigned position",
    "reason": "the error's reason; empty when there is none",
    "run": "name of the run; the first hundred have a value of their own, the rest share one",
    "surface": "`grpc` or `http`",
    "teacher": "name of the teacher",
    "tokenizer": "first characters of the hash of the student's tokenizer",
}


def sections() -> list[str]:
    """The metrics and their labels as Markdown.

    Raises:
        KeyError: a label has no meaning here.
    """
    metrics = Metrics()
    metrics.watch_passes({})
    metrics.watch_runs([])
    metrics.watch_bytes(ByteBudget(1, 1))
    rows: list[tuple[str, ...]] = []
    labels: set[str] = set()
    for family in metrics.registry.collect():
        suffix = "_total" if family.type == "counter" else ""
        own = _labels(metrics, family)
        labels.update(own)
        name = code(f"{family.name}{suffix}")
        rows.append((name, family.type, ", ".join(map(code, own)), family.documentation))
    meanings = ((code(label), LABELS[label]) for label in sorted(labels))
    return [
        section(
            "Metrics",
            "A histogram has the series `_bucket`, `_sum` and `_count`.",
            table(("metric", "type", "labels", "meaning"), sorted(rows)),
        ),
        section("Labels", "Their numbers are bounded.", table(("label", "meaning"), meanings)),
    ]


def _labels(metrics: Metrics, family: Metric) -> tuple[str, ...]:
    """The labels of a family, which nothing public of prometheus_client shows without samples."""
    collector = metrics.registry._names_to_collectors.get(family.name)
    names: tuple[str, ...] = getattr(family, "_labelnames", ())
    return tuple(names or getattr(collector, "_labelnames", ()))
