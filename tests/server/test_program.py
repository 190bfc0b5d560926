"""The program as a user meets it: start, stop, exit codes, one line for what is wrong."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from teacher_proto import TeacherClient
from teacher_proto.channel import is_loopback
from teacher_proto.errors import TeacherUnavailableError
from teacher_proto.types import ScoreRequest, TokenPrompt

from teacher_server import cli
from teacher_server.commands.ready_file import prepare_ready_file
from tests.server.dying_server import FATAL_TOP_K
from tests.server.processes import LONG, ROOT, Program, run, serving
from tests.server.running import continuation, ids


def request(client: TeacherClient, teacher: str, top_k: int = 3) -> ScoreRequest:
    info = client.get_teacher(timeout=LONG).teacher(teacher)
    return ScoreRequest(
        request_id="one",
        run="",
        teacher=teacher,
        tokenizer_hash=info.identity.tokenizer_hash,
        prompt=TokenPrompt(ids(1, 2)),
        continuations=(continuation(3, 4),),
        top_k=top_k,
        temperature=1.0,
    )


def client_of(program: Program, **options: int) -> TeacherClient:
    return TeacherClient(program.facts["grpc_address"], run="test", **options)


def test_a_server_starts_scores_and_stops_on_sigterm(
    tiny_model_dir: Path, other_tokenizer_model_dir: Path, tmp_path: Path
) -> None:
    models = ("--model", str(tiny_model_dir), "--teacher", f"code={other_tokenizer_model_dir}")
    with serving(tmp_path, *models) as program:
        assert program.facts["pid"] == program.process.pid
        assert program.facts["teachers"] == ["default", "code"]
        http = f"http://{program.facts['http_address']}"
        assert httpx.get(f"{http}/readyz").json() == {"status": "ready"}
        with client_of(program) as client:
            for teacher in ("default", "code"):
                reply = client.score(request(client, teacher), timeout=LONG)
                assert reply.results[0].rows.support is not None
        assert program.end(signal.SIGTERM) == 0
        assert not (tmp_path / "ready.json").exists()
        assert "Traceback" not in program.log.read_text()


def test_an_engine_s_death_ends_the_process_with_1(tiny_model_dir: Path, tmp_path: Path) -> None:
    start = [sys.executable, "-m", "tests.server.dying_server"]
    with serving(tmp_path, "--model", str(tiny_model_dir), start=start) as program:
        with client_of(program, max_attempts=1) as client:
            fatal = request(client, "default", FATAL_TOP_K)
            with pytest.raises(TeacherUnavailableError) as found:
                client.score(fatal, timeout=LONG)
        assert found.value.reason == "ENGINE_DEAD"
        assert program.process.wait(LONG) == 1
        assert not (tmp_path / "ready.json").exists()
        assert "an engine died" in program.log.read_text()


@pytest.mark.parametrize("flag", ["--grpc-port", "--http-port"])
def test_a_port_in_use_is_one_line_and_exit_code_2(flag: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        ports = {"--grpc-port": "0", "--http-port": "0"} | {flag: port}
        ended = run("serve", "--model", "m", *[part for pair in ports.items() for part in pair])
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"error: {flag[2:].replace('-', '_')}: 127.0.0.1:{port} is in")
    assert len(ended.stderr.splitlines()) == 1


def test_a_ready_file_of_an_earlier_run_is_removed(tmp_path: Path) -> None:
    stale = tmp_path / "ready.json"
    stale.write_text("{}")
    prepare_ready_file(stale)
    assert not stale.exists()


def test_a_model_that_is_not_there_is_one_line_and_exit_code_2(tmp_path: Path) -> None:
    missing = tmp_path / "nothing"
    ended = run("serve", "--model", str(missing), "--grpc-port", "0", "--http-port", "0")
    assert ended.returncode == 2
    assert f"error: {missing}: there is no such folder" in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "m", "--host", "0.0.0.0"], "--insecure-plaintext"),
        (["--model", "m", "--host", "example.org"], "--insecure-plaintext"),
        ([], "--model PATH"),
        (["--teacher", "math"], "NAME=PATH"),
        (["--model", "a", "--teacher", "default=b"], "given twice"),
        (["--model", "m", "--teacher", "a/b=c"], "teachers"),
        (["--model", "m", "--engine", "onnx"], 'engine.name = "onnx" (flag --engine)'),
        (["--model", "m", "--max-length", "1"], "(flag --max-length)"),
        (["--model", "m", "--set", "limits.max_queue_token=3"], "max_queue_tokens"),
        (["--model", "m", "--set", "limits.max_queue_tokens=3"], "max_request_tokens"),
        (["--model", "m", "--grpc-port", "65536"], "grpc_port"),
        (["--model", "m", "--ready-file", "/nowhere/ready.json"], "its folder does not exist"),
    ],
)
def test_wrong_settings_are_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["serve", *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line


def test_dry_run_tells_every_setting_and_its_origin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "teacher.toml"
    file.write_text('http_port = 1\n[teachers.math]\nmodel = "/models/math"\ndtype = "float32"\n')
    monkeypatch.setenv("LSM_TEACHER__DRAIN_SECONDS", "7")
    arguments = ["serve", str(file), "--grpc-port", "2", "--dry-run", "--set", "host=::1"]
    arguments += ["--teacher", "code=/models/code", "--credentials-file", "/etc/tokens"]
    assert cli.main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    for line in (
        f"http_port = 1 (file {file})",
        f'teachers.math.model = "/models/math" (file {file})',
        "drain_seconds = 7.0 (env LSM_TEACHER__DRAIN_SECONDS)",
        "grpc_port = 2 (flag --grpc-port)",
        'teachers.code.model = "/models/code" (flag --teacher)',
        'access.credentials_file = "/etc/tokens" (flag --credentials-file)',
        'host = "::1" (flag --set)',
        "limits.max_continuations = 1024 (default)",
    ):
        assert line in lines


def test_help_loads_nothing_heavy() -> None:
    code = (
        "import sys\n"
        "from teacher_server import cli\n"
        "cli.parser().format_help()\n"
        "heavy = {'torch', 'transformers', 'grpc', 'fastapi', 'numpy', 'pydantic'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert ended.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.example.org", False),
    ],
)
def test_loopback_is_told_by_the_address(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
