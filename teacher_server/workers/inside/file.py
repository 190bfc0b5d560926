"""A student's tokenizer.json in its process, where it is parsed once for all that read it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from teacher_proto.errors import InvalidRequestError
from teacher_proto.fingerprint.parts import Fingerprint, content_of, fingerprint_of

from teacher_server.workers.inside.components import check_components, check_sizes


@dataclass(frozen=True)
class StudentFile:
    """A tokenizer.json.

    Attributes:
        content: what it holds, as Python reads it.
        odd: why the tokenizers library cannot read it although Python does; empty where it can.
    """

    content: Mapping[str, Any]
    fingerprint: Fingerprint
    odd: str

    def check(self) -> None:
        """Raises InvalidRequestError for what is not given to the tokenizers library."""
        if self.odd:
            raise InvalidRequestError(
                f"the tokenizer cannot be used: its file is not JSON in UTF-8: {self.odd}"[:500],
                where="tokenizer.json",
                fix="give the file as the tokenizers library itself writes it",
                reason="TOKENIZER_REFUSED",
            )
        check_components(self.content)


def read_file(file: bytes) -> StudentFile:
    """
    Raises:
        ConfigurationError: it has no fingerprint.
        InvalidRequestError: it is too large to be looked at closely.
    """
    odd: list[str] = []

    def noted(name: str) -> float:
        odd.append(f"{name} is no number in JSON")
        return float(name)

    content = content_of(file, noted)
    check_sizes(content)
    fingerprint = fingerprint_of(content)
    assert isinstance(content, dict)  # as all that have a fingerprint
    encoding = json.detect_encoding(file)
    if encoding != "utf-8":
        odd.append(f"its encoding is {encoding}")
    else:
        try:
            file.decode()
        except UnicodeDecodeError as error:
            odd.append(str(error))
    return StudentFile(content, fingerprint, odd[0] if odd else "")
