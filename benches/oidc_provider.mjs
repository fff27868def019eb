// npm oidc-provider doing the token service's grant: client credentials over mTLS, bound by DPoP, as an ES256 JWT.
import { createServer } from "node:https";
import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const [modules, certificate, key, clientCa, clientId, resource] = process.argv.slice(2);
const { Provider } = await import(pathToFileURL(modules + "/oidc-provider/lib/index.js"));
const options = { requestCert: true, rejectUnauthorized: true, minVersion: "TLSv1.3", ca: readFileSync(clientCa) };
const server = createServer({ cert: readFileSync(certificate), key: readFileSync(key), keepAliveTimeout: 60000, ...options });
await new Promise((done) => server.listen(0, "localhost", done));
const issuer = `https://localhost:${server.address().port}`;
const { privateKey } = await crypto.subtle.generateKey({ name: "ECDSA", namedCurve: "P-256" }, true, ["sign", "verify"]);
const jwk = { ...(await crypto.subtle.exportKey("jwk", privateKey)), alg: "ES256", use: "sig", kid: "es" };
const provider = new Provider(issuer, {
  jwks: { keys: [jwk] },
  clients: [
    {
      client_id: clientId,
      token_endpoint_auth_method: "tls_client_auth",
      tls_client_auth_san_uri: clientId,
      grant_types: ["client_credentials"],
      redirect_uris: [],
      response_types: [],
      id_token_signed_response_alg: "ES256",
      scope: "tot.read",
    },
  ],
  clientAuthMethods: ["tls_client_auth"],
  scopes: ["tot.read"],
  features: {
    devInteractions: { enabled: false },
    clientCredentials: { enabled: true },
    dPoP: { enabled: true },
    mTLS: {
      enabled: true,
      tlsClientAuth: true,
      getCertificate: (ctx) => ctx.socket.getPeerX509Certificate(),
      certificateAuthorized: (ctx) => ctx.socket.authorized,
      certificateSubjectMatches: (ctx, _property, expected) =>
        ctx.socket.getPeerCertificate().subjectaltname === `URI:${expected}`,
    },
    resourceIndicators: {
      enabled: true,
      defaultResource: () => resource,
      getResourceServerInfo: () => ({
        scope: "tot.read",
        audience: resource,
        accessTokenFormat: "jwt",
        jwt: { sign: { alg: "ES256" } },
      }),
    },
  },
});
server.on("request", provider.callback());
console.log(JSON.stringify({ issuer }));
