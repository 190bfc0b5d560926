"""Students' tokenizers: each registered by the runs that use it, and run in a process of its own.

Nothing here parses a student's file or runs its tokenizer: that is what the processes of the
room ``workers`` are for.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from functools import partial

from teacher_proto.errors import ConfigurationError, TeacherUnavailableError
from teacher_proto.types import (
    Int32,
    Level,
    RegisteredTokenizer,
    RegisteredTokenizers,
    TokenizerLevels,
    TokenizerUpload,
)

from teacher_server.lanes import SingleThread
from teacher_server.refusals.errors import unknown_tokenizer
from teacher_server.refusals.facts import StudentFacts
from teacher_server.refusals.validation import check_uploaded_hash
from teacher_server.settings.tokenizers import TokenizerSettings
from teacher_server.teachers.teacher import Teacher
from teacher_server.tokenizers.differences import Differences
from teacher_server.tokenizers.entry import Entry
from teacher_server.tokenizers.store import TokenizerStore
from teacher_server.tokenizers.tables import forget_tables, sweep_tables, tables_of
from teacher_server.tokenizers.texts import encode, token_texts
from teacher_server.workers.forks import ForkServer
from teacher_server.workers.inside.vocabularies import TeacherFile
from teacher_server.workers.pool import Pool, key_of
from teacher_server.workers.process import Facts, StudentProcess
from teacher_server.workers.session import Session, open_session

log = logging.getLogger(__name__)

# Registrations in one answer of ``registered``.
MAX_LISTED = 256
RETRY_HINT = 5.0


@dataclass(frozen=True)
class Registered:
    """Attributes:
    tokenizer_hash: fingerprint of the file.
    levels: by the name of the teacher, with the differences of those that are not SAME;
        teachers that it does not fit are left out.
    """

    tokenizer_hash: str
    levels: TokenizerLevels


class StudentTokenizers:
    """The tokenizers that runs registered, each run's its own, and their processes.

    The process that they are forked from is started with the first of them, which takes as long
    as it takes to read the teachers' tokenizers.

    Raises:
        ConfigurationError: the store's folder cannot be used, or no process can be started
            for the tokenizers that it holds.
    """

    def __init__(self, settings: TokenizerSettings, teachers: Iterable[Teacher]) -> None:
        self.settings = settings
        self._store = TokenizerStore(settings)
        self._tables = None if settings.folder is None else settings.folder / "tables"
        sweep_tables(self._tables, set(map(_key, self._store.known())))
        self._thread = SingleThread("tokenizers")
        self._forks = ForkServer(
            {
                t.name: TeacherFile(t.tokenizer.hash, t.tokenizer.file, t.tokenizer.named_specials)
                for t in teachers
            }
        )
        self._starting = asyncio.Lock()
        self._tidies: set[asyncio.Task[None]] = set()
        if self._store.entries():
            self._forks.start()
        self._pool = Pool(self._forks, settings, partial(tables_of, self._tables))
        self._differences = Differences(self._pool, settings.worker_seconds)

    async def close(self) -> None:
        """Ends the processes."""
        await self._pool.close()
        await asyncio.gather(*self._tidies, return_exceptions=True)
        await self._thread.run(self._forks.close)
        self._thread.close()

    def find(self, run: str, hash_: str) -> Entry | None:
        """What this run registered; it counts as used."""
        return self._store.find(run, hash_)

    async def facts(self, entry: Entry, teacher: Teacher) -> StudentFacts:
        """Raises TeacherUnavailableError where no process can be started."""
        await self._started()
        return StudentFacts(entry.vocabulary_size, self.level(entry, teacher) is not None)

    def levels(self, teacher: Teacher, run: str | None) -> dict[str, Level]:
        """Level of every tokenizer of a run by its hash, the teacher's own included; without
        a run, of all runs."""
        if run is None:
            entries = self._store.entries()
        else:
            entries = [entry for _, entry in self._store.registrations(run)]
        levels = {entry.tokenizer_hash: self.level(entry, teacher) for entry in entries}
        found = {hash_: level for hash_, level in levels.items() if level is not None}
        return found | {teacher.tokenizer.hash: Level.SAME}

    def registered(self, run: str | None, teachers: Iterable[Teacher]) -> RegisteredTokenizers:
        """What a run has registered, or all runs have, with the levels of these teachers."""
        asked = list(teachers)
        found = self._store.registrations(run)
        return RegisteredTokenizers(
            tokenizers=tuple(
                RegisteredTokenizer(
                    run=one.run,
                    tokenizer_hash=one.tokenizer_hash,
                    content=entry.content,
                    file_bytes=entry.file_bytes,
                    vocabulary_size=entry.vocabulary_size,
                    levels={
                        teacher.name: level
                        for teacher in asked
                        if (level := self.level(entry, teacher)) is not None
                    },
                    idle_seconds=self._store.idle_seconds(one),
                )
                for one, entry in found[:MAX_LISTED]
            ),
            total=len(found),
        )

    def drop(self, run: str, hash_: str) -> bool:
        """Forgets what a run registered; whether there was such a registration."""
        gone = self._store.drop(run, hash_)
        self._forget_tables(gone or ())
        return gone is not None

    def level(self, entry: Entry, teacher: Teacher) -> Level | None:
        """None where the teacher's tokenizer cannot be realigned to."""
        return self._level(entry.tokenizer_hash, entry.ordinary_hash, teacher)

    def _level(self, hash_: str, ordinary_hash: str, teacher: Teacher) -> Level | None:
        if hash_ == teacher.tokenizer.hash:
            return Level.SAME
        side = self._forks.sides.get(teacher.name)
        if side is None or not side.ordinary_hash or not ordinary_hash:
            return None
        return Level.REMAP if ordinary_hash == side.ordinary_hash else Level.CROSS

    async def _started(self) -> None:
        """Returns once students' processes can be forked."""
        async with self._starting:
            if self._forks.sides:
                return
            try:
                await self._thread.run(self._forks.start)
            except ConfigurationError as error:
                log.error("%s", error)
                raise TeacherUnavailableError(
                    error.what,
                    where=error.where,
                    fix=error.fix,
                    reason="TOKENIZERS_RESTARTING",
                    retry_after=RETRY_HINT,
                ) from None

    async def register(
        self, upload: TokenizerUpload, run: str, teachers: Iterable[Teacher], *, named: bool = True
    ) -> Registered:
        """Keeps the tokenizer and builds its tables for these teachers.

        Args:
            named: whether the upload says which fingerprint its file has.

        Raises:
            InvalidRequestError: the file is not the one named, broken, of a kind that cannot
                be realigned, contradicting itself, or takes too much time or memory.
            ContractMismatchError: none of the teachers' tokenizers can be realigned to.
            OverloadedError, TeacherUnavailableError: see ``TokenizerStore.put`` and
                ``Pool.hold``; or its process was lost.
        """
        await self._started()
        asked, roles = list(teachers), upload.special_tokens
        sha256 = await self._thread.run(lambda: hashlib.sha256(upload.file).hexdigest())
        key, size = key_of(sha256, roles), len(upload.file)
        async with self._pool.hold(key, run, size) as process, self._tidying(key, process):
            facts = await self._pool.open(process, run, roles, lambda: upload.file)
            if named:
                check_uploaded_hash(upload.tokenizer_hash, facts.hash)
            levels = {
                teacher.name: level
                for teacher in asked
                if (level := self._level(facts.hash, facts.ordinary_hash, teacher)) is not None
            }
            if not levels:
                raise await self._differences.refusal(process, sha256, facts, asked)
            for teacher in asked:
                if levels.get(teacher.name, Level.SAME) is not Level.SAME:
                    side = self._forks.sides[teacher.name].number
                    await self._pool.build(process, run, teacher.name, side)
            known = [teacher for teacher in asked if teacher.name in levels]
            differences = await self._differences.describe(process, sha256, facts.hash, known)
            if facts.refusal is None:
                await self._keep(upload, run, sha256, facts)
        log.info(
            "tokenizer %s (%d bytes): %s",
            facts.hash,
            len(upload.file),
            "; ".join(
                f"{name} {level.name}, {differences.get(name) or 'one fingerprint'}"
                for name, level in levels.items()
            ),
        )
        return Registered(facts.hash, TokenizerLevels(levels, differences))

    @contextlib.asynccontextmanager
    async def _tidying(self, key: str, process: StudentProcess) -> AsyncIterator[None]:
        """Where a registration ends early, what was built for it on disk is deleted."""
        try:
            yield
        except BaseException:
            if self._tables is not None:
                task = asyncio.create_task(self._tidy(key, process))
                self._tidies.add(task)
                task.add_done_callback(self._tidies.discard)
            raise

    async def _tidy(self, key: str, process: StudentProcess) -> None:
        """Deletes the tables of a tokenizer, unless a run has registered it, once none of them
        is being built."""
        await asyncio.gather(*process.building.values(), return_exceptions=True)

        def forget() -> None:
            if key not in map(_key, self._store.known()):
                forget_tables(self._tables, [key])

        await self._thread.run(forget)

    async def _keep(self, upload: TokenizerUpload, run: str, sha256: str, facts: Facts) -> None:
        entry = Entry(
            tokenizer_hash=facts.hash,
            file_sha256=sha256,
            file_bytes=len(upload.file),
            ordinary_hash=facts.ordinary_hash,
            vocabulary_size=facts.vocabulary_size,
            roles=dict(upload.special_tokens),
        )

        def put() -> None:
            self._forget_tables(self._store.put(run, entry, upload.file))

        await self._thread.run(put)

    @contextlib.asynccontextmanager
    async def session(
        self, entry: Entry, run: str, teacher: Teacher, tokens: int
    ) -> AsyncIterator[Session]:
        """One request of this tokenizer to realign.

        Args:
            tokens: that the request has.

        Raises:
            ContractMismatchError: the tokenizer's file is gone.
            LsmError: see ``Pool``.
        """
        async with self._opened(entry, run) as process:
            side = self._forks.sides[teacher.name].number
            await self._pool.build(process, run, teacher.name, side)
            async with open_session(self._pool, process, run, teacher.name, tokens) as session:
                yield session

    async def encode(self, entry: Entry, run: str, texts: Sequence[str]) -> list[Int32]:
        """The ids of each text, int32 [L], in a tokenizer that ``find`` gave.

        Raises:
            ContractMismatchError: the tokenizer's file is gone.
            LsmError: see ``Pool``.
        """
        async with self._opened(entry, run) as process:
            return await encode(self._pool, process, run, texts, entry.vocabulary_size)

    async def token_texts(self, entry: Entry, run: str, ids: Int32) -> dict[int, str | None]:
        """The text of each id in a tokenizer that ``find`` gave; None for an id that no token
        has. Raises as ``encode``."""
        async with self._opened(entry, run) as process:
            return await token_texts(self._pool, process, run, ids)

    @contextlib.asynccontextmanager
    async def _opened(self, entry: Entry, run: str) -> AsyncIterator[StudentProcess]:
        """The process of a registered tokenizer."""
        await self._started()
        async with self._pool.hold(_key(entry), run, entry.file_bytes) as process:
            await self._pool.open(process, run, entry.roles, partial(self._read, entry))
            yield process

    def _read(self, entry: Entry) -> bytes:
        file = self._store.read(entry)
        if file is None:
            raise unknown_tokenizer(entry.tokenizer_hash)
        return file

    def _forget_tables(self, gone: Iterable[Entry]) -> None:
        """Deletes the tables on disk of tokenizers that no run has registered any more."""
        forget_tables(self._tables, map(_key, gone))


def _key(entry: Entry) -> str:
    """Of the tokenizer's process."""
    return key_of(entry.file_sha256, entry.roles)
