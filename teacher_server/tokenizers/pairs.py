"""Students' tokenizers, each registered once, and the pairs they form with the teachers'.

Files are parsed and tables built in one thread, one after the other. Each pair of
tokenizers has a thread of its own for its rollouts: a ``Realigner`` serves one at once.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Generator, Iterable
from functools import partial

from teacher_proto.errors import ConfigurationError, InvalidRequestError
from teacher_proto.tokenizer_hash import tokenizer_hash
from teacher_proto.types import Level, TokenizerLevels, TokenizerUpload

from teacher_server.config import TokenizerSettings
from teacher_server.frames import Frame
from teacher_server.lanes import SingleThread
from teacher_server.realign.pair.cache import TableCache, student_of
from teacher_server.realign.pair.tables import PairTables
from teacher_server.realign.pair.vocabulary import Vocabulary
from teacher_server.realign.paired import Pair
from teacher_server.realign.requests.serve import serve
from teacher_server.refusals.errors import compared, realignment_unavailable, unknown_tokenizer
from teacher_server.refusals.facts import StudentFacts
from teacher_server.refusals.validation import check_uploaded_hash
from teacher_server.teachers.teacher import Teacher
from teacher_server.teachers.tokenizer import TextTokenizer
from teacher_server.tokenizers.differences import Differences
from teacher_server.tokenizers.entry import Entry
from teacher_server.tokenizers.store import TokenizerStore
from teacher_server.tokenizers.vocabularies import (
    student_vocabulary,
    teacher_vocabularies,
)

log = logging.getLogger(__name__)

# Parsed for the texts of HTTP requests and replies.
MAX_TEXTS = 8
# The student's content, and which of the teachers' vocabularies.
PairKey = tuple[str, int]


class PairInUse:
    """A pair and the thread of its own in which its requests are realigned."""

    def __init__(self, tables: PairTables) -> None:
        self.pair = Pair(tables)
        self.thread = SingleThread("realign")


class Session:
    """One request that is realigned in its pair's thread."""

    def __init__(self, used: PairInUse) -> None:
        self._used = used
        self._work: Generator[Frame, Frame, None] | None = None

    async def ask(self, frame: Frame) -> Frame:
        """What it says after ``frame``."""
        return await self._used.thread.run(partial(self._next, frame))

    def _next(self, frame: Frame) -> Frame:
        if self._work is None:
            self._work = serve(self._used.pair, frame)
            return next(self._work)
        return self._work.send(frame)

    async def close(self) -> None:
        await self._used.thread.run(self._drop)

    def _drop(self) -> None:
        if self._work is not None:
            self._work.close()


class StudentTokenizers:
    """The tokenizers that runs registered, each run's its own, and the pairs in use.

    Raises:
        ConfigurationError: the store's folder cannot be used.
    """

    def __init__(self, settings: TokenizerSettings, teachers: Iterable[Teacher]) -> None:
        self.settings = settings
        self._store = TokenizerStore(settings)
        self._tables = None if settings.folder is None else settings.folder / "tables"
        self._forget_tables()
        self._cache = TableCache(self._tables, max_pairs=0)
        self._pairs: OrderedDict[PairKey, asyncio.Task[PairInUse]] = OrderedDict()
        self._texts: OrderedDict[str, TextTokenizer] = OrderedDict()
        self._parsed: tuple[str, Vocabulary] | None = None
        self._teachers = teacher_vocabularies({t.name: t.tokenizer for t in teachers})
        self._differences = Differences()
        self._thread = SingleThread("tokenizers")

    def find(self, run: str, hash_: str) -> Entry | None:
        """What this run registered; it counts as used."""
        return self._store.find(run, hash_)

    def facts(self, entry: Entry, teacher: Teacher) -> StudentFacts:
        return StudentFacts(entry.vocabulary_size, self.level(entry, teacher) is not None)

    def levels(self, teacher: Teacher, run: str | None) -> dict[str, Level]:
        """Level of every tokenizer of a run by its hash, the teacher's own included; without
        a run, of all runs."""
        found: dict[str, Level] = {}
        for one, entry in self._store.registrations(run):
            level = self.level(entry, teacher)
            if level is not None:
                found.setdefault(one.tokenizer_hash, level)
        return found | {teacher.tokenizer.hash: Level.SAME}

    def level(self, entry: Entry, teacher: Teacher) -> Level | None:
        """None where the teacher's tokenizer cannot be realigned to."""
        if entry.tokenizer_hash == teacher.tokenizer.hash:
            return Level.SAME
        side = self._teachers[teacher.name]
        if side is None:
            return None
        return Level.REMAP if entry.ordinary_hash == side.ordinary_hash else Level.CROSS

    async def register(
        self, upload: TokenizerUpload, run: str, teachers: Iterable[Teacher]
    ) -> TokenizerLevels:
        """Keeps the tokenizer and builds its tables for these teachers.

        Returns:
            Its level by the name of the teacher, with the differences of those that are not
            SAME; teachers that it does not fit are left out.

        Raises:
            InvalidRequestError: the file is not the one named, broken, of a kind that
                cannot be realigned or contradicting itself.
            ContractMismatchError: none of the teachers' tokenizers can be realigned to.
            OverloadedError, TeacherUnavailableError: see ``TokenizerStore.put``.
        """
        asked = list(teachers)
        same = any(t.tokenizer.hash == upload.tokenizer_hash for t in asked)
        try:
            entry = await self._thread.run(partial(self._accept, upload, run, same))
        except InvalidRequestError as error:
            if error.reason == "TOKENIZER_REFUSED":
                error = compared(error, await self._different(upload, asked))
            raise error from None
        levels = {t.name: Level.SAME for t in asked if t.tokenizer.hash == upload.tokenizer_hash}
        if entry is not None:
            levels |= {t.name: found for t in asked if (found := self.level(entry, t)) is not None}
        if not levels:
            raise compared(
                realignment_unavailable(
                    "no teacher of this server has this tokenizer", "header.tokenizer_hash"
                ),
                await self._different(upload, asked),
            )
        for teacher in asked:
            if levels.get(teacher.name, Level.SAME) is not Level.SAME:
                assert entry is not None
                await self.pair(entry, teacher)
        differences = await self._different(upload, [t for t in asked if t.name in levels])
        log.info(
            "tokenizer %s (%d bytes): %s",
            upload.tokenizer_hash,
            len(upload.file),
            "; ".join(
                f"{name} {level.name}, {differences.get(name) or 'one fingerprint'}"
                for name, level in levels.items()
            ),
        )
        return TokenizerLevels(levels, differences)

    async def _different(
        self, upload: TokenizerUpload, teachers: Iterable[Teacher]
    ) -> dict[str, str]:
        """How the tokenizer differs from those teachers' that have another fingerprint."""

        def describe() -> dict[str, str]:
            file, named = upload.file, upload.tokenizer_hash
            others = [t for t in teachers if t.tokenizer.hash != named]
            own = hashlib.sha256(file).hexdigest()
            return {t.name: self._differences.describe(own, file, t.tokenizer) for t in others}

        return await self._thread.run(describe)

    async def pair(self, entry: Entry, teacher: Teacher) -> PairInUse:
        """The pair of a registered tokenizer and a teacher's; built unless it is known already.

        Raises:
            ContractMismatchError: the tokenizer's file is gone.
        """
        side = self._teachers[teacher.name]
        assert side is not None
        key = (entry.content, id(side))
        task = self._pairs.get(key)
        if task is None or (task.done() and (task.cancelled() or task.exception())):
            # A task of its own: others may wait for it when one caller gives up.
            build = partial(self._build, entry, side)
            task = self._pairs[key] = asyncio.create_task(self._thread.run(build))
            task.add_done_callback(_seen)
        self._pairs.move_to_end(key)
        while len(self._pairs) > self.settings.max_pairs:
            self._pairs.popitem(last=False)
        return await asyncio.shield(task)

    @contextlib.asynccontextmanager
    async def session(self, entry: Entry, teacher: Teacher) -> AsyncIterator[Session]:
        """One request of this tokenizer to realign; see ``pair`` for what it raises."""
        session = Session(await self.pair(entry, teacher))
        try:
            yield session
        finally:
            await asyncio.shield(session.close())

    def text_tokenizer(self, run: str, hash_: str) -> TextTokenizer:
        """For texts in a run's tokens; raises ContractMismatchError when it registered none
        of this hash."""
        entry = self._store.find(run, hash_)
        if entry is None:
            raise unknown_tokenizer(hash_)
        found = self._texts.get(entry.file_sha256)
        if found is not None:
            return found
        file = self._store.read(entry)
        if file is None:
            raise unknown_tokenizer(hash_)
        found = self._texts[entry.file_sha256] = TextTokenizer(file)
        while len(self._texts) > MAX_TEXTS:
            self._texts.popitem(last=False)
        return found

    def _accept(self, upload: TokenizerUpload, run: str, same: bool) -> Entry | None:
        """Checks and keeps a file; None for one that only its own teacher can use."""
        try:
            digest = tokenizer_hash(upload.file)
        except ConfigurationError as error:
            raise InvalidRequestError(error.what, where="chunk", fix=error.fix) from error
        check_uploaded_hash(upload.tokenizer_hash, digest)
        try:
            vocabulary = student_vocabulary(upload.file, upload.special_tokens)
        except InvalidRequestError:
            if same:
                return None
            raise
        entry = Entry(
            tokenizer_hash=digest,
            file_sha256=hashlib.sha256(upload.file).hexdigest(),
            file_bytes=len(upload.file),
            ordinary_hash=vocabulary.ordinary_hash,
            vocabulary_size=vocabulary.size,
            roles=dict(upload.special_tokens),
        )
        if self._store.put(run, entry, upload.file):
            self._forget_tables()
        self._parsed = (entry.content, vocabulary)
        return entry

    def _build(self, entry: Entry, side: Vocabulary) -> PairInUse:
        parsed = self._parsed
        if parsed is None or parsed[0] != entry.content:
            file = self._store.read(entry)
            if file is None:
                raise unknown_tokenizer(entry.tokenizer_hash)
            parsed = (entry.content, student_vocabulary(file, entry.roles))
            self._parsed = parsed
        try:
            tables = self._cache.get(parsed[1], side)
        except OSError as error:
            log.warning("tables cannot be kept in %s: %s", self._tables, error.strerror)
            tables = TableCache(None).get(parsed[1], side)
        return PairInUse(tables)

    def _forget_tables(self) -> None:
        """Deletes the tables on disk of students that no run has registered."""
        known = {entry.tokenizer_hash for entry in self._store.entries()}
        for path in [] if self._tables is None else self._tables.glob("*.npz"):
            student = student_of(path)
            if student is not None and student not in known:
                path.unlink(missing_ok=True)


def _seen(task: asyncio.Task[PairInUse]) -> None:
    """Marks a failure as seen: the caller that it was for may have left."""
    if not task.cancelled():
        task.exception()
