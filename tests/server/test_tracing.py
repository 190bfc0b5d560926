"""One trace over client and server, by a real socket; nothing of it where it is not asked for."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from teacher_proto.errors import ConfigurationError, EngineError, InvalidRequestError
from teacher_proto.tracing import export_traces

from teacher_server.telemetry.log import JsonFormatter
from tests.server.processes import LONG, ROOT
from tests.server.running import Running


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    """Every span of this process; OpenTelemetry takes one provider per process."""
    found = InMemorySpanExporter()
    provider = trace.get_tracer_provider()
    if not isinstance(provider, TracerProvider):
        provider = TracerProvider()
        trace.set_tracer_provider(provider)
    provider.add_span_processor(SimpleSpanProcessor(found))
    return found


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> Iterator[InMemorySpanExporter]:
    exporter.clear()
    yield exporter
    exporter.clear()


def by_kind(spans: InMemorySpanExporter) -> dict[tuple[str, str], ReadableSpan]:
    return {(span.name, span.kind.name): span for span in spans.get_finished_spans()}


def parent_of(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


async def test_one_trace_spans_both_sides(server: Running, spans: InMemorySpanExporter) -> None:
    with trace.get_tracer("test").start_as_current_span("step"):
        await server.score(server.request(run="traced", request_id="one"))
    found = by_kind(spans)
    step, client = found["step", "INTERNAL"], found["Score", "CLIENT"]
    answered = found["Score", "SERVER"]
    assert len({span.context.trace_id for span in found.values()}) == 1
    assert parent_of(client) == step.context.span_id
    assert parent_of(answered) == client.context.span_id
    for name in ("admission", "engine"):
        assert parent_of(found[name, "INTERNAL"]) == answered.context.span_id
    assert found["admission", "INTERNAL"].end_time <= found["engine", "INTERNAL"].start_time
    assert client.attributes is not None
    assert client.attributes["lsm.run"] == "traced"
    assert client.attributes["lsm.request_id"] == "one"


async def test_http_joins_the_caller_s_trace(server: Running, spans: InMemorySpanExporter) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    body = {
        "prompt": {"token_ids": [1, 2]},
        "continuations": [{"token_ids": [3]}],
        "top_k": 2,
        "temperature": 1.0,
    }
    headers = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"}
    reply = await server.http.post("/v1/score", json=body, headers=headers)
    assert reply.status_code == 200
    answered = by_kind(spans)["Score", "SERVER"]
    assert f"{answered.context.trace_id:032x}" == trace_id


async def test_a_refusal_is_an_error_on_both_sides(
    server: Running, spans: InMemorySpanExporter
) -> None:
    with pytest.raises(InvalidRequestError):
        await server.score(replace(server.request(), top_k=10**6))
    found = by_kind(spans)
    for kind in ("CLIENT", "SERVER"):
        span = found["Score", kind]
        assert span.status.status_code is trace.StatusCode.ERROR
        assert span.attributes is not None
        assert span.attributes["error.type"] == "LIMIT_EXCEEDED"
        assert not span.events, "an exception's text may quote a request"
    assert ("engine", "INTERNAL") not in found


async def test_every_log_line_of_a_request_names_it(
    server: Running, spans: InMemorySpanExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    formatter = JsonFormatter()
    lines: list[dict[str, str]] = []

    class Sink(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(json.loads(formatter.format(record)))

    async def fail(job: object) -> None:
        raise RuntimeError("broken by the test")

    engine = server.engines["default"]
    monkeypatch.setattr(engine, "score", fail)
    sink = Sink()
    logger = logging.getLogger("teacher_server")
    logger.addHandler(sink)
    level = logger.level
    logger.setLevel(logging.INFO)
    try:
        with trace.get_tracer("test").start_as_current_span("step"), pytest.raises(EngineError):
            await server.score(server.request(run="named", request_id="r-1"))
    finally:
        logger.removeHandler(sink)
        logger.setLevel(level)
    failure = next(line for line in lines if "traceback" in line)
    request = next(line for line in lines if line["event"] == "request")
    for line in (failure, request):
        assert (line["run"], line["request_id"]) == ("named", "r-1")
        assert len(line["trace_id"]) == 32
    assert request["outcome"] == "failed"


def test_nothing_of_opentelemetry_is_imported_unasked() -> None:
    script = (
        "import sys, teacher_proto, teacher_proto.tracing as t\n"
        "with t.span('x', 'client') as made: pass\n"
        "assert made is None and t.outgoing() == () and t.trace_id() == ''\n"
        "t.export_traces('x')()\n"
        "assert not [m for m in sys.modules if m.startswith('opentelemetry')]\n"
        # FastAPI loads OpenTelemetry's interface by itself; nobody sets it up.
        "import teacher_server.commands.serve\n"
        "with t.span('x', 'server', headers=[('traceparent', 'x')]) as made: pass\n"
        "assert made is None and t.outgoing() == () and t.trace_id() == ''\n"
        "assert not [m for m in sys.modules if m.startswith('opentelemetry.sdk')]\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT, timeout=LONG)


def test_traces_asked_for_without_the_extra_are_refused_by_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317")
    monkeypatch.setattr("teacher_proto.tracing._installed", lambda: False)
    with pytest.raises(ConfigurationError, match=r"pip install '\.\[otel\]'"):
        export_traces("x")
