"""On-policy distillation by Local Support Matching: the whole algorithm on one page.

Each step of a plain PyTorch loop

    1. lets the student write a response to a prompt,
    2. asks the teacher service for its most likely tokens at every position of it,
    3. computes the loss on these tokens, and makes one update of the student.

Start a teacher whose tokenizer is the student's (``teacher-server serve --model MODEL``),
then run

    python examples/plain_loop.py --teacher 127.0.0.1:50051 --student MODEL --steps 20

The trainer does the same with groups of responses, micro-batches, checkpoints that resume
exactly, and teachers with another tokenizer (docs/architecture.md).
"""

from __future__ import annotations

import argparse
import uuid
from collections.abc import Sequence

import numpy as np
import torch
from teacher_proto import TeacherClient
from teacher_proto.tokenizer_hash import tokenizer_hash
from teacher_proto.types import (
    Continuation,
    ContinuationScores,
    ScoreRequest,
    Segment,
    TokenPrompt,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

from student_trainer.losses import Head, LossBatch, LossSettings, lsm

PROMPTS = ("What is the capital of France?", "The weather in the morning was")
TOP_K = 16


class Teacher:
    """The teacher service, for a student that has the teacher's tokenizer."""

    def __init__(self, address: str, tokenizer, vocabulary: int) -> None:
        self.client = TeacherClient(address, run="example")
        self.tokenizer_hash = tokenizer_hash(tokenizer.backend_tokenizer.to_str())
        self.vocabulary = vocabulary

    def scores(self, prompt: Sequence[int], response: Sequence[int]) -> ContinuationScores:
        """The teacher's top K at each token of a response."""
        reply = self.client.score(
            ScoreRequest(
                request_id=uuid.uuid4().hex,
                run="example",
                teacher="default",
                tokenizer_hash=self.tokenizer_hash,
                prompt=TokenPrompt(np.array(prompt, np.int32)),
                continuations=(Continuation((Segment(np.array(response, np.int32)),)),),
                top_k=TOP_K,
                temperature=1.0,
                student_vocabulary_size=self.vocabulary,
            ),
            timeout=60,
        )
        return reply.results[0]


def train(address: str, student: str, steps: int, lr: float = 1e-4) -> list[float]:
    """Trains the student.

    Returns:
        The mean loss of each step, nats per token.
    """
    tokenizer = AutoTokenizer.from_pretrained(student)
    model = AutoModelForCausalLM.from_pretrained(student)
    teacher = Teacher(address, tokenizer, model.config.vocab_size)
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr)
    head = Head(model.get_output_embeddings().weight)
    losses = []
    for step in range(steps):
        prompt = tokenizer(PROMPTS[step % len(PROMPTS)]).input_ids
        model.eval()
        drawn = model.generate(
            torch.tensor([prompt]), do_sample=True, top_k=0, top_p=0.9, max_new_tokens=24
        )[0].tolist()
        response = drawn[len(prompt) :]
        model.train()
        # Row t needs the state at the token before token t, so the last token is never read.
        states = model.base_model(torch.tensor([drawn[:-1]])).last_hidden_state[0]
        scores = teacher.scores(prompt, response)
        batch = LossBatch.from_scores(states[len(prompt) - 1 :], [response], [scores])
        result = lsm(batch, head, LossSettings(temperature=1.0))
        loss = result.total / result.used.sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        print(f"step {step + 1}: {len(response)} tokens, loss {losses[-1]:.4f}")
    teacher.client.close()
    return losses


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", required=True, help="host:port")
    parser.add_argument("--student", required=True, help="directory or hub id")
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    train(arguments.teacher, arguments.student, arguments.steps)
