"""Asks over gRPC what Envoy's ext_authz filter asks, with the API's own generated code. Prints the answer as JSON."""

import json
import sys

import grpc
from envoy.service.auth.v3 import external_auth_pb2, external_auth_pb2_grpc

told = json.load(sys.stdin)
with grpc.insecure_channel(told["address"]) as channel:
    stub = external_auth_pb2_grpc.AuthorizationStub(channel)
    for ask in told["asks"]:
        request = external_auth_pb2.CheckRequest()
        http = request.attributes.request.http
        http.id = "17"
        http.method, http.path, http.host, http.scheme = ask["method"], ask["path"], ask["host"], "https"
        http.protocol = "HTTP/2"
        if "route" in ask:
            request.attributes.context_extensions["route"] = ask["route"]
        request.attributes.source.address.socket_address.address = "198.51.100.7"
        http.headers.update({":method": ask["method"], ":path": ask["path"], ":authority": ask["host"]})
        http.headers.update(ask["headers"])
        try:
            answer = stub.Check(request, timeout=20)
        except grpc.RpcError as error:
            print(json.dumps({"error": error.code().name}), flush=True)
            continue
        kind = answer.WhichOneof("http_response")
        part = getattr(answer, kind)
        print(
            json.dumps(
                {
                    "code": answer.status.code,
                    "kind": kind,
                    "status": part.status.code if kind == "denied_response" else 200,
                    "headers": {o.header.key: o.header.value for o in part.headers},
                    "append": [o.append_action for o in part.headers],
                    "removed": list(part.headers_to_remove) if kind == "ok_response" else [],
                    "body": part.body if kind == "denied_response" else "",
                }
            ),
            flush=True,
        )
