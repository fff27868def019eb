"""requests-oauth2client, unmodified, against a token service and a gateway: one JSON line a call."""
import importlib.metadata
import json
import sys
from pathlib import Path

import requests
from jwskate import Jwk
from requests_oauth2client import DPoPKey, OAuth2Client, PrivateKeyJwt, PublicApp

world = json.loads(Path(sys.argv[1]).read_text())
version = importlib.metadata.version("requests-oauth2client")
ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"


def check(call, run):
    try:
        result = "ok" if run() else "unexpected answer"
    except Exception as error:  # whatever a client makes of an answer is a result
        result = f"{type(error).__name__}: {error}".replace("\n", " ")
    print(json.dumps({"client": "PyPI requests-oauth2client", "version": version, "call": call, "result": result}))


def session(directory, certified=True):
    found = requests.Session()
    found.verify = f"{directory}/bundle.pem"
    if certified:
        found.cert = (f"{directory}/svid.pem", f"{directory}/key.pem")
    return found


key = Jwk.from_pem(Path(world["client_dir"], "key.pem").read_bytes())
made = {}


def client(auth, directory, certified=True):
    return OAuth2Client.from_discovery_endpoint(
        issuer=world["issuer"],
        auth=auth,
        session=session(directory, certified),
        dpop_key_generator=lambda alg: DPoPKey(private_key=key, alg=alg),
        testing=True,
    )


def discover():
    made["client"] = client(PublicApp(world["client_id"]), world["client_dir"])
    return made["client"].token_endpoint == world["issuer"] + "/token"


def credentials():
    made["token"] = made["client"].client_credentials(dpop=True, resource=world["resource"])
    return made["token"].token_type == "DPoP"


def own_jwt():
    auth = PrivateKeyJwt(world["client_id"], key.with_kid_thumbprint(), alg="ES256", aud=world["issuer"])
    token = client(auth, world["client_dir"], False).client_credentials(dpop=True, resource=world["resource"])
    return token.token_type == "DPoP"


def call():
    # The token is the authentication: each request gets its own proof.
    answer = requests.get(world["api"], auth=made["token"], verify=f"{world['client_dir']}/bundle.pem", timeout=20)
    return answer.status_code == 200


def exchange():
    token = made["client"].token_exchange(
        subject_token=made["token"].access_token,
        subject_token_type=ACCESS_TOKEN,
        dpop=True,
        dpop_key=made["token"].dpop_key,
        scope="tot.read",
    )
    return token.scope == "tot.read"


def bearer():
    token = made["client"].jwt_bearer(
        world["id_tokens"][2], dpop=True, dpop_key=made["token"].dpop_key, resource=world["resource"]
    )
    return token.token_type == "DPoP"


def introspect():
    server = client(PublicApp(world["server_id"]), world["server_dir"])
    return server.introspect_token(made["token"].access_token)["active"] is True


def revoke():
    return made["client"].revoke_access_token(made["token"].access_token) is True


check("discovery", discover)
check("client credentials by certificate, with DPoP", credentials)
check("client credentials by private_key_jwt, with DPoP", own_jwt)
check("proved request to the gateway", call)
check("token exchange to a narrower token", exchange)
check("JWT bearer grant with an ID token of oidc-provider", bearer)
check("introspection", introspect)
check("revocation", revoke)
