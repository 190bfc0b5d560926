"""RenderRequest and RenderedPrompt <-> messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from teacher_proto.codec.arrays import INT32, decode_array, encode_array
from teacher_proto.codec.request import decode_prompt, encode_prompt, int64
from teacher_proto.codec.structs import check_text
from teacher_proto.codec.wire import parse
from teacher_proto.errors import InvalidRequestError, PoisonedReplyError
from teacher_proto.types import Prompt, Refusal, RenderedPrompt, RenderRequest
from teacher_proto.v1 import render_pb2, score_pb2

Error = InvalidRequestError


def encode_render_prompt(prompt: Prompt) -> score_pb2.Prompt:
    """Conversations travel as JSON, of which a request may hold more than of messages.

    Raises InvalidRequestError naming the field that the contract cannot carry.
    """
    message = score_pb2.Prompt()
    encode_prompt(prompt, message, "prompt", structs=False)
    return message


def encode_render(
    request: RenderRequest, prompts: Iterable[score_pb2.Prompt]
) -> render_pb2.RenderRequest:
    """Raises InvalidRequestError naming the field that the contract cannot carry."""
    return render_pb2.RenderRequest(
        run=check_text(request.run, "run", Error),
        teacher=check_text(request.teacher, "teacher", Error),
        prompts=prompts,
        return_text=request.text,
        return_token_ids=request.token_ids,
        max_reply_bytes=(
            None
            if request.max_reply_bytes is None
            else int64(request.max_reply_bytes, "max_reply_bytes")
        ),
    )


def decode_render(
    message: render_pb2.RenderRequest | bytes,
) -> tuple[RenderRequest, tuple[UndecodedPrompt, ...]]:
    """The request, and its prompts, each of which is decoded on its own.

    Raises InvalidRequestError for bytes that are no such message.
    """
    if isinstance(message, bytes):
        message = parse(message, render_pb2.RenderRequest(), Error)
    request = RenderRequest(
        run=message.run,
        teacher=message.teacher,
        text=message.return_text,
        token_ids=message.return_token_ids,
        max_reply_bytes=message.max_reply_bytes if message.HasField("max_reply_bytes") else None,
    )
    return request, tuple(map(UndecodedPrompt, message.prompts))


@dataclass(frozen=True)
class UndecodedPrompt:
    message: score_pb2.Prompt

    @property
    def size(self) -> int:
        """Bytes that hold it."""
        return self.message.ByteSize()

    def decode(self) -> Prompt:
        """Raises InvalidRequestError as ``decode_request`` does, naming fields of ``prompt``."""
        return decode_prompt(self.message, "prompt")


def encode_rendered(prompts: Sequence[RenderedPrompt]) -> render_pb2.RenderResponse:
    message = render_pb2.RenderResponse()
    for index, prompt in enumerate(prompts):
        added = message.prompts.add(token_count=prompt.token_count, text=prompt.text)
        if prompt.token_ids is not None:
            where = f"prompts[{index}].token_ids"
            encode_array(prompt.token_ids, added.token_ids, INT32, 1, where, Error)
        if prompt.refusal is not None:
            refusal = prompt.refusal
            added.refusal.reason = refusal.reason
            added.refusal.what = refusal.what
            added.refusal.where = refusal.where
            added.refusal.fix = refusal.fix
    return message


def decode_rendered(
    message: render_pb2.RenderResponse | bytes, request: RenderRequest, count: int
) -> tuple[RenderedPrompt, ...]:
    """What a server found about the first of the ``count`` prompts of ``request``.

    Raises:
        PoisonedReplyError: it is about none or about more than were sent, or holds less or
            more than was asked for.
    """
    if isinstance(message, bytes):
        message = parse(message, render_pb2.RenderResponse(), PoisonedReplyError)
    if not 0 < len(message.prompts) <= count:
        raise PoisonedReplyError(
            f"holds {len(message.prompts)} prompts, {count} were sent",
            where="prompts",
        )
    return tuple(
        _decode_one(one, request, f"prompts[{index}]") for index, one in enumerate(message.prompts)
    )


def _decode_one(
    message: render_pb2.RenderedPrompt, request: RenderRequest, where: str
) -> RenderedPrompt:
    refused = message.HasField("refusal")
    for name, there, asked in (
        ("text", message.HasField("text"), request.text),
        ("token_ids", message.HasField("token_ids"), request.token_ids),
    ):
        if there != (asked and not refused):
            raise PoisonedReplyError(
                "was not asked for" if there else "is missing", where=f"{where}.{name}"
            )
    count = message.token_count if message.HasField("token_count") else None
    ids = None
    if message.HasField("token_ids"):
        ids = decode_array(message.token_ids, INT32, 1, f"{where}.token_ids", PoisonedReplyError)
    missing = count is None and not refused
    if missing or (count is not None and count < 0) or (ids is not None and len(ids) != count):
        raise PoisonedReplyError("is not the number of tokens", where=f"{where}.token_count")
    return RenderedPrompt(
        token_count=count,
        text=message.text if message.HasField("text") else None,
        token_ids=ids,
        refusal=_decode_refusal(message.refusal) if refused else None,
    )


def _decode_refusal(message: render_pb2.Refusal) -> Refusal:
    return Refusal(message.reason, message.what, message.where, message.fix)
