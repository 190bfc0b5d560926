"""The project's errors: one root, each also a stdlib exception, all picklable.

An error says what is wrong, where, why and how to mend it; ``reason`` is the
machine-readable name that travels in ``google.rpc.ErrorInfo`` and in HTTP
bodies; ``exit_code`` is what a program ends with when nobody handles it
(docs/errors.md).
"""

from __future__ import annotations

from typing import ClassVar

EXIT_OK = 0
EXIT_RUNTIME = 1
EXIT_CONFIGURATION = 2
EXIT_CONTRACT = 3
EXIT_TEACHER_UNAVAILABLE = 4
EXIT_RETRYABLE = 75


class LsmError(Exception):
    """Root of every error this project raises on purpose.

    Args:
        what: what is wrong, one sentence without a final stop.
        where: the field, file or setting it is about; empty when there is none.
        fix: what the reader can do; empty when nothing is known to help.
        reason: UPPER_SNAKE_CASE name; the class's own when left out.
        retry_after: seconds after which a retry may succeed; None when a retry
            of the same work cannot help.
    """

    default_reason: ClassVar[str] = "RUNTIME"
    exit_code: ClassVar[int] = EXIT_RUNTIME

    def __init__(
        self,
        what: str,
        *,
        where: str = "",
        fix: str = "",
        reason: str = "",
        retry_after: float | None = None,
    ) -> None:
        super().__init__(what)
        self.what = what
        self.where = where
        self.fix = fix
        self.reason = reason or self.default_reason
        self.retry_after = retry_after

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}. Fix: {self.fix}" if self.fix else text

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return _rebuild, (
            type(self),
            self.what,
            self.where,
            self.fix,
            self.reason,
            self.retry_after,
        )


def _rebuild(
    cls: type[LsmError], what: str, where: str, fix: str, reason: str, retry_after: float | None
) -> LsmError:
    return cls(what, where=where, fix=fix, reason=reason, retry_after=retry_after)


class ConfigurationError(LsmError, ValueError):
    """A setting, flag or file of ours is wrong."""

    default_reason = "CONFIGURATION"
    exit_code = EXIT_CONFIGURATION


class InvalidRequestError(LsmError, ValueError):
    """The request is wrong or over a size limit; a retry cannot help."""

    default_reason = "INVALID_REQUEST"
    exit_code = EXIT_CONFIGURATION


class ContractMismatchError(LsmError, RuntimeError):
    """Tokenizer, identity or vocabulary do not match what the caller relies on."""

    default_reason = "CONTRACT_MISMATCH"
    exit_code = EXIT_CONTRACT


class UnknownTeacherError(LsmError, KeyError):
    """The server has no teacher of this name."""

    default_reason = "UNKNOWN_TEACHER"
    exit_code = EXIT_CONFIGURATION


class UnauthenticatedError(LsmError, PermissionError):
    """No credentials, or wrong ones."""

    default_reason = "UNAUTHENTICATED"
    exit_code = EXIT_CONFIGURATION


class ForbiddenError(LsmError, PermissionError):
    """The credentials do not allow this."""

    default_reason = "PERMISSION_DENIED"
    exit_code = EXIT_CONFIGURATION


class OverloadedError(LsmError, RuntimeError):
    """The queue or a quota is full; ``retry_after`` says when to come back."""

    default_reason = "OVERLOADED"
    exit_code = EXIT_RETRYABLE


class TeacherUnavailableError(LsmError, ConnectionError):
    """No teacher answers: not started, draining, or its engine is gone."""

    default_reason = "TEACHER_UNAVAILABLE"
    exit_code = EXIT_TEACHER_UNAVAILABLE


class DeadlineError(LsmError, TimeoutError):
    """The caller's deadline passed; nothing was computed after it."""

    default_reason = "DEADLINE_EXCEEDED"
    exit_code = EXIT_TEACHER_UNAVAILABLE


class EngineError(LsmError, RuntimeError):
    """The engine failed on admitted work."""

    default_reason = "ENGINE_FAILED"


class PoisonedReplyError(LsmError, ValueError):
    """A reply breaks the contract (docs/contract.md); it is never used."""

    default_reason = "POISONED_REPLY"
    exit_code = EXIT_CONTRACT


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or the name of its class when it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
