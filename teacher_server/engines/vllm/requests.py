"""The requests that vLLM is working on, from a job's spans to their outputs.

Nothing here imports vLLM.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Sequence
from typing import Any, Protocol

from teacher_proto.errors import LsmError

from teacher_server.engines.faults import unavailable
from teacher_server.failures import as_exception, is_ending

log = logging.getLogger(__name__)


class CoreClient(Protocol):
    """What is used of vLLM's client of its engine cores."""

    async def add_request_async(self, request: Any) -> None: ...

    async def abort_requests_async(self, names: list[str]) -> None: ...

    async def get_output_async(self) -> Any: ...


class PendingRequests:
    """Gives requests to vLLM, and each output to the caller that waits for it.

    All methods are called on one event loop.

    Args:
        client: started, used for as long as it lives.
        ranks: number of data-parallel ranks; all requests of a job go to the one that
            has the fewest tokens to read.
    """

    def __init__(self, client: CoreClient, ranks: int) -> None:
        self._client = client
        self._futures: dict[str, asyncio.Future[Any]] = {}
        self._numbers = itertools.count()
        # Tokens that each rank was given and has not answered.
        self._load = [0] * ranks
        self._ended = False

    def __len__(self) -> int:
        """Requests that were given to vLLM and neither answered nor given up."""
        return len(self._futures)

    async def run(self, requests: Sequence[Any], tokens: int) -> list[Any]:
        """The outputs of one job's requests, in order; vLLM drops them when it is cancelled.

        Args:
            requests: vLLM's own, still without an id and a rank.
            tokens: how many they read in all.

        Raises:
            TeacherUnavailableError: the engine is closed, or died on the way.
        """
        rank = min(range(len(self._load)), key=self._load.__getitem__)
        self._load[rank] += tokens
        loop = asyncio.get_running_loop()
        futures: dict[str, asyncio.Future[Any]] = {}
        try:
            for request in requests:
                name = str(next(self._numbers))
                self._futures[name] = futures[name] = loop.create_future()
                request.request_id = name
                request.data_parallel_rank = rank if len(self._load) > 1 else None
                await self._client.add_request_async(request)
            return await asyncio.gather(*futures.values())
        except LsmError:
            raise
        except BaseException as error:
            if is_ending(error):
                raise
            log.error("vLLM took no request", exc_info=as_exception(error))
            raise unavailable(error) from error
        finally:
            self._load[rank] -= tokens
            await self._abort([name for name in futures if self._futures.pop(name, None)])

    async def read(self) -> BaseException:
        """Delivers outputs until the engine dies, and returns what it died of."""
        try:
            while True:
                for output in (await self._client.get_output_async()).outputs:
                    future = self._futures.get(output.request_id)
                    if output.finish_reason is None or future is None:
                        continue
                    del self._futures[output.request_id]
                    if not future.done():
                        future.set_result(output)
        except BaseException as error:
            if is_ending(error):
                raise
            self.end(error)
            return error

    def end(self, cause: BaseException | None) -> None:
        """Fails all requests that are pending: ``cause`` killed the engine; None closed it."""
        self._ended = True
        pending, self._futures = self._futures, {}
        for future in pending.values():
            if not future.done():
                future.set_exception(unavailable(cause))

    async def _abort(self, names: list[str]) -> None:
        if names and not self._ended:
            await self._client.abort_requests_async(names)
