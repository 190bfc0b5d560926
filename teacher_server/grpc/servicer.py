"""TeacherScoringService: read, call the service, send what it returns.

Messages arrive and leave as bytes, so that a malformed one is refused like any
other wrong request and equal work can be answered with equal bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Awaitable, Callable
from email.utils import formatdate
from functools import partial
from typing import Any, TypeVar, cast

import grpc
import numpy as np
from teacher_proto import codec
from teacher_proto.codec.wire_counts import WireBounds, check_wire
from teacher_proto.errors import InvalidRequestError
from teacher_proto.types import Int32, RenderedPrompt, ScoreReply, ScoreRequest
from teacher_proto.v1 import render_pb2, score_pb2, service_pb2, teacher_pb2, tokenizer_pb2

from teacher_server.grpc.exchange import Exchange
from teacher_server.grpc.form import (
    check_names,
    plain_bounds,
    render_bounds,
    score_bounds,
    tokenizer_bounds,
)
from teacher_server.scoring.context import GRPC, Bytes, Received, TokenTexts
from teacher_server.scoring.render import RawPrompt, ReceivedRender
from teacher_server.scoring.service import TeacherService
from teacher_server.teachers.teacher import Teacher, Teachers

SERVICE = service_pb2.DESCRIPTOR.services_by_name["TeacherScoringService"].full_name

Method = Callable[[Exchange], Awaitable[bytes]]
# Messages that hold names alone.
Names = TypeVar(
    "Names",
    teacher_pb2.GetTeacherRequest,
    tokenizer_pb2.ListTokenizersRequest,
    tokenizer_pb2.DropTokenizerRequest,
)


class _Unary:
    """A call that came with one message: what both methods below need of it."""

    def __init__(self, exchange: Exchange, bounds: WireBounds) -> None:
        self.surface = GRPC
        self.caller = exchange.caller
        self.started = exchange.started
        self.headers = exchange.context.invocation_metadata() or ()
        self.read = exchange.read
        self.expect = exchange.hold.expect
        self.grow = exchange.hold.grow
        self._bounds = bounds
        self._deadline = exchange.deadline


class _ScoreCall(_Unary):
    def decode(self, body: Bytes, teachers: Teachers) -> Received:
        body = bytes(body)  # gRPC's own
        check_wire(body, score_pb2.ScoreRequest.DESCRIPTOR, self._bounds)
        request = codec.decode_request(body)
        return Received(request, self._deadline, len(body), hashlib.sha256(body).digest())

    def shown_ids(self, request: ScoreRequest, reply: ScoreReply) -> Int32:
        return np.zeros(0, np.int32)

    def encode(
        self, request: ScoreRequest, reply: ScoreReply, teacher: Teacher, texts: TokenTexts | None
    ) -> bytes:
        return codec.serialize(codec.encode_reply(reply))


class _RenderCall(_Unary):
    def decode(self, body: Bytes, teachers: Teachers) -> ReceivedRender:
        body = bytes(body)
        check_wire(body, render_pb2.RenderRequest.DESCRIPTOR, self._bounds)
        request, prompts = codec.decode_render(body)
        raw = tuple(RawPrompt(one.size, one.decode) for one in prompts)
        return ReceivedRender(request, raw, self._deadline, len(body))

    def encode(self, prompt: RenderedPrompt) -> bytes:
        return codec.serialize(codec.encode_rendered([prompt]))

    def joined(self, parts: list[bytes]) -> bytes:
        # Messages one after the other are one message with the items of all of them.
        return b"".join(parts)


async def _names(exchange: Exchange, message: Names) -> Names:
    """``message``, an empty one, as the call's body fills it."""
    body = await exchange.read()
    check_names(len(body))
    check_wire(body, message.DESCRIPTOR, plain_bounds())
    return codec.parse(body, message, InvalidRequestError)


def _add_part(assembler: codec.TokenizerAssembler, part: bytes) -> None:
    check_wire(part, tokenizer_pb2.RegisterTokenizerRequest.DESCRIPTOR, tokenizer_bounds())
    message = tokenizer_pb2.RegisterTokenizerRequest()
    assembler.add(codec.parse(part, message, InvalidRequestError))


class Servicer:
    def __init__(self, service: TeacherService) -> None:
        self._service = service
        self._score_bounds = score_bounds(service.limits)
        self._render_bounds = render_bounds(service.limits)

    async def get_teacher(self, exchange: Exchange) -> bytes:
        # As every HTTP reply has it: clients compare clocks.
        await exchange.context.send_initial_metadata((("date", formatdate(usegmt=True)),))
        with self._service.observe(GRPC.name, "GetTeacher"):
            message = await _names(exchange, teacher_pb2.GetTeacherRequest())
            principal = exchange.caller.principal
            return codec.serialize(
                codec.encode_server_info(self._service.describe(message.teacher, principal))
            )

    async def score(self, exchange: Exchange) -> bytes:
        return bytes(await self._service.score(_ScoreCall(exchange, self._score_bounds)))

    async def render(self, exchange: Exchange) -> bytes:
        return await self._service.render(_RenderCall(exchange, self._render_bounds))

    async def register_tokenizer(self, exchange: Exchange) -> bytes:
        caller = exchange.caller
        principal = caller.principal
        with self._service.observe(GRPC.name, "RegisterTokenizer"):
            self._service.check_caller(principal)
            most = self._service.limits.max_tokenizer_bytes
            assembler = codec.TokenizerAssembler(most)
            async for part in exchange.parts(most):
                add = partial(_add_part, assembler, part)
                await self._service.compute(add, len(part), caller)
            size = assembler.received_bytes
            upload = await self._service.compute(assembler.finish, size, caller)
            found = await self._service.register(upload, principal)
            return codec.serialize(codec.encode_levels(found.tokenizer_hash, found.levels))

    async def list_tokenizers(self, exchange: Exchange) -> bytes:
        with self._service.observe(GRPC.name, "ListTokenizers"):
            message = await _names(exchange, tokenizer_pb2.ListTokenizersRequest())
            found = await self._service.list_tokenizers(message.run, exchange.caller)
            return codec.serialize(codec.encode_registered(found))

    async def drop_tokenizer(self, exchange: Exchange) -> bytes:
        with self._service.observe(GRPC.name, "DropTokenizer"):
            message = await _names(exchange, tokenizer_pb2.DropTokenizerRequest())
            dropped = await self._service.drop_tokenizer(
                message.run, message.tokenizer_hash, exchange.caller
            )
            return codec.serialize(tokenizer_pb2.DropTokenizerResponse(dropped=dropped))

    def handlers(self) -> grpc.GenericRpcHandler:
        methods: dict[str, Method] = {
            "GetTeacher": self.get_teacher,
            "Score": self.score,
            "Render": self.render,
            "RegisterTokenizer": self.register_tokenizer,
            "ListTokenizers": self.list_tokenizers,
            "DropTokenizer": self.drop_tokenizer,
        }
        declared = service_pb2.DESCRIPTOR.services_by_name["TeacherScoringService"].methods_by_name
        assert set(methods) == set(declared)
        # The interceptor hands each of them an Exchange.
        handlers: dict[str, Any] = {
            name: grpc.stream_stream_rpc_method_handler(cast(Any, method))
            for name, method in methods.items()
        }
        return grpc.method_handlers_generic_handler(SERVICE, handlers)
