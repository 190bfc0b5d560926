"""The rules of access, pure: who a caller is, and what a principal may do.

Both wires ask these rules for every call; nothing else decides.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from teacher_proto.errors import ForbiddenError, UnauthenticatedError

from teacher_server.queue.policy import RunPolicy

FIX = "show the run's token, as `authorization: Bearer TOKEN`, or a client certificate"
WHERE = "authorization"


@dataclass(frozen=True)
class Principal:
    """A run, by its credentials.

    Attributes:
        policy: its name and entitlements.
        teachers: those it may ask; None for every one.
    """

    policy: RunPolicy
    teachers: frozenset[str] | None = None

    @property
    def run(self) -> str:
        return self.policy.run


@dataclass(frozen=True)
class Token:
    """sha256 of a token, and whose it is until when."""

    digest: bytes = field(repr=False)
    principal: Principal
    expires: datetime | None = None


@dataclass(frozen=True)
class Credentials:
    """Everything that lets a caller in: tokens, and names in client certificates."""

    tokens: tuple[Token, ...] = ()
    certificates: Mapping[str, Principal] = field(default_factory=dict)


def token_digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def authenticate(
    credentials: Credentials,
    authorization: Sequence[str],
    certificate_names: Sequence[str],
    now: datetime,
) -> Principal:
    """Who the caller is.

    Args:
        authorization: values of the call's ``authorization`` headers.
        certificate_names: of its verified client certificate; empty without one.

    Raises:
        UnauthenticatedError: no credentials are shown, or none that are in force.
    """
    certified = _certified(credentials, certificate_names)
    if not authorization:
        if certified is None:
            what = "the call shows no credentials"
            if certificate_names:
                what = "the client certificate's names stand for no run"
            raise UnauthenticatedError(what, where=WHERE, fix=FIX)
        return certified
    token = _bearer(authorization)
    holder = _holder(credentials, token)
    if holder is None:
        raise UnauthenticatedError("the token is not known", where=WHERE, fix=FIX)
    if holder.expires is not None and holder.expires <= now:
        raise UnauthenticatedError(
            f"the token expired on {holder.expires.isoformat()}",
            where=WHERE,
            fix="ask for a new one",
            reason="TOKEN_EXPIRED",
        )
    if certified is not None and certified.run != holder.principal.run:
        raise UnauthenticatedError(
            "the token and the client certificate stand for different runs",
            where=WHERE,
            fix="show the token and the certificate of one run",
        )
    return holder.principal


def may_use(principal: Principal | None, teacher: str) -> bool:
    """Whether a principal may ask a teacher; None, a server without credentials, may."""
    return principal is None or principal.teachers is None or teacher in principal.teachers


def authorize(principal: Principal | None, teacher: str) -> None:
    """Raises ForbiddenError unless the principal may ask this teacher."""
    if principal is not None and not may_use(principal, teacher):
        raise ForbiddenError(
            f"run {principal.run!r} may not use this teacher",
            where="teacher",
            fix=f"name one of {sorted(principal.teachers or ())}, or have it allowed",
            reason="TEACHER_FORBIDDEN",
        )


def authorize_any(principal: Principal | None, teachers: Collection[str]) -> None:
    """Raises ForbiddenError unless the principal may ask one of these teachers."""
    if principal is not None and not any(may_use(principal, name) for name in teachers):
        raise ForbiddenError(
            f"run {principal.run!r} may use no teacher of this server",
            where="teacher",
            fix="have a teacher allowed to it",
            reason="TEACHER_FORBIDDEN",
        )


def run_of(principal: Principal | None, asked: str, where: str = "run") -> str:
    """The run a call counts for: the principal's, which the call may name or leave out.

    Raises:
        ForbiddenError: the call names another run, which would pay for it.
    """
    if principal is None or asked == principal.run:
        return asked
    if asked:
        raise ForbiddenError(
            f"the credentials are of run {principal.run!r}, the call names another",
            where=where,
            fix=f"name the run {principal.run!r} (the trainer's run.name), or none",
            reason="RUN_MISMATCH",
        )
    return principal.run


def policy_of(
    principal: Principal | None, run: str, configured: Mapping[str, RunPolicy]
) -> RunPolicy:
    """The credentials' own; without credentials that of the settings, or the default."""
    if principal is not None:
        return principal.policy
    return configured.get(run) or RunPolicy(run)


def _bearer(authorization: Sequence[str]) -> str:
    if len(authorization) == 1:
        scheme, _, token = authorization[0].partition(" ")
        if scheme.lower() == "bearer" and token.strip():
            return token.strip()
    raise UnauthenticatedError("the authorization is not one bearer token", where=WHERE, fix=FIX)


def _holder(credentials: Credentials, token: str) -> Token | None:
    """Compares with every token, in a time that reveals nothing about any of them."""
    digest = token_digest(token)
    found = None
    for entry in credentials.tokens:
        if hmac.compare_digest(digest, entry.digest):
            found = entry
    return found


def _certified(credentials: Credentials, names: Sequence[str]) -> Principal | None:
    runs = {p.run: p for p in map(credentials.certificates.get, names) if p is not None}
    if len(runs) > 1:
        raise UnauthenticatedError(
            "the client certificate's names stand for several runs",
            where=WHERE,
            fix="use a certificate of one run",
        )
    return next(iter(runs.values()), None)
