"""A tokenizer as bytes: which bytes each id stands for, and how bytes become ids."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from teacher_proto.fingerprint.parts import Fingerprint, content_of, read_fingerprint
from teacher_proto.tokenizer_hash import versioned
from teacher_proto.types import Bool, Int32, SpecialRole, UInt8

from teacher_server.realign.pair.added import AddedTexts
from teacher_server.realign.pair.encoder import ByteEncoder
from teacher_server.realign.pair.roles import role_table
from teacher_server.realign.pair.tokenizer_json import Kind, parse_tokenizer, refused


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer of V ids. An id is *ordinary* when it stands for bytes of text, which
    special ids do not.

    Attributes:
        hash: ``teacher_proto.tokenizer_hash`` of the file.
        ordinary_hash: the same without the added tokens.
        kind: how the file spells bytes.
        token_bytes: V entries; empty where an id is special or has no token.
        specials: special id -> its text. Added tokens that ordinary text also
            encodes to (they are in the model's vocabulary and not special) are
            ordinary.
        roles: special id -> role.
        encoder: bytes to ids, without normaliser and with special tokens read as text.
    """

    hash: str
    ordinary_hash: str
    kind: Kind
    token_bytes: tuple[bytes, ...]
    specials: Mapping[int, str]
    roles: Mapping[int, SpecialRole]
    encoder: ByteEncoder
    unknown: str | None = None
    spelt: frozenset[int] = frozenset()

    def with_text(self, tokens: frozenset[int]) -> Vocabulary:
        """The same with these special ids as ordinary ones, which stand for their text."""
        if not tokens:
            return self
        table = list(self.token_bytes)
        for token in tokens:
            table[token] = self.specials[token].encode()
        specials = {token: text for token, text in self.specials.items() if token not in tokens}
        return replace(
            self,
            token_bytes=tuple(table),
            specials=specials,
            roles={token: self.roles[token] for token in specials},
            encoder=self.encoder.recognising(table, {table[token]: token for token in tokens}),
            spelt=self.spelt | tokens,
        )

    @cached_property
    def special_ids(self) -> Mapping[str, int]:
        """text -> special id."""
        return {text: token for token, text in self.specials.items()}

    @cached_property
    def is_spelt(self) -> Bool:
        """bool [V]: the id is one of ``spelt``."""
        spelt = np.zeros(self.size, np.bool_)
        spelt[list(self.spelt)] = True
        return spelt

    @cached_property
    def added(self) -> AddedTexts:
        """The texts of ``spelt``."""
        return AddedTexts(self.token_bytes[token] for token in self.spelt)

    @property
    def size(self) -> int:
        return len(self.token_bytes)

    @cached_property
    def lengths(self) -> NDArray[np.int64]:
        """int64 [V], bytes; 0 for special ids."""
        return np.array([len(data) for data in self.token_bytes], np.int64)

    @cached_property
    def lengths_list(self) -> list[int]:
        """``lengths`` for loops in Python, which read a list faster than an array."""
        found: list[int] = self.lengths.tolist()
        return found

    @cached_property
    def ordinary(self) -> Bool:
        """bool [V]."""
        return self.lengths > 0

    @cached_property
    def first_byte(self) -> UInt8:
        """uint8 [V]; 0 for ids without bytes."""
        return np.array([data[0] if data else 0 for data in self.token_bytes], np.uint8)

    @cached_property
    def order(self) -> NDArray[np.int64]:
        """Ordinary ids in the order of their bytes. The place of an id in it is its *rank*:
        all tokens that begin with the same bytes have neighbouring ranks."""
        ids = np.flatnonzero(self.ordinary).tolist()
        return np.array(sorted(ids, key=self.token_bytes.__getitem__), np.int64)

    @cached_property
    def sorted_bytes(self) -> list[bytes]:
        """The bytes of each id in ``order``."""
        return [self.token_bytes[token] for token in self.order.tolist()]

    @cached_property
    def rank(self) -> Int32:
        """int32 [V]: the place of an id in ``order``; -1 for ids without bytes."""
        ranks = np.full(self.size, -1, np.int32)
        ranks[self.order] = np.arange(len(self.order))
        return ranks

    @cached_property
    def is_number(self) -> Bool:
        """bool [V]: digits of ASCII, with or without a space before them."""
        return np.array([data.removeprefix(b" ").isdigit() for data in self.token_bytes], np.bool_)

    @cached_property
    def numbers_below(self) -> NDArray[np.int64]:
        """int64 [ordinary ids + 1]: how many tokens of lower rank are numbers."""
        return np.concatenate([[0], np.cumsum(self.is_number[self.order])])

    @cached_property
    def by_bytes(self) -> Mapping[bytes, int]:
        """The ordinary id of given bytes; the lowest, where several ids have the same."""
        ids = np.flatnonzero(self.ordinary).tolist()
        return {self.token_bytes[token]: token for token in reversed(ids)}

    def prefix_range(self, prefix: bytes) -> tuple[int, int]:
        """Ranks [low, high) of the tokens that begin with ``prefix``; a token that equals
        it is among them."""
        low = bisect_left(self.sorted_bytes, prefix)
        return low, bisect_left(self.sorted_bytes, _after(prefix), low)

    def longer_range(self, prefix: bytes) -> tuple[int, int]:
        """Ranks [low, high) of the tokens that begin with ``prefix`` and are longer; (0, 0)
        for a prefix of 0xff bytes only, which no UTF-8 text holds."""
        if not prefix.strip(b"\xff"):
            return 0, 0
        low, high = self.prefix_range(prefix)
        while low < high and len(self.sorted_bytes[low]) == len(prefix):
            low += 1
        return low, high

    @cached_property
    def adjacent(self) -> Bool:
        """bool [256, 256]: whether some token holds byte x followed by byte y.

        Where none does, no encoding of any text has a token across such a pair.
        """
        pairs = np.zeros((256, 256), np.bool_)
        for data in self.token_bytes:
            if len(data) > 1:
                values = np.frombuffer(data, np.uint8)
                pairs[values[:-1], values[1:]] = True
        return pairs

    @cached_property
    def merges_spaces(self) -> bool:
        """Whether a run of spaces is one token that includes the last space. Most tokenizers
        leave the last one to the word after them."""
        try:
            ids = self.encoder.encode(b"a    b").ids.tolist()
        except ValueError:  # it has no token for one of these letters
            return False
        return bool(self.token_bytes[ids[-1]] == b"b")

    @cached_property
    def begins_with_symbol(self) -> Bool:
        """bool [V]: the first character is neither letter, digit nor white space."""
        first = [data.decode("utf-8", "ignore")[:1] for data in self.token_bytes]
        return np.array([is_symbol(character) for character in first])

    @cached_property
    def only_character_start(self) -> Bool:
        """bool [V]: the token is the first bytes of one UTF-8 character, without its last."""
        return np.array(
            [
                data[:1] >= b"\xc0" and incomplete_tail(data) == len(data)
                for data in self.token_bytes
            ],
            np.bool_,
        )

    @cached_property
    def ends_inside_character(self) -> Bool:
        """bool [V]: a UTF-8 character begins in the token and does not end in it."""
        return np.array([incomplete_tail(data) > 0 for data in self.token_bytes], np.bool_)


def is_symbol(character: str) -> bool:
    """Whether it is neither letter, digit nor white space; False for an empty string."""
    return character != "" and not (character.isalnum() or character.isspace())


def incomplete_tail(data: bytes) -> int:
    """How many bytes at the end belong to a UTF-8 character whose last byte is missing; 0
    to 3."""
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue
        needed = 4 if byte >= 0xF0 else 3 if byte >= 0xE0 else 2 if byte >= 0xC0 else 1
        return back if back < needed else 0
    return 0


def _after(prefix: bytes) -> bytes:
    """The lowest bytes that sort after everything that begins with ``prefix``."""
    stripped = prefix.rstrip(b"\xff")
    assert stripped, "bytes of 0xff only are no token"
    return stripped[:-1] + bytes([stripped[-1] + 1])


def read_vocabulary(
    file: bytes | str, given_roles: Mapping[int, SpecialRole] | None = None
) -> Vocabulary:
    """Reads a tokenizer.json; see ``vocabulary_of``. Raises ConfigurationError as well for
    what has no fingerprint."""
    found, content = read_fingerprint(file), content_of(file)
    assert isinstance(content, dict)  # as all that have a fingerprint
    return vocabulary_of(content, found, given_roles)


def vocabulary_of(
    content: Mapping[str, Any],
    fingerprint: Fingerprint,
    given_roles: Mapping[int, SpecialRole] | None = None,
) -> Vocabulary:
    """Of what a tokenizer.json holds.

    Args:
        given_roles: roles of special ids, where the caller knows them.

    Raises:
        ConfigurationError: of a kind that cannot be realigned, or contradicting itself.
    """
    parsed = parse_tokenizer(content)
    roles = given_roles or {}
    unknown = sorted(set(roles) - set(parsed.specials))
    if unknown:
        raise refused(f"a role is given for id {unknown[0]}, which is no special token of it")
    return Vocabulary(
        hash=versioned(fingerprint.digest),
        ordinary_hash=versioned(fingerprint.without_added_tokens),
        kind=parsed.kind,
        token_bytes=parsed.token_bytes,
        specials=parsed.specials,
        roles=role_table(parsed.specials, roles),
        encoder=ByteEncoder(parsed.content, parsed.kind, parsed.token_bytes, parsed.specials),
        unknown=parsed.content["model"].get("unk_token"),
    )
