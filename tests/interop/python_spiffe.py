"""The unmodified Python `spiffe` client against an agent: each call, one JSON line with what came of it.

Arguments: socket, SPIFFE ID that is expected, trust domain that is federated. Reads `rotate` answers from standard input
by the test: prints "waiting" once a source is open, then waits for its update.
"""

import json
import sys
import threading
import warnings

import spiffe
from spiffe import JwtSource, WorkloadApiClient, X509Source
from importlib.metadata import version

warnings.simplefilter("ignore")
socket, expected, federated = sys.argv[1:4]
address = "unix://" + socket


def row(call, run):
    try:
        result = run()
    except Exception as error:  # every failure is a row
        result = f"{type(error).__name__}: {error}"
    print(json.dumps({"client": "Python spiffe", "version": version("spiffe"), "call": call, "result": result}), flush=True)


client = WorkloadApiClient(address)


def svid():
    found = client.fetch_x509_svid()
    assert str(found.spiffe_id) == expected, found.spiffe_id
    assert found.leaf.extensions and found.private_key
    return "ok"


def bundles():
    found = client.fetch_x509_bundles()
    domain = found.get_bundle_for_trust_domain(spiffe.TrustDomain(federated))
    assert domain is not None and len(domain.x509_authorities) == 1
    return "ok"


def jwt():
    token = client.fetch_jwt_svid(audience={"reporter", "auditor"})
    assert str(token.spiffe_id) == expected
    validated = client.validate_jwt_svid(token.token, "reporter")
    assert str(validated.spiffe_id) == expected
    try:
        client.validate_jwt_svid(token.token, "nobody")
    except Exception:
        return "ok"
    return "a wrong audience was accepted"


def jwt_offline():
    token = client.fetch_jwt_svid(audience={"reporter"})
    keys = client.fetch_jwt_bundles()
    bundle = keys.get_bundle_for_trust_domain(token.spiffe_id.trust_domain)
    parsed = spiffe.JwtSvid.parse_and_validate(token.token, bundle, {"reporter"})
    assert str(parsed.spiffe_id) == expected
    return "ok"


row("FetchX509SVID", svid)
row("FetchX509Bundles, federated", bundles)
row("FetchJWTSVID, ValidateJWTSVID", jwt)
row("FetchJWTBundles, verified offline", jwt_offline)


def rotation():
    first = threading.Event()
    changed = threading.Event()
    seen = []

    def update(context):
        seen.append(context.default_svid.leaf.serial_number)
        first.set()
        if len(set(seen)) > 1:
            changed.set()

    stop = client.stream_x509_contexts(update, lambda error: seen.append(error), True)
    assert first.wait(20), seen
    print("waiting", flush=True)
    assert changed.wait(20), seen
    stop.cancel()
    return "ok"


row("X.509 context stream, over a rotation", rotation)


def sources():
    with X509Source(socket_path=address) as source:
        assert str(source.get_x509_context().default_svid.spiffe_id) == expected
    with JwtSource(socket_path=address) as source:
        assert str(source.fetch_svid(audience={"reporter"}).spiffe_id) == expected
    return "ok"


row("X509Source, JwtSource", sources)
