"""The client for programs that run an asyncio loop."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, Self

import grpc
import grpc.aio

from teacher_proto import codec, tracing
from teacher_proto.channel import MAX_REPLY_BYTES, MAX_REQUEST_BYTES, client_options
from teacher_proto.client.credentials import ClientCredentials, Identification
from teacher_proto.client.diagnosis import connection_problem
from teacher_proto.client.registration import (
    FINGERPRINT_FIELD,
    Registrations,
    explained_hash,
    explained_unknown,
)
from teacher_proto.client.rendering import Rendering
from teacher_proto.client.reply_check import check_reply
from teacher_proto.client.retry import RetryPolicy
from teacher_proto.errors import (
    ConfigurationError,
    ContractMismatchError,
    DeadlineError,
    InvalidRequestError,
    LsmError,
    PoisonedReplyError,
    TeacherUnavailableError,
)
from teacher_proto.status import from_rpc_error
from teacher_proto.types import (
    Prompt,
    RegisteredTokenizers,
    RenderedPrompt,
    RenderRequest,
    ScoreReply,
    ScoreRequest,
    ServerInfo,
    ServerLimits,
    TeacherInfo,
    TokenizerLevels,
    TokenizerUpload,
)
from teacher_proto.v1 import teacher_pb2, tokenizer_pb2

SERVICE = "/teacher_proto.v1.TeacherScoringService"
START_ONE = "start one with `teacher-server serve --model PATH`, or correct the address"

log = logging.getLogger(__name__)


class AsyncTeacherClient:
    """Asks one teacher service for scores; belongs to the loop of its first call.

    A call is sent again, unchanged, until its own deadline, when there is no teacher
    or when the server named a time at which to come back. A reply is checked against
    its request before the caller gets it, and against what ``get_teacher`` returned
    last. When a server does not know a request's tokenizer (because it was restarted,
    is another replica or needed the room), a tokenizer that was passed to
    ``register_tokenizer`` is registered again, for the run of the request.

    Every call may raise InvalidRequestError, ContractMismatchError,
    UnknownTeacherError, OverloadedError, TeacherUnavailableError, DeadlineError,
    EngineError or PoisonedReplyError (docs/errors.md). Cancelling a call cancels
    it on the server.

    Args:
        address: ``host:port`` of the service's gRPC port.
        run: the training run of requests that name none; with credentials it may be
            empty, and is then the run that the credentials belong to.
        credentials: token and TLS.
        max_attempts: sends per call at most; None leaves only the deadline.
        max_request_bytes, max_reply_bytes: bounds on one message; a negative one is none, as
            in gRPC. The server is told the second one, and refuses what it makes larger
            before it computes it.
    """

    def __init__(
        self,
        address: str,
        *,
        run: str,
        credentials: ClientCredentials | None = None,
        max_attempts: int | None = None,
        max_request_bytes: int = MAX_REQUEST_BYTES,
        max_reply_bytes: int = MAX_REPLY_BYTES,
    ) -> None:
        if not all(address.rpartition(":")):
            raise ConfigurationError(
                f"{address!r} is not an address", where="address", fix="write it as host:port"
            )
        if max_attempts is not None and max_attempts < 1:
            raise ConfigurationError(f"is {max_attempts}, must be 1 or more", where="max_attempts")
        self.address = address
        self.run = run
        self._identification = Identification(credentials or ClientCredentials(), address)
        self._policy = RetryPolicy(max_attempts)
        self._max_request_bytes = max_request_bytes
        self._max_reply_bytes = max_reply_bytes
        self._options = client_options(
            address, max_request_bytes=max_request_bytes, max_reply_bytes=max_reply_bytes
        )
        self._random = random.Random()
        self._process = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._channel: grpc.aio.Channel | None = None
        self._has_connected = False
        self._closing = asyncio.Event()
        self._teachers: dict[str, TeacherInfo] = {}
        self._limits: ServerLimits | None = None
        self._registrations = Registrations()

    async def get_teacher(self, *, timeout: float) -> ServerInfo:  # noqa: ASYNC109
        """What the service offers. Later replies are checked against it, so that a
        teacher that changed is a ContractMismatchError until this is called again.

        Args:
            timeout: seconds for the whole call, retries included.
        """
        info = await self._describe(timeout)
        self._teachers = {teacher.name: teacher for teacher in info.teachers}
        return info

    async def _describe(self, seconds: float) -> ServerInfo:
        body = codec.serialize(teacher_pb2.GetTeacherRequest())
        info = codec.decode_server_info(
            await self._unary("GetTeacher", body, seconds, run=self.run)
        )
        self._limits = info.limits
        return info

    async def service_date(self, *, timeout: float) -> float | None:  # noqa: ASYNC109
        """The service's clock when it answers GetTeacher, seconds since the epoch, whole
        ones; None when the answer has no date."""
        body = codec.serialize(teacher_pb2.GetTeacherRequest())
        dates: list[str] = []
        await self._unary("GetTeacher", body, timeout, run=self.run, dates=dates)
        try:
            return parsedate_to_datetime(dates[0]).timestamp() if dates else None
        except ValueError:
            return None

    async def score(
        self,
        request: ScoreRequest,
        *,
        timeout: float,  # noqa: ASYNC109
    ) -> ScoreReply:
        """Scores one group; the reply keeps the contract or PoisonedReplyError is raised.

        Args:
            request: every attempt carries its request_id and the same bytes.
            timeout: seconds for the whole call, retries included.
        """
        if not request.run:
            request = replace(request, run=self.run)
        if request.max_reply_bytes is None:
            request = replace(request, max_reply_bytes=self._readable())
        body = codec.serialize(codec.encode_request(request))
        if 0 <= self._max_request_bytes < len(body):
            raise InvalidRequestError(
                f"is {len(body)} bytes, this client sends {self._max_request_bytes} at most",
                where="request",
                fix="send fewer continuations at once, or raise max_request_bytes",
                reason="MESSAGE_TOO_LARGE",
            )
        with tracing.span(
            "Score", "client", lsm_run=request.run, lsm_request_id=request.request_id
        ):
            try:
                data = await self._score(body, request, timeout)
            except InvalidRequestError as error:
                raise codec.explained_refusal(error) from None
            except ContractMismatchError as error:
                raise explained_unknown(error, self._teachers.get(request.teacher)) from None
            reply = codec.decode_reply(data)
        check_reply(request, reply, self._teachers.get(request.teacher))
        return reply

    async def render(
        self,
        prompts: Sequence[Prompt],
        *,
        teacher: str,
        timeout: float,  # noqa: ASYNC109
        text: bool = True,
        token_ids: bool = True,
    ) -> tuple[RenderedPrompt, ...]:
        """How a teacher reads prompts: one result for each, in their order.

        They are sent in as many requests as the server's limits need. A prompt that cannot
        be read is a result with a refusal. Raises ContractMismatchError for a server that is
        too old to render.

        Args:
            prompts: texts and conversations, as many as there are.
            timeout: seconds for all of them, retries included.
            text, token_ids: what to return besides the number of tokens.
        """
        clock = asyncio.get_running_loop().time
        deadline = clock() + timeout
        limits = self._limits
        if limits is None or limits.max_render_prompts is None:
            limits = (await self._describe(timeout)).limits
        if limits.max_render_prompts is None:
            raise codec.older_server("it does not render prompts for others (Render)", self.address)
        most = limits.max_request_bytes
        if self._max_request_bytes >= 0:
            most = min(most, self._max_request_bytes)
        rendering = Rendering(
            RenderRequest(self.run, teacher, text, token_ids, self._readable()),
            prompts,
            limits,
            most,
        )
        while (body := rendering.next_body()) is not None:
            left = max(deadline - clock(), 0.001)
            rendering.take(await self._unary("Render", body, left, run=self.run))
        return rendering.results

    async def register_tokenizer(
        self,
        upload: TokenizerUpload,
        *,
        timeout: float,  # noqa: ASYNC109
    ) -> TokenizerLevels:
        """Registers a student's tokenizer; returns its level for each teacher by name, and
        where the two tokenizers differ.

        Args:
            upload: kept, and sent again when a later request meets a server that does
                not know the tokenizer.
            timeout: seconds for the whole call, retries included.
        """
        if not upload.run:
            upload = replace(upload, run=self.run)
        until = time.monotonic() + timeout
        parts = [codec.serialize(message) for message in codec.encode_tokenizer(upload)]

        async def send(channel: grpc.aio.Channel, seconds: float) -> bytes:
            method: Any = channel.stream_unary(f"{SERVICE}/RegisterTokenizer", None, None)
            metadata = self._identification.metadata()
            reply: bytes = await method(iter(parts), timeout=seconds, metadata=metadata)
            return reply

        try:
            reply = await self._until_deadline("RegisterTokenizer", send, timeout)
        except InvalidRequestError as error:
            if error.where != FINGERPRINT_FIELD:
                raise
            teachers = await self._teachers_within(until - time.monotonic())
            raise explained_hash(error, teachers) from None
        levels = codec.decode_levels(reply, upload.tokenizer_hash)
        self._registrations.registered(upload)
        return levels

    async def list_tokenizers(self, *, timeout: float) -> RegisteredTokenizers:  # noqa: ASYNC109
        """What this client's run has registered; without credentials and without a run, what
        all runs have.

        Args:
            timeout: seconds for the whole call, retries included.
        """
        body = codec.serialize(tokenizer_pb2.ListTokenizersRequest(run=self.run))
        return codec.decode_registered(
            await self._unary("ListTokenizers", body, timeout, run=self.run)
        )

    async def drop_tokenizer(
        self,
        tokenizer_hash: str,
        *,
        timeout: float,  # noqa: ASYNC109
    ) -> bool:
        """Makes the server forget what this client's run registered under a fingerprint; this
        client does not register it again by itself.

        Args:
            timeout: seconds for the whole call, retries included.

        Returns:
            Whether there was such a registration.
        """
        body = codec.serialize(
            tokenizer_pb2.DropTokenizerRequest(run=self.run, tokenizer_hash=tokenizer_hash)
        )
        self._registrations.dropped(tokenizer_hash)
        reply = await self._unary("DropTokenizer", body, timeout, run=self.run)
        message = tokenizer_pb2.DropTokenizerResponse()
        return codec.parse(reply, message, PoisonedReplyError).dropped

    def _readable(self) -> int | None:
        """What a server has to know of the size of replies; None where any may be read. It is
        the same before and after the server's limits are known: so are a request's bytes."""
        return self._max_reply_bytes if self._max_reply_bytes >= 0 else None

    async def _teachers_within(self, seconds: float) -> Sequence[TeacherInfo]:
        """The server's teachers; empty where they cannot be had in time."""
        try:
            return (await self._describe(seconds)).teachers if seconds > 0 else ()
        except LsmError:
            return ()

    async def close(self) -> None:
        """Cancels what is in flight (it raises TeacherUnavailableError) and disconnects."""
        self._closing.set()
        if self._channel is not None and os.getpid() == self._process:
            await self._channel.close(None)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def _score(self, body: bytes, request: ScoreRequest, seconds: float) -> bytes:
        """The reply's bytes; registers a tokenizer again that the server has forgotten."""
        run, tokenizer_hash = request.run, request.tokenizer_hash
        clock = asyncio.get_running_loop().time
        deadline = clock() + seconds
        attempts = 0
        while True:
            seen = self._registrations.times(run, tokenizer_hash)
            try:
                return await self._unary("Score", body, seconds)
            except ContractMismatchError as error:
                attempts += 1
                most = self._policy.max_attempts
                if not self._registrations.can_mend(error, tokenizer_hash) or attempts == most:
                    raise
                # At once the first time; a server that forgets again and again gets time.
                delay = self._policy.delay(error, attempts, self._random) if attempts > 1 else 0.0
                if (left := deadline - clock() - delay) <= 0:
                    raise
                log.info("%s does not know the tokenizer; registering it again", self.address)
            await self._pause(delay)
            register = partial(self.register_tokenizer, timeout=left)
            await self._registrations.again(run, tokenizer_hash, seen, register)
            seconds = max(deadline - clock(), 0.001)

    async def _unary(
        self,
        name: str,
        body: bytes,
        seconds: float,
        *,
        run: str = "",
        dates: list[str] | None = None,
    ) -> bytes:
        """The reply's bytes; ``dates`` takes what the server sent as its ``date``."""

        async def send(channel: grpc.aio.Channel, left: float) -> bytes:
            method: Any = channel.unary_unary(f"{SERVICE}/{name}", None, None)
            metadata = (*self._identification.metadata(run=run), *tracing.outgoing())
            call = method(body, timeout=left, metadata=metadata)
            reply: bytes = await call
            if dates is not None:
                dates[:] = [v for k, v in await call.initial_metadata() if k == "date"]
            return reply

        return await self._until_deadline(name, send, seconds)

    async def _until_deadline(
        self,
        name: str,
        send: Callable[[grpc.aio.Channel, float], Awaitable[bytes]],
        seconds: float,
    ) -> bytes:
        """Sends the call, repeatedly if need be, until a reply, a final error or the deadline."""
        if not 0 < seconds < math.inf:
            raise InvalidRequestError(f"is {seconds} seconds, must be > 0", where="timeout")
        channel = self._connected()
        clock = asyncio.get_running_loop().time
        deadline = clock() + seconds
        attempts = 0
        while True:
            attempts += 1
            try:
                reply = await send(channel, max(deadline - clock(), 0.001))
                self._has_connected = True
                return reply
            except grpc.aio.AioRpcError as failure:
                error = self._explained(failure, name, seconds, channel)
                await self._check_connection(error, channel, deadline - clock())
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if self._closing.is_set() and task is not None and not task.cancelling():
                    raise self._closed() from None
                raise
            if not self._policy.allows(error, attempts):
                raise error
            delay = self._policy.delay(error, attempts, self._random)
            if clock() + delay >= deadline:
                raise _after(error, attempts, seconds)
            log.info("%s at %s: %s; again in %.2f s", name, self.address, error.what, delay)
            await self._pause(delay)

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._closing.wait(), seconds)
        except TimeoutError:
            return
        raise self._closed()

    def _connected(self) -> grpc.aio.Channel:
        if self._closing.is_set():
            raise self._closed()
        if os.getpid() != self._process:
            raise ConfigurationError(
                "a client cannot be used after a fork",
                where=self.address,
                fix="make a new client in the child process, or start it with spawn",
                reason="USED_AFTER_FORK",
            )
        loop = asyncio.get_running_loop()
        if self._channel is None or self._loop is None:
            self._loop = loop
            self._channel = self._identification.channel(self.address, self._options)
        elif loop is not self._loop:
            raise ConfigurationError(
                "a client belongs to the event loop of its first call",
                where=self.address,
                fix="make one client per loop, or use TeacherClient",
                reason="OTHER_LOOP",
            )
        return self._channel

    async def _check_connection(
        self, error: LsmError, channel: grpc.aio.Channel, left: float
    ) -> None:
        """Raises the reason when there never was a connection and waiting cannot bring one."""
        if channel.get_state() is grpc.ChannelConnectivity.READY:
            self._has_connected = True
        if self._has_connected or error.where != self.address:
            return
        if isinstance(error, TeacherUnavailableError):
            problem = await connection_problem(self.address, self._identification.context, left)
            if problem is not None:
                raise problem from None

    def _explained(
        self,
        failure: grpc.aio.AioRpcError,
        name: str,
        timeout: float,
        channel: grpc.aio.Channel,
    ) -> LsmError:
        error = from_rpc_error(failure)
        if error.where:
            return error
        if isinstance(error, DeadlineError):
            if channel.get_state() is not grpc.ChannelConnectivity.READY:
                return TeacherUnavailableError(
                    f"no connection within {timeout:g} s", where=self.address, fix=START_ONE
                )
            return DeadlineError(
                f"{name} was not answered within {timeout:g} s",
                where=self.address,
                fix="allow more time, ask for less at once, or look at the teacher's load",
            )
        gone = isinstance(error, TeacherUnavailableError)
        return type(error)(
            f"no teacher answers ({error.what})" if gone else error.what,
            where=self.address,
            fix=error.fix or (START_ONE if gone else ""),
            reason=error.reason,
            retry_after=error.retry_after,
        )

    def _closed(self) -> TeacherUnavailableError:
        return TeacherUnavailableError(
            "this client was closed", where=self.address, fix="make a new one", reason="CLOSED"
        )


def _after(error: LsmError, attempts: int, timeout: float) -> LsmError:
    """The same error, saying that the deadline left no room for another attempt."""
    return type(error)(
        f"{error.what} (attempts: {attempts}; allowed time: {timeout:g} s)",
        where=error.where,
        fix=error.fix,
        reason=error.reason,
        retry_after=error.retry_after,
    )
