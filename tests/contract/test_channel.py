"""gRPC ignores options it does not know, so each name is looked up in its core."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from teacher_proto import channel
from teacher_proto.client.async_client import SERVICE
from teacher_proto.v1 import service_pb2

NAMES = sorted(
    {
        name
        for options in (
            channel.client_options("127.0.0.1:1"),
            channel.client_options("teacher.example:1"),
            channel.server_options(1, 1),
        )
        for name, _ in options
    }
)


@pytest.fixture(scope="module")
def core() -> bytes:
    (library,) = (Path(grpc.__file__).parent / "_cython").glob("cygrpc*.so")
    return library.read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_the_core_knows_the_option(core: bytes, name: str) -> None:
    assert name.encode() + b"\0" in core


def test_the_look_up_can_fail(core: bytes) -> None:
    assert b"grpc.http2.min_ping_interval_ms\0" not in core
    assert b"grpc.http2.min_ping_interval_without_data\0" not in core


def test_a_client_pings_no_more_often_than_the_server_allows() -> None:
    client = dict(channel.client_options("127.0.0.1:1"))
    server = dict(channel.server_options(1, 1))
    assert int(client[channel.KEEPALIVE_TIME]) > int(server[channel.MIN_PING_INTERVAL])


@pytest.mark.parametrize(
    ("address", "loopback"),
    [
        ("127.0.0.1:50051", True),
        ("127.8.0.1:1", True),
        ("[::1]:50051", True),
        ("localhost:1", True),
        ("dns:///localhost:1", True),
        ("unix:/run/teacher.sock", True),
        ("10.0.0.1:1", False),
        ("teacher:50051", False),
        ("localhost.example.org:1", False),
    ],
)
def test_only_this_machine_is_loopback(address: str, loopback: bool) -> None:
    assert channel.is_on_this_machine(address) is loopback
    assert ((channel.HTTP_PROXY, 0) in channel.client_options(address)) is loopback


def test_the_client_calls_the_service_by_its_name() -> None:
    service = service_pb2.DESCRIPTOR.services_by_name["TeacherScoringService"]
    assert f"/{service.full_name}" == SERVICE
    assert set(service.methods_by_name) == {
        *("GetTeacher", "Score", "Render"),
        *("RegisterTokenizer", "ListTokenizers", "DropTokenizer"),
    }
