"""May this token be extended here: be only the beginning of a longer student token?

Where a token hardly ever is, it settles which student token comes; else its mass is open
until the row after it is known. There are three sources, the later ones better: an estimate
from the vocabularies (``static_tables.extension_rates``), the token's context-free row
(``context_free``), and the rows after it earlier in the rollout (``seen``).
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from teacher_proto.types import Bool

from teacher_server.realign.pair.layout import Layout
from teacher_server.realign.pair.tables import EXTENSION_LIMIT
from teacher_server.realign.segmentation.canonical import CONTRADICTS
from teacher_server.realign.segmentation.extension_shares import LEAST_ASKED
from teacher_server.realign.segmentation.kinds import TokenKinds
from teacher_server.realign.segmentation.pair_segmentation import PairSegmentation, is_implied
from teacher_server.realign.segmentation.states import OPEN
from teacher_server.realign.walk.context_free import ContextFreeRows
from teacher_server.realign.walk.masses import SIGNIFICANT
from teacher_server.realign.walk.rows import Float64, TeacherRows
from teacher_server.realign.walk.seen import SeenExtensions

Int64 = NDArray[np.int64]


class Extensions:
    """What may follow the tokens of one walk, wherever that is known from.

    Tokens and masses are those of entries of rows, [n]. A context-free row *counts* for
    entries from LEAST_ASKED on, where it would be asked for: whether other rollouts have
    already asked for one must not matter.
    """

    def __init__(
        self,
        kinds: TokenKinds,
        pair: PairSegmentation,
        layout: Layout,
        rows: TeacherRows,
        sync: Int64,
        context_free: ContextFreeRows | None,
    ) -> None:
        """
        Args:
            sync: the row at each position's sync point.
            context_free: of this teacher and temperature; None to go without.
        """
        self._kinds, self._pair, self._sync = kinds, pair, sync
        self._layout, self._rows = layout, rows
        self._asks = context_free is not None
        self._context_free = context_free or ContextFreeRows(pair.tables)
        self._wanted: list[Int64] = [np.zeros(0, np.int64)]

    @cached_property
    def _seen(self) -> SeenExtensions:
        return SeenExtensions(self._layout, self._rows, self._pair)

    def wanted(self) -> Int64:
        """Ascending: teacher tokens whose context-free rows would have been of use."""
        return np.unique(np.concatenate(self._wanted))

    def may_extend(self, token: Int64, mass: Float64, position: Int64) -> Bool:
        """bool [n]: whether the tokens may be extended at these positions, by the best source
        there is."""
        kinds = self._kinds
        may_extend: Bool = kinds.estimated.take(token)
        asked = np.flatnonzero(mass >= LEAST_ASKED)
        asked = asked[kinds.asked[token[asked]]]
        known = asked[self._known(token[asked], mass[asked])]
        shares = self._context_free.extension_share[token[known]]
        may_extend[known] = (shares > EXTENSION_LIMIT) | kinds.single_space[token[known]]
        seen = np.flatnonzero((mass >= SIGNIFICANT) & self._seen.may_correct(may_extend, token))
        may_extend[seen] = self._seen.corrected(
            may_extend[seen], ~kinds.asked[token[seen]], token[seen], self._sync[position[seen]]
        )
        return may_extend

    def rests_may_extend(self, token: Int64, mass: Float64, skip: Int64) -> Bool:
        """bool [n]: ``ContextFreeRows.rests_may_extend``, and where the row is not known or does
        not count True of added tokens alone."""
        known = self._known(token, mass)
        may_extend: Bool = self._pair.tables.teacher.is_spelt.take(token)
        which = np.flatnonzero(known)
        some = token[which], skip[which]
        may_extend[which] = self._context_free.rests_may_extend(*some, self._pair)
        return may_extend

    def resegmented(self, token: Int64, mass: Float64) -> Bool:
        """bool [n]: as in ``ContextFreeRows``, and False where the row is not known or does
        not count."""
        resegmented = mass >= LEAST_ASKED
        counts = np.flatnonzero(resegmented)
        resegmented[counts] = self._context_free.resegmented[token[counts]]
        return resegmented

    def shares_kept(self, token: Int64, mass: Float64, state: Int64) -> Float64:
        """float64 [n]: ``ContextFreeRows.shares_kept``, and 0 or 1 where it is hardly more or
        less, or the row is not known or does not count."""
        states = self._pair.states
        lost = (states.answer(state) == CONTRADICTS) & ~states.begins_added(state)
        shares = np.where(lost, 0.0, 1.0)
        which = np.flatnonzero(self._counts(token, mass))
        some = token[which], state[which]
        shares[which] = self._context_free.shares_kept(*some, self._pair)
        shares[shares <= EXTENSION_LIMIT] = 0.0
        shares[shares >= 1 - EXTENSION_LIMIT] = 1.0
        return shares

    def may_move(self, token: Int64, mass: Float64, state: Int64, followed: Bool) -> Bool:
        """bool [n]: whether what follows may move the student's tokens of paths that end with the
        tokens, by ``ContextFreeRows.shares_moved``; where the row is not known or does not count,
        True where an added token has begun, or the path can be ``followed``."""
        may_move = self._pair.states.begins_added(state) | followed
        which = np.flatnonzero(self._known(token, mass))
        shares = self._context_free.shares_moved(token[which], state[which], self._pair)
        may_move[which] = shares > EXTENSION_LIMIT
        return may_move

    def answers_after_spaces(
        self, before: Int64, token: Int64, mass: Float64, state: Int64
    ) -> tuple[Int64, Float64]:
        """(answer, share) [n]: ``ContextFreeRows.answer_after_spaces``; OPEN and 0 where the row
        is not known. Where it does not count, the answer if no line end follows, and 1."""
        answers, shares = np.full(len(token), OPEN), np.zeros(len(token))
        for index in np.flatnonzero(self._known(token, mass)).tolist():
            one = int(before[index]), int(token[index]), int(state[index])
            found = self._context_free.answer_after_spaces(*one, self._pair)
            answers[index], shares[index] = found
        small = np.flatnonzero(mass < LEAST_ASKED)
        small = small[self._pair.canonical_pairs.are_canonical(before[small], token[small])]
        solid = self._pair.before_solid(state[small], token[small])
        known = is_implied(solid)
        answers[small[known]], shares[small[known]] = solid[known], 1.0
        return answers, shares

    def shares_of_next(self, token: Int64, mass: Float64, then: Int64) -> Float64:
        """float64 [n]: ``ContextFreeRows.share_of_next``, and 1 where the row is not known or
        does not count."""
        shares = np.ones(len(token))
        for index in np.flatnonzero(self._known(token, mass)).tolist():
            one = int(token[index]), int(then[index])
            shares[index] = self._context_free.share_of_next(*one)
        return shares

    def shares_of_ranks(self, token: Int64, mass: Float64, low: Int64, high: Int64) -> Float64:
        """float64 [n]: ``ContextFreeRows.share_of_ranks``, and 1 where the row is not known or
        does not count."""
        shares = np.ones(len(token))
        for index in np.flatnonzero(self._known(token, mass)).tolist():
            ranks = int(low[index]), int(high[index])
            shares[index] = self._context_free.share_of_ranks(int(token[index]), *ranks, self._pair)
        return shares

    def _counts(self, token: Int64, mass: Float64) -> Bool:
        """bool [n]: the entry's context-free row is known and counts."""
        counts: Bool = (mass >= LEAST_ASKED) & self._context_free.known[token]
        return counts

    def _known(self, token: Int64, mass: Float64) -> Bool:
        """As ``_counts``; where the row would count and is not known, it is wanted."""
        known = self._counts(token, mass)
        if self._asks:
            self._wanted.append(token[(mass >= LEAST_ASKED) & ~known])
        return known
