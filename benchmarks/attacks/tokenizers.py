"""Attacks by a student's tokenizer: files that are small and cost much, and many of them."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from functools import cache
from typing import Any

import httpx
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from benchmarks.attacks.target import Target, bearer

LONG = 300.0
ROUNDS = 24  # each doubles: 2^24 letters of one
TEXTS = ("while not queue.empty(): job = queue.get(); job.run(); queue.task_done()",) * 2
NUMBERS = itertools.count()


@cache
def _usual() -> dict[str, Any]:
    """A byte-level BPE tokenizer, which realigns with the teacher's."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )
    document: dict[str, Any] = json.loads(made.to_str())
    return document


def _words(count: int, **parts: Any) -> dict[str, Any]:
    """The usual tokenizer with so many words more, which no text has, and other parts."""
    usual = _usual()
    words = {f"word{number}": 1000 + number for number in range(count)}
    model = usual["model"] | {"vocab": usual["model"]["vocab"] | words}
    return usual | {"model": model} | parts


def _doubling() -> list[dict[str, Any]]:
    one = {"type": "Replace", "pattern": {"String": "a"}, "content": "aa"}
    return [one] * ROUNDS


# Name -> the file, which differs by a number each time.
FILES: dict[str, Callable[[int], dict[str, Any]]] = {
    "normalizer_bomb": lambda n: _words(
        n, normalizer={"type": "Sequence", "normalizers": _doubling()}
    ),
    "decoder_bomb": lambda n: _words(n, decoder={"type": "Sequence", "decoders": _doubling()}),
    "backtracking": lambda n: _words(
        n,
        pre_tokenizer={
            "type": "Split",
            "pattern": {"Regex": "(a|aa|aaa)+$|(a*)*b"},
            "behavior": "Isolated",
            "invert": False,
        },
    ),
    "vocabulary": lambda n: _words(1_000_000 + n),
    "registrations": lambda n: _words(n),
}
IN_FLIGHT = {"registrations": 4}


async def attack(name: str, target: Target) -> None:
    """Registers the file, again and again; where that succeeds, has a text scored with it."""
    make = FILES[name]
    fixed = name == "vocabulary"  # a million words take a second to write down
    body = json.dumps(make(0)).encode()
    count = IN_FLIGHT.get(name, 2)
    target.admitted = count * len(body)
    await target.begin()
    headers = {"authorization": bearer("mallory"), "content-type": "application/json"}
    async with httpx.AsyncClient(
        base_url=f"http://{target.http_address}", timeout=LONG, headers=headers
    ) as http:

        async def once() -> str:
            file = body if fixed else json.dumps(make(next(NUMBERS))).encode()
            try:
                answer = await http.post("/v1/tokenizers", content=file)
                if answer.status_code != 200 or name == "registrations":
                    return str(answer.status_code)
                asked = {
                    "prompt": {"text": "a"},
                    "continuations": [{"text": "a" * 200 + "c"}],
                    "top_k": 4,
                    "temperature": 1.0,
                    "tokenizer_hash": answer.json()["tokenizer_hash"],
                }
                return f"scored {(await http.post('/v1/score', json=asked)).status_code}"
            except (httpx.TransportError, ValueError, KeyError) as error:
                return type(error).__name__

        await target.repeat(count, once)
