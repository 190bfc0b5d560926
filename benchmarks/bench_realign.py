"""Realignment against its specification, per pair and text: `make bench-realign`.

An n-gram model over the teacher's real tokens stands in for a teacher. What the service
answers by default is held against ``benchmarks.realign.reference``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial

from benchmarks.harness import write_result
from benchmarks.realign.cell import Cell, measure
from benchmarks.realign.figures import line, summary, worst
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


def measure_pair(names: tuple[str, str], arguments: argparse.Namespace) -> list[Cell]:
    """All texts of one pair, in a process of its own."""
    chosen = texts(arguments.characters, tuning=arguments.tuning, names=arguments.texts)
    cells = []
    for text in chosen:
        cells.append(measure(*names, text, arguments.samples))
        print(line(cells[-1]), *(f"    far: {far}" for far in cells[-1].far), sep="\n", flush=True)
    return cells


def measure_all(pairs: Iterable[tuple[str, str]], arguments: argparse.Namespace) -> list[Cell]:
    """All texts of these pairs, two pairs at a time."""
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}
    cells: list[Cell] = []
    context = multiprocessing.get_context("spawn")
    # A process for each pair: tables of tokenizers take hundreds of megabytes.
    with context.Pool(PROCESSES, maxtasksperchild=1) as pool:
        work = partial(measure_pair, arguments=arguments)
        for found in pool.imap_unordered(work, pairs, chunksize=1):
            cells += found
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    names = [f"{student}/{teacher}" for student, teacher in PAIRS]
    parser.add_argument("--pairs", nargs="+", choices=names, default=names, metavar="PAIR")
    parser.add_argument("--texts", nargs="+", choices=list(MAKERS), default=list(MAKERS))
    parser.add_argument("--samples", type=int, default=64, help="rows judged per pair and text")
    parser.add_argument("--characters", type=int, default=1600, help="held-out text per kind")
    parser.add_argument("--tuning", action="store_true", help="the other set of texts")
    arguments = parser.parse_args()
    chosen = [pair for pair, name in zip(PAIRS, names, strict=True) if name in arguments.pairs]
    cells = measure_all(chosen, arguments)
    cells.sort(key=lambda cell: (cell.pair, cell.text))
    figures, where = worst(cells)
    print(*(f"{name}: {cell}" for name, cell in where.items()), sep="\n")
    whole = arguments.pairs == names and arguments.texts == list(MAKERS)
    if arguments.tuning or not whole:
        print(figures)
        return
    real = measure_real_model(vocabulary("qwen3"))
    print(real, flush=True)
    found = figures | {"overhead": real.overhead}
    details = {"per_pair": [summary(cell) for cell in cells], "smollm2": asdict(real)}
    write_result("realign", found, where | details)


if __name__ == "__main__":
    main()
