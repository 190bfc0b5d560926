"""Every door, what may not be in the code, and secrets: proofs 16, 17 and 18."""

from __future__ import annotations

import ast
import asyncio
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import httpx
import pytest
from teacher_proto import AsyncTeacherClient
from teacher_proto.errors import LsmError
from teacher_proto.types import TextPrompt

from tests.access import test_programs
from tests.access.pki import (
    ALICE,
    HOSTS,
    RUNS,
    RUNS_WITHOUT_CERTIFICATES,
    Authority,
    client,
    write_secret,
)
from tests.access.test_every_door import (
    BAD,
    METHOD_TRICKS,
    METHODS,
    PATHS,
    PUBLIC_METHODS,
    PUBLIC_PATHS,
    TRICKS,
    VERBS,
    code,
    status,
)
from tests.access.test_tls import grpc_answer, http_answer
from tests.proofs.ledger import Proof
from tests.proofs.service.teacher import LONG, Watched, teacher
from tests.server import processes
from tests.server.running import running

ROOT = Path(__file__).parents[3]


class Doors:
    """How many calls without credentials came to each kind of end."""

    def __init__(self, server: Watched) -> None:
        address = SimpleNamespace(http_address=server.http, grpc_address=server.grpc)
        self.server: Any = SimpleNamespace(server=address)
        self.denied = self.let_in = self.public = 0

    def note(self, *, public: bool, refused: bool) -> None:
        if public:
            self.public += not refused
        elif refused:
            self.denied += 1
        else:
            self.let_in += 1

    async def routes(self) -> None:
        for shown in BAD.values():
            for path in sorted(PATHS):
                for verb in VERBS:
                    found = await status(self.server, verb, path, shown)
                    self.note(public=path in PUBLIC_PATHS, refused=found in (400, 401))
        for path in TRICKS:
            for verb in ("GET", "POST", "OPTIONS"):
                for shown in ([], BAD["wrong"]):
                    found = await status(self.server, verb, path, shown)
                    self.note(public=False, refused=found in (400, 401))

    async def methods(self) -> None:
        refusals = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.UNIMPLEMENTED)
        for method in METHODS:
            for shown in BAD.values():
                found = await code(self.server, method, shown)
                refused = found is grpc.StatusCode.UNAUTHENTICATED
                self.note(public=method in PUBLIC_METHODS, refused=refused)
        for method in METHOD_TRICKS:
            for shown in ([], BAD["wrong"]):
                self.note(public=False, refused=await code(self.server, method, shown) in refusals)


def doors(server: Watched) -> Doors:
    found = Doors(server)
    asyncio.run(found.routes())
    asyncio.run(found.methods())
    return found


async def trusted(model: Path, folder: Path) -> int:
    """How many of the four pairs of a server's and a client's authority end as they must,
    on both wires."""
    ca, stranger = Authority(folder, "ca"), Authority(folder, "stranger")
    pair = ca.issue("server", *HOSTS)
    alice = ca.issue("alice", common_name="alice.trainers.test")
    foreign = stranger.issue("foreign", common_name="alice.trainers.test")
    matrix = (
        (ca, alice, "ok", "ok"),
        (ca, foreign, "CLIENT_NOT_TRUSTED", "no connection"),
        (stranger, alice, "SERVER_NOT_TRUSTED", "no connection"),
        (stranger, foreign, "SERVER_NOT_TRUSTED", "no connection"),
    )
    right = 0
    with pytest.MonkeyPatch.context() as patch:
        async with running(
            {"default": model},
            patch,
            credentials=client(ca, alice),
            run="alice",
            access={"credentials_file": write_secret(folder / "runs.toml", RUNS)},
            tls={"cert": pair.cert, "key": pair.key, "client_ca": ca.pem},
        ) as found:
            for trusts, shows, by_grpc, by_http in matrix:
                shown = client(trusts, shows)
                ends = (
                    await grpc_answer(found.server.grpc_address, shown),
                    await http_answer(found.server.http_address, shown),
                )
                right += ends == (by_grpc, by_http)
    return right


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_proof_16_every_door(tiny_model_dir: Path, tmp_path: Path, proof: Proof) -> None:
    runs = write_secret(tmp_path / "runs.toml", RUNS_WITHOUT_CERTIFICATES)
    setting = f"access.credentials_file={runs}"
    with teacher(tiny_model_dir, tmp_path / "a", setting, token=ALICE) as server:
        found = doors(server)
    proof.figure("denied", found.denied)
    proof.figure("let_in", found.let_in, exactly=0)
    proof.figure("live_and_ready_answered", found.public, at_least=1)
    mtls = tmp_path / "mtls"
    mtls.mkdir()
    proof.figure("mtls_right", asyncio.run(trusted(tiny_model_dir, mtls)), exactly=4)
    open_door = tmp_path / "b"
    with teacher(tiny_model_dir, open_door, setting, token=ALICE, broken="lets_in") as server:
        broken = doors(server)
    proof.control("a guard that lets everybody in", failed=broken.let_in > 0)
    proof.settle()


# Modules whose loaders run what they read, and calls that run text.
BANNED_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
BANNED_CALLS = {"eval", "exec", "compile", "__import__"}
BANNED_ATTRIBUTES = {
    ("torch", "load"),
    ("yaml", "load"),
    ("yaml", "unsafe_load"),
    ("np", "fromregex"),
}
BANNED_KEYWORDS = {("trust_remote_code", True), ("allow_pickle", True)}
SHIPPED = ("proto/teacher_proto", "teacher_server", "student_trainer", "examples", "docker")
POISONED_SOURCE = """
import pickle, torch
from torch import load
def read(data):
    torch.load(data)
    eval(data)
    AutoModel.from_pretrained(data, trust_remote_code=True)
"""


def banned(source: str) -> list[str]:
    """What of the ban a source breaks."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
            pairs = {(node.module, alias.name) for alias in node.names}
            found += [f"from {m} import {n}" for m, n in pairs & BANNED_ATTRIBUTES]
        else:
            names = []
        found += [name for name in names if name.partition(".")[0] in BANNED_MODULES]
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name) and node.func.id in BANNED_CALLS:
                found.append(f"{node.func.id}()")
            for keyword in node.keywords:
                value = getattr(keyword.value, "value", None)
                if (keyword.arg, value) in BANNED_KEYWORDS:
                    found.append(f"{keyword.arg}={value}")
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and (node.value.id, node.attr) in BANNED_ATTRIBUTES
        ):
            found.append(f"{node.value.id}.{node.attr}")
    return found


def shipped() -> Iterator[Path]:
    for folder in SHIPPED:
        yield from (ROOT / folder).rglob("*.py")


def hits() -> dict[str, list[str]]:
    return {
        str(path.relative_to(ROOT)): found
        for path in shipped()
        if (found := banned(path.read_text()))
    }


HOSTILE_MODELS = (
    "/etc/passwd", "../../etc/passwd", "..\\..\\windows\\win.ini", "file:///etc/passwd",
    "http://127.0.0.1:9/model", "https://example.test/model.bin", "ftp://example.test/model",
    "meta-llama/Llama-3.1-8B", "user/repo@main", "~/model", "$HOME/model", "`id`", "$(id)",
    "; rm -rf /", "default/../default", "./default", "default\x00.bin", "default%2f..",
    "\\\\host\\share\\model", "/proc/self/environ",
)  # fmt: skip


async def named_models(server: Watched) -> int:
    """How many of these model names both wires refuse."""
    refused = 0
    async with (
        AsyncTeacherClient(server.grpc, run="run", max_attempts=1) as asking,
        httpx.AsyncClient(base_url=f"http://{server.http}", timeout=LONG) as http,
    ):
        for number, name in enumerate(HOSTILE_MODELS):
            body = {
                "teacher": name,
                "prompt": {"token_ids": [1]},
                "continuations": [{"token_ids": [2]}],
                "top_k": 1,
                "temperature": 1.0,
            }
            posted = await http.post("/v1/score", json=body)
            asked = await http.get("/v1/teacher", params={"teacher": name})
            try:
                await asking.score(server.request(1, f"m{number}", teacher=name), timeout=LONG)
            except LsmError as error:
                told = error.exit_code in (1, 2, 3)
            else:
                told = False
            codes = (posted.status_code, asked.status_code)
            refused += told and all(400 <= status < 500 for status in codes)
    return refused


def test_nothing_that_is_shipped_runs_what_it_reads() -> None:
    assert hits() == {}
    assert len(set(banned(POISONED_SOURCE))) == 5
    assert len(list(shipped())) > 100


def test_no_request_names_a_model_to_load(plain: Watched) -> None:
    assert len(set(HOSTILE_MODELS)) == 20
    assert asyncio.run(named_models(plain)) == 20


@pytest.mark.soak
@pytest.mark.timeout(300)
def test_proof_17_no_code_and_no_models_from_outside(
    tiny_model_dir: Path, tmp_path: Path, proof: Proof
) -> None:
    proof.figure("hits", sum(map(len, hits().values())), exactly=0)
    with teacher(tiny_model_dir, tmp_path / "a") as server:
        proof.figure("models_refused", asyncio.run(named_models(server)), exactly=20)
    proof.control("a source with pickle, torch.load and eval", failed=bool(banned(POISONED_SOURCE)))
    with teacher(tiny_model_dir, tmp_path / "b", broken="any_teacher") as server:
        refused = asyncio.run(named_models(server))
    proof.control("a server that takes any name for its model", failed=refused < 20)
    proof.settle()


CONTENT = "canary-in-the-contents-7f3a"


async def confide(server: Watched) -> int:
    """Calls that carry a canary where contents are, some of which fail; how many there were."""
    text = TextPrompt(CONTENT)
    calls = 0
    async with (
        AsyncTeacherClient(server.grpc, run="run", max_attempts=1) as asking,
        httpx.AsyncClient(base_url=f"http://{server.http}", timeout=LONG) as http,
    ):
        for number, changes in enumerate(
            ({"prompt": text}, {"prompt": text, "top_k": -1}, {"prompt": TextPrompt(CONTENT * 999)})
        ):
            asked = server.request(1, f"c{number}", **changes)
            await asyncio.gather(asking.score(asked, timeout=LONG), return_exceptions=True)
            calls += 1
        good = {"prompt": {"text": CONTENT}, "continuations": [{"text": CONTENT}], "top_k": 1}
        for body in (
            good | {"temperature": 1.0},
            good | {"temperature": CONTENT},
            good | {CONTENT: 1},
            {"prompt": {"messages": [{"role": CONTENT, "content": CONTENT}]}},
        ):
            await http.post("/v1/score", json=body)
            await http.post("/v1/render", json={"prompts": [body]})
            calls += 2
        for path in (f"/{CONTENT}", f"/metrics?{CONTENT}"):
            await http.get(
                path, headers={"x-canary": CONTENT, "authorization": f"Bearer {CONTENT}"}
            )
            calls += 1
        await http.post("/v1/tokenizers", content=f'{{"model": "{CONTENT}"'.encode())
    return calls + 1


def told(server: Watched) -> int:
    """Files of the server, and metrics, that hold the canary."""
    files = [path for path in server.folder.rglob("*") if path.is_file()]
    texts = [path.read_bytes() for path in files] + [server.get("/metrics")[1]]
    return sum(CONTENT.encode() in text for text in texts)


def secrets_told(
    model: Path, folder: Path, capsys: pytest.CaptureFixture[str], start: Sequence[str] = ()
) -> str:
    """Empty, or what the look-out for tokens in every file and output of both programs found;
    ``start``: the server's program in place of its own."""
    look: Callable[..., None] = test_programs.test_a_secret_shows_up_nowhere
    serving = processes.serving
    folder.mkdir()
    with pytest.MonkeyPatch.context() as patch:
        if start:
            patch.setattr(test_programs, "serving", lambda *a: serving(*a, start=list(start)))
        try:
            look(model, folder, patch, capsys)
        except AssertionError as error:
            return str(error)[:300] or "it failed"
        finally:
            shutil.rmtree(folder)
    return ""


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_proof_18_a_canary_secret(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], proof: Proof
) -> None:
    found = secrets_told(tiny_model_dir, tmp_path / "a", capsys)
    proof.details["secrets"] = found
    proof.figure("secrets_told", bool(found), exactly=0)
    audit = tmp_path / "b" / "audit.jsonl"
    settings = (f"access.audit_file={audit}", "log_level=debug")
    with teacher(tiny_model_dir, tmp_path / "b", *settings) as server:
        proof.figure("calls_with_a_canary", asyncio.run(confide(server)))
        proof.figure("contents_told", told(server), exactly=0)
    leaky = (sys.executable, "-m", "tests.proofs.service.program", '{"broken": "tells"}')
    leaked = secrets_told(tiny_model_dir, tmp_path / "c", capsys, leaky)
    proof.control("a guard that logs what it is shown", failed=bool(leaked))
    proof.settle()
