"""A program that runs with either tree: it asks servers for scores by the public client and
prints what it gets.

    either_client.py TOKENIZER_JSON ADDRESS...

One JSON list on stdout: for each address, by case, the arrays of every continuation (type,
shape, sha256) or the error.
"""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from teacher_proto import TeacherClient
from teacher_proto.errors import LsmError
from teacher_proto.tokenizer_hash import tokenizer_hash
from teacher_proto.types import (
    ChatMessage,
    ChatPrompt,
    Continuation,
    ContinuationScores,
    Prompt,
    Returns,
    ScoreRequest,
    Segment,
    TextPrompt,
    TokenizerUpload,
    TokenPrompt,
)

PATIENCE = 60.0
ARRAYS = {
    "support": ("ids", "log_probs", "counts"),
    "sampled": ("values", "valid"),
    "log_tail": ("values", "valid"),
}
REALIGNED = ("coverage", "position_class", "chunk_index", "chunk_log_likelihood")


def ids(*values: int) -> Any:
    return np.array(values, np.int32)


GIVEN = Continuation((Segment(ids(30, 31, 40)), Segment(ids(50, 60))))
CHAT = ChatPrompt((ChatMessage("system", "Be short."), ChatMessage("user", "What is 1?")))
# The prompt, and whether the client registers a tokenizer of its own.
CASES: dict[str, tuple[Prompt, bool]] = {
    "token ids": (TokenPrompt(ids(5, 6, 7)), False),
    "text": (TextPrompt("The capital of France"), False),
    "chat": (CHAT, False),
    "text, another tokenizer": (TextPrompt("The capital of France"), True),
    "chat, another tokenizer": (CHAT, True),
}


def arrays(result: ContinuationScores) -> dict[str, Any]:
    found = {}
    for part, names in ARRAYS.items():
        block = getattr(result.rows, part)
        for name in names if block is not None else ():
            found[f"{part}.{name}"] = getattr(block, name)
    if result.realignment is not None:
        found |= {name: getattr(result.realignment, name) for name in REALIGNED}
    return {
        name: [value.dtype.str, value.shape, hashlib.sha256(value.tobytes()).hexdigest()]
        for name, value in found.items()
    }


def ask(client: TeacherClient, file: bytes, prompt: Prompt, foreign: bool) -> list[dict[str, Any]]:
    known = client.get_teacher(timeout=PATIENCE).teacher("default").identity.tokenizer_hash
    if foreign:
        known = tokenizer_hash(file)
        client.register_tokenizer(TokenizerUpload("run", known, file), timeout=PATIENCE)
    request = ScoreRequest(
        request_id=f"{type(prompt).__name__} {foreign}",
        run="run",
        teacher="default",
        tokenizer_hash=known,
        prompt=prompt,
        continuations=(GIVEN,),
        top_k=8,
        temperature=1.0,
        returns=Returns(sampled=True, log_tail=not foreign, realignment=foreign),
    )
    reply = client.score(request, timeout=PATIENCE)
    return [arrays(result) for result in reply.results]


def main() -> None:
    file = Path(sys.argv[1]).read_bytes()
    answers = []
    for address in sys.argv[2:]:
        found: dict[str, Any] = {}
        with TeacherClient(address, run="run", max_attempts=1) as client:
            for name, (prompt, foreign) in CASES.items():
                try:
                    found[name] = ask(client, file, prompt, foreign)
                except LsmError as error:
                    found[name] = f"error: {error}"
        answers.append(found)
    print(json.dumps(answers))


if __name__ == "__main__":
    main()
