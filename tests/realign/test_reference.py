"""The enumeration that the bench and other tests compare with, itself compared with samples."""

from __future__ import annotations

import random

import numpy as np
import pytest
from tokenizers import Tokenizer

from benchmarks.realign_reference import NgramTeacher, enumerate_paths
from benchmarks.realign_texts import texts
from tests.realign.real_tokenizers import pair, tokenizer_file, vocabulary


def test_text_may_end_inside_a_character() -> None:
    """The first two bytes of a character are other tokens alone than before its last."""
    student, teacher = vocabulary("llama3"), vocabulary("gpt4o")
    text = "找到了丢失的钥匙。"
    learnt = teacher.encoder.encode((text * 4).encode()).ids.tolist()
    model = NgramTeacher(learnt, teacher)
    ids = student.encoder.encode(text.encode()).ids.tolist()
    said = "找到了".encode() + "丢".encode()[:2]
    count = 0
    while sum(len(student.token_bytes[token]) for token in ids[:count]) < len(said):
        count += 1
    alone = teacher.encoder.encode(said).ids.tolist()
    assert alone != learnt[: len(alone)]
    truth = enumerate_paths(
        model, learnt[-3:], said, ids[:count], student, teacher, open_share=0.01, most=2000
    )
    assert truth is not None
    assert truth.mass[ids[count]] > 0.9


SAMPLES = 1200


def sampled_tokens(
    model: NgramTeacher,
    before: list[int],
    said: bytes,
    tokens: list[int],
    student: Tokenizer,
    draw: random.Random,
) -> tuple[dict[int, float], float]:
    """(student id -> probability, effective number of samples): text drawn token by token
    from the teacher, all that contradicts ``said`` weighted away, and encoded as a whole."""
    table = model.vocabulary.token_bytes
    masses: dict[int, float] = {}
    total = squares = 0.0
    for _ in range(SAMPLES):
        path, data, weight = [*before], b"", 1.0
        while weight and len(data) < len(said) + 24:
            ids, values = model.support(path)
            texts = [data + table[token] for token in ids.tolist()]
            agree = np.array([text[: len(said)] == said[: len(text)] for text in texts])
            values = np.where(agree, values, 0.0)
            weight *= float(values.sum())
            if weight:
                drawn = draw.choices(range(len(ids)), values.tolist())[0]
                path.append(int(ids[drawn]))
                data = texts[drawn]
        encoded = student.encode(data.decode("utf-8", "ignore"), add_special_tokens=False).ids
        if weight and encoded[: len(tokens)] == tokens:
            token = encoded[len(tokens)]
            masses[token] = masses.get(token, 0.0) + weight
            total += weight
            squares += weight**2
    return {token: mass / total for token, mass in masses.items()}, total**2 / max(squares, 1e-300)


@pytest.mark.parametrize("name", ["json", "table"])
def test_the_enumeration_agrees_with_sampling_where_spaces_meet_digits(name: str) -> None:
    tables = pair("llama3", "qwen3")
    raw = Tokenizer.from_file(str(tokenizer_file("llama3")))
    (text,) = (one for one in texts(1200, tuning=True) if one.name == name)
    learnt = tables.teacher.encoder.encode(text.learnt[-40_000:].encode()).ids.tolist()
    model = NgramTeacher(learnt, tables.teacher)
    ids = raw.encode(text.held_out, add_special_tokens=False).ids
    ends = np.cumsum([len(tables.student.token_bytes[token]) for token in ids]).tolist()
    data = text.held_out.encode()
    draw = random.Random(5)
    compared = 0
    for position in range(40, len(ids)):
        here = ends[position - 1]
        # Next to spaces; what has been said begins a few tokens earlier, with a line.
        if b"  " not in data[here - 1 : here + 3] or compared == 8:
            continue
        start = data.rfind(b"\n", 0, here - 2) + 1
        if start not in ends:
            continue
        first = ends.index(start) + 1
        before = tables.teacher.encoder.encode(data[:start]).ids.tolist()
        said, tokens = data[start:here], ids[first:position]
        drawn, samples = sampled_tokens(model, before, said, tokens, raw, draw)
        truth = enumerate_paths(
            model, before, said, tokens, tables.student, tables.teacher,
            open_share=0.001, most=3000, enough=0.02,
        )  # fmt: skip
        if truth is None or samples < 300:
            continue
        sure = sum(truth.mass.values())
        mass = {token: value / sure for token, value in truth.mass.items()}
        apart = sum(abs(mass.get(t, 0.0) - drawn.get(t, 0.0)) for t in mass.keys() | drawn) / 2
        noise = sum(np.sqrt(p * (1 - p) / samples) for p in mass.values()) / 2
        assert apart <= 1.5 * noise + 0.02, (said, apart, noise)
        compared += 1
    assert compared >= 5
