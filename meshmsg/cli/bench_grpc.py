"""What gRPC's processes of ``meshmsg bench request`` run, where it is installed (``pip install grpcio``).

``python -m meshmsg.cli.bench_grpc ROLE OPTIONS``. Generic handlers of ``grpc.aio`` without generated code; bodies in
MessagePack, as those of the others.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import AsyncIterator
from typing import Any

import msgpack

from meshmsg.cli.bench_ours import TIMEOUT_S, make_body, run_role
from meshmsg.cli.bench_processes import commands_in_loop, say
from meshmsg.cli.bench_request_ours import METHOD, SERVICE, STREAM, obey

Options = dict[str, Any]
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]
CODEC = {"request_serializer": msgpack.packb, "response_deserializer": msgpack.unpackb}


def is_installed() -> bool:
    """Whether gRPC can be imported, without importing it."""
    return importlib.util.find_spec("grpc") is not None


async def serve(options: Options) -> None:
    """Gives every body back, or many times as a stream."""
    grpc: Any = importlib.import_module("grpc")
    aio: Any = importlib.import_module("grpc.aio")
    handled = 0

    async def echo(arguments: list[Any], context: Any) -> Any:
        nonlocal handled
        handled += 1
        return arguments[0]

    async def repeat(arguments: list[Any], context: Any) -> AsyncIterator[Any]:
        nonlocal handled
        body, count = arguments
        for _ in range(count):
            handled += 1
            yield body

    codec = {"request_deserializer": msgpack.unpackb, "response_serializer": msgpack.packb}
    handlers = {
        METHOD: grpc.unary_unary_rpc_method_handler(echo, **codec),
        STREAM: grpc.unary_stream_rpc_method_handler(repeat, **codec),
    }
    server = aio.server(options=UNLIMITED)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    say(endpoint=f"127.0.0.1:{port}")
    async for _ in commands_in_loop():
        say(cpu_s=time.process_time(), handled=handled)
    await server.stop(grace=None)


async def ask(options: Options) -> None:
    """Makes requests, or asks for streams."""
    aio: Any = importlib.import_module("grpc.aio")
    body = make_body(options["size"])
    async with aio.insecure_channel(options["endpoint"], options=UNLIMITED) as channel:
        call = channel.unary_unary(f"/{SERVICE}/{METHOD}", **CODEC)
        open_stream = channel.unary_stream(f"/{SERVICE}/{STREAM}", **CODEC)

        async def request() -> Any:
            return await call((body,), timeout=TIMEOUT_S)

        async def stream(count: int) -> int:
            received = 0
            async for item in open_stream((body, count)):
                received += item["valid"]
            return received

        await obey(request, stream, as_stream=options["stream"])


ROLES = {"serve": serve, "ask": ask}


if __name__ == "__main__":
    run_role(ROLES)
