"""Which tokenizer.json may be given to the tokenizers library: components that published
tokenizers have, with bounds on what they can make of a text.

The library runs normalizers and decoders as a file has them: nested replacements turn one
letter into millions. What is bounded here is what a file may ask for; that a process keeps to
its memory and time is another guard (``teacher_proto.processes.confinement``, ``worker``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Sized
from typing import Any

from teacher_proto.errors import InvalidRequestError

# Component -> by how much it can lengthen a text, in bytes; None: see ``_growth``.
NORMALIZERS: Mapping[str, float | None] = {
    "NFC": 3,
    "NFD": 4,
    "NFKC": 11,
    "NFKD": 11,
    "Nmt": 1,
    "Lowercase": 2,
    "Strip": 1,
    "StripAccents": 1,
    "Replace": None,
    "Prepend": None,
    "ByteLevel": 2,
    "BertNormalizer": 5,
}
# Of models that can only be compared with a teacher's.
COMPARED_NORMALIZERS = {"Precompiled": 18.0}
PRE_TOKENIZERS: Mapping[str, float | None] = {
    "ByteLevel": 2,
    "Split": 1,
    "Metaspace": 4,
    "Digits": 1,
    "Punctuation": 1,
    "Whitespace": 1,
    "WhitespaceSplit": 1,
    "BertPreTokenizer": 1,
    "CharDelimiterSplit": 1,
    "UnicodeScripts": 1,
    "FixedLength": 1,
}
DECODERS: Mapping[str, float | None] = {
    "ByteLevel": 3,
    "ByteFallback": 3,
    "Fuse": 1,
    "Strip": 1,
    "Metaspace": 1,
    "Replace": None,
    "BPEDecoder": 1,
    "WordPiece": 2,
}
# "inside" is the field of a Sequence that holds its parts.
PARTS: Sequence[tuple[str, str, Mapping[str, float | None]]] = (
    ("normalizer", "normalizers", NORMALIZERS),
    ("pre_tokenizer", "pretokenizers", PRE_TOKENIZERS),
    ("decoder", "decoders", DECODERS),
)
MODELS = ("BPE", "Unigram", "WordPiece", "WordLevel")
# Twice and more of what any published tokenizer has.
MAX_COMPONENTS, MAX_DEPTH = 32, 4
MAX_GROWTH = 256.0
MAX_PATTERN = 4096
MAX_TOKENS, MAX_MERGES = 1 << 19, 1 << 21
MAX_TOKEN_BYTES = 2048
MAX_ADDED, MAX_ADDED_BYTES, MAX_ALL_ADDED_BYTES = 1 << 15, 1024, 1 << 20


def check_components(content: Mapping[str, Any]) -> None:
    """Checks what a tokenizer.json holds that has a fingerprint, and passed ``check_sizes``.

    Raises:
        InvalidRequestError: it holds a component that is not known, or too much of one.
    """
    model = content["model"]
    kind = model.get("type") or "BPE"
    if kind not in MODELS:
        raise _refused(f"its model {_shown(kind)} is none of {', '.join(MODELS)}")
    _check_lengths(model)
    _check_added(content.get("added_tokens") or ())
    for name, inside, known in PARTS:
        if name == "normalizer" and kind != "BPE":
            known = {**known, **COMPARED_NORMALIZERS}
        growth = 1.0
        components = list(_flat(content.get(name), name, inside, 0))
        if len(components) > MAX_COMPONENTS:
            raise _refused(f"its {name} has more than {MAX_COMPONENTS} components")
        for one in components:
            growth *= _growth(one, name, known)
        if growth > MAX_GROWTH:
            raise _refused(
                f"its {name} can make a text more than {MAX_GROWTH:g} times as long "
                f"({', '.join(str(one['type']) for one in components)})"
            )


def check_sizes(content: object) -> None:
    """Refuses a tokenizer.json that is too large to be looked at closely; one that is none is
    for its fingerprint to refuse.

    Raises:
        InvalidRequestError: it has too many tokens or merges.
    """
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict):
        return
    tokens, merges = (
        len(part) if isinstance(part, Sized) else 0
        for part in (model.get("vocab"), model.get("merges"))
    )
    if tokens > MAX_TOKENS:
        raise _refused(f"its vocabulary has {tokens} tokens; {MAX_TOKENS} can be read")
    if merges > MAX_MERGES:
        raise _refused(f"it has {merges} merges; {MAX_MERGES} can be read")


def _flat(node: object, name: str, inside: str, depth: int) -> Iterator[Mapping[str, Any]]:
    if node is None:
        return
    if not isinstance(node, dict) or not isinstance(node.get("type"), str):
        raise _refused(f"its {name} is no component")
    if depth > MAX_DEPTH:
        raise _refused(f"its {name} is nested more than {MAX_DEPTH} deep")
    if node["type"] != "Sequence":
        yield node
        return
    parts = node.get(inside)
    if not isinstance(parts, list) or len(parts) > MAX_COMPONENTS:
        raise _refused(f"its {name} has a Sequence of more than {MAX_COMPONENTS} parts")
    for part in parts:
        yield from _flat(part, name, inside, depth + 1)


def _growth(one: Mapping[str, Any], name: str, known: Mapping[str, float | None]) -> float:
    kind = one["type"]
    if kind not in known:
        raise _refused(f"its {name} has a {_shown(kind)}, which no tokenizer of this kind needs")
    pattern = _pattern(one.get("pattern"), f"{name} {kind}")
    fixed = known[kind]
    if fixed is not None:
        return fixed
    if kind == "Prepend":
        return 1.0 + _bytes(one.get("prepend"), f"{name} Prepend")
    content = _bytes(one.get("content"), f"{name} Replace")
    if pattern is None:
        raise _refused(f"its {name} has a Replace without a pattern")
    # An expression may match between any two letters.
    return max(1.0, content / pattern) if pattern else 1.0 + content


def _pattern(pattern: object, where: str) -> int | None:
    """Bytes of what is looked for; 0 for an expression, None where there is none."""
    if pattern is None:
        return None
    if isinstance(pattern, str):  # as BertNormalizer's and older files have it
        pattern = {"String": pattern}
    if not isinstance(pattern, dict) or len(pattern) != 1:
        raise _refused(f"its {where} has no readable pattern")
    ((kind, text),) = pattern.items()
    length = _bytes(text, where)
    if kind == "Regex" and 0 < length <= MAX_PATTERN:
        return 0
    if kind == "String" and 0 < length <= MAX_PATTERN:
        return length
    raise _refused(f"its {where} has a pattern that is empty or over {MAX_PATTERN} bytes")


def _check_lengths(model: Mapping[str, Any]) -> None:
    vocab = model.get("vocab") or ()
    texts = vocab if isinstance(vocab, dict) else (entry[0] for entry in vocab)
    if max((len(text) for text in texts), default=0) > MAX_TOKEN_BYTES:
        raise _refused(f"its vocabulary has a token of more than {MAX_TOKEN_BYTES} characters")
    for name in ("unk_token", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(name) is not None and _bytes(model[name], f"model.{name}") > MAX_ADDED_BYTES:
            raise _refused(f"its model.{name} has more than {MAX_ADDED_BYTES} bytes")


def _check_added(added: Sequence[Mapping[str, Any]]) -> None:
    if len(added) > MAX_ADDED:
        raise _refused(f"it has {len(added)} added tokens; {MAX_ADDED} can be read")
    lengths = [len(token["content"].encode("utf-8", "surrogatepass")) for token in added]
    if max(lengths, default=0) > MAX_ADDED_BYTES:
        raise _refused(f"it has an added token of more than {MAX_ADDED_BYTES} bytes")
    if sum(lengths) > MAX_ALL_ADDED_BYTES:
        raise _refused(f"its added tokens have more than {MAX_ALL_ADDED_BYTES} bytes together")


def _bytes(text: object, where: str) -> int:
    if not isinstance(text, str):
        raise _refused(f"its {where} has something other than a text")
    return len(text.encode("utf-8", "surrogatepass"))


def _shown(name: object) -> str:
    return repr(name)[:60]


def _refused(what: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"the tokenizer cannot be used: {what}",
        where="tokenizer.json",
        fix="give the tokenizer.json that the model was published with",
        reason="TOKENIZER_REFUSED",
    )
