"""Asking a server's HTTP interface: a token leaves only as the arguments allow it."""

from __future__ import annotations

import argparse
import http.client
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from teacher_proto.errors import ConfigurationError, LsmError

from teacher_server.commands.client_arguments import credentials

if TYPE_CHECKING:
    from teacher_proto.client.credentials import ClientCredentials, Identification


@dataclass(frozen=True)
class Place:
    """A server's HTTP interface.

    Attributes:
        base: its URL, without a slash at the end.
        address: ``host:port``, or ``host`` where the URL has no port.
        own: who asks there.
    """

    base: str
    address: str
    own: Identification

    @property
    def guarded(self) -> bool:
        """Whether a token is shown there."""
        return bool(self.own.metadata())


def place_of(
    url: str, arguments: argparse.Namespace, where: str, given: ClientCredentials | None = None
) -> Place:
    """The interface at a URL, which decides whether what is sent is encrypted.

    Args:
        where: the argument that holds the URL.
        given: in place of the arguments' credentials.

    Raises:
        ConfigurationError: it is no http(s) URL of a server, it is not encrypted although the
            arguments say so, or a token would leave this machine in plain text.
    """
    from teacher_proto.client.credentials import Identification

    base = url.rstrip("/")
    try:
        parts = urlsplit(base)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    plain = host and not {*base} & {*"'\"\\"} and all(33 <= ord(c) < 127 for c in base)
    if (
        not plain
        or parts.scheme not in ("http", "https")
        or parts.username is not None
        or parts.query
        or parts.fragment
    ):
        raise ConfigurationError(
            f"{url[:200]!r} is no URL of a server", where=where, fix="write http(s)://HOST:PORT"
        )
    told = given or credentials(arguments, with_token=True)
    if parts.scheme == "https":
        told = replace(told, tls=True)
    elif told.encrypted:
        raise ConfigurationError(
            f"{base} is not encrypted, and --tls, --ca or --cert say that it is",
            where=where,
            fix="write https://, or leave them out",
        )
    # The port decides nothing here; without one the host would be taken for it.
    address = parts.netloc
    own = Identification(told, address if parts.port is not None else f"{address}:0")
    if own.context is not None:
        own.context.set_alpn_protocols(["http/1.1"])
    return Place(base, address, own)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A server that sends its callers elsewhere is told of: a token is for whom it was given to."""

    def redirect_request(self, *_: Any) -> None:
        return None


def ask(
    url: str,
    own: Identification,
    timeout: float,
    *,
    body: bytes | None = None,
    failed: Callable[[str], LsmError],
) -> bytes:
    """What a server answers to a GET, or to a POST of JSON.

    Args:
        timeout: seconds without a byte.
        failed: makes the error of what keeps it from answering.

    Raises:
        urllib.error.HTTPError: the server refuses, or sends its callers elsewhere.
        LsmError: nothing answers there, or something else than HTTP.
    """
    headers: dict[str, str] = {key: str(value) for key, value in own.metadata()}
    if body is not None:
        headers["Content-Type"] = "application/json"
    handlers: list[urllib.request.BaseHandler] = [_NoRedirects()]
    handlers.append(urllib.request.HTTPSHandler(context=own.context))
    if url.startswith("http:"):  # a proxy would read the token
        handlers.append(urllib.request.ProxyHandler({}))
    try:
        asked = urllib.request.Request(url, body, headers)
        with urllib.request.build_opener(*handlers).open(asked, timeout=timeout) as answer:
            found: bytes = answer.read()
            return found
    except urllib.error.HTTPError:
        raise
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise failed(str(getattr(error, "reason", error)) or type(error).__name__) from error
