"""Bodies to try, which the OpenAPI document shows and `/docs` fills in."""

from __future__ import annotations

from typing import Any

QUESTION = "What is the capital of France?"
ANSWER = "The capital of France is Paris."

SCORE: dict[str, dict[str, Any]] = {
    "text": {
        "summary": "A text and how it goes on",
        "value": {
            "prompt": {"text": QUESTION},
            "continuations": [{"text": f" {ANSWER}"}],
            "top_k": 5,
            "temperature": 1.0,
            "returns": {"log_tail": True},
        },
    },
    "chat": {
        "summary": "A conversation, rendered by the teacher's own chat template",
        "value": {
            "prompt": {"messages": [{"role": "user", "content": QUESTION}]},
            "continuations": [{"text": ANSWER}, {"text": "I do not know."}],
            "top_k": 5,
            "temperature": 1.0,
        },
    },
    "ids": {
        "summary": "Token ids, and certain ids at each row",
        "value": {
            "prompt": {"token_ids": [1, 2, 3]},
            "continuations": [{"token_ids": [4, 5], "explicit_ids": [[6, 7], [8, -1]]}],
            "top_k": 5,
            "temperature": 1.0,
        },
    },
}
RENDER: dict[str, dict[str, Any]] = {
    "both": {
        "summary": "A conversation and a text",
        "value": {
            "prompts": [
                {"messages": [{"role": "user", "content": QUESTION}]},
                {"text": QUESTION, "special_tokens": "add"},
            ]
        },
    }
}
