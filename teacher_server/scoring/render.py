"""How a teacher reads prompts: their text and ids, or why it cannot read them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from teacher_proto.errors import InvalidRequestError, LsmError
from teacher_proto.types import (
    TOO_LONG,
    Prompt,
    Refusal,
    RenderedPrompt,
    RenderRequest,
    ServerLimits,
    TokenPrompt,
)

from teacher_server.access.guard import Caller
from teacher_server.failures import is_ending
from teacher_server.lanes import LIGHT_BYTES, Lanes
from teacher_server.refusals.errors import empty_prompt, over_limit, refuse, too_many_prompts
from teacher_server.refusals.sizes import check_text_tokens
from teacher_server.refusals.validation import check_ids, check_prompt
from teacher_server.scoring.context import Bytes, Surface
from teacher_server.scoring.prompts import prompt_text, with_begin
from teacher_server.teachers.teacher import Teacher, Teachers

log = logging.getLogger(__name__)

# The field of a prompt in what it is refused with: as if it had been sent to be scored.
FIELD = "prompt"
# Of an id in a reply, for what a prompt may still add to it.
BYTES_PER_ID = 8


@dataclass(frozen=True)
class RawPrompt:
    """A prompt that is decoded when it is its turn, so that a wrong one is one refusal.

    Attributes:
        size: bytes that hold it.
    """

    size: int
    decode: Callable[[], Prompt]


@dataclass(frozen=True)
class ReceivedRender:
    """A request to render as it was read.

    Attributes:
        deadline: of the caller, ``time.monotonic``; infinite when there is none.
        size: bytes of the body.
    """

    request: RenderRequest
    prompts: Sequence[RawPrompt]
    deadline: float
    size: int


class RenderCall(Protocol):
    """One call of a wire's method Render."""

    @property
    def surface(self) -> Surface: ...

    @property
    def caller(self) -> Caller: ...

    @property
    def headers(self) -> Iterable[tuple[str, Any]]: ...

    @property
    def started(self) -> float: ...

    async def read(self) -> Bytes:
        """The body; raises InvalidRequestError or DeadlineError when it cannot be had."""
        ...

    async def expect(self, size: int) -> None:
        """Waits until there is room for a reply of ``size`` bytes; raises DeadlineError."""
        ...

    def grow(self, size: int) -> bool:
        """Whether there is room, at once, for a reply of ``size`` bytes; else nothing changes."""
        ...

    def decode(self, body: Bytes, teachers: Teachers) -> ReceivedRender:
        """The request in the body. Runs in another thread."""
        ...

    def encode(self, prompt: RenderedPrompt) -> bytes:
        """A part of the reply in the wire's format. Runs in another thread."""
        ...

    def joined(self, parts: list[bytes]) -> bytes:
        """The reply."""
        ...


class Renderer:
    """Answers one request to render.

    Args:
        teacher: the one that it names, which its caller may use.
        encode: a rendered prompt as a part of the reply.
    """

    def __init__(
        self,
        request: RenderRequest,
        teacher: Teacher,
        limits: ServerLimits,
        encode: Callable[[RenderedPrompt], bytes],
    ) -> None:
        self._request = request
        self._teacher = teacher
        self._limits = limits
        self._encode = encode
        most = request.text * (limits.max_text_bytes or limits.max_request_bytes)
        most += request.token_ids * BYTES_PER_ID * teacher.facts.max_length
        # What one more prompt usually adds to the reply at most: where less is left, none is
        # rendered. One may still come out larger, by the escapes of JSON and above the half,
        # and is then rendered again for the next request.
        self._whole = self._left = min(
            limits.max_reply_bytes, request.max_reply_bytes or limits.max_reply_bytes
        )
        self._room = min(most, self._whole // 2)
        self.parts: list[bytes] = []
        self.refused = 0

    def expected(self, size: int) -> int:
        """Bytes of the reply to a body of ``size`` bytes, as prompts usually make it: their texts
        as they came, an id for each byte of them, and the rest of each prompt."""
        each = self._request.text + self._request.token_ids * BYTES_PER_ID
        return min(self._whole, size * each + LIGHT_BYTES)

    async def run(
        self, received: ReceivedRender, lanes: Lanes, grow: Callable[[int], bool]
    ) -> None:
        """Renders the first prompts, as many as a reply holds, in slices between which the
        threads of ``lanes`` serve others.

        Args:
            grow: as of ``RenderCall``. A template may write much for little: without room for
                another slice like the largest one, the reply ends.
        """
        owner, largest = self._request.run, 0
        for some in slices(received.prompts):
            before = self._left
            whole = await lanes.run(partial(self._add, some), size=received.size, owner=owner)
            largest = max(largest, before - self._left)
            written = self._whole - self._left
            if not whole or not grow(min(self._whole, written + largest)):
                return

    def _add(self, some: Sequence[RawPrompt]) -> bool:
        """Whether all of them found room."""
        for prompt in some:
            if self.parts and self._left < self._room:
                return False
            rendered = self._rendered(prompt)
            part = self._encode(rendered)
            if len(part) > self._left:
                if self.parts:
                    return False
                refusal = self._too_much(len(part))
                rendered = RenderedPrompt(rendered.token_count, refusal=_refusal(refusal))
                part = self._encode(rendered)
            self.refused += rendered.refusal is not None
            self._left -= len(part)
            self.parts.append(part)
        return True

    def _too_much(self, size: int) -> LsmError:
        """The refusal of a prompt about which a whole reply cannot tell."""
        what, fix = f"the reply would take {size} bytes", "ask for text or token ids alone"
        if self._whole < self._limits.max_reply_bytes:
            return refuse(
                f"{what}, and the caller reads {self._whole}",
                "max_reply_bytes",
                f"{fix}, or let the client read more and say so",
                "REPLY_TOO_LARGE",
            )
        return over_limit(
            what,
            FIELD,
            "limits.max_reply_bytes",
            self._limits.max_reply_bytes,
            f"{fix}, or for neither",
        )

    def _rendered(self, raw: RawPrompt) -> RenderedPrompt:
        """Whatever is wrong with a prompt is the refusal of this one alone."""
        try:
            return self._read(raw.decode())
        except LsmError as error:
            return RenderedPrompt(refusal=_refusal(error))
        except BaseException as error:
            if is_ending(error):
                raise
            log.exception("a prompt could not be rendered")
            failure = refuse(
                f"the server failed on this prompt ({type(error).__name__})",
                FIELD,
                "look for the prompt in the server's log, or leave it out",
                "INTERNAL",
            )
            return RenderedPrompt(refusal=_refusal(failure))

    def _read(self, prompt: Prompt) -> RenderedPrompt:
        tokenizer, facts = self._teacher.tokenizer, self._teacher.facts
        if isinstance(prompt, TokenPrompt):
            raise refuse(
                "token ids are read as they are",
                f"{FIELD}.token_ids",
                "send text or messages",
            )
        check_prompt(prompt, FIELD, facts.vocabulary_size)
        text, where = prompt_text(prompt, FIELD, tokenizer, self._limits)
        # Whole, also where its bytes show that it is too long: the caller wants the number.
        ids = with_begin(tokenizer.encode(text), prompt, tokenizer, facts)
        count = len(ids)
        try:
            check_text_tokens(count, where, facts)
        except InvalidRequestError as error:
            return RenderedPrompt(count, refusal=replace(_refusal(error), reason=TOO_LONG))
        if count == 0:
            raise empty_prompt(where)
        check_ids(ids, where, facts.vocabulary_size)
        return RenderedPrompt(
            count,
            text if self._request.text else None,
            ids if self._request.token_ids else None,
        )


def slices(prompts: Sequence[RawPrompt]) -> Iterator[Sequence[RawPrompt]]:
    """Neighbours of at most ``LIGHT_BYTES`` together; a larger prompt is alone."""
    start = size = 0
    for index, prompt in enumerate(prompts):
        if size + prompt.size > LIGHT_BYTES and index > start:
            yield prompts[start:index]
            start, size = index, 0
        size += prompt.size
    yield prompts[start:]


def check_prompt_count(count: int, limits: ServerLimits) -> None:
    """Refuses a request to render with no prompt, or with more than are rendered at once."""
    if count == 0:
        raise refuse("there is none", "prompts", "send at least one prompt")
    if limits.max_render_prompts is not None and count > limits.max_render_prompts:
        raise too_many_prompts(f"there are {count}", limits)


def _refusal(error: LsmError) -> Refusal:
    return Refusal(error.reason, error.what, error.where, error.fix)
