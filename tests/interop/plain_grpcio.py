"""gRPC's C core, without any SPIFFE library, against an agent: one JSON line a call."""

import json
import sys
from importlib.metadata import version

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

socket, expected = sys.argv[1:3]
channel = grpc.insecure_channel("unix://" + socket)
HEADER = (("workload.spiffe.io", "true"),)


def call(method, kind="stream", metadata=HEADER, request=b""):
    path = "/SpiffeWorkloadAPI/" + method
    raw = lambda b: b
    try:
        if kind == "stream":
            stream = channel.unary_stream(path, raw, raw)(request, metadata=metadata, timeout=20)
            return next(iter(stream))
        return channel.unary_unary(path, raw, raw)(request, metadata=metadata, timeout=20)
    except grpc.RpcError as error:
        return error.code().name


def row(name, got, want):
    result = "ok" if want(got) else f"unexpected: {got!r}"
    print(json.dumps({"client": "grpcio", "version": version("grpcio"), "call": name, "result": result}), flush=True)


has_id = lambda got: isinstance(got, bytes) and expected.encode() in got
row("FetchX509SVID", call("FetchX509SVID"), has_id)
row("without the security header", call("FetchX509SVID", metadata=()), lambda got: got == "INVALID_ARGUMENT")
row("with the header false", call("FetchX509SVID", metadata=(("workload.spiffe.io", "false"),)), lambda got: got == "INVALID_ARGUMENT")
row("with the header twice", call("FetchX509SVID", metadata=HEADER + HEADER), lambda got: got == "INVALID_ARGUMENT")
row("FetchX509Bundles", call("FetchX509Bundles"), lambda got: isinstance(got, bytes) and len(got) > 100)
row("FetchJWTBundles", call("FetchJWTBundles"), lambda got: isinstance(got, bytes) and b"jwt-svid" in got)
row("FetchJWTSVID without audience", call("FetchJWTSVID", "unary"), lambda got: got == "INVALID_ARGUMENT")
row("FetchJWTSVID", call("FetchJWTSVID", "unary", request=b"\x0a\x02me"), has_id)
row("FetchWITSVID", call("FetchWITSVID"), lambda got: got == "UNIMPLEMENTED")
row("FetchWITBundles", call("FetchWITBundles"), lambda got: got == "UNIMPLEMENTED")
row("an unknown method", call("FetchNothing"), lambda got: got == "UNIMPLEMENTED")
stub = health_pb2_grpc.HealthStub(channel)
status = stub.Check(health_pb2.HealthCheckRequest(service="SpiffeWorkloadAPI"), timeout=20).status
row("health", status, lambda got: got == health_pb2.HealthCheckResponse.SERVING)
services = ProtoReflectionDescriptorDatabase(channel).get_services()
row("reflection", sorted(services), lambda got: "SpiffeWorkloadAPI" in got and "grpc.health.v1.Health" in got)
