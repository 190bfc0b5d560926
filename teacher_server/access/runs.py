"""The file of runs and their credentials (docs/access.md), read and checked."""

from __future__ import annotations

import tomllib
from typing import Annotated

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from teacher_proto.errors import ConfigurationError
from teacher_proto.secret_files import token_of

from teacher_server.access.rules import Credentials, Principal, Token, token_digest
from teacher_server.queue.policy import RunPolicy
from teacher_server.refusals.validation import is_name

# Tokens are stored as plain hashes, which only keep long random ones.
SHORTEST_TOKEN = 20


class _Entry(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class _Token(_Entry):
    token: SecretStr | None = None
    sha256: Annotated[str, Field(pattern=r"^[0-9a-fA-F]{64}$")] | None = None
    expires: AwareDatetime | None = None

    @model_validator(mode="after")
    def _one(self) -> _Token:
        if (self.token is None) == (self.sha256 is None):
            raise ValueError("needs one of token and sha256")
        return self

    def digest(self, where: str) -> bytes:
        if self.token is None:
            return bytes.fromhex(self.sha256 or "")
        token = token_of(self.token.get_secret_value(), where)
        if len(token) < SHORTEST_TOKEN:
            raise ConfigurationError(
                f"the token is shorter than {SHORTEST_TOKEN} characters",
                where=where,
                fix="make one with `openssl rand -hex 32`",
            )
        return token_digest(token)


class _Run(_Entry):
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    priority: int = 0
    tokens_per_minute: int | None = Field(default=None, ge=1)
    teachers: tuple[str, ...] | None = None
    certificates: tuple[str, ...] = ()
    tokens: tuple[_Token, ...] = ()


class _File(_Entry):
    runs: dict[str, _Run] = Field(default_factory=dict)


def parse_runs(text: str, where: str) -> Credentials:
    """Credentials of a TOML text.

    Raises:
        ConfigurationError: it is wrong. The message holds no value of the text
            and no key but a run's name, since a secret may stand in the wrong place.
    """
    try:
        parsed = _File.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        line = text.count("\n", 0, error.pos) + 1 if hasattr(error, "pos") else 0
        raise _wrong("it is not TOML" + (f" (line {line})" if line else ""), where) from None
    except ValidationError as error:
        raise _wrong(_problem(error), where) from None
    tokens: dict[bytes, Token] = {}
    certificates: dict[str, Principal] = {}
    for run, entry in parsed.runs.items():
        place = f"{where}: runs.{run}"
        if not is_name(run):
            raise _wrong("a run's name is empty, too long or not printable", where)
        principal = Principal(
            RunPolicy(run, entry.weight, entry.priority, entry.tokens_per_minute),
            None if entry.teachers is None else frozenset(entry.teachers),
        )
        for given in entry.tokens:
            digest = given.digest(place)
            if digest in tokens:
                raise _wrong("a token is given twice", place)
            tokens[digest] = Token(digest, principal, given.expires)
        for name in entry.certificates:
            if name in certificates:
                raise _wrong("a certificate's name is given twice", place)
            certificates[name] = principal
    return Credentials(tuple(tokens.values()), certificates)


def merged(first: Credentials, second: Credentials) -> Credentials:
    """Both together; raises ConfigurationError when a run or a secret is in both."""

    def runs(credentials: Credentials) -> set[str]:
        held = [token.principal for token in credentials.tokens]
        return {principal.run for principal in [*held, *credentials.certificates.values()]}

    both = sorted(runs(first) & runs(second))
    if both:
        raise _wrong(f"run {both[0]} is in access.credentials_file too", "access.credentials")
    digests = {token.digest for token in first.tokens}
    if any(token.digest in digests for token in second.tokens):
        raise _wrong("a token is in access.credentials_file too", "access.credentials")
    if first.certificates.keys() & second.certificates.keys():
        raise _wrong("a certificate's name is in both", "access.credentials")
    return Credentials(first.tokens + second.tokens, {**first.certificates, **second.certificates})


def _problem(failure: ValidationError) -> str:
    error = failure.errors(include_url=False, include_input=False, include_context=False)[0]
    place = [str(part) for part in error["loc"]]
    if error["type"] == "extra_forbidden":
        model = _File if len(place) == 1 else _Run if len(place) == 3 else _Token
        known = ", ".join(model.model_fields)
        return f"{'.'.join(place[:-1]) or 'the top'} holds an unknown key; known are {known}"
    return f"{'.'.join(place)}: {error['msg'].removeprefix('Value error, ')}"


def _wrong(what: str, where: str) -> ConfigurationError:
    return ConfigurationError(what, where=where, fix="write it as docs/access.md says")
