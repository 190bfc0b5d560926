"""``/v1/tokenizers``. POST: the body is a tokenizer.json, the roles are in the query."""

from __future__ import annotations

import dataclasses

from teacher_proto.types import (
    RegisteredTokenizers,
    SpecialRole,
    TokenizerLevels,
    TokenizerUpload,
)

from teacher_server.http.replies import to_json
from teacher_server.refusals.errors import refuse
from teacher_server.scoring.context import Bytes


def make_upload(file: Bytes, run: str, roles: list[str]) -> TokenizerUpload:
    """The upload of a tokenizer.json, which names no fingerprint.

    Args:
        roles: of special ids, each as ``ID:ROLE``, such as 151645:TURN_END.

    Raises:
        InvalidRequestError: a role is not of this form, or means nothing.
    """
    given: dict[int, SpecialRole] = {}
    for text in roles:
        number, _, name = text.partition(":")
        if not number.isascii() or not number.isdigit() or name not in SpecialRole.__members__:
            raise refuse(
                f"{text[:100]!r} is not ID:ROLE",
                "role",
                f"write 151645:TURN_END; roles are {', '.join(SpecialRole.__members__)}",
            )
        given[int(number)] = SpecialRole[name]
    return TokenizerUpload(run, "", bytes(file), given)


def render_levels(tokenizer: str, levels: TokenizerLevels) -> bytes:
    return to_json(
        {
            "tokenizer_hash": tokenizer,
            "levels": {name: level.name for name, level in levels.items()},
            "differences": levels.differences,
        }
    )


def render_registered(found: RegisteredTokenizers) -> bytes:
    return to_json(
        {
            "tokenizers": [
                dataclasses.asdict(one)
                | {"levels": {name: level.name for name, level in one.levels.items()}}
                for one in found.tokenizers
            ],
            "total": found.total,
        }
    )
