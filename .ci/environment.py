"""Makes a virtual environment that has pip, on Debian and Ubuntu too.

Their Python comes without ensurepip unless python3-venv is installed; where
that is so, and this process may, the package is installed first.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import venv


def main() -> int:
    target = sys.argv[1]
    if sys.version_info < (3, 11):  # noqa: UP036 (this file runs before the bound is checked)
        return fail(
            f"Python {sys.version.split()[0]} is too old, 3.11 or later is needed",
            "make PYTHON=/path/to/python3.11 ...",
        )
    if importlib.util.find_spec("ensurepip") is None:
        package = f"python{sys.version_info.major}.{sys.version_info.minor}-venv"
        prefix = [] if os.geteuid() == 0 else ["sudo", "-n"]
        if shutil.which("apt-get") is None or (prefix and shutil.which("sudo") is None):
            return fail("this Python has no ensurepip", f"install {package}, then try again")
        subprocess.run([*prefix, "apt-get", "update", "-qq"], check=False)
        run = subprocess.run([*prefix, "apt-get", "install", "-y", "-qq", package], check=False)
        if run.returncode != 0:
            return fail("this Python has no ensurepip", f"sudo apt-get install {package}")
        # A fresh interpreter sees the package that came in just now.
        os.execv(sys.executable, [sys.executable, *sys.argv])
    venv.create(target, with_pip=True, clear=os.path.exists(target))
    return 0


def fail(what: str, fix: str) -> int:
    sys.stderr.write(f"error: {what}. Fix: {fix}\n")
    return 2


if __name__ == "__main__":
    sys.exit(main())
