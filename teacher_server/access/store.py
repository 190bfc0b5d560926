"""The credentials in force: read at start, and again whenever their file changes."""

from __future__ import annotations

import logging
from pathlib import Path

from teacher_proto.errors import ConfigurationError, LsmError
from teacher_proto.secret_files import read_secret, signature

from teacher_server.access.rules import Credentials
from teacher_server.access.runs import merged, parse_runs

log = logging.getLogger(__name__)

FILE = "access.credentials_file"
TEXT = "access.credentials"


class CredentialStore:
    """Credentials from a file, from a text of the environment, or both.

    A changed file is read at the next call. One that cannot be used is an error in the
    log, once, and what was in force stays in force.
    """

    def __init__(self, file: Path | None, text: str | None, *, certificates: bool) -> None:
        """Reads both.

        Args:
            certificates: whether client certificates are asked for.

        Raises:
            ConfigurationError: a source cannot be used.
        """
        self._file = file
        self._asks_certificates = certificates
        self._fixed = Credentials() if text is None else parse_runs(text, TEXT)
        self._seen = None if file is None else signature(file)
        self._current = self._read()

    def current(self) -> Credentials:
        if self._file is not None and signature(self._file) != self._seen:
            self.reload()
        return self._current

    def reload(self) -> None:
        """Reads the file again, changed or not."""
        if self._file is None:
            return
        self._seen = signature(self._file)
        try:
            self._current = self._read()
        except LsmError as error:
            log.error("the credentials stay as they were: %s", error)
        else:
            log.info("credentials were read again: %d tokens", len(self._current.tokens))

    def _read(self) -> Credentials:
        found = self._fixed
        if self._file is not None:
            text = read_secret(self._file, FILE).decode("utf-8", "replace")
            found = merged(parse_runs(text, f"{FILE}={self._file}"), found)
        if found.certificates and not self._asks_certificates:
            raise ConfigurationError(
                "runs name client certificates, and none are asked for",
                where=FILE if self._file else TEXT,
                fix="set tls.client_ca to the authority that issues them",
            )
        return found
