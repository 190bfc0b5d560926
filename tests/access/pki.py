"""Certificate authorities, certificates and files of credentials, made on the spot."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import trustme
from teacher_proto.client.credentials import ClientCredentials

HOSTS = ("127.0.0.1", "localhost")
ALICE = "alice-token-0123456789abcdef"
BOB = "bob-token-0123456789abcdefgh"
OLD = "old-token-of-alice-0123456789"
RUNS = f"""
[runs.alice]
weight = 2.0
priority = 1
tokens_per_minute = 60000
certificates = ["alice.trainers.test"]
tokens = [
    {{ token = "{ALICE}" }},
    {{ token = "{OLD}", expires = 2020-01-01T00:00:00Z }},
]
[runs.bob]
teachers = ["default"]
[[runs.bob.tokens]]
token = "{BOB}"
"""
RUNS_WITHOUT_CERTIFICATES = RUNS.replace('certificates = ["alice.trainers.test"]\n', "")


def write_secret(path: Path, text: str | bytes) -> Path:
    """A file for its owner alone, replaced whole."""
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(text.encode() if isinstance(text, str) else text)
    part.chmod(0o600)
    os.replace(part, path)
    return path


@dataclass(frozen=True)
class Pair:
    cert: Path
    key: Path


class Authority:
    """A CA whose certificate is ``pem``."""

    def __init__(self, folder: Path, name: str) -> None:
        self._ca = trustme.CA()
        self._folder = folder
        self.pem = write_secret(folder / f"{name}.pem", self._ca.cert_pem.bytes())

    def issue(self, name: str, *hosts: str, common_name: str | None = None) -> Pair:
        made = self._ca.issue_cert(*hosts, common_name=common_name)
        chain = b"".join(blob.bytes() for blob in made.cert_chain_pems)
        return Pair(
            write_secret(self._folder / f"{name}.crt", chain),
            write_secret(self._folder / f"{name}.key", made.private_key_pem.bytes()),
        )


def client(ca: Authority, pair: Pair | None = None, token: str = "") -> ClientCredentials:
    return ClientCredentials(
        token=token,
        ca=ca.pem,
        cert=None if pair is None else pair.cert,
        key=None if pair is None else pair.key,
    )
