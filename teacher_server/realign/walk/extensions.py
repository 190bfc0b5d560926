"""Which teacher tokens may be extended: be only the beginning of a longer student token.

Where a token hardly ever is, it settles which student token comes; else its mass is open
until the row after it is known. There are three sources, the later ones better: an estimate
from the vocabularies (``static_tables.extension_rates``), the token's context-free row
(``context_free``), and the rows after it earlier in the rollout (``seen``).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from teacher_proto.types import Bool

from teacher_server.realign.pair.tables import EXTENSION_LIMIT
from teacher_server.realign.segmentation.pair_segmentation import PairSegmentation
from teacher_server.realign.segmentation.states import OPEN
from teacher_server.realign.walk.context_free import ContextFreeRows
from teacher_server.realign.walk.rows import Float64

Int64 = NDArray[np.int64]
# Mass from which the context-free row of a token is asked for, and counts.
LEAST_ASKED = 5e-3


class TokenExtensions:
    """What the first two sources know of teacher tokens, for entries of rows: ids and masses
    of one shape.

    A context-free row *counts* for entries from LEAST_ASKED on, where it would be asked
    for: whether other rollouts have already asked for one must not matter.
    """

    def __init__(self, estimated: Bool, context_free: ContextFreeRows | None) -> None:
        """``estimated``: bool [V_T], the tokens that may be extended, by the estimate;
        ``context_free``: None to go without."""
        self._estimated = estimated
        self._context_free = context_free

    def may_extend(self, ids: Int64, mass: Float64) -> Bool:
        """Whether the tokens may be extended: by the context-free row where it is known and
        counts, else by the estimate."""
        may_extend: Bool = self._estimated.take(ids)
        if self._context_free is not None:
            place, tokens, known = self._counting(ids, mass, self._context_free)
            shares = self._context_free.extension_share[tokens[known]]
            may_extend.put(place[known], shares > EXTENSION_LIMIT)
        return may_extend

    def rests_may_extend(self, ids: Int64, skip: Int64, pair: PairSegmentation) -> Bool:
        """bool [n]: ``ContextFreeRows.rest_may_extend`` of tokens that are ``known``."""
        assert self._context_free is not None or not len(ids)
        found = [
            self._context_free is not None and self._context_free.rest_may_extend(token, one, pair)
            for token, one in zip(ids.tolist(), skip.tolist(), strict=True)
        ]
        return np.array(found, np.bool_)

    def shares_of_next(self, ids: Int64, then: Int64) -> Float64:
        """float64 [n]: ``ContextFreeRows.share_of_next`` of tokens that are ``known``."""
        if self._context_free is None:
            return np.ones(len(ids))
        pairs = zip(ids.tolist(), then.tolist(), strict=True)
        return np.array([self._context_free.share_of_next(*pair) for pair in pairs], np.float64)

    def rescued(self, ids: Int64, mass: Float64, state: Int64, pair: PairSegmentation) -> Bool:
        """bool [n]: ``ContextFreeRows.rescues`` where the row is ``known``, else False."""
        rescued = self.known(ids, mass)
        if self._context_free is not None:
            for index in np.flatnonzero(rescued).tolist():
                key = int(ids[index]), int(state[index])
                rescued[index] = self._context_free.rescues(*key, pair)
        return rescued

    def answers_after_spaces(
        self, before: Int64, ids: Int64, mass: Float64, state: Int64, pair: PairSegmentation
    ) -> Int64:
        """int64 [n]: ``ContextFreeRows.answer_after_spaces`` where the row is ``known``, else
        OPEN."""
        answers = np.full(len(ids), OPEN)
        if self._context_free is not None:
            for index in np.flatnonzero(self.known(ids, mass)).tolist():
                key = int(before[index]), int(ids[index]), int(state[index])
                answers[index] = self._context_free.answer_after_spaces(*key, pair)
        return answers

    def resegmented(self, ids: Int64, mass: Float64) -> Bool:
        """As in ``ContextFreeRows`` where the row is ``known``, else False."""
        resegmented = np.zeros(ids.shape, np.bool_)
        if self._context_free is not None:
            place, tokens, known = self._counting(ids, mass, self._context_free)
            resegmented.put(place[known], self._context_free.resegmented[tokens[known]])
        return resegmented

    def should_ask(self, ids: Int64, mass: Float64) -> Bool:
        """Entries whose context-free rows would count and are not known."""
        unknown = np.zeros(ids.shape, np.bool_)
        if self._context_free is not None:
            place, _, known = self._counting(ids, mass, self._context_free)
            unknown.put(place, ~known)
        return unknown

    def known(self, ids: Int64, mass: Float64) -> Bool:
        """Entries whose context-free rows count and are known."""
        found = np.zeros(ids.shape, np.bool_)
        if self._context_free is not None:
            place, _, known = self._counting(ids, mass, self._context_free)
            found.put(place, known)
        return found

    def _counting(
        self, ids: Int64, mass: Float64, context_free: ContextFreeRows
    ) -> tuple[Int64, Int64, Bool]:
        """The few entries whose context-free rows count: places in the flattened arrays,
        tokens, and whether the row is known."""
        place = np.flatnonzero(mass >= LEAST_ASKED)
        tokens = ids.take(place)
        return place, tokens, context_free.known[tokens]
