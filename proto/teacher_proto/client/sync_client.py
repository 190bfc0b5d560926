"""The client for programs without an event loop: any thread may use it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, Self, TypeVar

from teacher_proto.channel import MAX_REPLY_BYTES, MAX_REQUEST_BYTES
from teacher_proto.client.async_client import AsyncTeacherClient
from teacher_proto.client.credentials import ClientCredentials
from teacher_proto.errors import ConfigurationError, TeacherUnavailableError
from teacher_proto.types import (
    Prompt,
    RegisteredTokenizers,
    RenderedPrompt,
    ScoreReply,
    ScoreRequest,
    ServerInfo,
    TokenizerLevels,
    TokenizerUpload,
)

T = TypeVar("T")
# Seconds that calls cancelled by close have to unwind.
UNWIND_SECONDS = 5.0


class TeacherClient:
    """AsyncTeacherClient over one background loop thread.

    Arguments and errors are those of AsyncTeacherClient. All methods may be called
    from any thread. A callback of a future runs on the loop's own thread, where nothing
    may wait: it may call ``submit``, ``start`` and ``close``. A forked child must make
    its own client.
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
        self._client = AsyncTeacherClient(
            address,
            run=run,
            credentials=credentials,
            max_attempts=max_attempts,
            max_request_bytes=max_request_bytes,
            max_reply_bytes=max_reply_bytes,
        )
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._serve, name=f"teacher-client {address}", daemon=True
        )
        self._thread.start()

    @property
    def address(self) -> str:
        return self._client.address

    def get_teacher(self, *, timeout: float) -> ServerInfo:
        return self._wait(self.start(lambda client: client.get_teacher(timeout=timeout)))

    def service_date(self, *, timeout: float) -> float | None:
        return self._wait(self.start(lambda client: client.service_date(timeout=timeout)))

    def score(self, request: ScoreRequest, *, timeout: float) -> ScoreReply:
        return self._wait(self.submit(request, timeout=timeout))

    def render(
        self,
        prompts: Sequence[Prompt],
        *,
        teacher: str,
        timeout: float,
        text: bool = True,
        token_ids: bool = True,
    ) -> tuple[RenderedPrompt, ...]:
        return self._wait(
            self.start(
                lambda client: client.render(
                    prompts, teacher=teacher, timeout=timeout, text=text, token_ids=token_ids
                )
            )
        )

    def submit(
        self, request: ScoreRequest, *, timeout: float
    ) -> concurrent.futures.Future[ScoreReply]:
        """Starts ``score`` and returns at once; cancelling the future cancels the call."""
        return self.start(lambda client: client.score(request, timeout=timeout))

    def start(
        self, work: Callable[[AsyncTeacherClient], Coroutine[Any, Any, T]]
    ) -> concurrent.futures.Future[T]:
        """Runs ``work`` with the asyncio client on the loop's thread; returns at once.

        For work of several calls: it may wait, gather and limit them with asyncio's own
        means. Cancelling the future cancels the work.

        Raises:
            TeacherUnavailableError: the client was closed.
            ConfigurationError: it is used after a fork.
        """
        if os.getpid() != self._process:
            raise ConfigurationError(
                "a client cannot be used after a fork",
                where=self.address,
                fix="make a new client in the child process, or start it with spawn",
                reason="USED_AFTER_FORK",
            )
        with self._lock:
            if self._closed:
                raise TeacherUnavailableError(
                    "this client was closed",
                    where=self.address,
                    fix="make a new one",
                    reason="CLOSED",
                )
            return asyncio.run_coroutine_threadsafe(work(self._client), self._loop)

    def register_tokenizer(self, upload: TokenizerUpload, *, timeout: float) -> TokenizerLevels:
        return self._wait(
            self.start(lambda client: client.register_tokenizer(upload, timeout=timeout))
        )

    def list_tokenizers(self, *, timeout: float) -> RegisteredTokenizers:
        return self._wait(self.start(lambda client: client.list_tokenizers(timeout=timeout)))

    def drop_tokenizer(self, tokenizer_hash: str, *, timeout: float) -> bool:
        return self._wait(
            self.start(lambda client: client.drop_tokenizer(tokenizer_hash, timeout=timeout))
        )

    def close(self) -> None:
        """Ends calls in flight with TeacherUnavailableError and stops the thread."""
        if os.getpid() != self._process:
            return
        with self._lock:
            if self._closed:
                return
            self._closed = True
            ended = asyncio.run_coroutine_threadsafe(self._unwind(), self._loop)
        ended.add_done_callback(lambda _: self._loop.call_soon_threadsafe(self._loop.stop))
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    async def _unwind(self) -> None:
        await self._client.close()
        calls = asyncio.all_tasks() - {asyncio.current_task()}
        if calls:
            await asyncio.wait(calls, timeout=UNWIND_SECONDS)

    def _wait(self, future: concurrent.futures.Future[T]) -> T:
        if threading.current_thread() is self._thread:
            future.cancel()
            raise ConfigurationError(
                "a blocking call from a callback of submit would wait for itself",
                where=self.address,
                fix="hand the result to another thread first",
                reason="CALLED_FROM_CALLBACK",
            )
        try:
            return future.result()
        except BaseException:
            future.cancel()
            raise
