"""The contract's types <-> protobuf messages; the only place that knows both.

A decoder takes a message or its bytes. What comes from a client fails with
InvalidRequestError, what comes from a server with PoisonedReplyError.
"""

from teacher_proto.codec.render import (
    decode_render,
    decode_rendered,
    encode_render,
    encode_render_prompt,
    encode_rendered,
)
from teacher_proto.codec.reply import decode_reply, encode_reply
from teacher_proto.codec.request import (
    decode_request,
    encode_request,
    explained_refusal,
    older_server,
)
from teacher_proto.codec.teacher import decode_server_info, encode_server_info
from teacher_proto.codec.tokenizer import (
    TokenizerAssembler,
    decode_levels,
    decode_registered,
    encode_levels,
    encode_registered,
    encode_tokenizer,
)
from teacher_proto.codec.wire import parse, serialize

__all__ = [
    "TokenizerAssembler",
    "decode_levels",
    "decode_registered",
    "decode_render",
    "decode_rendered",
    "decode_reply",
    "decode_request",
    "decode_server_info",
    "encode_levels",
    "encode_registered",
    "encode_render",
    "encode_render_prompt",
    "encode_rendered",
    "encode_reply",
    "encode_request",
    "encode_server_info",
    "encode_tokenizer",
    "explained_refusal",
    "older_server",
    "parse",
    "serialize",
]
