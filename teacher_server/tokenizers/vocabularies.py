"""Vocabularies of tokenizer files, and the roles that their special ids are given."""

from __future__ import annotations

import logging
from dataclasses import replace

from teacher_proto.errors import ConfigurationError, InvalidRequestError
from teacher_proto.types import SpecialRole

from teacher_server.realign.pair.vocabulary import Vocabulary, read_vocabulary
from teacher_server.refusals.errors import refuse
from teacher_server.teachers.tokenizer import TeacherTokenizer
from teacher_server.tokenizers.store import Entry, Roles

log = logging.getLogger(__name__)

# Runs that give the special ids of one tokenizer other roles than its first run did.
MAX_OWN_ROLES = 64


def teacher_vocabulary(tokenizer: TeacherTokenizer) -> Vocabulary | None:
    """Of a teacher's own tokenizer; None where other tokenizers cannot be realigned to it."""
    try:
        found = read_vocabulary(tokenizer.file)
    except ConfigurationError as error:
        log.info("other tokenizers cannot be realigned to this teacher's: %s", error.what)
        return None
    # Ends and beginnings that the model's files name, where their spelling shows no role.
    named = {
        token: role
        for role, token in tokenizer.named_specials.items()
        if found.roles.get(token) is SpecialRole.OTHER
    }
    return replace(found, roles={**found.roles, **named})


def student_vocabulary(file: bytes, roles: Roles) -> Vocabulary:
    """Of a registered file; raises InvalidRequestError for whatever is wrong with it."""
    try:
        return read_vocabulary(file, roles)
    except ConfigurationError as error:
        raise InvalidRequestError(
            error.what, where=error.where, fix=error.fix, reason="TOKENIZER_REFUSED"
        ) from error
    except BaseException as error:
        # What the tokenizers library does with a file it should have refused.
        if type(error).__name__ != "PanicException" and not isinstance(error, RecursionError):
            raise
        raise refuse(
            "the tokenizer cannot be read: it makes the tokenizers library fail",
            "tokenizer.json",
            "give the file as the tokenizers library itself writes it",
            "TOKENIZER_REFUSED",
        ) from None


def with_roles(known: Entry, roles: Roles, run: str) -> Entry:
    """The known entry with the roles that this run gives its special ids.

    Raises:
        InvalidRequestError: the special ids are not the same, or too many runs differ.
    """
    if set(known.roles) != set(roles):
        raise refuse(
            "a tokenizer of the same content is known with other special tokens: "
            f"{sorted(set(known.roles) ^ set(roles))[:8]}",
            "tokenizer.json",
            "send the file with the flags of its added tokens as they were published",
            "TOKENIZER_CONTRADICTS",
        )
    own = {name: given for name, given in known.own_roles.items() if name != run}
    if roles != known.roles:
        own[run] = roles
    if len(own) > MAX_OWN_ROLES:
        raise refuse(
            f"{MAX_OWN_ROLES} runs have given its special ids other roles already",
            "header.special_tokens",
            "register the roles that most runs have",
            "LIMIT_EXCEEDED",
        )
    return replace(known, own_roles=own)
