"""Local Support Matching inside TRL's own trainer.

TRL's DistillationTrainer writes the completions and steps the optimizer. The teacher is the
service instead of a model in this process, and the loss is Local Support Matching, for which
no [tokens, vocabulary] logits are built.

    python examples/trl_trainer.py --teacher 127.0.0.1:50051 --student MODEL --output out
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from datasets import Dataset
from plain_loop import PROMPTS, Teacher
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DistillationConfig, DistillationTrainer

from student_trainer.losses import Head, LossBatch, LossSettings, lsm


class ServiceDistillationTrainer(DistillationTrainer):
    """TRL's on-policy trainer, with ``teacher_model=None`` and the service in its place."""

    def __init__(self, *args, address: str, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        vocabulary = self.model.config.vocab_size
        self.service = Teacher(address, self.processing_class, vocabulary)

    def _compute_loss(self, unwrapped_student, inputs, num_items_in_batch):
        """Returns (loss, sum of entropies, number of tokens), as TRL's own method does."""
        prompt_mask, mask = inputs["prompt_mask"].bool(), inputs["completion_mask"].bool()
        hidden = self._get_last_hidden_state(
            unwrapped_student,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            inputs["completion_ids"].size(1),
        )
        prompts = [
            ids[keep].tolist() for ids, keep in zip(inputs["prompt_ids"], prompt_mask, strict=True)
        ]
        responses = [
            ids[keep].tolist() for ids, keep in zip(inputs["completion_ids"], mask, strict=True)
        ]
        scores = [self.service.scores(p, r) for p, r in zip(prompts, responses, strict=True)]
        batch = LossBatch.from_scores(hidden[mask], responses, scores)
        head = Head(unwrapped_student.get_output_embeddings().weight)
        result = lsm(batch, head, LossSettings(temperature=self.temperature))
        tokens = result.used.sum()
        loss = result.total / (tokens if num_items_in_batch is None else num_items_in_batch)
        # TRL logs an entropy. It would need the whole vocabulary, so NaN is logged instead.
        return loss, torch.full((), torch.nan), tokens


def train(address: str, student: str, output: Path, steps: int) -> list[float]:
    """Trains the student; returns the loss that TRL logged at each step, nats per token."""
    trainer = ServiceDistillationTrainer(
        model=AutoModelForCausalLM.from_pretrained(student),
        teacher_model=None,
        args=DistillationConfig(
            output_dir=str(output),
            max_steps=steps,
            per_device_train_batch_size=2,
            learning_rate=1e-4,
            max_completion_length=16,
            temperature=1.0,
            top_p=0.9,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            bf16=False,
            use_cpu=not torch.cuda.is_available(),
        ),
        train_dataset=Dataset.from_dict({"prompt": list(PROMPTS) * steps}),
        processing_class=AutoTokenizer.from_pretrained(student),
        address=address,
    )
    trainer.train()
    trainer.service.client.close()
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", required=True, help="host:port")
    parser.add_argument("--student", required=True, help="directory or hub id")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=20)
    arguments = parser.parse_args()
    train(arguments.teacher, arguments.student, arguments.output, arguments.steps)
