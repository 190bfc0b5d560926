"""Virtual environments that hold one wheel and nothing they were not given."""

from __future__ import annotations

import os
import subprocess
import sys
import venv
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).parents[2]
NAME = "lsm-distill"
LONG = 120.0


@dataclass(frozen=True)
class Environment:
    """A virtual environment in a folder of its own; ``command`` never sees the checkout."""

    folder: Path

    @classmethod
    def make(cls, folder: Path) -> Environment:
        venv.create(folder / "venv", symlinks=True)
        return cls(folder)

    @property
    def python(self) -> Path:
        return self.folder / "venv" / "bin" / "python"

    @property
    def packages(self) -> Path:
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        return self.folder / "venv" / "lib" / version / "site-packages"

    def command(self, *arguments: str) -> list[str]:
        return [str(self.python.with_name(arguments[0])), *arguments[1:]]

    @property
    def variables(self) -> dict[str, str]:
        kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
        return kept | {"COLUMNS": "100"}

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs a program of the environment in its folder."""
        return subprocess.run(
            self.command(*arguments),
            capture_output=True,
            text=True,
            timeout=LONG,
            cwd=self.folder,
            env=self.variables,
            check=False,
        )

    def install(self, *arguments: str, cwd: Path | None = None) -> None:
        """Installs for real, with this Python's pip as it is configured here."""
        pip = [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(self.python),
            "install",
            "--quiet",
            "--no-compile",
        ]
        done = subprocess.run(
            [*pip, "--disable-pip-version-check", *arguments],
            capture_output=True,
            text=True,
            cwd=cwd or self.folder,
            env=self.variables,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def link(self, found: Iterable[Distribution]) -> None:
        """Gives it distributions of this Python by links to their files and folders."""
        owners = Counter(top for each in distributions() for top in _tops(each))
        for each in found:
            for file in each.files or ():
                # A folder that several distributions share is linked file by file.
                link = file if owners[file.parts[0]] > 1 else Path(file.parts[0])
                target = self.packages / link
                if ".." not in file.parts and not target.is_symlink():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.symlink_to(Path(str(each.locate_file(link))).resolve())


def _tops(each: Distribution) -> set[str]:
    """The files and folders of site-packages that a distribution has a part in."""
    return {file.parts[0] for file in each.files or ()}


def closure(requirements: Iterable[str], extras: Iterable[str]) -> dict[str, Distribution]:
    """The installed distributions that requirements of a project and its extras lead to.

    Raises:
        PackageNotFoundError: one is not installed.
    """
    found: dict[str, Distribution] = {}
    done: set[tuple[str, frozenset[str]]] = set()
    todo = list(_that_apply(requirements, extras))
    while todo:
        requirement = todo.pop()
        key = requirement.name.lower(), frozenset(requirement.extras)
        if key in done:
            continue
        done.add(key)
        each = distribution(requirement.name)
        assert requirement.specifier.contains(each.version, prereleases=True), requirement
        found[each.name] = each
        todo += _that_apply(each.requires or (), requirement.extras)
    return found


def _that_apply(requirements: Iterable[str], extras: Iterable[str]) -> Iterator[Requirement]:
    for line in requirements:
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": e}) for e in ("", *extras)):
            yield requirement
