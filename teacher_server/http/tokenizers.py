"""``POST /v1/tokenizers``: the body is a tokenizer.json, the roles are in the query."""

from __future__ import annotations

from teacher_proto.errors import ConfigurationError, InvalidRequestError
from teacher_proto.tokenizer_hash import tokenizer_hash
from teacher_proto.types import SpecialRole, TokenizerLevels, TokenizerUpload

from teacher_server.http.replies import to_json
from teacher_server.refusals.errors import refuse


def make_upload(file: bytes, run: str, roles: list[str]) -> TokenizerUpload:
    """The upload of a tokenizer.json.

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
    try:
        digest = tokenizer_hash(file)
    except ConfigurationError as error:
        raise InvalidRequestError(error.what, where="the request's body", fix=error.fix) from error
    return TokenizerUpload(run, digest, file, given)


def render_levels(tokenizer: str, levels: TokenizerLevels) -> bytes:
    return to_json(
        {
            "tokenizer_hash": tokenizer,
            "levels": {name: level.name for name, level in levels.items()},
            "differences": levels.differences,
        }
    )
