"""The service of this tree against that of another checkout, alternating in one run.

Two real server processes over gRPC on loopback, one a tree, with the same model
(SmolLM2-135M in float32, K=64) and the same random ids. For a change that must not
cost speed: give the checkout of the commit before it.

Figures, each a median of ratios pair by pair, other tree over this one, so that more
than 1 means that this tree is faster:
    throughput      four groups of 4 x 96 tokens in flight together
    latency         one group of 8 x 128 tokens at a time
    small_requests  thirty-two requests of 8 tokens at once: mostly the service's own work
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

from teacher_proto import AsyncTeacherClient
from teacher_proto.types import ScoreRequest

from benchmarks.bench_teacher import TIMEOUT, TOP_K, Requests, server
from benchmarks.harness import alternate, median_ratio, print_table, write_result

# Name of the figure: groups in flight, prompt, responses and tokens of each.
SHAPES = {
    "throughput": (4, 64, 4, 96),
    "latency": (1, 64, 8, 128),
    "small_requests": (32, 4, 1, 4),
}


def environment_of(tree: Path) -> dict[str, str]:
    """This process's environment, with the packages of ``tree`` first."""
    if not (tree / "teacher_server").is_dir():
        raise SystemExit(f"{tree} is no checkout of this project")
    return {**os.environ, "PYTHONPATH": f"{tree}{os.pathsep}{tree / 'proto'}"}


def compare(
    addresses: dict[str, str], repetitions: int
) -> tuple[dict[str, dict[str, list[float]]], str]:
    """(seconds by shape and side, the model's name)."""
    with asyncio.Runner() as runner:
        clients = {side: runner.run(_connect(address)) for side, address in addresses.items()}
        infos = {
            side: runner.run(client.get_teacher(timeout=TIMEOUT)).teachers[0]
            for side, client in clients.items()
        }
        assert len({info.identity.digest for info in infos.values()}) == 1

        def send(side: str, made: Callable[[int], Sequence[ScoreRequest]]) -> Callable[[int], None]:
            async def run(repetition: int) -> None:
                calls = (clients[side].score(one, timeout=TIMEOUT) for one in made(repetition))
                await asyncio.gather(*calls)

            return lambda repetition: runner.run(run(repetition))

        found = {}
        for name, (groups, prompt, responses, length) in SHAPES.items():
            requests = Requests(infos["this"])
            made: dict[int, list[ScoreRequest]] = {}

            def of(
                repetition: int,
                made: dict[int, list[ScoreRequest]] = made,
                requests: Requests = requests,
                shape: tuple[int, int, int, int] = (groups, prompt, responses, length),
            ) -> list[ScoreRequest]:
                if repetition not in made:
                    made[repetition] = [requests.group(*shape[1:]) for _ in range(shape[0])]
                return made[repetition]

            found[name] = alternate(
                {side: send(side, of) for side in addresses}, repetitions, warmup=2
            )
        for client in clients.values():
            runner.run(client.close())
    return found, infos["this"].model.rpartition("/")[2]


async def _connect(address: str) -> AsyncTeacherClient:
    return AsyncTeacherClient(address, run="bench")


def main() -> None:
    parser = argparse.ArgumentParser(prog="bench_trees", description=__doc__.splitlines()[0])
    parser.add_argument("other", type=Path, help="another checkout of this project")
    parser.add_argument("--model", type=Path, help="SmolLM2-135M, prepared when left out")
    parser.add_argument("--repetitions", type=int, default=15)
    arguments = parser.parse_args()
    model = arguments.model
    if model is None:
        from student_trainer.quickstart.prepare import smollm2_dir

        model = smollm2_dir(print)
    this = Path(__file__).parents[1]
    with (
        server(model, environment_of(arguments.other.resolve())) as other_address,
        server(model, environment_of(this)) as this_address,
    ):
        found, name = compare({"other": other_address, "this": this_address}, arguments.repetitions)
    print_table(
        ("shape", "other, median seconds", "this, median seconds"),
        [
            (shape, *(f"{statistics.median(sides[side]):.4f}" for side in ("other", "this")))
            for shape, sides in found.items()
        ],
    )
    write_result(
        "trees",
        {shape: median_ratio(sides["other"], sides["this"]) for shape, sides in found.items()},
        {
            "model": name,
            "top_k": TOP_K,
            "repetitions": arguments.repetitions,
            "other_commit": _commit(arguments.other),
            "seconds": found,
        },
    )


def _commit(tree: Path) -> str:
    command = ["git", "-C", str(tree), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


if __name__ == "__main__":
    main()
