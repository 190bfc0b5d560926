"""Finds out why a connection fails, where gRPC only reports that it did.

What is certain and will not mend itself (plain text meets TLS, a certificate is not
trusted, the port speaks another protocol) becomes an error. Everything else, such as
a teacher that is not there yet, is None.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl

from teacher_proto.errors import ConfigurationError, LsmError, UnauthenticatedError

# What an HTTP/2 client says first: the preface and an empty SETTINGS frame.
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
HTTP_PORT = "give the service's gRPC port (grpc_port, 50051 unless set), not its HTTP port"
LONGEST_SECONDS = 2.0


async def connection_problem(
    address: str,
    context: ssl.SSLContext | None,
    seconds: float,
) -> LsmError | None:
    """What is wrong between this client and ``address``.

    Args:
        address: ``host:port``; another form of target is not looked at.
        context: the client's TLS; None for plain text.
        seconds: to look for at most, never more than 2.
    """
    host, _, port = address.rpartition(":")
    if not port.isdigit() or "/" in host or host.startswith("unix:"):
        return None
    try:
        async with asyncio.timeout(min(seconds, LONGEST_SECONDS)):
            if context is None:
                return await _plain(host.strip("[]"), int(port), address)
            return await _tls(host.strip("[]"), int(port), address, context)
    except (OSError, TimeoutError):
        return None


async def _plain(host: str, port: int, address: str) -> LsmError | None:
    begins = b""
    with contextlib.suppress(ConnectionError):
        begins = await _exchange(host, port, None, PREFACE)
    if begins.startswith(b"HTTP/1"):
        return _wrong_port(address)
    if begins[3:4] == b"\x04":  # a SETTINGS frame: plain HTTP/2, as it should be
        return None
    anyone = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    anyone.check_hostname, anyone.verify_mode = False, ssl.CERT_NONE
    try:
        _, writer = await asyncio.open_connection(host, port, ssl=anyone)
        await _close(writer)
    except ssl.SSLError as error:
        # An alert about our certificate is TLS too; anything else is not.
        if "CERTIFICATE" not in (error.reason or ""):
            return None
    except ConnectionError:
        return None
    return ConfigurationError(
        "the port speaks TLS and this client plain text",
        where=address,
        fix="give the CA's certificate as ca, or tls = true for a public one",
        reason="TLS_EXPECTED",
    )


async def _tls(host: str, port: int, address: str, context: ssl.SSLContext) -> LsmError | None:
    try:
        _, writer = await asyncio.open_connection(host, port, ssl=context)
        protocol = writer.get_extra_info("ssl_object").selected_alpn_protocol()
        await _close(writer)
        if protocol != "h2":
            return _wrong_port(address)
        # A server of gRPC speaks first, and says nothing to those it does not accept.
        if not await _exchange(host, port, context, PREFACE):
            return _not_accepted(address)
    except ssl.SSLCertVerificationError as error:
        return ConfigurationError(
            f"the server's certificate is not accepted: {error.verify_message}",
            where=address,
            fix="give the certificate of the CA that issued it as ca, and an address it is for",
            reason="SERVER_NOT_TRUSTED",
        )
    except ssl.SSLError as error:
        return _refused(address, error.reason or "")
    return None


def _refused(address: str, reason: str) -> LsmError | None:
    if "ALERT" in reason and ("CERTIFICATE" in reason or "UNKNOWN_CA" in reason):
        return _not_accepted(address)
    if reason in (
        "WRONG_VERSION_NUMBER",
        "RECORD_LAYER_FAILURE",
        "HTTP_REQUEST",
        "PACKET_LENGTH_TOO_LONG",
    ):
        return ConfigurationError(
            "the port speaks plain text and this client TLS",
            where=address,
            fix="leave out ca, cert and tls, or give the server tls.cert and tls.key",
            reason="PLAIN_TEXT_EXPECTED",
        )
    return None


def _not_accepted(address: str) -> LsmError:
    return UnauthenticatedError(
        "the server wants a client certificate, or does not accept this client's",
        where=address,
        fix="give cert and key, issued by the authority the server trusts (tls.client_ca)",
        reason="CLIENT_NOT_TRUSTED",
    )


async def _exchange(host: str, port: int, context: ssl.SSLContext | None, say: bytes) -> bytes:
    """Connects, sends ``say`` and returns the first bytes of the answer."""
    reader, writer = await asyncio.open_connection(host, port, ssl=context)
    try:
        writer.write(say)
        return await reader.read(64)
    finally:
        await _close(writer)


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def _wrong_port(address: str) -> ConfigurationError:
    return ConfigurationError(
        "the port speaks HTTP and not gRPC",
        where=address,
        fix=HTTP_PORT,
        reason="NOT_GRPC",
    )
