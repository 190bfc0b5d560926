"""From masses to what is returned: the best certified ids, and what is not known.

An id is *certified* when the unsettled mass that could still land on it, its *threat*, is
at most MAX_UNSETTLED of its own mass. The mass of an open path can only land on student
tokens that begin with the path's bytes, or that the path's bytes begin with.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from teacher_proto.types import Bool, Float32, Int32

from teacher_server.realign.pair.tables import MAX_UNSETTLED, TAIL_SKEW, PairTables
from teacher_server.realign.walk.masses import Entries, Settled, WalkResult, true_places
from teacher_server.realign.walk.rows import Float64

Int64 = NDArray[np.int64]
# Ids beyond K that are looked at: they take the place of ids that are not certified.
SPARE_IDS = 16
# A smaller threat is what rounding leaves of sums that should cancel.
ROUNDING = 1e-12
# Slots of a padded table for each entry in it, at most.
MOST_PADDING = 8


@dataclass(frozen=True)
class Certified:
    """n positions; K ids each.

    Attributes:
        ids, log_probs: int32, float32 [n, K], nats, descending, ties by lower id; -1 and 0
            in slots from ``counts`` on. Not renormalised.
        counts: int32 [n], certified ids of each position.
        sampled: float64 [n], log-probability of the sampled id, nats; -inf where it is not
            certified.
        doubtful: bool [n], an id that is not certified could be the most likely one.
        coverage: float64 [n], mass of the ids.
        open_mass: float64 [n], mass that no row has settled.
        lost_mass: float64 [n], mass that no student token can express.
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
    walked: WalkResult, sampled: Int64, top_k: int, limit: int, tables: PairTables
) -> Certified:
    """The certified ids of n positions.

    Args:
        sampled: int64 [n], the rollout's own student tokens.
        top_k: K.
        limit: only ids below it are returned.
    """
    count = len(sampled)
    total = np.maximum(walked.total, 1e-300)
    position, token, mass, parts = sum_by_token(walked.settled, tables.student.size)
    mass = mass / total[position]
    below = _below_best(walked, position, token, parts, tables) / total[position]
    ids, masses, unlisted = best_ids(position, token, mass, below, count, top_k + SPARE_IDS)
    own = np.zeros(count)
    hit = token == sampled[position]
    own[position[hit]] = mass[hit]
    own_unlisted = np.zeros(count)
    own_unlisted[position[hit]] = below[hit]
    ids = np.column_stack([ids, sampled])
    masses = np.column_stack([masses, own])
    unlisted = np.column_stack([unlisted, own_unlisted])
    threats = _threats(walked, total, ids, tables) + unlisted
    sure = (masses > 0) & (threats <= MAX_UNSETTLED * masses)
    sampled_sure = sure[:, -1]
    sure, masses, ids, threats = sure[:, :-1], masses[:, :-1], ids[:, :-1], threats[:, :-1]
    best = np.where(sure, masses, 0.0).max(1, initial=0.0)
    rival = np.where(sure, 0.0, masses + threats).max(1, initial=0.0)
    largest_open = np.zeros(count)
    np.maximum.at(largest_open, walked.open.position, walked.open.mass)
    # A threat is an upper bound: no id has more than what the certified ones leave.
    left = 1.0 - np.where(sure, masses, 0.0).sum(1)
    doubtful = np.minimum(np.maximum(rival, largest_open / total), left) > best
    sure &= ids < limit
    place = np.cumsum(sure, 1) - 1
    keep = sure & (place < top_k)
    line, kept = true_places(keep)
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


def sum_by_token(settled: Settled, size: int) -> tuple[Int64, Int64, Float64, Int64]:
    """(position, token, mass, parts): the masses summed, one entry for each position and
    token, in their order; parts: how many paths each sum has."""
    order = order_within(settled.position, settled.token)
    key = (settled.position * size + settled.token)[order]
    first = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]])[: len(key)])
    position, token = np.divmod(key[first], size)
    if not len(first):
        return position, token, np.zeros(0), np.zeros(0, np.int64)
    mass = np.add.reduceat(settled.mass[order], first)
    return position, token, mass, np.add.reduceat(settled.parts[order], first)


def order_within(position: Int64, value: Int64) -> Int64:
    """int64 [n]: the stable order by position, then by value (>= 0)."""
    if not len(position):
        return np.zeros(0, np.int64)
    # A few ascending runs, which the stable sort merges.
    order = np.argsort(position, kind="stable")
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
    # Entries come before the padding; lines stay as long as they were.
    chosen = table.take(place) & ((1 << bits) - 1)
    ordered: Int64 = order[chosen + np.arange(len(order)) - column]
    return ordered


def best_ids(
    position: Int64, token: Int64, mass: Float64, below: Float64, count: int, width: int
) -> tuple[Int64, Float64, Float64]:
    """(ids, masses, below) [count, width]: the heaviest entries of each position, descending,
    ties by lower id; mass 0 in empty slots.

    Args:
        position, token, mass, below: entries in the order of ``sum_by_token``.
    """
    starts = np.searchsorted(position, np.arange(count))
    widest = max(int(np.bincount(position, minlength=count).max(initial=0)), width)
    table = np.zeros((count, widest))
    entry = np.zeros((count, widest), np.int64)
    column = np.arange(len(position)) - starts[position]
    place = position * widest + column
    table.put(place, mass)
    entry.put(place, np.arange(len(position)))
    # Integers sort faster, and positive floats are ordered as their bits are. The lowest
    # bits, far below rounding, hold the place, so that equal masses stay in order.
    low_bits = (1 << int(widest).bit_length()) - 1
    keys = -((table.view(np.int64) & ~low_bits) | (low_bits - np.arange(widest)))
    keys.sort(1)
    order = low_bits - (-keys[:, :width] & low_bits)
    chosen = np.take_along_axis(entry, order, 1)
    masses = np.take_along_axis(table, order, 1)
    if not len(position):
        return chosen, masses, masses
    return token[chosen], masses, below[chosen]


def _below_best(
    walked: WalkResult, position: Int64, token: Int64, parts: Int64, tables: PairTables
) -> Float64:
    """float64 [n]: what teacher tokens below the rows' best may add to the masses of the student
    tokens: at most the row's floor each, TAIL_SKEW times the mean of such tokens, or more where
    several that are listed give the same student token: before a number, whose first digit
    hundreds of numbers share, as many of those below give it as of those that are listed.

    Args:
        position, token, parts: as ``sum_by_token`` gives them. What wide rows list besides their
            best is counted in ``parts`` and not in ``WalkResult.listed``: of a student token that
            many numbers give, this makes what is added larger.
    """
    count = tables.teacher_token_count[token]
    behind = walked.behind_space[position]
    if behind.any():
        count[behind] = tables.count_behind_space[token[behind]]
    missing = np.maximum(count - parts, 0)
    # Of a wide row's numbers none is below its best.
    wide = walked.wide[position]
    missing[wide] = np.minimum(missing, tables.not_wide_count[token])[wide]
    floor, tail = walked.floor[position], walked.tail[position]
    alike = np.minimum(tail * (parts - 1) / np.maximum(walked.listed[position], 1), floor * missing)
    result: Float64 = np.maximum(
        np.minimum(floor, TAIL_SKEW * tail / tables.teacher.size) * missing, alike
    )
    return result


def _threats(walked: WalkResult, total: Float64, ids: Int64, tables: PairTables) -> Float64:
    """float64 [n, w]: open mass that could still land on each id.

    Args:
        total: float64 [n], by which masses are divided.
        ids: int64 [n, w], student tokens.
    """
    count, width = ids.shape
    size = len(tables.student.order) + 1
    line = np.arange(count)[:, None] * size
    opened = walked.open
    ranks = tables.student.rank[ids]
    bits = width.bit_length()
    column = np.sort((ranks << bits) | np.arange(width), 1) & ((1 << bits) - 1)
    keys = (line + np.take_along_axis(ranks, column, 1)).reshape(-1)
    order = (np.arange(count)[:, None] * width + column).reshape(-1)
    # Paths that threaten by their bytes; the others threaten by their first token.
    by_bytes = np.flatnonzero(opened.first < 0)
    by_bytes = by_bytes[order_within(opened.position[by_bytes], opened.low[by_bytes])]
    base = opened.position[by_bytes] * size
    lows, mass = base + opened.low[by_bytes], opened.mass[by_bytes]
    # Ids that begin with a path's bytes: each path adds its mass to a range of ranks.
    begins = np.searchsorted(keys, lows)
    ends = np.searchsorted(keys, base + opened.high[by_bytes])
    steps = np.bincount(begins, mass, len(keys) + 1) - np.bincount(ends, mass, len(keys) + 1)
    sorted_threats = np.cumsum(steps[:-1], dtype=np.float64)
    # Paths whose bytes begin with the id and are longer: there are none where no student
    # token is longer.
    sums = np.concatenate([[0.0], np.cumsum(mass)])
    own = ids.reshape(-1)[order]
    longer = np.flatnonzero(tables.student_has_longer[own])
    interval = tables.student_prefix_range[own[longer]] + line[longer // width]
    last = np.searchsorted(lows, interval[:, 1], "left")
    first = np.searchsorted(lows, interval[:, 0], "right")
    sorted_threats[longer] += np.maximum(sums[last] - sums[first], 0.0)
    # Of a path that no student token begins with only its place among them is known. Where that
    # is right behind those that begin with the id, its bytes may do so too.
    nowhere = opened.low[by_bytes] == opened.high[by_bytes]
    behind, sums = lows[nowhere], np.concatenate([[0.0], np.cumsum(mass[nowhere])])
    last = np.searchsorted(behind, interval[:, 1], "right")
    first = np.searchsorted(behind, interval[:, 1], "left")
    sorted_threats[longer] += sums[last] - sums[first]
    unsorted = np.empty(len(keys))
    unsorted[order] = sorted_threats
    threats = unsorted.reshape(count, width)
    threats += _threats_of_first_tokens(opened, ids, tables)
    result: Float64 = np.where(threats < ROUNDING, 0.0, threats) / total[:, None]
    return result


def _threats_of_first_tokens(opened: Entries, ids: Int64, tables: PairTables) -> Float64:
    """float64 [n, w]: what open paths with a ``first`` token threaten each id with: those whose
    first token the id's own teacher encoding begins with, and those whose first token becomes the
    id by itself, or as several spaces before a word."""
    result = np.zeros(ids.shape)
    alone = opened.first >= 0
    keys = opened.position[alone] * tables.teacher.size + opened.first[alone]
    if not len(keys):
        return result
    keys, inverse = np.unique(keys, return_inverse=True)
    sums = np.bincount(inverse, opened.mass[alone]).astype(np.float64)
    # The last place is for ids without an encoding, whose first token is -1.
    opens = np.zeros(tables.teacher.size + 1, np.bool_)
    opens[opened.first[alone]] = True
    first = tables.static.first_teacher_token[ids].astype(np.int64)
    line, place = true_places(opens[first])
    asked = line * tables.teacher.size + first.take(place)
    at = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    result.put(place, np.where(keys[at] == asked, sums[at], 0.0))
    # By itself a token becomes its first student token, and several spaces before a word another,
    # whatever the encodings of these begin with.
    position, token = np.divmod(keys, tables.teacher.size)
    for targets in (tables.first_student_token, tables.student_token_before_word):
        target = targets[token].astype(np.int64)
        other = target >= 0
        other[other] = tables.static.first_teacher_token[target[other]] != token[other]
        if other.any():
            becomes = position[other] * tables.student.size + target[other]
            result += _sums_at(becomes, sums[other], ids, tables.student.size)
    return result


def _sums_at(keys: Int64, mass: Float64, ids: Int64, size: int) -> Float64:
    """float64 [n, w]: the mass at each id.

    Args:
        keys: int64 [k], position * size + id, of ``mass`` [k].
    """
    keys, inverse = np.unique(keys, return_inverse=True)
    sums = np.bincount(inverse, mass)
    asked = np.arange(len(ids))[:, None] * size + ids
    at = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
    found: Float64 = np.where(keys[at] == asked, sums[at], 0.0)
    return found
