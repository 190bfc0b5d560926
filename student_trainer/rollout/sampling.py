"""Nucleus sampling from per-rollout random streams. Pure functions of tensors.

Every rollout draws from a stream of its own, so its tokens do not depend on the rollouts
that are generated beside it.
"""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

FIRST_CANDIDATES = 256


def stream(*key: int | str) -> np.random.Generator:
    """A Philox generator that depends on the key alone."""
    digest = hashlib.sha256("\x1f".join(str(part) for part in key).encode()).digest()
    return np.random.Generator(np.random.Philox(key=np.frombuffer(digest[:16], np.uint64)))


def rollout_uniforms(
    seed: int, step: int, prompt_id: str, index: int, count: int
) -> NDArray[np.float64]:
    """float64 [count] in [0, 1): the draws of one rollout, one per token."""
    return stream("rollout", seed, step, prompt_id, index).random(count)


def nucleus(
    probabilities: Tensor, top_p: float, candidates: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The smallest set of tokens whose total probability reaches ``top_p``.

    Tokens enter by descending probability; among equals the lower id enters first.

    Args:
        probabilities: float32 [B, V], rows sum to 1.
        top_p: in (0, 1].
        candidates: C, how many of the most likely tokens are considered, 1 <= C <= V.

    Returns:
        ids int64 [B, C], cumulative float64 [B, C] in that order, size int64
        [B] >= 1 and settled bool [B]. The first ``size`` entries of a settled
        row are its nucleus; a row that is not settled needs more candidates.
        With C = V every row is settled.
    """
    values, ids = _descending(probabilities, candidates)
    cumulative = values.double().cumsum(-1)
    # By rounding, the sum of all may stay below top_p: the set is then everything.
    size = ((cumulative < top_p).sum(-1) + 1).clamp(max=candidates)
    if candidates == probabilities.shape[-1]:
        return ids, cumulative, size, torch.ones_like(size, dtype=torch.bool)
    last = values.gather(-1, (size - 1).unsqueeze(-1)).squeeze(-1)
    # A tie with the weakest candidate could hide a lower id outside the candidates.
    return ids, cumulative, size, (cumulative[:, -1] >= top_p) & (last > values[:, -1])


def sample(log_probabilities: Tensor, uniforms: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Draws one token per row by the inverse of the nucleus's distribution function.

    A row's token depends on that row alone. With ``top_p`` 1 the function is in the order
    of ids, otherwise in the order of descending probability.

    Args:
        log_probabilities: float32 [B, V], normalised.
        uniforms: float64 [B] in [0, 1).
        top_p: in (0, 1].

    Returns:
        The tokens, int64 [B], and the probability of the nucleus that each was drawn from,
        float32 [B] in (0, 1]: a token was drawn with its own probability divided by that.
    """
    probabilities = log_probabilities.exp()
    if top_p >= 1:
        cumulative = probabilities.double().cumsum(-1)
        everything = torch.full_like(cumulative[:, 0], cumulative.shape[1], dtype=torch.int64)
        return _draw(cumulative, everything, uniforms), torch.ones_like(probabilities[:, 0])
    if probabilities.device.type == "cpu":
        return _by_bound(probabilities.numpy(), uniforms.numpy(), top_p)
    return _by_candidates(probabilities, uniforms, top_p)


def _by_candidates(probabilities: Tensor, uniforms: Tensor, top_p: float) -> tuple[Tensor, Tensor]:
    """Draws from the most likely candidates of all rows at once, and from more of them for rows
    whose nucleus these do not hold."""
    tokens = torch.empty(len(uniforms), dtype=torch.int64, device=uniforms.device)
    masses = torch.empty_like(probabilities[:, 0])
    rows = torch.arange(len(uniforms), device=uniforms.device)
    candidates = min(FIRST_CANDIDATES, probabilities.shape[-1])
    while len(rows):
        ids, cumulative, size, settled = nucleus(probabilities[rows], top_p, candidates)
        slots = _draw(cumulative, size, uniforms[rows])
        drawn = ids.gather(-1, slots.unsqueeze(-1)).squeeze(-1)
        tokens[rows[settled]] = drawn[settled]
        mass = cumulative.gather(-1, (size - 1).unsqueeze(-1)).squeeze(-1)
        masses[rows[settled]] = mass[settled].to(masses.dtype)
        rows = rows[~settled]
        candidates = min(candidates * 8, probabilities.shape[-1])
    return tokens, masses.clamp(max=1.0)


def _by_bound(
    probabilities: NDArray[np.float32], uniforms: NDArray[np.float64], top_p: float
) -> tuple[Tensor, Tensor]:
    """The same to the bit, row by row, for a CPU, where sorting is what takes the time: only ids
    above a bound are sorted, and the bound is lowered until they hold the nucleus."""
    tokens, masses = np.zeros(len(uniforms), np.int64), np.ones(len(uniforms), np.float32)
    for row, (values, uniform) in enumerate(zip(probabilities, uniforms, strict=True)):
        bound = float(values.max())
        if not bound > 0:
            continue  # not finite, which its log-probability tells
        while True:
            bound = bound / 8 if bound * len(values) > 1e-3 * (1 - top_p) else 0.0
            found = np.flatnonzero(values >= bound)
            if bound > 0 and values[found].sum(dtype=np.float64) < top_p:
                continue
            # Floats that are not negative are in the order of their bits; a lower id goes first.
            bits = values[found].view(np.int32).astype(np.int64)
            keys = np.sort(bits << 32 | (len(values) - 1 - found))[::-1]
            ordered = (keys >> 32).astype(np.int32).view(np.float32)
            cumulative = np.cumsum(ordered, dtype=np.float64)
            if bound == 0 or cumulative[-1] >= top_p:
                break
        # By rounding, the sum of all may stay below top_p: the set is then everything.
        size = min(int(np.searchsorted(cumulative, top_p)) + 1, len(cumulative))
        total = cumulative[size - 1]
        slot = min(
            int(np.searchsorted(cumulative, uniform * total, side="right")),
            int(np.searchsorted(cumulative, total)),
            size - 1,
        )
        tokens[row] = len(values) - 1 - (keys[slot] & 0xFFFFFFFF)
        masses[row] = total
    return torch.from_numpy(tokens), torch.from_numpy(masses).clamp(max=1.0)


def _draw(cumulative: Tensor, size: Tensor, uniforms: Tensor) -> Tensor:
    """int64 [B]: the slot of each draw among the first ``size`` of its row."""
    total = cumulative.gather(-1, (size - 1).unsqueeze(-1))
    target = uniforms.unsqueeze(-1) * total
    slot = torch.searchsorted(cumulative, target, right=True)
    # u * total can round up to total itself; the slots after the one that reaches it have
    # no probability.
    last = torch.searchsorted(cumulative, total)
    # For a row that is not finite both are beyond the end.
    return torch.minimum(torch.minimum(slot, last).squeeze(-1), size - 1)


def _descending(probabilities: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The ``count`` largest entries of each row, descending; among equals the lower id
    first."""
    if count == probabilities.shape[-1]:
        values, ids = probabilities.sort(dim=-1, descending=True, stable=True)
        return values, ids
    ids = probabilities.topk(count, dim=-1, sorted=False).indices.sort(dim=-1).values
    values, order = probabilities.gather(-1, ids).sort(dim=-1, descending=True, stable=True)
    return values, ids.gather(-1, order)
