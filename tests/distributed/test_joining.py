"""How a process finds the other ranks, and what it says of those that are gone."""

from __future__ import annotations

import os

import pytest
import torch.distributed as dist
from teacher_proto.errors import ConfigurationError

from student_trainer.distributed import world as module
from student_trainer.distributed.environment import ranks_here, without_ranks
from student_trainer.distributed.world import ALONE, VARIABLES, World, joined, lost


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (*VARIABLES, "LOCAL_WORLD_SIZE", "TORCHELASTIC_USE_AGENT_STORE"):
        monkeypatch.delenv(name, raising=False)


def test_one_process_is_alone_whoever_has_started_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with joined(5.0) as world:
        assert world is ALONE
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "1")  # and nothing else, as some schedulers do
    with joined(5.0) as world:
        assert world is ALONE
    assert not dist.is_initialized()


def test_a_part_of_what_torchrun_sets_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigurationError, match="lacks LOCAL_RANK, MASTER_ADDR"), joined(5.0):
        pass


def test_ranks_that_do_not_come_are_named_long_before_the_timeout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    said = {"RANK": "0", "WORLD_SIZE": "3", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True",
            "TORCHELASTIC_RESTART_COUNT": "0"}  # fmt: skip
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(module, "JOIN_SECONDS", 0.5)
    with pytest.raises(ConfigurationError, match=r"ranks \[1, 2\] have not come"), joined(3600.0):
        pass
    assert not dist.is_initialized()


GONE = (
    "[../gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:40000",
    "[gloo/transport/tcp/unbound_buffer.cc:78] Timed out waiting 1800000ms for recv operation",
    "NCCL error: remote process exited or there was a network error",
)
OTHER = (
    "NCCL error: invalid usage, Duplicate GPU detected: rank 0 and rank 1 both on CUDA device 0",
    "mat1 and mat2 shapes cannot be multiplied",
)


def test_only_an_error_of_a_lost_connection_says_that_a_rank_is_lost() -> None:
    for text in GONE:
        error = lost(World(1, 2, 1), RuntimeError(text))
        assert error is not None, text
        assert error.reason == "RANK_LOST"
        assert "rank 1 of 2 has lost another rank" in str(error)
        assert lost(ALONE, RuntimeError(text)) is None
    for text in OTHER:
        assert lost(World(1, 2, 1), RuntimeError(text)) is None, text


def test_a_process_that_a_rank_starts_is_no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {"RANK": "1", "LOCAL_WORLD_SIZE": "4", "TORCHELASTIC_USE_AGENT_STORE": "True",
            "MASTER_PORT": "1", "RANKING": "mine"}  # fmt: skip
    for name, value in said.items():
        monkeypatch.setenv(name, value)
    assert ranks_here() == 4
    with without_ranks():
        assert {name for name in said if name in os.environ} == {"RANKING"}
        assert ranks_here() == 1
    assert {name: os.environ[name] for name in said} == said
