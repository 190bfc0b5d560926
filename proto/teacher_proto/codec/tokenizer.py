"""TokenizerUpload <-> the chunks of RegisterTokenizer and its answer; what is registered."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping

from teacher_proto.codec.structs import check_text
from teacher_proto.codec.teacher import decode_level, encode_level
from teacher_proto.codec.wire import parse
from teacher_proto.errors import InvalidRequestError, PoisonedReplyError
from teacher_proto.types import (
    Level,
    RegisteredTokenizer,
    RegisteredTokenizers,
    SpecialRole,
    TokenizerLevels,
    TokenizerUpload,
)
from teacher_proto.v1 import tokenizer_pb2

CHUNK_BYTES = 1 << 20


def encode_tokenizer(
    upload: TokenizerUpload, chunk_bytes: int = CHUNK_BYTES
) -> Iterator[tokenizer_pb2.RegisterTokenizerRequest]:
    """The header, then the file in chunks of at most ``chunk_bytes`` bytes."""
    yield tokenizer_pb2.RegisterTokenizerRequest(
        header=tokenizer_pb2.TokenizerHeader(
            run=check_text(upload.run, "run", InvalidRequestError),
            tokenizer_hash=check_text(upload.tokenizer_hash, "tokenizer_hash", InvalidRequestError),
            file_sha256=hashlib.sha256(upload.file).hexdigest(),
            file_bytes=len(upload.file),
            special_tokens=[
                tokenizer_pb2.SpecialToken(
                    token_id=token_id, role=tokenizer_pb2.SpecialRole.ValueType(role)
                )
                for token_id, role in sorted(upload.special_tokens.items())
            ],
        )
    )
    for start in range(0, len(upload.file), chunk_bytes):
        chunk = upload.file[start : start + chunk_bytes]
        yield tokenizer_pb2.RegisterTokenizerRequest(chunk=chunk)


class TokenizerAssembler:
    """Puts the chunks of one upload together and never holds more than ``max_bytes``.

    ``add`` every message in order, then ``finish``. Both raise
    InvalidRequestError: no header first, two headers, an empty message, a role
    that means nothing, a file above ``max_bytes`` or unlike its declared length
    or sha256.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._header: tokenizer_pb2.TokenizerHeader | None = None
        self._roles: dict[int, SpecialRole] = {}
        self._file = bytearray()

    def add(self, message: tokenizer_pb2.RegisterTokenizerRequest) -> None:
        part = message.WhichOneof("part")
        if part == "header" and self._header is None:
            self._accept_header(message.header)
        elif part == "chunk" and self._header is not None:
            if len(self._file) + len(message.chunk) > self._header.file_bytes:
                raise InvalidRequestError(
                    f"is more than the {self._header.file_bytes} bytes declared", where="chunk"
                )
            self._file += message.chunk
        else:
            raise InvalidRequestError(
                f"{part or 'an empty message'} came out of turn",
                where="part",
                fix="send one header, then the chunks",
            )

    @property
    def received_bytes(self) -> int:
        return len(self._file)

    def finish(self) -> TokenizerUpload:
        if self._header is None:
            raise InvalidRequestError("is missing", where="header")
        if len(self._file) != self._header.file_bytes:
            raise InvalidRequestError(
                f"has {len(self._file)} bytes, {self._header.file_bytes} were declared",
                where="chunk",
            )
        data = bytes(self._file)
        if hashlib.sha256(data).hexdigest() != self._header.file_sha256:
            raise InvalidRequestError("is not the sha256 of the chunks", where="header.file_sha256")
        return TokenizerUpload(self._header.run, self._header.tokenizer_hash, data, self._roles)

    def _accept_header(self, header: tokenizer_pb2.TokenizerHeader) -> None:
        if header.file_bytes < 1:
            raise InvalidRequestError(
                f"is {header.file_bytes}, and a file has at least one byte",
                where="header.file_bytes",
            )
        if header.file_bytes > self._max_bytes:
            raise InvalidRequestError(
                f"the file is {header.file_bytes} bytes; the limit is {self._max_bytes} "
                "(limits.max_tokenizer_bytes)",
                where="header.file_bytes",
                fix="send a smaller tokenizer.json, or raise limits.max_tokenizer_bytes on the "
                "server",
                reason="REQUEST_TOO_LARGE",
            )
        for index, item in enumerate(header.special_tokens):
            where = f"header.special_tokens[{index}]"
            if item.token_id < 0 or item.token_id in self._roles:
                raise InvalidRequestError(
                    f"{item.token_id} is negative or named twice", where=f"{where}.token_id"
                )
            try:
                self._roles[item.token_id] = SpecialRole(item.role)
            except ValueError:
                raise InvalidRequestError(
                    f"is {item.role}, which means nothing", where=f"{where}.role"
                ) from None
        self._header = header


def encode_levels(
    tokenizer_hash: str, levels: Mapping[str, Level]
) -> tokenizer_pb2.RegisterTokenizerResponse:
    """``levels``: realignment level by name of teacher, with the differences that
    ``TokenizerLevels`` has."""
    differences = levels.differences if isinstance(levels, TokenizerLevels) else {}
    return tokenizer_pb2.RegisterTokenizerResponse(
        tokenizer_hash=tokenizer_hash, levels=_encode_by_teacher(levels, differences)
    )


def decode_levels(
    message: tokenizer_pb2.RegisterTokenizerResponse | bytes, tokenizer_hash: str
) -> TokenizerLevels:
    """Level by name of teacher; raises PoisonedReplyError, also when the answer is
    about another tokenizer than ``tokenizer_hash``."""
    if isinstance(message, bytes):
        message = parse(message, tokenizer_pb2.RegisterTokenizerResponse(), PoisonedReplyError)
    if message.tokenizer_hash != tokenizer_hash:
        raise PoisonedReplyError("is not the tokenizer that was sent", where="tokenizer_hash")
    return _decode_by_teacher(message.levels, "levels")


def encode_registered(found: RegisteredTokenizers) -> tokenizer_pb2.ListTokenizersResponse:
    return tokenizer_pb2.ListTokenizersResponse(
        tokenizers=[
            tokenizer_pb2.RegisteredTokenizer(
                run=one.run,
                tokenizer_hash=one.tokenizer_hash,
                content=one.content,
                file_bytes=one.file_bytes,
                vocabulary_size=one.vocabulary_size,
                levels=_encode_by_teacher(one.levels, {}),
                idle_seconds=one.idle_seconds,
            )
            for one in found.tokenizers
        ],
        total=found.total,
    )


def decode_registered(
    message: tokenizer_pb2.ListTokenizersResponse | bytes,
) -> RegisteredTokenizers:
    """Raises PoisonedReplyError."""
    if isinstance(message, bytes):
        message = parse(message, tokenizer_pb2.ListTokenizersResponse(), PoisonedReplyError)
    if message.total < len(message.tokenizers):
        raise PoisonedReplyError("is less than the tokenizers listed", where="total")
    tokenizers = []
    for index, item in enumerate(message.tokenizers):
        where = f"tokenizers[{index}]"
        sizes = (("file_bytes", item.file_bytes), ("vocabulary_size", item.vocabulary_size))
        for name, size in sizes:
            if size < 0:
                raise PoisonedReplyError(f"is {size}, must be >= 0", where=f"{where}.{name}")
        if not 0 <= item.idle_seconds < math.inf:
            raise PoisonedReplyError(
                f"is {item.idle_seconds}, must be finite and >= 0", where=f"{where}.idle_seconds"
            )
        tokenizers.append(
            RegisteredTokenizer(
                run=item.run,
                tokenizer_hash=item.tokenizer_hash,
                content=item.content,
                file_bytes=item.file_bytes,
                vocabulary_size=item.vocabulary_size,
                levels=dict(_decode_by_teacher(item.levels, f"{where}.levels")),
                idle_seconds=item.idle_seconds,
            )
        )
    return RegisteredTokenizers(tuple(tokenizers), message.total)


def _encode_by_teacher(
    levels: Mapping[str, Level], differences: Mapping[str, str]
) -> list[tokenizer_pb2.TeacherLevel]:
    return [
        tokenizer_pb2.TeacherLevel(
            teacher=name,
            level=encode_level(level),
            difference=differences.get(name, ""),
        )
        for name, level in sorted(levels.items())
    ]


def _decode_by_teacher(items: Iterable[tokenizer_pb2.TeacherLevel], where: str) -> TokenizerLevels:
    levels: dict[str, Level] = {}
    differences: dict[str, str] = {}
    for index, item in enumerate(items):
        if item.teacher in levels:
            raise PoisonedReplyError("is listed twice", where=f"{where}[{index}].teacher")
        levels[item.teacher] = decode_level(item.level, f"{where}[{index}].level")
        if item.difference:
            differences[item.teacher] = item.difference
    return TokenizerLevels(levels, differences)
