"""The walk: each row's mass goes to the student token that its path begins with.

Masses are relative to the last row before or at the position (``paths``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from teacher_proto.types import Bool

from teacher_server.realign.pair.layout import Layout
from teacher_server.realign.pair.tables import NO_STATE, ROOT, PairTables
from teacher_server.realign.segmentation.canonical import CONTRADICTS
from teacher_server.realign.segmentation.pair_segmentation import LearntPair, is_told
from teacher_server.realign.segmentation.states import ALONE, OPEN, UNTOLD
from teacher_server.realign.walk.context_free import ContextFreeRows
from teacher_server.realign.walk.extensions import TokenLeaks
from teacher_server.realign.walk.masses import Collected, Walked, entries, open_entries, places
from teacher_server.realign.walk.rows import NO_ROW, Float64, TeacherRows
from teacher_server.realign.walk.seen import SeenLeaks
from teacher_server.realign.walk.starts import StartFinder, Starts, Unknown

Int64 = NDArray[np.int64]
# An entry with a smaller part of its row's or path's mass is not looked at one by one:
# it stays open (inside a teacher token it does not count).
SIGNIFICANT = 1e-4
# Teacher tokens that one student token can be spread over.
MAX_DEPTH = 8


@dataclass(frozen=True)
class _Paths:
    """Arrays of n paths that settle nothing: where each stands, and in which states.

    ``row``: the row after the path. ``token``: the path's last. ``state``: the student's.
    ``trie``: of the prefix trie. ``first``: as in ``Entries``.
    """

    position: Int64
    row: Int64
    token: Int64
    mass: Float64
    state: Int64
    trie: Int64
    first: Int64

    def some(self, which: Bool) -> _Paths:
        return _Paths(*(getattr(self, name)[which] for name in self.__dataclass_fields__))

    def __add__(self, other: _Paths) -> _Paths:
        names = self.__dataclass_fields__
        return _Paths(*(np.concatenate([getattr(self, n), getattr(other, n)]) for n in names))


@dataclass(frozen=True)
class _Asked:
    """Arrays of n entries of rows at their positions."""

    position: Int64
    row: Int64
    token: Int64
    mass: Float64


class Walker:
    """Walks rollouts of one pair; what it learnt about the pair is kept between them."""

    def __init__(self, tables: PairTables) -> None:
        self.tables = tables
        self.pair = LearntPair(tables)
        self.states, self._own_pairs = self.pair.states, self.pair.own_pairs
        self._starts = StartFinder(self.pair)
        teacher = tables.teacher
        special = np.zeros(teacher.size, np.bool_)
        special[list(teacher.specials)] = True
        mapped = tables.special_to_student
        self._lost = (special & (mapped < 0)) | (~special & (tables.phi0 < 0))
        self._goes_on = ~special & ~self._lost
        self._extended = tables.extended & self._goes_on
        self._leaky = tables.leaky & self._goes_on
        self._parts = tables.parts & self._goes_on
        # No token is safe: with what follows, the student may cut it anywhere ("老人" and
        # "在" as "老", "人在"), so the context-free row of every one tells.
        self._asked = self._goes_on & ~self._parts
        # A word takes its space along: a space by itself is written for what comes next.
        self._space = np.array([one == b" " for one in teacher.token_bytes]) & self._extended
        # The student id of a token that settles it; one table for both kinds.
        self._target = np.where(special, mapped, tables.phi0).astype(np.int64)
        self._ordinary = ~special

    def walk(
        self,
        layout: Layout,
        positions: Int64,
        rows: TeacherRows,
        context_free: ContextFreeRows | None,
    ) -> Walked:
        """``positions`` int64 [n]: the student tokens whose rows are wanted."""
        self.states.trim()
        count = len(positions)
        got = Collected(count)
        roots = self.states.before(layout, positions)
        before, at, unknown = self._starts.starts(layout, positions, roots, rows)
        leaks = TokenLeaks(self._leaky, context_free)
        paths = self._at(at, roots, layout.sync[positions], layout, rows, leaks, got)
        paths += self._before(before, roots, rows, leaks, got)
        self._leave_unknown(unknown, leaks, got)
        for _ in range(MAX_DEPTH):
            if not len(paths.mass):
                break
            paths = self._beyond(paths, rows, got)
        nothing = np.full(len(paths.mass), NO_ROW)
        self._leave(paths, nothing, nothing, got)
        tail, floor = np.zeros(count), np.zeros(count)
        weight = np.exp(at.weight)
        np.add.at(tail, at.position, rows.tail[at.row] * weight)
        np.maximum.at(floor, at.position, np.exp(rows.floor[at.row]) * weight)
        return Walked(
            settled=entries(got.settled),
            open=open_entries(got.open),
            lost=got.lost,
            total=got.total,
            tail=tail,
            floor=np.minimum(floor, tail),
            wanted=np.unique(np.concatenate(got.wanted)),
        )

    def _at(
        self,
        at: Starts,
        roots: Int64,
        sync: Int64,
        layout: Layout,
        rows: TeacherRows,
        leaks: TokenLeaks,
        got: Collected,
    ) -> _Paths:
        """Rows at their positions: every token counts."""
        position, row = at.position, at.row
        np.add.at(got.total, position, np.exp(at.weight))
        ids = rows.ids[row].astype(np.int64)
        mass = np.exp(rows.log_probs[row] + at.weight[:, None])
        joins = self.states.joins(roots[position], ids)
        asks = self._asked[ids]
        got.want(leaks.unknown(ids, mass) & asks, ids)
        leaky = np.where(asks, leaks.leaky(ids, mass), self._parts[ids]) | self._space[ids]
        leaky = SeenLeaks(layout, rows, self.pair).leaky(
            leaky, self._parts[ids], ids, sync[position], mass >= SIGNIFICANT
        )
        after = np.full(ids.shape, NO_ROW)
        line, place = places((self._extended[ids] | leaky) & (mass >= SIGNIFICANT))
        after.put(place, rows.children(row[line], ids.take(place)))
        # A row that is there tells more than any estimate.
        goes_on = leaky | (after != NO_ROW)
        some = mass > 0
        lost = self._lost[ids] & some
        line, place = places(lost)
        np.add.at(got.lost, position[line], mass.take(place))
        line, place = places(some & ~(joins | goes_on | lost))
        got.settle(position[line], self._target[ids.take(place)], mass.take(place))
        small = joins & (mass < SIGNIFICANT)
        state = np.full(ids.shape, ALONE)
        line, place = places(joins & ~small & ~lost)
        asked = _Asked(position[line], row[line], ids.take(place), mass.take(place))
        followed = after.take(place) != NO_ROW
        states, told, against, undone = self._ask(asked, followed, roots, rows, leaks, got)
        state.put(place, states)
        # What must follow several spaces was not taken into the teacher's token with them.
        apart = np.zeros(ids.shape, np.bool_)
        apart.put(place, told == OPEN)
        on = (goes_on.take(place) & ~is_told(told)) | undone
        done = ~on & ~against
        answers = np.where(is_told(told), told, self.states.answer(states))
        got.settle(asked.position[done], answers[done], asked.mass[done])
        goes_on.put(place, on & ~against)
        line, place = places(some & ~lost & (small | goes_on))
        alone = ~joins.take(place)
        token, behind, masses = ids.take(place), after.take(place), mass.take(place)
        # A path by itself becomes what the teacher would begin with the token.
        itself = (alone & ~leaks.across(token, masses)) | apart.take(place)
        first = np.where(itself, token, -1)
        where = position[line]
        stay = behind == NO_ROW
        got.leave_open(
            where[stay],
            token[stay],
            masses[stay],
            row[line[stay]],
            self.tables.bytes_interval[token[stay]],
            first[stay],
        )
        on = ~stay
        begun = state.take(place[on])
        new = alone[on]
        begun[new] = self.states.step(begun[new], token[on][new])
        trie = self.tables.steps(np.full(int(on.sum()), ROOT), token[on])
        return _Paths(where[on], behind[on], token[on], masses[on], begun, trie, first[on])

    def _ask(
        self,
        asked: _Asked,
        followed: Bool,
        roots: Int64,
        rows: TeacherRows,
        leaks: TokenLeaks,
        got: Collected,
    ) -> tuple[Int64, Int64, Bool, Bool]:
        """Tokens that may merge with the text before them; ``followed``: their rows are there.

        Returns: (states, told, against, undone), each [n]: their states, what ``_told`` gives
            for them, which of them the text before rules out, and which only as long as nothing
            follows them.
        """
        tokens, where, masses = asked.token, asked.position, asked.mass
        states = self.states.step(roots[where], tokens)
        before = rows.token_before[asked.row]
        before = np.where((before >= 0) & self._ordinary[before], before, -1)
        told = self._told(before, asked, followed, states, leaks)
        # With what follows it may yet be cut as the student has cut it.
        against = (self.states.answer(states) == CONTRADICTS) & ~is_told(told) & ~followed
        undone = against & (told == OPEN)
        asks = against & ~undone
        undone[asks] = leaks.undone(tokens[asks], masses[asks], states[asks], self.pair)
        against &= ~undone
        against |= told == CONTRADICTS
        # Mass on text that the student would have written otherwise: what the teacher
        # itself would encode so cannot happen here, the rest is not to be expressed.
        impossible = self._own_pairs.writes(before[against], tokens[against])
        where, masses = where[against], masses[against]
        np.subtract.at(got.total, where[impossible], masses[impossible])
        np.add.at(got.lost, where[~impossible], masses[~impossible])
        return states, told, against, undone

    def _told(
        self, before: Int64, asked: _Asked, followed: Bool, states: Int64, leaks: TokenLeaks
    ) -> Int64:
        """int64 [n]: the student's tokens, or CONTRADICTS, of paths that end in several spaces
        behind which there is no row: by the teacher's own cut, else by context-free rows. OPEN
        where neither tells and something must follow, UNTOLD elsewhere."""
        told, _ = self.pair.told(states, before, asked.token)
        told[followed] = UNTOLD
        which = np.flatnonzero(self.states.spaces(states) & ~followed & ~is_told(told))
        closed = leaks.closed(
            before[which], asked.token[which], asked.mass[which], states[which], self.pair
        )
        told[which] = np.where(is_told(closed), closed, told[which])
        return told

    def _before(
        self, before: Starts, roots: Int64, rows: TeacherRows, leaks: TokenLeaks, got: Collected
    ) -> _Paths:
        """Rows before their positions: tokens that go on beyond the bytes already there."""
        ids = rows.ids[before.row]
        rank = self.tables.teacher.rank[ids]
        fits = (rank >= before.low[:, None]) & (rank < before.high[:, None])
        line, place = places(fits)
        column = place - line * fits.shape[1]
        mass = np.exp(rows.log_probs[before.row[line], column] + before.weight[line])
        # All of what agrees may be a small part of the row.
        all_of = got.total + np.bincount(before.position[line], mass, len(got.total))
        keep = mass >= SIGNIFICANT * all_of[before.position[line]]
        line, mass = line[keep], mass[keep]
        token = ids[line, column[keep]].astype(np.int64)
        skips = before.skip[line].tolist()
        data = [
            self.tables.teacher.token_bytes[one][skip:]
            for one, skip in zip(token.tolist(), skips, strict=True)
        ]
        position, row = before.position[line], before.row[line]
        state = self.states.enter(roots[position], data)
        # The rest of the token is read as the token with these bytes, where there is one.
        rest = np.array([self.tables.teacher.by_bytes.get(one, -1) for one in data], np.int64)
        extended = (rest >= 0) & self._asked[rest]
        got.want(leaks.unknown(token, mass) & extended, token)
        told = extended & leaks.counts(token, mass)
        told[told] = leaks.rests_go_on(token[told], before.skip[line[told]], self.pair)
        child = rows.children(row, token)
        after = np.where(extended, child, NO_ROW)
        against = (self.states.answer(state) == CONTRADICTS) & (after == NO_ROW)
        undone = against & extended
        undone[undone] = leaks.undone(token[undone], mass[undone], state[undone], self.pair)
        possible = ~against | undone
        on = possible & (self.states.unfinished(state) | told | undone | (after != NO_ROW))
        np.add.at(got.total, position[possible], mass[possible])
        settled = possible & ~on
        got.settle(position[settled], self.states.answer(state[settled]), mass[settled])
        after = child[on]
        trie = self.tables.steps(np.full(len(after), ROOT), np.maximum(rest[on], 0))
        trie = np.where(extended[on], trie, NO_STATE)
        nothing = np.full(len(after), -1)
        paths = _Paths(position[on], after, token[on], mass[on], state[on], trie, nothing)
        ends = after == NO_ROW
        self._leave(paths.some(ends), row[on][ends], token[on][ends], got)
        return paths.some(~ends)

    def _leave_unknown(self, unknown: Unknown, leaks: TokenLeaks, got: Collected) -> None:
        """Of a path that goes on with another token, only the part that does is open."""
        goes_on = unknown.then >= 0
        got.want(leaks.unknown(unknown.token, unknown.mass) & goes_on, unknown.token)
        told = goes_on & leaks.counts(unknown.token, unknown.mass)
        mass = unknown.mass.copy()
        mass[told] *= leaks.shares_of(unknown.token[told], unknown.then[told])
        ranks = np.column_stack([unknown.low, unknown.high])
        got.leave_open(unknown.position, unknown.token, mass, unknown.row, ranks)
        np.add.at(got.total, unknown.position, mass)

    def _leave(self, paths: _Paths, row: Int64, token: Int64, got: Collected) -> None:
        """Leaves paths open; ``row``, ``token``: the step whose row would tell more."""
        intervals = self.states.intervals(paths.state)
        got.leave_open(paths.position, token, paths.mass, row, intervals, paths.first)

    def _beyond(self, paths: _Paths, rows: TeacherRows, got: Collected) -> _Paths:
        """Rows after paths that settled nothing; returns the paths that still do not."""
        states = self.states
        ids = rows.ids[paths.row].astype(np.int64)
        mass = np.exp(rows.log_probs[paths.row]) * paths.mass[:, None]
        joins = states.joins(paths.state, ids)
        # Whatever does not join ends the student's token with the path's bytes.
        apart = np.where(joins, 0.0, mass).sum(1)
        # So, as far as is known, does what is below the row's best; but not behind spaces.
        below = rows.tail[paths.row] * paths.mass
        spaces = states.spaces(paths.state)
        apart += np.where(spaces, 0.0, below)
        cut = states.unfinished(paths.state)
        np.add.at(got.lost, paths.position[cut], apart[cut])  # no text
        ended = states.answer(paths.state)
        whole = np.where(cut, 0.0, apart)
        slight = joins & (mass < SIGNIFICANT * paths.mass[:, None])
        nothing = np.full(len(ids), NO_ROW)
        small = np.where(slight, mass, 0.0).sum(1) + np.where(spaces, below, 0.0)
        got.leave_open(
            paths.position, nothing, small, nothing, states.intervals(paths.state), paths.first
        )
        line, place = places(joins & ~slight)
        token, masses = ids.take(place), mass.take(place)
        state = states.step(paths.state[line], token)
        trie = self.tables.steps(paths.trie[line], token)
        row = paths.row[line]
        after = rows.children(row, token)
        settles = (trie == NO_STATE) & ~states.unfinished(state)
        # Whatever joins and leaves the trie: the text up to here tells, unless a row that
        # is there can tell better.
        told, depends = self.pair.told(state, paths.token[line], token)
        told[after != NO_ROW] = UNTOLD
        settles &= ~(states.covers(state) | states.spaces(state)) | (after == NO_ROW)
        position = paths.position[line]
        answers = states.answer(state)
        # Where the teacher itself writes no such token behind the path, that text is
        # another's: the row's mass stays with the row's token.
        kept = ~spaces[line] & (answers != ended[line])
        kept[kept] = ~self._own_pairs.writes(paths.token[line][kept], token[kept])
        answers = np.where(kept, ended[line], answers)
        answers = np.where(is_told(told), told, answers)
        settles = (settles & ~depends) | is_told(told)
        # Most of it leaves the student's token as it was: one entry a path.
        same = settles & (answers == ended[line])
        whole += np.bincount(line[same], masses[same], len(whole))
        some = whole > 0
        self._close(paths.position[some], ended[some], whole[some], got)
        settled = settles & ~same
        self._close(position[settled], answers[settled], masses[settled], got)
        on = ~settles
        further = _Paths(
            position[on],
            after[on],
            token[on],
            masses[on],
            state[on],
            trie[on],
            nothing[line[on]],
        )
        ends = after[on] == NO_ROW
        self._leave(further.some(ends), row[on][ends], token[on][ends], got)
        return further.some(~ends)

    def _close(self, position: Int64, answers: Int64, mass: Float64, got: Collected) -> None:
        fine = answers != CONTRADICTS
        got.settle(position[fine], answers[fine], mass[fine])
        np.subtract.at(got.total, position[~fine], mass[~fine])


def unsettled_paths(walked: Walked, least: float) -> list[tuple[int, int]]:
    """(row, token) whose row would settle most: one for each position with open mass above
    ``least``, each once, by row."""
    opened = walked.open
    mass = np.bincount(opened.position, opened.mass, len(walked.total))
    share = mass / np.maximum(walked.total, 1e-300)
    usable = (opened.row >= 0) & (opened.token >= 0) & (share[opened.position] > least)
    index = np.flatnonzero(usable)
    index = index[np.lexsort([-opened.mass[index], opened.position[index]])]
    _, first = np.unique(opened.position[index], return_index=True)
    chosen = index[first]
    pairs = zip(opened.row[chosen].tolist(), opened.token[chosen].tolist(), strict=True)
    return sorted(set(pairs))
