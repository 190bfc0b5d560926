"""The tokenizers that a client has registered, to register them again if a server forgets."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field, replace

from teacher_proto.errors import ContractMismatchError, InvalidRequestError, LsmError
from teacher_proto.tokenizer_hash import other_version
from teacher_proto.types import TeacherInfo, TokenizerUpload

UNKNOWN_TOKENIZER = "UNKNOWN_TOKENIZER"
# Where a server finds fault with an upload whose fingerprint is not the one it computes.
FINGERPRINT_FIELD = "header.tokenizer_hash"


@dataclass
class _Kept:
    """What is known of one run's registration of one tokenizer."""

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
    """The uploads of one client, by tokenizer hash, and for which runs they were registered."""

    def __init__(self) -> None:
        self._uploads: dict[str, TokenizerUpload] = {}
        self._kept: dict[tuple[str, str], _Kept] = {}

    def registered(self, upload: TokenizerUpload) -> None:
        """Notes that the service has accepted this upload."""
        self._uploads[upload.tokenizer_hash] = upload
        self._of(upload.run, upload.tokenizer_hash).times += 1

    def dropped(self, tokenizer_hash: str) -> None:
        """Notes that the caller wants this tokenizer no longer known."""
        self._uploads.pop(tokenizer_hash, None)

    def times(self, run: str, tokenizer_hash: str) -> int:
        """How often this tokenizer has been registered so far for a run."""
        kept = self._kept.get((run, tokenizer_hash))
        return kept.times if kept else 0

    def can_mend(self, error: LsmError, tokenizer_hash: str) -> bool:
        """Whether registering the tokenizer again answers this refusal."""
        unknown = isinstance(error, ContractMismatchError) and error.reason == UNKNOWN_TOKENIZER
        return unknown and tokenizer_hash in self._uploads

    async def again(
        self,
        run: str,
        tokenizer_hash: str,
        seen: int,
        register: Callable[[TokenizerUpload], Awaitable[object]],
    ) -> None:
        """Registers it for a run unless that was done since ``times`` was ``seen``: of many
        requests that were refused together one registers and the others wait."""
        kept = self._of(run, tokenizer_hash)
        async with kept.lock:
            upload = self._uploads.get(tokenizer_hash)
            if kept.times == seen and upload is not None:
                await register(replace(upload, run=run))

    def _of(self, run: str, tokenizer_hash: str) -> _Kept:
        return self._kept.setdefault((run, tokenizer_hash), _Kept())
