"""Bytes to ids by a tokenizer's own rules, whatever the bytes are.

A rollout is any sequence of ids, so its bytes need not be UTF-8, and it may spell out the
text of a special token. The encoder here reads all of them, and decoding its ids always
gives the same bytes back.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from teacher_proto.errors import ConfigurationError
from teacher_proto.program.byte_alphabet import byte_alphabet
from teacher_proto.types import Bool, Int32

# Strings handed to the tokenizer at once, which bounds the memory its results take.
BATCH = 8192
# What Python's surrogateescape turns bytes into that are not UTF-8.
_NOT_UTF8 = "\udc80-\udcff"


@dataclass(frozen=True)
class Encoded:
    """n tokens.

    Attributes:
        ids: int32 [n].
        pretoken_starts: bool [n], a pre-token begins at the token. (A pre-tokenizer cuts
            text into words and the like; BPE merges within these alone.)
        byte_by_byte: bool [n], the token is a single byte of a span that the tokenizer
            itself cannot give back.
    """

    ids: Int32
    pretoken_starts: Bool
    byte_by_byte: Bool


class ByteEncoder:
    """A tokenizer without its normaliser, that reads the text of special tokens as text.

    Of a normaliser only the replacement of spaces by U+2581 is kept, since the vocabulary
    of a SentencePiece model is written with it. Nothing is put before the text.
    """

    def __init__(
        self,
        document: Mapping[str, Any],
        kind: str,
        token_bytes: Sequence[bytes],
        specials: Mapping[int, str],
    ) -> None:
        self._bytes = token_bytes
        self._added: Mapping[bytes, int] = {}
        self._find_added: re.Pattern[bytes] | None = None
        plain = _plain_document(document, kind, specials)
        self._tokenizer = _built(plain)
        # BPE alone, without a pre-tokenizer, for bytes that are not UTF-8.
        bpe_alone = plain | {"normalizer": None, "pre_tokenizer": None, "added_tokens": []}
        self._bpe_alone = _built(bpe_alone) if kind == "byte_level" else None
        self._alphabet = [""] * 256
        for character, byte in byte_alphabet().items():
            self._alphabet[byte] = character
        self._byte_tokens = np.full(256, -1, np.int32)
        for token in range(len(token_bytes) - 1, -1, -1):
            if len(token_bytes[token]) == 1:
                self._byte_tokens[token_bytes[token][0]] = token
        # With byte fallback, a literal U+2581 would come back as a space.
        unfit = _NOT_UTF8 + ("" if kind == "byte_level" else "\u2581")
        self._unfit = re.compile(f"([{unfit}]+)")

    def recognising(self, token_bytes: Sequence[bytes], added: Mapping[bytes, int]) -> ByteEncoder:
        """The same encoder, with ids for these texts, wherever one of them stands in a text:
        the longest where several do. A tokenizer cuts what is between added tokens by itself.

        Args:
            token_bytes: with those of the new ids.
        """
        other = copy.copy(self)
        other._bytes = token_bytes
        other._added = {**self._added, **added}
        texts = sorted(other._added, key=len, reverse=True)
        # What they begin with rules out nearly every place at once.
        first = b"".join(b"\\x%02x" % byte for byte in {text[0] for text in texts})
        either = b"|".join(re.escape(text) for text in texts)
        other._find_added = re.compile(b"((?=[%s])(?:%s))" % (first, either))
        return other

    def _apart(self, data: bytes) -> list[bytes]:
        """The texts of added tokens and what is between them, none of it empty."""
        if self._find_added is None:
            return [data] if data else []
        return [piece for piece in self._find_added.split(data) if piece]

    def decode(self, ids: Iterable[int]) -> bytes:
        """The bytes of ordinary ids, joined."""
        return b"".join(self._bytes[token] for token in ids)

    def encode(self, data: bytes) -> Encoded:
        """Encodes any bytes; decoding the ids gives them back.

        Raises:
            ValueError: the vocabulary has no token for one of the bytes.
        """
        parts = [part for piece in self._apart(data) for part in self._parts(piece)]
        return Encoded(
            np.concatenate([np.zeros(0, np.int32), *(p.ids for p in parts)]),
            np.concatenate([np.zeros(0, np.bool_), *(p.pretoken_starts for p in parts)]),
            np.concatenate([np.zeros(0, np.bool_), *(p.byte_by_byte for p in parts)]),
        )

    def _parts(self, data: bytes) -> Iterator[Encoded]:
        added = self._added.get(data)
        if added is not None:
            yield Encoded(np.array([added], np.int32), np.ones(1, np.bool_), np.zeros(1, np.bool_))
            return
        text = data.decode("utf-8", "surrogateescape")
        for piece in self._unfit.split(text):
            if not piece:
                continue
            span = piece.encode("utf-8", "surrogateescape")
            if not self._unfit.match(piece):
                # encode_batch, unlike encode, releases the interpreter lock.
                (encoding,) = self._tokenizer.encode_batch([piece], add_special_tokens=False)
                ids = encoding.ids
                if self.decode(ids) == span:
                    words = np.array([-1 if w is None else w for w in encoding.word_ids], np.int64)
                    starts = np.ones(len(ids), np.bool_)
                    starts[1:] = words[1:] != words[:-1]
                    yield Encoded(np.array(ids, np.int32), starts, np.zeros(len(ids), np.bool_))
                    continue
            single = self._byte_tokens[np.frombuffer(span, np.uint8)]
            if single.min() < 0:
                raise ValueError("a byte of the text has no token")
            starts = np.zeros(len(single), np.bool_)
            starts[0] = True
            yield Encoded(single, starts, np.ones(len(single), np.bool_))

    def encode_each(self, texts: Sequence[bytes]) -> list[list[int]]:
        """The ids of each text; an empty list where they would not decode to its bytes.

        Bytes that are not UTF-8 are merged by BPE alone, without a pre-tokenizer.
        """
        find = self._find_added
        if find is None or not any(map(find.search, texts)):
            return self._encode_each(texts)
        pieces = [self._apart(text) for text in texts]
        parts = iter(self._encode_each([one for some in pieces for one in some]))
        joined = [[next(parts) for _ in some] for some in pieces]
        return [[t for part in some for t in part] if all(some) else [] for some in joined]

    def _encode_each(self, texts: Sequence[bytes]) -> list[list[int]]:
        """As ``encode_each``, of texts that are an added token's or hold none."""
        results: list[list[int]] = [[]] * len(texts)
        plain: list[tuple[int, str]] = []
        not_utf8: list[tuple[int, str]] = []
        for index, data in enumerate(texts):
            if data in self._added:
                results[index] = [self._added[data]]
                continue
            try:
                plain.append((index, data.decode()))
            except UnicodeDecodeError:
                not_utf8.append((index, "".join(self._alphabet[byte] for byte in data)))
        _fill(results, self._tokenizer, plain)
        if self._bpe_alone is not None:
            _fill(results, self._bpe_alone, not_utf8)
        else:
            for index, _ in not_utf8:
                results[index] = [int(self._byte_tokens[byte]) for byte in texts[index]]
        for index, ids in enumerate(results):
            if min(ids, default=0) < 0 or self.decode(ids) != texts[index]:
                results[index] = []
        return results


def _built(document: Mapping[str, Any]) -> Any:
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(json.dumps(document))
    except Exception as error:  # tokenizers raises plain Exception for what it cannot read
        raise ConfigurationError(
            f"the tokenizer cannot be built: {error}",
            where="tokenizer.json",
            fix="give a file that the tokenizers library reads",
        ) from error


def _fill(results: list[list[int]], tokenizer: Any, texts: list[tuple[int, str]]) -> None:
    """Puts the ids of each (index, text) into ``results`` at its index."""
    for start in range(0, len(texts), BATCH):
        some = texts[start : start + BATCH]
        encodings = tokenizer.encode_batch_fast([t for _, t in some], add_special_tokens=False)
        for (index, _), encoding in zip(some, encodings, strict=True):
            results[index] = encoding.ids


def _plain_document(
    document: Mapping[str, Any], kind: str, specials: Mapping[int, str]
) -> dict[str, Any]:
    """The tokenizer.json without what changes text or recognises special tokens. The other
    added tokens take their own text alone, and no white space beside it."""
    plain = {key: copy.copy(value) for key, value in document.items()}
    plain |= {"truncation": None, "padding": None, "post_processor": None, "decoder": None}
    plain["added_tokens"] = [
        token | {"lstrip": False, "rstrip": False}
        for token in document.get("added_tokens") or ()
        if token["id"] not in specials
    ]
    plain["normalizer"] = None
    if kind == "byte_fallback":
        space = {"type": "Replace", "pattern": {"String": " "}, "content": "\u2581"}
        plain["normalizer"] = space
    plain["pre_tokenizer"] = _without_prefix(document.get("pre_tokenizer"))
    model = plain["model"]
    model["dropout"] = None
    if model.get("unk_token") not in model["vocab"]:
        model["unk_token"] = None
    return plain


def _without_prefix(node: Any) -> Any:
    """The same pre-tokenizer, putting nothing before the text."""
    if isinstance(node, dict):
        changed = {key: _without_prefix(value) for key, value in node.items()}
        if "add_prefix_space" in changed:
            changed["add_prefix_space"] = False
        if changed.get("type") == "Metaspace":
            changed.pop("add_prefix_space", None)
            changed["prepend_scheme"] = "never"
        return changed
    return [_without_prefix(item) for item in node] if isinstance(node, list) else node
