"""Whatever bytes are sent as a JSON body are read or refused: never an error of the server."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from teacher_proto.errors import InvalidRequestError

from teacher_server.http.body import parse_score_body
from teacher_server.http.render import parse_render_body
from tests.server.test_scoring import http_body

READERS = [parse_score_body, parse_render_body]
VALID = json.dumps(http_body()).encode()
# What breaks a body in places where a parser does not look for it.
BROKEN = [b"\\ud83d", b"\\ude00", b"\xed\xa0\xbd", b"\xff", b"\xef\xbb\xbf", b'"', b"\\", b"\x00",
          b"NaN", b"1e999", b"9" * 700, b"9" * 5000, b"[" * 5000, b'{"a":' * 2000,
          b'"' + b"a" * 20_000]  # fmt: skip
pieces = st.binary(max_size=6) | st.sampled_from(BROKEN)


@pytest.mark.parametrize("reader", READERS)
@given(places=st.lists(st.tuples(st.integers(0, len(VALID)), pieces, st.booleans()), max_size=4))
def test_a_broken_body_is_read_or_refused(
    reader: Callable[[bytes | bytearray], object], places: list[tuple[int, bytes, bool]]
) -> None:
    body = bytearray(VALID)
    for place, piece, instead in places:
        body[place : place + (len(piece) if instead else 0)] = piece
    with contextlib.suppress(InvalidRequestError):
        reader(body)


@pytest.mark.parametrize("reader", READERS)
@given(body=st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(
    reader: Callable[[bytes | bytearray], object], body: bytes
) -> None:
    with contextlib.suppress(InvalidRequestError):
        reader(body)
