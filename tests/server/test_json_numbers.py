"""Numbers of JSON replies and bodies, which are written and checked by slices."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from teacher_proto.errors import InvalidRequestError
from teacher_proto.types import TokenPrompt

from teacher_server.http import convert
from teacher_server.http.body import parse_score_body
from teacher_server.http.convert import read_prompt
from teacher_server.http.models.bodies import SLICE
from teacher_server.http.replies import numbers_json


@pytest.mark.parametrize("count", [0, 1, SLICE, 2 * SLICE + 3])
def test_numbers_that_are_written_by_slices_are_read_as_they_were(count: int) -> None:
    for values in (np.arange(count, dtype=np.float32) / -7, np.arange(count, dtype=np.int32)):
        found = json.loads(numbers_json(values))
        assert found == values.tolist()
        assert [type(one) for one in found] == [type(one) for one in values.tolist()]


@pytest.mark.parametrize("wrong", [np.inf, -np.inf, np.nan])
def test_a_number_that_json_does_not_have_is_not_written(wrong: float) -> None:
    with pytest.raises(ValueError, match="not finite"):
        numbers_json(np.array([0.5, wrong], np.float32))


@pytest.mark.parametrize("wrong", ["1.0", "2147483648", "true", "null", '"1"', "[]"])
@pytest.mark.parametrize("at", [0, SLICE, 3 * SLICE - 1])
def test_a_wrong_id_of_many_is_named_by_its_place(at: int, wrong: str) -> None:
    ids = [str(number) for number in range(3 * SLICE)]
    body = '{"prompt":{"token_ids":[%s]},"continuations":[{"text":"a"}],"top_k":1,"temperature":1}'
    parsed = parse_score_body((body % ",".join(ids)).encode())
    prompt = read_prompt(parsed.prompt, "prompt")
    assert isinstance(prompt, TokenPrompt)
    assert prompt.token_ids.tolist() == list(map(int, ids))
    ids[at] = wrong
    with pytest.raises(InvalidRequestError) as refused:
        parse_score_body((body % ",".join(ids)).encode())
    assert refused.value.where == f"prompt.token_ids[{at}]"


@pytest.mark.parametrize(
    ("count", "width"), [(3 * SLICE + 5, 1), (7, 1000), (2, 2 * SLICE), (3, 0)]
)
def test_lines_become_one_array_by_slices(
    monkeypatch: pytest.MonkeyPatch, count: int, width: int
) -> None:
    """Neither a call for each short line nor one for a long one."""
    slices = []

    class Watched:
        int32 = np.int32
        empty = staticmethod(np.empty)

        @staticmethod
        def fromiter(numbers: Any, dtype: Any, length: int) -> Any:
            slices.append(length)
            return np.fromiter(numbers, dtype, length)

    lines = np.arange(count * width, dtype=np.int32).reshape(count, width)
    monkeypatch.setattr(convert, "np", Watched)
    made = convert._lines(lines.tolist(), "explicit_ids")
    assert made.dtype == np.int32
    assert made.shape == lines.shape
    assert (made == lines).all()
    assert len(slices) == -(-count * width // SLICE)
    assert max(slices, default=0) <= SLICE
