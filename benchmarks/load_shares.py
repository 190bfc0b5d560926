"""Two runs of small requests on one engine: what each gets, and what the window costs.

The transformers engine on a CPU with a random Llama of 5 million parameters in float32;
every request is one group of 100 tokens (36 + 64). One run keeps a number of them
outstanding, the other one 80.

``CASES``: the weights of both runs, and the first one's requests outstanding. *Enough* is
twice its share of the tokens in flight; *few* is below its share.

``windows``: tokens/s of four, two (the default) and one passes in flight, sides alternating:
small groups, groups of mixed lengths, and groups of 1500 tokens.

Figures:
    shares_worst_error      of the runs with enough outstanding: share less what is due
    few_wait_passes         of those with few: median wait beside the pass that reads the
                            request, in passes
    window_ratio_1, _2      tokens/s with one and two passes in flight over those with four,
                            the lowest of the three mixes' medians of pairs
"""

from __future__ import annotations

import contextlib
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.load_client import Load
from benchmarks.load_fleet import Server, measure, percentile, server

PASS = 1024
TOKENS = 100
MANY = 80
WINDOWS = (4, 2, 1)  # passes
# Name -> (prompt, responses, length, groups in flight) of each run.
MIXES = {
    "small": ((36, 1, 64, 48),),
    "mixed": ((30, 1, 30, 8), (40, 2, 60, 8), (50, 1, 200, 8), (60, 2, 350, 4), (64, 4, 120, 4)),
    "large": ((100, 4, 350, 8),),
}
REPETITIONS = 5


@dataclass(frozen=True)
class Case:
    """``own``, ``other``: weights; ``outstanding``: requests of the first run."""

    own: float
    other: float
    outstanding: int
    enough: bool


CASES = {
    "equal_enough": Case(1.0, 1.0, 21, True),
    "light_enough": Case(1.0, 3.0, 11, True),
    "heavy_enough": Case(3.0, 1.0, 31, True),
    "equal_few": Case(1.0, 1.0, 4, False),
    "heavy_few": Case(3.0, 1.0, 4, False),
    "equal_one": Case(1.0, 1.0, 1, False),
}


def shares(model: Path, seconds: float, *settings: str) -> tuple[dict[str, float], dict[str, Any]]:
    found: dict[str, dict[str, float]] = {}
    weights = [
        f"runs.{side}-{name}.weight={weight}"
        for name, case in CASES.items()
        for side, weight in (("own", case.own), ("other", case.other))
    ]
    with server(model, *weights, *settings) as teacher:
        for name, case in CASES.items():
            found[name] = _measure(teacher, name, case, seconds)
            print(name, {key: round(value, 3) for key, value in found[name].items()}, flush=True)
    errors = [abs(one["share"] - one["due"]) for n, one in found.items() if CASES[n].enough]
    figures = {
        "shares_worst_error": max(errors),
        "few_wait_passes": max(found[n]["wait_passes"] for n in CASES if not CASES[n].enough),
    }
    return figures, {"shares": found}


def _measure(teacher: Server, name: str, case: Case, seconds: float) -> dict[str, float]:
    own, other = f"own-{name}", f"other-{name}"
    loads = [
        Load(teacher.address, own, 36, 1, 64, in_flight=case.outstanding),
        Load(teacher.address, other, 36, 1, 64, in_flight=MANY),
    ]
    found = measure(teacher, loads, warm_up=1.5, seconds=seconds)
    rate = found.tokens_per_second()
    latencies = found.seconds("ok", own)
    return {
        "due": case.own / (case.own + case.other),
        "share": found.tokens_per_second(own) / rate,
        # What a request takes beside the pass that reads it.
        "wait_passes": statistics.median(latencies) * rate / PASS - 1,
        "wait_passes_p95": percentile(latencies, 95) * rate / PASS - 1,
        "tokens_per_second": rate,
    }


def windows(model: Path, seconds: float) -> tuple[dict[str, float], dict[str, Any]]:
    rates: dict[str, dict[str, list[float]]] = {}
    with contextlib.ExitStack() as stack:
        servers = {
            count: stack.enter_context(server(model, f"limits.max_inflight_tokens={count * PASS}"))
            for count in WINDOWS
        }
        for name, mix in MIXES.items():
            found = rates[name] = {str(count): [] for count in WINDOWS}
            for repetition in range(REPETITIONS):
                for count in WINDOWS if repetition % 2 else reversed(WINDOWS):
                    address = servers[count].address
                    loads = [
                        Load(address, f"run-{n}", prompt, responses, length, in_flight=each)
                        for n, (prompt, responses, length, each) in enumerate(mix)
                    ]
                    measured = measure(servers[count], loads, warm_up=1.0, seconds=seconds / 2)
                    found[str(count)].append(measured.tokens_per_second())
            print(name, {key: round(statistics.median(one)) for key, one in found.items()})
    figures = {
        f"window_ratio_{count}": min(
            statistics.median(a / b for a, b in zip(one[str(count)], one["4"], strict=True))
            for one in rates.values()
        )
        for count in (1, 2)
    }
    return figures, {"windows": rates}
