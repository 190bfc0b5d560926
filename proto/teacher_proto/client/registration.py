"""The tokenizers that a client has registered, to register them again if a server forgets."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

from teacher_proto.errors import ContractMismatchError, InvalidRequestError, LsmError
from teacher_proto.tokenizer_hash import other_version
from teacher_proto.types import TeacherInfo, TokenizerUpload

UNKNOWN_TOKENIZER = "UNKNOWN_TOKENIZER"
# Where a server finds fault with an upload whose fingerprint is not the one it computes.
FINGERPRINT_FIELD = "header.tokenizer_hash"


@dataclass
class _Kept:
    upload: TokenizerUpload
    times: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


def explained_hash(error: InvalidRequestError, teachers: Iterable[TeacherInfo]) -> LsmError:
    """A registration that was refused for its fingerprint, as the side to upgrade where the
    server's fingerprints, like those of its teachers, are of another version."""
    found = (_outdated(one.identity.tokenizer_hash, error.where) for one in teachers)
    return next((one for one in found if one is not None), error)


def explained_unknown(error: ContractMismatchError, info: TeacherInfo | None) -> LsmError:
    """A request that was refused for its tokenizer, as the side to upgrade where the
    server's fingerprints are of another version."""
    if info is None or error.reason != UNKNOWN_TOKENIZER:
        return error
    return _outdated(info.identity.tokenizer_hash, error.where) or error


def _outdated(theirs: str, where: str) -> ContractMismatchError | None:
    found = other_version(theirs, here="the client", there="the server")
    if found is None:
        return None
    return ContractMismatchError(
        found[0], where=where, fix=found[1], reason="TOKENIZER_HASH_VERSION"
    )


class Registrations:
    """The uploads of one client, by tokenizer hash."""

    def __init__(self) -> None:
        self._kept: dict[str, _Kept] = {}

    def registered(self, upload: TokenizerUpload) -> None:
        """Notes that the service has accepted this upload."""
        kept = self._kept.setdefault(upload.tokenizer_hash, _Kept(upload))
        kept.upload = upload
        kept.times += 1

    def dropped(self, tokenizer_hash: str) -> None:
        """Notes that the caller wants this tokenizer no longer known."""
        self._kept.pop(tokenizer_hash, None)

    def times(self, tokenizer_hash: str) -> int:
        """How often this tokenizer has been registered so far."""
        kept = self._kept.get(tokenizer_hash)
        return kept.times if kept else 0

    def can_mend(self, error: LsmError, tokenizer_hash: str) -> bool:
        """Whether registering the tokenizer again answers this refusal."""
        unknown = isinstance(error, ContractMismatchError) and error.reason == UNKNOWN_TOKENIZER
        return unknown and tokenizer_hash in self._kept

    async def again(
        self,
        tokenizer_hash: str,
        seen: int,
        register: Callable[[TokenizerUpload], Awaitable[object]],
    ) -> None:
        """Registers it unless that was done since ``times`` was ``seen``: of many
        requests that were refused together one registers and the others wait."""
        kept = self._kept[tokenizer_hash]
        async with kept.lock:
            if kept.times == seen:
                await register(kept.upload)
