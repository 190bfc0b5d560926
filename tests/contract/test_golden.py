"""Version 1 on the wire: committed bytes, their meaning in JSON beside them."""

from __future__ import annotations

import json

import pytest

from tests.contract.golden_cases import CASES, FOLDER, Case
from tests.support.compare import plain, same

EACH = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@EACH
def test_bytes_decode_to_what_the_json_says(case: Case) -> None:
    decoded = case.decode(case.binary.read_bytes())
    assert plain(decoded) == json.loads(case.readable.read_text(encoding="utf-8"))
    assert same(decoded, case.value)


@pytest.mark.parametrize(
    "case", [c for c in CASES if c.encode is not None], ids=lambda case: case.name
)
def test_values_encode_to_the_same_bytes(case: Case) -> None:
    assert case.encode is not None
    assert case.encode(case.value) == case.binary.read_bytes()


def test_every_file_belongs_to_a_case() -> None:
    expected = {path.name for case in CASES for path in (case.binary, case.readable)}
    assert {path.name for path in FOLDER.iterdir()} == expected
