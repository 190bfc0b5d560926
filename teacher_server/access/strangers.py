"""Refusals of callers that nobody knows, as few lines: who has no credentials writes little.

Pure: the caller gives the time and writes the lines that come back.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

from teacher_server.access import peers

Line = dict[str, str | int]

# A kind of refusal has a line at once, and then one with a count after so many seconds.
SECONDS = 60.0
# Kinds in that time that have lines of their own; all others share one.
MOST_KINDS = 32
OTHERS = "(others)"
# What is one place: IPv4 addresses with equal first bits, and IPv6 ones.
IPV4_PREFIX, IPV6_PREFIX = 24, 48


@dataclass
class _Kind:
    line: Line
    since: float
    count: int = 0


class Strangers:
    """Counts refusals by surface, method, status, reason and network."""

    def __init__(self) -> None:
        self._kinds: OrderedDict[tuple[str | int, ...], _Kind] = OrderedDict()

    def add(self, line: Line, now: float) -> Line | None:
        """The line to write at once for this refusal; None when it is only counted.

        Args:
            line: surface, method, status, reason and peer, besides others.
        """
        kind, found = self._find(line)
        if found is None:
            if OTHERS in kind.values():
                line = line | kind
            self._kinds[tuple(kind.values())] = _Kind(line | kind, now)
            return line
        found.count += 1
        return None

    def not_written(self, line: Line) -> None:
        """Counts a refusal whose line, which ``add`` gave, could not be written."""
        _, found = self._find(line)
        if found is not None:
            found.count += 1

    def due(self, now: float, *, all_of_them: bool = False) -> Iterator[Line]:
        """Lines with the counts of the kinds whose time is over; each is counted anew once
        the next one is asked for, so that none is lost that could not be written."""
        for key, kind in list(self._kinds.items()):
            if now - kind.since < SECONDS and not all_of_them:
                continue
            if kind.count == 0:
                del self._kinds[key]
                continue
            yield kind.line | {"count": kind.count}
            kind.since, kind.count = now, 0

    def _find(self, line: Line) -> tuple[Line, _Kind | None]:
        """The kind of a refusal, and what is known of it."""
        kind = {name: line[name] for name in ("surface", "method", "status", "reason")}
        kind["peer"] = network(str(line["peer"]))
        found = self._kinds.get(tuple(kind.values()))
        if found is None and len(self._kinds) >= MOST_KINDS:
            kind = dict.fromkeys(kind, OTHERS)
            found = self._kinds.get(tuple(kind.values()))
        return kind, found


def network(peer: str) -> str:
    """The network of a peer: `127.0.0.1:5` and gRPC's `ipv4:127.0.0.1:5` are 127.0.0.0/24."""
    return peers.network(peers.split(peer)[0], IPV4_PREFIX, IPV6_PREFIX) or OTHERS
