"""The errors that refuse a request: what is wrong, where, and how to fix it.

Field paths are those of ``teacher_proto/v1/score.proto``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from teacher_proto.errors import (
    ContractMismatchError,
    InvalidRequestError,
    OverloadedError,
    TeacherUnavailableError,
)
from teacher_proto.tokenizer_hash import other_version
from teacher_proto.types import ServerLimits

Refusal = TypeVar("Refusal", InvalidRequestError, ContractMismatchError)


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


def unknown_tokenizer(tokenizer_hash: str) -> ContractMismatchError:
    what = "the server does not know this tokenizer: the run of the request has not registered it"
    fix = "register the tokenizer for this run with RegisterTokenizer, then send the request again"
    outdated = other_version(tokenizer_hash, here="the server", there="the client")
    if outdated is not None:
        what, fix = f"{what}: {outdated[0]}", f"{outdated[1]}, or {fix}"
    return ContractMismatchError(what, where="tokenizer_hash", fix=fix, reason="UNKNOWN_TOKENIZER")


def tokenizers_full(seconds: float) -> OverloadedError:
    """``seconds``: until the first run that has tokenizers counts as idle."""
    return OverloadedError(
        "the server keeps as many tokenizers as it may, all of runs that are active",
        where="tokenizers",
        fix="come back later, drop what is not needed (DropTokenizer), or raise "
        "tokenizers.max_count, tokenizers.max_bytes or tokenizers.max_registrations on the server",
        reason="TOKENIZERS_FULL",
        # One of them may be dropped before that.
        retry_after=min(max(seconds, 1.0), 60.0),
    )


def tokenizers_folder_failed(verb: str, why: str) -> TeacherUnavailableError:
    """``verb``: what the server cannot do with a tokenizer, such as "keep"."""
    return TeacherUnavailableError(
        f"the server cannot {verb} the tokenizer: {why}",
        where="tokenizers.folder",
        fix="make room on the server's disk, and let the server read and write its folder; the "
        "call may be sent again",
        reason="TOKENIZERS_FOLDER_FAILED",
        retry_after=1.0,
    )


def check_hash_version(tokenizer_hash: str, where: str) -> None:
    """Raises InvalidRequestError for a fingerprint of another version than this server's."""
    outdated = other_version(tokenizer_hash, here="the server", there="the client")
    if outdated is not None:
        raise refuse(outdated[0], where, outdated[1], "TOKENIZER_HASH_VERSION")


def realignment_unavailable(what: str, where: str) -> ContractMismatchError:
    return ContractMismatchError(
        f"{what}, and rows cannot be realigned from one to the other",
        where=where,
        fix="choose a teacher whose tokenizer is the student's, or a BPE that is byte-level or "
        "has byte fallback (GetTeacher lists their tokenizer hashes)",
        reason="REALIGNMENT_UNAVAILABLE",
    )


def compared(error: Refusal, differences: Mapping[str, str]) -> Refusal:
    """The error for a student's tokenizer with what keeps it from being a teacher's.

    Args:
        differences: teacher -> how the two tokenizers differ, where that is known.
    """
    for name, found in differences.items():
        if found:
            what = f"{error.what}; compared with the tokenizer of teacher {name!r}, {found}"
            return type(error)(what, where=error.where, fix=error.fix, reason=error.reason)
    return error
