"""Students' tokenizers by the run that registered them.

A run uses what it registered itself, and nothing that another run does changes it: what one
run sends under a fingerprint is not what another run sent, even where the fingerprint is the
same. Equal contents are kept once. ``room`` decides what goes when there is too much.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from teacher_proto.errors import TeacherUnavailableError

from teacher_server.refusals.errors import tokenizers_folder_failed, tokenizers_full
from teacher_server.settings.tokenizers import TokenizerSettings
from teacher_server.tokenizers.entry import Entry, Registration
from teacher_server.tokenizers.folder import Folder
from teacher_server.tokenizers.room import Bounds, leaving, next_idle

log = logging.getLogger(__name__)

# Times of use are written to the folder so often, and what other servers removed is noticed.
SYNC_SECONDS = 60.0


class TokenizerStore:
    """What runs have registered, within the bounds of the settings. Thread-safe.

    ``find``, ``registrations`` and ``entries`` answer from memory alone.

    Args:
        clock: seconds since the epoch.

    Raises:
        ConfigurationError: the folder cannot be used.
    """

    def __init__(self, settings: TokenizerSettings, clock: Callable[[], float] = time.time) -> None:
        self._bounds = Bounds(
            per_run=settings.max_per_run,
            bytes_per_run=settings.bytes_per_run,
            contents=settings.max_count,
            bytes=settings.max_bytes,
            registrations=settings.max_registrations,
            active_seconds=settings.active_seconds,
        )
        self._max_idle = settings.max_idle_seconds
        self._clock = clock
        self._folder = None if settings.folder is None else Folder(settings.folder)
        self._entries: dict[str, Entry] = {}
        self._files: dict[str, bytes] = {}
        self._registrations: dict[tuple[str, str], Registration] = {}
        self._lock = threading.Lock()
        # One thread at a time changes files; taken before ``_lock``.
        self._changing = threading.Lock()
        self._synced = clock()
        # Entries that went while nobody asked; the next ``put`` returns them.
        self._gone: list[Entry] = []
        self._background = ThreadPoolExecutor(1, thread_name_prefix="tokenizer-uses")
        if self._folder is not None:
            self._entries, found = self._folder.load(self._synced)
            self._registrations = {one.key: one for one in found}
            self._gone += self.sweep()

    def find(self, run: str, tokenizer_hash: str) -> Entry | None:
        """What this run registered under a fingerprint, which counts as a use."""
        now = self._clock()
        with self._lock:
            known = self._registrations.get((run, tokenizer_hash))
            if known is None or self._is_old(known, now):
                return None
            self._registrations[known.key] = replace(known, used=max(now, known.used))
            entry = self._entries[known.content]
            due = self._folder is not None and now - self._synced > SYNC_SECONDS
            if due:
                self._synced = now
        if due:
            self._background.submit(self._sync_aside)
        return entry

    def registrations(self, run: str | None = None) -> list[tuple[Registration, Entry]]:
        """Those of a run, or of all runs, the last used ones first; no use is counted."""
        now = self._clock()
        with self._lock:
            found = [
                (one, self._entries[one.content])
                for one in self._registrations.values()
                if (run is None or one.run == run) and not self._is_old(one, now)
            ]
        return sorted(found, key=lambda pair: (-pair[0].used, pair[0].key))

    def idle_seconds(self, registration: Registration) -> float:
        return max(0.0, self._clock() - registration.used)

    def entries(self) -> list[Entry]:
        """Each content that some run has registered."""
        with self._lock:
            return list(self._entries.values())

    def known(self) -> list[Entry]:
        """Each content that some run has registered, or that is in the folder; read from it."""
        return self.entries() + ([] if self._folder is None else self._folder.entries())

    def read(self, entry: Entry) -> bytes | None:
        """The file; None, and every registration of it is forgotten, when it is gone or
        damaged.

        Raises:
            TeacherUnavailableError: it cannot be read.
        """
        if self._folder is None:
            with self._lock:
                return self._files.get(entry.file_sha256)
        try:
            data = self._folder.read(entry)
        except OSError as error:
            raise _failed("read", self._folder, error) from error
        if data is not None:
            return data
        with self._changing:
            with self._lock:
                of_it = [
                    one
                    for one in self._registrations.values()
                    if self._entries[one.content].file_sha256 == entry.file_sha256
                ]
            if of_it:
                log.warning("the file of tokenizer %s is gone or damaged", entry.tokenizer_hash)
            self._remove(of_it)
        return None

    def put(self, run: str, entry: Entry, file: bytes) -> list[Entry]:
        """Registers a tokenizer for a run; what the run had under its fingerprint is replaced.

        Returns:
            The entries that no run has any more.

        Raises:
            OverloadedError: there is no room, and all that is kept is of runs that are active.
            TeacherUnavailableError: the folder cannot be written; nothing has changed.
        """
        with self._changing:
            now = self._clock()
            self._gone += self._forget_old(now)
            new = Registration(run, entry.tokenizer_hash, entry.content, now, now)
            with self._lock:
                entries = {**self._entries, entry.content: entry}
                before = self._registrations.get(new.key)
                others = [one for one in self._registrations.values() if one.key != new.key]
            if before is not None and before.content == new.content:
                new = replace(new, registered=before.registered)
            going = leaving(new, others, entries, self._bounds, now)
            if going is None:
                raise tokenizers_full(next_idle(others, self._bounds, now))
            self._write(entry, file, new, before)
            with self._lock:
                if self._folder is None:
                    self._files[entry.file_sha256] = file
                self._entries[entry.content] = entry
                self._registrations[new.key] = new
            if going:
                log.info("%d registrations of tokenizers made room for one more", len(going))
            removed, self._gone = self._gone + self._remove(going), []
            return removed

    def drop(self, run: str, tokenizer_hash: str) -> list[Entry] | None:
        """Forgets what a run registered under a fingerprint.

        Returns:
            The entries that no run has any more; None where the run has registered none.
        """
        with self._changing:
            with self._lock:
                known = self._registrations.get((run, tokenizer_hash))
            return None if known is None else self._remove([known])

    def sweep(self) -> list[Entry]:
        """Forgets what was not used for too long; returns the entries that no run has any
        more."""
        with self._changing:
            return self._forget_old(self._clock())

    def sync(self) -> list[Entry]:
        """Notes in the folder what was used, and learns what other servers that share it used
        and removed; returns the entries that no run has any more."""
        if self._folder is None:
            return []
        with self._changing:
            with self._lock:
                known = list(self._registrations.values())
            gone = []
            for one in known:
                used = self._folder.mark_used(one)
                if used is None:
                    gone.append(one)
                elif used > one.used:
                    self._note_use(one.key, min(used, self._clock()))
            return self._remove(gone) + self._forget_old(self._clock())

    def _sync_aside(self) -> None:
        gone = self.sync()
        with self._changing:
            self._gone += gone

    def _note_use(self, key: tuple[str, str], used: float) -> None:
        with self._lock:
            one = self._registrations[key]
            self._registrations[key] = replace(one, used=max(used, one.used))

    def _is_old(self, one: Registration, now: float) -> bool:
        return now - one.used > self._max_idle

    def _forget_old(self, now: float) -> list[Entry]:
        with self._lock:
            old = [one for one in self._registrations.values() if self._is_old(one, now)]
        if self._folder is not None:
            # Another server that shares the folder may have used it meanwhile.
            old = [one for one in old if not self._is_used_elsewhere(one, now)]
        if old:
            log.info("%d registrations of tokenizers were not used for too long", len(old))
        return self._remove(old)

    def _is_used_elsewhere(self, one: Registration, now: float) -> bool:
        assert self._folder is not None
        used = self._folder.mark_used(one)
        if used is None or now - used > self._max_idle:
            return False
        self._note_use(one.key, min(used, now))
        return True

    def _write(
        self, entry: Entry, file: bytes, new: Registration, before: Registration | None
    ) -> None:
        folder = self._folder
        if folder is None:
            return
        if before is not None and before.content == new.content and folder.holds(entry, new):
            folder.mark_used(new)
            return
        try:
            folder.write(entry, file, new)
        except OSError as error:
            raise _failed("keep", folder, error) from error

    def _remove(self, going: Iterable[Registration]) -> list[Entry]:
        """Forgets registrations, and the entries and files that no run has any more; returns
        the entries that none has on any server."""
        going = list(going)
        with self._lock:
            for one in going:
                self._registrations.pop(one.key, None)
            kept = {one.content for one in self._registrations.values()}
            gone = [entry for content, entry in self._entries.items() if content not in kept]
            for entry in gone:
                del self._entries[entry.content]
            files = {entry.file_sha256 for entry in self._entries.values()}
            for sha256 in {entry.file_sha256 for entry in gone} - files:
                self._files.pop(sha256, None)
        return gone if self._folder is None else self._folder.forget(going, gone)


def _failed(verb: str, folder: Folder, error: OSError) -> TeacherUnavailableError:
    log.error("cannot %s a tokenizer in %s: %s", verb, folder.path, error.strerror)
    return tokenizers_folder_failed(verb, error.strerror or "an error without a name")
