"""Students' tokenizer files, kept by the fingerprint of their content.

In a folder each tokenizer has one of its own, each file of it whole or not there:

    HASH/tokenizer.json    the file as it was sent
    HASH/entry.json        what is known of it (``Entry``)

Several servers may share a folder: what another one removed is unknown here too.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from teacher_proto.errors import ConfigurationError
from teacher_proto.program.files import write_bytes
from teacher_proto.tokenizer_hash import VERSION, hash_version
from teacher_proto.types import SpecialRole

log = logging.getLogger(__name__)

FILE, ENTRY = "tokenizer.json", "entry.json"
Roles = Mapping[int, SpecialRole]


@dataclass(frozen=True)
class Entry:
    """What is known of a tokenizer without parsing it again.

    Attributes:
        file_sha256, file_bytes: of tokenizer.json.
        ordinary_hash: ``Vocabulary.ordinary_hash``.
        vocabulary_size: one above the highest id.
        roles: of special ids, as the first registration has them.
        own_roles: run -> roles, for runs that registered others.
    """

    tokenizer_hash: str
    file_sha256: str
    file_bytes: int
    ordinary_hash: str
    vocabulary_size: int
    roles: Roles
    own_roles: Mapping[str, Roles]

    def roles_of(self, run: str) -> Roles:
        return self.own_roles.get(run, self.roles)


class TokenizerStore:
    """At most ``max_count`` tokenizers of ``max_bytes`` together; the least recently used
    are removed first. ``put`` is called from one thread only, everything else from any.

    Args:
        folder: None keeps them in memory only.

    Raises:
        ConfigurationError: the folder cannot be used.
    """

    def __init__(self, folder: Path | None, *, max_count: int, max_bytes: int) -> None:
        self._folder = folder
        self._max_count = max_count
        self._max_bytes = max_bytes
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._files: dict[str, bytes] = {}
        self._lock = threading.Lock()
        if folder is not None:
            self._read_folder(folder)

    def __iter__(self) -> Iterator[Entry]:
        with self._lock:
            return iter(tuple(self._entries.values()))

    def find(self, tokenizer_hash: str) -> Entry | None:
        """The entry, which counts as used."""
        with self._lock:
            entry = self._entries.get(tokenizer_hash)
            if entry is not None:
                self._entries.move_to_end(tokenizer_hash)
            return entry

    def read(self, entry: Entry) -> bytes | None:
        """The file; None, and the entry is forgotten, when it is gone or damaged."""
        if self._folder is None:
            return self._files.get(entry.tokenizer_hash)
        try:
            data = (self._folder / entry.tokenizer_hash / FILE).read_bytes()
        except OSError:
            data = b""
        if hashlib.sha256(data).hexdigest() == entry.file_sha256:
            return data
        log.warning("the file of tokenizer %s is gone or damaged", entry.tokenizer_hash)
        with self._lock:
            self._entries.pop(entry.tokenizer_hash, None)
        return None

    def put(self, entry: Entry, file: bytes) -> list[Entry]:
        """Keeps an entry, new or changed; returns those that were removed to make room."""
        if self._folder is not None:
            _write(self._folder / entry.tokenizer_hash, entry, file)
        with self._lock:
            if self._folder is None:
                self._files.setdefault(entry.tokenizer_hash, file)
            self._entries[entry.tokenizer_hash] = entry
            self._entries.move_to_end(entry.tokenizer_hash)
            return self._make_room()

    def _make_room(self) -> list[Entry]:
        gone = []
        total = sum(entry.file_bytes for entry in self._entries.values())
        while len(self._entries) > 1 and (
            len(self._entries) > self._max_count or total > self._max_bytes
        ):
            _, entry = self._entries.popitem(last=False)
            total -= entry.file_bytes
            self._files.pop(entry.tokenizer_hash, None)
            if self._folder is not None:
                shutil.rmtree(self._folder / entry.tokenizer_hash, ignore_errors=True)
            gone.append(entry)
        return gone

    def _read_folder(self, folder: Path) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except OSError as error:
            raise ConfigurationError(
                f"it cannot be written: {error.strerror}",
                where=f"tokenizers.folder={folder}",
                fix="give a folder that the server may write, or leave it out",
            ) from error
        found = sorted(folder.glob(f"*/{ENTRY}"), key=lambda path: path.stat().st_mtime)
        others = 0
        for path in found:
            if hash_version(path.parent.name) not in (None, VERSION):
                others += 1
                continue
            entry = _read_entry(path)
            if entry is None:
                log.warning("%s is not an entry of a tokenizer; it is left alone", path)
            else:
                self._entries[entry.tokenizer_hash] = entry
        if others:
            log.info(
                "%s keeps %d tokenizers by another version of the fingerprint, for servers of "
                "another release; they may be deleted when there is none",
                folder,
                others,
            )
        self._make_room()


def _write(folder: Path, entry: Entry, file: bytes) -> None:
    """Both files; the entry last, so that no folder with one lacks the other."""
    folder.mkdir(parents=True, exist_ok=True)
    if _sha256(folder / FILE) != entry.file_sha256:
        write_bytes(folder / FILE, file, mode=0o600)
    write_bytes(folder / ENTRY, json.dumps(_as_json(entry), indent=1).encode(), mode=0o600)


def _sha256(path: Path) -> str:
    try:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return ""


def _as_json(entry: Entry) -> dict[str, Any]:
    def plain(roles: Roles) -> dict[str, str]:
        return {str(token): role.name for token, role in sorted(roles.items())}

    return {
        "file_sha256": entry.file_sha256,
        "file_bytes": entry.file_bytes,
        "ordinary_hash": entry.ordinary_hash,
        "vocabulary_size": entry.vocabulary_size,
        "roles": plain(entry.roles),
        "own_roles": {run: plain(roles) for run, roles in entry.own_roles.items()},
    }


def _read_entry(path: Path) -> Entry | None:
    def roles(found: Mapping[str, str]) -> Roles:
        return {int(token): SpecialRole[role] for token, role in found.items()}

    try:
        known = json.loads(path.read_text())
        return Entry(
            tokenizer_hash=path.parent.name,
            file_sha256=str(known["file_sha256"]),
            file_bytes=int(known["file_bytes"]),
            ordinary_hash=str(known["ordinary_hash"]),
            vocabulary_size=int(known["vocabulary_size"]),
            roles=roles(known["roles"]),
            own_roles={run: roles(own) for run, own in known["own_roles"].items()},
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
