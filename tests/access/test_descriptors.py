"""How many connections the files of a process allow."""

from __future__ import annotations

import subprocess
import sys

import pytest
from teacher_proto.errors import ConfigurationError

from teacher_server.access.descriptors import ConnectionBounds, connection_bounds
from teacher_server.settings.limits import LimitSettings

RAISED = """
import resource
from teacher_server.access.descriptors import raise_descriptor_limit
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (64, hard))
print(raise_descriptor_limit() == hard == resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.mark.parametrize(
    ("descriptors", "total"), [(256, 80), (1024, 384), (4096, 1536), (1 << 20, 4096)]
)
def test_unset_they_follow_from_the_files_of_the_process(descriptors: int, total: int) -> None:
    found = connection_bounds(LimitSettings(), descriptors)
    assert found == ConnectionBounds(total, total // 2)


def test_what_is_set_holds() -> None:
    limits = LimitSettings(max_connections=100, max_connections_per_address=100)
    assert connection_bounds(limits, 1024) == ConnectionBounds(100, 100)


@pytest.mark.parametrize(
    ("limits", "descriptors", "where"),
    [
        (LimitSettings(max_connections=385), 1024, "limits.max_connections"),
        (LimitSettings(), 97, "limits.max_connections"),
        (LimitSettings(max_connections_per_address=81), 256, "limits.max_connections_per_address"),
    ],
)
def test_what_the_files_do_not_allow_is_refused(
    limits: LimitSettings, descriptors: int, where: str
) -> None:
    with pytest.raises(ConfigurationError) as raised:
        connection_bounds(limits, descriptors)
    assert raised.value.where == where


def test_an_address_has_no_more_connections_than_all() -> None:
    with pytest.raises(ValueError, match="max_connections_per_address=9 is more than"):
        LimitSettings(max_connections=8, max_connections_per_address=9)


def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    done = subprocess.run(
        [sys.executable, "-c", RAISED], capture_output=True, text=True, check=True
    )
    assert done.stdout == "True\n"
