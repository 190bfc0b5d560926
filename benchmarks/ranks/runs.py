"""Runs of ``benchmarks.ranks.side``: their models, settings and results."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from teacher_proto.program.settings_show import to_toml
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from student_trainer.quickstart.server import TeacherProcess
from student_trainer.settings.train import TrainConfig
from tests.support.models import ENGLISH, save_model, train_tokenizer

ROOT = Path(__file__).parents[2]
VOCABULARY, HEADS = 320, 4
WORDS = " ".join(ENGLISH).split()


def llama(folder: Path, hidden: int, layers: int, seed: int, *, tied: bool = True) -> Path:
    """A random Llama of these sizes, with a tokenizer of 320 tokens."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=8 * hidden // 3,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS // 2,
        max_position_embeddings=1024,
        tie_word_embeddings=tied,
        bos_token_id=None,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    return save_model(model, folder, train_tokenizer(ENGLISH, VOCABULARY))


def write_data(path: Path, rows: int, answer_words: int) -> Path:
    """Prompts with answers of about so many words, every row another one."""
    lines = []
    for row in range(rows):
        start = row * 7
        answer = " ".join(WORDS[(start + n) % len(WORDS)] for n in range(answer_words - row % 5))
        prompt = " ".join(WORDS[(start + n) % len(WORDS)] for n in range(3 + row % 4))
        lines.append(json.dumps({"prompt": prompt, "response": answer}) + "\n")
    path.write_text("".join(lines))
    return path


@dataclass
class Runs:
    """A context manager: a folder with a student, its prompts, and the teacher's process.

    Attributes:
        sections: settings of all runs, merged over the common ones.
        cores: that either side has in all.
    """

    folder: Path
    student: Path
    teacher: Path
    sections: Mapping[str, Mapping[str, Any]]
    cores: int = 2

    def __enter__(self) -> Runs:
        self.data = write_data(self.folder / "data.jsonl", rows=160, answer_words=24)
        self.server = TeacherProcess(
            model=self.teacher,
            log=self.folder / "server.log",
            ready_file=self.folder / "ready.json",
            arguments=("--deterministic", "--device", "cpu", "--dtype", "float32"),
        )
        self.server.__enter__()
        return self

    def __exit__(self, *exception: object) -> None:
        self.server.__exit__(*exception)

    def config(self, name: str, **sections: Mapping[str, Any]) -> TrainConfig:
        common: dict[str, dict[str, Any]] = {
            "run": {"output_dir": str(self.folder / name), "seed": 3},
            "student": {"model": str(self.student), "device": "cpu", "dtype": "float32"},
            "teacher": {"address": self.server.grpc_address, "timeout_seconds": 600.0},
            "data": {"train": str(self.data), "max_prompt_tokens": 64},
            "loss": {"kind": "lsm", "top_k": 32},
            "optimizer": {"lr": 1e-4, "weight_decay": 0.0},
            "evaluation": {"prompts": 0},
            "report": {"html": False, "metric_rows": 0},
        }
        for chosen in (self.sections, sections):
            for section, values in chosen.items():
                common[section] = {**common.get(section, {}), **values}
        return TrainConfig.model_validate(common)

    def make(self, config: TrainConfig, ranks: int, sgd: float | None = None) -> Side:
        """Makes or continues a run on so many ranks, which share the cores."""
        out = config.run.output_dir
        facts = out.with_name(out.name + "-facts")
        file = out.with_name(out.name + ".toml")
        file.write_text(to_toml(config))
        program = ["-m", "benchmarks.ranks.side", str(file), str(facts)]
        program += [] if sgd is None else ["--sgd", str(sgd)]
        command = [sys.executable]
        if ranks > 1:
            command += ["-m", "torch.distributed.run", "--standalone"]
            command += ["--nproc-per-node", str(ranks)]
        log = out.with_name(out.name + ".log")
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": str(max(self.cores // ranks, 1)),
            "HF_HUB_OFFLINE": "1",
            # Large tensors that are freed go back to the kernel at once, so that resident memory is
            # what is held.
            "MALLOC_MMAP_THRESHOLD_": "1048576",
        }
        with log.open("ab") as stream:
            done = subprocess.run(
                [*command, *program], cwd=ROOT, env=environment, stdout=stream, stderr=stream
            )
        if done.returncode:
            raise RuntimeError(f"{file} failed ({done.returncode}):\n{log.read_text()[-4000:]}")
        found = [json.loads(p.read_text()) for p in sorted(facts.glob("rank-*.json"))][:ranks]
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        return Side(out, lines, found)


@dataclass(frozen=True)
class Side:
    """A run that is made.

    Attributes:
        lines: of its metrics.
        facts: what each rank has said of its memory.
    """

    path: Path
    lines: list[dict[str, Any]]
    facts: list[dict[str, Any]]

    @property
    def losses(self) -> list[float]:
        return [line["loss"] for line in self.lines]

    def seconds(self, part: str) -> float:
        """Median seconds of a part of a step; the first step is left out, which warms up."""
        return statistics.median(line[f"{part}_seconds"] for line in self.lines[1:])

    @property
    def held(self) -> int:
        """Bytes of tensors after the last step, of the rank that holds the most."""
        return max(facts["held"][-1] for facts in self.facts)

    @property
    def peak(self) -> int:
        """Most bytes of resident memory beside those before the student was there, of the rank
        that had the most."""
        return max(facts["peak"] - facts["resident_before"] for facts in self.facts)

    def weights(self) -> dict[str, Tensor]:
        """The final model, float64."""
        return weights(self.path / "model")


def weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a saved model, float64."""
    tensors: dict[str, Tensor] = {}
    for path in sorted(folder.glob("*.safetensors")):
        tensors |= {name: tensor.double() for name, tensor in load_file(path).items()}
    return tensors


def update_distance(
    start: Mapping[str, Tensor], one: Mapping[str, Tensor], other: Mapping[str, Tensor]
) -> float:
    """2-norm of the difference of two total updates, over that of the first one."""
    assert start.keys() == one.keys() == other.keys()
    apart = sum(float((other[name] - one[name]).square().sum()) for name in one)
    whole = sum(float((one[name] - start[name]).square().sum()) for name in one)
    return float((apart / whole) ** 0.5)
