"""A teacher's rows as the walk reads them: the best M ids of each, and the tree they form.

A *row* is the teacher's distribution over its next token. The rows of a rollout form a
chain, each after one more of its teacher tokens; extra rows, after paths that leave the
rollout, make it a tree.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from teacher_proto.rows import LEAST_BELOW
from teacher_proto.types import Bool, Float32, Int32

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
# Instead of a row: the teacher was not asked for it.
NO_ROW = -1
# Above every teacher token: makes one number of a row and a token.
_SPAN = 1 << 32


@dataclass(frozen=True)
class WideEntries:
    """What wide rows list besides their best ids.

    Attributes:
        ids: int32 [E], ascending, all that a wide row was asked for.
        rows: int64 [n], ascending, the wide rows.
        everywhere: bool [n], the others are wide only for positions inside the rollout's own token
            after the row: for those at the row or before it, that it comes is not known yet.
        log_probs: float32 [n, E], nats; -inf of those that have no probability, or that the row
            lists otherwise.
    """

    ids: Int32
    rows: Int64
    everywhere: Bool
    log_probs: Float32


NOT_WIDE = WideEntries(
    np.zeros(0, np.int32),
    np.zeros(0, np.int64),
    np.zeros(0, np.bool_),
    np.zeros((0, 0), np.float32),
)


@dataclass(frozen=True)
class TeacherRows:
    """m rows of a rollout's teacher tokens, then extra rows after paths that leave it; R in
    all. Row k < m stands after the rollout's first k teacher tokens.

    Attributes:
        ids: int32 [R, M + 1]; the last column is the rollout's own token after the row (-1
            in extra rows), with -inf where it is among the best.
        log_probs: float64 [R, M + 1], nats; -inf in slots that hold nothing.
        token_log_probs: float64 [m], of each of the rollout's teacher tokens.
        log_likelihood: float64 [m + 1], of the rollout's first k teacher tokens.
        floor: float64 [R], the log-probability of the least likely of the row's best: no
            other id is above it.
        extra_rows: (row, teacher token) -> the row after that token, for paths that are not
            the rollout's own.
        wide_entries: what some rows list besides the M + 1 ids.
    """

    ids: Int32
    log_probs: Float64
    token_log_probs: Float64
    log_likelihood: Float64
    floor: Float64
    extra_rows: Mapping[tuple[int, int], int] = field(default_factory=dict)
    wide_entries: WideEntries = NOT_WIDE

    def child(self, row: int, token: int) -> int | None:
        """The row after ``token``, or None where there is none."""
        own = len(self.token_log_probs)
        if row + 1 < own and self.ids[row, -1] == token:
            return row + 1
        return self.extra_rows.get((row, token))

    def children(self, row: Int64, token: Int64) -> Int64:
        """int64 [n]: the row after each token, or NO_ROW."""
        own = len(self.token_log_probs)
        after = np.minimum(row + 1, max(own - 1, 0))
        on_path = (row + 1 < own) & (self.ids[row, -1] == token)
        found = np.where(on_path, after, NO_ROW)
        keys, values = self._extra_row_keys
        if len(keys):
            wanted = row * _SPAN + token
            at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
            found = np.where((keys[at] == wanted) & ~on_path, values[at], found)
        return found

    def children_of(self, row: Int64) -> tuple[Int64, Int64]:
        """(line, token), int64 [k] each: of the rows ``row`` [n], the tokens after which there are
        extra rows."""
        keys, _ = self._extra_row_keys
        begin, end = (np.searchsorted(keys, one * _SPAN) for one in (row, row + 1))
        line = np.repeat(np.arange(len(row)), end - begin)
        before = np.cumsum(end - begin) - (end - begin)
        place = np.arange(len(line)) + (begin - before)[line]
        return line, keys[place] % _SPAN

    @cached_property
    def _extra_row_keys(self) -> tuple[Int64, Int64]:
        pairs = sorted(
            (row * _SPAN + token, after) for (row, token), after in self.extra_rows.items()
        )
        keys, values = np.array(pairs, np.int64).reshape(-1, 2).T
        return keys, values

    def log_prob(self, row: int, token: int) -> float | None:
        """Of a token in a row, nats, -inf where a wide row leaves it out; None for one that is not
        listed, which has the row's floor at most."""
        if row < len(self.token_log_probs) and self.ids[row, -1] == token:
            return float(self.token_log_probs[row])
        for place in (self.ids[row] == token).nonzero()[0].tolist():
            if (log_prob := float(self.log_probs[row, place])) > -np.inf:
                return log_prob
        wide = self.wide_entries
        if not self.wide_inside[row]:
            return None
        place = int(np.searchsorted(wide.ids, token))
        if place == len(wide.ids) or wide.ids[place] != token:
            return None
        return float(wide.log_probs[np.searchsorted(wide.rows, row), place])

    @property
    def any_wide(self) -> bool:
        """Whether any row is wide."""
        return len(self.wide_entries.rows) > 0

    @cached_property
    def wide(self) -> Bool:
        """bool [R]: no id of ``wide_entries`` that the row does not list has a probability."""
        wide = np.zeros(len(self.ids), np.bool_)
        wide[self.wide_entries.rows] = self.wide_entries.everywhere
        return wide

    @cached_property
    def wide_inside(self) -> Bool:
        """bool [R]: ``wide``, for positions inside the rollout's own token after the row."""
        wide = np.zeros(len(self.ids), np.bool_)
        wide[self.wide_entries.rows] = True
        return wide

    def wide_lines(self, row: Int64, *, inside: bool = False) -> tuple[Int64, Int64]:
        """(line, place), int64 [k] each: which of the rows ``row`` [n] are wide, ascending, and
        their places in ``wide_entries``.

        Args:
            inside: for positions inside the rollout's own tokens after these rows.
        """
        line = np.flatnonzero((self.wide_inside if inside else self.wide).take(row))
        return line, np.searchsorted(self.wide_entries.rows, row.take(line))

    @cached_property
    def tail(self) -> Float64:
        """float64 [R]: mass outside the row's ids."""
        listed: Float64 = np.exp(self.log_probs).sum(1)
        wide = self.wide_entries
        # As float32, and summed as float64: the entries of all wide rows are many.
        mass = np.exp(wide.log_probs).sum(1, dtype=np.float64)
        listed[wide.rows] += np.where(wide.everywhere, mass, 0.0)
        return np.maximum(1.0 - listed, 0.0)

    @cached_property
    def most_unlisted(self) -> Float64:
        """float64 [R]: the most that an id can have which the row does not list."""
        return np.minimum(np.exp(self.floor), self.tail)

    @cached_property
    def listed(self) -> Int64:
        """int64 [R]: how many ids the row lists, without those of ``wide_entries``."""
        listed: Int64 = (self.log_probs > -np.inf).sum(1)
        return listed

    @property
    def most_entries(self) -> int:
        """Entries of the row that has most."""
        more = (self.wide_entries.log_probs > -np.inf).sum(1).max(initial=0)
        return int(self.ids.shape[1] + more)

    @cached_property
    def token_before(self) -> Int64:
        """int64 [R]: the teacher token that each row stands after; -1 before the first."""
        steps = sorted((after, token) for (_, token), after in self.extra_rows.items())
        extra = np.array([token for _, token in steps], np.int64)
        own = self.ids[: max(len(self.token_log_probs) - 1, 0), -1]
        first = np.full(len(self.ids) - len(own) - len(extra), -1)
        return np.concatenate([first, own, extra]).astype(np.int64)

    def path(self, row: int) -> tuple[int, list[int]]:
        """(k, tokens): ``row`` stands after the rollout's first k teacher tokens and then
        after these."""
        tokens: list[int] = []
        came_from = {after: step for step, after in self.extra_rows.items()}
        while row >= len(self.token_log_probs):
            row, token = came_from[row]
            tokens.append(token)
        return row, tokens[::-1]


def wide_entries_of(ids: Int32, rows: Int64, log_probs: Float32, listed: Int32) -> WideEntries:
    """The entries of n wide rows.

    Args:
        ids: int32 [E], ascending.
        rows: int64 [n], ascending.
        log_probs: float32 [n, E], of the ids.
        listed: int32 [n, M + 1], the ids that the rows list otherwise, the rollout's own token
            last; some may be negative.
    """
    kept = log_probs > -np.inf
    place = np.minimum(np.searchsorted(ids, listed), len(ids) - 1)
    there = ids[place] == listed
    line, column = np.nonzero(there[:, :-1])
    kept[line, place[line, column]] = False
    below = np.exp(log_probs).sum(1, where=kept, dtype=np.float64)
    own = np.flatnonzero(there[:, -1])
    kept[own, place[own, -1]] = False
    # The engine has decided it for rows whose own token is none of the ids.
    everywhere = ~there[:, -1] | (below >= LEAST_BELOW)
    return WideEntries(ids, rows, everywhere, np.where(kept, log_probs, np.float32(-np.inf)))


def teacher_rows(
    teacher_ids: Int32,
    top_ids: Int32,
    top_log_probs: Float32 | Float64,
    token_log_probs: Float32 | Float64,
    wide: WideEntries = NOT_WIDE,
) -> TeacherRows:
    """The rows of a rollout's m teacher tokens.

    Args:
        teacher_ids: int32 [m].
        top_ids, top_log_probs: [m, M], the best ids of each row, descending; id -1 in slots
            that are not valid.
        token_log_probs: [m], of each teacher token in its row; -inf allowed.
        wide: of rows that list more.
    """
    values = np.where(top_ids >= 0, top_log_probs.astype(np.float64), -np.inf)
    listed = (top_ids == teacher_ids[:, None]).any(1)
    own = token_log_probs.astype(np.float64)
    last = np.where(listed, -np.inf, own)
    floor = np.where(top_ids >= 0, values, np.inf).min(1, initial=np.inf)
    return TeacherRows(
        ids=np.column_stack([np.maximum(top_ids, 0), teacher_ids]).astype(np.int32),
        log_probs=np.column_stack([values, last]),
        token_log_probs=own,
        log_likelihood=np.concatenate([[0.0], np.cumsum(own)]),
        floor=np.where(np.isfinite(floor), floor, 0.0),
        wide_entries=wide,
    )


def with_extra_rows(
    rows: TeacherRows,
    paths: list[tuple[int, int]],
    top_ids: Int32,
    top_log_probs: Float32 | Float64,
) -> TeacherRows:
    """``rows`` and one more after each (row, teacher token) of ``paths``.

    Args:
        top_ids, top_log_probs: [p, M], as in ``teacher_rows``.
    """
    values = np.where(top_ids >= 0, top_log_probs.astype(np.float64), -np.inf)
    count = len(rows.ids)
    none = np.full(len(paths), -np.inf)
    return TeacherRows(
        ids=np.concatenate(
            [rows.ids, np.pad(np.maximum(top_ids, 0), ((0, 0), (0, 1)), constant_values=-1)]
        ),
        log_probs=np.concatenate([rows.log_probs, np.column_stack([values, none])]),
        token_log_probs=rows.token_log_probs,
        log_likelihood=rows.log_likelihood,
        floor=np.concatenate([rows.floor, values.min(1, where=top_ids >= 0, initial=0.0)]),
        extra_rows={**rows.extra_rows, **{path: count + i for i, path in enumerate(paths)}},
        wide_entries=rows.wide_entries,
    )
