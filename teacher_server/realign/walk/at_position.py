"""The first step of a walk: rows that stand at their positions, where every token counts.

A token settles which student token comes, or cannot be expressed, or contradicts what the
student has written, or opens a path: it may be extended, or the row after it is there and
decides better.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from teacher_proto.types import Bool

from teacher_server.realign.pair.static_tables import TRIE_ROOT
from teacher_server.realign.segmentation.canonical import CONTRADICTS
from teacher_server.realign.segmentation.pair_segmentation import NOT_IMPLIED, is_implied
from teacher_server.realign.segmentation.states import EMPTY_STATE, OPEN
from teacher_server.realign.walk.context import SIGNIFICANT, OpenPaths, WalkContext
from teacher_server.realign.walk.masses import true_places
from teacher_server.realign.walk.rows import NO_ROW, Float64
from teacher_server.realign.walk.seen import SeenExtensions
from teacher_server.realign.walk.starts import Starts

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class _Joining:
    """Arrays of n entries of rows whose tokens may join the text before them; ``followed``:
    whether the row after the token is there."""

    position: Int64
    row: Int64
    token: Int64
    mass: Float64
    followed: Bool


def read_rows_at(walk: WalkContext, at: Starts) -> OpenPaths:
    """Reads the rows ``at`` their positions; returns the paths whose next row is there."""
    kinds, ledger, position = walk.kinds, walk.ledger, at.position
    ledger.agree(position, np.exp(at.weight))
    ids = walk.rows.ids[at.row].astype(np.int64)
    mass = np.exp(walk.rows.log_probs[at.row] + at.weight[:, None])
    joins = walk.pair.states.may_join(walk.initial[position], ids)
    may_extend = _may_extend(walk, position, ids, mass)
    after = np.full(ids.shape, NO_ROW)
    extends = kinds.has_extension[ids] | kinds.begins_added[ids] | may_extend
    line, place = true_places(extends & (mass >= SIGNIFICANT))
    after.put(place, walk.rows.children(at.row[line], ids.take(place)))
    # A row that is there decides better than any estimate.
    unsettled = may_extend | (after != NO_ROW)
    some = mass > 0
    lost = kinds.inexpressible[ids] & some
    line, place = true_places(lost)
    ledger.lose(position[line], mass.take(place))
    line, place = true_places(some & ~(joins | unsettled | lost))
    ledger.settle(position[line], kinds.student_token[ids.take(place)], mass.take(place))
    # Tokens that may join the text before them.
    small = joins & (mass < SIGNIFICANT)
    line, place = true_places(joins & ~small & ~lost)
    joining = _Joining(
        position[line],
        at.row[line],
        ids.take(place),
        mass.take(place),
        after.take(place) != NO_ROW,
    )
    states, implied, contradicted, rescued = _join(walk, joining)
    continues = (unsettled.take(place) & ~is_implied(implied)) | rescued
    done = ~continues & ~contradicted
    answers = np.where(is_implied(implied), implied, walk.pair.states.answer(states))
    ledger.settle(joining.position[done], answers[done], joining.mass[done])
    unsettled.put(place, continues & ~contradicted)
    state = np.full(ids.shape, EMPTY_STATE)
    state.put(place, states)
    # What must follow several spaces was not taken into the teacher's token with them.
    must_be_followed = np.zeros(ids.shape, np.bool_)
    must_be_followed.put(place, implied == OPEN)
    # Paths that are left.
    line, place = true_places(some & ~lost & (small | unsettled))
    apart = ~joins.take(place)
    token, masses = ids.take(place), mass.take(place)
    # A path apart from the text before it becomes what the teacher would begin with the token.
    itself = (apart & ~walk.extensions.resegmented(token, masses)) | must_be_followed.take(place)
    opened = OpenPaths(
        position=position[line],
        row=after.take(place),
        token=token,
        mass=masses,
        state=state.take(place),
        node=np.full(len(place), TRIE_ROOT),
        first=np.where(itself, token, -1),
    )
    return _enter(walk, opened, at.row[line], apart)


def _may_extend(walk: WalkContext, position: Int64, ids: Int64, mass: Float64) -> Bool:
    """bool [n, w]: whether the tokens may be extended, by the best source there is."""
    kinds = walk.kinds
    asked, partial = kinds.asked[ids], kinds.partial_character[ids]
    walk.ledger.want(walk.extensions.should_ask(ids, mass) & asked, ids)
    may_extend = np.where(asked, walk.extensions.may_extend(ids, mass), partial)
    may_extend |= kinds.single_space[ids]
    seen = SeenExtensions(walk.layout, walk.rows, walk.pair)
    return seen.may_extend(may_extend, partial, ids, walk.sync[position], mass >= SIGNIFICANT)


def _join(walk: WalkContext, joining: _Joining) -> tuple[Int64, Int64, Bool, Bool]:
    """Writes tokens after the text they may join, and takes off what cannot be.

    Returns (state, implied, contradicted, contradicted_unless_extended), each [n]. state: of
    ``StudentStates``. implied: as ``_implied`` gives it. contradicted: the student's tokens
    before the position rule the token out. contradicted_unless_extended: they would rule it
    out if the text ended there, and what follows may rescue it.
    """
    tokens, position, mass = joining.token, joining.position, joining.mass
    states = walk.pair.states.step(walk.initial[position], tokens)
    before = walk.rows.token_before[joining.row]
    before = np.where((before >= 0) & walk.kinds.not_special[before], before, -1)
    implied = _implied(walk, before, joining, states)
    contradicted = walk.pair.states.answer(states) == CONTRADICTS
    contradicted &= ~is_implied(implied) & ~joining.followed
    rescued = contradicted & (implied == OPEN)
    ask = contradicted & ~rescued
    rescued[ask] = walk.extensions.rescued(tokens[ask], mass[ask], states[ask], walk.pair)
    contradicted &= ~rescued
    contradicted |= implied == CONTRADICTS
    # Mass on text that the student would have cut in another way: what the teacher's own
    # tokenizer would write so cannot happen here, the rest cannot be expressed.
    canonical = walk.pair.canonical_pairs
    impossible = canonical.are_canonical(before[contradicted], tokens[contradicted])
    position, mass = position[contradicted], mass[contradicted]
    walk.ledger.rule_out(position[impossible], mass[impossible])
    walk.ledger.lose(position[~impossible], mass[~impossible])
    return states, implied, contradicted, rescued


def _implied(walk: WalkContext, before: Int64, joining: _Joining, states: Int64) -> Int64:
    """int64 [n]: the student's tokens, or CONTRADICTS, of paths that end in several spaces
    and have no row after them: by the teacher's own cut, else by context-free rows. OPEN
    where neither decides and something must follow, NOT_IMPLIED elsewhere."""
    implied, _ = walk.pair.implied_by_spaces(states, before, joining.token)
    implied[joining.followed] = NOT_IMPLIED
    spaces = walk.pair.states.end_in_spaces(states)
    which = np.flatnonzero(spaces & ~joining.followed & ~is_implied(implied))
    answers = walk.extensions.answers_after_spaces(
        before[which], joining.token[which], joining.mass[which], states[which], walk.pair
    )
    implied[which] = np.where(is_implied(answers), answers, implied[which])
    return implied


def _enter(walk: WalkContext, opened: OpenPaths, row: Int64, apart: Bool) -> OpenPaths:
    """Leaves paths without a next row open, and returns the others with their states.

    Args:
        row: int64 [n], the row that the paths' tokens are read from.
        apart: bool [n], the path does not join the text before it, and is not written yet.
    """
    pair = walk.pair
    stay = opened.row == NO_ROW
    ends = opened.some(stay)
    ranges = pair.tables.student_range[ends.token]
    walk.ledger.leave_open(ends.position, ends.token, ends.mass, row[stay], ranges, ends.first)
    on = opened.some(~stay)
    state, new = on.state.copy(), apart[~stay]
    state[new] = pair.states.step(state[new], on.token[new])
    node = pair.tables.trie_steps(on.node, on.token)
    return OpenPaths(on.position, on.row, on.token, on.mass, state, node, on.first)
