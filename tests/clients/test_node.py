"""Clients in Node against a real server: of the proto files alone, and of generated stubs."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from teacher_proto.client.credentials import ClientCredentials
from teacher_proto.rows import required
from teacher_proto.tokenizer_hash import tokenizer_hash
from teacher_proto.types import Returns, ScoreReply

from tests.access.pki import write_secret
from tests.clients.packages import node, node_modules
from tests.server.running import Running, continuation, running

pytestmark = pytest.mark.asyncio(loop_scope="module")

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
EXAMPLE = ROOT / "examples" / "node"
PROTOS = ROOT / "proto"
TOKEN = "a-token-of-the-client-in-node"
POOR = "a-token-with-hardly-any-quota"
RUNS = f"""
[runs.nodes]
tokens = [{{ token = "{TOKEN}" }}]
[runs.poor]
tokens_per_minute = 12
tokens = [{{ token = "{POOR}" }}]
"""
PROMPT = [1, 2, 3]
CONTINUATIONS = [[4, 5, 6], [7, 8]]
TOP_K = 4
# Ids and log-probabilities of ten continuations are more than 4 MiB.
LARGE = {"group": 10, "rows": 256, "top_k": 320}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def server(
    tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Running]:
    """One teacher that asks for tokens; the Python clients show the same one as Node's."""
    file = write_secret(tmp_path_factory.mktemp("runs") / "runs.toml", RUNS)
    with pytest.MonkeyPatch.context() as patch:
        async with running(
            {"default": tiny_model_dir},
            patch,
            credentials=ClientCredentials(token=TOKEN),
            run="nodes",
            access={"credentials_file": file},
            engine={"deterministic": True},
        ) as found:
            yield found


@pytest.fixture(scope="module")
def asked(server: Running, other_tokenizer_model_dir: Path) -> dict[str, Any]:
    """What the programs in Node are told, as one JSON object."""
    file = other_tokenizer_model_dir / "tokenizer.json"
    return {
        "address": server.server.grpc_address,
        "protos": str(PROTOS),
        "token": TOKEN,
        "poor": POOR,
        "teacher": "default",
        "tokenizer_hash": server.info.teacher("default").identity.tokenizer_hash,
        "tokenizer_file": str(file),
        "file_sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        "other_hash": tokenizer_hash(file.read_bytes()),
        "prompt": PROMPT,
        "continuations": CONTINUATIONS,
        "top_k": TOP_K,
        "large": LARGE,
        "vectors": json.loads((ROOT / "docs" / "identity_vectors.json").read_text()),
    }


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """checks.mjs beside the example and its packages."""
    node(18)
    folder = tmp_path_factory.mktemp("node")
    shutil.copy(EXAMPLE / "teacher.mjs", folder)
    shutil.copy(HERE / "checks.mjs", folder)
    (folder / "node_modules").symlink_to(node_modules(EXAMPLE))
    return folder / "checks.mjs"


async def run(script: Path, *arguments: str) -> str:
    """What a program in Node writes; its environment has no more than it needs."""
    environment = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    process = await asyncio.create_subprocess_exec(
        node(18),
        str(script),
        *arguments,
        env=environment | {"LSM_TOKEN": TOKEN},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()
    return out.decode()


async def ask(script: Path, asked: dict[str, Any], **more: Any) -> dict[str, Any]:
    file = script.parent / "asked.json"
    file.write_text(json.dumps(asked | more))
    found: dict[str, Any] = json.loads(await run(script, str(file)))
    return found


async def python_s(server: Running) -> ScoreReply:
    request = server.request(
        run="",
        prompt=server.request().prompt,
        continuations=tuple(continuation(*one) for one in CONTINUATIONS),
        top_k=TOP_K,
        returns=Returns(sampled=True, log_tail=True),
    )
    return await server.score(request)


async def test_the_example_runs(server: Running, program: Path) -> None:
    out = await run(program.with_name("teacher.mjs"), server.server.grpc_address, str(PROTOS))
    assert [line.split()[:3] for line in out.splitlines()] == [
        ["default", "row", str(row)] for row in range(3)
    ]


async def test_a_client_of_the_protos_alone_gets_the_same_numbers(
    server: Running, program: Path, asked: dict[str, Any]
) -> None:
    server.engines["default"].jobs.clear()
    found = await ask(program, asked, checks=["teacher", "scores", "again"])
    assert len(server.engines["default"].jobs) == 1  # the second was a repetition
    assert found["scores"] == found["again"]
    identity = server.info.teacher("default").identity
    assert found["teacher"]["digest"] == found["teacher"]["own"] == identity.digest
    assert found["teacher"]["limits"]["max_reply_bytes"] == server.info.limits.max_reply_bytes
    reply = await python_s(server)
    for theirs, ours in zip(found["scores"]["results"], reply.results, strict=True):
        support = required(ours.rows.support, "support")
        sampled = required(ours.rows.sampled, "sampled")
        assert theirs["shape"] == list(support.ids.shape)
        assert theirs["ids"] == support.ids.reshape(-1).tolist()
        assert theirs["log_probs"] == support.log_probs.reshape(-1).tolist()
        assert theirs["counts"] == support.counts.tolist()
        assert theirs["sampled"] == sampled.values.tolist()
        assert theirs["sampled_valid"] == sampled.valid.tolist()


async def test_refusals_say_why_in_node(
    server: Running, program: Path, asked: dict[str, Any]
) -> None:
    checks = ["wrong", "unknown_tokenizer", "no_token", "other_run", "quota"]
    found = await ask(program, asked, checks=checks)
    assert {name: (one["code"], one["reason"]) for name, one in found.items()} == {
        "wrong": ("INVALID_ARGUMENT", "LIMIT_EXCEEDED"),
        "unknown_tokenizer": ("FAILED_PRECONDITION", "UNKNOWN_TOKENIZER"),
        "no_token": ("UNAUTHENTICATED", "UNAUTHENTICATED"),
        "other_run": ("PERMISSION_DENIED", "RUN_MISMATCH"),
        "quota": ("RESOURCE_EXHAUSTED", "QUOTA_EXCEEDED"),
    }
    assert found["wrong"]["detail"]["where"] == "top_k"
    assert "limits.max_top_k" in found["wrong"]["detail"]["fix"]
    assert found["quota"]["retry_after"] > 0
    assert "retry_after" not in found["wrong"]


async def test_a_tokenizer_is_registered_in_chunks(
    server: Running, program: Path, asked: dict[str, Any]
) -> None:
    found = (await ask(program, asked, checks=["registered"]))["registered"]
    assert found["whole"]["tokenizer_hash"] == asked["other_hash"]
    levels = {one["teacher"]: one["level"] for one in found["whole"]["levels"]}
    assert levels == {"default": "REALIGNMENT_LEVEL_CROSS"}
    assert found["damaged"]["code"] == "INVALID_ARGUMENT"


async def test_a_large_reply_is_refused_before_it_is_computed_or_read_whole(
    server: Running, program: Path, asked: dict[str, Any]
) -> None:
    server.engines["default"].jobs.clear()
    found = (await ask(program, asked, checks=["large"]))["large"]
    assert (found["before"]["code"], found["before"]["reason"]) == (
        "INVALID_ARGUMENT",
        "REPLY_TOO_LARGE",
    )
    assert found["lost"]["code"] == "RESOURCE_EXHAUSTED"  # of the library: it gives no reason
    assert "reason" not in found["lost"]
    assert found["count"] == LARGE["group"] * LARGE["rows"] * LARGE["top_k"]
    assert len(server.engines["default"].jobs) == 1  # what was lost was kept for a repetition


async def test_reflection_of_version_1_lists_the_services(
    server: Running, program: Path, asked: dict[str, Any]
) -> None:
    found = (await ask(program, asked, checks=["services"]))["services"]
    for name in ("teacher_proto.v1.TeacherScoringService", "grpc.reflection.v1.ServerReflection"):
        assert name in found


async def test_digests_are_those_of_the_vectors(program: Path, asked: dict[str, Any]) -> None:
    found = (await ask(program, asked, checks=["vectors"]))["vectors"]
    vectors = asked["vectors"]
    assert found["identities"] == [one["identity"]["digest"] for one in vectors["identities"]]
    assert found["chat_templates"] == [one["digest"] for one in vectors["chat_templates"]]


async def test_a_deadline_ends_the_call_and_the_work(
    server: Running, program: Path, asked: dict[str, Any]
) -> None:
    engine = server.engines["default"]
    before = engine.cancelled
    engine.hold()
    try:
        found = await ask(program, asked, checks=["deadline"])
        assert found["deadline"]["code"] == "DEADLINE_EXCEEDED"
        async with asyncio.timeout(60):
            while engine.cancelled == before:  # noqa: ASYNC110
                await asyncio.sleep(0.005)
    finally:
        engine.gate.set()


@pytest.fixture(scope="module")
def generated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """client.mjs beside stubs that protoc-gen-es makes of the proto files."""
    if find_spec("grpc_tools") is None:
        pytest.skip("grpcio-tools, which brings protoc, is a development extra")
    node(20)
    packages = node_modules(HERE / "generated")
    folder = tmp_path_factory.mktemp("generated")
    for name in ("client.mjs", "package.json"):
        shutil.copy(HERE / "generated" / name, folder)
    (folder / "node_modules").symlink_to(packages)
    (folder / "gen").mkdir()
    spec = find_spec("google.rpc")
    assert spec is not None
    assert spec.submodule_search_locations
    common = Path(next(iter(spec.submodule_search_locations))).parents[1]
    sources = sorted(str(one.relative_to(PROTOS)) for one in PROTOS.rglob("v1/*.proto"))
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"-I{PROTOS}",
            f"-I{common}",
            f"--plugin=protoc-gen-es={packages / '.bin' / 'protoc-gen-es'}",
            f"--es_out={folder / 'gen'}",
            "--es_opt=target=js,import_extension=js",
            *sources,
            "google/rpc/error_details.proto",
        ],
        check=True,
        capture_output=True,
    )
    return folder / "client.mjs"


async def test_a_client_of_generated_stubs_gets_the_same_numbers(
    server: Running, generated: Path, asked: dict[str, Any]
) -> None:
    found = await ask(generated, asked)
    reply = await python_s(server)
    assert (found["teacher"], found["digest"]) == ("default", reply.identity.digest)
    assert found["statuses"] == ["OK", "OK"]
    supports = [required(one.rows.support, "support") for one in reply.results]
    assert found["log_probs"] == [one.log_probs.reshape(-1).tolist() for one in supports]
    sampled = [required(one.rows.sampled, "sampled") for one in reply.results]
    assert found["sampled"] == [one.values.tolist() for one in sampled]
    assert len(found["rendered"]) == 1
    assert found["levels"] == ["default"]
    assert found["wrong"]["reason"] == "INVALID_REQUEST"
    assert found["wrong"]["where"] == "temperature"
    assert found["wrong"]["domain"] == "lsm-distill"
    assert found["no_token"] | {"what": "", "fix": ""} == {
        "code": "Unauthenticated",
        "reason": "UNAUTHENTICATED",
        "domain": "lsm-distill",
        "what": "",
        "where": "authorization",
        "fix": "",
    }
