"""The study of cells: `python -m benchmarks.cells`. It writes benchmarks/results/cells.json.

A run that was made with these sources and this plan is kept in the cache and not made again,
so that seeds can be made side by side: `--seeds 1`, `--seeds 2`, and then all.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from benchmarks.cells.arms import ARMS, Arm
from benchmarks.cells.distil import Outcome, Plan, distil, judged
from benchmarks.cells.facts import facts_of_rows
from benchmarks.cells.gate import verdict
from benchmarks.cells.model import Recipe, accuracy, trained
from benchmarks.cells.pair import side
from benchmarks.cells.rows import Scorer
from benchmarks.cells.task import held_out
from benchmarks.harness import print_table, write_result
from student_trainer.quickstart.cache import cache_dir

TEACHER = Recipe(digits=1, seed=0, steps=1600, whole=1600, rate=5e-3)
# What a run depends on.
SOURCES = ("task", "pair", "model", "rows", "exact", "cells", "losses", "arms", "distil")
HELD_OUT = 200
# Held-out problems whose replies are looked at row by row.
JUDGED = 48
RATES = [1e-3, 3e-4]
MEASURES = ("accuracy", "bits_per_byte", "exact_kl")
# Tokens of the teacher's longest solution, with its end.
TEACHER_TOKENS = 16


def start_of(seed: int) -> Recipe:
    return Recipe(digits=3, seed=seed, steps=200, whole=1000)


def main() -> None:
    parser = argparse.ArgumentParser(prog="benchmarks.cells", description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--arms", nargs="+", choices=[one.name for one in ARMS])
    parser.add_argument("--teacher-tokens", type=int, default=26_000, help="of each run")
    parser.add_argument("--replies", type=int, default=32, help="of each update")
    parser.add_argument(
        "--rates", type=float, nargs="+", default=RATES, help="learning rates; an arm has its best"
    )
    given = parser.parse_args()
    torch.set_num_threads(1)
    left_out = held_out(HELD_OUT)
    teacher = trained(TEACHER, left_out)
    scorer = Scorer(teacher)
    arms = [one for one in ARMS if given.arms is None or one.name in given.arms]
    plans = [Plan(given.teacher_tokens, given.replies, rate, left_out) for rate in given.rates]
    runs: dict[str, dict[float, list[Outcome]]] = defaultdict(lambda: defaultdict(list))
    for seed in given.seeds:
        runs["start"][0.0].append(_run(None, seed, scorer, plans[0]))
        for arm in arms:
            for plan in plans:
                runs[arm.name][plan.rate].append(_run(arm, seed, scorer, plan))
    if len(given.seeds) > 1:
        students = [trained(start_of(seed), left_out) for seed in given.seeds]
        facts = facts_of_rows(students, scorer, left_out[:JUDGED])
        of_teacher = accuracy(teacher, side(1), left_out, TEACHER_TOKENS)
        _write(runs, {"accuracy_teacher": of_teacher, **facts}, plans[0])


def _run(arm: Arm | None, seed: int, scorer: Scorer, plan: Plan) -> Outcome:
    """A run, or without an arm the student that its runs begin with; kept in the cache."""
    sources = [(Path(__file__).parent / f"{name}.py").read_text() for name in SOURCES]
    recipes = asdict(TEACHER), asdict(start_of(seed))
    facts = [asdict(plan), arm and asdict(arm), seed, recipes, sources]
    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    path = cache_dir() / "cells" / f"{name}.json"
    if path.exists():
        return Outcome(**json.loads(path.read_text()))
    start = trained(start_of(seed), plan.held_out)
    if arm is None:
        found = judged(start, scorer, Outcome("start", seed), plan)
        found.curve = [found.accuracy]
    else:
        found = distil(start, scorer, arm, seed, plan)
    path.write_text(json.dumps(asdict(found)))
    print(found.arm, seed, f"{found.accuracy:.3f} {found.bits_per_byte:.3f}", flush=True)
    return found


def _write(
    runs: Mapping[str, Mapping[float, list[Outcome]]], facts: Mapping[str, float], plan: Plan
) -> None:
    rate_of = {
        name: max(rates, key=lambda rate: statistics.mean(one.accuracy for one in rates[rate]))
        for name, rates in runs.items()
    }
    best = {name: rates[rate_of[name]] for name, rates in runs.items()}
    print_table(
        ("arm", "rate", *MEASURES, "on the way", "masked", "updates"),
        [
            (
                name,
                f"{rate_of[name]:g}",
                *(_spread([getattr(one, measure) for one in some]) for measure in MEASURES),
                _spread([statistics.mean(one.curve) for one in some]),
                f"{statistics.mean(one.shares.get('masked', 0.0) for one in some):.3f}",
                str(some[0].updates),
            )
            for name, some in best.items()
        ],
    )
    figures = {
        f"{measure}_{name}": statistics.mean(getattr(one, measure) for one in some)
        for name, some in best.items()
        for measure in MEASURES
    }
    against = verdict(best)
    won = {f"{name}_wins": float(all(rivals.values())) for name, rivals in against.items()}
    details = {
        "teacher_tokens": plan.teacher_tokens,
        "replies": plan.replies,
        "held_out": len(plan.held_out),
        "rates": rate_of,
        "wins_against": against,
        "runs": {
            f"{name} {rate:g}": [asdict(one) for one in some]
            for name, rates in runs.items()
            for rate, some in rates.items()
        },
    }
    write_result("cells", {**won, **facts, **figures}, details)


def _spread(values: Sequence[float]) -> str:
    """Mean and standard deviation over seeds."""
    return f"{statistics.mean(values):.3f} ± {statistics.stdev(values):.3f}"


if __name__ == "__main__":
    main()
