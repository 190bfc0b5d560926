"""Reflection, version 1 and v1alpha: enough to call the service with nothing else in hand."""

from __future__ import annotations

from typing import Any

import grpc
import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha import reflection_pb2
from teacher_proto.v1 import teacher_pb2

from teacher_server.grpc.servicer import SERVICE
from tests.server.running import LONG, Running

pytestmark = pytest.mark.asyncio(loop_scope="module")

VERSIONS = ("grpc.reflection.v1", "grpc.reflection.v1alpha")


async def asked(server: Running, version: str, *requests: bytes) -> list[Any]:
    """The answers to requests in bytes: what the two versions have on the wire is one."""
    async with grpc.aio.insecure_channel(server.server.grpc_address) as channel:
        method: Any = channel.stream_stream(f"/{version}.ServerReflection/ServerReflectionInfo")
        replies = [reply async for reply in method(iter(requests), timeout=LONG)]
    return [reflection_pb2.ServerReflectionResponse.FromString(reply) for reply in replies]


def field(number: int, text: str) -> bytes:
    """A request as bytes: one field, a text of fewer than 128 bytes."""
    return bytes([number << 3 | 2, len(text)]) + text.encode()


async def schemas(server: Running, version: str, symbol: str) -> DescriptorPool:
    """The files of a symbol, as only a client without any stubs has them."""
    (reply,) = await asked(server, version, field(4, symbol))
    files = [
        FileDescriptorProto.FromString(one)
        for one in reply.file_descriptor_response.file_descriptor_proto
    ]
    pool = DescriptorPool()
    known = {one.name: one for one in files}
    added: set[str] = set()

    def add(name: str) -> None:
        if name not in added:
            added.add(name)
            for imported in known[name].dependency:
                add(imported)
            pool.Add(known[name])

    for name in known:
        add(name)
    return pool


@pytest.mark.parametrize("version", VERSIONS)
async def test_the_services_are_listed(shared: Running, version: str) -> None:
    (reply,) = await asked(shared, version, field(7, ""))
    names = [one.name for one in reply.list_services_response.service]
    services = [f"{one}.ServerReflection" for one in VERSIONS]
    assert sorted(names) == sorted([SERVICE, "grpc.health.v1.Health", *services])


@pytest.mark.parametrize("version", VERSIONS)
async def test_the_service_is_called_with_nothing_but_its_schema(
    shared: Running, version: str
) -> None:
    pool = await schemas(shared, version, SERVICE)
    method = pool.FindServiceByName(SERVICE).methods_by_name["GetTeacher"]
    async with grpc.aio.insecure_channel(shared.server.grpc_address) as channel:
        call: Any = channel.unary_unary(f"/{SERVICE}/{method.name}")
        reply = await call(GetMessageClass(method.input_type)().SerializeToString(), timeout=LONG)
    found: Any = GetMessageClass(method.output_type).FromString(reply)
    assert found == GetMessageClass(method.output_type).FromString(
        teacher_pb2.GetTeacherResponse.FromString(reply).SerializeToString()
    )
    assert found.teachers[0].identity.digest == shared.info.teacher("default").identity.digest


@pytest.mark.parametrize("version", VERSIONS)
async def test_each_version_shows_its_own_schema_and_that_of_errors(
    shared: Running, version: str
) -> None:
    pool = await schemas(shared, version, f"{version}.ServerReflection")
    method = pool.FindServiceByName(f"{version}.ServerReflection").methods_by_name[
        "ServerReflectionInfo"
    ]
    assert method.input_type.full_name == f"{version}.ServerReflectionRequest"
    errors = await schemas(shared, version, "google.rpc.ErrorInfo")
    assert errors.FindMessageTypeByName("google.rpc.ErrorInfo").fields_by_name["reason"]


@pytest.mark.parametrize("version", VERSIONS)
async def test_what_is_not_there_and_what_means_nothing(shared: Running, version: str) -> None:
    missing, empty = await asked(shared, version, field(4, "no.such.Symbol"), b"")
    assert missing.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
    assert empty.error_response.error_code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
