"""What all connections of one port share, and what they tell the application."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import uvicorn
from starlette.responses import Response
from teacher_proto.errors import LsmError
from uvicorn.server import ServerState

from teacher_server.http.connection.table import Table
from teacher_server.http.connection.turns import Turns
from teacher_server.settings.limits import LimitSettings

# Bytes of one read of a socket.
READ_AT_ONCE = 32 * 1024

# In a request's scope: the names in the connection's client certificate, and, from the
# application, who makes the call once it is let in.
NAMES_KEY = "lsm.certificate_names"
CALLER_KEY = "lsm.caller"

Address = tuple[str, int] | None


@dataclass
class Host:
    """uvicorn's side, the table, the limits of time, and what is told of connections.

    Attributes:
        public: paths that a connection beyond the bounds may ask for.
        answer: the response to a refusal.
        cut: counts connections that were ended, by reason.
        refused: told of what no route saw: the peer's address and the refusal.
        framing: where chunked bodies wait to be parsed, which takes a part of the loop's time.
        opening: where connections wait to be opened, which takes another part.
        sending: where what everybody may have waits for the turn of its next slice, which takes
            another part.
        buffer: what a read of the socket fills; its bytes are taken out at once.
    """

    config: uvicorn.Config
    state: ServerState
    table: Table
    limits: LimitSettings
    public: frozenset[str]
    answer: Callable[[LsmError], Response]
    cut: Callable[[str], None]
    refused: Callable[[Address, LsmError], None]
    framing: Turns = field(default_factory=Turns)
    opening: Turns = field(default_factory=Turns)
    sending: Turns = field(default_factory=Turns)
    buffer: memoryview = field(default_factory=lambda: memoryview(bytearray(READ_AT_ONCE)))
