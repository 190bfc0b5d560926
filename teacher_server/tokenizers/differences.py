"""How registered tokenizers differ from the teachers', in words."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from teacher_proto.errors import InvalidRequestError, LsmError

from teacher_server.frames import Frame
from teacher_server.refusals.errors import compared, realignment_unavailable
from teacher_server.teachers.teacher import Teacher
from teacher_server.workers.pool import Pool
from teacher_server.workers.process import Facts, StudentProcess

# Sentences that are kept, of pairs of a student's file and a teacher's tokenizer.
MAX_KEPT = 256
# Characters of one.
LONGEST = 1 << 16


class Differences:
    """Compares each pair of a file and a teacher's tokenizer once.

    Args:
        seconds: that one comparison may take.
    """

    def __init__(self, pool: Pool, seconds: float) -> None:
        self._pool = pool
        self._seconds = seconds
        self._kept: OrderedDict[tuple[str, str], str] = OrderedDict()

    async def describe(
        self, process: StudentProcess, sha256: str, hash_: str, teachers: Iterable[Teacher]
    ) -> dict[str, str]:
        """A sentence for each teacher whose fingerprint is another, what the student has before
        what the teacher has; empty where they cannot be compared.

        Args:
            sha256, hash_: of the file that the process has opened, and its fingerprint.

        Raises:
            LsmError: the process has ended; see ``StudentProcess.ask``.
        """
        found: dict[str, str] = {}
        for teacher in teachers:
            if teacher.tokenizer.hash == hash_:
                continue
            key = sha256, teacher.tokenizer.hash
            known = self._kept.pop(key, None)
            if known is None:
                known = await self._compared(process, teacher)
            found[teacher.name] = self._kept[key] = known
            while len(self._kept) > MAX_KEPT:
                self._kept.popitem(last=False)
        return found

    async def refusal(
        self, process: StudentProcess, sha256: str, facts: Facts, teachers: list[Teacher]
    ) -> LsmError:
        """The error for a tokenizer that none of these teachers can be asked for."""
        refusal = facts.refusal
        if refusal is not None and refusal.reason != "TOKENIZER_REFUSED":
            return refusal
        differences = await self.describe(process, sha256, facts.hash, teachers)
        if isinstance(refusal, InvalidRequestError):
            return compared(refusal, differences)
        return compared(
            realignment_unavailable(
                "no teacher of this server has this tokenizer", "header.tokenizer_hash"
            ),
            differences,
        )

    async def _compared(self, process: StudentProcess, teacher: Teacher) -> str:
        frame = Frame("difference", {"teacher": teacher.name})
        try:
            answer = await self._pool.ask(process, process.run, frame, self._seconds)
            return answer.text("text", LONGEST)
        except LsmError:
            if process.failed is not None:
                raise
            return ""
