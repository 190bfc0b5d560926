"""The walk: each row's mass goes to the student token that its path begins with.

Masses are relative to the last row before or at the position (``paths``).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from teacher_server.realign.context import StudentContext
from teacher_server.realign.layout import Layout
from teacher_server.realign.masses import Collected, Walked, entries, open_entries
from teacher_server.realign.paths import Starts, starts
from teacher_server.realign.resolve import CONTRADICTS, NO_CONTEXT, Question, Resolver
from teacher_server.realign.rows import Float64, TeacherRows
from teacher_server.realign.seen import SeenLeaks
from teacher_server.realign.tables import NO_STATE, ROOT, PairTables
from teacher_server.realign.vocabulary import incomplete_tail

Int64 = NDArray[np.int64]
# An entry with less mass is not looked at one by one: it stays open.
SIGNIFICANT = 1e-4
# Teacher tokens that one student token can be spread over.
MAX_DEPTH = 8


@dataclass(frozen=True)
class _Path:
    """A path that settled nothing and goes on over ``row``."""

    position: int
    row: int
    mass: float
    data: bytes
    state: int
    first: int


class Walker:
    """Walks rollouts of one pair; what it learnt about the pair is kept between them."""

    def __init__(self, tables: PairTables) -> None:
        self.tables = tables
        self._student = StudentContext(tables)
        self._teacher = Resolver(tables.teacher)
        teacher = tables.teacher
        special = np.zeros(teacher.size, np.bool_)
        special[list(teacher.specials)] = True
        mapped = tables.special_to_student
        self._special = special & (mapped >= 0)
        self._lost = (special & (mapped < 0)) | (~special & (tables.phi0 < 0))
        self._leaky = tables.leaky & ~special & ~self._lost
        self._parts = tables.parts & self._leaky
        # The student id of a token that settles it; one table for both kinds.
        self._target = np.where(special, mapped, tables.phi0).astype(np.int64)
        self._ordinary = ~special

    def walk(self, layout: Layout, positions: Int64, rows: TeacherRows) -> Walked:
        """``positions`` int64 [n]: the student tokens whose rows are wanted."""
        count = len(positions)
        got = Collected(count)
        context = self._student.before(layout, positions)
        before, at, unknown = starts(layout, positions, rows, self.tables)
        pending = self._at(at, context, layout.sync[positions], layout, rows, got)
        pending += self._before(before, context, layout, rows, got)
        everything = np.array([[0, len(self.tables.student.order)]], np.int64)
        for position, row, token, mass in unknown.paths:
            one = np.array([position])
            got.leave_open(one, np.array([token]), np.array([mass]), np.array([row]), everything)
            got.total[position] += mass
        for _ in range(MAX_DEPTH):
            if not pending:
                break
            pending = self._beyond(pending, context, rows, got)
        for path in pending:
            self._leave(path, got)
        tail = np.zeros(count)
        floor = np.zeros(count)
        at_position, at_row = np.array(at.position, np.int64), np.array(at.row, np.int64)
        weight = np.exp(np.array(at.weight))
        np.add.at(tail, at_position, rows.tail[at_row] * weight)
        np.maximum.at(floor, at_position, np.exp(rows.floor[at_row]) * weight)
        return Walked(
            settled=entries(got.settled),
            open=open_entries(got.open),
            lost=got.lost,
            total=got.total,
            tail=tail,
            floor=np.minimum(floor, tail),
        )

    def _at(
        self,
        at: Starts,
        context: Int64,
        sync: Int64,
        layout: Layout,
        rows: TeacherRows,
        got: Collected,
    ) -> list[_Path]:
        """Rows at their positions: every token counts."""
        position = np.array(at.position, np.int64)
        row = np.array(at.row, np.int64)
        weight = np.array(at.weight)
        np.add.at(got.total, position, np.exp(weight))
        ids = rows.ids[row].astype(np.int64)
        mass = np.exp(rows.log_probs[row] + weight[:, None])
        joins = self._student.joins(context[position], ids)
        leaky = SeenLeaks(layout, rows, self.tables).leaky(
            self._leaky[ids], self._parts[ids], ids, sync[position], mass >= SIGNIFICANT
        )
        plain = ~(joins | leaky | self._lost[ids]) & (mass > 0)
        which, _ = np.nonzero(plain)
        got.settle(position[which], self._target[ids[plain]], mass[plain])
        lost = self._lost[ids] & (mass > 0)
        np.add.at(got.lost, position[np.nonzero(lost)[0]], mass[lost])
        small = joins & (mass < SIGNIFICANT)
        still = ((leaky & ~joins) | small) & ~lost & (mass > 0)
        asked = joins & ~small & ~lost
        settles = self._ask(position, row, ids, mass, asked, leaky, context, layout, got)
        still[settles] = True
        which, _ = np.nonzero(still)
        alone = ~joins[still]
        goes_on = leaky[still]
        return self._open_or_on(
            position[which], ids[still], mass[still], row[which], alone, goes_on, rows, got
        )

    def _ask(
        self,
        position: Int64,
        row: Int64,
        ids: Int64,
        mass: Float64,
        asked: NDArray[np.bool_],
        leaky: NDArray[np.bool_],
        context: Int64,
        layout: Layout,
        got: Collected,
    ) -> tuple[Int64, Int64]:
        """Tokens that may merge with the text before them; returns the leaky ones among them."""
        line, column = np.nonzero(asked)
        tokens, where, masses = ids[asked], position[line], mass[asked]
        table = self.tables.teacher.token_bytes
        data = [table[token] for token in tokens.tolist()]
        answers = np.array(self._student.answers(context[where], data), np.int64)
        leaks = leaky[asked]
        settled = (answers >= 0) & ~leaks
        got.settle(where[settled], answers[settled], masses[settled])
        against = np.flatnonzero(answers == CONTRADICTS)
        # Mass on text that the student would have written otherwise: what the teacher
        # itself would encode so cannot happen here, the rest is not to be expressed.
        own = layout.teacher_ids
        questions: list[Question] = []
        for index in against.tolist():
            before = int(row[line[index]]) - 1
            follows = 0 <= before < len(own) - 1 and self._ordinary[own[before]]
            questions.append((int(own[before]) if follows else NO_CONTEXT, data[index]))
        for index, answer in zip(against.tolist(), self._teacher.answers(questions), strict=True):
            if answer == tokens[index]:
                got.total[where[index]] -= masses[index]
            else:
                got.lost[where[index]] += masses[index]
        still = (answers >= 0) & leaks
        return line[still], column[still]

    def _open_or_on(
        self,
        position: Int64,
        token: Int64,
        mass: Float64,
        row: Int64,
        alone: NDArray[np.bool_],
        goes_on: NDArray[np.bool_],
        rows: TeacherRows,
        got: Collected,
    ) -> list[_Path]:
        """Goes on where the next row exists; the rest stays open."""
        known = rows.ids[row, -1] == token
        known &= row + 1 < len(rows.own)
        if rows.beyond:
            pairs = zip(row.tolist(), token.tolist(), strict=True)
            known |= np.array([pair in rows.beyond for pair in pairs], np.bool_).reshape(-1)
        known &= goes_on
        stay = ~known
        got.leave_open(
            position[stay],
            token[stay],
            mass[stay],
            row[stay],
            self.tables.bytes_interval[token[stay]],
            np.where(alone[stay], token[stay], -1),
        )
        table = self.tables.teacher.token_bytes
        states = self.tables.steps(np.full(len(token), ROOT), token)
        paths = []
        for index in np.flatnonzero(known).tolist():
            one = int(token[index])
            after = rows.child(int(row[index]), one)
            assert after is not None
            first = one if alone[index] else -1
            paths.append(
                _Path(
                    int(position[index]),
                    after,
                    float(mass[index]),
                    table[one],
                    int(states[index]),
                    first,
                )
            )
        return paths

    def _before(
        self, before: Starts, context: Int64, layout: Layout, rows: TeacherRows, got: Collected
    ) -> list[_Path]:
        """Rows before their positions: tokens that go on beyond the bytes already there."""
        position = np.array(before.position, np.int64)
        row = np.array(before.row, np.int64)
        ids = rows.ids[row]
        rank = self.tables.teacher.rank[ids]
        low, high = np.array(before.low, np.int64), np.array(before.high, np.int64)
        fits = (rank >= low[:, None]) & (rank < high[:, None])
        line, column = np.nonzero(fits)
        mass = np.exp(rows.log_probs[row[line], column] + np.array(before.weight)[line])
        keep = mass >= SIGNIFICANT
        line, column, mass = line[keep], column[keep], mass[keep]
        tokens = ids[line, column].tolist()
        table = self.tables.teacher.token_bytes
        data = [
            table[token][before.skip[at] :] for token, at in zip(tokens, line.tolist(), strict=True)
        ]
        where = position[line]
        answers = self._student.answers(context[where], data)
        paths = []
        for index, answer in enumerate(answers):
            if answer == CONTRADICTS:
                continue
            got.total[where[index]] += mass[index]
            at, start = int(where[index]), int(row[line[index]])
            if not incomplete_tail(data[index]):
                one = where[index : index + 1]
                got.settle(one, np.array([answer]), mass[index : index + 1])
                continue
            after = rows.child(start, tokens[index])
            path = _Path(
                at, -1 if after is None else after, float(mass[index]), data[index], NO_STATE, -1
            )
            if after is None:
                self._leave(path, got, start, tokens[index])
            else:
                paths.append(path)
        return paths

    def _leave(self, path: _Path, got: Collected, row: int = -1, token: int = -1) -> None:
        interval = np.array([self.tables.student.extensions(path.data)], np.int64)
        one = np.array([path.position])
        first = np.array([path.first])
        mass = np.array([path.mass])
        got.leave_open(one, np.array([token]), mass, np.array([row]), interval, first)

    def _beyond(
        self, paths: list[_Path], context: Int64, rows: TeacherRows, got: Collected
    ) -> list[_Path]:
        """Rows after paths that settled nothing; returns the paths that still do not."""
        position = np.array([path.position for path in paths], np.int64)
        row = np.array([path.row for path in paths], np.int64)
        ids = rows.ids[row].astype(np.int64)
        mass = np.exp(rows.log_probs[row]) * np.array([path.mass for path in paths])[:, None]
        last = np.array([path.data[-1] for path in paths], np.int64)
        joins = self._student.joins_byte(last, ids)
        # Whatever does not join ends the student's token with the path's bytes.
        apart = np.where(joins, 0.0, mass).sum(1) + rows.tail[row] * [p.mass for p in paths]
        before = context[position]
        ends = self._student.answers(before, [path.data for path in paths])
        self._close(position, ends, apart, got)
        small = np.where(joins & (mass < SIGNIFICANT), mass, 0.0).sum(1)
        intervals = np.array([self.tables.student.extensions(p.data) for p in paths], np.int64)
        none = np.full(len(paths), -1)
        firsts = np.array([path.first for path in paths], np.int64)
        got.leave_open(position, none, small, none, intervals, firsts)
        line, column = np.nonzero(joins & (mass >= SIGNIFICANT))
        tokens, masses = ids[line, column], mass[line, column]
        table = self.tables.teacher.token_bytes
        path_states = np.array([path.state for path in paths], np.int64)
        states = self.tables.steps(path_states[line], tokens)
        unfinished = self.tables.teacher.ends_inside_character[tokens].copy()
        for index in np.flatnonzero(self.tables.teacher.tail_only[tokens]).tolist():
            data = paths[line[index]].data + table[tokens[index]]
            unfinished[index] = incomplete_tail(data) > 0
        settles = (states == NO_STATE) & ~unfinished
        # Whatever joins and leaves the trie: the text up to here tells.
        lines = line[settles]
        texts = [path.data for path in paths]
        answers = self._student.longer_answers(before, texts, lines, tokens[settles])
        self._close(position[lines], answers, masses[settles], got)
        further: list[_Path] = []
        for index in np.flatnonzero(~settles).tolist():
            path, token = paths[line[index]], int(tokens[index])
            after = rows.child(path.row, token)
            one = _Path(
                path.position,
                -1 if after is None else after,
                float(masses[index]),
                path.data + table[token],
                int(states[index]),
                path.first,
            )
            if after is None:
                self._leave(one, got, path.row, token)
            else:
                further.append(one)
        return further

    def _close(self, position: Int64, answers: list[int], mass: Float64, got: Collected) -> None:
        tokens = np.array(answers, np.int64).reshape(-1)
        fine = tokens != CONTRADICTS
        got.settle(position[fine], tokens[fine], mass[fine])
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
