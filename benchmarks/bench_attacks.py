"""What a neighbour feels of hostile callers, beside what the same callers cost it when they
attack a server that does nothing.

A real server process with a random Llama, credentials and 256 descriptors, on loopback. For
each attack (``attacks``) a process of its own attacks for ``--seconds``, first the server and
then the dummy; meanwhile a neighbour sends the server small Scores over gRPC and liveness
calls. Both cores are the attacker's too, which is why the dummy is the measure.

Figures:
    attacks_held            attacks under which every bound held, of ``attacks``
    worst_score_over_dummy  largest Score p99 over what is allowed: the larger of 3 times and
                            50 ms more than beside the attack on the dummy
    worst_livez_ms          the slowest liveness call; at most 250
    machine_over_livez      attacks beside which it was slower than that although they attacked
                            the dummy: this much the attacker alone costs on these cores
    worst_memory_mb         growth of the server above the attack's own bytes; at most 64
    hangs, deaths           calls not back after their deadline; ends of the process
    unreachable             attacks that could not be measured, because a server could not be
                            reached for 30 seconds; none of them held
    worst_recovery_ms       until a new connection was served, half a second after the attack before
    ATTACK_score_p99_ms, ATTACK_dummy_score_p99_ms, ATTACK_livez_ms, ATTACK_dummy_livez_ms,
    ATTACK_memory_mb        null where the attack could not be measured
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from teacher_proto.errors import LsmError

from benchmarks.attacks.attacker import ATTACKS
from benchmarks.attacks.neighbour import Neighbour, resident, tokenizer_of
from benchmarks.attacks.target import MIB, write_runs
from benchmarks.harness import write_result
from benchmarks.load_fleet import server
from tests.support.models import make_tiny_model

DESCRIPTORS = 256
MORE_MS, TIMES = 50.0, 3.0
LIVEZ_MS = 250.0
MEMORY_MB = 64.0
SETTLE_SECONDS = 0.5
QUIET = "quiet"
__all__ = ["ATTACKS", "both_sides", "dummy", "figures_of", "run_attack"]


@contextmanager
def dummy() -> Iterator[dict[str, Any]]:
    """The addresses of a running server that does nothing."""
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.attacks.dummy"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())
    finally:
        process.kill()
        process.wait()


def run_attack(
    name: str, facts: dict[str, Any], seconds: float, at: dict[str, Any] | None = None
) -> dict[str, Any]:
    """What a neighbour on the server sees of an attack; see ``Neighbour.figures``.

    Args:
        name: one of ``ATTACKS``, or QUIET for none.
        facts: of the server: grpc_address, http_address and pid, with ``write_runs`` as its
            credentials.
        at: the addresses that are attacked; absent: the server's own.

    Returns:
        also "recovery_ms", "deaths", "ended" (how the attack's requests ended), and
        "above_admitted_mb": growth of memory beyond the bytes that the attack has in flight.

    Raises:
        TeacherUnavailableError, DeadlineError: the server was not reached for 30 seconds.
    """
    return asyncio.run(_measure(name, facts, seconds, at or facts))


async def _measure(
    name: str, facts: dict[str, Any], seconds: float, at: dict[str, Any]
) -> dict[str, Any]:
    begun = time.monotonic()
    tokenizer, seen = await tokenizer_of(facts), Neighbour()
    recovery = time.monotonic() - begun
    told: dict[str, Any] = {"ended": {}, "admitted": 0}
    if name == QUIET:
        await seen.watch(facts, tokenizer, lambda: asyncio.sleep(seconds))
    else:
        told = await _attacked(name, facts, seconds, at, tokenizer, seen)
    found = seen.figures()
    admitted = told["admitted"] / MIB if at is facts else 0.0
    return found | {
        "recovery_ms": 1000 * recovery,
        "deaths": int(not resident(facts["pid"])),
        "ended": told["ended"],
        "admitted_mb": admitted,
        "above_admitted_mb": max(0.0, found["memory_mb"] - admitted),
    }


async def _attacked(
    name: str,
    facts: dict[str, Any],
    seconds: float,
    at: dict[str, Any],
    tokenizer: str,
    seen: Neighbour,
) -> Any:
    aim = {key: at[key] for key in ("grpc_address", "http_address")} | {"tokenizer": tokenizer}
    attacker = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.attacks.attacker", name, json.dumps(aim), str(seconds)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    pipe, said = attacker.stdin, attacker.stdout
    assert pipe is not None
    assert said is not None
    await said.readline()

    async def attacked() -> None:
        pipe.write(b"\n")
        await attacker.wait()

    await seen.watch(facts, tokenizer, attacked)
    return json.loads(await said.read())


def broken(found: dict[str, Any], beside_dummy: dict[str, Any]) -> dict[str, float]:
    """The bounds that an attack broke, with the figures that did."""
    quiet = beside_dummy["score_p99_ms"]
    bounds = {
        "score_p99_ms": max(TIMES * quiet, quiet + MORE_MS),
        "livez_worst_ms": LIVEZ_MS,
        "above_admitted_mb": MEMORY_MB,
        "hangs": 0,
        "deaths": 0,
    }
    return {key: found[key] for key, bound in bounds.items() if found[key] > bound}


def both_sides(name: str, facts: dict[str, Any], seconds: float, nothing: Any) -> dict[str, Any]:
    """{"server", "dummy"}: what the neighbour saw; {"broken"}: which bounds broke. Without the
    sides, and broken, where a side could not be measured."""
    sides: dict[str, Any] = {}
    for side, at in (("dummy", nothing), ("server", None)):
        try:
            sides[side] = run_attack(name, facts, seconds, at=at)
        except (LsmError, httpx.HTTPError, OSError, ValueError) as error:
            return {"broken": {"unreachable": f"{side}: {type(error).__name__}: {error}"}}
    return sides | {"broken": broken(sides["server"], sides["dummy"])}


def figures_of(details: dict[str, Any]) -> dict[str, Any]:
    """Of the attacks by name, each with both sides."""
    attacks = {name: both for name, both in details.items() if name != QUIET}
    measured = {name: both for name, both in attacks.items() if "server" in both}
    pairs = [(both["server"], both["dummy"]) for both in measured.values()]
    allowed = [
        max(TIMES * beside["score_p99_ms"], beside["score_p99_ms"] + MORE_MS) for _, beside in pairs
    ]
    figures: dict[str, Any] = {
        "attacks": len(attacks),
        "unreachable": len(attacks) - len(measured),
        "attacks_held": sum(not both["broken"] for both in attacks.values()),
        "worst_score_over_dummy": max(
            (found["score_p99_ms"] / most for (found, _), most in zip(pairs, allowed, strict=True)),
            default=None,
        ),
        "hangs": sum(found["hangs"] for found, _ in pairs),
    }
    figures["machine_over_livez"] = sum(beside["livez_worst_ms"] > LIVEZ_MS for _, beside in pairs)
    for figure, key in (
        ("worst_livez_ms", "livez_worst_ms"),
        ("worst_memory_mb", "above_admitted_mb"),
        ("worst_recovery_ms", "recovery_ms"),
        ("deaths", "deaths"),
    ):
        figures[figure] = max((found[key] for found, _ in pairs), default=None)
    for name, both in attacks.items():
        for figure, side, key in (
            ("score_p99_ms", "server", "score_p99_ms"),
            ("dummy_score_p99_ms", "dummy", "score_p99_ms"),
            ("livez_ms", "server", "livez_worst_ms"),
            ("dummy_livez_ms", "dummy", "livez_worst_ms"),
            ("memory_mb", "server", "above_admitted_mb"),
        ):
            figures[f"{name}_{figure}"] = both[side][key] if side in both else None
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=3.5, help="of each attack")
    parser.add_argument("--only", nargs="*", choices=list(ATTACKS), metavar="ATTACK")
    arguments = parser.parse_args()
    details: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        model = make_tiny_model(Path(folder, "model"), max_position_embeddings=MIB)
        settings = [
            f"access.credentials_file={write_runs(Path(folder, 'runs.toml'))}",
            f"access.audit_file={Path(folder, 'audit')}",
        ]
        with server(model, *settings, descriptors=DESCRIPTORS) as teacher, dummy() as nothing:
            facts = {
                "grpc_address": teacher.address,
                "http_address": teacher.http_address,
                "pid": teacher.process.pid,
            }
            details[QUIET] = run_attack(QUIET, facts, arguments.seconds)
            print(QUIET, details[QUIET], flush=True)
            for name in arguments.only or ATTACKS:
                details[name] = both_sides(name, facts, arguments.seconds, nothing)
                print(name, json.dumps(details[name]), flush=True)
                time.sleep(SETTLE_SECONDS)
    figures = figures_of(details)
    if arguments.only:
        print(figures)
    else:
        write_result("attacks", figures, details)


if __name__ == "__main__":
    main()
