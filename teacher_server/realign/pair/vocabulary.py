"""A tokenizer as bytes: which bytes each id stands for, and how bytes become ids."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from teacher_proto.errors import ConfigurationError
from teacher_proto.program.byte_alphabet import byte_alphabet
from teacher_proto.tokenizer_hash import tokenizer_hash
from teacher_proto.types import Bool, Int32, SpecialRole, UInt8

from teacher_server.realign.pair.encoder import ByteEncoder
from teacher_server.realign.pair.roles import role_table

Kind = Literal["byte_level", "byte_fallback"]
MAX_ID = 2**22


@dataclass(frozen=True)
class Vocabulary:
    """A parsed tokenizer of V ids.

    Attributes:
        hash: ``teacher_proto.tokenizer_hash`` of the file.
        ordinary_hash: the same without the added tokens.
        token_bytes: V entries; empty where an id is special or has no token.
        specials: special id -> its text. Added tokens that ordinary text also
            encodes to (they are in the model's vocabulary and not special) are
            ordinary.
        roles: special id -> role.
        encoder: bytes to ids, no normaliser, specials as text.
    """

    hash: str
    ordinary_hash: str
    kind: Kind
    token_bytes: tuple[bytes, ...]
    specials: Mapping[int, str]
    roles: Mapping[int, SpecialRole]
    encoder: ByteEncoder

    @property
    def size(self) -> int:
        return len(self.token_bytes)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """int64 [V], bytes."""
        return np.array([len(data) for data in self.token_bytes], np.int64)

    @cached_property
    def lengths_list(self) -> list[int]:
        """``lengths`` for loops in Python."""
        found: list[int] = self.lengths.tolist()
        return found

    @cached_property
    def ordinary(self) -> Bool:
        return self.lengths > 0

    @cached_property
    def first_byte(self) -> UInt8:
        """uint8 [V]; 0 for ids without bytes."""
        return np.array([data[0] if data else 0 for data in self.token_bytes], np.uint8)

    @cached_property
    def last_byte(self) -> UInt8:
        return np.array([data[-1] if data else 0 for data in self.token_bytes], np.uint8)

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """Ordinary ids in the order of their bytes."""
        ids = np.flatnonzero(self.ordinary).tolist()
        return np.array(sorted(ids, key=self.token_bytes.__getitem__), np.int64)

    @cached_property
    def sorted_bytes(self) -> list[bytes]:
        return [self.token_bytes[token] for token in self.order.tolist()]

    @cached_property
    def by_bytes(self) -> Mapping[bytes, int]:
        """An ordinary id for its bytes; of several the lowest."""
        ids = np.flatnonzero(self.ordinary).tolist()
        return {self.token_bytes[token]: token for token in reversed(ids)}

    @cached_property
    def rank(self) -> Int32:
        """int32 [V]: the place of an id in ``order``; -1 for ids without bytes."""
        ranks = np.full(self.size, -1, np.int32)
        ranks[self.order] = np.arange(len(self.order))
        return ranks

    def extensions(self, prefix: bytes) -> tuple[int, int]:
        """Ranks [low, high) of the ids whose bytes begin with ``prefix`` (itself included)."""
        low = bisect_left(self.sorted_bytes, prefix)
        return low, bisect_left(self.sorted_bytes, _after(prefix), low)

    @cached_property
    def adjacent(self) -> Bool:
        """bool [256, 256]: whether some token holds byte x followed by byte y.

        Where none does, no encoding of a text has a token across such a pair.
        """
        pairs = np.zeros((256, 256), np.bool_)
        for data in self.token_bytes:
            if len(data) > 1:
                values = np.frombuffer(data, np.uint8)
                pairs[values[:-1], values[1:]] = True
        return pairs

    @cached_property
    def merges_spaces(self) -> bool:
        """Whether the last of several spaces is not given to the word behind them."""
        ids = self.encoder.encode(b"a    b").ids.tolist()
        return bool(self.token_bytes[ids[-1]] == b"b")

    @cached_property
    def begins_with_mark(self) -> Bool:
        """bool [V]: the first character is neither letter, digit nor space."""
        return np.array([is_mark(data.decode("utf-8", "ignore")[:1]) for data in self.token_bytes])

    @cached_property
    def begins_with_space(self) -> Bool:
        """bool [V]."""
        return np.array([data[:1].isspace() for data in self.token_bytes], np.bool_)

    @cached_property
    def only_space(self) -> Bool:
        """bool [V]."""
        return np.array([data.isspace() for data in self.token_bytes], np.bool_)

    @cached_property
    def begins_with_part(self) -> Bool:
        """bool [V]: there is only a part of the first character, not its end."""
        return np.array(
            [
                data[:1] >= b"\xc0" and incomplete_tail(data) == len(data)
                for data in self.token_bytes
            ],
            np.bool_,
        )

    @cached_property
    def tail_only(self) -> Bool:
        """bool [V]: middle bytes of a character alone, so that what precedes the token
        decides whether a character ends with it."""
        return np.array(
            [all(byte & 0xC0 == 0x80 for byte in data[-3:]) for data in self.token_bytes], np.bool_
        )

    @cached_property
    def ends_inside_character(self) -> Bool:
        """bool [V]: a UTF-8 character begins in the token and does not end in it."""
        return np.array([incomplete_tail(data) > 0 for data in self.token_bytes], np.bool_)


def is_mark(letter: str) -> bool:
    """Neither letter, digit nor space; an empty string is none."""
    return letter != "" and not (letter.isalnum() or letter.isspace())


def _after(prefix: bytes) -> bytes:
    """The lowest bytes above everything that begins with ``prefix``."""
    stripped = prefix.rstrip(b"\xff")
    assert stripped, "bytes of 0xff only are no token"
    return stripped[:-1] + bytes([stripped[-1] + 1])


def incomplete_tail(data: bytes) -> int:
    """How many bytes at the end belong to a UTF-8 character that goes on; 0 to 3."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue
        needed = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
        return back if back < needed else 0
    return 0


def read_vocabulary(
    file: bytes | str, given_roles: Mapping[int, SpecialRole] | None = None
) -> Vocabulary:
    """Parses a tokenizer.json.

    Args:
        given_roles: roles of special ids, where the caller knows them.

    Raises:
        ConfigurationError: broken, of a kind that cannot be realigned, or
            contradicting itself.
    """
    digest = tokenizer_hash(file)
    document = json.loads(file)
    model = document["model"]
    if model.get("type", "BPE") != "BPE" or not isinstance(model.get("vocab"), dict):
        raise _refused(f"its model is {model.get('type')!r}, not BPE")
    kind = _kind(document)
    vocab: dict[str, int] = model["vocab"]
    added: Sequence[Mapping[str, Any]] = document.get("added_tokens") or ()
    size = 1 + max([*vocab.values(), *(token["id"] for token in added)], default=-1)
    if not 0 < size <= MAX_ID:
        raise _refused(f"its ids go up to {size - 1}; 0..{MAX_ID - 1} can be read")
    specials = _specials(added, vocab)
    table = [b""] * size
    alphabet = byte_alphabet()
    for text, token in vocab.items():
        if token not in specials:
            table[token] = _token_bytes(text, kind, alphabet)
        elif specials[token] != text:
            raise _refused(f"id {token} is {specials[token]!r} and another token, {text!r}")
    roles = given_roles or {}
    unknown = sorted(set(roles) - set(specials))
    if unknown:
        raise _refused(f"a role is given for id {unknown[0]}, which is no special token of it")
    return Vocabulary(
        hash=digest,
        ordinary_hash=tokenizer_hash(json.dumps(document | {"added_tokens": []})),
        kind=kind,
        token_bytes=tuple(table),
        specials=specials,
        roles=role_table(specials, roles),
        encoder=ByteEncoder(document, kind, table, specials),
    )


def _kind(document: Mapping[str, Any]) -> Kind:
    for part in ("pre_tokenizer", "decoder"):
        if '"ByteLevel"' in json.dumps(document.get(part)):
            return "byte_level"
    vocab = document["model"]["vocab"]
    fallback = all(f"<0x{b:02X}>" in vocab for b in range(0x80, 0x100))
    if document["model"].get("byte_fallback") and fallback:
        return "byte_fallback"
    raise _refused("it is neither byte-level nor has a token for every byte to fall back on")


def _specials(added: Sequence[Mapping[str, Any]], vocab: Mapping[str, int]) -> dict[int, str]:
    specials: dict[int, str] = {}
    for token in added:
        text, number = token["content"], token["id"]
        if number < 0 or not text:
            raise _refused(f"its added token {text!r} has id {number}")
        in_model = vocab.get(text)
        if in_model is not None and in_model != number:
            raise _refused(f"{text!r} has id {number} and, in the model, {in_model}")
        if specials.get(number, text) != text:
            raise _refused(f"id {number} is {specials[number]!r} and {text!r}")
        if token.get("special") or in_model is None:
            specials[number] = text
    return specials


def _token_bytes(text: str, kind: Kind, alphabet: Mapping[str, int]) -> bytes:
    if kind == "byte_level":
        try:
            return bytes(alphabet[letter] for letter in text)
        except KeyError:
            return text.encode("utf-8", "surrogatepass")
    if len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
        return bytes([int(text[3:5], 16)])
    return text.replace("\u2581", " ").encode("utf-8", "surrogatepass")


def _refused(what: str) -> ConfigurationError:
    return ConfigurationError(
        f"the tokenizer cannot be realigned: {what}",
        where="tokenizer.json",
        fix="give a BPE tokenizer.json that is byte-level or has byte fallback",
    )
