"""HTTP/2 by hand: what no client library sends."""

from __future__ import annotations

import struct

from benchmarks.attacks.target import bearer

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return (
        struct.pack(">I", len(payload))[1:]
        + bytes([kind, flags])
        + struct.pack(">I", stream)
        + payload
    )


def headers() -> bytes:
    """HPACK, every field a literal that is not indexed."""
    fields = {
        ":method": "POST",
        ":scheme": "http",
        ":path": "/teacher_proto.v1.TeacherScoringService/Score",
        ":authority": "a",
        "te": "trailers",
        "content-type": "application/grpc",
        "authorization": bearer("mallory"),
    }
    return b"".join(
        b"\0" + bytes([len(name)]) + name.encode() + bytes([len(value)]) + value.encode()
        for name, value in fields.items()
    )


def varint(number: int) -> bytes:
    made = bytearray()
    while number > 127:
        made.append(number & 127 | 128)
        number >>= 7
    return bytes([*made, number])
