"""Makes the committed stubs in teacher_proto/v1 from the proto files beside them.

    python proto/generate.py           writes the stubs
    python proto/generate.py --check   ends with 1 and the diff when they drift

Needs grpcio-tools and mypy-protobuf, which the dev extra pins to versions whose
code runs on every protobuf the project allows.
"""

from __future__ import annotations

import argparse
import difflib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

PROTO = Path(__file__).resolve().parent
PACKAGE = Path("teacher_proto") / "v1"
PATTERN = "*_pb2*.py*"
# protoc looks for mypy-protobuf's plugins on PATH; they are beside this Python.
PLUGINS = Path(sys.executable).parent


def generate(out: Path) -> None:
    """Writes the stubs of every proto file under ``out``; raises CalledProcessError."""
    sources = sorted(str(path.relative_to(PROTO)) for path in (PROTO / PACKAGE).glob("*.proto"))
    plugins = ["python_out", "grpc_python_out", "mypy_out", "mypy_grpc_out"]
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTO}"]
        + [f"--{plugin}={out}" for plugin in plugins]
        + sources,
        check=True,
        cwd=PROTO,
        env=os.environ | {"PATH": f"{PLUGINS}{os.pathsep}{os.environ.get('PATH', '')}"},
    )
    for source in sources:
        if "\nservice " not in (PROTO / source).read_text():
            stem = source.removesuffix(".proto")
            for ending in (".py", ".pyi"):
                (out / f"{stem}_pb2_grpc{ending}").unlink()


def drift(fresh: Path, committed: Path) -> list[str]:
    """Unified diff from the committed stubs to the fresh ones; empty when equal."""
    lines: list[str] = []
    names = {path.name for root in (fresh, committed) for path in (root / PACKAGE).glob(PATTERN)}
    for name in sorted(names):
        texts = []
        for root in (committed, fresh):
            path = root / PACKAGE / name
            texts.append(path.read_text().splitlines(keepends=True) if path.exists() else [])
        lines += difflib.unified_diff(*texts, f"committed/{name}", f"generated/{name}")
    return lines


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--check", action="store_true", help="compare only, write nothing")
    if not parser.parse_args().check:
        for stale in (PROTO / PACKAGE).glob(PATTERN):
            stale.unlink()
        generate(PROTO)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        generate(Path(folder))
        lines = drift(Path(folder), PROTO)
    sys.stdout.writelines(lines)
    if lines:
        sys.stderr.write("error: the stubs drifted. Fix: python proto/generate.py\n")
    return 1 if lines else 0


if __name__ == "__main__":
    sys.exit(main())
