"""The first version of the fingerprint, as programs of an earlier release compute it."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def fingerprint_v1(tokenizer_json: str | bytes) -> str:
    document = json.loads(tokenizer_json)
    model: dict[str, Any] = document["model"]
    settings = {
        name: value
        for name, value in model.items()
        if name not in ("vocab", "merges") and value not in (None, False, "")
    }
    settings["vocab"] = sorted([index, token] for token, index in model["vocab"].items())
    if "merges" in model:
        settings["merges"] = [m.split(" ") if isinstance(m, str) else m for m in model["merges"]]
    canonical = {
        "model": settings,
        "normalizer": document.get("normalizer"),
        "pre_tokenizer": document.get("pre_tokenizer"),
        "added_tokens": sorted([t["id"], t["content"]] for t in document.get("added_tokens") or ()),
    }
    text = json.dumps(canonical, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()
