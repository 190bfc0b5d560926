"""Texts in a student's tokens: what its process says of them is checked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from teacher_proto.types import Int32

from teacher_server.frames import Frame, FrameError, texts_array, texts_of
from teacher_server.workers.pool import Pool
from teacher_server.workers.process import StudentProcess

# Seconds of a processor that texts may take: in any case, and for each megabyte.
BASE_SECONDS, SECONDS_PER_MEGABYTE = 10.0, 5.0


async def encode(
    pool: Pool, process: StudentProcess, run: str, texts: Sequence[str], vocabulary_size: int
) -> list[Int32]:
    """The ids of each text, int32 [L], below ``vocabulary_size``; raises as ``Pool.ask``."""
    answer = await _ask(pool, process, run, Frame("encode", {}, dict(texts_array(list(texts)))))
    try:
        ids = answer.array("ids", np.int32, None)
        lengths = answer.array("lengths", np.int64, len(texts))
        if (lengths < 0).any() or int(lengths.sum()) != len(ids):
            raise FrameError("ids of another number than it says")
        if ids.min(initial=0) < 0 or ids.max(initial=0) >= vocabulary_size:
            raise FrameError("an id that the tokenizer has not")
    except FrameError:
        raise pool.distrust(process, run) from None
    return np.split(ids, np.cumsum(lengths)[:-1]) if texts else []


async def token_texts(
    pool: Pool, process: StudentProcess, run: str, ids: Int32
) -> dict[int, str | None]:
    """The text of each id; None for an id that no token has. Raises as ``Pool.ask``."""
    answer = await _ask(pool, process, run, Frame("texts", {}, {"ids": ids}))
    try:
        texts, known = texts_of(answer), answer.array("known", np.bool_, len(ids))
        if len(texts) != len(ids):
            raise FrameError("texts of another number than was asked for")
    except FrameError:
        raise pool.distrust(process, run) from None
    each = zip(ids.tolist(), texts, known.tolist(), strict=True)
    return {token: text if has else None for token, text, has in each}


async def _ask(pool: Pool, process: StudentProcess, run: str, frame: Frame) -> Frame:
    seconds = BASE_SECONDS + SECONDS_PER_MEGABYTE * frame.nbytes / 2**20
    return await pool.ask(process, run, frame, seconds)
