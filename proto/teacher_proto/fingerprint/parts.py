"""The six parts of a tokenizer.json that decide ids, in their canonical form, and their
digests (docs/fingerprint.md)."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from teacher_proto.fingerprint import components, model
from teacher_proto.fingerprint.failure import unreadable

# Names of the parts as people read them.
PARTS: Mapping[str, str] = {
    "model": "the model's settings",
    "vocabulary": "the vocabulary",
    "merges": "the merges",
    "normalizer": "the normalizer",
    "pre_tokenizer": "the pre-tokenizer",
    "added_tokens": "the added tokens",
}
# What of an added token decides ids, besides id and content. "special" does not.
FLAGS = ("single_word", "lstrip", "rstrip", "normalized")
# Fingerprints that are kept, by the sha256 of the content.
MAX_KEPT = 64


@dataclass(frozen=True)
class Fingerprint:
    """Attributes:
    digests: sha256, in hex, of each of ``PARTS``.
    """

    digests: Mapping[str, str]

    @property
    def digest(self) -> str:
        """sha256, in hex, over all parts."""
        return _sha256(self.digests)

    @property
    def without_added_tokens(self) -> str:
        """``digest`` of the same tokenizer with no added token."""
        return _sha256({**self.digests, "added_tokens": _sha256([])})


_kept: OrderedDict[bytes, Fingerprint] = OrderedDict()
_lock = threading.Lock()


def content_of(tokenizer_json: str | bytes, constant: Callable[[str], float] = float) -> object:
    """What a tokenizer.json holds; raises ConfigurationError for what is not JSON.

    Args:
        constant: makes the number of a name that JSON does not have, such as NaN.
    """
    try:
        return json.loads(tokenizer_json, parse_constant=constant)
    except (ValueError, RecursionError) as failure:
        raise unreadable(f"is not JSON: {failure}") from None


def canonical_parts(content: object) -> dict[str, Any]:
    """The value of each of ``PARTS``; raises ConfigurationError for what has none.

    Args:
        content: of a tokenizer.json (``content_of``).
    """
    if not isinstance(content, dict) or not isinstance(content.get("model"), dict):
        raise unreadable("has no model")
    normalizers = components.normalizers(content.get("normalizer"))
    pre = components.pre_tokenizers(content.get("pre_tokenizer"), normalizers)
    return {
        "model": model.settings(content["model"], components.ends_in_bytes(pre)),
        "vocabulary": model.vocabulary(content["model"]),
        "merges": model.merges(content["model"]),
        "normalizer": normalizers,
        "pre_tokenizer": pre,
        "added_tokens": _added_tokens(
            content.get("added_tokens"), content["model"]["vocab"], bool(normalizers)
        ),
    }


def fingerprint_of(content: object) -> Fingerprint:
    """Of what a tokenizer.json holds; raises ConfigurationError as ``canonical_parts``."""
    parts = canonical_parts(content)
    return Fingerprint({name: _sha256(value) for name, value in parts.items()})


def read_fingerprint(tokenizer_json: str | bytes) -> Fingerprint:
    """Of the content of a tokenizer.json; raises ConfigurationError. Those of the last few
    contents are kept: a large file takes seconds."""
    written = tokenizer_json
    if isinstance(written, str):
        written = written.encode("utf-8", "surrogatepass")
    key = hashlib.sha256(written).digest()
    found = _kept.get(key)
    if found is None:
        found = fingerprint_of(content_of(tokenizer_json))
        with _lock:
            _kept[key] = found
            while len(_kept) > MAX_KEPT:
                _kept.popitem(last=False)
    return found


def _added_tokens(tokens: object, vocab: model.Vocab, normalizes: bool) -> list[list[Any]]:
    """[id, content, *FLAGS] by id. Of several entries of one id the last counts, as in the
    tokenizers library, which leaves out tokens without content."""
    if tokens is None:
        return []
    if not isinstance(tokens, Sequence) or isinstance(tokens, str):
        raise unreadable("has no readable added_tokens")
    for index, token in enumerate(tokens):
        if (
            not isinstance(token, dict)
            or type(token.get("id")) is not int
            or not isinstance(token.get("content"), str)
        ):
            raise unreadable(f"has an added token without id or content: added_tokens[{index}]")
    ids = model.added_ids(vocab, (token["content"] for token in tokens))
    rows = {
        ids[token["content"]]: [token["content"], *(token.get(flag) is True for flag in FLAGS)]
        for token in tokens
        if token["content"]
    }
    found = [[number, *row] for number, row in sorted(rows.items())]
    if not normalizes and len({row[-1] for row in found}) == 1:
        # Without a normalizer the flag only says which tokens are looked for first.
        found = [[*row[:-1], False] for row in found]
    return found


def _sha256(value: object) -> str:
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise unreadable("has a lone surrogate in a string") from None
    return hashlib.sha256(text).hexdigest()
