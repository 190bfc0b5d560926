"""What stale rollouts cost each loss, with and without the cap on importance weights
(``make bench-staleness``).

The trainer as it is, against a real teacher process: two small Llamas for additions that are
worked out part by part (benchmarks/cells), the teacher trained to the end, the student halfway,
with one tokenizer. Every run makes as many steps from the same start; runs differ in the loss, in
``pipeline.staleness``, in ``pipeline.importance_cap`` and in the seed. At the end the student's
greedy answers to held-out problems are judged, and its divergence from the teacher on what it
writes itself is computed over the whole vocabulary.

A run that was made with this plan is kept in the cache and not made again.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from benchmarks.cells.model import Recipe, accuracy, trained, write
from benchmarks.cells.pair import BEGIN, END, side
from benchmarks.cells.task import Problem, held_out, problems
from benchmarks.harness import print_table, write_result
from student_trainer.quickstart.cache import cache_dir
from student_trainer.run.directory import read_metrics
from student_trainer.settings.train import TrainConfig
from student_trainer.train import train

TEACHER = Recipe(digits=1, seed=0, steps=1600, whole=1600, rate=5e-3)
HELD_OUT, JUDGED, PROMPTS = 200, 100, 4096
# Of the longest worked solution, with its end.
TOKENS = 16
LOSSES = ("topk_forward_kl", "lsm", "sampled_token")
# Staleness and whether the importance weights are capped or not taken at all.
ARMS = ((0, "cap"), (1, "cap"), (1, "none"), (4, "cap"), (4, "none"))
CAP = 2.0


@dataclass(frozen=True)
class Plan:
    """What all runs share.

    Attributes:
        rate: of AdamW, constant after ten updates.
        start: updates that the student has made before, of the thousand of a whole training.
    """

    steps: int = 60
    replies: int = 32
    rate: float = 1e-3
    start: int = 400


@dataclass(frozen=True)
class Run:
    loss: str
    staleness: int
    weights: str
    seed: int


@dataclass(frozen=True)
class Outcome:
    """accuracy: of greedy answers to held-out problems; kl: nats a token, student to teacher, on
    the student's own replies; moved: mean of log π − log π_old of the drawn tokens of stale
    batches, and truncated: the share that the cap bounds; None where no batch was weighed."""

    accuracy: float
    kl: float
    moved: float | None
    truncated: float | None


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=Plan.steps)
    parser.add_argument("--rate", type=float, default=Plan.rate)
    parser.add_argument("--losses", nargs="+", default=LOSSES)
    parser.add_argument("--output", default="staleness", help="name of the result file")
    given = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable(logging.INFO)
    plan, left_out = Plan(steps=given.steps, rate=given.rate), held_out(HELD_OUT)
    teacher = trained(TEACHER, left_out)
    found: dict[Run, Outcome] = {}
    starts: list[Outcome] = []
    with tempfile.TemporaryDirectory() as name, serving(teacher, Path(name)) as address:
        for seed in given.seeds:
            student = trained(start_of(plan, seed), left_out)
            starts.append(judged(student, teacher, left_out, []))
            for loss in given.losses:
                for staleness, weights in ARMS:
                    if weights == "none" and loss == "sampled_token":
                        continue  # has the ratio in its definition
                    run = Run(loss, staleness, weights, seed)
                    found[run] = made(run, plan, student, teacher, address, left_out)
                    print(run, found[run], flush=True)
    publish(given.output, plan, found, starts, accuracy(teacher, side(1), left_out, TOKENS))


def start_of(plan: Plan, seed: int) -> Recipe:
    return Recipe(digits=1, seed=seed, steps=plan.start, whole=1000)


def save(model: LlamaForCausalLM, folder: Path) -> Path:
    """The model and its tokenizer, as a run loads them."""
    model.generation_config.eos_token_id = side(1).end
    model.save_pretrained(folder)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=side(1).tokenizer, bos_token=BEGIN, eos_token=END, pad_token=END
    )
    tokenizer.save_pretrained(folder)
    return folder


@contextmanager
def serving(teacher: LlamaForCausalLM, folder: Path) -> Iterator[str]:
    """A teacher process; gives its address."""
    model, ready = save(teacher, folder / "teacher"), folder / "ready.json"
    command = [sys.executable, "-m", "teacher_server", "serve", "--teacher", f"default={model}"]
    command += ["--grpc-port", "0", "--http-port", "0", "--ready-file", str(ready)]
    with (folder / "server.log").open("wb") as log:
        process = subprocess.Popen([*command, "--deterministic"], stdout=log, stderr=log)
        try:
            while not ready.exists():
                if process.poll() is not None:
                    raise RuntimeError((folder / "server.log").read_text())
                time.sleep(0.1)
            yield str(json.loads(ready.read_text())["grpc_address"])
        finally:
            process.terminate()
            process.wait()


def made(
    run: Run,
    plan: Plan,
    student: LlamaForCausalLM,
    teacher: LlamaForCausalLM,
    address: str,
    left_out: Sequence[Problem],
) -> Outcome:
    """The outcome of a run: from the cache, or of the run."""
    sources = Path(__file__).read_text()
    facts = json.dumps([asdict(run), asdict(plan), asdict(TEACHER), sources])
    kept = cache_dir() / "staleness" / f"{hashlib.sha256(facts.encode()).hexdigest()[:16]}.json"
    if not kept.exists():
        outcome = distilled(run, plan, student, teacher, address, left_out)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(asdict(outcome)))
    return Outcome(**json.loads(kept.read_text()))


def distilled(
    run: Run,
    plan: Plan,
    student: LlamaForCausalLM,
    teacher: LlamaForCausalLM,
    address: str,
    left_out: Sequence[Problem],
) -> Outcome:
    import random

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        asked = [p for p in problems(random.Random(run.seed), PROMPTS) if p not in set(left_out)]
        lines = (json.dumps({"prompt": BEGIN + one.prompt}) + "\n" for one in asked)
        (folder / "prompts.jsonl").write_text("".join(lines))
        config = TrainConfig.model_validate(
            {
                "run": {"output_dir": folder / "run", "steps": plan.steps, "seed": run.seed},
                "student": {"model": str(save(student, folder / "student")), "device": "cpu"},
                "teacher": {"address": address},
                "data": {"train": str(folder / "prompts.jsonl"), "max_prompt_tokens": 16},
                "rollout": {
                    "prompts_per_step": plan.replies,
                    "group_size": 1,
                    "max_new_tokens": TOKENS,
                    "top_p": 1.0,
                },
                "pipeline": {
                    "staleness": run.staleness,
                    "importance_cap": CAP if run.weights == "cap" else None,
                },
                "loss": {"kind": run.loss, "top_k": 16},
                "optimizer": {"lr": plan.rate, "warmup_steps": 10, "weight_decay": 0.0},
                "evaluation": {"prompts": 0},
                "report": {"html": False, "metric_rows": 0},
                "checkpoint": {"every": plan.steps},
            }
        )
        with (folder / "out").open("w") as out, redirect_stdout(out):
            train(config)
        trained_model = LlamaForCausalLM.from_pretrained(folder / "run" / "model")
        lines_of = read_metrics(folder / "run" / "metrics.jsonl")
        return judged(trained_model.eval(), teacher, left_out, lines_of)


@torch.inference_mode()
def judged(
    student: LlamaForCausalLM,
    teacher: LlamaForCausalLM,
    left_out: Sequence[Problem],
    lines: Sequence[dict[str, float]],
) -> Outcome:
    asked = left_out[:JUDGED]
    ids, lengths = write(student, side(1), asked, torch.Generator().manual_seed(11), TOKENS)
    total, count = 0.0, 0
    for problem, reply, length in zip(asked, ids, lengths, strict=True):
        before = side(1).prompt_ids(problem.prompt)
        text = torch.tensor([[*before, *reply[:length].tolist()]])
        rows = slice(len(before) - 1, -1)
        log_p, log_q = (
            torch.log_softmax(model(input_ids=text).logits[0, rows].double(), -1)
            for model in (student, teacher)
        )
        total += float((log_p.exp() * (log_p - log_q)).sum())
        count += int(length)

    def mean(name: str) -> float | None:
        values = [line[name] for line in lines if line.get(name) is not None]
        return float(np.mean(values)) if values else None

    right = accuracy(student, side(1), left_out, TOKENS)
    moved, truncated = mean("importance_log_ratio"), mean("importance_truncated")
    return Outcome(right, total / count, moved, truncated)


def publish(
    output: str, plan: Plan, found: dict[Run, Outcome], starts: list[Outcome], of_teacher: float
) -> None:
    """The table by loss and arm: means over seeds, and the difference to the same seeds' run
    without staleness."""
    figures: dict[str, float | None] = {
        "accuracy_teacher": of_teacher,
        "accuracy_start": statistics.fmean(one.accuracy for one in starts),
        "kl_start": statistics.fmean(one.kl for one in starts),
    }
    rows = []
    for loss in dict.fromkeys(run.loss for run in found):
        fresh = {r.seed: o for r, o in found.items() if (r.loss, r.staleness) == (loss, 0)}
        for staleness, weights in ARMS:
            own = {
                r.seed: o
                for r, o in found.items()
                if (r.loss, r.staleness, r.weights) == (loss, staleness, weights)
            }
            if not own:
                continue
            name = f"{loss}_{staleness}" + ("" if weights == "cap" else "_uncapped")
            kl = statistics.fmean(one.kl for one in own.values())
            right = statistics.fmean(one.accuracy for one in own.values())
            cost = [own[seed].kl / fresh[seed].kl for seed in own]
            figures[f"kl_{name}"], figures[f"accuracy_{name}"] = kl, right
            figures[f"kl_over_fresh_{name}"] = statistics.fmean(cost)
            spread = f"{min(cost):.2f}-{max(cost):.2f}"
            rows.append((loss, staleness, weights, f"{kl:.4f}", f"{right:.3f}", spread))
    print_table(("loss", "staleness", "weights", "KL", "accuracy", "KL over fresh"), rows)
    details = {
        "plan": asdict(plan),
        "runs": [{**asdict(run), **asdict(outcome)} for run, outcome in found.items()],
        "starts": [asdict(one) for one in starts],
    }
    write_result(output, figures, details)


if __name__ == "__main__":
    main()
