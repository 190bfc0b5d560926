"""Server reflection: which services there are, and the schemas that a client needs to call them.

grpc.reflection.v1 and v1alpha have the same messages under two names, so one servicer of
grpcio-reflection, which knows v1alpha alone, answers both.
"""

from __future__ import annotations

import grpc
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2
from teacher_proto.v1 import service_pb2

ALPHA = reflection.SERVICE_NAME
V1 = ALPHA.replace(".v1alpha.", ".v1.")
METHOD = "ServerReflectionInfo"


def reflection_handlers(*services: str) -> tuple[grpc.GenericRpcHandler, ...]:
    """Handlers of both versions, which list ``services`` and themselves."""
    servicer = reflection.aio.ReflectionServicer((*services, V1, ALPHA), pool=_schemas())
    method = grpc.stream_stream_rpc_method_handler(
        servicer.ServerReflectionInfo,
        reflection_pb2.ServerReflectionRequest.FromString,
        reflection_pb2.ServerReflectionResponse.SerializeToString,
    )
    return tuple(grpc.method_handlers_generic_handler(one, {METHOD: method}) for one in (V1, ALPHA))


def _schemas() -> DescriptorPool:
    """What reflection shows: the services' files, those that they import, and the details
    of an error's status."""
    pool = DescriptorPool()
    found: dict[str, FileDescriptorProto] = {}
    for module in (service_pb2, health_pb2, reflection_pb2, status_pb2, error_details_pb2):
        _collect(module.DESCRIPTOR, found)
    for file in found.values():
        pool.Add(file)
    pool.Add(_renamed(found[reflection_pb2.DESCRIPTOR.name]))
    return pool


def _collect(file: FileDescriptor, found: dict[str, FileDescriptorProto]) -> None:
    """Adds a file to ``found``, after those that it imports."""
    if file.name in found:
        return
    for imported in file.dependencies:
        _collect(imported, found)
    found[file.name] = FileDescriptorProto()
    file.CopyToProto(found[file.name])


def _renamed(alpha: FileDescriptorProto) -> FileDescriptorProto:
    """The file of v1alpha as that of v1, the source of whose messages is the same."""
    v1 = FileDescriptorProto()
    v1.CopyFrom(alpha)
    v1.name, v1.package = "grpc/reflection/v1/reflection.proto", V1.rpartition(".")[0]
    for message in v1.message_type:
        for field in (one for one in message.field if one.type_name):
            field.type_name = field.type_name.replace(".v1alpha.", ".v1.")
    for service in v1.service:
        for method in service.method:
            method.input_type = method.input_type.replace(".v1alpha.", ".v1.")
            method.output_type = method.output_type.replace(".v1alpha.", ".v1.")
    return v1
