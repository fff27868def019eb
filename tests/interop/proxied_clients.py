"""Clients that know nothing of DPoP, unmodified, through `popgate proxy`: one JSON line a call."""
import asyncio
import importlib.metadata
import json
import sys

world = json.loads(open(sys.argv[1]).read())
proxy = world["proxy"]


def tell(client, package, call, result):
    version = importlib.metadata.version(package)
    print(json.dumps({"client": client, "version": version, "call": call, "result": result}), flush=True)


def check(client, package, call, run):
    try:
        result = "ok" if run() else "unexpected answer"
    except Exception as error:  # whatever a client makes of an answer is a result
        result = f"{type(error).__name__}: {error}".replace("\n", " ").replace("|", "/")
    tell(client, package, call, result)


def openai_calls():
    import openai

    client = openai.OpenAI(base_url=f"{proxy}/v1", api_key="unused", max_retries=0)
    asked = [{"role": "user", "content": "4 4 10 1, for ada@example.org"}]
    tool = [{"type": "function", "function": {"name": "solve", "parameters": {"type": "object"}}}]
    wipe = [{"type": "function", "function": {"name": "wipe", "parameters": {"type": "object"}}}]

    def whole():
        told = client.chat.completions.create(model="tot-24", messages=asked)
        text = told.choices[0].message.content
        return "= 24" in text and "[redacted:email]" in text and "ada@" not in text

    def streamed():
        parts = client.chat.completions.create(model="tot-24", messages=asked, stream=True)
        text = "".join(p.choices[0].delta.content or "" for p in parts)
        return "= 24" in text and "[redacted:email]" in text and "ada@" not in text

    def called():
        told = client.chat.completions.create(model="tot-24", messages=asked, tools=tool)
        return told.choices[0].message.tool_calls[0].function.name == "solve"

    def called_in_pieces():
        parts = client.chat.completions.create(model="tot-24", messages=asked, tools=tool, stream=True)
        calls = [c for p in parts for c in (p.choices[0].delta.tool_calls or [])]
        return json.loads("".join(c.function.arguments or "" for c in calls)) == {"input": [4, 4, 10, 1]}

    def refused():
        try:
            client.chat.completions.create(model="tot-24", messages=asked, tools=wipe)
        except openai.PermissionDeniedError as error:
            return error.status_code == 403
        return False

    def refused_in_pieces():
        try:
            parts = client.chat.completions.create(model="tot-24", messages=asked, tools=wipe, stream=True)
            return not any(p.choices[0].delta.tool_calls for p in parts)
        except Exception:  # the stream is cut
            return True

    def models():
        return [m.id for m in client.models.list()] == ["tot-24"]

    name = "PyPI openai"
    check(name, "openai", "models", models)
    check(name, "openai", "chat completion, masked", whole)
    check(name, "openai", "streamed chat completion, masked over its events", streamed)
    check(name, "openai", "tool call that policy allows", called)
    check(name, "openai", "the same, streamed", called_in_pieces)
    check(name, "openai", "tool call that policy denies: 403", refused)
    check(name, "openai", "the same, streamed: nothing of it passes", refused_in_pieces)


async def mcp_calls():
    from mcp import Client

    async def talk(mode, label):
        name = "PyPI mcp"
        try:
            async with Client(f"{proxy}/mcp", mode=mode) as client:
                tools = await client.list_tools()
                names = sorted(t.name for t in tools.tools)
                tell(name, "mcp", f"tools/list, {label}", "ok" if "solve" in names else f"unexpected {names}")
                told = await client.call_tool("solve", {"input": [4, 4, 10, 1]})
                good = "expression" in told.content[0].text
                tell(name, "mcp", f"tools/call, {label}", "ok" if good else f"unexpected {told}")
                try:
                    await client.call_tool("value", {"input": [4, 6]})
                    result = "not refused"
                except Exception as error:
                    result = "ok" if type(error).__name__ == "MCPError" else f"{type(error).__name__}: {error}"
                tell(name, "mcp", f"tools/call that policy denies, {label}", result.replace("\n", " "))
        except Exception as error:
            while getattr(error, "exceptions", None):
                error = error.exceptions[0]
            tell(name, "mcp", f"session, {label}", f"{type(error).__name__}: {error}".replace("\n", " "))

    await talk("2026-07-28", "2026-07-28")
    await talk("legacy", "2025-11-25")


def grpc_calls():
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc
    from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase  # noqa: F401

    address = proxy.removeprefix("http://")
    channel = grpc.insecure_channel(address)
    stub = health_pb2_grpc.HealthStub(channel)
    name = "PyPI grpcio"

    def unary():
        return stub.Check(health_pb2.HealthCheckRequest(service="tot"), timeout=20).status == 1

    def trailers():
        try:
            stub.Check(health_pb2.HealthCheckRequest(service="nobody"), timeout=20)
        except grpc.RpcError as error:
            return error.code() == grpc.StatusCode.NOT_FOUND
        return False

    def streaming():
        answers = stub.Watch(health_pb2.HealthCheckRequest(service="tot"), timeout=20)
        return next(answers).status == 1

    def both_ways():
        method = channel.stream_stream(
            "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
            request_serializer=lambda b: b,
            response_deserializer=lambda b: b,
        )
        answers = method(iter([b":\x00", b":\x00"]), timeout=20)
        return len(list(answers)) == 2

    def denied():
        method = channel.unary_unary(
            "/grpc.health.v1.Health/List",
            request_serializer=lambda b: b,
            response_deserializer=lambda b: b,
        )
        try:
            method(b"", timeout=20)
        except grpc.RpcError as error:
            return error.code() == grpc.StatusCode.PERMISSION_DENIED and "(request " in error.details()
        return False

    check(name, "grpcio", "unary call", unary)
    check(name, "grpcio", "status in the trailers", trailers)
    check(name, "grpcio", "server streaming", streaming)
    check(name, "grpcio", "streaming both ways", both_ways)
    check(name, "grpcio", "call that policy denies: PERMISSION_DENIED, and why", denied)


async def websocket_calls():
    import websockets

    name = "PyPI websockets"
    try:
        async with websockets.connect(f"{proxy.replace('http', 'ws')}/ws/pass", origin=None) as socket:
            await socket.send("hello")
            echoed = await socket.recv()
            await socket.send(b"\x00\xff")
            binary = await socket.recv()
            pong = await socket.ping()
            await pong
        good = echoed == "hello" and binary == b"\x00\xff"
        tell(name, "websockets", "text, binary, ping and close", "ok" if good else "unexpected answer")
    except Exception as error:
        tell(name, "websockets", "text, binary, ping and close", f"{type(error).__name__}: {error}")
    try:
        async with websockets.connect(f"{proxy.replace('http', 'ws')}/ws/judged") as socket:
            await socket.send('{"kind":"wipe"}')
            await socket.recv()
        result = "not refused"
    except websockets.ConnectionClosed as closed:
        result = "ok" if closed.rcvd and closed.rcvd.code == 1008 else f"{closed}"
    except Exception as error:
        result = f"{type(error).__name__}: {error}"
    tell(name, "websockets", "message that policy denies: closed with 1008", result)


openai_calls()
asyncio.run(mcp_calls())
grpc_calls()
asyncio.run(websocket_calls())
