"""Prompts to render on their way through as many requests as the server's limits need."""

from __future__ import annotations

from collections.abc import Sequence

from teacher_proto import codec
from teacher_proto.errors import InvalidRequestError
from teacher_proto.types import Prompt, Refusal, RenderedPrompt, RenderRequest, ServerLimits
from teacher_proto.v1 import score_pb2

# Of the prompts of one request, bytes. Rendering so many takes a second or so, and the reply
# that they make is far below what a server or a client takes at most.
REQUEST_BYTES = 1 << 20
# What surrounds the prompts of a request, bytes.
FRAME_BYTES = 4096
FRAME_BYTES_PER_PROMPT = 8


class Rendering:
    """Prompts, the requests that ask for them, and what was answered so far.

    Args:
        max_bytes: of one request, at most what the server and the client take. A prompt that
            is larger, or that the contract cannot carry, is refused here.
    """

    def __init__(
        self,
        request: RenderRequest,
        prompts: Sequence[Prompt],
        limits: ServerLimits,
        max_bytes: int,
    ) -> None:
        assert limits.max_render_prompts is not None
        self._request = request
        self._most = limits.max_render_prompts
        self._max_bytes = max_bytes - FRAME_BYTES
        self._results: list[RenderedPrompt | None] = [None] * len(prompts)
        self._waiting: list[tuple[int, score_pb2.Prompt, int]] = []
        for index, prompt in enumerate(prompts):
            try:
                message = codec.encode_render_prompt(prompt)
                size = self._checked_size(message)
            except InvalidRequestError as error:
                refusal = Refusal(error.reason, error.what, error.where, error.fix)
                self._results[index] = RenderedPrompt(refusal=refusal)
            else:
                self._waiting.append((index, message, size))
        self._waiting.reverse()
        self._sent: list[tuple[int, score_pb2.Prompt, int]] = []

    def next_body(self) -> bytes | None:
        """The next request's bytes; None when every prompt is answered."""
        size, bound = 0, min(REQUEST_BYTES, self._max_bytes)
        self._sent = []
        while self._waiting and len(self._sent) < self._most:
            size += self._waiting[-1][2]
            if self._sent and size > bound:
                break
            self._sent.append(self._waiting.pop())
        if not self._sent:
            return None
        messages = [message for _, message, _ in self._sent]
        return codec.serialize(codec.encode_render(self._request, messages))

    def take(self, reply: bytes) -> None:
        """Keeps the answer to the last request; what it leaves out is asked again."""
        found = codec.decode_rendered(reply, self._request, len(self._sent))
        for (index, _, _), rendered in zip(self._sent, found, strict=False):
            self._results[index] = rendered
        self._waiting += reversed(self._sent[len(found) :])

    @property
    def results(self) -> tuple[RenderedPrompt, ...]:
        """One for each prompt, in their order."""
        return tuple(result for result in self._results if result is not None)

    def _checked_size(self, message: score_pb2.Prompt) -> int:
        size = message.ByteSize() + FRAME_BYTES_PER_PROMPT
        if size > self._max_bytes:
            raise InvalidRequestError(
                f"is {size} bytes; a request may have {self._max_bytes + FRAME_BYTES}",
                where="prompt",
                fix="shorten it",
                reason="MESSAGE_TOO_LARGE",
            )
        return size
