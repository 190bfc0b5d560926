"""Which positions are masked: those whose sampled token is an artefact of a template or
tokenizer (arXiv 2603.25562, special-token masking).

A literal is searched for in the bytes of the response's tokens. It is therefore found
both as one special token and spelled out over several tokens, and every token that
carries a byte of it is masked. Text that only resembles it (a bare "<") is not masked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from teacher_proto.errors import ConfigurationError
from teacher_proto.program.byte_alphabet import byte_alphabet
from teacher_proto.types import Bool, Int32

from student_trainer.losses.parts.loss import MaskSettings


@dataclass(frozen=True)
class TokenMask:
    """Finds masked positions.

    Attributes:
        literals: byte strings to search for.
        token_ids: ids that are masked wherever they are sampled.
        support_ids: ids to remove from supports.
        pieces: the bytes of each id.
    """

    literals: tuple[bytes, ...]
    token_ids: Int32
    support_ids: Int32
    pieces: dict[int, bytes] = field(repr=False)

    def masked(self, response: Int32) -> Bool:
        """bool [n]: True where the sampled token is masked."""
        result = np.isin(response, self.token_ids)
        if not self.literals:
            return result
        pieces = [self.pieces.get(int(token), b"") for token in response]
        ends = np.cumsum([len(piece) for piece in pieces])
        text = b"".join(pieces)
        for literal in self.literals:
            start = text.find(literal)
            while start >= 0:
                first = int(np.searchsorted(ends, start, side="right"))
                last = int(np.searchsorted(ends, start + len(literal), side="left"))
                result[first : last + 1] = True
                start = text.find(literal, start + 1)
        return result


def token_mask(settings: MaskSettings, tokenizer: Any, vocabulary_size: int) -> TokenMask:
    """The mask of these settings.

    Raises:
        ConfigurationError: an id is outside the vocabulary, or literals are
            given and the bytes of this tokenizer's tokens are not known.
    """
    for token in settings.token_ids:
        if token >= vocabulary_size:
            raise ConfigurationError(
                f"id {token} is outside the student's vocabulary of {vocabulary_size}",
                where="loss.mask.token_ids",
            )
    literals = tuple(text.encode() for text in settings.strings)
    pieces = token_bytes(tokenizer) if literals else {}
    whole = [token for token, piece in pieces.items() if piece in literals]
    ids = np.asarray(sorted(settings.token_ids), np.int32)
    support = sorted({*settings.token_ids, *whole}) if settings.remove_from_support else []
    return TokenMask(literals, ids, np.asarray(support, np.int32), pieces)


def token_bytes(
    tokenizer: Any,
    where: str = "loss.mask.strings",
    fix: str = "set loss.mask.strings = [] and list ids in loss.mask.token_ids",
) -> dict[int, bytes]:
    """The bytes of every id of a byte-level or SentencePiece-like tokenizer.

    Args:
        where, fix: of the error.

    Raises:
        ConfigurationError: the tokenizer is of another kind.
    """
    backend = tokenizer.backend_tokenizer
    kinds = _decoder_kinds(json.loads(backend.to_str())["decoder"])
    added = {token: str(a.content).encode() for token, a in _added(backend).items()}
    vocabulary = backend.get_vocab(with_added_tokens=False).items()
    if "ByteLevel" in kinds:
        table = byte_alphabet()
        plain = {i: _through(table, token) for token, i in vocabulary}
    elif kinds & {"ByteFallback", "Metaspace", "Replace"}:
        plain = {i: _sentence_piece(token) for token, i in vocabulary}
    else:
        raise ConfigurationError(
            f"the bytes of this tokenizer's tokens are not known (decoder {sorted(kinds)})",
            where=where,
            fix=fix,
        )
    return plain | added


def _added(backend: Any) -> dict[int, Any]:
    result: dict[int, Any] = backend.get_added_tokens_decoder()
    return result


def _decoder_kinds(decoder: Any) -> set[str]:
    if decoder is None:
        return set()
    inner: Sequence[Any] = decoder.get("decoders", ())
    return {decoder["type"]}.union(*(_decoder_kinds(d) for d in inner))


def _sentence_piece(token: str) -> bytes:
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace("\u2581", " ").encode()


def _through(table: Mapping[str, int], token: str) -> bytes:
    if all(character in table for character in token):
        return bytes(table[character] for character in token)
    return token.encode()
