"""What the steps of one walk share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from teacher_server.realign.segmentation.pair_segmentation import PairSegmentation
from teacher_server.realign.walk.extensions import Extensions
from teacher_server.realign.walk.kinds import TokenKinds
from teacher_server.realign.walk.masses import MassLedger
from teacher_server.realign.walk.rows import TeacherRows

Int64 = NDArray[np.int64]


@dataclass(frozen=True)
class WalkContext:
    """One walk over a rollout: what its steps read, and the ledger they write.

    Attributes:
        kinds: of the teacher's tokens.
        pair: how the two tokenizers cut text.
        rows: the teacher's.
        initial: int64 [n], the initial state of each position.
        extensions: which tokens may be extended.
        ledger: the masses found so far.
    """

    kinds: TokenKinds
    pair: PairSegmentation
    rows: TeacherRows
    initial: Int64
    extensions: Extensions
    ledger: MassLedger
