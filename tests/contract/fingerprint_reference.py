"""A second implementation of docs/fingerprint.md, written from that page alone. It shares no
code with ``teacher_proto`` and reads the five expressions from the page's test vectors."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path
from typing import Any

VECTORS = Path(__file__).parents[2] / "docs" / "fingerprint_vectors.json"
ESCAPES = {
    '"': '\\"',
    "\\": "\\\\",
    "\b": "\\b",
    "\t": "\\t",
    "\n": "\\n",
    "\f": "\\f",
    "\r": "\\r",
}


def fingerprint(file: str) -> str:
    digests = {name: sha256(write(value)) for name, value in parts(file).items()}
    return "v2-" + sha256(write(digests))


def sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def write(value: Any) -> str:
    if value is None:
        return "null"
    if value is True or value is False:
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, str):
        return '"' + "".join(character(c) for c in value) + '"'
    if isinstance(value, dict):
        return "{" + ",".join(f"{write(k)}:{write(value[k])}" for k in sorted(value)) + "}"
    assert isinstance(value, list), type(value)
    return "[" + ",".join(write(one) for one in value) + "]"


def character(c: str) -> str:
    if c in ESCAPES:
        return ESCAPES[c]
    return f"\\u{ord(c):04x}" if ord(c) < 0x20 else c


def parts(file: str) -> dict[str, Any]:
    tokenizer = without_nulls(json.loads(file))
    model = tokenizer["model"]
    normalizer = [n for one in members(tokenizer.get("normalizer")) for n in normalizers(one)]
    pre_tokenizer = pre_tokenizers(members(tokenizer.get("pre_tokenizer")), normalizer)
    return {
        "added_tokens": added_tokens(tokenizer.get("added_tokens", []), model["vocab"], normalizer),
        "normalizer": normalizer,
        "pre_tokenizer": pre_tokenizer,
        "model": settings(model, pre_tokenizer),
        "vocabulary": vocabulary(model["vocab"]),
        "merges": merges(model["merges"]) if "merges" in model else None,
    }


def without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_nulls(v) for k, v in value.items() if v is not None}
    return value


def members(node: Any) -> list[dict[str, Any]]:
    if node is None:
        return []
    if node["type"] == "Sequence":
        inner = node["normalizers"] if "normalizers" in node else node["pretokenizers"]
        return [member for one in inner for member in members(without_nulls(one))]
    return [dict(node)]


def added_tokens(
    tokens: list[dict[str, Any]], vocab: Any, normalizer: list[Any]
) -> list[list[Any]]:
    words = [entry[0] for entry in vocab] if isinstance(vocab, list) else list(vocab)
    new: list[str] = []
    by_id = {}
    for token in tokens:
        content = token["content"]
        if content == "":
            continue
        if content in words:
            last = len(words) - 1 - words[::-1].index(content)
            number = last if isinstance(vocab, list) else vocab[content]
        else:
            if content not in new:
                new.append(content)
            number = len(words) + new.index(content)
        flags = [token.get(f, False) for f in ("single_word", "lstrip", "rstrip", "normalized")]
        by_id[number] = [number, content, *flags]
    rows = [by_id[number] for number in sorted(by_id)]
    if normalizer == [] and all(row[5] is True for row in rows):
        for row in rows:
            row[5] = False
    return rows


def literal(pattern: Any) -> Any:
    if "Regex" in pattern and pattern["Regex"] != "":
        plain = all(
            c == " " or (c.isascii() and c.isalnum()) or c >= "\x80" for c in pattern["Regex"]
        )
        if plain:
            return {"String": pattern["Regex"]}
    return pattern


def normalizers(one: dict[str, Any]) -> list[dict[str, Any]]:
    kind = one["type"]
    if kind == "BertNormalizer" and "strip_accents" not in one:
        one["strip_accents"] = one["lowercase"]
    if kind == "Replace" and "$" not in one["content"]:
        one["pattern"] = literal(one["pattern"])
    if kind == "Strip" and not one["strip_left"] and not one["strip_right"]:
        return []
    return [one]


def pre_tokenizers(found: list[dict[str, Any]], normalizer: list[Any]) -> list[dict[str, Any]]:
    expressions = json.loads(VECTORS.read_text(encoding="utf-8"))["expressions"]
    result: list[dict[str, Any]] = []
    for one in found:
        match one["type"]:
            case "ByteLevel":
                one.pop("trim_offsets", None)
                one.setdefault("use_regex", True)
            case "Metaspace":
                prefix = one.pop("add_prefix_space", True)
                one.setdefault("prepend_scheme", "always" if prefix else "never")
                one.setdefault("split", True)
                one.pop("str_rep", None)
            case "Punctuation":
                one.setdefault("behavior", "Isolated")
            case "FixedLength":
                one.setdefault("length", 5)
            case "Split":
                one["pattern"] = literal(one["pattern"])
                between = (one["behavior"], one["invert"]) == ("Removed", True)
                if between and one["pattern"].get("Regex") in expressions:
                    one["behavior"], one["invert"] = "Isolated", False
                if not result and normalizer and gone(normalizer[-1], one):
                    continue
        bare = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False}
        own = {"Regex": expressions[0]}
        gpt2 = {"type": "Split", "pattern": own, "behavior": "Isolated", "invert": False}
        if one == bare and result and result[-1] == gpt2:
            result.pop()
            one["use_regex"] = True
        result.append(one)
    return result


def gone(normalizer: dict[str, Any], split: dict[str, Any]) -> bool:
    if normalizer["type"] != "Replace" or split["invert"]:
        return False
    what = normalizer["pattern"].get("String", "")
    where = split["pattern"].get("String", "")
    return len(what) == 1 and what not in normalizer["content"] and what in where


def settings(model: dict[str, Any], pre_tokenizer: list[dict[str, Any]]) -> dict[str, Any]:
    own = {k: v for k, v in model.items() if k not in ("vocab", "merges")}
    if "type" not in own:
        own["type"] = (
            "BPE"
            if "merges" in model
            else "Unigram"
            if isinstance(model["vocab"], list)
            else "WordPiece"
            if "continuing_subword_prefix" in model
            else "WordLevel"
        )
    if own["type"] == "Unigram":
        own.setdefault("byte_fallback", False)
    if own["type"] == "BPE":
        vocab = model["vocab"]
        for name in ("dropout", "fuse_unk", "byte_fallback", "ignore_merges"):
            if not own.get(name):
                own.pop(name, None)
        for name in ("continuing_subword_prefix", "end_of_word_suffix"):
            if own.get(name) == "":
                del own[name]
        affixes = "continuing_subword_prefix" in own or "end_of_word_suffix" in own
        last = pre_tokenizer[-1]["type"] if pre_tokenizer else ""
        if last == "ByteLevel" and not affixes and byte_alphabet() <= set(vocab):
            for name in ("unk_token", "fuse_unk", "byte_fallback"):
                own.pop(name, None)
        if "byte_fallback" in own and {f"<0x{b:02X}>" for b in range(256)} <= set(vocab):
            own.pop("unk_token", None)
        if "unk_token" not in own:
            own.pop("fuse_unk", None)
    if "dropout" in own:
        own["dropout"] = binary32(own["dropout"])
    return own


def byte_alphabet() -> set[str]:
    shown = {c for c in map(chr, range(256)) if c.isprintable() and c not in " \xa0\xad"}
    return shown | {chr(0x100 + place) for place in range(256 - len(shown))}


def binary32(number: float) -> str:
    return struct.pack(">f", number).hex()


def vocabulary(vocab: Any) -> list[list[Any]]:
    if isinstance(vocab, list):
        return [[token, binary32(score)] for token, score in vocab]
    return [[index, token] for index, token in sorted((i, t) for t, i in vocab.items())]


def merges(found: list[Any]) -> list[list[str]]:
    pairs = [one.split(" ") if isinstance(one, str) else list(one) for one in found]
    return [pair for place, pair in enumerate(pairs) if pair not in pairs[place + 1 :]]
