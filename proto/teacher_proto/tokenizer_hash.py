"""The fingerprint of a tokenizer: equal when two tokenizers give text the same ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from teacher_proto.errors import ConfigurationError


def tokenizer_hash(tokenizer_json: str | bytes) -> str:
    """sha256, in hex, over what decides which ids a text gets.

    That is the model (type, vocabulary, merges, byte fallback and its other
    settings), the normaliser, the pre-tokenizer, and the added tokens as (id,
    content). Truncation, padding, post-processor, decoder and the flags of added
    tokens do not count; neither does how the file is written (order of keys,
    merges as text or as pairs).

    Args:
        tokenizer_json: content of a tokenizer.json, as
            ``tokenizer.backend_tokenizer.to_str()`` gives it.

    Raises ConfigurationError for a file it cannot read.
    """
    try:
        document = json.loads(tokenizer_json)
    except (ValueError, RecursionError) as failure:
        raise _error(f"is not JSON: {failure}") from None
    if not isinstance(document, dict) or not isinstance(document.get("model"), dict):
        raise _error("has no model")
    canonical = {
        "model": _model(document["model"]),
        "normalizer": document.get("normalizer"),
        "pre_tokenizer": document.get("pre_tokenizer"),
        "added_tokens": _added_tokens(document.get("added_tokens")),
    }
    text = json.dumps(canonical, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _model(model: Mapping[str, Any]) -> dict[str, Any]:
    settings = {
        name: value
        for name, value in model.items()
        if name not in ("vocab", "merges") and not _means_absent(name, value)
    }
    settings["vocab"] = _vocabulary(model.get("vocab"))
    if "merges" in model:
        settings["merges"] = _merges(model["merges"])
    return settings


def _means_absent(name: str, value: object) -> bool:
    """Whether a setting of the model says the same as leaving it out."""
    return value is None or value is False or value == "" or (name == "dropout" and value == 0)


def _vocabulary(vocabulary: object) -> list[list[Any]]:
    """[[id, token], ...] by id; for Unigram [[token, score], ...] in its own order."""
    if isinstance(vocabulary, dict):
        if not all(type(index) is int and index >= 0 for index in vocabulary.values()):
            raise _error("has an id in model.vocab that is not a non-negative integer")
        entries = [[index, token] for token, index in vocabulary.items()]
        if len({index for index, _ in entries}) != len(entries):
            raise _error("has two tokens of one id in model.vocab")
        return sorted(entries)
    if isinstance(vocabulary, list) and all(
        isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)
        for entry in vocabulary
    ):
        return vocabulary
    raise _error("has no readable model.vocab")


def _merges(merges: object) -> list[list[str]]:
    if not isinstance(merges, list):
        raise _error("has no readable model.merges")
    pairs = []
    for index, merge in enumerate(merges):
        pair = merge.split(" ") if isinstance(merge, str) else merge
        if (
            not isinstance(pair, list)
            or len(pair) != 2
            or not all(isinstance(part, str) for part in pair)
        ):
            raise _error(f"has a merge that is not a pair: model.merges[{index}]")
        pairs.append(pair)
    return pairs


def _added_tokens(tokens: object) -> list[list[Any]]:
    if tokens is None:
        return []
    if not isinstance(tokens, Sequence) or isinstance(tokens, str):
        raise _error("has no readable added_tokens")
    pairs = []
    for index, token in enumerate(tokens):
        if (
            not isinstance(token, dict)
            or type(token.get("id")) is not int
            or not isinstance(token.get("content"), str)
        ):
            raise _error(f"has an added token without id or content: added_tokens[{index}]")
        pairs.append([token["id"], token["content"]])
    return sorted(pairs)


def _error(what: str) -> ConfigurationError:
    return ConfigurationError(
        what,
        where="tokenizer.json",
        fix="give the tokenizer.json of a fast tokenizer "
        "(tokenizer.backend_tokenizer.to_str() in transformers)",
    )
