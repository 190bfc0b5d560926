"""Logs of the server: one JSON object per line on stderr (``stderr``).

A request is one line at info. Whatever else is logged while it is in progress carries its
run and request id, and its trace id where there is a trace. Contents (token ids, text,
messages) are never logged; run and request id only once they are known to be printable
and short.
"""

from __future__ import annotations

import contextvars
import json
import logging
from datetime import UTC, datetime
from typing import Any, TextIO

from teacher_proto import tracing

_names: contextvars.ContextVar[dict[str, str]] = contextvars.ContextVar("names")


class JsonFormatter(logging.Formatter):
    """time, level, event and the fields given as ``extra={"fields": {...}}``."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        line.update(_names.get({}))
        line.update(getattr(record, "fields", {}))
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def bind(**names: str) -> None:
    """Puts these fields, and the trace's id where there is a trace, on every later line
    of the current task and those it starts."""
    trace_id = tracing.trace_id()
    _names.set(names | {"trace_id": trace_id} if trace_id else names)


def configure_logging(level: str, stream: TextIO) -> None:
    """Sends this process's logs to ``stream``; those of libraries from warning on."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonFormatter())
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("teacher_server").setLevel(level.upper())
