"""Sockets the program listens on, and the connections they accept."""

from __future__ import annotations

import asyncio
import os
import socket

import psutil
import pytest

from teacher_server.listen import listen
from tests.server.running import Running


def sends_at_once(accepted: socket.socket) -> bool:
    return accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


async def test_the_server_s_side_of_a_connection_sends_at_once(server: Running) -> None:
    assert (await server.http.get("/livez")).status_code == 200
    host, _, port = server.server.http_address.rpartition(":")
    accepted = [
        connection.fd
        for connection in psutil.Process().net_connections("tcp")
        if connection.status == psutil.CONN_ESTABLISHED and connection.laddr == (host, int(port))
    ]
    assert accepted
    for descriptor in accepted:
        with socket.socket(fileno=os.dup(descriptor)) as copy:
            assert sends_at_once(copy)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
async def test_asyncio_sends_at_once_on_what_a_listener_accepts(host: str) -> None:
    found = asyncio.get_running_loop().create_future()

    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        found.set_result(sends_at_once(writer.get_extra_info("socket")))
        writer.close()

    listener = listen(host, 0, "http_port")
    serving = await asyncio.start_server(answer, sock=listener)
    async with serving:
        _, writer = await asyncio.open_connection(*listener.getsockname()[:2])
        assert await found
        writer.close()


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_a_port_can_be_bound_again_and_only_in_its_own_family(host: str) -> None:
    with listen(host, 0, "http_port") as listener:
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
        if listener.family is socket.AF_INET6:
            assert listener.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
