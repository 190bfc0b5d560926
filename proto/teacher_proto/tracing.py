"""OpenTelemetry spans of both sides, joined by W3C trace context (the extra ``[otel]``).

Spans are made only in a process that has set OpenTelemetry up: the application that
uses the client, or our programs by ``export_traces``. Elsewhere a function here is a
look-up and returns, and nothing is imported.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from typing import Any, Literal

from teacher_proto.errors import ConfigurationError

SCOPE = "lsm-distill"
ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
Headers = tuple[tuple[str, str], ...]


def export_traces(service: str) -> Callable[[], None]:
    """Sends this program's spans to the OTLP endpoint its environment names, if any.

    Args:
        service: ``service.name``, unless OTEL_SERVICE_NAME is set.

    Returns:
        What sends the last spans; to be called at the end.

    Raises:
        ConfigurationError: an endpoint is named and the extra is not installed.
    """
    named = next((name for name in ENDPOINTS if os.environ.get(name)), None)
    if named is None or os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return lambda: None
    if not _installed():
        from teacher_proto.program.distribution import install_command

        raise ConfigurationError(
            "traces are asked for and OpenTelemetry is not installed",
            where=named,
            fix=f"{install_command('otel')}; or unset the variable",
        )
    from opentelemetry import trace
    from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    os.environ.setdefault("OTEL_SERVICE_NAME", service)
    provider = TracerProvider(resource=Resource.create())
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    trace.set_tracer_provider(provider)

    def flush() -> None:
        provider.shutdown()

    return flush


def _set_up() -> Any:
    """The module ``opentelemetry.trace`` where somebody has given it a provider, else None."""
    trace: Any = sys.modules.get("opentelemetry.trace")
    if trace is None or isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider):
        return None
    return trace


def _installed() -> bool:
    try:
        return find_spec("opentelemetry.exporter.otlp.proto.grpc") is not None
    except ModuleNotFoundError:
        return False


@contextlib.contextmanager
def span(
    name: str,
    kind: Literal["internal", "client", "server"] = "internal",
    *,
    headers: Iterable[tuple[str, Any]] = (),
    **attributes: str | int | float,
) -> Iterator[Any]:
    """A span around the body; an error ends it with its status and reason.

    Args:
        headers: of an incoming call; a traceparent among them is the parent.
        attributes: a name's first underscore stands for a dot (``lsm_run``: ``lsm.run``).

    Yields:
        The span; None where there is no tracing.
    """
    trace = _set_up()
    if trace is None:
        yield None
        return
    context = None
    carrier = {key: value for key, value in headers if isinstance(value, str)}
    if carrier:
        from opentelemetry import propagate

        context = propagate.extract(carrier)
    with trace.get_tracer(SCOPE).start_as_current_span(
        name,
        context=context,
        kind=getattr(trace.SpanKind, kind.upper()),
        attributes={key.replace("_", ".", 1): value for key, value in attributes.items()},
        record_exception=False,
        set_status_on_exception=False,
    ) as made:
        try:
            yield made
        except BaseException as error:
            reason = getattr(error, "reason", type(error).__name__)
            made.set_attribute("error.type", reason)
            made.set_status(trace.StatusCode.ERROR, reason)
            raise


def outgoing() -> Headers:
    """Headers that carry the current span to the other side; () without tracing."""
    if _set_up() is None:
        return ()
    from opentelemetry import propagate

    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return tuple(carrier.items())


def trace_id() -> str:
    """The current trace's id, 32 hexadecimal digits; empty without one."""
    trace = _set_up()
    if trace is None:
        return ""
    context = trace.get_current_span().get_span_context()
    return f"{context.trace_id:032x}" if context.is_valid else ""
