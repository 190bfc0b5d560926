"""The installed distribution: its version, its extras, and how an extra is installed.

The distribution is on no package index, so an install always names a checkout or a wheel.
"""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, distribution, requires, version

NAME = "lsm-distill"
VERSION = version(NAME)


def install_command(extra: str) -> str:
    """How a user installs ``extra``, for the ``fix`` of an error."""
    wheel = f"{NAME.replace('-', '_')}-{VERSION}-py3-none-any.whl"
    return f"run pip install '.[{extra}]' in the checkout, or pip install '{wheel}[{extra}]'"


def missing_packages(extra: str) -> list[str]:
    """Names of the distributions that ``extra`` requires and this environment lacks."""
    condition = re.compile(rf"""extra\s*==\s*["']{re.escape(extra)}["']""")
    names = [
        re.split(r"[^\w.-]", line, maxsplit=1)[0]
        for line in requires(NAME) or ()
        if condition.search(line)
    ]
    return [name for name in names if not _is_installed(name)]


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True
