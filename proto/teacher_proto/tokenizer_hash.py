"""The fingerprint of a tokenizer: equal where two tokenizers give every text the same ids
(docs/fingerprint.md)."""

from __future__ import annotations

import re

from teacher_proto.fingerprint.parts import read_fingerprint

VERSION = 2
# The first version of the fingerprint had no number in its string.
_VERSIONED = re.compile(r"v([1-9][0-9]{0,8})-[0-9a-f]{64}")
_FIRST = re.compile(r"[0-9a-f]{64}")


def tokenizer_hash(tokenizer_json: str | bytes) -> str:
    """ "v2-" and a sha256, in hex, over what decides which ids a text gets.

    That is the model with its vocabulary and merges, the normalizer, the pre-tokenizer, and
    the added tokens with the flags that change what they match. Truncation, padding,
    post-processor and decoder do not count, nor whether an added token is special; neither
    does how the file is written.

    Args:
        tokenizer_json: content of a tokenizer.json, as
            ``tokenizer.backend_tokenizer.to_str()`` gives it.

    Raises ConfigurationError for a file it cannot read.
    """
    return versioned(read_fingerprint(tokenizer_json).digest)


def versioned(digest: str) -> str:
    """The fingerprint whose digest is ``digest``."""
    return f"v{VERSION}-{digest}"


def hash_version(fingerprint: str) -> int | None:
    """The version that a fingerprint's string carries; None for what is no fingerprint."""
    found = _VERSIONED.fullmatch(fingerprint)
    if found is not None:
        return int(found[1])
    return 1 if _FIRST.fullmatch(fingerprint) else None


def other_version(fingerprint: str, *, here: str, there: str) -> tuple[str, str] | None:
    """What is wrong and which side to upgrade, where a fingerprint that was computed
    elsewhere is of another version than those computed here; None where it is not.

    Args:
        here, there: names of the two sides, like "the server" and "the client".
    """
    version = hash_version(fingerprint)
    if version is None or version == VERSION:
        return None
    what = (
        f"{there} fingerprints tokenizers by version {version} of the fingerprint and {here} by "
        f"version {VERSION}, so that they cannot tell whether two tokenizers are the same"
    )
    return what, f"upgrade {there if version < VERSION else here} to the other side's release"
