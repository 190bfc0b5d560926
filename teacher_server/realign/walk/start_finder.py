"""Finds the starts of a rollout's positions.

All of them lie between a position's sync point and the position. Where the rollout's own
encoding has no boundary at the position, or several spaces precede it, the teacher may have
cut that text in other ways: each such past is followed over the rows there are.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from teacher_proto.types import Bool

from teacher_server.realign.pair.layout import Layout
from teacher_server.realign.segmentation.extension_shares import LEAST_ASKED
from teacher_server.realign.segmentation.pair_segmentation import PairSegmentation
from teacher_server.realign.segmentation.pasts import MAX_TEXTS, Past, TeacherPasts
from teacher_server.realign.segmentation.spaces import spaces_before
from teacher_server.realign.walk.masses import true_places
from teacher_server.realign.walk.rows import NO_ROW, TeacherRows
from teacher_server.realign.walk.starts import FoundStarts, StartCollector

Int64 = NDArray[np.int64]
# Natural logarithm of the probability from which a token that the rollout does not take may
# begin another past.
LEAST_LIKELY = float(np.log(LEAST_ASKED))


class _Positions(NamedTuple):
    """The positions asked for of one rollout, and where they stand in the teacher's encoding.

    Attributes:
        begin: int64 [n], offset.
        row: int64 [n], the first row of the rollout's own encoding at or after it.
        last: int64 [n], the last one at or before it.
        sync: int64 [n], the row at the sync point.
    """

    layout: Layout
    rows: TeacherRows
    begin: Int64
    row: Int64
    last: Int64
    sync: Int64

    def text_before(self, index: int) -> bytes:
        """The text between a position's sync point and the position."""
        start = self.layout.teacher_offsets[self.sync[index]]
        return self.layout.data[start : self.begin[index]]


class StartFinder:
    """Finds the starts of one pair's rollouts; what it looked up is kept between them."""

    def __init__(self, pair: PairSegmentation) -> None:
        self._tables = pair.tables
        self._pasts = TeacherPasts(pair)
        self._longer_ranges: dict[bytes, tuple[int, int]] = {}

    def find(
        self, layout: Layout, positions: Int64, initial: Int64, rows: TeacherRows
    ) -> FoundStarts:
        """The starts of the student's positions, int64 [n]; ``initial``: their initial
        states."""
        self._pasts.trim()
        if len(self._longer_ranges) > MAX_TEXTS:
            self._longer_ranges.clear()
        begin = layout.student_offsets[positions]
        row = np.searchsorted(layout.teacher_offsets, begin)
        aligned = layout.teacher_offsets[row] == begin
        last, sync = np.where(aligned, row, row - 1), layout.sync[positions]
        asked = _Positions(layout, rows, begin, row, last, sync)
        starts = StartCollector()
        pasts = self._pasts_of_spaces(asked, initial, aligned)
        inside = self._pasts_inside_tokens(asked, ~aligned, {index for index, _ in pasts})
        self._add_own_ways(inside, asked, starts)
        pasts += inside
        pasts += self._pasts_of_begun(asked)
        self._add_own_rows(np.flatnonzero(aligned), asked, starts)
        begun = set(np.flatnonzero(aligned).tolist())
        for index, past in pasts:
            self._follow(past, index, asked, index not in begun, starts)
            begun.add(index)
        self._add_reaching(asked, starts)
        return starts.found()

    def _pasts_of_spaces(
        self, asked: _Positions, initial: Int64, aligned: Bool
    ) -> list[tuple[int, Past]]:
        """(position, past) of pasts other than the rollout's own, of aligned positions after
        several spaces; where these rule the rollout's own out, ``aligned`` [n] is unset."""
        pasts: list[tuple[int, Past]] = []
        spaces = spaces_before(asked.layout.data, asked.begin)
        for index in np.flatnonzero(aligned & (asked.row > asked.sync) & spaces).tolist():
            own = asked.layout.teacher_ids[asked.sync[index] : asked.row[index]].tolist()
            found = self._pasts.of_spaces(int(initial[index]), asked.text_before(index))
            aligned[index] = any(past.path == own for past in found)
            pasts += [(index, past) for past in found if past.path != own]
        return pasts

    def _pasts_inside_tokens(
        self, asked: _Positions, inside: Bool, but: set[int]
    ) -> list[tuple[int, Past]]:
        """(position, past) of positions inside a teacher token; ``but`` of these."""
        which = [index for index in np.flatnonzero(inside).tolist() if index not in but]
        texts = [asked.text_before(index) for index in which]
        return list(zip(which, self._pasts.of_texts(texts), strict=True))

    def _pasts_of_begun(self, asked: _Positions) -> list[tuple[int, Past]]:
        """(position, past) of positions before which an added token of the teacher may have
        begun that the student spells."""
        pasts: list[tuple[int, Past]] = []
        for start, end in self._tables.teacher.added.begun_in(asked.layout.data):
            low, high = np.searchsorted(asked.begin, [start + 1, end + 1]).tolist()
            for index in range(low, high):
                text = asked.text_before(index)
                pasts += [(index, past) for past in self._pasts.of_begun(text)]
        return list(dict(pasts).items())

    def _add_own_rows(self, which: Int64, asked: _Positions, found: StartCollector) -> None:
        """The rollout's own rows for the positions ``which``, where one of its teacher tokens
        ends: the row there, and the rows before it up to the sync points."""
        row, sync, begin = asked.row[which], asked.sync[which], asked.begin[which]
        zeros = np.zeros(len(which), np.int64)
        found.at.add_all(which, row, np.zeros(len(which)), zeros, zeros, zeros)
        layout, rows = asked.layout, asked.rows
        counts = row - sync
        owner = np.repeat(np.arange(len(which)), counts)
        node = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts) + sync[owner]
        offsets = layout.teacher_offsets
        token = layout.teacher_ids[node].astype(np.int64)
        near = self._tables.longest_with_prefix[token] > begin[owner] - offsets[node]
        owner, node, token = owner[near], node[near], token[near]
        ranks = self._tables.longer_teacher_range[token]
        for index in np.flatnonzero(offsets[node + 1] != begin[owner]).tolist():
            data = layout.data[offsets[node[index]] : begin[owner[index]]]
            ranks[index] = self._longer_range(data)
        some = ranks[:, 0] < ranks[:, 1]
        owner, node, ranks = owner[some], node[some], ranks[some]
        weight = rows.log_likelihood[node] - rows.log_likelihood[row[owner]]
        skip = begin[owner] - offsets[node]
        found.before.add_all(which[owner], node, weight, skip, ranks[:, 0], ranks[:, 1])

    def _add_own_ways(
        self, inside: list[tuple[int, Past]], asked: _Positions, found: StartCollector
    ) -> None:
        """The rollout's own rows before positions inside its teacher tokens, where it is on another
        way than the text before them by itself: "end" and "of", where that ends in "endo"."""
        layout, rows = asked.layout, asked.rows
        for index, past in inside:
            sync, last, end = (int(one[index]) for one in (asked.sync, asked.last, asked.begin))
            own = layout.teacher_ids[sync:last].tolist()
            pairs = zip(own, past.path, strict=False)
            same = next((place for place, (a, b) in enumerate(pairs) if a != b), len(own))
            for row in range(sync + same + 1, last + 1):
                offset = int(layout.teacher_offsets[row])
                low, high = self._longer_range(layout.data[offset:end])
                if low < high:
                    weight = rows.log_likelihood[row] - rows.log_likelihood[last]
                    found.before.add(index, row, weight, end - offset, low, high)

    def _add_reaching(self, asked: _Positions, found: StartCollector) -> None:
        """Pasts that leave the rollout's own encoding with a shorter token and reach across the
        position with the next one: a quote and a bracket are one token, and two when a slash
        follows, which the bracket takes along."""
        layout, rows = asked.layout, asked.rows
        own = len(rows.token_log_probs)
        token = layout.teacher_ids.astype(np.int64)
        lengths, table = self._tables.teacher.lengths, self._tables.teacher.token_bytes
        likely = rows.log_probs[:own, :-1] >= LEAST_LIKELY
        line, place = true_places(likely)
        column = place - line * likely.shape[1]
        ids, first = rows.ids[line, column], self._tables.teacher.first_byte
        some = (ids != token[line]) & (lengths[ids] > 0) & (first[ids] == first[token[line]])
        line, column, ids = line[some], column[some], ids[some]
        values = rows.log_likelihood[line] + rows.log_probs[line, column]
        found_there = zip(line.tolist(), ids.tolist(), values.tolist(), strict=True)
        for row, other, log_prob in found_there:
            start = int(layout.teacher_offsets[row])
            end = start + len(table[other])
            if not layout.data.startswith(table[other], start):
                continue
            if table[other].isspace() and not self._is_apart(layout.data, start, end):
                continue  # in which ways spaces may be cut is told by ``_pasts_of_spaces``
            for index in range(int(np.searchsorted(asked.begin, end, "right")), len(asked.begin)):
                here = int(asked.begin[index])
                reach = self._longer_range(layout.data[end:here])
                if reach[0] == reach[1]:
                    break
                mass = float(np.exp(log_prob - rows.log_likelihood[int(asked.last[index])]))
                if asked.sync[index] > row or mass < LEAST_ASKED:
                    continue
                if (index, row, other) in found.begun:
                    continue
                after = rows.child(row, other)
                if after is None:
                    ranks = self._tables.ranks_of_rests(*reach, here - end)
                    found.missing.add(index, row, other, -1, *reach, mass, *ranks)
                else:
                    found.before.add(index, after, np.log(mass), here - end, *reach)

    def _is_apart(self, data: bytes, start: int, end: int) -> bool:
        """Whether a teacher that merges spaces may write this one by itself, and the word after it
        without."""
        around = data[max(start - 1, 0) : start], data[end : end + 1]
        merges = self._tables.teacher.merges_spaces
        return merges and end - start == 1 and not any(one.isspace() for one in around)

    def _longer_range(self, data: bytes) -> tuple[int, int]:
        """``Vocabulary.longer_range`` of the teacher."""
        found = self._longer_ranges.get(data)
        if found is None:
            found = self._longer_ranges[data] = self._tables.teacher.longer_range(data)
        return found

    def _follow(
        self, past: Past, index: int, asked: _Positions, first: bool, found: StartCollector
    ) -> None:
        """Follows a past, which is encoded by itself, so that nothing depends on what follows;
        its rows exist only as far as they are the rollout's own or were asked for.

        Args:
            index: of the position.
            first: whether no other past of the position has been followed: the rollout's
                own rows before the position count once.
        """
        layout, rows = asked.layout, asked.rows
        row, end = int(asked.sync[index]), int(asked.begin[index])
        offset = int(layout.teacher_offsets[row])
        weight = float(rows.log_likelihood[row] - rows.log_likelihood[int(asked.last[index])])
        for token, then in zip(past.path, [*past.path[1:], -1][: len(past.path)], strict=True):
            if first or row >= len(rows.token_log_probs):
                low, high = self._longer_range(layout.data[offset:end])
                if low < high:
                    found.before.add(index, row, weight, end - offset, low, high)
            log_prob, after = rows.log_prob(row, token), rows.child(row, token)
            if past.begun and then < 0:
                found.begun.add((index, row, token))
            # Of a token that is not listed no row tells how much it has.
            weight += _log(rows.most_unlisted[row]) if log_prob is None else log_prob
            offset += self._tables.teacher.lengths_list[token]
            if log_prob is None or after is None:
                mass, asked_after = float(np.exp(weight)), NO_ROW if log_prob is None else row
                reach = (0, 0)
                if past.begun and then < 0:
                    reach = self._longer_range(layout.data[offset:end])
                found.missing.add(index, asked_after, token, then, *reach, mass, *past.ranks)
                return
            row = after
        if past.begun:
            ranks = self._longer_range(layout.data[offset:end])
            found.before.add(index, row, weight, past.begun, *ranks)
        else:
            found.at.add(index, row, weight, 0, 0, 0)


def _log(mass: float) -> float:
    return float(np.log(max(mass, 1e-300)))
