"""The first step of a walk: rows that stand at their positions, where every token counts.

A token that stands apart from the text before it settles its own student token, unless it
may be extended or the row after it is there. One that may join that text is written after
it first: the student would perhaps cut both in another way than it has, and then the token
is ruled out, unless what follows may rescue it.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from teacher_proto.types import Bool

from teacher_server.realign.pair.static_tables import TRIE_ROOT
from teacher_server.realign.segmentation.canonical import CONTRADICTS
from teacher_server.realign.segmentation.number_answers import ALONE, LOST, RULED_OUT
from teacher_server.realign.segmentation.pair_segmentation import NOT_IMPLIED, is_implied
from teacher_server.realign.segmentation.states import EMPTY_STATE, OPEN
from teacher_server.realign.walk.masses import SIGNIFICANT
from teacher_server.realign.walk.paths import (
    Fate,
    Fates,
    Paths,
    WalkContext,
    act,
    fates,
    number_answers,
    settle_after_spaces,
)
from teacher_server.realign.walk.rows import NO_ROW, Float64
from teacher_server.realign.walk.starts import Starts

Int64 = NDArray[np.int64]


def read_rows_at(walk: WalkContext, at: Starts) -> Paths:
    """Reads the rows ``at`` their positions; returns the paths whose next row is there."""
    walk.ledger.agree(at.position, np.exp(at.weight))
    paths, joins = _entries(walk, at)
    if walk.rows.any_wide:
        more = _numbers(walk, at)
        first = walk.initial[more.position], more.token[:, None]
        joins = np.concatenate([joins, walk.pair.states.may_join(*first)[:, 0]])
        paths += more
    may_extend = walk.extensions.may_extend(paths.token, paths.mass, paths.position)
    paths = replace(paths, after=_rows_after(walk, paths, may_extend))
    answer = walk.kinds.student_token.take(paths.token)
    fate = fates(paths, answer, ~(joins | may_extend | paths.have_next_row))
    fate[walk.kinds.inexpressible.take(paths.token)] = Fate.LOSE
    fate[paths.mass == 0] = Fate.NOTHING
    # Those that may join the text before them, and are not too small to be looked at.
    joining = np.flatnonzero(joins & _looked_at(walk, paths) & (fate != Fate.LOSE))
    fate[joining] = Fate.NOTHING
    # What is open of a token apart from the text before it may become what the teacher would
    # itself begin with the token, unless it is cut in another way.
    apart = np.flatnonzero((fate >= Fate.OPEN) & ~joins)
    token = paths.token[apart]
    resegmented = walk.extensions.resegmented(token, paths.mass[apart])
    paths.first[apart] = np.where(resegmented, -1, token)
    on = _act(walk, paths, fate, answer)
    joined, fate, answer, settled = _join(walk, paths.some(joining), may_extend[joining])
    ruled_out, kept = np.zeros(len(paths.mass)), settled + joined.mass
    ruled_out[joining] = paths.mass[joining] - np.where(fate == Fate.RULE_OUT, 0.0, kept)
    _rule_out_below(walk, at, paths.mass, ruled_out)
    return on + _act(walk, joined, fate, answer)


def _entries(walk: WalkContext, at: Starts) -> tuple[Paths, Bool]:
    """(paths, joins) of the rows' best ids and the rollout's own tokens: paths of one token that
    are not written yet, and whether it may join the text before it."""
    ids = walk.rows.ids[at.row].astype(np.int64)
    mass = np.exp(walk.rows.log_probs[at.row] + at.weight[:, None])
    joins = walk.pair.states.may_join(walk.initial[at.position], ids)
    position, row = (np.repeat(one, ids.shape[1]) for one in (at.position, at.row))
    paths = _not_written(position, row, ids.reshape(-1), mass.reshape(-1))
    return paths, joins.reshape(-1)


def _not_written(position: Int64, row: Int64, token: Int64, mass: Float64) -> Paths:
    """Paths of one token that are not written yet."""
    return Paths(
        position=position,
        row=row,
        token=token,
        mass=mass,
        state=np.full(len(token), EMPTY_STATE),
        node=np.full(len(token), TRIE_ROOT),
        after=np.full(len(token), NO_ROW),
        first=np.full(len(token), -1),
    )


def _numbers(walk: WalkContext, at: Starts) -> Paths:
    """Does with most of what wide rows list besides their best ids what becomes of it; returns
    those that are paths of their own, as ``_entries`` does."""
    line, wide = walk.rows.wide_lines(at.row)
    position, row = at.position[line], at.row[line]
    log_probs = walk.rows.wide_entries.log_probs.take(wide, 0)
    mass = np.exp(log_probs + at.weight[line][:, None])
    keys = zip(walk.initial[position].tolist(), _text_before(walk, row).tolist(), strict=True)
    places = walk.numbers.places(
        [("at", *key) for key in keys], lambda index: _answers(walk, position[index], row[index])
    )
    sums, alone = walk.numbers.sums(places, mass, np.zeros(0, np.int64))
    out, lost, settled = sums.answer == RULED_OUT, sums.answer == LOST, sums.answer >= 0
    at_sum = position[sums.line]
    walk.ledger.rule_out(at_sum[out], sums.mass[out])
    walk.ledger.lose(at_sum[lost], sums.mass[lost])
    walk.ledger.settle(
        at_sum[settled], sums.answer[settled], sums.mass[settled], sums.parts[settled]
    )
    return _not_written(position[alone.line], row[alone.line], alone.token, alone.mass)


def _answers(walk: WalkContext, position: int, row: int) -> Int64:
    """int64 [E]: what all numbers of little mass give at a position, as ``NumberAnswers.places``
    asks for it. A number that may be extended, or gains from the row after it, is a path of its
    own whatever its mass: the rollout may have shown more of it."""
    kinds, ids, states = walk.kinds, walk.numbers.ids, walk.pair.states
    alike = ~(kinds.estimated | kinds.gains_from_row | kinds.inexpressible)[ids]
    answers = np.where(alike, kinds.student_token[ids], ALONE)
    joins = states.may_join(walk.initial[[position]], ids[None])[0]
    joining = np.flatnonzero(alike & joins)
    count = len(joining)
    here = np.full(count, position), np.full(count, row), ids[joining], np.zeros(count)
    joined, fate, answer, _ = _join(walk, _not_written(*here), np.zeros(count, np.bool_))
    given = number_answers(fate, answer)
    given[states.begins_added(joined.state)] = ALONE
    answers[joining] = given
    return answers


def _text_before(walk: WalkContext, row: Int64) -> Int64:
    """int64 [n]: the teacher tokens before the rows; -1 where there is none or no text."""
    before = walk.rows.token_before[row]
    return np.where((before >= 0) & walk.kinds.not_special[before], before, -1)


def _looked_at(walk: WalkContext, paths: Paths) -> Bool:
    """Which entries are looked at where they may join the text before them. In a wide row none is
    too small: hundreds of small ones may have much together."""
    large: Bool = paths.mass >= SIGNIFICANT
    if walk.rows.any_wide:
        large |= walk.rows.wide[paths.row] & (paths.mass > 0)
    return large


def _rows_after(walk: WalkContext, paths: Paths, may_extend: Bool) -> Int64:
    """int64 [n]: the rows after the paths, where they are there and of use; else NO_ROW."""
    after = np.full(len(paths.mass), NO_ROW)
    of_use = walk.kinds.gains_from_row.take(paths.token) | may_extend
    which = np.flatnonzero(of_use & (paths.mass >= SIGNIFICANT))
    after[which] = walk.rows.children(paths.row[which], paths.token[which])
    return after


def _join(walk: WalkContext, paths: Paths, may_extend: Bool) -> tuple[Paths, Fates, Int64, Float64]:
    """(paths, fate, answer, settled) of tokens, once they are written after the text before them.
    settled: float64 [n], what of them is settled already; the paths have the rest."""
    initial = walk.initial[paths.position]
    paths = replace(paths, state=walk.pair.states.step(initial, paths.token))
    # An added token may have begun in the text before.
    begun = walk.pair.states.begins_added(paths.state)
    some = np.flatnonzero(begun & ~paths.have_next_row)
    paths.after[some] = walk.rows.children(paths.row[some], paths.token[some])
    before = _text_before(walk, paths.row)
    whole = paths.mass
    implied, paths = _implied(walk, before, paths)
    settled = whole - paths.mass
    answer = np.where(is_implied(implied), implied, walk.pair.states.answer(paths.state))
    contradicted = (answer == CONTRADICTS) & ~paths.have_next_row
    goes_on = may_extend | begun | paths.have_next_row
    goes_on &= ~is_implied(implied) & ~contradicted
    # What contradicts the student's tokens if the text ends there may be rescued by what
    # follows, and what does not may be contradicted by it.
    ask = (contradicted | goes_on) & ~paths.have_next_row & (implied == NOT_IMPLIED)
    asked, kept = paths.some(ask), np.where(contradicted & (implied != OPEN), 0.0, 1.0)
    kept[ask] = walk.extensions.shares_kept(asked.token, asked.mass, asked.state)
    rescued = contradicted & (kept > 0)
    goes_on &= kept > 0
    answer = np.where(ask & (kept == 0), CONTRADICTS, answer)
    partly = np.flatnonzero((kept > 0) & (kept < 1))
    walk.ledger.rule_out(paths.position[partly], (paths.mass * (1 - kept))[partly])
    paths = replace(paths, mass=np.where(kept > 0, paths.mass * kept, paths.mass))
    fate = fates(paths, answer, ~(goes_on | rescued))
    # Mass on text that the student would have cut in another way: what the teacher's own
    # tokenizer would write so cannot happen here, the rest cannot be expressed.
    out = np.flatnonzero(fate == Fate.RULE_OUT)
    canonical = walk.pair.canonical_pairs.are_canonical(before[out], paths.token[out])
    fate[out[~canonical]] = Fate.LOSE
    # What must follow several spaces was not taken into the teacher's token with them.
    first = np.where(implied == OPEN, paths.token, -1)
    return replace(paths, first=first), fate, answer, settled


def _rule_out_below(walk: WalkContext, at: Starts, mass: Float64, ruled_out: Float64) -> None:
    """Of what lies below the rows' best, rules the part out that was ruled out of the less
    likely half of those that are not too small to be looked at: they are most like it.

    Args:
        mass, ruled_out: float64 [n], of the entries, those of ``_entries`` first.
    """
    shape = len(at.row), walk.rows.ids.shape[1]
    best = shape[0] * shape[1]
    # The last column is the rollout's own token.
    mass, ruled_out = (part[:best].reshape(shape)[:, :-1] for part in (mass, ruled_out))
    seen = mass >= SIGNIFICANT
    if walk.rows.any_wide:
        # Below the best of a wide row is nothing like those of its ids that are wide.
        wide = walk.pair.tables.is_wide[walk.rows.ids[at.row, :-1]]
        seen &= ~(wide & walk.rows.wide[at.row, None])
    less_likely = seen & (np.cumsum(seen, 1) - 1 >= seen.sum(1)[:, None] // 2)
    whole = np.where(less_likely, mass, 0.0).sum(1)
    share = np.where(less_likely, ruled_out, 0.0).sum(1) / np.maximum(whole, SIGNIFICANT)
    below = walk.rows.tail[at.row] * np.exp(at.weight)
    walk.ledger.rule_out(at.position, below * share)


def _implied(walk: WalkContext, before: Int64, paths: Paths) -> tuple[Int64, Paths]:
    """(implied, paths). implied: int64 [n], the student's tokens, or CONTRADICTS, of paths that end
    in several spaces and have no row after them: by the teacher's own cut, else by context-free
    rows (``settle_after_spaces``). OPEN where neither decides and something must follow,
    NOT_IMPLIED elsewhere."""
    implied, _ = walk.pair.implied_by_spaces(paths.state, before, paths.token)
    implied[paths.have_next_row] = NOT_IMPLIED
    return settle_after_spaces(walk, before, paths, implied)


def _act(walk: WalkContext, paths: Paths, fate: Fates, answer: Int64) -> Paths:
    """``act``, and writes what is not written of the paths that are followed."""
    pair, tables = walk.pair, walk.pair.tables
    on = act(paths, fate, answer, walk.ledger, lambda left: tables.student_range[left.token])
    state, new = on.state.copy(), on.state == EMPTY_STATE
    state[new] = pair.states.step(state[new], on.token[new])
    return replace(on, state=state, node=tables.trie_steps(on.node, on.token))
