"""The guard of both wires: admits callers, and records how their calls ended."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from teacher_proto.errors import LsmError

from teacher_server.access.audit import AuditLog
from teacher_server.access.certificates import Certificates, check_tls
from teacher_server.access.peers import address_of
from teacher_server.access.rules import Principal, authenticate
from teacher_server.access.store import CredentialStore
from teacher_server.access.strangers import Line
from teacher_server.config import ServeConfig
from teacher_server.queue.budget import Owner

log = logging.getLogger(__name__)

# The method of a call that is none of the server's own, in the audit log.
UNKNOWN = "(unknown)"
NOBODY = Owner("")


@dataclass
class Caller:
    """One call and who makes it.

    Attributes:
        method: of the service's own, so that it holds nothing the caller wrote.
        peer: address the call came from.
        principal: None while nobody is known, or where nobody has to be.
        request_id: once it is known to be a name.
        owner: whose the bytes of its body and reply are, once it is admitted.
        work_owner: whose the work for it is: the run of the credentials, else the address,
            the same over both wires, or the /64 of IPv6.
    """

    surface: str
    method: str
    peer: str
    principal: Principal | None = None
    request_id: str = ""
    owner: Owner = NOBODY
    work_owner: str = ""


@dataclass(frozen=True)
class Guard:
    """Admits callers and records their calls. Without credentials everybody is admitted."""

    credentials: CredentialStore | None = None
    certificates: Certificates | None = None
    audit: AuditLog | None = None
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    def admit(
        self, caller: Caller, authorization: Sequence[str], certificate_names: Sequence[str]
    ) -> None:
        """Sets who the caller is; raises UnauthenticatedError when nobody is known."""
        if self.credentials is None:
            address = address_of(caller.peer)
            caller.owner = Owner("", caller.peer, address)
            caller.work_owner = address
            return
        principal = authenticate(
            self.credentials.current(), authorization, certificate_names, self.now()
        )
        caller.principal = principal
        caller.owner = Owner(principal.run)
        caller.work_owner = principal.run

    def record(self, caller: Caller, status: str, reason: str = "") -> None:
        """Writes the call's audit line, or counts the refusal of one that is not known.

        Raises:
            TeacherUnavailableError: it cannot be written; the call must not succeed.
        """
        if self.audit is None:
            return
        principal = caller.principal
        line: Line = {
            "surface": caller.surface,
            "method": caller.method,
            "peer": caller.peer,
            "run": "" if principal is None else principal.run,
            "request_id": caller.request_id,
            "status": status,
            "reason": reason,
        }
        stranger = self.credentials is not None and principal is None
        (self.audit.refused if stranger else self.audit.write)(line)

    @property
    def failure(self) -> LsmError | None:
        """Why no call can be recorded at present; None when it can."""
        return None if self.audit is None else self.audit.failure

    def look(self) -> None:
        """Does what is due between calls."""
        if self.audit is not None:
            self.audit.look()

    def reload(self) -> None:
        """Reads every file again and opens the audit log anew, as SIGHUP asks."""
        if self.credentials is not None:
            self.credentials.reload()
        if self.certificates is not None:
            self.certificates.reload()
        if self.audit is not None:
            try:
                self.audit.reopen()
            except OSError as error:
                log.error("the audit log stays the old file: %s", error.strerror)

    def close(self) -> None:
        if self.audit is not None:
            with contextlib.suppress(OSError):
                self.audit.close()


def make_guard(config: ServeConfig) -> Guard:
    """The guard of these settings; raises ConfigurationError for files it cannot use."""
    tls, access = config.tls, config.access
    certificates = check_tls(tls.cert, tls.key, tls.client_ca)
    text = None if access.credentials is None else access.credentials.get_secret_value()
    store = None
    if access.configured:
        store = CredentialStore(
            access.credentials_file, text, certificates=tls.client_ca is not None
        )
    audit = None if access.audit_file is None else AuditLog(access.audit_file)
    return Guard(store, certificates, audit)
