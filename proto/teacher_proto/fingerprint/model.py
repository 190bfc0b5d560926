"""The canonical model of a tokenizer.json: its settings, its vocabulary and its merges
(docs/fingerprint.md)."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from operator import itemgetter
from typing import Any

from teacher_proto.fingerprint.failure import unreadable
from teacher_proto.program.byte_alphabet import byte_alphabet

# The "vocab" of a model: token -> id, or of a Unigram (token, score) in the order of the ids.
Vocab = Mapping[str, int] | Sequence[tuple[str, float]]
# Settings of BPE with the value that they have when a file leaves them out, or at null.
BPE = {
    "unk_token": None,
    "continuing_subword_prefix": "",
    "end_of_word_suffix": "",
    "fuse_unk": False,
    "byte_fallback": False,
    "ignore_merges": False,
}


def settings(model: Mapping[str, Any], reads_bytes: bool) -> dict[str, Any]:
    """Everything but vocabulary and merges.

    Args:
        reads_bytes: whether the model reads nothing but the byte alphabet.
    """
    own = {name: value for name, value in model.items() if name not in ("vocab", "merges")}
    own = {name: value for name, value in own.items() if value is not None}
    own["type"] = own.get("type") or _type(model)
    if own["type"] == "Unigram":
        own.setdefault("byte_fallback", False)
    if own["type"] == "BPE":
        own = _bpe(own, model.get("vocab"), reads_bytes)
    if "dropout" in own:
        own["dropout"] = binary32(own["dropout"], "model.dropout")
    return own


def vocabulary(model: Mapping[str, Any]) -> list[tuple[Any, Any]]:
    """(id, token) by id; for Unigram (token, score) in its own order."""
    entries = model.get("vocab")
    if isinstance(entries, dict):
        ids = entries.values()
        if not set(map(type, ids)) <= {int} or min(ids, default=0) < 0:
            raise unreadable("has an id in model.vocab that is not a non-negative integer")
        if len(set(ids)) != len(entries):
            raise unreadable("has two tokens of one id in model.vocab")
        return [(index, token) for token, index in sorted(entries.items(), key=itemgetter(1))]
    if isinstance(entries, list) and all(
        isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)
        for entry in entries
    ):
        return [(token, binary32(score, "model.vocab")) for token, score in entries]
    raise unreadable("has no readable model.vocab")


def added_ids(vocab: Vocab, contents: Iterable[str]) -> dict[str, int]:
    """content -> the id that the tokenizers library gives an added token, whatever id the file
    states: that of the vocabulary, or the next one after as many as it has entries.

    Args:
        contents: of all added tokens, in the order of the file.
    """
    if not isinstance(vocab, Mapping):
        vocab = {token: place for place, (token, _) in enumerate(vocab)}
        size = max(vocab.values(), default=-1) + 1
    else:
        size = len(vocab)
    found: dict[str, int] = {}
    for content in dict.fromkeys(contents):
        if content:
            known = vocab.get(content)
            found[content] = size if known is None else known
            size += known is None
    return found


def merges(model: Mapping[str, Any]) -> list[list[str]] | None:
    """The pairs in the order of their ranks; None for a model without merges. A pair that
    is there twice has the later rank."""
    found = model.get("merges")
    if found is None:
        return None
    if not isinstance(found, list):
        raise unreadable("has no readable model.merges")
    pairs = [merge.split(" ") if isinstance(merge, str) else merge for merge in found]
    fine = set(map(type, pairs)) <= {list} and set(map(len, pairs)) <= {2}
    if not fine or not set(map(type, chain.from_iterable(pairs))) <= {str}:
        raise unreadable(f"has a merge that is not a pair: model.merges[{_no_pair(pairs)}]")
    last = dict.fromkeys(map(tuple, reversed(pairs)))
    return pairs if len(last) == len(pairs) else [list(pair) for pair in reversed(last)]


def binary32(number: object, where: str) -> str:
    """The number's IEEE 754 binary32, big end first, as 8 hex digits. The tokenizers library
    computes in binary64, but what it reads and writes again has other last bits."""
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise unreadable(f"has something other than a number in {where}")
    try:
        return struct.pack(">f", number).hex()
    except OverflowError:
        raise unreadable(f"has a number in {where} that is out of range") from None


def _type(model: Mapping[str, Any]) -> str:
    """What the library takes a model for whose file names no type."""
    if "merges" in model:
        return "BPE"
    if isinstance(model.get("vocab"), list):
        return "Unigram"
    return "WordPiece" if "continuing_subword_prefix" in model else "WordLevel"


def _bpe(own: dict[str, Any], vocab: object, reads_bytes: bool) -> dict[str, Any]:
    own = {n: v for n, v in own.items() if n not in BPE or v != BPE[n]}
    if own.get("dropout") == 0:
        del own["dropout"]
    known = vocab if isinstance(vocab, dict) else {}
    affixes = {"continuing_subword_prefix", "end_of_word_suffix"} & set(own)
    if reads_bytes and not affixes and all(c in known for c in byte_alphabet()):
        # Every character has a token: nothing is ever unknown or falls back.
        return {n: v for n, v in own.items() if n not in UNKNOWN and n != "byte_fallback"}
    complete = "byte_fallback" in own and all(f"<0x{b:02X}>" in known for b in range(256))
    if complete or "unk_token" not in own:
        drop = UNKNOWN if complete else ("fuse_unk",)
        return {n: v for n, v in own.items() if n not in drop}
    return own


# What decides about characters without a token.
UNKNOWN = ("unk_token", "fuse_unk")


def _no_pair(pairs: list[Any]) -> int:
    return next(
        index
        for index, pair in enumerate(pairs)
        if not isinstance(pair, list) or len(pair) != 2 or not all(type(p) is str for p in pair)
    )
