"""What a teacher gives for the scored tokens of one continuation: the parts of its rows.

R rows, K ids of a support, E explicit ids. Log-probabilities are natural logarithms of
the full-vocabulary softmax at the request's temperature (v1/score.proto).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
T = TypeVar("T")

# The arrays of each part by their names in v1/score.proto, in the order of its attributes.
SUPPORT = ("top_ids", "top_log_probs", "valid_counts")
SAMPLED = ("sampled_log_probs", "sampled_valid")
LOG_TAIL = ("log_tail", "log_tail_valid")
EXPLICIT = ("explicit_log_probs", "explicit_valid")


def required(part: T | None, name: str) -> T:
    """``part``, which has to be there.

    Raises:
        LookupError: it is not there.
    """
    if part is None:
        raise LookupError(f"the {name} is missing here")
    return part


@dataclass(frozen=True)
class Values:
    """float32 ``values``, which mean something where the bool ``valid`` is True and are 0
    elsewhere; both of one shape."""

    values: NDArray[np.float32]
    valid: NDArray[np.bool_]


@dataclass(frozen=True)
class Support:
    """The most likely ids of each row.

    Attributes:
        ids: int32 [R, K], descending by log-probability, ties by lower id.
        log_probs: float32 [R, K].
        counts: int32 [R]; slots from it on hold id -1, log-probability 0.
    """

    ids: NDArray[np.int32]
    log_probs: NDArray[np.float32]
    counts: NDArray[np.int32]

    @property
    def valid(self) -> NDArray[np.bool_]:
        """bool [R, K]: the slots that hold an id."""
        return np.arange(self.ids.shape[1], dtype=np.int32) < self.counts[:, None]


@dataclass(frozen=True)
class Rows:
    """R rows; a part that was not asked for is None.

    Attributes:
        support: [R, K].
        sampled: [R], of the row's own token.
        log_tail: [R], logarithm of the mass outside the support; not valid where
            nothing is left there.
        explicit: [R, E], in the order of the ids that were asked for; not valid in a
            slot that asked for nothing.
    """

    support: Support | None = None
    sampled: Values | None = None
    log_tail: Values | None = None
    explicit: Values | None = None

    def arrays(self) -> dict[str, Array]:
        """The arrays that are there, by their names in v1/score.proto."""
        found: dict[str, Array] = {}
        if self.support is not None:
            support = (self.support.ids, self.support.log_probs, self.support.counts)
            found.update(zip(SUPPORT, support, strict=True))
        for names, part in (
            (SAMPLED, self.sampled),
            (LOG_TAIL, self.log_tail),
            (EXPLICIT, self.explicit),
        ):
            if part is not None:
                found.update(zip(names, (part.values, part.valid), strict=True))
        return found

    @classmethod
    def of(cls, arrays: Mapping[str, Array]) -> Rows:
        """The inverse of ``arrays``.

        Raises:
            KeyError: with the name of an array that its part lacks.
        """
        return cls(
            support=_part(Support, arrays, SUPPORT),
            sampled=_part(Values, arrays, SAMPLED),
            log_tail=_part(Values, arrays, LOG_TAIL),
            explicit=_part(Values, arrays, EXPLICIT),
        )

    def at(self, rows: slice | Array) -> Rows:
        """These of the rows: a slice, int [n] indices or bool [R]."""
        return Rows.of({name: array[rows] for name, array in self.arrays().items()})

    def copy(self) -> Rows:
        """The same rows in arrays of their own. Those of a reply are read-only, over its
        bytes; ``torch.from_numpy`` takes copies without a warning."""
        return Rows.of({name: array.copy() for name, array in self.arrays().items()})

    @classmethod
    def concatenate(cls, parts: Sequence[Rows]) -> Rows:
        """The rows of all parts, one after the other.

        Raises:
            ValueError: ``parts`` is empty, a part lacks what another has, or K or E differ.
        """
        found = [part.arrays() for part in parts]
        if not found or any(arrays.keys() != found[0].keys() for arrays in found):
            raise ValueError("rows with unequal parts have no common form")
        return cls.of({name: np.concatenate([a[name] for a in found]) for name in found[0]})


# A row may be wide where its further ids have LEAST_BELOW together outside its support. Where its
# own token is one of them LEAST_BELOW_OWN is enough, since what begins like it may be little of the
# row; but then it is wide only for positions behind which that token has begun.
LEAST_BELOW, LEAST_BELOW_OWN = 0.01, 0.001


def most_wide(rows: int) -> int:
    """How many of the first ``rows`` rows of a continuation may be wide."""
    return -(-rows // 2)


def may_be_wide(places: NDArray[np.int64], before: int = 0) -> NDArray[np.bool_]:
    """bool [n]: which of the rows at ``places`` (int64 [n], ascending) may be wide, each where that
    makes no more than ``most_wide`` of the rows up to it. No row that follows decides it.

    Args:
        before: how many rows before these are wide.
    """
    found = np.zeros(len(places), np.bool_)
    for index, place in enumerate(places.tolist()):
        if before < most_wide(place + 1):
            found[index], before = True, before + 1
    return found


@dataclass(frozen=True)
class WideRows(Rows):
    """Rows of which some are *wide*: they also have the log-probabilities of E further ids, the
    same for all. They are those of which these ids have LEAST_BELOW or more outside the support, or
    LEAST_BELOW_OWN, as far as they ``may_be_wide``.

    On no wire: ``arrays``, and what is made of them, are without these.

    Attributes:
        wide: int64 [n], ascending, which of the R rows.
        wide_log_probs: float32 [n, E], in the order of the ids that were asked for; -inf where
            there is no probability.
    """

    wide: NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    wide_log_probs: NDArray[np.float32] = field(
        default_factory=lambda: np.zeros((0, 0), np.float32)
    )

    def as_many_wide(self) -> WideRows:
        """The same rows, of which those stay wide that may be, in arrays of their own."""
        kept = may_be_wide(self.wide)
        return replace(self, wide=self.wide[kept], wide_log_probs=self.wide_log_probs[kept])


def _part(make: Callable[..., T], arrays: Mapping[str, Array], names: Sequence[str]) -> T | None:
    """None where none of the arrays is there; KeyError where only some are."""
    for name in names:
        if name in arrays:
            return make(*[arrays[each] for each in names])
    return None
