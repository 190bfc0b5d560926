"""From masses to what is returned: the best certified ids, and what is not known.

An id is certified when the unsettled mass that could still land on it is at most
CERTAIN of its own. A path can only land on tokens that begin with the path's bytes,
or that these bytes begin with.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from teacher_proto.types import Bool, Float32, Int32

from teacher_server.realign.pair.tables import CERTAIN, PairTables
from teacher_server.realign.walk.masses import Entries, Walked, places
from teacher_server.realign.walk.rows import Float64

Int64 = NDArray[np.int64]
# Ids beyond K that are looked at: they take the place of ids that are not certified.
SPARE = 16
# Teacher tokens below a row's best ids are taken to have at most this many times the
# mean of such tokens (and at most the row's floor).
TAIL_SKEW = 20
ROUNDING = 1e-12
# Slots of a table for each entry in it, at most.
MOST_PADDING = 8


@dataclass(frozen=True)
class Certified:
    """n positions; K ids each.

    Attributes:
        ids, log_probs: int32, float32 [n, K], descending, ties by lower id; -1 and 0
            in slots from ``counts`` on. Not renormalised.
        counts: int32 [n].
        sampled: float64 [n], log-probability of the sampled id; -inf where it is not
            certified.
        doubtful: bool [n], an id that is not certified could be the most likely one.
        coverage, open_mass, lost_mass: float64 [n].
    """

    ids: Int32
    log_probs: Float32
    counts: Int32
    sampled: Float64
    doubtful: Bool
    coverage: Float64
    open_mass: Float64
    lost_mass: Float64


def certify(
    walked: Walked, sampled: Int64, top_k: int, limit: int, tables: PairTables
) -> Certified:
    """Args: sampled int64 [n]; only ids below ``limit`` are returned."""
    count = len(sampled)
    total = np.maximum(walked.total, 1e-300)
    position, token, mass, parts = by_token(walked.settled, tables.student.size)
    mass = mass / total[position]
    # Tokens below the rows' best that would land on the same id.
    unseen = np.maximum(tables.multiplicity[token] - parts, 0)
    ids, masses, missing = best_ids(position, token, mass, unseen, count, top_k + SPARE)
    own = np.zeros(count)
    hit = token == sampled[position]
    own[position[hit]] = mass[hit]
    own_missing = np.zeros(count, np.int64)
    own_missing[position[hit]] = unseen[hit]
    ids = np.column_stack([ids, sampled])
    masses = np.column_stack([masses, own])
    missing = np.column_stack([missing, own_missing])
    threats = _threats(walked, total, ids, missing, tables)
    sure = (masses > 0) & (threats <= CERTAIN * masses)
    sampled_sure = sure[:, -1]
    sure, masses, ids, threats = sure[:, :-1], masses[:, :-1], ids[:, :-1], threats[:, :-1]
    best = np.where(sure, masses, 0.0).max(1, initial=0.0)
    rival = np.where(sure, 0.0, masses + threats).max(1, initial=0.0)
    largest_open = np.zeros(count)
    np.maximum.at(largest_open, walked.open.position, walked.open.mass)
    doubtful = np.maximum(rival, largest_open / total) > best
    sure &= ids < limit
    place = np.cumsum(sure, 1) - 1
    keep = sure & (place < top_k)
    line, kept = places(keep)
    out_ids = np.full((count, top_k), -1, np.int32)
    out = np.zeros((count, top_k), np.float32)
    slot = line * top_k + place.take(kept)
    out_ids.put(slot, ids.take(kept))
    # The total is a difference: rounding may leave it a little below a part of it.
    out.put(slot, np.minimum(np.log(masses.take(kept)), 0.0))
    with np.errstate(divide="ignore"):
        sampled_log = np.where(sampled_sure, np.minimum(np.log(own), 0.0), -np.inf)
    open_mass = np.bincount(walked.open.position, walked.open.mass, count) / total
    return Certified(
        ids=out_ids,
        log_probs=out,
        counts=keep.sum(1).astype(np.int32),
        sampled=sampled_log,
        doubtful=doubtful,
        coverage=np.where(keep, masses, 0.0).sum(1),
        open_mass=np.minimum(open_mass, 1.0),
        lost_mass=np.minimum(walked.lost / total, 1.0),
    )


def by_token(settled: Entries, size: int) -> tuple[Int64, Int64, Float64, Int64]:
    """(position, token, mass, parts) with one entry each, by position and token."""
    order = order_within(settled.position, settled.token)
    key = (settled.position * size + settled.token)[order]
    first = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]])[: len(key)])
    mass = np.add.reduceat(settled.mass[order], first) if len(first) else np.zeros(0)
    position, token = np.divmod(key[first], size)
    parts = np.diff(np.concatenate([first, [len(key)]]))
    return position, token, mass, parts


def order_within(position: Int64, value: Int64) -> Int64:
    """int64 [n]: the stable order by position, then by value (>= 0)."""
    if not len(position):
        return np.zeros(0, np.int64)
    order = np.argsort(position, kind="stable")  # a few ascending runs: merged, not sorted
    counts = np.bincount(position)
    widest = int(counts.max())
    if len(counts) * widest > MOST_PADDING * len(position):
        return np.lexsort([value, position])
    # Many short sorts are several times faster than a long one.
    line = position[order]
    column = np.arange(len(order)) - (np.cumsum(counts) - counts)[line]
    table = np.full((len(counts), widest), np.iinfo(np.int64).max)
    bits = widest.bit_length()
    place = line * widest + column
    table.put(place, (value[order] << bits) | column)
    table.sort(1)
    # What is there comes before the padding; lines stay as long as they were.
    chosen = table.take(place) & ((1 << bits) - 1)
    ordered: Int64 = order[chosen + np.arange(len(order)) - column]
    return ordered


def best_ids(
    position: Int64, token: Int64, mass: Float64, unseen: Int64, count: int, width: int
) -> tuple[Int64, Float64, Int64]:
    """[count, width] ids, masses, unseen: descending, ties by lower id; mass 0 in empty slots."""
    starts = np.searchsorted(position, np.arange(count))
    widest = max(int(np.bincount(position, minlength=count).max(initial=0)), width)
    table = np.zeros((count, widest))
    entry = np.zeros((count, widest), np.int64)
    column = np.arange(len(position)) - starts[position]
    place = position * widest + column
    table.put(place, mass)
    entry.put(place, np.arange(len(position)))
    # Integers sort faster: positive floats are ordered as their bits are; the lowest
    # bits, far below rounding, hold the place, so that equal ones stay in order.
    low_bits = (1 << int(widest).bit_length()) - 1
    keys = -((table.view(np.int64) & ~low_bits) | (low_bits - np.arange(widest)))
    keys.sort(1)
    order = low_bits - (-keys[:, :width] & low_bits)
    chosen = np.take_along_axis(entry, order, 1)
    masses = np.take_along_axis(table, order, 1)
    if not len(position):
        return chosen, masses, chosen
    return token[chosen], masses, unseen[chosen]


def _threats(
    walked: Walked, total: Float64, ids: Int64, missing: Int64, tables: PairTables
) -> Float64:
    """[n, w]: unsettled mass that could still land on each id."""
    count, width = ids.shape
    size = len(tables.student.order) + 1
    line = np.arange(count)[:, None] * size
    opened = walked.open
    ranks = tables.student.rank[ids]
    bits = width.bit_length()
    column = np.sort((ranks << bits) | np.arange(width), 1) & ((1 << bits) - 1)
    keys = (line + np.take_along_axis(ranks, column, 1)).reshape(-1)
    order = (np.arange(count)[:, None] * width + column).reshape(-1)
    # Paths that are told by their bytes; the others by their first token.
    wide = np.flatnonzero(opened.first < 0)
    wide = wide[order_within(opened.position[wide], opened.low[wide])]
    base = opened.position[wide] * size
    lows, mass = base + opened.low[wide], opened.mass[wide]
    # Paths whose bytes the id begins with: each adds its mass to a range of ranks.
    begins = np.searchsorted(keys, lows)
    ends = np.searchsorted(keys, base + opened.high[wide])
    steps = np.bincount(begins, mass, len(keys) + 1) - np.bincount(ends, mass, len(keys) + 1)
    sorted_threats = np.cumsum(steps[:-1], dtype=np.float64)
    # Paths whose bytes begin with the id and go on: with a token that none goes on from
    # there is none.
    sums = np.concatenate([[0.0], np.cumsum(mass)])
    own = ids.reshape(-1)[order]
    longer = np.flatnonzero(tables.has_longer[own])
    interval = tables.student_interval[own[longer]] + line[longer // width]
    last = np.searchsorted(lows, interval[:, 1], "left")
    first = np.searchsorted(lows, interval[:, 0], "right")
    sorted_threats[longer] += np.maximum(sums[last] - sums[first], 0.0)
    unsorted = np.empty(len(keys))
    unsorted[order] = sorted_threats
    threats = unsorted.reshape(count, width)
    threats += _of_first(opened, ids, tables)
    mean = walked.tail / tables.teacher.size
    below = np.minimum(walked.floor, TAIL_SKEW * mean)[:, None] * missing
    # Sums that should cancel leave rounding behind.
    result: Float64 = (np.where(threats < ROUNDING, 0.0, threats) + below) / total[:, None]
    return result


def _of_first(opened: Entries, ids: Int64, tables: PairTables) -> Float64:
    """[n, w]: open mass of the teacher token that each id's own encoding begins with, and of
    those that the id is the first token of."""
    result = np.zeros(ids.shape)
    alone = opened.first >= 0
    keys = opened.position[alone] * tables.teacher.size + opened.first[alone]
    if not len(keys):
        return result
    keys, inverse = np.unique(keys, return_inverse=True)
    sums = np.bincount(inverse, opened.mass[alone])
    # The last place is that of ids without an encoding, whose first token is -1.
    opens = np.zeros(tables.teacher.size + 1, np.bool_)
    opens[opened.first[alone]] = True
    first = tables.static.first[ids].astype(np.int64)
    line, place = places(opens[first])
    asked = line * tables.teacher.size + first.take(place)
    at = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    result.put(place, np.where(keys[at] == asked, sums[at], 0.0))
    # And by itself a token becomes its first student token, whatever that one begins with.
    position, token = np.divmod(keys, tables.teacher.size)
    target = tables.phi0[token].astype(np.int64)
    other = target >= 0
    other[other] = tables.static.first[target[other]] != token[other]
    keys = position[other] * tables.student.size + target[other]
    if len(keys):
        keys, inverse = np.unique(keys, return_inverse=True)
        sums = np.bincount(inverse, sums[other])
        asked = np.arange(len(ids))[:, None] * tables.student.size + ids
        at = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
        result += np.where(keys[at] == asked, sums[at], 0.0)
    return result
