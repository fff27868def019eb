"""pysaml2 as a SAML identity provider: one line of JSON with its certificate, a signed assertion and a whole response."""
import base64
import datetime
import importlib.metadata
import json
import re
import sys
import tempfile
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import NameOID
from saml2 import BINDING_HTTP_POST, saml
from saml2.config import IdPConfig
from saml2.saml import NAME_FORMAT_BASIC, NAMEID_FORMAT_PERSISTENT, NameID
from saml2.server import Server
from saml2.xmldsig import DIGEST_SHA256, SIG_RSA_SHA256

entity, audience, recipient, person = sys.argv[1:5]
work = Path(tempfile.mkdtemp())
key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "idp")])
now = datetime.datetime.now(datetime.timezone.utc)
certificate = (
    x509.CertificateBuilder()
    .subject_name(name)
    .issuer_name(name)
    .public_key(key.public_key())
    .serial_number(x509.random_serial_number())
    .not_valid_before(now - datetime.timedelta(minutes=5))
    .not_valid_after(now + datetime.timedelta(days=1))
    .sign(key, hashes.SHA256())
)
pem = certificate.public_bytes(serialization.Encoding.PEM).decode()
(work / "cert.pem").write_text(pem)
(work / "key.pem").write_bytes(
    key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    )
)
(work / "sp.xml").write_text(
    f"""<EntityDescriptor xmlns="urn:oasis:names:tc:SAML:2.0:metadata" entityID="{audience}"><SPSSODescriptor
 protocolSupportEnumeration="urn:oasis:names:tc:SAML:2.0:protocol"><AssertionConsumerService
 Binding="{BINDING_HTTP_POST}" Location="{recipient}" index="1"/></SPSSODescriptor></EntityDescriptor>"""
)
config = IdPConfig().load(
    {
        "entityid": entity,
        "key_file": str(work / "key.pem"),
        "cert_file": str(work / "cert.pem"),
        "metadata": {"local": [str(work / "sp.xml")]},
        "service": {
            "idp": {
                "endpoints": {"single_sign_on_service": [(entity, BINDING_HTTP_POST)]},
                "policy": {
                    "default": {
                        "lifetime": {"minutes": 5},
                        "attribute_restrictions": None,
                        "name_form": NAME_FORMAT_BASIC,
                    }
                },
            }
        },
    }
)
server = Server(config=config)


def assertion():
    """One fresh assertion, as the parameter of RFC 7522 wants it."""
    response = server.create_authn_response(
        {"department": ["eng"]},
        None,
        recipient,
        audience,
        name_id=NameID(format=NAMEID_FORMAT_PERSISTENT, text=person),
        authn={"class_ref": saml.AUTHN_PASSWORD, "authn_auth": entity},
        sign_response=False,
        sign_assertion=True,
        sign_alg=SIG_RSA_SHA256,
        digest_alg=DIGEST_SHA256,
    )
    text = str(response)
    found = re.search(r"<(\w+):Assertion .*</\1:Assertion>", text, re.DOTALL).group(0)
    # Prefixes that the message binds go with the assertion that leaves it.
    bound = " ".join(re.findall(r'xmlns:\w+="[^"]*"', text[: text.index(found)]))
    alone = found.replace(":Assertion ", f":Assertion {bound} ", 1)
    return text, base64.urlsafe_b64encode(alone.encode()).decode().rstrip("=")


_, good = assertion()
text, _ = assertion()
print(
    json.dumps(
        {
            "version": importlib.metadata.version("pysaml2"),
            "certificate": pem,
            "assertion": good,
            "response": base64.urlsafe_b64encode(text.encode()).decode().rstrip("="),
        }
    )
)
