"""How often a teacher token goes on to a longer student token.

Where it hardly ever does, the token settles which student token comes; else its mass is
open until the row behind it is known. Three sources, the later ones better: an estimate
from the vocabularies (``tables.leak_rates``), the teacher's row behind the token alone
(``ContextFreeRows``), and the rows behind it earlier in the rollout (``seen``).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from teacher_proto.types import Bool

from teacher_server.realign.pair.tables import SETTLED_LEAK
from teacher_server.realign.segmentation.pair_segmentation import LearntPair
from teacher_server.realign.segmentation.states import OPEN
from teacher_server.realign.walk.context_free import ContextFreeRows
from teacher_server.realign.walk.rows import Float64

Int64 = NDArray[np.int64]
# Mass from which the context-free row of a token is wanted.
LEAST_ASKED = 5e-3


class TokenLeaks:
    """What is known of tokens at large, for entries of rows: ids and masses of one shape.

    Context-free rows count from LEAST_ASKED on, where they are asked for: whether other rollouts
    have asked for one must not matter.
    """

    def __init__(self, estimated: Bool, context_free: ContextFreeRows | None) -> None:
        self._estimated = estimated
        self._context_free = context_free

    def leaky(self, ids: Int64, mass: Float64) -> Bool:
        leaky: Bool = self._estimated.take(ids)
        if self._context_free is not None:
            place, tokens, known = self._asked(ids, mass, self._context_free)
            leaky.put(place[known], self._context_free.leak[tokens[known]] > SETTLED_LEAK)
        return leaky

    def rests_go_on(self, ids: Int64, skip: Int64, pair: LearntPair) -> Bool:
        """bool [n]: ``ContextFreeRows.rest_goes_on`` of tokens whose context-free rows count."""
        assert self._context_free is not None or not len(ids)
        found = [
            self._context_free is not None and self._context_free.rest_goes_on(token, one, pair)
            for token, one in zip(ids.tolist(), skip.tolist(), strict=True)
        ]
        return np.array(found, np.bool_)

    def shares_of(self, ids: Int64, then: Int64) -> Float64:
        """float64 [n]: ``ContextFreeRows.share_of`` of tokens whose context-free rows count."""
        if self._context_free is None:
            return np.ones(len(ids))
        pairs = zip(ids.tolist(), then.tolist(), strict=True)
        return np.array([self._context_free.share_of(*pair) for pair in pairs], np.float64)

    def undone(self, ids: Int64, mass: Float64, state: Int64, pair: LearntPair) -> Bool:
        """bool [n]: ``ContextFreeRows.undone`` of tokens whose context-free rows count."""
        undone = self.counts(ids, mass)
        if self._context_free is not None:
            for index in np.flatnonzero(undone).tolist():
                undone[index] = self._context_free.undone(int(ids[index]), int(state[index]), pair)
        return undone

    def closed(
        self, before: Int64, ids: Int64, mass: Float64, state: Int64, pair: LearntPair
    ) -> Int64:
        """int64 [n]: ``ContextFreeRows.closed`` of tokens whose rows count, else OPEN."""
        closed = np.full(len(ids), OPEN)
        if self._context_free is not None:
            for index in np.flatnonzero(self.counts(ids, mass)).tolist():
                key = int(before[index]), int(ids[index]), int(state[index])
                closed[index] = self._context_free.closed(*key, pair)
        return closed

    def across(self, ids: Int64, mass: Float64) -> Bool:
        """As in ``ContextFreeRows``."""
        across = np.zeros(ids.shape, np.bool_)
        if self._context_free is not None:
            place, tokens, known = self._asked(ids, mass, self._context_free)
            across.put(place[known], self._context_free.across[tokens[known]])
        return across

    def unknown(self, ids: Int64, mass: Float64) -> Bool:
        """Entries whose context-free rows should be asked for."""
        unknown = np.zeros(ids.shape, np.bool_)
        if self._context_free is not None:
            place, _, known = self._asked(ids, mass, self._context_free)
            unknown.put(place, ~known)
        return unknown

    def counts(self, ids: Int64, mass: Float64) -> Bool:
        """Entries whose context-free rows are known and count."""
        counts = np.zeros(ids.shape, np.bool_)
        if self._context_free is not None:
            place, _, known = self._asked(ids, mass, self._context_free)
            counts.put(place, known)
        return counts

    def _asked(
        self, ids: Int64, mass: Float64, context_free: ContextFreeRows
    ) -> tuple[Int64, Int64, Bool]:
        """Places and tokens of the few entries whose rows count, and which are known."""
        place = np.flatnonzero(mass >= LEAST_ASKED)
        tokens = ids.take(place)
        return place, tokens, context_free.known[tokens]
