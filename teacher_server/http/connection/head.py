"""The head of a request: where it ends, how large it may be, and what it may not say."""

from __future__ import annotations

import re

from teacher_proto.errors import InvalidRequestError, LsmError

MAX_HEAD_BYTES = 16 * 1024
MAX_HEADERS = 100
WHERE = "the request's head"

_END = re.compile(rb"\n\r?\n")
_FOLDED = re.compile(rb"\n[ \t]")
_LENGTH = re.compile(rb"(?i)\ncontent-length[ \t]*:([^\r\n]*)")
_ENCODED = re.compile(rb"(?i)\ntransfer-encoding[ \t]*:")
_VERSION = re.compile(rb"^[^\n]* HTTP/1\.[01]\r?\n")


def malformed(what: str, where: str = WHERE) -> LsmError:
    return InvalidRequestError(
        what, where=where, fix="send HTTP/1.1 as RFC 9112 has it", reason="MALFORMED_HTTP"
    )


def take_head(unread: bytearray) -> bytes | None:
    """Takes the next request's head out of ``unread``; None while the rest of it is missing.

    Raises:
        InvalidRequestError: it is larger than a head may be, has too many headers, begins as
            no request does, so that whoever speaks another protocol learns it at once, or
            can be read in two ways.
    """
    while unread.startswith((b"\r", b"\n")):  # after the body of the request before
        del unread[:1]
    if unread and not 0x21 <= unread[0] <= 0x7E:
        raise malformed("it begins with what is no method")
    found = _END.search(unread)
    end = len(unread) if found is None else found.end()
    if end > MAX_HEAD_BYTES:
        raise _too_large(f"it has more than {MAX_HEAD_BYTES} bytes")
    if unread.count(b"\n", 0, end) - 2 > MAX_HEADERS:
        raise _too_large(f"it has more than {MAX_HEADERS} headers")
    if b"\n" in unread and not _VERSION.match(unread):
        raise malformed("its first line is no request of HTTP/1.0 or HTTP/1.1")
    if found is None:
        return None
    head = bytes(unread[:end])
    _check(head)
    del unread[:end]
    return head


def _check(head: bytes) -> None:
    """Refuses what two readers of HTTP may read differently, before it is parsed."""
    if _FOLDED.search(head):
        raise malformed("a header is continued on another line")
    lengths, encoded = _LENGTH.findall(head), _ENCODED.search(head)
    if len(lengths) > 1 or (lengths and b"," in lengths[0]):
        raise malformed("it has more than one Content-Length", "Content-Length")
    if lengths and encoded:
        raise malformed("it has both Content-Length and Transfer-Encoding", "Transfer-Encoding")
    if encoded and b" HTTP/1.0" in head.partition(b"\n")[0]:
        raise malformed("HTTP/1.0 has no Transfer-Encoding", "Transfer-Encoding")


def _too_large(what: str) -> LsmError:
    return InvalidRequestError(
        what,
        where=WHERE,
        fix="send fewer and shorter headers",
        reason="HEADERS_TOO_LARGE",
    )
