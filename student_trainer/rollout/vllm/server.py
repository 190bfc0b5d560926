"""A vLLM server that somebody else has started, over its HTTP interface.

Responses come from its generation endpoint for token ids, each on a connection of its own that
streams the tokens; workers are called by its development endpoints (docs/rollouts.md).
Nothing here imports vLLM.
"""

from __future__ import annotations

import json
import queue
import socket
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

from teacher_proto.errors import ConfigurationError, LsmError

from student_trainer.rollout.vllm.core import Request, Response, Writing, died
from student_trainer.rollout.vllm.options import SUPPORTED
from student_trainer.rollout.vllm.sampler import LOGPROBS

WHERE = "rollout.vllm.address"
OK = 200
EVENT = b"data: "
DONE = b"[DONE]"
# Requests that wait at the server, for each that it may be writing.
AHEAD = 2


class ServerCore:
    """A vLLM server; implements ``core.Core``.

    Args:
        address: ``http://HOST:PORT``.
        sequences: responses that it writes at a time.
        answer_seconds: how long it may say nothing.

    Raises:
        ConfigurationError: it does not answer, is of another version, or has not been started
            with what the trainer needs.
    """

    def __init__(self, address: str, sequences: int, answer_seconds: float) -> None:
        self._address = address
        self._sequences = sequences
        self._answer_seconds = answer_seconds
        try:
            found = str(self._get("/version").get("version"))
            self._workers = int(self._get("/get_world_size").get("world_size", 0))
        except LsmError as error:
            raise ConfigurationError(
                f"{address}: {error.what}",
                where=WHERE,
                fix="start it as docs/rollouts.md says, with VLLM_SERVER_DEV_MODE=1",
            ) from error
        if not found.startswith(f"{SUPPORTED}."):
            raise ConfigurationError(
                f"the server at {address} is vLLM {found}, and the trainer is written for "
                f"{SUPPORTED}",
                where=WHERE,
                fix=f"serve with vllm {SUPPORTED}",
            )

    @property
    def workers(self) -> int:
        """See ``core.Core``."""
        return self._workers

    def call(self, method: str, *arguments: Any) -> list[Any]:
        """See ``core.Core``."""
        answer = self._post("/collective_rpc", {"method": method, "args": list(arguments)})
        results: list[Any] = answer["results"]
        return results

    def write(self, requests: Sequence[Request]) -> Generator[Response]:
        """See ``core.Core``."""
        stop, found = threading.Event(), queue.Queue[Response | LsmError]()
        streams: set[socket.socket] = set()
        heard = time.monotonic()

        def hear() -> None:
            nonlocal heard
            heard = time.monotonic()

        def one(place: int) -> None:
            if stop.is_set():
                return
            connection = self._connection()
            try:
                connection.connect()
                stream = connection.sock
                # One that waits at the server is silent for as long as others are written: it is
                # the silence of all that counts.
                stream.settimeout(None)
                streams.add(stream)
                try:
                    # Whoever stops closes the streams that are there, and the others see it here.
                    if not stop.is_set():
                        found.put(self._response(connection, place, requests[place], hear))
                finally:
                    streams.discard(stream)
            except LsmError as error:
                found.put(error)
            except Exception as error:
                found.put(died(f"ended while it wrote: {type(error).__name__}: {error}", WHERE))
            finally:
                connection.close()

        with ThreadPoolExecutor(min(len(requests), AHEAD * self._sequences)) as threads:
            try:
                for place in range(len(requests)):
                    threads.submit(one, place)
                for _ in requests:
                    result = self._next(found, lambda: time.monotonic() - heard)
                    if isinstance(result, LsmError):
                        raise result
                    yield result
            finally:
                # A connection that is closed is a request that the server gives up.
                stop.set()
                for stream in list(streams):
                    with suppress(OSError):
                        stream.shutdown(socket.SHUT_RDWR)

    def reset_prefix_cache(self) -> bool:
        """See ``core.Core``."""
        self._post("/reset_prefix_cache", None)
        return True

    def sleep(self) -> None:
        """Not of a server: it shares no memory with the trainer."""

    def wake_up(self) -> None:
        """As ``sleep``."""

    def close(self) -> None:
        """Nothing was started."""

    def _next(
        self, found: queue.Queue[Response | LsmError], silence: Callable[[], float]
    ) -> Response | LsmError:
        """The next that has ended. ``silence``: seconds since the server has said anything."""
        while True:
            left = self._answer_seconds - silence()
            try:
                return found.get(timeout=max(left, 0.0))
            except queue.Empty:
                if silence() >= self._answer_seconds:
                    raise died(
                        f"has said nothing for {self._answer_seconds:g} seconds (writing)",
                        "rollout.vllm.answer_seconds",
                    ) from None

    def _response(
        self, connection: HTTPConnection, place: int, request: Request, hear: Callable[[], None]
    ) -> Response:
        writing = Writing(place, request)
        for choice in self._choices(connection, request, hear):
            said = (choice["logprobs"] or {}).get("content") or ()
            for token, own in zip(choice["token_ids"] or (), said, strict=True):
                if writing.add(token, own["logprob"], own["rank"]):
                    return writing.response(finished=True)
            reason = choice["finish_reason"]
            if reason in ("stop", "length"):
                return writing.response(finished=reason == "stop")
            if reason is not None:
                raise died(f"has given a response up ({reason})", WHERE)
        raise died("has ended a response in the middle", WHERE)

    def _choices(
        self, connection: HTTPConnection, request: Request, hear: Callable[[], None]
    ) -> Iterator[dict[str, Any]]:
        """What the server says of a response, token by token; ``hear`` is called at every line."""
        body = {
            "token_ids": list(request.prompt_ids),
            "stream": True,
            "sampling_params": {
                "max_tokens": request.draws.limit,
                "stop_token_ids": list(request.stop_ids),
                "ignore_eos": True,
                "detokenize": False,
                "logprobs": LOGPROBS,
                "extra_args": request.draws.to_extra_args(),
            },
        }
        answer = self._send(connection, "POST", "/inference/v1/generate", body)
        for line in answer:
            hear()
            if not line.startswith(EVENT) or line[len(EVENT) :].strip() == DONE:
                continue
            event = json.loads(line[len(EVENT) :])
            if "error" in event:
                raise died(f"cannot write a response: {_said(event)}", WHERE)
            yield from event["choices"]

    def _connection(self) -> HTTPConnection:
        parts = urlsplit(self._address)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        return kind(parts.hostname or "", parts.port, timeout=self._answer_seconds)

    def _get(self, path: str) -> dict[str, Any]:
        return self._asked("GET", path, None)

    def _post(self, path: str, body: Any) -> dict[str, Any]:
        return self._asked("POST", path, body)

    def _asked(self, method: str, path: str, body: Any) -> dict[str, Any]:
        connection = self._connection()
        try:
            text = self._send(connection, method, path, body).read()
            answer = json.loads(text) if text else {}
        except (OSError, HTTPException, ValueError) as error:
            raise died(f"does not answer {path}: {error}", WHERE) from error
        finally:
            connection.close()
        return answer if isinstance(answer, dict) else {}

    def _send(self, connection: HTTPConnection, method: str, path: str, body: Any) -> HTTPResponse:
        """The answer to a request; LsmError for another status than 200."""
        data = None if body is None else json.dumps(body)
        connection.request(method, path, data, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        if answer.status != OK:
            text = answer.read().decode(errors="replace")
            try:
                said = _said(json.loads(text))
            except ValueError:
                said = text[:500]
            raise LsmError(f"vLLM answers {path} with {answer.status}: {said}", where=WHERE)
        return answer


def _said(document: Any) -> str:
    """The message of an error of vLLM's."""
    error = document.get("error", document) if isinstance(document, dict) else document
    return str(error.get("message", error) if isinstance(error, dict) else error)[:2000]
