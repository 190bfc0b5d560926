"""``teacher-server probe``: asks a server's gRPC health service, for health checks.

Health is answered without credentials. Exit code 0 when the server serves, 4 when
it does not or is not there.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import TYPE_CHECKING

from teacher_proto.errors import TeacherUnavailableError

from teacher_server.commands.client_arguments import (
    add_address_argument,
    add_tls_arguments,
    identification,
)

if TYPE_CHECKING:
    from teacher_proto.client.credentials import Identification

SERVICE = "teacher_proto.v1.TeacherScoringService"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_address_argument(parser)
    parser.add_argument("--timeout", type=float, default=5.0, metavar="S", help="seconds (5)")
    add_tls_arguments(parser)


def run(arguments: argparse.Namespace) -> int:
    own = identification(arguments, arguments.address, with_token=False)
    asyncio.run(check_serving(arguments.address, own, arguments.timeout))
    sys.stdout.write("serving\n")
    return 0


async def check_serving(
    address: str,
    own: Identification,
    timeout: float,  # noqa: ASYNC109
) -> None:
    """Returns when the server at ``address`` takes work.

    Raises:
        TeacherUnavailableError: it does not answer within ``timeout`` seconds, or
            answers that it is not serving.
    """
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from teacher_proto.channel import client_options

    async with own.channel(address, client_options(address)) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        try:
            asked = health_pb2.HealthCheckRequest(service=SERVICE)
            reply = await health.Check(asked, timeout=timeout)
        except grpc.RpcError as error:
            raise TeacherUnavailableError(
                f"no health service answers ({error.code().name})",
                where=address,
                fix="check that this is the gRPC port of a running teacher-server, and whether "
                "it wants --tls or --ca",
            ) from error
    if reply.status != health_pb2.HealthCheckResponse.SERVING:
        raise TeacherUnavailableError(
            "the server is loading its models or draining",
            where=address,
            fix="wait, or read its log",
            reason="NOT_SERVING",
        )
