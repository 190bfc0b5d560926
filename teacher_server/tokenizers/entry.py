"""What is known of a tokenizer that was registered, and of each registration of it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from teacher_proto.types import SpecialRole

Roles = Mapping[int, SpecialRole]


@dataclass(frozen=True)
class Entry:
    """A tokenizer as it is used, known without parsing its file again.

    Two files of one fingerprint may have other decoders and flags of added tokens, and two
    runs may give the special ids of one file other roles: each of these is an entry of its own.

    Attributes:
        tokenizer_hash: fingerprint of the file.
        file_sha256, file_bytes: of tokenizer.json.
        ordinary_hash: ``Vocabulary.ordinary_hash``.
        vocabulary_size: one above the highest id.
        roles: of special ids, as they were given.
    """

    tokenizer_hash: str
    file_sha256: str
    file_bytes: int
    ordinary_hash: str
    vocabulary_size: int
    roles: Roles

    @cached_property
    def content(self) -> str:
        """sha256, hexadecimal, over fingerprint, file and roles: what decides how text is
        scored. Equal contents are kept once, whoever registered them."""
        parts = (self.tokenizer_hash, self.file_sha256, _plain(self.roles))
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Registration:
    """That a run registered a tokenizer, which it uses from then on.

    Attributes:
        content: of the entry.
        registered, used: seconds since the epoch; registering counts as a use.
    """

    run: str
    tokenizer_hash: str
    content: str
    registered: float
    used: float

    @property
    def key(self) -> tuple[str, str]:
        """A run has at most one registration of a fingerprint."""
        return self.run, self.tokenizer_hash


def as_json(entry: Entry) -> dict[str, Any]:
    return {
        "tokenizer_hash": entry.tokenizer_hash,
        "file_sha256": entry.file_sha256,
        "file_bytes": entry.file_bytes,
        "ordinary_hash": entry.ordinary_hash,
        "vocabulary_size": entry.vocabulary_size,
        "roles": _plain(entry.roles),
    }


def entry_of(known: Any) -> Entry:
    """The entry of a document that ``as_json`` made.

    Raises:
        ValueError, KeyError, TypeError, AttributeError: it is none.
    """
    return Entry(
        tokenizer_hash=str(known["tokenizer_hash"]),
        file_sha256=str(known["file_sha256"]),
        file_bytes=_integer(known["file_bytes"]),
        ordinary_hash=str(known["ordinary_hash"]),
        vocabulary_size=_integer(known["vocabulary_size"]),
        roles={int(token): SpecialRole[role] for token, role in known["roles"].items()},
    )


def _integer(number: Any) -> int:
    if type(number) is not int or number < 0:
        raise ValueError("no number of anything")
    return number


def _plain(roles: Roles) -> dict[str, str]:
    return {str(token): role.name for token, role in sorted(roles.items())}
