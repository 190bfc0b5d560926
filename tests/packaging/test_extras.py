"""Each program with its own extra alone: all modules load, and both work together.

The quick tests link what the extras lead to from this Python, so that an environment
holds just what is declared; with the marker ``install`` pip installs it for real, as
the README writes it.
"""

from __future__ import annotations

import json
import subprocess
import time
from importlib.metadata import PathDistribution
from pathlib import Path
from zipfile import Path as ZipPath

import pytest

from tests.packaging.environments import LONG, ROOT, Environment, closure

EXTRAS = ("teacher", "trainer")
Environments = dict[str, Environment]


@pytest.fixture(scope="session")
def linked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environments:
    (metadata,) = (path for path in ZipPath(wheel).iterdir() if path.name.endswith(".dist-info"))
    requirements = PathDistribution(metadata).requires or ()
    made = {}
    for extra in EXTRAS:
        made[extra] = Environment.make(tmp_path_factory.mktemp(f"linked-{extra}"))
        made[extra].install("--no-deps", "--no-index", str(wheel))
        made[extra].link(closure(requirements, [extra]).values())
    return made


@pytest.fixture(scope="session")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Environments:
    made = {}
    for extra in EXTRAS:
        made[extra] = Environment.make(tmp_path_factory.mktemp(f"installed-{extra}"))
        made[extra].install(f".[{extra}]", cwd=ROOT)
    return made


# The modules that need a package of another extra. torch's CUDA build brings triton along.
NEED_MORE = {
    "teacher": {"teacher_server.engines.vllm.engine": "vllm"},
    "trainer": {
        "student_trainer.losses.parts.gathered_triton": "triton",
        "student_trainer.rollout.vllm.local": "vllm",
        "student_trainer.tasks.games.alfworld_game": "textworld",
        "student_trainer.tasks.games.textworld_game": "textworld",
        "student_trainer.trl.asynchronous": "trl",
        "student_trainer.trl.trainer": "datasets",
    },
}
IMPORT_ALL = """
import importlib, json, pkgutil, sys
missing = {}
for package in sys.argv[1:]:
    root = importlib.import_module(package)
    for module in pkgutil.walk_packages(root.__path__, f"{package}."):
        if module.name.endswith(".__main__"):
            continue
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            missing[module.name] = error.name.partition(".")[0]
print(json.dumps(missing))
"""


@pytest.mark.parametrize(
    ("extra", "package"), [("teacher", "teacher_server"), ("trainer", "student_trainer")]
)
def test_every_module_loads_with_its_extra_alone(
    extra: str, package: str, linked: Environments
) -> None:
    packages = linked[extra].packages
    ended = linked[extra].run("python", "-c", IMPORT_ALL, "teacher_proto", package)
    assert ended.returncode == 0, ended.stderr
    needs = NEED_MORE[extra].items()
    absent = {name: needed for name, needed in needs if not (packages / needed).exists()}
    assert json.loads(ended.stdout.splitlines()[-1]) == absent


def check_that_both_work(environments: Environments, model: Path, folder: Path) -> None:
    """A teacher serves from the one environment, and the other's doctor finds nothing wrong."""
    teacher, trainer = environments["teacher"], environments["trainer"]
    assert trainer.run("teacher-server", "serve", "--model", "m").returncode == 2
    for environment, program in ((teacher, "teacher-server"), (trainer, "student-trainer")):
        for arguments in (["--help"], ["--version"], ["doctor", "--help"]):
            ended = environment.run(program, *arguments)
            assert (ended.returncode, ended.stderr) == (0, "")
    (folder / "prompts.jsonl").write_text('{"prompt": "a b c"}\n' * 8)
    ready = folder / "ready.json"
    serve = ["serve", "--model", str(model), "--grpc-port", "0", "--http-port", "0"]
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            teacher.command("teacher-server", *serve, "--ready-file", str(ready)),
            cwd=folder,
            env=teacher.variables,
            stderr=log,
        )
    try:
        end = time.monotonic() + LONG
        while not ready.exists():
            assert server.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < end, (folder / "log").read_text()
            time.sleep(0.1)
        keys = {
            "run.output_dir": folder / "run",
            "student.model": model,
            "data.train": folder / "prompts.jsonl",
            "teacher.address": json.loads(ready.read_text())["grpc_address"],
            "data.max_prompt_tokens": 32,
            "rollout.max_new_tokens": 8,
        }
        flags = [part for key, value in keys.items() for part in ("--set", f"{key}={value}")]
        ended = trainer.run("student-trainer", "doctor", *flags)
        assert ended.returncode == 0, ended.stdout + ended.stderr
        assert "nothing is wrong" in ended.stdout
    finally:
        server.terminate()
        assert server.wait(LONG) == 0


def test_both_work_with_what_their_extras_declare(
    linked: Environments, tiny_model_dir: Path, tmp_path: Path
) -> None:
    check_that_both_work(linked, tiny_model_dir, tmp_path)


@pytest.mark.install
@pytest.mark.timeout(1800)
def test_both_work_where_pip_installed_them(
    installed: Environments, tiny_model_dir: Path, tmp_path: Path
) -> None:
    check_that_both_work(installed, tiny_model_dir, tmp_path)
