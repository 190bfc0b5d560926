"""One named teacher: an engine, its tokenizer, its identity and its queue."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from teacher_proto.models.folder import public_name
from teacher_proto.types import ChatInfo, Level, TeacherIdentity, TeacherInfo

from teacher_server.access.rules import Principal, authorize, authorize_any, may_use
from teacher_server.engines.base import Engine, EngineDescription
from teacher_server.queue.admission import Admission
from teacher_server.refusals.facts import TeacherFacts
from teacher_server.refusals.validation import unknown_teacher
from teacher_server.settings.limits import LimitSettings
from teacher_server.teachers.tokenizer import TeacherTokenizer


@dataclass(frozen=True)
class Teacher:
    name: str
    engine: Engine
    tokenizer: TeacherTokenizer
    identity: TeacherIdentity
    info: TeacherInfo
    facts: TeacherFacts
    admission: Admission


class Teachers:
    """The teachers of a server by name: all of them, or those that a principal may use."""

    def __init__(self, teachers: Mapping[str, Teacher], principal: Principal | None = None) -> None:
        self._teachers = {n: t for n, t in teachers.items() if may_use(principal, n)}
        self._principal = principal

    def for_principal(self, principal: Principal | None) -> Teachers:
        """Those that the principal may ask; None, a server without credentials, may ask all."""
        return self if principal is None else Teachers(self._teachers, principal)

    def usable_by(self, principal: Principal | None) -> Teachers:
        """``for_principal``; raises ForbiddenError where that is none."""
        if principal is not None:
            authorize_any(principal, self.names)
        return self.for_principal(principal)

    def __iter__(self) -> Iterator[Teacher]:
        return iter(self._teachers.values())

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self._teachers)

    def get(self, name: str) -> Teacher:
        """The teacher of this name.

        Raises:
            ForbiddenError: the principal may not use it.
            UnknownTeacherError: there is none.
            InvalidRequestError: the name is empty.
        """
        found = self._teachers.get(name)
        if found is None:
            if name:
                authorize(self._principal, name)
            raise unknown_teacher(name, self.names)
        return found


def identity_of(
    description: EngineDescription, tokenizer_hash: str, chat_template_digest: str = ""
) -> TeacherIdentity:
    """The identity of what an engine has loaded.

    The digest is the sha256, in hex, of the other fields as a JSON object in UTF-8, with
    its keys in alphabetical order, without spaces, and with non-ASCII characters as they
    are. Without a chat template its digest is left out of the object.
    """
    fields = {
        "adapter_digest": description.adapter_digest,
        "dtype": description.dtype,
        "quantization": description.quantization,
        "tokenizer_hash": tokenizer_hash,
        "weights_digest": description.weights_digest,
    }
    if chat_template_digest:
        fields["chat_template_digest"] = chat_template_digest
    canonical = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return TeacherIdentity(digest=hashlib.sha256(canonical.encode()).hexdigest(), **fields)


def make_teacher(
    name: str,
    engine: Engine,
    tokenizer: TeacherTokenizer,
    limits: LimitSettings,
    admission: Admission,
) -> Teacher:
    """The teacher that a started engine and its tokenizer make."""
    description = engine.description
    identity = identity_of(description, tokenizer.hash, tokenizer.chat.digest)
    max_top_k = min(description.vocabulary_size, limits.max_top_k or description.vocabulary_size)
    return Teacher(
        name=name,
        engine=engine,
        tokenizer=tokenizer,
        identity=identity,
        info=TeacherInfo(
            name=name,
            identity=identity,
            vocabulary_size=description.vocabulary_size,
            max_top_k=max_top_k,
            max_length=description.max_length,
            engine=description.engine,
            deterministic=description.deterministic,
            tokenizers={tokenizer.hash: Level.SAME},
            model=public_name(description.model),
            chat=ChatInfo(
                template_digest=tokenizer.chat.digest,
                reads_clock=tokenizer.chat.reads_clock,
                arguments=tokenizer.chat.arguments,
                turn_ends=tokenizer.token_texts(tokenizer.turn_ends),
            ),
            begin_tokens=tokenizer.token_texts(tokenizer.begin_ids),
        ),
        facts=TeacherFacts(
            name=name,
            vocabulary_size=description.vocabulary_size,
            max_top_k=max_top_k,
            max_length=description.max_length,
            tokenizer_hash=tokenizer.hash,
            identity_digest=identity.digest,
            longest_token=tokenizer.longest_token,
            keeps_prefixes=description.keeps_prefixes,
            deterministic=description.deterministic,
        ),
        admission=admission,
    )
