"""How registered tokenizers differ from the teachers', in words."""

from __future__ import annotations

import logging
from collections import OrderedDict

from teacher_proto.errors import LsmError
from teacher_proto.fingerprint.probe import Encode
from teacher_proto.fingerprint.relation import difference

from teacher_server.teachers.tokenizer import TeacherTokenizer, TextTokenizer

log = logging.getLogger(__name__)

# Sentences that are kept, of pairs of a student's and a teacher's tokenizer.
MAX_KEPT = 256


class Differences:
    """Compares each pair of tokenizers once. Not thread-safe."""

    def __init__(self) -> None:
        self._kept: OrderedDict[tuple[str, str], str] = OrderedDict()

    def describe(self, student: str, file: bytes, teacher: TeacherTokenizer) -> str:
        """One sentence, what the student has before what the teacher has; empty where they
        cannot be compared.

        Args:
            student: sha256 of ``file``, the student's tokenizer.json.
        """
        key = student, teacher.hash
        found = self._kept.pop(key, None)
        if found is None:
            found = _describe(file, teacher)
        self._kept[key] = found
        while len(self._kept) > MAX_KEPT:
            self._kept.popitem(last=False)
        return found


def _describe(file: bytes, teacher: TeacherTokenizer) -> str:
    def encodings() -> tuple[Encode, Encode]:
        return TextTokenizer(file).encode_each, teacher.encode_each

    try:
        found = difference(file, teacher.file, encodings)
    except LsmError:
        return ""
    except BaseException as error:
        # What the tokenizers library does with a file it should have refused.
        if type(error).__name__ != "PanicException" and not isinstance(error, Exception):
            raise
        log.info("a tokenizer cannot be compared with a teacher's: %s", error)
        return ""
    return "" if found is None else found.describe()
