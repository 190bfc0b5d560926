"""Packages of clients in other languages: installed once through npm, kept by content hash."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from student_trainer.quickstart.cache import cache_dir

FILES = ("package.json", "package-lock.json")


def node(least: int) -> str:
    """The program node; skips the test where it is missing or older than version ``least``."""
    found = shutil.which("node")
    if found is None:
        pytest.skip("node is not installed")
    version = subprocess.run([found, "--version"], capture_output=True, text=True, check=True)
    if int(version.stdout.strip().lstrip("v").partition(".")[0]) < least:
        pytest.skip(f"node is {version.stdout.strip()}; these packages need {least}")
    return found


def node_modules(folder: Path) -> Path:
    """The packages that a folder's package-lock.json names, each of the content that it states;
    skips the test when they cannot be had."""
    content = b"".join((folder / name).read_bytes() for name in FILES)
    kept = cache_dir() / "node" / hashlib.sha256(content).hexdigest() / "node_modules"
    if not kept.is_dir():
        _install(folder, kept)
    return kept


def _install(folder: Path, kept: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip(f"the packages of {folder.name} are not cached and npm is not installed")
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
        for name in FILES:
            shutil.copy(folder / name, scratch)
        command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
        done = subprocess.run(command, cwd=scratch, capture_output=True, timeout=240)
        made = Path(scratch) / "node_modules"
        if done.returncode:
            pytest.skip(f"npm cannot install them: {done.stderr.decode()[-200:].strip()}")
        if not kept.is_dir():
            made.rename(kept)
