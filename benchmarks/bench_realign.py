"""Realignment against its specification, per pair and text: `make bench-realign`.

An n-gram model over the teacher's real tokens stands in for a teacher. What the service
answers by default is held against ``benchmarks.realign.reference``. All pairs take an hour and a
half on two cores; each is kept when it is done, and ``--continue`` goes on from there.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from typing import Any

from benchmarks.harness import write_result
from benchmarks.realign.cell import measure
from benchmarks.realign.figures import Found, line, summary, worst
from benchmarks.realign.kept import keep, kept
from benchmarks.realign.real_model import measure_real_model
from benchmarks.realign.texts import MAKERS, texts
from tests.realign.real_tokenizers import vocabulary

# (student, teacher).
PAIRS = [
    ("llama3", "qwen3"),
    ("qwen3", "llama3"),
    ("llama3", "gpt4o"),
    ("gpt4o", "qwen3"),
    ("qwen3", "gpt4o"),
    ("mistral_nemo", "qwen3"),
    ("llama3", "gemma3"),
    ("llama3", "deepseek_v3"),
    ("deepseek_v3", "llama3"),
    ("gpt4o", "gemma2"),
    ("gemma2", "gpt4o"),
    ("qwen3", "gemma3"),
    ("gemma3", "qwen3"),
]
PROCESSES = 2
# What the results are measured with.
FULL: dict[str, Any] = {"texts": list(MAKERS), "samples": 64, "characters": 1600}


def measure_pair(names: tuple[str, str], arguments: argparse.Namespace) -> list[Found]:
    """All texts of one pair, in a process of its own."""
    chosen = texts(arguments.characters, tuning=arguments.tuning, names=arguments.texts)
    cells = []
    for text in chosen:
        cells.append(summary(measure(*names, text, arguments.samples)))
        print(
            line(cells[-1]), *(f"    far: {far}" for far in cells[-1]["far"]), sep="\n", flush=True
        )
    if keeps(arguments):
        keep(names, cells)
    return cells


def keeps(arguments: argparse.Namespace) -> bool:
    """Whether the cells are those of the results: all held-out texts in full."""
    return not arguments.tuning and vars(arguments) | FULL == vars(arguments)


def measure_all(
    pairs: Iterable[tuple[str, str]], arguments: argparse.Namespace
) -> list[list[Found]]:
    """All texts of these pairs, two pairs at a time."""
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    context = multiprocessing.get_context("spawn")
    # A process for each pair: tables of tokenizers take hundreds of megabytes.
    with context.Pool(PROCESSES, maxtasksperchild=1) as pool:
        work = partial(measure_pair, arguments=arguments)
        return list(pool.imap_unordered(work, pairs, chunksize=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    names = [f"{student}/{teacher}" for student, teacher in PAIRS]
    parser.add_argument("--pairs", nargs="+", choices=names, default=names, metavar="PAIR")
    parser.add_argument("--texts", nargs="+", choices=list(MAKERS), default=FULL["texts"])
    help_ = "rows judged per pair and text"
    parser.add_argument("--samples", type=int, default=FULL["samples"], help=help_)
    help_ = "held-out text per kind"
    parser.add_argument("--characters", type=int, default=FULL["characters"], help=help_)
    parser.add_argument("--tuning", action="store_true", help="the other set of texts")
    help_ = "measure only pairs that the code as it is has no results of"
    parser.add_argument("--continue", dest="go_on", action="store_true", help=help_)
    arguments = parser.parse_args()
    chosen = [pair for pair, name in zip(PAIRS, names, strict=True) if name in arguments.pairs]
    if arguments.go_on and keeps(arguments):
        chosen = [pair for pair in chosen if kept(pair) is None]
    measured = measure_all(chosen, arguments)
    every = [kept(pair) for pair in PAIRS]
    if not keeps(arguments) or None in every:
        figures, where = worst([cell for cells in measured for cell in cells])
        print(*(f"{name}: {cell}" for name, cell in where.items()), figures, sep="\n")
        return
    cells = [cell for pair in every if pair for cell in pair]
    cells.sort(key=lambda cell: (cell["pair"], cell["text"]))
    figures, where = worst(cells)
    print(*(f"{name}: {cell}" for name, cell in where.items()), sep="\n")
    real = measure_real_model(vocabulary("qwen3"))
    print(real, flush=True)
    found = figures | {"overhead": real.overhead}
    write_result("realign", found, where | {"per_pair": cells, "smollm2": asdict(real)})


if __name__ == "__main__":
    main()
