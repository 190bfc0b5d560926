"""The errors that refuse a request: what is wrong, where, and how to fix it.

Field paths are those of ``teacher_proto/v1/score.proto``.
"""

from __future__ import annotations

from teacher_proto.errors import ContractMismatchError, InvalidRequestError
from teacher_proto.types import ServerLimits


def refuse(what: str, where: str, fix: str, reason: str = "") -> InvalidRequestError:
    return InvalidRequestError(what, where=where, fix=fix, reason=reason)


def over_limit(
    what: str, where: str, setting: str, limit: int, fix: str, reason: str = "LIMIT_EXCEEDED"
) -> InvalidRequestError:
    """The error for a size over a limit; names the limit and the setting that raises it."""
    return refuse(
        f"{what}; the limit is {limit} ({setting})",
        where,
        f"{fix}, or raise {setting} on the server",
        reason,
    )


def too_many_continuations(what: str, limits: ServerLimits) -> InvalidRequestError:
    return over_limit(
        what,
        "continuations",
        "limits.max_continuations",
        limits.max_continuations,
        "split the group",
    )


def too_many_prompts(what: str, limits: ServerLimits) -> InvalidRequestError:
    assert limits.max_render_prompts is not None  # only an older server's are unknown
    return over_limit(
        what,
        "prompts",
        "limits.max_render_prompts",
        limits.max_render_prompts,
        "split the request",
    )


def empty_prompt(where: str) -> InvalidRequestError:
    return refuse(
        "the prompt is empty",
        where,
        "send at least one token: row 0 needs something before it",
    )


def unknown_tokenizer() -> ContractMismatchError:
    return ContractMismatchError(
        "the server does not know this tokenizer",
        where="tokenizer_hash",
        fix="register the tokenizer with RegisterTokenizer, then send the request again",
        reason="UNKNOWN_TOKENIZER",
    )


def realignment_unavailable(what: str, where: str) -> ContractMismatchError:
    return ContractMismatchError(
        f"{what}, and rows cannot be realigned from one to the other",
        where=where,
        fix="choose a teacher whose tokenizer is the student's, or a BPE that is byte-level or "
        "has byte fallback (GetTeacher lists their tokenizer hashes)",
        reason="REALIGNMENT_UNAVAILABLE",
    )
