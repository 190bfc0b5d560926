"""One request as metrics and logs see it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from teacher_proto.errors import EngineError, LsmError

from teacher_server.failures import as_exception, is_ending
from teacher_server.telemetry.metrics import Metrics

request_log = logging.getLogger("teacher_server.request")


@dataclass
class Observation:
    """What is known about a request when it ends; ``fields`` go to its log line."""

    fields: dict[str, Any] = field(default_factory=dict)


@contextlib.contextmanager
def observed(metrics: Metrics, surface: str, method: str) -> Iterator[Observation]:
    """Counts and logs one request, however it ends.

    Outcomes: ok; refused (the request, the state or the load does not allow it);
    failed (the server's fault); cancelled (nobody waits for it any more). A failure
    that is no ``Exception`` is raised as one.
    """
    started = time.monotonic()
    seen = Observation()
    outcome, reason = "ok", ""
    try:
        yield seen
    except asyncio.CancelledError:
        outcome, reason = "cancelled", "CANCELLED"
        raise
    except LsmError as error:
        fault = isinstance(error, EngineError)
        gone = error.reason == "CLIENT_CLOSED"
        outcome = "failed" if fault else "cancelled" if gone else "refused"
        reason = error.reason
        raise
    except BaseException as error:
        outcome, reason = "failed", "INTERNAL"
        if is_ending(error):
            raise
        raise as_exception(error) from None
    finally:
        seconds = time.monotonic() - started
        metrics.request(surface, method, outcome, reason, seconds)
        head = {"surface": surface, "method": method, "outcome": outcome, "reason": reason}
        fields = head | {"total_seconds": round(seconds, 6)} | seen.fields
        request_log.info("request", extra={"fields": fields})
