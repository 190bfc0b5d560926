"""How many parts a gRPC request may have, counted in its bytes before they are parsed."""

from __future__ import annotations

from functools import partial

from google.protobuf import struct_pb2
from teacher_proto.codec.wire_counts import Bound, TextBound, WireBounds
from teacher_proto.errors import InvalidRequestError
from teacher_proto.types import ServerLimits
from teacher_proto.v1 import score_pb2, tokenizer_pb2

from teacher_server.refusals.errors import refuse, too_many_continuations, too_many_prompts
from teacher_server.refusals.sizes import text_too_long

# Of one request. Nothing that is scored needs as many.
MAX_SEGMENTS = 16_384
MAX_MESSAGES = 16_384
# Inside extra and template_arguments.
MAX_VALUES = 65_536
MAX_FIELDS = 2**20
FIELDS_PER_CONTINUATION = 16
# Of one tokenizer.
MAX_SPECIAL_TOKENS = 65_536
# Bytes of a request that holds names alone.
MAX_NAMES = 65_536


def score_bounds(limits: ServerLimits) -> WireBounds:
    """Of a ScoreRequest."""
    continuations = limits.max_continuations
    fields = MAX_FIELDS + FIELDS_PER_CONTINUATION * continuations
    return WireBounds(
        fields=_bound("fields", "the request", fields),
        messages={
            score_pb2.Continuation.DESCRIPTOR.full_name: Bound(
                continuations, partial(too_many_continuations, "there are more", limits)
            ),
            score_pb2.Segment.DESCRIPTOR.full_name: _bound(
                "segments", "continuations", MAX_SEGMENTS
            ),
            score_pb2.ChatMessage.DESCRIPTOR.full_name: _bound("messages", "prompt", MAX_MESSAGES),
            struct_pb2.Value.DESCRIPTOR.full_name: _bound(
                "values of extra and template_arguments", "prompt", MAX_VALUES
            ),
        },
        texts=_texts(limits),
    )


def _texts(limits: ServerLimits) -> dict[str, TextBound]:
    """Texts of a request to score that are refused for their size alone, wherever it shows."""
    if limits.max_text_bytes is None:
        return {}

    def bound(name: str) -> TextBound:
        assert limits.max_text_bytes is not None
        return TextBound(
            limits.max_text_bytes,
            lambda size, prompt: text_too_long(size, f"{prompt}.{name}", limits),
        )

    return {
        f"{score_pb2.Prompt.DESCRIPTOR.full_name}.text": bound("text"),
        f"{score_pb2.TextPrompt.DESCRIPTOR.full_name}.text": bound("text"),
        f"{score_pb2.ChatMessage.DESCRIPTOR.full_name}.content": bound("chat"),
    }


def render_bounds(limits: ServerLimits) -> WireBounds:
    """Of a RenderRequest: of all its prompts together what one request to score may hold."""
    scored = score_bounds(limits)
    assert limits.max_render_prompts is not None  # only an older server's are unknown
    error = partial(too_many_prompts, "there are more", limits)
    prompts = Bound(limits.max_render_prompts, error)
    messages = {**scored.messages, score_pb2.Prompt.DESCRIPTOR.full_name: prompts}
    return WireBounds(fields=scored.fields, messages=messages)


def tokenizer_bounds() -> WireBounds:
    """Of one part of RegisterTokenizer."""
    tokens = _bound("special tokens", "header.special_tokens", MAX_SPECIAL_TOKENS)
    return WireBounds(
        fields=_bound("fields", "part", 8 * MAX_SPECIAL_TOKENS),
        messages={tokenizer_pb2.SpecialToken.DESCRIPTOR.full_name: tokens},
    )


def plain_bounds() -> WireBounds:
    """Of a message of a few fields: GetTeacherRequest, ListTokenizersRequest and the like."""
    return WireBounds(fields=_bound("fields", "the request", 64), messages={})


def check_names(size: int) -> None:
    """Refuses a request that holds names alone and is too large for that."""
    if size > MAX_NAMES:
        raise refuse(
            f"the request is {size} bytes, of {MAX_NAMES} at most",
            "the request's body",
            "send the name alone",
            "REQUEST_TOO_LARGE",
        )


def _bound(what: str, where: str, most: int) -> Bound:
    def error() -> InvalidRequestError:
        return refuse(
            f"there are more {what} than {most}", where, "split the request", "LIMIT_EXCEEDED"
        )

    return Bound(most, error)
