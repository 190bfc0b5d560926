"""Writes docs/identity_vectors.json: ``python -m tests.contract.identity_vectors``.

The numbers come from ``identity_reference``, which is written from docs/contract.md alone.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.contract.identity_reference import canonical, identity_digest, sha256

FILE = Path(__file__).parents[2] / "docs" / "identity_vectors.json"
PLAIN = {
    "weights_digest": "0" * 64,
    "dtype": "float32",
    "quantization": "",
    "adapter_digest": "",
    "tokenizer_hash": "v2-" + "1" * 64,
    "chat_template_digest": "",
}
IDENTITIES: dict[str, dict[str, str]] = {
    "without a chat template": PLAIN,
    "with a chat template": PLAIN | {"chat_template_digest": "2" * 64},
    "quantised, with an adapter": PLAIN
    | {"dtype": "bfloat16", "quantization": 'fp8 "e4m3"', "adapter_digest": "3" * 64},
}
CHAT_TEMPLATES: dict[str, dict[str, dict[str, str]]] = {
    "one template": {
        "special_tokens": {},
        "templates": {"default": "{% for m in messages %}{{ m.content }}{% endfor %}"},
    },
    "special tokens that it reads": {
        "special_tokens": {"eos_token": "<|end|>", "bos_token": "<|begin|>"},
        "templates": {"default": "{{ bos_token }}{{ messages[0].content }}{{ eos_token }}\n"},
    },
    "several, with every kind of character": {
        "special_tokens": {},
        "templates": {
            "tool_use": "tools\t\b\f\r\n\x00\x1f\x7f",
            "default": 'caf\u00e9 "\u4f60\u597d" \\ / \u2028 \U0001f600',
        },
    },
}


def vectors() -> dict[str, list[dict[str, Any]]]:
    return {
        "identities": [
            {"name": name, "identity": {"digest": identity_digest(fields)} | fields}
            for name, fields in IDENTITIES.items()
        ],
        "chat_templates": [
            {"name": name, "reads": reads, "canonical": canonical(reads)}
            | {"digest": sha256(canonical(reads))}
            for name, reads in CHAT_TEMPLATES.items()
        ],
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(vectors(), indent=1, ensure_ascii=True) + "\n", encoding="utf-8")
