"""How many files the process may have open, and how many of them may be connections."""

from __future__ import annotations

import resource
from dataclasses import dataclass

from teacher_proto.errors import ConfigurationError

from teacher_server.settings.limits import LimitSettings

# Where there is no limit at all, this many are asked for.
UNLIMITED = 1 << 20
# Files that are no connections: of the engine, models, tokenizers, logs and libraries.
LEAST_RESERVE, MOST_RESERVE = 96, 1024
# Of each port, where nobody sets a number: each takes memory as well.
MOST_BY_DEFAULT = 4096
WIRES = 2


@dataclass(frozen=True)
class ConnectionBounds:
    """How many connections one port may have.

    Attributes:
        total: from everywhere.
        per_address: from one address, or one /64 of IPv6.
    """

    total: int
    per_address: int


def raise_descriptor_limit() -> int:
    """Raises the soft limit of open files to the hard one; returns what is in force."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = UNLIMITED if hard == resource.RLIM_INFINITY else hard
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):  # the system has a lower limit for all processes
        return soft
    return wanted


def connection_bounds(limits: LimitSettings, descriptors: int) -> ConnectionBounds:
    """The bounds of each port.

    Args:
        descriptors: files that the process may have open.

    Raises:
        ConfigurationError: both ports together could leave no files for the rest.
    """
    reserve = min(MOST_RESERVE, max(LEAST_RESERVE, descriptors // 4))
    room = (descriptors - reserve) // WIRES
    total = limits.max_connections
    if total is None:
        total = min(MOST_BY_DEFAULT, room)
    if total > room or total < 1:
        needed = WIRES * max(1, total) + reserve
        raise ConfigurationError(
            f"{max(1, total)} connections on each of {WIRES} ports and {reserve} other files "
            f"are more than the {descriptors} that this process may have open",
            where="limits.max_connections",
            fix=f"raise the hard limit of open files (ulimit -Hn) to {needed}, or lower the "
            "setting",
        )
    one = limits.max_connections_per_address
    if one is not None and one > total:
        raise ConfigurationError(
            f"it is {one}, and a port may have {total} connections",
            where="limits.max_connections_per_address",
            fix=f"set it to at most {total}, or set limits.max_connections",
        )
    return ConnectionBounds(total, max(1, total // 2) if one is None else one)
