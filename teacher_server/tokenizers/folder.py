"""Registered tokenizers on disk. Each file of it is whole or not there:

    files/SHA256            a tokenizer.json as it was sent
    contents/CONTENT.json   what is known of it (``Entry``)
    runs/KEY.json           that a run registered it; its time of modification is that of
                            the last use

KEY is a digest of the run's name and the fingerprint: a name is any text, and never a path.
Several servers may share a folder; what another one removed is gone for all of them, and what
a registration of another one is of is kept. They change it one at a time.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import math
import os
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from teacher_proto.errors import ConfigurationError
from teacher_proto.program.files import file_sha256, write_bytes
from teacher_proto.tokenizer_hash import VERSION, hash_version

from teacher_server.tokenizers.entry import Entry, Registration, as_json, entry_of

log = logging.getLogger(__name__)

FILES, CONTENTS, RUNS = "files", "contents", "runs"
# A file of no registration that is older was left behind; a younger one may be about to get
# its registration from another server.
LEFT_BEHIND_SECONDS = 3600.0
# What reading a damaged file can raise; a number of it may be infinite.
BROKEN = (
    OSError,
    ValueError,
    KeyError,
    TypeError,
    AttributeError,
    RecursionError,
    ArithmeticError,
)
_DIGEST = re.compile(r"[0-9a-f]{64}")


class Folder:
    """The files of one folder.

    Raises:
        ConfigurationError: it cannot be used.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._warned = False
        try:
            for name in (FILES, CONTENTS, RUNS):
                (path / name).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=path):
                pass
        except OSError as error:
            raise ConfigurationError(
                f"it cannot be written: {error.strerror}",
                where=f"tokenizers.folder={path}",
                fix="give a folder that the server may write, or leave it out",
            ) from error

    def load(self, now: float) -> tuple[dict[str, Entry], list[Registration]]:
        """The entries by content, and the registrations of them, as the files have them.

        What is no such file, or of another version of the fingerprint, is left alone.
        """
        with self._alone():
            return self._load(now)

    def _load(self, now: float) -> tuple[dict[str, Entry], list[Registration]]:
        found = {path: _read_entry(path) for path in self._documents(CONTENTS)}
        runs = {path: _read_registration(path, now) for path in self._documents(RUNS)}
        others = [one for one in found.values() if one is not None and _is_other(one)]
        ours = {one.content: one for one in found.values() if one and not _is_other(one)}
        registrations = [one for one in runs.values() if one and one.content in ours]
        used = {one.content for one in registrations}
        entries = {content: entry for content, entry in ours.items() if content in used}
        unreadable = [path for path, one in (*found.items(), *runs.items()) if one is None]
        for path in unreadable:
            log.warning("%s cannot be read; it is left alone", path)
        if not unreadable:
            contents = {*used, *(one.content for one in others)}
            kept = {one.file_sha256 for one in (*entries.values(), *others)}
            left = [path for path in found if path.stem not in contents]
            left += [path for path, one in runs.items() if one and one.content not in contents]
            left += [path for path in self._files() if path.name not in kept]
            _remove_left_behind(left, now)
        self._mention(len(others))
        return entries, registrations

    def write(self, entry: Entry, file: bytes, registration: Registration) -> None:
        """Keeps all three files; the registration last, so that none lacks the others.

        Raises:
            OSError: they cannot be written; what was begun is removed.
        """
        with self._alone():
            self._write(entry, file, registration)

    def _write(self, entry: Entry, file: bytes, registration: Registration) -> None:
        written: list[Path] = []

        def write_new(path: Path, data: bytes) -> None:
            write_bytes(path, data, mode=0o600)
            written.append(path)

        try:
            path = self.path / FILES / entry.file_sha256
            if not _holds(path, entry.file_sha256):
                write_new(path, file)
            path = self._content(entry.content)
            if _read_entry(path) != entry:
                write_new(path, _json(as_json(entry)))
            path = self._registration(registration)
            write_bytes(path, _json(_document(registration)), mode=0o600)
        except OSError:
            for path in written:
                _unlink(path)
            raise
        with contextlib.suppress(OSError):
            os.utime(path, (registration.used, registration.used))

    def holds(self, entry: Entry, registration: Registration) -> bool:
        """Whether all three files are there and whole."""
        known = _read_registration(self._registration(registration), registration.used)
        return (
            known is not None
            and known.content == entry.content
            and self._entry(entry.content) == entry
            and _holds(self.path / FILES / entry.file_sha256, entry.file_sha256)
        )

    def read(self, entry: Entry) -> bytes | None:
        """The tokenizer.json; None when it is gone or damaged. Raises OSError when it cannot
        be read."""
        try:
            data = (self.path / FILES / entry.file_sha256).read_bytes()
        except FileNotFoundError:
            return None
        return data if hashlib.sha256(data).hexdigest() == entry.file_sha256 else None

    def mark_used(self, registration: Registration) -> float | None:
        """Notes its time of use; returns the latest that any server noted, None when another
        one removed it."""
        path = self._registration(registration)
        try:
            noted = path.stat().st_mtime
            if noted < registration.used:
                os.utime(path, (registration.used, registration.used))
        except FileNotFoundError:
            return None
        except OSError as error:
            if not self._warned:
                log.warning("uses of tokenizers cannot be noted in %s: %s", self.path, error)
                self._warned = True
            return registration.used
        return max(noted, registration.used)

    def forget(
        self, registrations: Iterable[Registration], entries: Iterable[Entry]
    ) -> list[Entry]:
        """Removes registrations, and what belongs to these entries alone, where no registration
        in the folder is of one; returns those that were removed."""
        with self._alone():
            for one in registrations:
                _unlink(self._registration(one))
            entries = list(entries)
            if not entries:
                return []
            try:
                named = self._named()
            except OSError as error:
                log.warning("%s cannot be read: %s", self.path, error.strerror)
                return []
            gone = [entry for entry in entries if entry.content not in named]
            for entry in gone:
                _unlink(self._content(entry.content))
            kept = {one.file_sha256 for one in map(self._entry, named) if one is not None}
            for sha256 in {entry.file_sha256 for entry in gone} - kept:
                _unlink(self.path / FILES / sha256)
            return gone

    def entries(self) -> list[Entry]:
        """All that are in the folder, of any version of the fingerprint."""
        found = (_read_entry(path) for path in self._documents(CONTENTS))
        return [entry for entry in found if entry is not None]

    def _named(self) -> set[str]:
        """The contents that registrations are of; raises OSError where that is not known."""
        named = set()
        for path in self._documents(RUNS):
            with contextlib.suppress(FileNotFoundError):
                path.stat()
                if (one := _read_registration(path, 0.0)) is not None:
                    named.add(one.content)
        return named

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """No other server, and no other thread, changes the folder meanwhile, where its file
        system has locks."""
        try:
            folder = os.open(self.path / RUNS, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            yield
            return
        try:
            with contextlib.suppress(OSError):
                fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def _content(self, content: str) -> Path:
        return self.path / CONTENTS / f"{content}.json"

    def _entry(self, content: str) -> Entry | None:
        return _read_entry(self._content(content))

    def _registration(self, one: Registration) -> Path:
        return self.path / RUNS / f"{_key(one.run, one.tokenizer_hash)}.json"

    def _documents(self, name: str) -> Iterator[Path]:
        for path in (self.path / name).glob("*.json"):
            if _DIGEST.fullmatch(path.stem):
                yield path

    def _files(self) -> Iterator[Path]:
        return (p for p in (self.path / FILES).iterdir() if _DIGEST.fullmatch(p.name))

    def _mention(self, others: int) -> None:
        """Logs what is in the folder and of no use here."""
        if others:
            log.info(
                "%s keeps %d tokenizers by another version of the fingerprint, for servers of "
                "another release; they may be deleted when there is none",
                self.path,
                others,
            )
        before = sum(1 for path in self.path.glob("*/entry.json") if path.is_file())
        if before:
            log.info(
                "%s keeps %d tokenizers of an earlier release, which belong to no run and are "
                "left alone: clients register theirs again by themselves; their folders may be "
                "deleted when no server of that release uses them",
                self.path,
                before,
            )


def _remove_left_behind(paths: Iterable[Path], now: float) -> None:
    for path in paths:
        with contextlib.suppress(OSError):
            if now - path.stat().st_mtime > LEFT_BEHIND_SECONDS:
                path.unlink()


def _is_other(entry: Entry) -> bool:
    return hash_version(entry.tokenizer_hash) not in (None, VERSION)


def _key(run: str, tokenizer_hash: str) -> str:
    return hashlib.sha256(json.dumps([run, tokenizer_hash]).encode()).hexdigest()


def _json(document: Mapping[str, Any]) -> bytes:
    return json.dumps(document, indent=1).encode()


def _document(one: Registration) -> dict[str, Any]:
    return {
        "run": one.run,
        "tokenizer_hash": one.tokenizer_hash,
        "content": one.content,
        "registered": one.registered,
    }


def _read_entry(path: Path) -> Entry | None:
    """None when there is none, or what is there does not have this content."""
    try:
        entry = entry_of(json.loads(path.read_bytes()))
    except BROKEN:
        return None
    is_file = _DIGEST.fullmatch(entry.file_sha256) is not None
    return entry if is_file and entry.content == path.stem else None


def _read_registration(path: Path, now: float) -> Registration | None:
    try:
        known = json.loads(path.read_bytes())
        used = path.stat().st_mtime
        one = Registration(
            run=str(known["run"]),
            tokenizer_hash=str(known["tokenizer_hash"]),
            content=str(known["content"]),
            registered=_seconds(known["registered"]),
            used=used,
        )
    except BROKEN:
        return None
    # A clock that was ahead must not keep it active for ever.
    return replace(one, used=min(used, now)) if _key(*one.key) == path.stem else None


def _seconds(number: Any) -> float:
    """Since the epoch; raises ValueError."""
    if type(number) not in (int, float) or not math.isfinite(number):
        raise ValueError("no time")
    return float(number)


def _holds(path: Path, sha256: str) -> bool:
    try:
        return file_sha256(path) == sha256
    except OSError:
        return False


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        log.warning("%s cannot be removed: %s", path, error.strerror)
