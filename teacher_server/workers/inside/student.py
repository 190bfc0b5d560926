"""A student's tokenizer in its process: everything that reads its file or runs it.

The messages that are answered, each with one of its own kind or ``error``:

    open        the file and the given roles -> what is known of it (``Facts`` in ``facts``)
    pair        the tables with a teacher's vocabulary are built, unless they are there
    forget      the tables with a teacher's vocabulary are dropped
    difference  how it differs from a teacher's tokenizer, in a sentence
    encode      texts -> the ids of each
    texts       ids -> the text of each
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from teacher_proto.errors import ConfigurationError, InvalidRequestError, LsmError
from teacher_proto.fingerprint.parts import content_of
from teacher_proto.fingerprint.relation import difference
from teacher_proto.tokenizer_hash import versioned
from teacher_proto.types import Int32, SpecialRole

from teacher_server.frames import Frame, texts_array, texts_of
from teacher_server.realign.pair.cache import TableCache
from teacher_server.realign.pair.vocabulary import Vocabulary
from teacher_server.realign.paired import Pair
from teacher_server.teachers.tokenizer import TextTokenizer
from teacher_server.workers.inside.errors import error_frame
from teacher_server.workers.inside.file import StudentFile, read_file
from teacher_server.workers.inside.vocabularies import student_vocabulary

# What of a tokenizer.json changes no text of its own accord, and is left out of what runs.
NOT_NEEDED = ("post_processor", "truncation", "padding")
# Bytes of the text of one id: an added token's is at most as long.
MAX_TEXT_BYTES = 4096
# Of one answer: bytes of the texts of all its ids, and ids of all its texts.
MAX_ALL_TEXT_BYTES, MAX_IDS = 1 << 26, 1 << 24


@dataclass(frozen=True)
class TeacherSide:
    """A teacher's tokenizer as a student's process has it from the fork.

    Attributes:
        vocabulary: None where no other tokenizer can be realigned to it.
        side: a number of the vocabulary; teachers whose vocabularies are equal share it.
    """

    hash: str
    file: str
    vocabulary: Vocabulary | None
    side: int
    text: TextTokenizer


class Student:
    """One tokenizer, after ``open``."""

    def __init__(self, teachers: Mapping[str, TeacherSide]) -> None:
        self._teachers = teachers
        self._file: StudentFile | None = None
        self._vocabulary: Vocabulary | None = None
        self._tables: Path | None = None
        self._pairs: dict[int, Pair] = {}

    def answer(self, frame: Frame) -> Frame:
        """The answer to a message of one of the kinds above; raises whatever goes wrong."""
        handlers: Mapping[str, Callable[[Frame], Frame]] = {
            "open": self._open,
            "pair": self._build,
            "forget": self._forget,
            "difference": self._difference,
            "encode": self._encode,
            "texts": self._texts,
        }
        return handlers[frame.kind](frame)

    def pair(self, teacher: str) -> Pair:
        """With this teacher's tokenizer; its tables are built where they are not there."""
        known = self._teachers[teacher]
        assert known.vocabulary is not None
        assert self._vocabulary is not None
        if known.side not in self._pairs:
            try:
                tables = TableCache(self._tables).get(self._vocabulary, known.vocabulary)
            except OSError:  # the folder is full, or gone
                tables = TableCache(None).get(self._vocabulary, known.vocabulary)
            self._pairs[known.side] = Pair(tables)
        return self._pairs[known.side]

    def _open(self, frame: Frame) -> Frame:
        folder = frame.text("tables")
        self._tables = Path(folder) if folder else None
        roles = {int(token): SpecialRole[name] for token, name in frame.header["roles"].items()}
        try:
            file = self._file = read_file(frame.array("file", np.uint8, None).tobytes())
        except ConfigurationError as error:
            unreadable = InvalidRequestError(error.what, where=error.where, fix=error.fix)
            return error_frame(unreadable)
        found = versioned(file.fingerprint.digest)
        try:
            file.check()
            own = self._vocabulary = student_vocabulary(file.content, file.fingerprint, roles)
            self.__dict__.pop("_text", None)
            _ = self._text  # the library must have it too
        except BaseException as error:
            refusal = error_frame(error)
            return Frame("error", {**refusal.header, "hash": found})
        self._pairs.clear()
        return Frame(
            "opened",
            {
                "hash": found,
                "ordinary_hash": own.ordinary_hash,
                "vocabulary_size": own.size,
            },
            {
                "special_ids": np.array(list(own.roles), np.int32),
                "roles": np.array([int(role) for role in own.roles.values()], np.int32),
            },
        )

    def _build(self, frame: Frame) -> Frame:
        self.pair(frame.text("teacher"))
        return Frame("pair")

    def _forget(self, frame: Frame) -> Frame:
        self._pairs.pop(self._teachers[frame.text("teacher")].side, None)
        return Frame("forget")

    def _difference(self, frame: Frame) -> Frame:
        teacher = self._teachers[frame.text("teacher")]
        assert self._file is not None
        try:
            found = difference(
                self._file.content,
                content_of(teacher.file),
                lambda: (self._text.encode_each, teacher.text.encode_each),
            )
        except LsmError:
            found = None
        return Frame("difference", {"text": "" if found is None else found.describe()})

    @cached_property
    def _text(self) -> TextTokenizer:
        """For texts, in which special tokens are recognised. Raises InvalidRequestError for a
        file that was refused before the library has seen it."""
        assert self._file is not None
        self._file.check()
        return TextTokenizer(json.dumps({**self._file.content, **dict.fromkeys(NOT_NEEDED)}))

    def _encode(self, frame: Frame) -> Frame:
        ids: list[Int32] = []
        count = 0
        for text in texts_of(frame):
            ids.append(self._text.encode(text))
            count += len(ids[-1])
            if count > MAX_IDS:
                raise _too_much(f"the texts are more than {MAX_IDS} tokens", "send less text")
        lengths = np.array([len(one) for one in ids], np.int64)
        joined = np.concatenate([np.zeros(0, np.int32), *ids])
        return Frame("encode", {}, {"ids": joined, "lengths": lengths})

    def _texts(self, frame: Frame) -> Frame:
        texts: list[str] = []
        known: list[bool] = []
        total = 0
        for token in frame.array("ids", np.int32, None).tolist():
            text = self._text.token_text(token)
            known.append(text is not None)
            texts.append(text or "")
            total += (size := len(texts[-1].encode("utf-8", "surrogatepass")))
            if size > MAX_TEXT_BYTES or total > MAX_ALL_TEXT_BYTES:
                raise _too_much(
                    f"a token's text has more than {MAX_TEXT_BYTES} bytes, or all have more than "
                    f"{MAX_ALL_TEXT_BYTES}",
                    "ask over gRPC, whose replies hold ids alone",
                )
        return Frame("texts", {}, {**texts_array(texts), "known": np.array(known, np.bool_)})


def _too_much(what: str, fix: str) -> InvalidRequestError:
    return InvalidRequestError(what, where="tokenizer_hash", fix=fix, reason="TOKENIZER_REFUSED")
