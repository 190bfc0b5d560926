"""A real grpc.aio server that speaks the contract and follows a script.

What the client does is the subject; the answers come from ``replies.make_reply``
unless the script says otherwise. The script is consumed one entry per Score call.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import grpc
import grpc.aio
from teacher_proto import codec
from teacher_proto.channel import server_options
from teacher_proto.status import DETAILS_KEY, to_rpc_status
from teacher_proto.types import Level, ScoreReply, ScoreRequest, ServerInfo, TokenizerUpload
from teacher_proto.v1 import score_pb2, service_pb2_grpc, teacher_pb2

from tests.support.replies import SERVER, make_reply

# Gets the request and the call; gives a reply, or bytes or a message as they are.
Step = Callable[[ScoreRequest, Any], Awaitable[Any]]


class ScriptedTeacher(service_pb2_grpc.TeacherScoringServiceServicer):
    def __init__(self) -> None:
        self.info: ServerInfo = SERVER
        self.script: list[Step] = []
        self.requests: list[bytes] = []
        self.uploads: list[TokenizerUpload] = []
        self.arrived = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def GetTeacher(self, request: Any, context: Any) -> teacher_pb2.GetTeacherResponse:
        return codec.encode_server_info(self.info)

    async def Score(self, request: score_pb2.ScoreRequest, context: Any) -> Any:
        self.requests.append(codec.serialize(request))
        self.arrived.set()
        asked = codec.decode_request(request)
        answer = await self.script.pop(0)(asked, context) if self.script else make_reply(asked)
        return codec.encode_reply(answer) if isinstance(answer, ScoreReply) else answer

    async def RegisterTokenizer(self, request_iterator: Any, context: Any) -> Any:
        if self.script:
            await self.script.pop(0)(None, context)  # type: ignore[arg-type]
        assembler = codec.TokenizerAssembler(max_bytes=1 << 24)
        async for message in request_iterator:
            assembler.add(message)
        self.uploads.append(assembler.finish())
        return codec.encode_levels(self.uploads[-1].tokenizer_hash, {"default": Level.CROSS})

    def fail(self, error: BaseException) -> Step:
        """A step that answers with the status of ``error``."""

        async def step(request: ScoreRequest, context: Any) -> None:
            code, status = to_rpc_status(error)
            trailers = ((DETAILS_KEY, status.SerializeToString()),)
            await context.abort(code, status.message, trailers)

        return step

    def abort(self, code: grpc.StatusCode, details: str = "") -> Step:
        """A step that answers with a bare status, as a proxy or gRPC itself would."""

        async def step(request: ScoreRequest, context: Any) -> None:
            await context.abort(code, details)

        return step

    def change(self, edit: Callable[[ScoreReply], ScoreReply]) -> Step:
        """A step that answers with an edited reply."""

        async def step(request: ScoreRequest, context: Any) -> ScoreReply:
            return edit(make_reply(request))

        return step

    def never(self) -> Step:
        """A step that waits until the call is cancelled."""

        async def step(request: ScoreRequest, context: Any) -> None:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled.set()
                raise

        return step


@contextlib.asynccontextmanager
async def serving(
    teacher: ScriptedTeacher, *, port: int = 0, max_request_bytes: int = 1 << 24
) -> AsyncIterator[str]:
    """Serves on a free port of the loopback; gives the address."""
    server = grpc.aio.server(options=server_options(max_request_bytes, 1 << 24))
    service_pb2_grpc.add_TeacherScoringServiceServicer_to_server(teacher, server)
    bound = server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    try:
        yield f"127.0.0.1:{bound}"
    finally:
        await server.stop(None)


@contextlib.contextmanager
def serving_in_thread() -> Iterator[tuple[ScriptedTeacher, str]]:
    """The same from a thread with a loop of its own, for tests of the blocking client."""
    ready = threading.Event()
    box: dict[str, Any] = {}

    async def serve() -> None:
        box["loop"], box["stop"] = asyncio.get_running_loop(), asyncio.Event()
        box["teacher"] = ScriptedTeacher()
        async with serving(box["teacher"]) as box["address"]:
            ready.set()
            await box["stop"].wait()

    thread = threading.Thread(target=lambda: asyncio.run(serve()))
    thread.start()
    assert ready.wait(30)
    try:
        yield box["teacher"], box["address"]
    finally:
        box["loop"].call_soon_threadsafe(box["stop"].set)
        thread.join(30)
