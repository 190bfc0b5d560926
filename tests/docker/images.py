"""The images under test, built from the repository's Dockerfiles.

Where ``LSM_TEST_BASE`` names an image, that is their base. Otherwise one is made
here with debootstrap, so that no registry is needed. Wheels are fetched outside,
with pip as it is configured here, and given to the build as an image of their own
and a pip.conf as a build secret: neither may be found in what was built.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from student_trainer.quickstart.cache import cache_dir
from tests.docker.engine import ROOT, Engine

DEBIAN = ("bookworm", "3.11")
PACKAGES = "python3,python3-venv,ca-certificates"
CANARY = "canary-8c1f0e5d"
# What pip reads while building; the last line stands for a password of an index.
PIP_CONF = f"[global]\nno-index = true\nfind-links = /wheels\n# {CANARY}\n"
SECONDS = 1800.0


@dataclass(frozen=True)
class Images:
    teacher: str
    trainer: str


def build_images(engine: Engine, folder: Path) -> Images:
    base = os.environ.get("LSM_TEST_BASE") or _base(engine, folder)
    wheels = _wheels(engine)
    secret = folder / "pip.conf"
    secret.write_text(PIP_CONF)
    names = {}
    for part in ("teacher-cpu", "trainer"):
        names[part] = f"lsm-test/{part}:{os.getpid()}"
        command = [engine.docker, "build", "--progress=plain", "--tag", names[part]]
        command += ["--file", str(ROOT / "docker" / f"{part}.Dockerfile")]
        for name, value in (("BASE", base), ("WHEELS", wheels), ("TORCH_INDEX", "")):
            command += ["--build-arg", f"{name}={value}"]
        command += ["--secret", f"id=pip_conf,src={secret}", str(ROOT)]
        engine.execute(command, timeout=SECONDS, extra={"DOCKER_BUILDKIT": "1"})
    return Images(names["teacher-cpu"], names["trainer"])


def _base(engine: Engine, folder: Path) -> str:
    """A minimal Debian with Python, made once and kept as an archive in the cache."""
    suite, _ = DEBIAN
    archive = cache_dir() / "docker" / f"{suite}-{_digest(PACKAGES)}.tar"
    if not archive.exists():
        archive.parent.mkdir(parents=True, exist_ok=True)
        root = folder / "root"
        command = ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", suite, str(root)]
        subprocess.run(command, check=True, timeout=SECONDS, stdout=subprocess.DEVNULL)
        part = archive.with_suffix(f".{os.getpid()}")
        subprocess.run(["tar", "-C", str(root), "-cf", str(part), "."], check=True)
        part.replace(archive)
    return _import(engine, archive, "lsm-test/base")


def _wheels(engine: Engine) -> str:
    """Every wheel both images need, for the base's Python."""
    needed = [*_requirements("quickstart", "otel"), "hatchling>=1.26"]
    constraints = ROOT / "constraints.txt"
    key = _digest("\n".join(needed) + constraints.read_text())
    archive = cache_dir() / "docker" / f"wheels-{key}.tar"
    if not archive.exists():
        folder = archive.with_suffix(f".{os.getpid()}.d")
        folder.mkdir(parents=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(folder)]
        command += ["--only-binary=:all:", "--python-version", DEBIAN[1], "-c", str(constraints)]
        subprocess.run([*command, *needed], check=True, timeout=SECONDS)
        part = archive.with_suffix(f".{os.getpid()}")
        subprocess.run(["tar", "-C", str(folder), "-cf", str(part), "."], check=True)
        part.replace(archive)
        subprocess.run(["rm", "-r", str(folder)], check=True)
    return _import(engine, archive, "lsm-test/wheels")


def _requirements(*extras: str) -> list[str]:
    """What the Dockerfiles install for these extras, by the program they use."""
    command = [sys.executable, str(ROOT / "docker/requirements.py"), str(ROOT / "pyproject.toml")]
    done = subprocess.run([*command, *extras], capture_output=True, text=True, check=True)
    return done.stdout.split("\n")[:-1]


def _import(engine: Engine, archive: Path, name: str) -> str:
    engine.run("import", str(archive), name, timeout=SECONDS)
    return name


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def layers_hold(engine: Engine, image: str, needle: bytes, folder: Path) -> bool:
    """Whether any layer, or the image's own record of how it was made, holds ``needle``."""
    archive = folder / f"{time.time_ns()}.tar"
    engine.run("save", "--output", str(archive), image)
    found = subprocess.run(["grep", "-q", "-a", "-F", needle, str(archive)], check=False)
    archive.unlink()
    assert found.returncode in (0, 1)
    return found.returncode == 0
