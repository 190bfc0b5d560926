"""How a client identifies itself, and which servers it trusts."""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass, field
from pathlib import Path

import grpc
import grpc.aio

from teacher_proto.channel import Options, is_on_this_machine
from teacher_proto.errors import ConfigurationError
from teacher_proto.secret_files import (
    Signature,
    read_public,
    read_secret,
    signature,
    token_of,
)

AUTHORIZATION = "authorization"
# The run a call without a request of its own is made for, UTF-8.
RUN = "lsm-run-bin"


@dataclass(frozen=True)
class ClientCredentials:
    """A token, and TLS. The default is plain text and no token.

    Attributes:
        token: sent with every call; never shown.
        token_file: holds the token instead; read again when it changes. Nobody
            but its owner may have access to it.
        tls: encrypt, and trust the certificate authorities of this machine.
        ca: encrypt, and trust the authorities of this PEM file alone.
        cert, key: the client's own certificate (PEM, leaf first) and its key.
        insecure_plaintext: send a token unencrypted beyond this machine.
    """

    token: str = field(default="", repr=False)
    token_file: Path | None = None
    tls: bool = False
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    insecure_plaintext: bool = False

    def __post_init__(self) -> None:
        for name in ("token_file", "ca", "cert", "key"):
            path = getattr(self, name)
            if path is not None:
                object.__setattr__(self, name, Path(os.path.expanduser(path)))

    @property
    def encrypted(self) -> bool:
        return self.tls or self.ca is not None or self.cert is not None

    @property
    def any(self) -> bool:
        """Whether the client identifies itself at all."""
        return bool(self.token or self.token_file or self.cert)


class Identification:
    """Credentials at work: checked once, then asked for every call's metadata."""

    def __init__(self, credentials: ClientCredentials, address: str) -> None:
        """Raises ConfigurationError: they do not fit together, a file cannot be
        used, or a token would leave this machine in plain text."""
        self.credentials = credentials
        self._read: tuple[Signature | None, str] | None = None
        if credentials.token and credentials.token_file:
            raise ConfigurationError(
                "token and token_file are both given", where="token_file", fix="give one of them"
            )
        if (credentials.cert is None) != (credentials.key is None):
            raise ConfigurationError(
                "a client certificate needs its key, and a key its certificate",
                where="cert",
                fix="give cert and key",
            )
        if self._token() and not credentials.encrypted and not credentials.insecure_plaintext:
            check_stays_here(address)
        self.context = _tls_context(credentials) if credentials.encrypted else None

    def metadata(self, *, run: str = "") -> tuple[tuple[str, str | bytes], ...]:
        """What a call carries; ``run``: for a call whose message names none.

        Raises:
            ConfigurationError: the token's file cannot be used any more.
        """
        token = self._token()
        found: list[tuple[str, str | bytes]] = []
        if token:
            found.append((AUTHORIZATION, f"Bearer {token}"))
        if run and self.credentials.any:
            found.append((RUN, run.encode()))
        return tuple(found)

    def channel(self, address: str, options: Options) -> grpc.aio.Channel:
        if self.context is None:
            return grpc.aio.insecure_channel(address, options=options)
        given = self.credentials
        system = ssl.get_default_verify_paths().cafile
        roots = given.ca or (Path(system) if system else None)
        secured = grpc.ssl_channel_credentials(
            root_certificates=None if roots is None else read_public(roots, "ca"),
            private_key=None if given.key is None else read_secret(given.key, "key"),
            certificate_chain=None if given.cert is None else read_public(given.cert, "cert"),
        )
        return grpc.aio.secure_channel(address, secured, options=options)

    def _token(self) -> str:
        file = self.credentials.token_file
        if file is None:
            token = self.credentials.token
            return token_of(token, "token") if token else ""
        seen = signature(file)
        if self._read is None or self._read[0] != seen:
            text = read_secret(file, "token_file").decode("utf-8", "replace")
            self._read = seen, token_of(text, f"token_file={file}")
        return self._read[1]


def check_stays_here(address: str) -> None:
    """Raises ConfigurationError unless ``address`` is a loopback one."""
    if not is_on_this_machine(address):
        raise ConfigurationError(
            f"the token would be sent to {address} in plain text",
            where="ca",
            fix="give ca (or tls) to encrypt, or insecure_plaintext where the network is private",
            reason="TOKEN_IN_PLAIN_TEXT",
        )


def _tls_context(credentials: ClientCredentials) -> ssl.SSLContext:
    """What OpenSSL makes of the files: gRPC itself would not say what is wrong with them."""
    context = ssl.create_default_context()
    if credentials.ca is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        load_authorities(context, credentials.ca, "ca")
    if credentials.cert is not None and credentials.key is not None:
        load_pair(context, credentials.cert, credentials.key, "cert", "key")
    context.set_alpn_protocols(["h2"])
    return context


def load_authorities(context: ssl.SSLContext, path: Path, where: str) -> None:
    """Trusts a PEM file's authorities; raises ConfigurationError when it has none."""
    data = read_public(path, where)
    try:
        context.load_verify_locations(cadata=data.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise ConfigurationError(
            "it holds no certificate in PEM", where=f"{where}={path}", fix="give the CA's PEM file"
        ) from error


def load_pair(
    context: ssl.SSLContext, cert: Path, key: Path, cert_where: str, key_where: str
) -> None:
    """Takes a certificate and its key.

    Raises:
        ConfigurationError: a file cannot be used, others can read the key, the
            key has a passphrase, or the two do not belong together.
    """
    read_public(cert, cert_where)
    read_secret(key, key_where)

    def refuse() -> str:
        raise ConfigurationError(
            "the key is protected by a passphrase",
            where=f"{key_where}={key}",
            fix="give a key without one, readable by its owner alone",
        )

    try:
        context.load_cert_chain(cert, key, password=refuse)
    except ssl.SSLError as error:
        mismatch = error.reason == "KEY_VALUES_MISMATCH"
        raise ConfigurationError(
            "the key is not the certificate's" if mismatch else "no certificate or key in PEM",
            where=f"{cert_where}={cert}, {key_where}={key}",
            fix="give the key the certificate was issued for" if mismatch else "give PEM files",
        ) from error
