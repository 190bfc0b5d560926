"""What the rows of students' replies hold, before anything is learnt from them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

import numpy as np
import torch
from transformers import LlamaForCausalLM

from benchmarks.cells.exact import exact_rows
from benchmarks.cells.model import write
from benchmarks.cells.pair import side
from benchmarks.cells.rows import Scorer
from benchmarks.cells.task import Problem


def facts_of_rows(
    students: Sequence[LlamaForCausalLM], scorer: Scorer, asked: Sequence[Problem]
) -> dict[str, float]:
    """Of a reply of each student to each problem.

    Returns:
        masked_share, coarse_share: of the rows as the product gives them, coarse ones being
            no masked ones.
        masked_share_after_2_rounds, rows_per_teacher_token: with two rounds of further rows,
            and what these cost.
        cells_tv_median, cells_tv_largest, cells_off_by_001: total variation between the
            masses of cells and brute force over rows that are masked or coarse; the share of
            these rows in which it is above 0.01.
    """
    shares: dict[str, list[float]] = {"masked": [], "coarse": [], "after": [], "cost": []}
    apart: list[float] = []
    for seed, student in enumerate(students):
        ids, lengths = write(student, side(3), asked, torch.Generator().manual_seed(seed))
        replies = [line[:length] for line, length in zip(ids, lengths, strict=True)]
        scored = scorer.score(asked, replies)
        further = scorer.score(asked, replies, extra_rounds=2)
        shares["masked"].append(float((scored.masked & ~scored.coarse).mean()))
        shares["coarse"].append(float(scored.coarse.mean()))
        shares["after"].append(float((further.masked & ~further.coarse).mean()))
        shares["cost"].append(further.teacher_tokens / scored.teacher_tokens - 1)
        truth = np.concatenate(exact_rows(scorer, asked, replies))
        for index in np.flatnonzero(scored.partly).tolist():
            cells = scored.cells(index)
            own = np.bincount(cells.cell_of, truth[index], len(cells.mass))
            apart.append(float(np.abs(own - cells.mass).sum() / 2))
    return {
        "masked_share": statistics.mean(shares["masked"]),
        "coarse_share": statistics.mean(shares["coarse"]),
        "masked_share_after_2_rounds": statistics.mean(shares["after"]),
        "rows_per_teacher_token": statistics.mean(shares["cost"]),
        "cells_tv_median": statistics.median(apart),
        "cells_tv_largest": max(apart),
        "cells_off_by_001": float(np.mean(np.array(apart) > 0.01)),
    }
