"""``probe``, ``top`` and both doctors at a server with tokens and TLS."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import tomli_w
from teacher_proto.client import TeacherClient
from teacher_proto.client.credentials import ClientCredentials
from teacher_proto.tokenizer_hash import tokenizer_hash

from student_trainer import cli as trainer_cli
from tests.access.pki import ALICE, HOSTS, RUNS_WITHOUT_CERTIFICATES, Authority, write_secret
from tests.server.crossed import upload
from tests.server.processes import LONG, Program, run, serving
from tests.trainer.conftest import settings, write_prompts


@dataclass(frozen=True)
class Secured:
    program: Program
    ca: str
    token: str
    arguments: tuple[str, ...]


@pytest.fixture(scope="module")
def secured(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    folder = tmp_path_factory.mktemp("secured")
    ca = Authority(folder, "ca")
    pair = ca.issue("server", *HOSTS)
    arguments = ("--model", str(tiny_model_dir), "--dtype", "float32")
    arguments += ("--tls-cert", str(pair.cert), "--tls-key", str(pair.key))
    runs = write_secret(folder / "runs.toml", RUNS_WITHOUT_CERTIFICATES)
    arguments += ("--credentials-file", str(runs))
    token = write_secret(folder / "token", ALICE)
    with serving(folder, *arguments) as program:
        yield Secured(program, str(ca.pem), str(token), arguments)


def test_probe_needs_the_authority_and_no_token(secured: Secured) -> None:
    address = ("--address", secured.program.facts["grpc_address"])
    assert run("probe", *address, "--ca", secured.ca).returncode == 0
    plain = run("probe", *address, "--timeout", "1")
    assert plain.returncode == 4
    assert "--ca" in plain.stderr


def test_top_needs_both(secured: Secured) -> None:
    url = f"https://{secured.program.facts['http_address']}"
    top = ("top", "--once", "--json", "--interval", "0.1", "--url", url, "--ca", secured.ca)
    shown = run(*top, "--token-file", secured.token)
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["ready"] is True
    refused = run(*top)
    assert refused.returncode == 2
    assert "--token-file" in refused.stderr
    assert run(*top[:-2], "--token-file", secured.token).returncode == 4


def test_tokenizers_are_listed_and_dropped(
    secured: Secured, other_tokenizer_model_dir: Path
) -> None:
    address = secured.program.facts["grpc_address"]
    own = ClientCredentials(token=ALICE, ca=Path(secured.ca))
    file = (other_tokenizer_model_dir / "tokenizer.json").read_bytes()
    with TeacherClient(address, run="alice", credentials=own) as client:
        client.register_tokenizer(upload(file, run="alice"), timeout=LONG)
    shown = ("--address", address, "--ca", secured.ca, "--token-file", secured.token)
    listed = run("tokenizers", "list", "--json", *shown)
    assert listed.returncode == 0, listed.stderr
    (one,) = json.loads(listed.stdout)["tokenizers"]
    assert one["levels"] == {"default": "CROSS"}
    text = run("tokenizers", "list", *shown).stdout
    assert f"{tokenizer_hash(file)}\n  run 'alice', " in text
    assert text.endswith("1 of 1 registrations\n")
    assert run("tokenizers", "list", *shown, "--run", "bob").returncode == 2
    dropped = run("tokenizers", "drop", one["tokenizer_hash"], *shown)
    assert (dropped.returncode, dropped.stdout) == (0, "dropped\n")
    again = run("tokenizers", "drop", one["tokenizer_hash"], *shown)
    assert again.returncode == 2
    assert "tokenizers list" in again.stderr


def test_the_server_s_doctor_counts_tokens_and_refuses_exposed_files(
    secured: Secured, tmp_path: Path
) -> None:
    free = ("--grpc-port", "0", "--http-port", "0", "--host", "0.0.0.0", "--quick")
    healthy = run("doctor", *secured.arguments, *free)
    assert healthy.returncode == 0, healthy.stdout
    assert "tokens, TLS, on 0.0.0.0" in healthy.stdout
    exposed = write_secret(tmp_path / "runs.toml", RUNS_WITHOUT_CERTIFICATES)
    exposed.chmod(0o644)
    ended = run("doctor", *secured.arguments[:-1], str(exposed), *free)
    assert ended.returncode == 2
    assert "fix: chmod 600" in ended.stdout


def test_the_trainer_s_doctor_tells_a_refused_token_from_a_missing_teacher(
    secured: Secured, tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_prompts(tmp_path / "prompts.jsonl")
    teacher = {"address": secured.program.facts["grpc_address"], "ca": secured.ca}
    for file, code in ((secured.token, 0), (str(write_secret(tmp_path / "t", "x" * 30)), 2)):
        values = settings(
            tiny_model_dir, tmp_path, run={"name": "alice"}, teacher=teacher | {"token_file": file}
        )
        config = tmp_path / "run.toml"
        config.write_text(tomli_w.dumps(values))
        assert trainer_cli.main(["doctor", str(config), "--json"]) == code
        shown = capsys.readouterr()
        found = {finding["check"]: finding for finding in json.loads(shown.out)["checks"]}
        assert found["teacher"]["status"] == ("ok" if code == 0 else "failed")
        assert (found["clock"]["status"] == "ok") == (code == 0)
        assert ALICE not in shown.out + shown.err
