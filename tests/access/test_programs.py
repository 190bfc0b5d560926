"""Both programs: what is wrong with credentials is one line and the right exit code, and
a secret shows up nowhere."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path

import httpx
import pytest
import tomli_w
from teacher_proto import TeacherClient
from teacher_proto.client.credentials import ClientCredentials
from teacher_proto.errors import UnauthenticatedError

from student_trainer import cli as trainer_cli
from teacher_server import cli
from tests.access.pki import ALICE, HOSTS, RUNS, RUNS_WITHOUT_CERTIFICATES, Authority, write_secret
from tests.server.processes import LONG, ROOT, Program, serving
from tests.trainer.conftest import settings, write_prompts

CANARY = "canary-b7c1d2e3f4a5968778695a4b3c2d1e0f"
OTHER = "canary-of-the-environment-5a4b3c2d1e0f"
PATHS = os.pathsep.join((str(ROOT), str(ROOT / "proto")))


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    ca = Authority(tmp_path, "ca")
    pair, other = ca.issue("server", *HOSTS), ca.issue("other", *HOSTS)
    exposed = write_secret(tmp_path / "exposed.toml", RUNS)
    exposed.chmod(0o644)
    return {
        "runs": str(write_secret(tmp_path / "runs.toml", RUNS_WITHOUT_CERTIFICATES)),
        "certified": str(write_secret(tmp_path / "certified.toml", RUNS)),
        "exposed": str(exposed),
        "broken": str(write_secret(tmp_path / "broken.toml", f'x = "{ALICE}"')),
        "cert": str(pair.cert),
        "key": str(pair.key),
        "other": str(other.key),
        "ca": str(ca.pem),
    }


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("--host 0.0.0.0", 2, "no credentials and no TLS"),
        ("--host 0.0.0.0 --credentials-file {runs}", 2, "this server has no TLS"),
        ("--host :: --tls-cert {cert} --tls-key {key}", 2, "this server has no credentials"),
        ("--credentials-file {exposed}", 2, "chmod 600"),
        ("--credentials-file /nowhere/runs.toml", 2, "No such file"),
        ("--credentials-file {broken}", 2, "unknown key"),
        ("--credentials-file {certified}", 2, "tls.client_ca"),
        ("--set access.credentials=secret", 2, "in the environment"),
        ("--tls-cert {cert}", 2, "tls.cert and tls.key"),
        ("--tls-cert {cert} --tls-key {other}", 2, "the key is not the certificate's"),
        ("--tls-cert {cert} --tls-key {key} --tls-client-ca {ca}", 2, "access.credentials_file"),
        ("--audit-file /dev/full", 1, "No space left on device"),
        ("--audit-file /nowhere/audit.jsonl", 2, "No such file"),
    ],
)
def test_the_server_refuses_in_one_line(
    arguments: str,
    code: int,
    message: str,
    files: dict[str, str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = arguments.format(**files).split()
    assert cli.main(["serve", "--model", "m", *given]) == code
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert ALICE not in line


@pytest.mark.parametrize(
    "arguments",
    [
        "--host 0.0.0.0 --credentials-file {runs} --tls-cert {cert} --tls-key {key}",
        "--host 0.0.0.0 --insecure-plaintext",
        "--host 0.0.0.0 --insecure-plaintext --credentials-file {runs}",
    ],
)
def test_a_guarded_server_may_be_reached(
    arguments: str, files: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = str(tmp_path / "no-model")
    given = arguments.format(**files).split()
    ports = ["--grpc-port", "0", "--http-port", "0"]
    assert cli.main(["serve", "--model", missing, *given, *ports]) == 2
    assert "there is no such folder" in capsys.readouterr().err


def train(
    folder: Path, *arguments: str, environment: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "student_trainer", "train", str(folder / "run.toml"), *arguments],
        capture_output=True,
        text=True,
        timeout=LONG,
        check=False,
        env=os.environ | {"PYTHONPATH": PATHS} | (environment or {}),
    )


def write_run(folder: Path, model: Path, address: str, **teacher: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    write_prompts(folder / "prompts.jsonl")
    values = settings(
        model,
        folder,
        run={"name": "alice", "steps": 2},
        teacher={"address": address, "connect_timeout_seconds": 60.0, **teacher},
        checkpoint={"every": 1},
        data={"held_out_fraction": 0.4},
        evaluation={"prompts": 2, "frozen_rows": 0, "max_new_tokens": 8, "samples": 1},
        report={"html": True},
    )
    (folder / "run.toml").write_text(tomli_w.dumps(values))


def holding(secret: str, *folders: Path) -> list[Path]:
    """Files that hold a secret, or its hash."""
    hashed = hashlib.sha256(secret.encode()).hexdigest()
    found = []
    for folder in folders:
        for path in folder.rglob("*"):
            data = path.read_bytes() if path.is_file() else b""
            if secret.encode() in data or hashed.encode() in data:
                found.append(path)
    return found


def test_a_secret_shows_up_nowhere(
    tiny_model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    secrets, served, runs = (tmp_path / name for name in ("secrets", "served", "runs"))
    for folder in (secrets, served, runs):
        folder.mkdir()
    ca = Authority(secrets, "ca")
    pair = ca.issue("server", *HOSTS)
    text = f'[runs.alice]\ntokens = [{{ token = "{CANARY}" }}]\n'
    runs_file = write_secret(secrets / "runs.toml", text)
    token_file = write_secret(secrets / "token", CANARY)
    monkeypatch.setenv(
        "LSM_TEACHER__ACCESS__CREDENTIALS", f'runs.bob.tokens = [{{ token = "{OTHER}" }}]'
    )
    audit = served / "audit.jsonl"
    given = ["--model", str(tiny_model_dir), "--credentials-file", str(runs_file)]
    given += ["--tls-cert", str(pair.cert), "--tls-key", str(pair.key)]
    given += ["--audit-file", str(audit), "--log-level", "debug"]
    shown = subprocess.run(
        [sys.executable, "-m", "teacher_server", "serve", *given, "--dry-run"],
        capture_output=True, text=True, check=True, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": PATHS},
    )  # fmt: skip
    outputs = [shown.stdout]
    assert "access.credentials = *** (env LSM_TEACHER__ACCESS__CREDENTIALS)" in shown.stdout
    with serving(served, *given) as program:
        address = program.facts["grpc_address"]
        write_run(runs, tiny_model_dir, address, ca=str(ca.pem))
        done = train(runs, environment={"LSM_TRAINER__TEACHER__TOKEN": CANARY})
        assert done.returncode == 0, done.stderr
        outputs += [done.stdout, done.stderr]
        # On from the checkpoint, the token from a file now.
        config, token = str(runs / "run.toml"), f"teacher.token_file={token_file}"
        assert trainer_cli.main(["train", config, "--set", token, "--set", "run.steps=3"]) == 0
        outputs += capsys.readouterr()
        for secret, code, part in (
            (CANARY, 0, "teacher.token = *** (env LSM_TRAINER__TEACHER__TOKEN)"),
            (f"{CANARY}x", 2, "the token is not known"),
            (OTHER, 2, "run 'bob'"),
        ):
            monkeypatch.setenv("LSM_TRAINER__TEACHER__TOKEN", secret)
            dry = ["--dry-run"] if code == 0 else []
            # As many steps as were made: fewer are refused before the teacher is asked.
            steps = ["--set", "run.steps=3"]
            assert trainer_cli.main(["train", config, *steps, *dry]) == code
            printed = capsys.readouterr()
            assert part in (printed.out if code == 0 else printed.err)
            assert code == 0 or len(printed.err.strip().splitlines()) == 1
            outputs += printed
        outputs.append(scrape(program, ca))
        write_secret(runs_file, f'[runs.alice]\ntoken = "{CANARY}"')  # a mistake, to be logged
        scrape(program, ca, OTHER)
        assert program.end(signal.SIGTERM) == 0
    assert "the credentials stay as they were" in program.log.read_text()
    assert '"run": "alice"' in audit.read_text()
    assert (runs / "run" / "report.html").exists()
    assert f'token_file = "{token_file}"' in (runs / "run" / "config.toml").read_text()
    for secret in (CANARY, OTHER):
        assert holding(secret, served, runs) == []
        assert [text for text in outputs if secret in text] == []
    # The look-out finds what there is to find.
    assert sorted(path.name for path in holding(CANARY, secrets)) == ["runs.toml", "token"]


def scrape(program: Program, ca: Authority, token: str = CANARY) -> str:
    import ssl

    context = ssl.create_default_context(cafile=ca.pem)
    answer = httpx.get(
        f"https://{program.facts['http_address']}/metrics",
        headers={"authorization": f"Bearer {token}"},
        verify=context,
    )
    assert answer.status_code == 200
    return answer.text


def test_sighup_reads_the_files_again_and_reopens_the_audit_log(
    tiny_model_dir: Path, tmp_path: Path
) -> None:
    runs_file = write_secret(tmp_path / "runs.toml", RUNS_WITHOUT_CERTIFICATES)
    audit = tmp_path / "audit.jsonl"
    given = ["--model", str(tiny_model_dir), "--credentials-file", str(runs_file)]
    with serving(tmp_path, *given, "--audit-file", str(audit)) as program:
        shown = ClientCredentials(token=ALICE)
        address = program.facts["grpc_address"]
        with TeacherClient(address, run="alice", credentials=shown) as client:
            client.get_teacher(timeout=LONG)
            before = audit.rename(tmp_path / "audit.old").read_text()
            program.process.send_signal(signal.SIGHUP)
            while not audit.exists():
                client.get_teacher(timeout=LONG)
            client.get_teacher(timeout=LONG)
            assert "GetTeacher" in audit.read_text()
            assert before.count("\n") >= 2
            write_secret(runs_file, "")
            with pytest.raises(UnauthenticatedError):
                client.get_teacher(timeout=LONG)
        assert program.end() == 0
        lines = [json.loads(line) for line in program.log.read_text().splitlines()]
        assert any("credentials were read again" in line["event"] for line in lines)


def test_the_trainer_takes_a_token_from_the_environment_or_a_checked_file_only(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path, tiny_model_dir, "127.0.0.1:1", token=CANARY)
    config = str(tmp_path / "run.toml")
    assert trainer_cli.main(["train", config, "--dry-run"]) == 2
    output = capsys.readouterr()
    assert "teacher.token_file" in output.err
    assert CANARY not in output.err + output.out
    values = tomllib.loads(Path(config).read_text())
    del values["teacher"]["token"]
    exposed = write_secret(tmp_path / "token", CANARY)
    exposed.chmod(0o640)
    values["teacher"]["token_file"] = str(exposed)
    Path(config).write_text(tomli_w.dumps(values))
    assert trainer_cli.main(["train", config]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "chmod 600" in line


def test_the_http_port_is_no_teacher_and_that_is_one_line(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(tmp_path, "--model", str(tiny_model_dir)) as program:
        write_run(tmp_path / "run", tiny_model_dir, program.facts["http_address"])
        assert trainer_cli.main(["train", str(tmp_path / "run" / "run.toml")]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert "speaks HTTP and not gRPC" in line
