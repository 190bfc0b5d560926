"""The picture of a load benchmark: throughput and shares, and latency under a flood."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def plot(details: Mapping[str, Any], path: Path) -> None:
    """Writes a PNG; ``details``: as in results/load.json."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (rates, times, shares, waits) = pyplot.subplots(1, 4, figsize=(17, 4))
    rounds = details["runs"]
    counts = list(rounds)
    for count in counts:
        for found in rounds[count]:
            rates.plot(count, found["tokens_per_second"], "o", color="tab:blue")
    rates.set(ylim=(0, None), xlabel="runs", title="tokens/s of all runs together")
    for key, label in (("p50_seconds", "p50"), ("p99_seconds", "p99")):
        times.plot(counts, [rounds[count][-1][key] for count in counts], "o-", label=label)
    times.set(ylim=(0, None), xlabel="runs", title="latency, s (48 groups in flight together)")
    times.legend()
    flood = details["flood"]["shares"]
    shares.bar(list(flood), list(flood.values()))
    shares.axhline(1 / len(flood), color="black", linestyle=":", label="fair share")
    shares.tick_params(axis="x", rotation=60)
    shares.set(title="shares while one run floods 100:1")
    shares.legend()
    small = details["small"]
    waits.hist(small["latencies"], bins=30)
    bound = 3 * small["own_seconds"] + small["batch_seconds"]
    waits.axvline(bound, color="black", linestyle=":", label="3 x own time + one batch")
    waits.set(xlabel="s", title="latency of a small request under a flood")
    waits.legend()
    figure.tight_layout()
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
