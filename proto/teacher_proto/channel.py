"""Every gRPC option the project uses, by name, in one place.

gRPC ignores a name it does not know, so each one is a constant here and a test
looks it up in the gRPC core that is installed. Sizes are bytes, times are
milliseconds.
"""

from __future__ import annotations

import ipaddress

Options = tuple[tuple[str, int | str], ...]

MAX_SEND = "grpc.max_send_message_length"
MAX_RECEIVE = "grpc.max_receive_message_length"
KEEPALIVE_TIME = "grpc.keepalive_time_ms"
KEEPALIVE_TIMEOUT = "grpc.keepalive_timeout_ms"
KEEPALIVE_IDLE = "grpc.keepalive_permit_without_calls"
PINGS_WITHOUT_DATA = "grpc.http2.max_pings_without_data"
MIN_PING_INTERVAL = "grpc.http2.min_ping_interval_without_data_ms"
INITIAL_BACKOFF = "grpc.initial_reconnect_backoff_ms"
MIN_BACKOFF = "grpc.min_reconnect_backoff_ms"
MAX_BACKOFF = "grpc.max_reconnect_backoff_ms"
ENABLE_RETRIES = "grpc.enable_retries"
LOCAL_SUBCHANNELS = "grpc.use_local_subchannel_pool"
HTTP_PROXY = "grpc.enable_http_proxy"
USER_AGENT = "grpc.primary_user_agent"
REUSE_PORT = "grpc.so_reuseport"
MAX_CONNECTIONS = "grpc.max_allowed_incoming_connections"
MAX_STREAMS = "grpc.max_concurrent_streams"
HANDSHAKE_TIMEOUT = "grpc.server_handshake_timeout_ms"
MAX_IDLE = "grpc.max_connection_idle_ms"

MIB = 1 << 20
# gRPC's core ends the process when it is given INT32_MAX or more.
MOST_CONNECTIONS = 2**31 - 2
# The client's own bounds; the server's limits are usually below them.
MAX_REQUEST_BYTES = 256 * MIB
MAX_REPLY_BYTES = 1024 * MIB

PING_EVERY = 20_000
PING_TIMEOUT = 20_000
# What a server tolerates; below PING_EVERY, so that our own client never offends.
PING_AT_MOST_EVERY = 10_000
# A server ends connections without a call after this time; gRPC clients open another one
# when they have to.
IDLE = 300_000
# Calls of one connection at once; a client lets further ones wait.
STREAMS = 1024


def client_options(
    address: str,
    *,
    max_request_bytes: int = MAX_REQUEST_BYTES,
    max_reply_bytes: int = MAX_REPLY_BYTES,
    user_agent: str = "lsm-distill",
) -> Options:
    """Options of a client's channel to ``address``.

    A lost connection is looked for again after 0.1 s, then at most every second.
    gRPC's own retries are off: the client retries itself. A loopback address is
    never reached through a proxy of the environment.
    """
    options: list[tuple[str, int | str]] = [
        (MAX_SEND, max_request_bytes),
        (MAX_RECEIVE, max_reply_bytes),
        (KEEPALIVE_TIME, PING_EVERY),
        (KEEPALIVE_TIMEOUT, PING_TIMEOUT),
        (KEEPALIVE_IDLE, 0),
        (PINGS_WITHOUT_DATA, 0),
        (INITIAL_BACKOFF, 100),
        (MIN_BACKOFF, 5_000),
        (MAX_BACKOFF, 1_000),
        (ENABLE_RETRIES, 0),
        (LOCAL_SUBCHANNELS, 1),
        (USER_AGENT, user_agent),
    ]
    if is_on_this_machine(address):
        options.append((HTTP_PROXY, 0))
    return tuple(options)


def server_options(
    max_request_bytes: int,
    max_reply_bytes: int,
    max_connections: int = MOST_CONNECTIONS,
    handshake_timeout: int = 120_000,
) -> Options:
    """Options of the server.

    A port in use is an error, never shared. A message above ``max_request_bytes``
    is refused by gRPC itself with RESOURCE_EXHAUSTED. Connections beyond
    ``max_connections`` are ended at once, and those that speak no HTTP/2 within
    ``handshake_timeout``.
    """
    return (
        (MAX_RECEIVE, max_request_bytes),
        (MAX_SEND, max_reply_bytes),
        (KEEPALIVE_TIME, PING_EVERY),
        (KEEPALIVE_TIMEOUT, PING_TIMEOUT),
        (KEEPALIVE_IDLE, 0),
        (PINGS_WITHOUT_DATA, 0),
        (MIN_PING_INTERVAL, PING_AT_MOST_EVERY),
        (REUSE_PORT, 0),
        (MAX_CONNECTIONS, max_connections),
        (MAX_STREAMS, STREAMS),
        (HANDSHAKE_TIMEOUT, handshake_timeout),
        (MAX_IDLE, IDLE),
    )


def is_on_this_machine(address: str) -> bool:
    """Whether ``host:port`` or ``unix:...`` can only mean this machine."""
    if address.startswith("unix:"):
        return True
    return is_loopback(address.removeprefix("dns:").lstrip("/").rpartition(":")[0].strip("[]"))


def is_loopback(host: str) -> bool:
    """Whether ``host`` is a loopback address by its text; of all names only localhost is."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
