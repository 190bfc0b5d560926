"""The server's certificate, key and client authorities; replaced without a restart."""

from __future__ import annotations

import logging
import ssl
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc
from teacher_proto.client.credentials import load_authorities, load_pair
from teacher_proto.errors import ConfigurationError, LsmError
from teacher_proto.secret_files import read_public, read_secret, signature

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Material:
    """One consistent reading of the files, for both wires."""

    context: ssl.SSLContext
    configuration: Any  # grpc.ServerCertificateConfiguration


class Certificates:
    """Looks at the files before every handshake; any thread may ask.

    Files that cannot be used are an error in the log, once, and new connections keep
    using what was in force.
    """

    def __init__(self, cert: Path, key: Path, client_ca: Path | None) -> None:
        """Raises ConfigurationError: a file cannot be used, or they do not belong together."""
        self.cert, self.key, self.client_ca = cert, key, client_ca
        self._lock = threading.Lock()
        self._seen = self._signatures()
        self._current = self._read()

    def current(self) -> Material:
        with self._lock:
            if self._signatures() != self._seen:
                self._reload()
            return self._current

    def reload(self) -> None:
        """Reads the files again, changed or not."""
        with self._lock:
            self._reload()

    def grpc_credentials(self) -> grpc.ServerCredentials:
        given = [self.current()]

        def changed() -> Any:
            material = self.current()
            if material is given[0]:
                return None
            given[0] = material
            return material.configuration

        credentials: grpc.ServerCredentials = grpc.dynamic_ssl_server_credentials(
            given[0].configuration, changed, self.client_ca is not None
        )
        return credentials

    def http_context(self) -> ssl.SSLContext:
        """A context whose every handshake uses the current files."""
        return _Current.over(self)

    def _reload(self) -> None:
        self._seen = self._signatures()
        try:
            self._current = self._read()
        except LsmError as error:
            log.error("the certificates stay as they were: %s", error)
        else:
            log.info("certificates were read again")

    def _signatures(self) -> Sequence[object]:
        return [signature(path) for path in (self.cert, self.key, self.client_ca) if path]

    def _read(self) -> Material:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.set_alpn_protocols(["http/1.1"])
        load_pair(context, self.cert, self.key, "tls.cert", "tls.key")
        authorities = None
        if self.client_ca is not None:
            load_authorities(context, self.client_ca, "tls.client_ca")
            context.verify_mode = ssl.CERT_REQUIRED
            authorities = read_public(self.client_ca, "tls.client_ca")
        pair = read_secret(self.key, "tls.key"), read_public(self.cert, "tls.cert")
        return Material(context, grpc.ssl_server_certificate_configuration([pair], authorities))


class _Current(ssl.SSLContext):
    """Hands each connection over to the context of the files as they are now."""

    _certificates: Certificates

    @classmethod
    def over(cls, certificates: Certificates) -> Self:
        context = cls(ssl.PROTOCOL_TLS_SERVER)
        context._certificates = certificates
        return context

    def wrap_bio(self, *arguments: Any, **options: Any) -> ssl.SSLObject:
        return self._certificates.current().context.wrap_bio(*arguments, **options)


def certificate_names(certificate: Any) -> tuple[str, ...]:
    """Common name and subject alternative names of ``SSLObject.getpeercert()``."""
    if not certificate:
        return ()
    subject = [pair for part in certificate.get("subject", ()) for pair in part]
    names = [value for kind, value in subject if kind == "commonName"]
    return (*names, *(value for _, value in certificate.get("subjectAltName", ())))


def check_tls(cert: Path | None, key: Path | None, client_ca: Path | None) -> Certificates | None:
    """The certificates of these settings; None when TLS is off.

    Raises:
        ConfigurationError: half of them is given, or a file cannot be used.
    """
    if cert is None and key is None and client_ca is None:
        return None
    if cert is None or key is None:
        raise ConfigurationError(
            "TLS needs the server's certificate and its key",
            where="tls",
            fix="give tls.cert and tls.key",
        )
    return Certificates(cert, key, client_ca)
