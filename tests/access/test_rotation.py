"""Files that change while they are in use: credentials, the audit log, secrets' modes."""

from __future__ import annotations

import logging
import os
from datetime import UTC, datetime
from pathlib import Path

import pytest
from teacher_proto.client.credentials import ClientCredentials, Identification
from teacher_proto.errors import ConfigurationError, LsmError, UnauthenticatedError

from teacher_server.access.audit import AuditLog
from teacher_server.access.certificates import Certificates
from teacher_server.access.rules import authenticate
from teacher_server.access.store import CredentialStore
from tests.access.pki import ALICE, BOB, RUNS_WITHOUT_CERTIFICATES, Authority, write_secret

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ONLY_BOB = f'[[runs.bob.tokens]]\ntoken = "{BOB}"\n'


def lets_in(store: CredentialStore, token: str) -> bool:
    try:
        authenticate(store.current(), [f"Bearer {token}"], (), NOW)
    except UnauthenticatedError:
        return False
    return True


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return write_secret(tmp_path / "runs.toml", RUNS_WITHOUT_CERTIFICATES)


def test_a_replaced_file_is_in_force_at_the_next_call(file: Path) -> None:
    store = CredentialStore(file, None, certificates=False)
    assert lets_in(store, ALICE)
    write_secret(file, ONLY_BOB)
    assert not lets_in(store, ALICE)
    assert lets_in(store, BOB)
    write_secret(file, "")
    assert not lets_in(store, BOB)


def test_a_file_that_cannot_be_taken_changes_nothing_and_is_told_once(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = CredentialStore(file, None, certificates=False)
    for spoil in (
        lambda: write_secret(file, f"[runs.x]\ntoken = '{ALICE}'"),
        lambda: write_secret(file, ONLY_BOB).chmod(0o644),
        lambda: file.unlink(),
    ):
        caplog.clear()
        spoil()
        with caplog.at_level(logging.ERROR):
            assert lets_in(store, ALICE)
            assert lets_in(store, ALICE)
        (record,) = caplog.records
        assert "stay as they were" in record.getMessage()
        assert ALICE not in record.getMessage()
    write_secret(file, ONLY_BOB)
    assert not lets_in(store, ALICE)


def test_reload_reads_an_unchanged_looking_file(file: Path) -> None:
    store = CredentialStore(file, None, certificates=False)
    before = store.current()
    store.reload()
    assert store.current() == before
    assert store.current() is not before


def test_the_environment_s_runs_join_those_of_the_file(file: Path) -> None:
    text = '[[runs.carol.tokens]]\ntoken = "carol-token-0123456789"'
    store = CredentialStore(file, text, certificates=False)
    write_secret(file, ONLY_BOB)
    assert lets_in(store, "carol-token-0123456789")
    assert lets_in(store, BOB)
    assert not lets_in(store, ALICE)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o602, 0o611])
def test_secrets_that_others_can_reach_are_refused(file: Path, tmp_path: Path, mode: int) -> None:
    pair = Authority(tmp_path, "ca").issue("server", "127.0.0.1")
    token = write_secret(tmp_path / "token", ALICE)
    for secret in (file, pair.key, token):
        secret.chmod(mode)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        CredentialStore(file, None, certificates=False)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        Certificates(pair.cert, pair.key, None)
    with pytest.raises(ConfigurationError, match="chmod 600"):
        Identification(ClientCredentials(token_file=token), "127.0.0.1:1")


def test_secrets_that_are_no_files_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "folder").mkdir(0o700)
    write_secret(tmp_path / "large", b"x" * (1 << 20) + b"x")
    for name, part in (
        ("pipe", "plain file"),
        ("folder", "it is a folder"),
        ("large", "larger"),
        ("missing", "No such file"),
    ):
        with pytest.raises(ConfigurationError, match=part):
            CredentialStore(tmp_path / name, None, certificates=False)


def test_a_key_belongs_to_its_certificate(tmp_path: Path) -> None:
    ca = Authority(tmp_path, "ca")
    one, other = ca.issue("one", "127.0.0.1"), ca.issue("other", "127.0.0.1")
    with pytest.raises(ConfigurationError, match="the key is not the certificate's"):
        Certificates(one.cert, other.key, None)
    with pytest.raises(ConfigurationError, match="PEM"):
        Certificates(one.key, one.key, None)
    text = write_secret(tmp_path / "text", "no certificate")
    with pytest.raises(ConfigurationError, match="no certificate in PEM"):
        Certificates(one.cert, one.key, text)


def test_a_key_with_a_passphrase_is_refused_and_nobody_is_asked(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    pair = Authority(tmp_path, "ca").issue("server", "127.0.0.1")
    key = serialization.load_pem_private_key(pair.key.read_bytes(), None)
    locked = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"passphrase"),
    )
    write_secret(pair.key, locked)
    with pytest.raises(ConfigurationError, match="passphrase"):
        Certificates(pair.cert, pair.key, None)


def test_certificates_that_do_not_fit_change_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    ca = Authority(tmp_path, "ca")
    pair, other = ca.issue("server", "127.0.0.1"), ca.issue("other", "127.0.0.1")
    certificates = Certificates(pair.cert, pair.key, None)
    before = certificates.current()
    write_secret(pair.cert, other.cert.read_bytes())
    with caplog.at_level(logging.ERROR):
        assert certificates.current() is before
        assert certificates.current() is before
    (record,) = caplog.records
    assert "stay as they were" in record.getMessage()
    write_secret(pair.key, other.key.read_bytes())
    assert certificates.current() is not before


def test_the_client_s_token_is_read_again_when_it_changes(tmp_path: Path) -> None:
    file = write_secret(tmp_path / "token", f"{ALICE}\n")
    shown = Identification(ClientCredentials(token_file=file), "127.0.0.1:1")
    assert shown.metadata() == (("authorization", f"Bearer {ALICE}"),)
    write_secret(file, BOB)
    assert shown.metadata(run="r") == (
        ("authorization", f"Bearer {BOB}"),
        ("lsm-run-bin", b"r"),
    )


def test_an_audit_log_on_a_full_disk_does_not_start() -> None:
    with pytest.raises(LsmError, match="No space left") as found:
        AuditLog(Path("/dev/full"))
    assert found.value.exit_code == 1


def test_an_audit_log_in_no_folder_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        AuditLog(tmp_path / "nowhere" / "audit.jsonl")
