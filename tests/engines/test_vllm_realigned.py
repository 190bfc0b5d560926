"""A student with another tokenizer than the teacher's, the teacher being on vLLM."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path
from urllib.request import urlopen

import numpy as np
import pytest
from teacher_proto import TeacherClient
from teacher_proto.tokenizer_hash import tokenizer_hash
from teacher_proto.types import (
    ChatMessage,
    ChatPrompt,
    Continuation,
    Level,
    PositionClass,
    Returns,
    ScoreReply,
    ScoreRequest,
    Segment,
    TokenizerUpload,
)
from tokenizers import Tokenizer

from tests.engines.test_vllm_server import FLAGS
from tests.server.processes import LONG, serving
from tests.support.adapters import make_adapter
from tests.support.models import CODE, make_tiny_model, train_tokenizer

pytestmark = pytest.mark.vllm

TEXTS = (
    "The student learns from every token; def score(self): return 12345 rows.",
    "What is the capital of France? The weather was cold.",
)
EMBEDDED = ["--engine", "transformers", "--set", "engine.device=cpu", "--set",
            "engine.dtype=float32"]  # fmt: skip
# Without context-free rows enough is open for extra rows to be worth it.
EXTRA = ["--set", "tokenizers.extra_rounds=1", "--set", "tokenizers.context_free_rows=false"]


@dataclass(frozen=True)
class Answered:
    """Replies by ``default`` and ``math``, and the rows asked for beyond the rollouts' own."""

    replies: list[ScoreReply]
    extra_rows: list[float]


def answers(folder: Path, teachers: list[str], flags: list[str], file: bytes) -> Answered:
    """Of a server with these flags."""
    folder.mkdir()
    tokenizer = Tokenizer.from_str(file.decode())
    with serving(folder, *teachers, *flags) as program:
        with TeacherClient(program.facts["grpc_address"], run="test") as client:
            upload = TokenizerUpload("test", tokenizer_hash(file), file)
            levels = client.register_tokenizer(upload, timeout=LONG)
            assert levels == {"default": Level.CROSS, "math": Level.CROSS}
            found = [
                client.score(
                    ScoreRequest(
                        request_id=name,
                        run="test",
                        teacher=name,
                        tokenizer_hash=upload.tokenizer_hash,
                        prompt=ChatPrompt((ChatMessage("user", "Hi"),)),
                        continuations=tuple(
                            Continuation((Segment(np.array(tokenizer.encode(text).ids, np.int32)),))
                            for text in TEXTS
                        ),
                        top_k=16,
                        temperature=1.0,
                        returns=Returns(sampled=True, log_tail=True, realignment=True),
                    ),
                    timeout=LONG,
                )
                for name in sorted(levels)
            ]
        with urlopen(f"http://{program.facts['http_address']}/metrics") as metrics:
            lines = metrics.read().decode().splitlines()
        assert program.end(signal.SIGTERM) == 0
    extra = [line for line in lines if line.startswith("lsm_teacher_realign_extra_rows_total")]
    return Answered(found, [float(line.split()[-1]) for line in sorted(extra)])


def test_a_foreign_rollout_has_the_rows_of_the_embedded_engine(tmp_path: Path) -> None:
    """A model's and its adapter's, with a round of extra forwards."""
    model = make_tiny_model(
        tmp_path / "model", num_attention_heads=2, num_key_value_heads=1, initializer_range=0.4
    )
    teachers = [
        "--model",
        str(model),
        "--teacher",
        f"math={make_adapter(tmp_path / 'math', model)}",
    ]
    file = train_tokenizer(CODE, 352).backend_tokenizer.to_str().encode()
    mine, theirs = (
        answers(tmp_path / name, teachers, [*flags, *EXTRA], file)
        for name, flags in (("vllm", FLAGS), ("embedded", EMBEDDED))
    )
    assert mine.extra_rows == theirs.extra_rows
    assert len(mine.extra_rows) == 2
    assert min(mine.extra_rows) > 0
    for one, other in zip(mine.replies, theirs.replies, strict=True):
        for scores, expected in zip(one.results, other.results, strict=True):
            block, wanted = scores.realignment, expected.realignment
            assert block is not None
            assert wanted is not None
            np.testing.assert_array_equal(block.position_class, wanted.position_class)
            assert (block.position_class != PositionClass.MASKED).sum() > 10
            np.testing.assert_array_equal(scores.rows.support.ids, expected.rows.support.ids)
            for got, right in (
                (scores.rows.support.log_probs, expected.rows.support.log_probs),
                (scores.rows.sampled.values, expected.rows.sampled.values),
                (block.open_mass, wanted.open_mass),
            ):
                assert right is not None
                # Each engine is within 1e-4 of the plain forward.
                np.testing.assert_allclose(got, right, rtol=0, atol=2e-4)
            np.testing.assert_allclose(
                block.chunk_log_likelihood, wanted.chunk_log_likelihood, rtol=0, atol=1e-3
            )
