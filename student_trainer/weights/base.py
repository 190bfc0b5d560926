"""What a row weight is: a class whose fields are its settings, and whose call gives the weight of
each row of one response from what is known of them.

    class Later(RowWeight):
        slope: float = Field(default=0.5, description="...")

        def __call__(self, rows: ResponseRows) -> Float64:
            return 1 + self.slope * rows.places / rows.length

A weight multiplies its row's loss. The mean still divides by the number of rows, except that rows
of weight 0 leave numerator and denominator. Several weights are multiplied.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator
from teacher_proto.errors import LsmError
from teacher_proto.program.settings_types import Settings, called_by_its_name
from teacher_proto.types import Int32

Float64 = NDArray[np.float64]
Int64 = NDArray[np.int64]
# What is only known where a weight says that it needs it: what is read of the teacher's row, and
# what also needs the student's row over the whole vocabulary.
OF_THE_TEACHER = ("entropy", "excess_surprise")
OF_BOTH = ("overlap", "shared_mass", "disagreement")
Fact = Literal["entropy", "excess_surprise", "overlap", "shared_mass", "disagreement", "moved"]


@dataclass(frozen=True)
class ResponseRows:
    """What is known of the n scored tokens of one response. Arrays have one value for each token,
    in order; NaN stands for what is not known of it.

    q is the teacher and π the student that is updated, π_old the student that drew the response.
    π and π_old of a token are at ``rollout.temperature``, all else is at ``loss.temperature``. A
    row's support is that of ``loss.support``; it is known where the row is in the loss, that is,
    neither masked nor without values of the teacher.

    Attributes:
        token_ids: int32 [n], the student's ids.
        length: tokens of the whole response, at least n.
        origin: whether the student wrote the response, or it is an answer of the data.
        log_ratio: float64 [n], log q(y_t) - log π_old(y_t) at the token, nats. NaN where the
            teacher has no value for the token. Of an answer of the data, which no student drew,
            with π in place of π_old.
        facts: those of ``Fact`` that the run's weights need.
    """

    token_ids: Int32
    length: int
    origin: Literal["student", "data"]
    log_ratio: Float64
    facts: Mapping[str, Float64] = field(default_factory=dict)

    @property
    def places(self) -> Int64:
        """int64 [n]: 0 at the response's first token, n - 1 at the last one that is scored."""
        return np.arange(len(self.token_ids))

    @property
    def moved(self) -> Float64:
        """float64 [n]: log π(y_t) - log π_old(y_t), nats: how far the student has moved since it
        drew the token. 0 for an answer of the data. One more product with the head."""
        return self._fact("moved")

    @property
    def entropy(self) -> Float64:
        """float64 [n]: -Σ q̂ log q̂ over the row's support, on which q̂ is renormalised, nats."""
        return self._fact("entropy")

    @property
    def excess_surprise(self) -> Float64:
        """float64 [n]: -log q(y_t) - H_t, nats, with H_t the teacher's entropy over the row's
        support and everything else as one outcome. H_t is what the teacher would expect of -log q,
        less its entropy within the rest: of the teacher's own tokens the mean is 0 or a little
        more. Across tokenizers q(y_t) is certified and may be too small, and this too large."""
        return self._fact("excess_surprise")

    @property
    def overlap(self) -> Float64:
        """float64 [n]: the share of a support's ids that are among as many most likely ids of the
        student. One more product with the head."""
        return self._fact("overlap")

    @property
    def shared_mass(self) -> Float64:
        """float64 [n]: the teacher's probability of these ids."""
        return self._fact("shared_mass")

    @property
    def disagreement(self) -> Float64:
        """float64 [n]: KL(q̂‖π̂), both renormalised on the row's support, nats."""
        return self._fact("disagreement")

    def _fact(self, name: str) -> Float64:
        if name not in self.facts:
            raise LsmError(
                f"a row weight reads {name!r}, which its `needs` does not name",
                where="weights",
                fix=f'add "{name}" to the class\'s needs',
            )
        return self.facts[name]


class RowWeight(Settings):
    """A weight of rows.

    Attributes:
        needs: the facts of ``ResponseRows`` that the weight reads, of those which are not known
            by themselves.
    """

    needs: ClassVar[tuple[Fact, ...]] = ()

    kind: str = ""

    @model_validator(mode="before")
    @classmethod
    def _called_by_its_name(cls, values: Any) -> Any:
        """A class without a kind of its own is called by its dotted name."""
        return called_by_its_name(cls, values)

    def __call__(self, rows: ResponseRows) -> Float64:
        """float64 [n]: the weight of each row, finite and at least 0. What is NaN in ``rows`` may
        be NaN in the weight where the row is not in the loss; a row in the loss has a weight."""
        raise NotImplementedError


def sum_before(values: Float64) -> Float64:
    """float64 [n]: the sum of the values before each one; NaN adds nothing."""
    known = np.where(np.isnan(values), 0.0, values)
    return np.concatenate([np.zeros(1), np.cumsum(known)[:-1]])
