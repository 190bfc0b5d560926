"""Further steps of a walk: the rows after paths that have settled nothing yet.

A token that cannot join its path ends the student's token there, whatever it is: such
tokens are counted together. One that may join it makes a longer path.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from teacher_proto.types import Bool

from teacher_server.realign.pair.static_tables import OFF_TRIE
from teacher_server.realign.segmentation.canonical import CONTRADICTS
from teacher_server.realign.segmentation.number_answers import (
    APART,
    NO_SINGLE,
    NO_SUMS,
    RULED_OUT,
    Single,
    Sums,
)
from teacher_server.realign.segmentation.pair_segmentation import NOT_IMPLIED, is_implied
from teacher_server.realign.segmentation.states import OPEN
from teacher_server.realign.walk.masses import SIGNIFICANT, true_places
from teacher_server.realign.walk.paths import (
    Fate,
    Paths,
    WalkContext,
    act,
    fates,
    number_answers,
    settle_after_spaces,
)
from teacher_server.realign.walk.rows import NO_ROW, Float64

Int64 = NDArray[np.int64]


def read_rows_beyond(walk: WalkContext, paths: Paths) -> Paths:
    """Reads the rows after ``paths``; returns the paths, one token longer, that still settle
    nothing and whose next row is there."""
    states = walk.pair.states
    ids = walk.rows.ids[paths.after].astype(np.int64)
    mass = np.exp(walk.rows.log_probs[paths.after]) * paths.mass[:, None]
    joins = states.may_join(paths.state, ids)
    slight = joins & (mass < SIGNIFICANT * paths.mass[:, None])
    numbers, alone = _numbers(walk, paths)
    cannot_join = np.where(joins, 0.0, mass).sum(1)
    apart = numbers.some(numbers.answer == APART)
    cannot_join += np.bincount(apart.line, apart.mass, len(cannot_join))
    ending = _ending(walk, paths, cannot_join)
    _leave_slight_open(walk, paths, np.where(slight, mass, 0.0).sum(1))
    line, place = true_places(joins & ~slight)
    token, mass = np.append(ids.take(place), alone.token), np.append(mass.take(place), alone.mass)
    line = np.append(line, alone.line)
    longer = _longer(walk, paths, line, token, mass)
    answer, decided, longer = _answers(walk, longer, paths.token.take(line), paths.state.take(line))
    # Most of it leaves the student's token as it was: one entry for each path.
    ended = states.answer(paths.state)
    same = decided & (answer == ended.take(line))
    ending += np.bincount(line, np.where(same, longer.mass, 0.0), len(ending))
    ending += _settle_numbers(walk, paths, numbers, ended)
    _act(walk, replace(paths, mass=ending), ended, np.ones(len(ending), np.bool_), ending == 0)
    return _act(walk, longer, answer, decided, same)


def _numbers(walk: WalkContext, paths: Paths) -> tuple[Sums, Single]:
    """What wide rows after the paths list besides their best ids; lines are places in
    ``paths``."""
    line, wide = walk.rows.wide_lines(paths.after)
    if not len(line):
        return NO_SUMS, NO_SINGLE
    after = paths.some(line)
    mass = np.exp(walk.rows.wide_entries.log_probs.take(wide, 0).astype(np.float64))
    mass *= after.mass[:, None]
    known = zip(after.state.tolist(), after.token.tolist(), after.node.tolist(), strict=True)
    places = walk.numbers.places(
        [("beyond", *key) for key in known],
        lambda index: _number_answers(walk, after.some(np.array([index]))),
    )
    children = walk.numbers.cells_of(*walk.rows.children_of(after.after))
    sums, alone = walk.numbers.sums(places, mass, children)
    return sums._replace(line=line[sums.line]), alone._replace(line=line[alone.line])


def _number_answers(walk: WalkContext, path: Paths) -> Int64:
    """int64 [E]: what all numbers of little mass give after one path, as ``NumberAnswers.places``
    asks for it."""
    ids, states = walk.numbers.ids, walk.pair.states
    joins = np.flatnonzero(states.may_join(path.state, ids[None])[0])
    paths, token = path.some(np.zeros(len(joins), np.int64)), ids[joins]
    longer = replace(
        paths,
        token=token,
        mass=np.zeros(len(joins)),
        state=states.step(paths.state, token),
        node=walk.pair.tables.trie_steps(paths.node, token),
        after=np.full(len(joins), NO_ROW),
    )
    answer, decided, _ = _answers(walk, longer, paths.token, paths.state)
    answers = np.full(len(ids), APART)
    answers[joins] = number_answers(fates(longer, answer, decided), answer)
    return answers


def _settle_numbers(walk: WalkContext, paths: Paths, numbers: Sums, ended: Int64) -> Float64:
    """Settles the sums of numbers that join their paths, or rules them out.

    Args:
        ended: int64 [n], the student's tokens if the text ends with the paths.

    Returns float64 [n]: the mass that leaves these as they are.
    """
    joined = numbers.some(numbers.answer != APART)
    same = joined.answer == ended[joined.line]
    kept, moved = joined.some(same), joined.some(~same)
    out = moved.answer == RULED_OUT
    position = paths.position[moved.line]
    walk.ledger.rule_out(position[out], moved.mass[out])
    walk.ledger.settle(position[~out], moved.answer[~out], moved.mass[~out], moved.parts[~out])
    return np.bincount(kept.line, kept.mass, len(ended)).astype(np.float64)


def _act(walk: WalkContext, paths: Paths, answer: Int64, decided: Bool, but: Bool) -> Paths:
    """``act`` on paths whose student tokens are ``answer`` [n] where ``decided`` [n], without
    those ``but`` [n]."""
    ranges, fate = walk.pair.states.prefix_ranges, fates(paths, answer, decided)
    fate[but] = Fate.NOTHING
    return act(paths, fate, answer, walk.ledger, lambda left: ranges(left.state))


def _ending(walk: WalkContext, paths: Paths, apart: Float64) -> Float64:
    """float64 [n]: the mass that ends the student's token with the path's bytes; after the
    first bytes of a character there is none, and ``apart`` is lost.

    Args:
        apart: float64 [n], of the entries that cannot join the path.
    """
    states = walk.pair.states
    # So, as far as is known, does what is below the row's best; but not after spaces.
    spaces = states.end_in_spaces(paths.state)
    ending = apart + np.where(spaces, 0.0, _below(walk, paths))
    cut = states.inside_character(paths.state)
    walk.ledger.lose(paths.position[cut], ending[cut])  # bytes that are no text
    return np.where(cut, 0.0, ending)


def _leave_slight_open(walk: WalkContext, paths: Paths, slight: Float64) -> None:
    """Leaves open what is not looked at: ``slight``, float64 [n], of the entries that may join
    the path and are too small, and after spaces what is below the row's best. Where the teacher
    writes no more spaces, that is nearly all of words, digits and symbols."""
    states, none = walk.pair.states, np.full(len(slight), NO_ROW)
    spaces = states.end_in_spaces(paths.state)
    mass = slight + np.where(spaces, _below(walk, paths), 0.0)
    ranges = states.prefix_ranges(paths.state)
    solid = np.full(len(slight), NOT_IMPLIED)
    solid[spaces] = walk.pair.before_solid(paths.state[spaces], paths.token[spaces])
    one = (solid == OPEN) & (ranges == walk.pair.tables.student.prefix_range(b" ")).all(1)
    most = np.maximum(walk.rows.most_unlisted[paths.after], SIGNIFICANT) * paths.mass
    listed = walk.rows.listed[paths.after[one]]
    walk.ledger.leave_below(paths.position[one], mass[one], most[one], listed)
    known = is_implied(solid)
    fate = np.where(known, np.int8(Fate.SETTLE), np.int8(Fate.OPEN))
    fate[known & (solid == CONTRADICTS)] = Fate.RULE_OUT
    fate[one | (mass == 0)] = Fate.NOTHING
    act(
        replace(paths, mass=mass, token=none, row=none),
        fate,
        solid,
        walk.ledger,
        lambda left: states.prefix_ranges(left.state),
    )


def _below(walk: WalkContext, paths: Paths) -> Float64:
    """float64 [n]: the mass below the best of the rows after the paths."""
    below: Float64 = walk.rows.tail[paths.after] * paths.mass
    return below


def _longer(walk: WalkContext, paths: Paths, line: Int64, token: Int64, mass: Float64) -> Paths:
    """The paths at ``line`` [n], with one more token each."""
    row = paths.after.take(line)
    return Paths(
        position=paths.position.take(line),
        row=row,
        token=token,
        mass=mass,
        state=walk.pair.states.step(paths.state.take(line), token),
        node=walk.pair.tables.trie_steps(paths.node.take(line), token),
        after=walk.rows.children(row, token),
        first=np.full(len(token), -1),
    )


def _may_grow(walk: WalkContext, paths: Paths) -> Bool:
    """bool [n]: some student token begins with all of the path's bytes and is longer. Of teachers
    that merge spaces alone: a path that begins inside such a token has not the tokens that the
    teacher itself begins the longer one with, by which the trie knows it."""
    if not walk.pair.tables.teacher.merges_spaces:
        return np.zeros(len(paths.mass), np.bool_)
    answer, states = walk.pair.states.answer(paths.state), walk.pair.states
    grows: Bool = walk.pair.tables.student_has_longer[np.maximum(answer, 0)]
    return grows & states.answer_covers(paths.state)


def _answers(
    walk: WalkContext, paths: Paths, before: Int64, state_before: Int64
) -> tuple[Int64, Bool, Paths]:
    """(answer, decided, paths), [n] each: the student's tokens, or CONTRADICTS, whether nothing
    that follows the paths can change them, and the paths without what is settled already.

    Args:
        before, state_before: int64 [n], the paths' tokens before their last, and the states
            with these.
    """
    pair, states, state = walk.pair, walk.pair.states, paths.state
    implied, depends = pair.implied_by_spaces(state, before, paths.token)
    implied[paths.have_next_row] = NOT_IMPLIED
    implied, paths = settle_after_spaces(walk, before, paths, implied)
    # What joins and leaves the trie is settled by the text up to here, unless a row that is
    # there can decide better.
    covers, begun = states.answer_covers(state), states.begins_added(state)
    spaces = states.end_in_spaces(state)
    may_move = covers | spaces | begun
    goes_on = (paths.node != OFF_TRIE) | states.inside_character(state) | depends
    goes_on |= may_move & paths.have_next_row
    # The end of a run of symbols, or of a word, may have its beginning cut in another way: what
    # the teacher writes after the path's token shows whether it does.
    unsure = ~(goes_on | is_implied(implied) | spaces) & (begun | ~covers | _may_grow(walk, paths))
    ask = np.flatnonzero(unsure & walk.kinds.asked[paths.token])
    asked = paths.some(ask)
    goes_on[ask] = walk.extensions.may_move(
        asked.token, asked.mass, asked.state, asked.have_next_row
    )
    # Where the teacher's own tokenizer writes no such token after the path, that text is
    # another path's: the row's mass stays with the path's token.
    answer, ended = states.answer(state), states.answer(state_before)
    kept = (answer != ended) & ~states.end_in_spaces(state_before)
    kept[kept] = ~pair.canonical_pairs.are_canonical(before[kept], paths.token[kept])
    answer = np.where(kept, ended, answer)
    sure = is_implied(implied)
    return np.where(sure, implied, answer), sure | ~goes_on, paths
