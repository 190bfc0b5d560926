"""Every recipe in small form against a real teacher server, and what such a run leaves."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli_w
import yaml
from teacher_proto.program.entrypoint import run_program
from teacher_proto.program.settings import load_settings
from transformers import AutoConfig, AutoTokenizer

from student_trainer import recipes
from student_trainer.cli import run as run_cli
from student_trainer.commands.prune import prune
from student_trainer.run import checkpoint
from student_trainer.run.directory import RunDirectory, read_metrics
from student_trainer.run.progress import brief
from student_trainer.settings.train import TrainConfig
from student_trainer.tasks import Task
from student_trainer.tasks.alfworld import AlfWorldTask
from student_trainer.tasks.math import MathTask
from student_trainer.tasks.reasoning import ReasoningTask
from tests.support.models import make_model_with_images
from tests.trainer.conftest import write_prompts
from tests.trainer.processes import Server, serve

# What makes a recipe small; everything else is the recipe's own.
SMALL = (
    "run.steps=2",
    "student.device=cpu",
    "rollout.prompts_per_step=4",
    "rollout.group_size=2",
    "rollout.max_new_tokens=12",
    "evaluation.prompts=2",
    "evaluation.frozen_rows=0",
    "evaluation.max_new_tokens=8",
    "report.html=false",
)
OF_FILES = (
    "data.columns.prompt=prompt",
    "data.max_prompt_tokens=64",
    "data.held_out_fraction=0.3",
)
OF_EPISODES = ("data.max_prompt_tokens=400", "rollout.max_new_tokens=100")
OF_TASKS = ("data.max_prompt_tokens=480", "evaluation.task_prompts=2", "evaluation.every=2")


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path, student_model_dir: Path
) -> Iterator[Server]:
    """Its teachers are those that the recipes name, and one of Qwen3.5's family."""
    folder = tmp_path_factory.mktemp("server")
    served = {"default": tiny_model_dir, "maths": tiny_model_dir, "general": student_model_dir}
    served["home"] = student_model_dir
    served["qwen35"] = qwen35(folder / "qwen35", tiny_model_dir, seed=0)
    with serve(folder, **served) as running:
        yield running


def qwen35(folder: Path, tokenizer: Path, seed: int) -> Path:
    """A model of that family, whose tokenizer transformers makes of its vocabulary and merges."""
    return make_model_with_images(
        "Qwen3_5",
        folder,
        tokenizer=AutoTokenizer.from_pretrained(tokenizer),
        seed=seed,
        max_position_embeddings=512,
    )


def datasets(config: TrainConfig, directory: Path) -> list[str]:
    """A file in place of each dataset of a task, with the columns that the recipe names, and few
    questions that are made on the spot."""
    found = []
    for number, (name, task) in enumerate((config.tasks or {}).items()):
        if isinstance(task, ReasoningTask):
            found += [f"tasks.{name}.prompts_to_train=20", f"tasks.{name}.prompts_held_out=4"]
        if not isinstance(task, MathTask):
            continue
        mark = task.answer_after or ""
        for split, first in (("train", 100 * number), ("held_out", 100 * number + 50)):
            if getattr(task, split) is None:
                continue
            rows = [
                {task.question: f"What is {n} plus {n}?", task.answer: f"{mark}{2 * n}"}
                for n in range(first, first + 8)
            ]
            file = directory / f"{name}-{split}.jsonl"
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
            found.append(f"tasks.{name}.{split}={file}")
    return found


def without_alfworld(name: str, directory: Path) -> str:
    """What ``train`` is given for a recipe: itself, or a copy with small games of TextWorld in the
    place of ALFWorld's, whose data is not here."""
    values = tomllib.loads(recipes.recipe(name).read_text())
    tasks = values.get("tasks", {})
    games = [task for task in tasks.values() if task["kind"] == "alfworld"]
    if not games:
        return f"recipe:{name}"
    pytest.importorskip("textworld", reason="textworld is not installed")
    small = {"rooms": 2, "quest_length": 1, "games_to_train": 4, "games_held_out": 2, "turns": 3}
    for task in games:
        kept = {key: task[key] for key in ("teacher", "extract", "instruction")}
        task.clear()
        task.update(kind="textworld", game="coin_collector", turn_tokens=6, **small, **kept)
    copy = directory / "copy.toml"
    copy.write_text(tomli_w.dumps(values))
    return str(copy)


def small_run(name: str, model: Path, server: Server, directory: Path, *more: str) -> Path:
    prompts = directory / "prompts.jsonl"
    rows = [{"prompt": f"What is {n}?", "solution": f"It is {n}."} for n in range(12)]
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = load_settings(TrainConfig, [recipes.recipe(name)]).settings
    sections = [f"teachers.{one}" for one in config.teachers or ()] or ["teacher"]
    values = [
        *SMALL,
        *((*OF_FILES, f"data.train={prompts}") if config.tasks is None else OF_TASKS),
        *datasets(config, directory),
        f"run.output_dir={directory / 'run'}",
        f"student.model={model}",
        *(f"{section}.address={server.address}" for section in sections),
        *more,
    ]
    flags = [part for value in values for part in ("--set", value)]
    assert run_program(run_cli, ["train", without_alfworld(name, directory), *flags]) == 0
    return directory / "run"


@pytest.mark.parametrize("name", recipes.names())
def test_a_recipe_trains(
    name: str, tiny_model_dir: Path, student_model_dir: Path, server: Server, tmp_path: Path
) -> None:
    model = student_model_dir
    if name == "depth-pruned-heal":
        model = prune(str(tiny_model_dir), tmp_path / "pruned", keep=2).output
    elif name == "gsm8k-lora":
        model = qwen35(tmp_path / "qwen", tiny_model_dir, seed=1)
    more = {"gsm8k-lora": ("teacher.name=qwen35",), "paper-multi-task": OF_EPISODES}.get(name, ())
    run = small_run(name, model, server, tmp_path, *more)
    config = load_settings(TrainConfig, [recipes.recipe(name)]).settings
    lines = read_metrics(run / "metrics.jsonl")
    assert [line["step"] for line in lines] == [1, 2]
    found = checkpoint.newest_good(run / "checkpoints")
    assert found is not None
    assert checkpoint.load_state(found).updates == 2 * config.optimizer.updates_per_batch
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["loss"], summary["top_k"]) == (config.loss.kind, config.loss.top_k)
    assert (run / "model" / "README.md").exists()
    merged = AutoConfig.from_pretrained(run / "model")
    assert merged.architectures == AutoConfig.from_pretrained(model).architectures
    assert "realign_coverage" not in lines[0], "one tokenizer"
    judged = {name for name, task in (config.tasks or {}).items() if has_held_out(task)}
    for when in ("before", "after"):
        of_tasks = {key for key in summary if key.startswith(f"pass_at_1_{when}/")}
        assert of_tasks == {f"pass_at_1_{when}/{name}" for name in judged}
    if config.teachers is not None:
        # One task a step where they alternate.
        some = any if config.data.batches == "alternating" else all
        trained = [name for name, task in (config.tasks or {}).items() if task.weight]
        told = [f"loss/{teacher}" for teacher in config.teachers]
        for key in (*told, *(f"task_responses/{name}" for name in trained)):
            assert some((line.get(key) or 0) > 0 for line in lines), key


def has_held_out(task: Task) -> bool:
    return not isinstance(task, MathTask) or task.held_out is not None


def test_the_settings_of_the_published_run() -> None:
    """ms-swift's page on Qwen3.5 (docs/head-to-head.md)."""
    run = load_settings(TrainConfig, [recipes.recipe("gsm8k-lora")]).settings
    assert (run.student.model, run.student.dtype) == ("Qwen/Qwen3.5-2B", "bfloat16")
    assert run.student.lora is not None
    assert (run.student.lora.rank, run.student.lora.alpha, run.student.lora.dropout) == (
        8,
        32,
        0.05,
    )
    assert (run.loss.top_k, run.loss.temperature, run.rollout.temperature) == (64, 0.9, 0.9)
    assert run.rollout.prompts_per_step * run.rollout.group_size == 3 * 2 * 16
    assert run.optimizer.lr == 5e-5
    assert run.optimizer.warmup_steps == 0.1 * run.run.steps
    assert (run.data.max_prompt_tokens, run.rollout.max_new_tokens) == (2048, 8192)
    assert run.data.template_arguments == {"enable_thinking": False}
    assert (run.evaluation.task_prompts, run.evaluation.every) == (1319, 100)
    text = recipes.recipe("gsm8k-lora").read_text()
    overrides = re.findall(r"--set (loss\S+=\S+)", text)
    theirs = load_settings(TrainConfig, [recipes.recipe("gsm8k-lora")], overrides=overrides)
    loss = theirs.settings.loss
    assert (loss.kind, loss.beta, loss.top_k) == ("topk_jsd", 0.5, 64)


def test_the_papers_settings() -> None:
    paper = load_settings(TrainConfig, [recipes.recipe("paper-math")]).settings
    assert paper.student.model == "Qwen/Qwen2.5-7B-Instruct"
    assert "OpenThinker3-7B" in recipes.purpose(recipes.recipe("paper-math"))
    assert (paper.loss.kind, paper.loss.top_k, paper.loss.temperature) == ("lsm", 32, 1.0)
    rollout, optimizer = paper.rollout, paper.optimizer
    assert (rollout.prompts_per_step, rollout.group_size) == (16, 8)
    assert 16 * 8 / optimizer.updates_per_batch == 64, "the mini-batch"
    assert (rollout.temperature, rollout.top_p) == (1.0, 0.9)
    assert (paper.data.max_prompt_tokens, rollout.max_new_tokens) == (2048, 16384)
    assert paper.tasks is not None
    assert [name for name, task in paper.tasks.items() if task.weight] == ["dapo"]
    assert len(paper.tasks) == 6, "and the five sets of the evaluation"
    assert (optimizer.lr, optimizer.schedule, optimizer.warmup_steps) == (2e-6, "constant", 0)
    assert (optimizer.weight_decay, optimizer.clip_norm, paper.run.steps) == (0.01, 1.0, 400)


def test_the_papers_settings_of_both_tasks() -> None:
    paper = load_settings(TrainConfig, [recipes.recipe("paper-multi-task")]).settings
    math = load_settings(TrainConfig, [recipes.recipe("paper-math")]).settings
    assert (paper.run.steps, paper.data.batches) == (400, "alternating")
    assert (paper.loss, paper.optimizer.lr) == (math.loss, math.optimizer.lr)
    assert paper.tasks is not None
    assert math.tasks is not None
    both = {name: task.teacher for name, task in paper.tasks.items() if task.weight}
    assert both == {"dapo": "maths", "alfworld": "home"}
    games = paper.tasks["alfworld"]
    assert isinstance(games, AlfWorldTask)
    assert (games.turns, games.turn_tokens, games.weight) == (30, 512, paper.tasks["dapo"].weight)
    same = {name: task.model_copy(update={"teacher": None}) for name, task in paper.tasks.items()}
    assert {name: same[name] for name in math.tasks} == math.tasks


@pytest.mark.parametrize(
    ("name", "base", "differ"),
    [
        ("sampled-token", "paper-math", {"run", "loss"}),
        ("forward-kl", "one-gpu-lora", {"run", "loss"}),
        ("jsd", "one-gpu-lora", {"run", "loss"}),
    ],
)
def test_a_baseline_differs_in_its_loss_alone(name: str, base: str, differ: set[str]) -> None:
    ours, theirs = (
        load_settings(TrainConfig, [recipes.recipe(n)]).settings.model_dump() for n in (name, base)
    )
    assert {key for key in ours if ours[key] != theirs[key]} == differ
    assert ours["run"]["steps"] == theirs["run"]["steps"]


def test_the_papers_lines_for_a_smaller_gpu_are_settings() -> None:
    text = recipes.recipe("paper-math").read_text()
    overrides = re.findall(r"--set ((?:student|optimizer)\S+=[^\s.]+(?:\.\d+)?)", text)
    assert len(overrides) == 2
    config = load_settings(
        TrainConfig, [recipes.recipe("paper-math")], overrides=overrides
    ).settings
    assert config.student.lora is not None
    assert config.optimizer.lr == 1e-4


def test_the_command_lists_prints_and_refuses(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run_program(run_cli, ["recipes"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == recipes.names()
    assert run_program(run_cli, ["recipes", "laptop-cpu"]) == 0
    copy = tmp_path / "copy.toml"
    copy.write_text(capsys.readouterr().out)
    kept, read = (
        load_settings(TrainConfig, [f]).settings for f in (copy, recipes.recipe("laptop-cpu"))
    )
    assert kept == read
    assert run_program(run_cli, ["train", "recipe:paper-maths", "--dry-run"]) == 2
    assert "did you mean paper-math?" in capsys.readouterr().err
    assert run_program(run_cli, ["train", "recipe:jsd", "--dry-run"]) == 0
    assert f"loss.beta = 0.5 (file {recipes.recipe('jsd')})" in capsys.readouterr().out


def test_what_a_run_shows_tracks_and_tells(
    student_model_dir: Path,
    server: Server,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    canary = "canary0123456789canary0123456789"
    monkeypatch.setenv("LSM_TRAINER__TEACHER__TOKEN", canary)
    caplog.set_level("INFO", "student_trainer")
    run = small_run(
        "laptop-cpu", student_model_dir, server, tmp_path, 'tracking.trackers=["tensorboard"]'
    )
    lines = read_metrics(run / "metrics.jsonl")
    shown = capsys.readouterr().out.splitlines()
    told = [f"step {line['step']}/{len(lines)}  {brief(line)}" for line in lines]
    assert shown[: len(told)] == told, "a short line a step"
    assert not any(line.startswith("step ") for line in shown[len(told) :])
    assert str(run / "metrics.jsonl") in "".join(shown[len(told) :]), (
        "the table and the paths end it"
    )
    example = next(r.getMessage() for r in caplog.records if "first example" in r.getMessage())
    assert "prompt tokens (no loss)" in example
    assert "with loss" in example

    found = EventAccumulator(str(run / "tensorboard")).Reload()
    assert [e.step for e in found.Scalars("loss")] == [1, 2]
    assert [e.value for e in found.Scalars("loss")] == pytest.approx([x["loss"] for x in lines])
    summary = json.loads((run / "summary.json").read_text())
    (after,) = found.Scalars("summary/rollout_length_after")
    assert after.value == pytest.approx(summary["rollout_length_after"])

    card = (run / "model" / "README.md").read_text()
    header = yaml.safe_load(card.split("---")[1])
    assert header["library_name"] == "transformers"
    assert "base_model" not in header, "the student is a folder of this machine"
    assert lines[0]["teacher_identity"] in card
    assert "| `loss.top_k` | 128 |" in card
    assert "| `rollout.temperature` | 1.0 |" in card
    assert "| `rollout.top_p` | 0.9 |" in card
    kept = [f"{line['teacher_support_mass']:.4g}" for line in lines]
    assert f"| teacher's mass on its top K | {' | '.join(kept)} |" in card
    length = f"{summary['rollout_length_before']:.4g} | {summary['rollout_length_after']:.4g}"
    assert f"| Answer length, tokens | {length} |" in card
    assert "| Reverse KL, frozen positions | not measured | not measured |" in card
    assert "8 prompts of prompts.jsonl; 0 longer ones were left out." in card
    for private in (str(tmp_path), str(student_model_dir), server.address):
        assert private not in card
    written = [path.read_bytes() for path in run.rglob("*") if path.is_file()]
    assert not any(canary.encode() in content for content in written)
    assert canary not in caplog.text


def test_what_cannot_work_ends_the_run_before_its_first_step(
    student_model_dir: Path, server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*more: str) -> str:
        output = RunDirectory(tmp_path / "run")
        values = [f"run.output_dir={output.path}", f"student.model={student_model_dir}",
                  f"teacher.address={server.address}", *more]  # fmt: skip
        flags = [part for value in (*SMALL, *OF_FILES, *values) for part in ("--set", value)]
        assert run_program(run_cli, ["train", "recipe:laptop-cpu", *flags]) == 2
        assert not output.metrics.exists()
        return capsys.readouterr().err

    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n")
    assert "holds no prompt to use" in refused(f"data.train={empty}")
    long = write_prompts(tmp_path / "long.jsonl", ["a" * 200])
    assert 'data.over_long = "drop"' in refused(f"data.train={long}")
    other = tmp_path / "other.jsonl"
    other.write_text('{"question": "x"}\n')
    message = refused(f"data.train={other}")
    assert "needs the column 'prompt'; its columns are 'question'" in message
    assert "did you mean 'mlflow'?" in refused('tracking.trackers=["mlfow"]')
    assert "HF_HUB_OFFLINE is set" in refused('hub.repo="owner/name"', f"data.train={long}")
    assert "hub.repo" in refused('hub.repo="name"')
