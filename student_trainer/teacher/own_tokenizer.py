"""Registration of the student's tokenizer with a teacher that has another one: the file,
and the roles of its special tokens, which the file alone does not contain.

The roles come from what the student itself uses: its terminators, its chat template (which
of them ends an assistant's turn), and the tokenizer's own bos and padding tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from teacher_proto.client import TeacherClient
from teacher_proto.errors import ContractMismatchError, InvalidRequestError
from teacher_proto.templates import thinking
from teacher_proto.templates.reply_end import reply_end
from teacher_proto.types import (
    ServerLimits,
    SpecialRole,
    TeacherInfo,
    TokenizerLevels,
    TokenizerUpload,
)

from student_trainer.student.model import Student


def registration_of(student: Student, run: str) -> TokenizerUpload:
    """What has to be registered of the student's tokenizer."""
    file = student.tokenizer.backend_tokenizer.to_str().encode()
    roles = special_roles(student.tokenizer, student.terminators, student.template_arguments)
    return TokenizerUpload(run, student.tokenizer_hash, file, roles)


def special_roles(
    tokenizer: Any, terminators: Sequence[int], arguments: Mapping[str, Any] | None = None
) -> dict[int, SpecialRole]:
    """Roles of the special tokens whose use is known, by id. A token has one role, the
    first of: turn end, end of text, begin of text, thinking, padding.

    Args:
        terminators: ids that end a response.
        arguments: of the chat template.
    """
    turn_end = reply_end(tokenizer, terminators, arguments).token_id
    roles = {
        token: SpecialRole.TURN_END if token == turn_end else SpecialRole.END_OF_TEXT
        for token in terminators
    }
    if tokenizer.bos_token_id is not None:
        roles.setdefault(tokenizer.bos_token_id, SpecialRole.BEGIN_OF_TEXT)
    for token, added in tokenizer.added_tokens_decoder.items():
        if added.content in thinking.ROLES:
            roles.setdefault(token, thinking.ROLES[added.content])
    if tokenizer.pad_token_id is not None:
        roles.setdefault(tokenizer.pad_token_id, SpecialRole.PADDING)
    ordinary = tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False)
    special = {
        token
        for token, added in tokenizer.added_tokens_decoder.items()
        if added.special or added.content not in ordinary
    }
    return {token: role for token, role in roles.items() if token in special}


def register(
    client: TeacherClient,
    info: TeacherInfo,
    limits: ServerLimits,
    tokenizer: TokenizerUpload,
    *,
    timeout: float,
) -> TokenizerLevels:
    """Registers the tokenizer; returns how it relates to the teachers', this one's among them.

    Raises:
        ContractMismatchError: the service refuses it, or does not realign the rows of
            this teacher.
    """
    if len(tokenizer.file) > limits.max_tokenizer_bytes:
        raise _refused(
            f"its tokenizer.json has {len(tokenizer.file)} bytes, the server takes "
            f"{limits.max_tokenizer_bytes}",
            "raise the server's limits.max_tokenizer_bytes",
        )
    try:
        levels = client.register_tokenizer(tokenizer, timeout=timeout)
    except (InvalidRequestError, ContractMismatchError) as error:
        raise _refused(error.what, error.fix) from error
    if info.name not in levels:
        raise _refused(f"the server realigns no rows of teacher {info.name!r}", "")
    return levels


def _refused(what: str, fix: str) -> ContractMismatchError:
    return ContractMismatchError(
        f"the student's tokenizer is not the teacher's, and the service does not take it: {what}",
        where="student.model",
        fix=fix
        or "use a student with the teacher's tokenizer, or one of a kind that can be "
        "realigned (docs/realignment.md)",
        reason="TOKENIZER_REFUSED",
    )
