"""Vocabularies of tokenizer files, and the roles that their special ids are given."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from teacher_proto.errors import ConfigurationError, InvalidRequestError
from teacher_proto.fingerprint.parts import Fingerprint
from teacher_proto.types import SpecialRole

from teacher_server.realign.pair.roles import TERMINATORS, role_table
from teacher_server.realign.pair.vocabulary import Vocabulary, read_vocabulary, vocabulary_of

log = logging.getLogger(__name__)

Roles = Mapping[int, SpecialRole]


@dataclass(frozen=True)
class TeacherFile:
    """A teacher's tokenizer.

    Attributes:
        hash: fingerprint of ``file``, its tokenizer.json.
        named_specials: ``TeacherTokenizer.named_specials``.
    """

    hash: str
    file: str
    named_specials: Roles


def teacher_vocabularies(tokenizers: Mapping[str, TeacherFile]) -> dict[str, Vocabulary | None]:
    """Of the teachers' own tokenizers, by the teacher's name; None where other tokenizers
    cannot be realigned to one. Equal ones are one object; teachers with one tokenizer may end
    their turns with other tokens."""
    parsed: dict[str, Vocabulary | None] = {}
    found: dict[str, Vocabulary | None] = {}
    for name, tokenizer in tokenizers.items():
        if tokenizer.hash not in parsed:
            parsed[tokenizer.hash] = _parsed(tokenizer)
        own = parsed[tokenizer.hash]
        if own is not None:
            roles = role_table(own.specials, _counting(own, tokenizer))
            equal = [v for v in found.values() if v and (v.hash, v.roles) == (own.hash, roles)]
            own = equal[0] if equal else replace(own, roles=roles)
        found[name] = own
    return found


def _parsed(tokenizer: TeacherFile) -> Vocabulary | None:
    try:
        return read_vocabulary(tokenizer.file)
    except ConfigurationError:
        return None


def _counting(found: Vocabulary, tokenizer: TeacherFile) -> Roles:
    """The roles that the model's files and its template name, as far as they count: ends where
    the template's own is among them, others where the spelling shows no role."""
    named = tokenizer.named_specials
    ends = TERMINATORS if SpecialRole.TURN_END in named.values() else ()
    return {
        token: role
        for token, role in named.items()
        if role in ends or found.roles.get(token) is SpecialRole.OTHER
    }


def student_vocabulary(
    content: Mapping[str, Any], fingerprint: Fingerprint, roles: Roles
) -> Vocabulary:
    """Of a registered file; raises InvalidRequestError for whatever is wrong with it."""
    try:
        return vocabulary_of(content, fingerprint, roles)
    except ConfigurationError as error:
        raise InvalidRequestError(
            error.what, where=error.where, fix=error.fix, reason="TOKENIZER_REFUSED"
        ) from error
