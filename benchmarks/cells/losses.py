"""What each arm of the study learns from the rows of one update.

Shapes: R rows, V tokens of the student, C cells, H hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.cells.cells import OUTSIDE, REST, Cells

Int64 = NDArray[np.int64]
# Mass of the rest up to which it is no outcome, as with the tail of the product's rows.
LEAST_REST = 1e-6


def coarse_kl(log_probs: Tensor, cells: Sequence[Cells]) -> Tensor:
    """[R]: KL of the student to the teacher over cells, sum p_c (log p_c - log q_c).

    It is at most the KL over tokens. Where the rest has LEAST_REST or less of the teacher's
    mass, the student is normalised without it.

    Args:
        log_probs: [R, V], of the student.
    """
    log_p, log_q, valid = log_masses(log_probs, cells)
    return _kl(log_p, log_q, valid)


def path_kl(log_probs: Tensor, cells: Sequence[Cells], levels: Sequence[list[Int64]]) -> Tensor:
    """[R]: a sum whose mean gradient over the drawn tokens is that of the KL over tokens.

    KL over tokens is, by the chain rule, the KL over what comes first and the mean of the KL
    over what comes next, given what came. The sum has the KL at every prefix of the drawn
    token, and for how often the student gets to a prefix the KL there times log p(prefix).

    Args:
        levels: of each row, ``groups_by_level``.
    """
    log_p, log_q, valid = log_masses(log_probs, cells)
    total = log_p.new_zeros(len(cells))
    for level in range(max(map(len, levels))):
        which = [row for row, groups in enumerate(levels) if level < len(groups)]
        groups = torch.from_numpy(_padded([levels[row][level] for row in which], OUTSIDE))
        groups = torch.nn.functional.pad(
            groups, (0, log_p.shape[1] - groups.shape[1]), value=OUTSIDE
        )
        of_p, inside = _by_group(log_p[which], groups, valid[which])
        of_q, _ = _by_group(log_q[which], groups, valid[which])
        prefix_p, prefix_q = torch.logsumexp(of_p, -1), torch.logsumexp(of_q, -1)
        here = _kl(of_p - prefix_p[:, None], of_q - prefix_q[:, None], inside)
        gets_there = here.detach() * prefix_p if level else 0.0
        total = total.index_add(0, torch.tensor(which), here + gets_there)
    return total


def log_masses(log_probs: Tensor, cells: Sequence[Cells]) -> tuple[Tensor, Tensor, Tensor]:
    """(log p, log q, valid) [R, C] of the cells, float64, each side's valid ones normalised."""
    cell_of = torch.from_numpy(np.stack([one.cell_of for one in cells]))
    mass = torch.from_numpy(_padded([one.mass for one in cells], 0.0))
    p = log_probs.double().exp()
    of_cells = p.new_zeros(mass.shape).scatter_add(1, cell_of, p)
    # A cell that has no token which the student draws is no outcome.
    members = torch.zeros_like(mass).scatter_add(1, cell_of, (p > 0).double()) > 0
    valid = members & (mass > 0)
    valid[:, REST] &= mass[:, REST] > LEAST_REST
    return _log_normalised(of_cells, valid), _log_normalised(mass, valid), valid


def log_mass_ratio_of_sampled(log_probs: Tensor, cells: Sequence[Cells], sampled: Tensor) -> Tensor:
    """[R]: log q_c - log p_c of the cell that holds each sampled token; 0 where the cell is no
    outcome."""
    log_p, log_q, valid = log_masses(log_probs, cells)
    rows = enumerate(zip(sampled.tolist(), cells, strict=True))
    own = torch.tensor([int(one.cell_of[token]) for _, (token, one) in rows])[:, None]
    ratio = (log_q - log_p).masked_fill(~valid, 0.0)
    return ratio.gather(1, own)[:, 0]


def _kl(log_p: Tensor, log_q: Tensor, valid: Tensor) -> Tensor:
    ratio = torch.where(valid, log_p - log_q, 0.0)
    return (torch.where(valid, log_p, -torch.inf).exp() * ratio).sum(-1)


def _log_normalised(mass: Tensor, valid: Tensor) -> Tensor:
    """log of the masses over their sum; 0 where not valid."""
    kept = torch.where(valid, mass, 0.0)
    total = kept.sum(-1, keepdim=True)
    return torch.where(valid, torch.where(valid, mass, 1.0).log() - total.log(), 0.0)


def _by_group(log_mass: Tensor, groups: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """(log mass, is there) [R, G] of groups of cells; -1e9 in groups without any."""
    inside = valid & (groups != OUTSIDE)
    width = int(groups.max()) + 1
    mass = torch.where(inside, log_mass, -torch.inf).exp()
    index = groups.clamp_min(0)
    sums = mass.new_zeros(len(mass), width).scatter_add(1, index, mass)
    there = sums > 0
    return torch.where(there, torch.where(there, sums, 1.0).log(), -1e9), there


def _padded(rows: Sequence[NDArray], fill: float) -> NDArray:
    width = max(map(len, rows))
    return np.stack([np.pad(row, (0, width - len(row)), constant_values=fill) for row in rows])
