"""A server that does nothing: it accepts, reads, discards, and refuses whatever is whole.

    python -m benchmarks.attacks.dummy

prints {"grpc_address", "http_address", "pid"} and serves until it is ended. What an attack
on it costs a neighbour on the same cores, the attacker alone costs.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
from typing import Any

import grpc

REFUSAL = b"HTTP/1.1 400 Bad Request\r\ncontent-length: 2\r\n\r\n{}"


class _Discard(grpc.GenericRpcHandler):
    def service(self, details: grpc.HandlerCallDetails) -> Any:
        async def refuse(message: bytes, context: Any) -> None:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no")

        return grpc.unary_unary_rpc_method_handler(refuse)


async def _http(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        while head := await reader.readuntil(b"\r\n\r\n"):
            length = 0
            for line in head.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    length = int(line.partition(b":")[2])
                if line.startswith(b"transfer-encoding:"):
                    length = 1 << 62
            while length > 0 and (part := await reader.read(min(length, 1 << 20))):
                length -= len(part)
            writer.write(REFUSAL)
            await writer.drain()
    writer.close()


async def main() -> None:
    # As many wait to be accepted as with the server: else the attacker waits, and is no measure.
    http = await asyncio.start_server(_http, "127.0.0.1", 0, limit=1 << 20, backlog=4096)
    server = grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
    server.add_generic_rpc_handlers((_Discard(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    facts = {
        "grpc_address": f"127.0.0.1:{port}",
        "http_address": f"127.0.0.1:{http.sockets[0].getsockname()[1]}",
        "pid": os.getpid(),
    }
    print(json.dumps(facts), flush=True)
    await http.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())
