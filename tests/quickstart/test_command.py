"""The quickstart's own parts: settings, the run directory, the server's process, its end."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console
from teacher_proto.errors import ConfigurationError, TeacherUnavailableError
from transformers import AutoModelForCausalLM, AutoTokenizer

from student_trainer.commands.prune import prune
from student_trainer.quickstart import command, foreign
from student_trainer.quickstart.server import TeacherProcess
from student_trainer.report.table import closing

REPOSITORY = Path(__file__).parents[2]
SMALL = (
    "evaluation.prompts=6",
    "evaluation.frozen_rows=256",
    "evaluation.max_new_tokens=24",
    "data.max_prompt_tokens=420",
    "rollout.prompts_per_step=4",
    "rollout.max_new_tokens=8",
)


@pytest.fixture(scope="module")
def tiny_student_dir(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("pruned") / "student"
    prune(str(tiny_model_dir), output, drop=[1])
    return output


def arguments(output: Path, steps: int, cross: bool = False) -> argparse.Namespace:
    return argparse.Namespace(
        output=output, steps=steps, overrides=list(SMALL), cross_tokenizer=cross
    )


def prompts(name: str) -> list[str]:
    lines = (command.FOLDER / name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["messages"][-1]["content"] for line in lines]


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_the_prompts_are_distinct_and_the_sets_disjoint() -> None:
    train, held_out = prompts("train.jsonl"), prompts("held_out.jsonl")
    assert len(train) >= 150
    assert len(held_out) >= 48
    assert len({text.casefold() for text in train + held_out}) == len(train) + len(held_out)


def test_the_packaged_settings_are_valid_and_can_be_changed() -> None:
    flags = command.run_flags(arguments(Path("out"), 3), Path("m"), "127.0.0.1:5")
    config = command.load_config(["optimizer.lr=5e-5"], flags)
    assert config.run.steps == 3
    assert config.run.output_dir == Path("out")
    assert config.optimizer.lr == 5e-5
    assert config.evaluation.prompts <= len(prompts("held_out.jsonl"))
    assert config.evaluation.frozen_rows >= 256
    assert Path(config.data.train).is_file()
    with pytest.raises(ConfigurationError, match="did you mean optimizer"):
        command.load_config(["optimiser.lr=5e-5"], flags)


@pytest.mark.parametrize("key", ["teacher.address", "student.model", "run.output_dir"])
def test_what_the_command_decides_cannot_be_set(key: str) -> None:
    flags = command.run_flags(arguments(Path("out"), 3), Path("m"), "127.0.0.1:5")
    with pytest.raises(ConfigurationError, match=f"sets {key} itself"):
        command.load_config([f"{key}=x"], flags)


def test_an_older_run_is_moved_aside_whole(tmp_path: Path) -> None:
    output = tmp_path / "quickstart"
    assert command.move_aside(output) is None
    for number in (1, 2):
        output.mkdir()
        (output / "metrics.jsonl").write_text(f"run {number}")
        assert command.move_aside(output) == tmp_path / f"quickstart-{number}"
        assert not output.exists()
    assert (tmp_path / "quickstart-1" / "metrics.jsonl").read_text() == "run 1"
    assert (tmp_path / "quickstart-2" / "metrics.jsonl").read_text() == "run 2"


def test_a_directory_that_is_not_a_run_stays(tmp_path: Path) -> None:
    (tmp_path / "photos.txt").write_text("mine")
    with pytest.raises(ConfigurationError, match="not a run directory"):
        command.move_aside(tmp_path)
    assert (tmp_path / "photos.txt").exists()


def test_the_server_is_a_process_and_ends_with_the_context(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    ready = tmp_path / "ready.json"
    with TeacherProcess(tiny_model_dir, tmp_path / "log", ready) as server:
        facts = json.loads(ready.read_text())
        assert server.pid != os.getpid()
        assert facts["grpc_address"] == server.grpc_address
        assert not server.grpc_address.endswith(":0")
        with urllib.request.urlopen(f"http://{facts['http_address']}/readyz", timeout=30) as reply:
            assert reply.status == 200
        assert server.ended() == ""
        pid = server.pid
    assert not alive(pid)
    assert not ready.exists()


def test_the_server_ends_when_the_body_fails(tiny_model_dir: Path, tmp_path: Path) -> None:
    process = TeacherProcess(tiny_model_dir, tmp_path / "log", tmp_path / "ready.json")
    with pytest.raises(KeyError), process:
        raise KeyError("body")
    assert not alive(process.pid)


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    process = TeacherProcess(tmp_path / "nothing", tmp_path / "log", tmp_path / "ready.json")
    with pytest.raises(TeacherUnavailableError, match=r"exit code 2(.|\n)*nothing"), process:
        pass


def test_a_whole_run_on_tiny_models(
    tiny_model_dir: Path, tiny_student_dir: Path, tmp_path: Path
) -> None:
    output = tmp_path / "runs" / "quickstart"
    output.mkdir(parents=True)
    command._train(Console(quiet=True), arguments(output, 2), tiny_model_dir, tiny_student_dir)
    summary = json.loads((output / "summary.json").read_text())
    assert summary["steps"] == 2
    assert summary["held_out_prompts"] == 6
    assert summary["reverse_kl_before"] > summary["reverse_kl_after"] > 0
    assert (output / "report.html").stat().st_size > 10_000
    assert len((output / "metrics.jsonl").read_text().splitlines()) == 2
    model = AutoModelForCausalLM.from_pretrained(output / "model")
    assert model.config.num_hidden_layers == 2
    console = Console(record=True, width=100, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(closing(output))
    table = console.export_text()
    assert f"{summary['reverse_kl_before']:.3f}" in table
    assert f"{summary['reverse_kl_after']:.3f}" in table


def test_a_whole_run_across_tokenizers(tiny_model_dir: Path, tmp_path: Path) -> None:
    output, student = tmp_path / "runs" / "quickstart", tmp_path / "student"
    output.mkdir(parents=True)
    texts = iter(prompts("train.jsonl"))
    foreign.make_foreign(tiny_model_dir, student, texts, 400)
    asked = arguments(output, 2, cross=True)
    command._train(Console(quiet=True), asked, tiny_model_dir, student)
    summary = json.loads((output / "summary.json").read_text())
    assert 0 < summary["support_coverage_before"] <= 1
    assert summary["support_reverse_kl_after"] > 0
    last = json.loads((output / "metrics.jsonl").read_text().splitlines()[-1])
    assert 0 < last["realign_coverage"] <= 1
    console = Console(record=True, width=100, file=open(os.devnull, "w"))  # noqa: SIM115
    console.print(closing(output))
    assert f"{summary['support_coverage_after']:.1%}" in console.export_text()


def test_a_foreign_students_embeddings_are_means(tiny_model_dir: Path, tmp_path: Path) -> None:
    foreign.make_foreign(tiny_model_dir, tmp_path, iter(prompts("train.jsonl")), 400)
    theirs, own = (AutoTokenizer.from_pretrained(p) for p in (tiny_model_dir, tmp_path))
    before, after = (
        AutoModelForCausalLM.from_pretrained(p, dtype=torch.float32)
        for p in (tiny_model_dir, tmp_path)
    )
    pairs = zip(before.state_dict().items(), after.state_dict().items(), strict=True)
    for (name, old), (_, new) in pairs:
        if "embed" not in name and "lm_head" not in name:
            torch.testing.assert_close(new, old.bfloat16().float(), rtol=0, atol=0)
    rows = after.get_input_embeddings().weight
    old = before.get_input_embeddings().weight
    assert rows.isfinite().all()
    longest = max(own.get_vocab().values(), key=lambda token: len(own.decode([token])))
    pieces = theirs(own.decode([longest]), add_special_tokens=False)["input_ids"]
    assert len(pieces) > 1
    torch.testing.assert_close(rows[longest], old[pieces].mean(0), rtol=1e-2, atol=1e-2)
    stop, end = own.eos_token_id, theirs.convert_tokens_to_ids("<|im_end|>")
    torch.testing.assert_close(rows[stop], old[end], rtol=1e-2, atol=1e-2)


@pytest.fixture
def long_run(
    tiny_model_dir: Path, tiny_student_dir: Path, tmp_path: Path
) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """A quickstart on tiny models with many steps, as a process of its own."""
    output = tmp_path / "run"
    output.mkdir()
    program = (
        "import argparse, sys\n"
        "from pathlib import Path\n"
        "from rich.console import Console\n"
        "from teacher_proto.program.entrypoint import run_program\n"
        "from student_trainer.quickstart import command\n"
        f"arguments = argparse.Namespace(output=Path({str(output)!r}), steps=100000,"
        f" overrides={list(SMALL)!r}, cross_tokenizer=False)\n"
        "def main(argv):\n"
        "    with command.ended_by_signals():\n"
        f"        command._train(Console(stderr=True), arguments, Path({str(tiny_model_dir)!r}),"
        f" Path({str(tiny_student_dir)!r}))\n"
        "sys.exit(run_program(main, []))\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.DEVNULL,
        stderr=(tmp_path / "stderr").open("wb"),
        cwd=REPOSITORY,
    )
    try:
        yield process, output
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_stops_the_server_too(
    long_run: tuple[subprocess.Popen[bytes], Path], number: int, code: int
) -> None:
    process, output = long_run
    deadline = time.monotonic() + 200
    while not (output / "metrics.jsonl").exists():
        assert process.poll() is None, (output.parent / "stderr").read_text()
        assert time.monotonic() < deadline
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.1)
    said = (output.parent / "stderr").read_text()
    server = int(said.partition("(process ")[2].partition(")")[0])
    assert alive(server)
    process.send_signal(number)
    assert process.wait(120) == code
    assert not alive(server)
