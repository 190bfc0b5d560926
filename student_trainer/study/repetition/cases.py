"""The texts in which a loop begins: a question, the beginning of a reasonable answer, and what
is then repeated."""

from __future__ import annotations

import json
from dataclasses import dataclass, fields
from pathlib import Path

from teacher_proto.errors import ConfigurationError


@dataclass(frozen=True)
class Case:
    """Attributes:
    name: for tables.
    question: the user's turn. answer: what stands before the loop.
    loop: the text that is repeated; it should begin with a space, as the tokens of most
        tokenizers do.
    """

    name: str
    question: str
    answer: str
    loop: str


APPLES = "Tom has 3 boxes with 4 apples each and gives away 5 apples. How many are left?"
CASES = (
    Case(
        "doubt",
        APPLES,
        "Tom has 3 boxes with 4 apples each, so he has 12 apples. He gives away 5 apples, so 7 "
        "apples are left.",
        " Wait, let me check that again.",
    ),
    Case(
        "wait",
        APPLES,
        "Tom has 3 boxes with 4 apples each, so he has 12 apples. He gives away 5,",
        " wait,",
    ),
    Case(
        "praise",
        "What is the capital of France?",
        "The capital of France is Paris, on the river Seine.",
        " It is a beautiful city.",
    ),
    Case(
        "list",
        "Which colours does the rainbow have?",
        "The rainbow has the colours red, orange, yellow, green,",
        " blue, green,",
    ),
)


def read_cases(path: Path) -> tuple[Case, ...]:
    """The cases of a JSON Lines file, an object with the fields of ``Case`` on each line.

    Raises:
        ConfigurationError: it cannot be read, is empty, names a case twice, or a line is none.
    """
    names = [field.name for field in fields(Case)]
    fix = f"write one object a line with {', '.join(names)}, each a text that is not empty"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"it cannot be read: {error}", where=f"--cases {path}", fix=fix
        ) from error
    found: list[Case] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            values = json.loads(line)
        except ValueError as error:
            raise ConfigurationError(f"it is no JSON: {error}", where=where, fix=fix) from error
        if not isinstance(values, dict) or set(values) != set(names):
            raise ConfigurationError("it has not these fields alone", where=where, fix=fix)
        if not all(isinstance(text, str) and text for text in values.values()):
            raise ConfigurationError("a field is no text, or empty", where=where, fix=fix)
        if values["name"] in {case.name for case in found}:
            raise ConfigurationError(
                f"there are two cases {values['name']!r}", where=where, fix="rename one"
            )
        found.append(Case(**values))
    if not found:
        raise ConfigurationError("it holds no case", where=f"--cases {path}", fix=fix)
    return tuple(found)
