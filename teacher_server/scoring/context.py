"""A request to score on its way: what its wire hands over, and what it is scored with."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from teacher_proto.types import Int32, ScoreReply, ScoreRequest, ServerLimits

from teacher_server.access.guard import Caller
from teacher_server.lanes import Lanes
from teacher_server.queue.policy import RunPolicy
from teacher_server.refusals.sizes import ARRAYS, RowBytes
from teacher_server.teachers.teacher import Teacher, Teachers
from teacher_server.telemetry.observation import Observation
from teacher_server.tokenizers.entry import Entry
from teacher_server.tokenizers.pairs import StudentTokenizers

# A body as it was read, or a reply as it was written.
Bytes = bytes | bytearray
# The text of an id; None for one that no token has.
TokenTexts = Mapping[int, str | None]


@dataclass(frozen=True)
class Surface:
    """A wire: its name, and the bytes that parts of its replies take.

    Attributes:
        bytes_per_entry: of one (id, log-probability).
        held: the most that a row, what realignment adds to a row, and a chunk's likelihood
            take besides, their tokens' texts as in an entry.
    """

    name: str
    bytes_per_entry: int
    held: RowBytes


GRPC = Surface("grpc", bytes_per_entry=8, held=ARRAYS)
# {"token_id":49151,"token":"\\u00e9...","log_prob":-12.345678901234567}
# {"row":16384,"token_id":49151,"token":"...","sampled_log_prob":...,"top":[],...}
HTTP = Surface("http", bytes_per_entry=80, held=RowBytes(row=192, realigned=260, chunk=26))


@dataclass(frozen=True)
class Received:
    """A request as it was read.

    Attributes:
        deadline: of the caller, ``time.monotonic``; infinite when there is none.
        size: bytes of the body.
        digest: sha256 of the body; equal bytes are equal work.
    """

    request: ScoreRequest
    deadline: float
    size: int
    digest: bytes


@dataclass(frozen=True)
class TextReceived:
    """A request with texts in a student's tokens, of which only that tokenizer knows the ids.

    Attributes:
        run, tokenizer_hash: whose tokenizer, and which.
        deadline: as in ``Received``.
        finish: the request, given the ids of each of ``texts``; runs in another thread.
    """

    run: str
    tokenizer_hash: str
    texts: tuple[str, ...]
    deadline: float
    finish: Callable[[Sequence[Int32]], Received]


class Call(Protocol):
    """One call of a wire's method Score."""

    @property
    def surface(self) -> Surface: ...

    @property
    def caller(self) -> Caller: ...

    @property
    def headers(self) -> Iterable[tuple[str, Any]]:
        """What came beside the request; a traceparent among it joins the caller's trace."""
        ...

    @property
    def started(self) -> float:
        """When the call arrived, ``time.monotonic``."""
        ...

    async def read(self) -> Bytes:
        """The body; raises InvalidRequestError or DeadlineError when it cannot be had."""
        ...

    async def expect(self, size: int) -> None:
        """Waits until there is room for a reply of ``size`` bytes; raises DeadlineError."""
        ...

    def decode(self, body: Bytes, teachers: Teachers) -> Received | TextReceived:
        """The request in the body. Runs in another thread."""
        ...

    def shown_ids(self, request: ScoreRequest, reply: ScoreReply) -> Int32:
        """The ids whose texts ``encode`` needs, int32 [n]. Runs in another thread."""
        ...

    def encode(
        self, request: ScoreRequest, reply: ScoreReply, teacher: Teacher, texts: TokenTexts | None
    ) -> Bytes:
        """The reply in the wire's format. Runs in another thread.

        Args:
            texts: of ``shown_ids``, where they are not the teacher's tokens.

        Raises:
            InvalidRequestError: the texts make the reply too large.
        """
        ...


@dataclass(frozen=True)
class RequestContext:
    """One request to score and everything it is scored with; passed on unchanged.

    Attributes:
        request: with the run it counts for, its names checked.
        size: bytes of the body it came in.
        teacher: the one it names, which its caller may use.
        policy: what its run is entitled to.
        lanes: threads for checks, rendering, tokenizing and encoding.
        students: the tokenizers that are registered.
        entry: of the request's tokenizer, which its run may register anew meanwhile; None where
            it is the teacher's, or not registered.
        seen: what is known of the request when its log line is written.
    """

    call: Call
    request: ScoreRequest
    size: int
    teacher: Teacher
    policy: RunPolicy
    limits: ServerLimits
    lanes: Lanes
    students: StudentTokenizers
    entry: Entry | None
    seen: Observation
