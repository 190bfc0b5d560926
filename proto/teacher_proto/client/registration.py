"""The tokenizers that a client has registered, to register them again if a server forgets."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from teacher_proto.errors import ContractMismatchError, LsmError
from teacher_proto.types import TokenizerUpload

UNKNOWN_TOKENIZER = "UNKNOWN_TOKENIZER"


@dataclass
class _Kept:
    upload: TokenizerUpload
    times: int = 0
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)


class Registrations:
    """The uploads of one client, by tokenizer hash."""

    def __init__(self) -> None:
        self._kept: dict[str, _Kept] = {}

    def registered(self, upload: TokenizerUpload) -> None:
        """Notes that the service has accepted this upload."""
        kept = self._kept.setdefault(upload.tokenizer_hash, _Kept(upload))
        kept.upload = upload
        kept.times += 1

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
