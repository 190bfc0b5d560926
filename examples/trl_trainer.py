"""Local Support Matching inside TRL's own trainer, with the service as its teacher.

TRL's DistillationTrainer writes the completions and steps the optimizer; the teacher is the
service, and the loss any of ours (docs/trl.md). On several GPUs: ``accelerate launch``.

    python examples/trl_trainer.py --teacher 127.0.0.1:50051 --student MODEL --output out
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from datasets import Dataset
from plain_loop import PROMPTS
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import DistillationConfig

from student_trainer.trl import LsmDistillationTrainer


def train(address: str, student: str, output: Path, steps: int) -> list[float]:
    """Trains the student; returns the loss that TRL logged at each step, nats per token."""
    trainer = LsmDistillationTrainer(
        AutoModelForCausalLM.from_pretrained(student),
        teachers=address,
        loss={"kind": "lsm", "top_k": 16},
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
    )
    trainer.train()
    trainer.close()
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
