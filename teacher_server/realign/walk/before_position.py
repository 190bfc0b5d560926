"""The first step of a walk, inside a teacher token: rows that stand before their positions.

Only tokens count that begin with the bytes between the row and the position and reach
across; what is left of the token after the position is its *rest*.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from teacher_proto.types import Bool

from teacher_server.realign.pair.static_tables import OFF_TRIE, TRIE_ROOT
from teacher_server.realign.pair.tables import EXTENSION_LIMIT
from teacher_server.realign.segmentation.canonical import CONTRADICTS
from teacher_server.realign.segmentation.pair_segmentation import NOT_IMPLIED, is_implied
from teacher_server.realign.segmentation.states import OPEN
from teacher_server.realign.walk.masses import SIGNIFICANT, true_places
from teacher_server.realign.walk.paths import Fate, Paths, WalkContext, act, fates
from teacher_server.realign.walk.rows import NO_ROW, Float64
from teacher_server.realign.walk.starts import MissingStarts, Starts

Int64 = NDArray[np.int64]


def read_rows_before(walk: WalkContext, before: Starts) -> Paths:
    """Reads the rows ``before`` their positions; returns the paths whose next row is there."""
    tables, states = walk.pair.tables, walk.pair.states
    line, token, mass = _reaching_across(walk, before)
    skip = before.skip[line]
    # The rest of the token is read as the token with these bytes, where there is one.
    state, rest = states.enter_rests(walk.initial[before.position[line]], token, skip)
    extendable = (rest >= 0) & walk.kinds.asked[rest]
    node = tables.trie_steps(np.full(len(rest), TRIE_ROOT), np.maximum(rest, 0))
    paths = Paths(
        position=before.position[line],
        row=before.row[line],
        token=token,
        mass=mass,
        state=state,
        node=np.where(extendable, node, OFF_TRIE),
        after=walk.rows.children(before.row[line], token),
        first=np.full(len(token), -1),
    )
    decided, kept = _decided(walk, paths, skip, extendable)
    answer = np.where(kept == 0, CONTRADICTS, states.answer(paths.state))
    # Of spaces whose last the position stands before, what follows decides.
    solid = walk.pair.before_solid(paths.state, token)
    solid[paths.have_next_row] = NOT_IMPLIED
    known, opened = is_implied(solid), solid == OPEN
    kept[known | (opened & (kept == 0))] = 1.0
    answer = np.where(known, solid, answer)
    decided = known | (decided & ~opened)
    paths = replace(paths, mass=paths.mass * kept)
    fate = fates(paths, answer, decided)
    possible = np.flatnonzero(fate != Fate.RULE_OUT)
    paths, fate, answer = paths.some(possible), fate[possible], answer[possible]
    walk.ledger.agree(paths.position, paths.mass)
    return act(paths, fate, answer, walk.ledger, lambda left: states.prefix_ranges(left.state))


def _decided(
    walk: WalkContext, paths: Paths, skip: Int64, extendable: Bool
) -> tuple[Bool, Float64]:
    """(decided, kept), [n] each. decided: whether nothing that follows the paths can change
    their student tokens. kept: the part of them that what follows does not rule out.

    Args:
        skip: int64 [n], bytes of the paths' tokens before their positions.
        extendable: bool [n], the rest of the token is one that may be extended.
    """
    states, extensions = walk.pair.states, walk.extensions
    token, mass = paths.token, paths.mass
    may_extend = extendable.copy()
    may_extend[extendable] = extensions.rests_may_extend(
        token[extendable], mass[extendable], skip[extendable]
    )
    goes_on = extendable & paths.have_next_row
    contradicted = (states.answer(paths.state) == CONTRADICTS) & ~goes_on
    kept = np.where(contradicted, 0.0, 1.0)
    ask = extendable & ~goes_on & (contradicted | may_extend)
    kept[ask] = extensions.shares_kept(token[ask], mass[ask], paths.state[ask])
    unsettled = states.inside_character(paths.state) | may_extend | goes_on
    decided: Bool = (kept == 0) | ~(contradicted | unsettled)
    return decided, kept


def _reaching_across(walk: WalkContext, before: Starts) -> tuple[Int64, Int64, Float64]:
    """(line, token, mass) of the rows' entries that reach across their positions, without
    those of little mass; line: place in ``before``."""
    ids = walk.rows.ids[before.row]
    rank = walk.pair.tables.teacher.rank.take(ids)
    fits = (rank >= before.low[:, None]) & (rank < before.high[:, None])
    line, place = true_places(fits)
    column = place - line * fits.shape[1]
    mass = np.exp(walk.rows.log_probs[before.row[line], column] + before.weight[line])
    token = ids[line, column].astype(np.int64)
    wide_line, wide_token, wide_mass = _wide_reaching_across(walk, before)
    # All of what agrees may be a small part of the row.
    total = walk.ledger.total
    agreeing = total + np.bincount(before.position[line], mass, len(total))
    agreeing += np.bincount(before.position[wide_line], wide_mass, len(total))
    _leave_unlisted_open(walk, before, line[mass > 0], column[mass > 0], agreeing)
    line, mass = np.concatenate([line, wide_line]), np.concatenate([mass, wide_mass])
    token = np.concatenate([token, wide_token])
    keep = mass >= SIGNIFICANT * agreeing[before.position[line]]
    return line[keep], token[keep], mass[keep]


def _wide_reaching_across(walk: WalkContext, before: Starts) -> tuple[Int64, Int64, Float64]:
    """``_reaching_across``: of what wide rows list besides their best ids, whatever its mass."""
    line, wide = walk.rows.wide_lines(before.row, inside=True)
    which, column = walk.numbers.within(before.low[line], before.high[line])
    log_prob = walk.rows.wide_entries.log_probs[wide[which], column]
    there = np.flatnonzero(log_prob > -np.inf)
    line, token = line[which[there]], walk.numbers.ids[column[there]]
    return line, token, np.exp(log_prob[there] + before.weight[line])


def _leave_unlisted_open(
    walk: WalkContext, before: Starts, line: Int64, column: Int64, agreeing: Float64
) -> None:
    """Leaves open what may reach across positions and is below the rows' best, where that is
    more than EXTENSION_LIMIT of what agrees: of numbers, of which a teacher often finds hundreds
    about as likely. Other tokens below the best are taken to have nothing, and of a wide row, which
    lists every number, all do.

    It is taken to be as large a part of what is below as of the less likely half of those that
    are listed, or as much as one of these has where none of them reaches across.

    Args:
        line, column: int64 [k], the listed tokens that reach across.
        agreeing: float64, of each position: the mass of these, and of what was found before.
    """
    rows, tables, count = walk.rows, walk.pair.tables, len(before.row)
    listed = np.maximum(rows.listed[before.row], 1)
    reach = np.bincount(line[column >= listed[line] // 2], minlength=count)
    unlisted = before.high - before.low - np.bincount(line, minlength=count)
    tail, most = rows.tail[before.row], np.exp(rows.floor[before.row]) * unlisted
    share = tail * np.maximum(reach, 1) / (listed - listed // 2)
    numbers = tables.teacher.numbers_below
    others = 2 * (numbers[before.high] - numbers[before.low]) < before.high - before.low
    mass = np.where(
        others | rows.wide_inside[before.row], 0.0, np.minimum(share, most) * np.exp(before.weight)
    )
    whole = np.bincount(before.position, mass, len(agreeing))
    which = np.flatnonzero((whole > EXTENSION_LIMIT * agreeing)[before.position] & (mass > 0))
    some = (part[which].tolist() for part in (before.low, before.high, before.skip))
    ranks = [tables.ranks_of_rests(*one) for one in zip(*some, strict=True)]
    none, mass = np.full(len(which), NO_ROW), mass[which]
    interval = np.array(ranks, np.int64).reshape(-1, 2)
    walk.ledger.leave_open(before.position[which], none, mass, none, interval)
    walk.ledger.agree(before.position[which], mass)


def leave_missing_open(walk: WalkContext, missing: MissingStarts) -> None:
    """Leaves the pasts open whose rows are missing. Of a past that continues with another
    token, or reaches across, only the part that does is open."""
    mass, on = missing.mass.copy(), missing.then >= 0
    mass[on] *= walk.extensions.shares_of_next(missing.token[on], mass[on], missing.then[on])
    reaches = missing.reach_low < missing.reach_high
    of_ranks = (part[reaches] for part in (missing.reach_low, missing.reach_high))
    mass[reaches] *= walk.extensions.shares_of_ranks(
        missing.token[reaches], mass[reaches], *of_ranks
    )
    ranks = np.column_stack([missing.low, missing.high])
    walk.ledger.leave_open(missing.position, missing.token, mass, missing.row, ranks)
    walk.ledger.agree(missing.position, mass)
