"""TeacherIdentity, TeacherInfo, ServerLimits, ServerInfo <-> messages."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from teacher_proto.codec.wire import parse
from teacher_proto.errors import PoisonedReplyError
from teacher_proto.types import (
    ChatInfo,
    Level,
    ServerInfo,
    ServerLimits,
    TeacherIdentity,
    TeacherInfo,
    TokenText,
)
from teacher_proto.v1 import teacher_pb2


def encode_identity(identity: TeacherIdentity) -> teacher_pb2.TeacherIdentity:
    return teacher_pb2.TeacherIdentity(**dataclasses.asdict(identity))


def decode_identity(message: teacher_pb2.TeacherIdentity) -> TeacherIdentity:
    return TeacherIdentity(
        digest=message.digest,
        weights_digest=message.weights_digest,
        dtype=message.dtype,
        quantization=message.quantization,
        adapter_digest=message.adapter_digest,
        tokenizer_hash=message.tokenizer_hash,
        chat_template_digest=message.chat_template_digest,
    )


def encode_server_info(info: ServerInfo) -> teacher_pb2.GetTeacherResponse:
    return teacher_pb2.GetTeacherResponse(
        teachers=[_encode_teacher(teacher) for teacher in info.teachers],
        limits=teacher_pb2.ServerLimits(**dataclasses.asdict(info.limits)),
        server_version=info.server_version,
    )


def decode_server_info(message: teacher_pb2.GetTeacherResponse | bytes) -> ServerInfo:
    """Raises PoisonedReplyError for a part that is missing or means nothing."""
    if isinstance(message, bytes):
        message = parse(message, teacher_pb2.GetTeacherResponse(), PoisonedReplyError)
    if not message.HasField("limits"):
        raise PoisonedReplyError("is missing", where="limits")
    teachers = tuple(
        _decode_teacher(item, f"teachers[{index}]") for index, item in enumerate(message.teachers)
    )
    names = [teacher.name for teacher in teachers]
    if len(set(names)) != len(names):
        raise PoisonedReplyError("holds two teachers of one name", where="teachers")
    limits = ServerLimits(
        max_request_bytes=message.limits.max_request_bytes,
        max_reply_bytes=message.limits.max_reply_bytes,
        max_continuations=message.limits.max_continuations,
        max_explicit_ids=message.limits.max_explicit_ids,
        max_request_tokens=message.limits.max_request_tokens,
        max_queue_tokens=message.limits.max_queue_tokens,
        max_tokenizer_bytes=message.limits.max_tokenizer_bytes,
        max_text_bytes=(
            message.limits.max_text_bytes if message.limits.HasField("max_text_bytes") else None
        ),
        max_render_prompts=(
            message.limits.max_render_prompts
            if message.limits.HasField("max_render_prompts")
            else None
        ),
    )
    for name, value in dataclasses.asdict(limits).items():
        if value is not None and value < 0:
            raise PoisonedReplyError(f"is {value}", where=f"limits.{name}")
    return ServerInfo(teachers, limits, message.server_version)


def encode_level(level: Level) -> teacher_pb2.RealignmentLevel.ValueType:
    return teacher_pb2.RealignmentLevel.ValueType(level)


def decode_level(code: int, where: str) -> Level:
    try:
        return Level(code)
    except ValueError:
        raise PoisonedReplyError(f"is {code}, which means nothing", where=where) from None


def _encode_teacher(teacher: TeacherInfo) -> teacher_pb2.TeacherInfo:
    return teacher_pb2.TeacherInfo(
        name=teacher.name,
        identity=encode_identity(teacher.identity),
        vocabulary_size=teacher.vocabulary_size,
        max_top_k=teacher.max_top_k,
        max_length=teacher.max_length,
        engine=teacher.engine,
        deterministic=teacher.deterministic,
        tokenizers=[
            teacher_pb2.TokenizerLevel(tokenizer_hash=name, level=encode_level(level))
            for name, level in sorted(teacher.tokenizers.items())
        ],
        model=teacher.model,
        chat=None if teacher.chat is None else _encode_chat(teacher.chat),
        begin_tokens=_encode_tokens(teacher.begin_tokens),
    )


def _encode_chat(chat: ChatInfo) -> teacher_pb2.ChatInfo:
    return teacher_pb2.ChatInfo(
        template_digest=chat.template_digest,
        reads_clock=chat.reads_clock,
        arguments=chat.arguments,
        turn_ends=_encode_tokens(chat.turn_ends),
    )


def _encode_tokens(tokens: Iterable[TokenText]) -> list[teacher_pb2.TokenText]:
    return [teacher_pb2.TokenText(token_id=one.token_id, text=one.text) for one in tokens]


def _decode_tokens(messages: Iterable[teacher_pb2.TokenText]) -> tuple[TokenText, ...]:
    return tuple(TokenText(one.token_id, one.text) for one in messages)


def _decode_chat(message: teacher_pb2.ChatInfo) -> ChatInfo:
    return ChatInfo(
        message.template_digest,
        message.reads_clock,
        tuple(message.arguments),
        _decode_tokens(message.turn_ends),
    )


def _decode_teacher(message: teacher_pb2.TeacherInfo, where: str) -> TeacherInfo:
    if not message.HasField("identity"):
        raise PoisonedReplyError("is missing", where=f"{where}.identity")
    for name in ("vocabulary_size", "max_top_k", "max_length"):
        if getattr(message, name) < 0:
            raise PoisonedReplyError(f"is {getattr(message, name)}", where=f"{where}.{name}")
    levels: dict[str, Level] = {}
    for index, item in enumerate(message.tokenizers):
        inner = f"{where}.tokenizers[{index}]"
        if item.tokenizer_hash in levels:
            raise PoisonedReplyError("is listed twice", where=f"{inner}.tokenizer_hash")
        levels[item.tokenizer_hash] = decode_level(item.level, f"{inner}.level")
    return TeacherInfo(
        name=message.name,
        identity=decode_identity(message.identity),
        vocabulary_size=message.vocabulary_size,
        max_top_k=message.max_top_k,
        max_length=message.max_length,
        engine=message.engine,
        deterministic=message.deterministic,
        tokenizers=levels,
        model=message.model,
        chat=_decode_chat(message.chat) if message.HasField("chat") else None,
        begin_tokens=_decode_tokens(message.begin_tokens),
    )
