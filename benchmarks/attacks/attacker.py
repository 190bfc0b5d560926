"""An attack, as a process of its own.

    python -m benchmarks.attacks.attacker NAME FACTS SECONDS

FACTS is JSON of {"grpc_address", "http_address", "tokenizer"}. The process prints "ready",
waits for a line, attacks for so long, and prints {"ended": {END: NUMBER}, "admitted": BYTES}.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial

from benchmarks.attacks import bodies, tokenizers
from benchmarks.attacks.connections import CONNECTIONS
from benchmarks.attacks.target import Target

GRACE = 1.0  # seconds for what is in flight when the attack ends

ATTACKS: dict[str, Callable[[Target], Awaitable[None]]] = {
    **{name: partial(bodies.attack, name) for name in bodies.BODIES},
    **{name: partial(tokenizers.attack, name) for name in tokenizers.FILES},
    **CONNECTIONS,
}


async def attack(name: str, facts: dict[str, str], seconds: float) -> Target:
    """Until the attack has lasted that long; what is in flight then is left alone."""
    over = asyncio.Event()

    async def begin() -> None:
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        target.until = time.monotonic() + seconds
        asyncio.get_running_loop().call_later(seconds + GRACE, over.set)

    target = Target(facts["grpc_address"], facts["http_address"], facts["tokenizer"], begin)
    attacking = asyncio.ensure_future(ATTACKS[name](target))
    ending = asyncio.ensure_future(over.wait())
    await asyncio.wait((attacking, ending), return_when=asyncio.FIRST_COMPLETED)
    if attacking.done():
        attacking.result()
    return target


def main() -> None:
    name, facts, seconds = sys.argv[1], json.loads(sys.argv[2]), float(sys.argv[3])
    loop = asyncio.new_event_loop()
    target = loop.run_until_complete(attack(name, facts, seconds))
    print(json.dumps({"ended": target.ended, "admitted": target.admitted}), flush=True)
    os._exit(0)  # threads may still be inside a send


if __name__ == "__main__":
    main()
