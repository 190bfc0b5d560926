"""Further steps of a walk: the rows after paths that have settled nothing yet."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from teacher_proto.types import Bool

from teacher_server.realign.pair.static_tables import OFF_TRIE
from teacher_server.realign.segmentation.canonical import CONTRADICTS
from teacher_server.realign.segmentation.pair_segmentation import NOT_IMPLIED, is_implied
from teacher_server.realign.walk.context import SIGNIFICANT, OpenPaths, WalkContext
from teacher_server.realign.walk.masses import true_places
from teacher_server.realign.walk.rows import NO_ROW, Float64

Int64 = NDArray[np.int64]


def read_rows_beyond(walk: WalkContext, paths: OpenPaths) -> OpenPaths:
    """Reads the rows after ``paths``; returns the paths, one token longer, that still settle
    nothing and whose next row is there."""
    states, tables = walk.pair.states, walk.pair.tables
    ids = walk.rows.ids[paths.row].astype(np.int64)
    mass = np.exp(walk.rows.log_probs[paths.row]) * paths.mass[:, None]
    joins = states.may_join(paths.state, ids)
    ended = states.answer(paths.state)
    spaces = states.end_in_spaces(paths.state)
    slight = joins & (mass < SIGNIFICANT * paths.mass[:, None])
    whole = _ending(walk, paths, mass, joins, slight)
    line, place = true_places(joins & ~slight)
    token, masses = ids.take(place), mass.take(place)
    state = states.step(paths.state[line], token)
    node = tables.trie_steps(paths.node[line], token)
    row = paths.row[line]
    after = walk.rows.children(row, token)
    settles = (node == OFF_TRIE) & ~states.inside_character(state)
    # What joins and leaves the trie is settled by the text up to here, unless a row that is
    # there can decide better.
    implied, depends = walk.pair.implied_by_spaces(state, paths.token[line], token)
    implied[after != NO_ROW] = NOT_IMPLIED
    may_move = states.answer_covers(state) | states.end_in_spaces(state)
    may_move |= states.begins_added(state)
    settles &= ~may_move | (after == NO_ROW)
    answers = states.answer(state)
    # Where the teacher's own tokenizer writes no such token after the path, that text is
    # another path's: the row's mass stays with the path's token.
    kept = ~spaces[line] & (answers != ended[line])
    canonical = walk.pair.canonical_pairs
    kept[kept] = ~canonical.are_canonical(paths.token[line][kept], token[kept])
    answers = np.where(kept, ended[line], answers)
    answers = np.where(is_implied(implied), implied, answers)
    settles = (settles & ~depends) | is_implied(implied)
    # Most of it leaves the student's token as it was: one entry for each path.
    same = settles & (answers == ended[line])
    whole += np.bincount(line[same], masses[same], len(whole))
    some = whole > 0
    _close(walk, paths.position[some], ended[some], whole[some])
    position = paths.position[line]
    settled = settles & ~same
    _close(walk, position[settled], answers[settled], masses[settled])
    longer = OpenPaths(
        position=position,
        row=after,
        token=token,
        mass=masses,
        state=state,
        node=node,
        first=np.full(len(line), -1),
    ).some(~settles)
    ends = longer.row == NO_ROW
    longer.some(ends).leave_open(walk, row[~settles][ends], longer.token[ends])
    return longer.some(~ends)


def _ending(
    walk: WalkContext, paths: OpenPaths, mass: Float64, joins: Bool, slight: Bool
) -> Float64:
    """float64 [n]: of the rows after the paths, the mass that ends the student's token with
    the path's bytes. What is too small to be looked at stays open.

    Args:
        mass, joins, slight: [n, w], of the rows' entries: what they weigh, whether they may
            join the path, and whether they may and are too small.
    """
    states, ledger = walk.pair.states, walk.ledger
    # Whatever does not join ends the student's token with the path's bytes.
    apart = np.where(joins, 0.0, mass).sum(1)
    # So, as far as is known, does what is below the row's best; but not after spaces.
    below = walk.rows.tail[paths.row] * paths.mass
    spaces = states.end_in_spaces(paths.state)
    apart += np.where(spaces, 0.0, below)
    cut = states.inside_character(paths.state)
    ledger.lose(paths.position[cut], apart[cut])  # bytes that are no text
    nothing = np.full(len(mass), NO_ROW)
    small = np.where(slight, mass, 0.0).sum(1) + np.where(spaces, below, 0.0)
    ranges = states.prefix_ranges(paths.state)
    ledger.leave_open(paths.position, nothing, small, nothing, ranges, paths.first)
    return np.where(cut, 0.0, apart)


def _close(walk: WalkContext, position: Int64, answers: Int64, mass: Float64) -> None:
    """Settles mass on the answers; what contradicts the student's tokens is ruled out."""
    fine = answers != CONTRADICTS
    walk.ledger.settle(position[fine], answers[fine], mass[fine])
    walk.ledger.rule_out(position[~fine], mass[~fine])
