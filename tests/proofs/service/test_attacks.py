"""A normal run beside every known attack: proof 23, and the quick form of 25.

The attacks, the neighbour and the server that does nothing are those of
``benchmarks.bench_attacks``.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from benchmarks.attacks.target import MIB, TOKENS, write_runs
from benchmarks.bench_attacks import ATTACKS, both_sides, dummy, figures_of, run_attack
from tests.proofs.ledger import Proof, seconds
from tests.proofs.service.teacher import Watched, teacher
from tests.support.models import make_tiny_model

# One of each kind: a body, a conversation, connections, a stalled body, a file, refusals.
QUICK = ("json_lists", "chat_grpc", "idle_sockets", "stalled_uploads", "normalizer_bomb",
         "anonymous_refusals")  # fmt: skip
QUICK_SECONDS = 0.5
DESCRIPTORS = ("sh", "-c", 'ulimit -n 256; exec "$@"', "sh")
USER = 23456


@pytest.fixture(scope="module")
def wide_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny, and with room for the longest text that the limits allow."""
    folder = tmp_path_factory.mktemp("models") / "wide"
    return make_tiny_model(folder, max_position_embeddings=MIB)


def settings(folder: Path) -> list[str]:
    folder.mkdir(parents=True, exist_ok=True)
    runs = write_runs(folder / "runs.toml")
    return [f"access.credentials_file={runs}", f"access.audit_file={folder / 'audit'}"]


@contextmanager
def attacked(model: Path, folder: Path, **how: Any) -> Iterator[Watched]:
    given = {"token": TOKENS["alice"], "before": DESCRIPTORS} | how
    with teacher(model, folder, *settings(folder), **given) as server:
        yield server


def facts(server: Watched) -> dict[str, Any]:
    return {"grpc_address": server.grpc, "http_address": server.http, "pid": server.pid}


def beside_attacks(
    about: dict[str, Any], names: list[str], each: float, say: Any = print
) -> dict[str, Any]:
    """Attack -> what the neighbour saw of it, what it saw of the same attack on a server that
    does nothing, and the bounds that broke."""
    found: dict[str, Any] = {}
    with dummy() as nothing:
        for name in names:
            found[name] = both_sides(name, about, each, nothing)
            say(f"{name}: {found[name]['broken'] or 'held'}")
    return found


def note(proof: Proof, found: dict[str, Any]) -> None:
    """The figures of proofs 23 and 25."""
    figures = figures_of(found)
    proof.figure("attacks", figures["attacks"], at_least=1)
    proof.figure("unreachable", figures["unreachable"], exactly=0)
    proof.figure("attacks_held", figures["attacks_held"], exactly=figures["attacks"])
    proof.figure("worst_score_over_dummy", figures["worst_score_over_dummy"], at_most=1)
    proof.figure("worst_livez_ms", figures["worst_livez_ms"], at_most=250)
    proof.figure("worst_memory_mb", figures["worst_memory_mb"], at_most=64)
    proof.figure("hangs", figures["hangs"], exactly=0)
    proof.figure("deaths", figures["deaths"], exactly=0)
    proof.details |= found


def check_quick(about: dict[str, Any], names: tuple[str, ...]) -> None:
    for name in names:
        seen = run_attack(name, about, QUICK_SECONDS)
        assert (seen["hangs"], seen["deaths"], seen["failed"]) == (0, 0, {}), (name, seen)
        assert min(seen["calls"].values()) > 0, (name, seen)


def test_a_neighbour_is_served_beside_every_attack(wide_model_dir: Path, tmp_path: Path) -> None:
    assert set(QUICK) <= set(ATTACKS)
    with attacked(wide_model_dir, tmp_path / "a") as server:
        check_quick(facts(server), QUICK)


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_proof_23_a_neighbour_beside_every_attack(
    wide_model_dir: Path, tmp_path: Path, proof: Proof
) -> None:
    each = seconds(4)
    with attacked(wide_model_dir, tmp_path / "a") as server:
        note(proof, beside_attacks(facts(server), list(ATTACKS), each, proof.say))
    with attacked(wide_model_dir, tmp_path / "b", broken="on_the_loop") as server:
        worse = beside_attacks(
            facts(server), ["segments_within", "unread_replies"], each, proof.say
        )
    failed = any(seen["broken"] for seen in worse.values())
    control = "a server that reads bodies and writes replies on its event loop"
    proof.control(control, failed=failed)
    proof.settle()


# Nothing of the root may be written but the server's own folder; no user of the machine; no
# privilege, and no way to one.
CONFINED = """
mount --make-rprivate / && mount --bind "$FOLDER" "$FOLDER" && mount -o remount,bind,ro / || exit 9
exec setpriv --reuid USER --regid USER --clear-groups --no-new-privs --bounding-set=-all \
  --inh-caps=-all "$@"
""".replace("USER", str(USER))


@pytest.fixture
def own_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder of the other user, which it can reach; skips where none can be had."""
    folder = Path(tempfile.mkdtemp(prefix="lsm-confined-"))
    try:
        if os.getuid() != 0:
            pytest.skip("only root can start a process as another user")
        folder.chmod(0o755)
        os.chown(folder, USER, USER)
        tried = subprocess.run(confined(folder, sys.executable, "-c", "import torch"), check=False)
        if tried.returncode:
            pytest.skip("no process can be confined here, or it cannot read the installation")
        yield folder
    finally:
        shutil.rmtree(folder)


def confined(folder: Path, *command: str) -> list[str]:
    variables = ["env", f"FOLDER={folder}", f"TMPDIR={folder}", f"HOME={folder}"]
    return [*variables, "unshare", "--mount", "sh", "-c", CONFINED, "sh", *command]


def test_a_confined_server_is_served_beside_attacks(wide_model_dir: Path, own_folder: Path) -> None:
    model = shutil.copytree(wide_model_dir, own_folder / "model")
    served = own_folder / "served"
    settings(served)
    for path in (own_folder, *own_folder.rglob("*")):
        os.chown(path, USER, USER)
    with attacked(model, served, before=confined(own_folder)) as server:
        status = Path(f"/proc/{server.pid}/status").read_text()
        assert f"Uid:\t{USER}\t{USER}" in status
        assert "NoNewPrivs:\t1" in status
        check_quick(facts(server), ("json_lists", "normalizer_bomb"))
        assert server.children() > 0, "no tokenizer had a process of its own"
