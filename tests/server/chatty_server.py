"""``teacher-server serve`` that writes to stderr as native code and libraries do, once it is
ready, and then ends or crashes as the first argument says; or that fails at once."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import sys
import threading
import warnings
from typing import Any

from teacher_server import cli
from teacher_server.commands.serve import Server

SECRET = "do not tell"
EMPTY: dict[str, int] = {}
PANIC = f"thread '<unnamed>' panicked at src/models/bpe.rs:12:5:\n{SECRET}\nof two lines\n"
ABSL = "E0000 00:00:1764413469.123456    4242 chttp2_transport.cc:1234] ipv4: keepalive\n"


def write(text: str) -> None:
    os.write(2, text.encode())


class Unraisable:
    def __del__(self) -> None:
        raise ValueError("in a destructor")


def chatter() -> None:
    write(PANIC)
    write("note: run with `RUST_BACKTRACE=1` environment variable to display a backtrace\n")
    write(PANIC)
    write(ABSL)
    write("x" * 5000 + "\n")
    for number in range(3000):
        write(f"spin {number}\n")
    warnings.warn("a library's warning", stacklevel=1)
    print("printed", file=sys.stderr)
    Unraisable()
    thread = threading.Thread(target=lambda: EMPTY["missing"], name="helper")
    thread.start()
    thread.join()
    asyncio.get_running_loop().call_soon(lambda: EMPTY["callback"])


def main() -> int:
    ending, *arguments = sys.argv[1:]
    serve: Any = Server._serve

    async def failing(self: Server) -> int:
        raise RuntimeError("an unexpected failure")

    if ending == "fail":
        Server.run = failing  # type: ignore[method-assign]

    async def chatty(self: Server, *rest: Any) -> int:
        chatter()
        await asyncio.sleep(0)
        if ending == "crash":
            write("last words without an end")
            ctypes.string_at(0)
        served = asyncio.ensure_future(serve(self, *rest))
        await self.ready.wait()
        self.stop(signal.SIGTERM)
        return int(await served)

    Server._serve = chatty  # type: ignore[method-assign, assignment]
    return cli.main(["serve", *arguments])


if __name__ == "__main__":
    sys.exit(main())
