"""Makes the secrets of docker-compose.yml's runs: a token for each run and for Prometheus,
and the teacher's list of them.

    make_tokens.py DIRECTORY

Each file is for its container's user alone. Giving a file away takes root; without
it the command that does so is printed. Files that are there already are kept.
"""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path

# Users of our images and of Prometheus' own.
OURS, PROMETHEUS = 10001, 65534
# What each run is entitled to (docs/access.md).
RUNS = {
    "first": {"weight": 2.0, "tokens_per_minute": 200_000},
    "second": {"weight": 1.0, "tokens_per_minute": 100_000},
    "metrics": {"teachers": []},
}


def main(directory: Path) -> int:
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    if (directory / "credentials.toml").exists():
        return 0
    entries = []
    for run, entitlements in RUNS.items():
        token = secrets.token_hex(32)
        write(directory / f"{run}.token", token, PROMETHEUS if run == "metrics" else OURS)
        lines = [f"{name} = {value}" for name, value in entitlements.items()]
        entries.append("\n".join([f"[runs.{run}]", *lines, f'tokens = [{{ token = "{token}" }}]']))
    write(directory / "credentials.toml", "\n\n".join(entries), OURS)
    return 0


def write(path: Path, text: str, owner: int) -> None:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text + "\n")
    if os.geteuid() == 0:
        os.chown(path, owner, owner)
    else:
        sys.stderr.write(f"run: sudo chown {owner}:{owner} {path}\n")


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
