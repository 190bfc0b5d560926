"""The first step of a walk, inside a teacher token: rows that stand before their positions.

Only tokens count that begin with the bytes between the row and the position and reach
across; what is left of the token after the position is its *rest*.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from teacher_server.realign.pair.static_tables import OFF_TRIE, TRIE_ROOT
from teacher_server.realign.segmentation.canonical import CONTRADICTS
from teacher_server.realign.walk.context import SIGNIFICANT, OpenPaths, WalkContext
from teacher_server.realign.walk.masses import true_places
from teacher_server.realign.walk.rows import NO_ROW, Float64
from teacher_server.realign.walk.starts import MissingStarts, Starts

Int64 = NDArray[np.int64]


def read_rows_before(walk: WalkContext, before: Starts) -> OpenPaths:
    """Reads the rows ``before`` their positions; returns the paths whose next row is there."""
    kinds, ledger, extensions, pair = walk.kinds, walk.ledger, walk.extensions, walk.pair
    line, token, mass = _reaching_across(walk, before)
    position, row, skip = before.position[line], before.row[line], before.skip[line]
    table = pair.tables.teacher.token_bytes
    data = [table[one][gone:] for one, gone in zip(token.tolist(), skip.tolist(), strict=True)]
    state = pair.states.enter(walk.initial[position], data)
    # The rest of the token is read as the token with these bytes, where there is one.
    rest = np.array([pair.tables.teacher.by_bytes.get(one, -1) for one in data], np.int64)
    extendable = (rest >= 0) & kinds.asked[rest]
    ledger.want(extensions.should_ask(token, mass) & extendable, token)
    known_to_extend = extendable & extensions.known(token, mass)
    known_to_extend[known_to_extend] = extensions.rests_may_extend(
        token[known_to_extend], skip[known_to_extend], pair
    )
    child = walk.rows.children(row, token)
    after = np.where(extendable, child, NO_ROW)
    contradicted = (pair.states.answer(state) == CONTRADICTS) & (after == NO_ROW)
    rescued = contradicted & extendable
    rescued[rescued] = extensions.rescued(token[rescued], mass[rescued], state[rescued], pair)
    possible = ~contradicted | rescued
    unsettled = pair.states.inside_character(state) | known_to_extend | rescued
    on = possible & (unsettled | (after != NO_ROW))
    ledger.agree(position[possible], mass[possible])
    settled = possible & ~on
    ledger.settle(position[settled], pair.states.answer(state[settled]), mass[settled])
    node = pair.tables.trie_steps(np.full(int(on.sum()), TRIE_ROOT), np.maximum(rest[on], 0))
    paths = OpenPaths(
        position=position[on],
        row=child[on],
        token=token[on],
        mass=mass[on],
        state=state[on],
        node=np.where(extendable[on], node, OFF_TRIE),
        first=np.full(len(node), -1),
    )
    ends = paths.row == NO_ROW
    paths.some(ends).leave_open(walk, row[on][ends], token[on][ends])
    return paths.some(~ends)


def _reaching_across(walk: WalkContext, before: Starts) -> tuple[Int64, Int64, Float64]:
    """(line, token, mass) of the rows' entries that reach across their positions, without
    those of little mass; line: place in ``before``."""
    ids = walk.rows.ids[before.row]
    rank = walk.pair.tables.teacher.rank[ids]
    fits = (rank >= before.low[:, None]) & (rank < before.high[:, None])
    line, place = true_places(fits)
    column = place - line * fits.shape[1]
    mass = np.exp(walk.rows.log_probs[before.row[line], column] + before.weight[line])
    # All of what agrees may be a small part of the row.
    total = walk.ledger.total
    agreeing = total + np.bincount(before.position[line], mass, len(total))
    keep = mass >= SIGNIFICANT * agreeing[before.position[line]]
    line, mass = line[keep], mass[keep]
    return line, ids[line, column[keep]].astype(np.int64), mass


def leave_missing_open(walk: WalkContext, missing: MissingStarts) -> None:
    """Leaves the pasts open whose rows are missing. Of a past that continues with another
    token, only the part that does is open."""
    continues = missing.then >= 0
    should_ask = walk.extensions.should_ask(missing.token, missing.mass)
    walk.ledger.want(should_ask & continues, missing.token)
    known = continues & walk.extensions.known(missing.token, missing.mass)
    mass = missing.mass.copy()
    mass[known] *= walk.extensions.shares_of_next(missing.token[known], missing.then[known])
    ranks = np.column_stack([missing.low, missing.high])
    walk.ledger.leave_open(missing.position, missing.token, mass, missing.row, ranks)
    walk.ledger.agree(missing.position, mass)
