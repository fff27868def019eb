// npm oauth4webapi and openid-client, unmodified, against a token service and a gateway: one JSON line a call.
import { readFileSync } from "node:fs";
import { request } from "node:https";
import { createPrivateKey, webcrypto } from "node:crypto";
import { pathToFileURL } from "node:url";

const [modules, file] = process.argv.slice(2);
const world = JSON.parse(readFileSync(file));
const load = (path) => import(pathToFileURL(`${modules}/${path}`));
const oauth = await load("oauth4webapi/build/index.js");
const openid = await load("openid-client/build/index.js");
const versionOf = (name) => JSON.parse(readFileSync(`${modules}/${name}/package.json`)).version;

// The platform's own fetch presents no client certificate.
const fetching = (dir, certified = true) => (url, init) =>
  new Promise((resolve, reject) => {
    const own = certified ? { cert: readFileSync(`${dir}/svid.pem`), key: readFileSync(`${dir}/key.pem`) } : {};
    const headers = Object.fromEntries(new Headers(init.headers));
    const asked = request(url, { method: init.method, headers, ca: readFileSync(`${dir}/bundle.pem`), ...own }, (answer) => {
      const parts = [];
      answer.on("data", (part) => parts.push(part));
      answer.on("end", () => {
        const empty = [202, 204].includes(answer.statusCode) && parts.length === 0;
        const pairs = Object.entries(answer.headers).map(([n, v]) => [n, String(v)]);
        resolve(new Response(empty ? null : Buffer.concat(parts), { status: answer.statusCode, headers: pairs }));
      });
    });
    asked.on("error", reject);
    asked.end(init.body ? init.body.toString() : undefined);
  });

const keyPair = async (dir) => {
  const jwk = createPrivateKey(readFileSync(`${dir}/key.pem`)).export({ format: "jwk" });
  const { d: _, ...open } = jwk;
  const algorithm = { name: "ECDSA", namedCurve: "P-256" };
  const { subtle } = webcrypto;
  return {
    privateKey: await subtle.importKey("jwk", jwk, algorithm, false, ["sign"]),
    publicKey: await subtle.importKey("jwk", open, algorithm, true, ["verify"]),
  };
};

const checking = (client, version) => async (call, run) => {
  let result = "ok";
  try {
    if ((await run()) === false) result = "unexpected answer";
  } catch (error) {
    result = `${error.name}: ${error.error ?? error.message} ${error.error_description ?? error.cause?.error_description ?? error.cause ?? ""}`;
  }
  console.log(JSON.stringify({ client, version, call, result: result.replaceAll("\n", " ") }));
};

const EXCHANGE = "urn:ietf:params:oauth:grant-type:token-exchange";
const JWT_BEARER = "urn:ietf:params:oauth:grant-type:jwt-bearer";
const SAML_BEARER = "urn:ietf:params:oauth:grant-type:saml2-bearer";
const ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token";
const details = JSON.stringify([{ type: "popgate_operation", actions: ["tot.read"], identifier: "/runs/r1", uses: 1 }]);
const claims = (token) => JSON.parse(Buffer.from(token.split(".")[1], "base64url"));
const issuer = new URL(world.issuer);
const client = { client_id: world.client_id };
const server = { client_id: world.server_id, introspection_signed_response_alg: "ES256" };

async function withOauth4webapi() {
  const check = checking("npm oauth4webapi", versionOf("oauth4webapi"));
  const options = { [oauth.customFetch]: fetching(world.client_dir) };
  const uncertified = { [oauth.customFetch]: fetching(world.client_dir, false) };
  const asServer = { [oauth.customFetch]: fetching(world.server_dir) };
  const pair = await keyPair(world.client_dir);
  const DPoP = oauth.DPoP(client, pair);
  let as;
  for (const algorithm of ["oauth2", "oidc"]) {
    await check(`discovery, ${algorithm}`, async () => {
      const response = await oauth.discoveryRequest(issuer, { algorithm, ...options });
      as = await oauth.processDiscoveryResponse(issuer, response);
    });
  }
  const patient = async (ask) => {
    try {
      return await ask();
    } catch (error) {
      if (!oauth.isDPoPNonceError(error)) throw error;
      return ask();
    }
  };
  const mtls = oauth.TlsClientAuth();
  const grant = (kind, parameters, auth = mtls, via = options) =>
    patient(async () =>
      oauth.processGenericTokenEndpointResponse(
        as,
        client,
        await oauth.genericTokenEndpointRequest(as, client, auth, kind, parameters, { DPoP, ...via }),
      ));
  const resource = world.resource;
  let token;
  await check("client credentials by certificate, with DPoP", async () => {
    const answer = await patient(async () =>
      oauth.processClientCredentialsResponse(
        as,
        client,
        await oauth.clientCredentialsGrantRequest(as, client, mtls, { resource }, { DPoP, ...options }),
      ));
    token = answer.access_token;
    return answer.token_type === "dpop";
  });
  await check("client credentials by private_key_jwt, with DPoP", async () => {
    const auth = oauth.PrivateKeyJwt(pair.privateKey);
    const answer = await grant("client_credentials", { resource }, auth, uncertified);
    return claims(answer.access_token).sub === world.client_id;
  });
  await check("proved request to the gateway", async () => {
    const url = new URL(world.api);
    const ask = () => oauth.protectedResourceRequest(token, "GET", url, undefined, null, { DPoP, ...uncertified });
    return (await patient(ask)).status === 200;
  });
  await check("token exchange to a narrower token", async () => {
    const parameters = { subject_token: token, subject_token_type: ACCESS_TOKEN, scope: "tot.read" };
    const answer = await grant(EXCHANGE, parameters);
    return answer.scope === "tot.read" && answer.issued_token_type === ACCESS_TOKEN;
  });
  await check("authorization details for one use", async () => {
    const answer = await grant("client_credentials", { resource, authorization_details: details });
    const url = new URL(world.api);
    const ask = () =>
      oauth.protectedResourceRequest(answer.access_token, "GET", url, undefined, null, { DPoP, ...uncertified });
    const statuses = [];
    for (const _ of [1, 2]) {
      try {
        statuses.push((await patient(ask)).status);
      } catch (error) {
        statuses.push(error.status);
      }
    }
    return answer.authorization_details[0].uses === 1 && statuses.join() === "200,403";
  });
  await check("JWT bearer grant with an ID token of oidc-provider", async () => {
    const answer = await grant(JWT_BEARER, { resource, assertion: world.id_tokens[0] });
    const { sub, act, groups } = claims(answer.access_token);
    return sub === `${world.idp}#jane` && act.sub === world.client_id && groups.join() === "corp:dev,corp:ops";
  });
  await check("SAML bearer grant with an assertion of pysaml2", async () => {
    const answer = await grant(SAML_BEARER, { resource, assertion: world.saml.assertion });
    const { sub, groups } = claims(answer.access_token);
    return sub === `${world.saml_entity}#jane` && groups.join() === "engineers";
  });
  await check("SAML bearer grant with a whole response of pysaml2 is refused", async () => {
    try {
      await grant(SAML_BEARER, { resource, assertion: world.saml.response });
      return false;
    } catch (error) {
      return error.error === "invalid_grant";
    }
  });
  await check("introspection", async () => {
    const response = await oauth.introspectionRequest(as, { client_id: world.server_id }, mtls, token, asServer);
    const answer = await oauth.processIntrospectionResponse(as, { client_id: world.server_id }, response);
    return answer.active && answer.sub === world.client_id;
  });
  await check("introspection, signed, with its signature checked", async () => {
    const response = await oauth.introspectionRequest(as, server, mtls, token, { requestJwtResponse: true, ...asServer });
    const answer = await oauth.processIntrospectionResponse(as, server, response);
    await oauth.validateApplicationLevelSignature(as, response, asServer);
    return answer.active;
  });
  await check("revocation, and introspection after it", async () => {
    await oauth.processRevocationResponse(await oauth.revocationRequest(as, client, mtls, token, options));
    const response = await oauth.introspectionRequest(as, { client_id: world.server_id }, mtls, token, asServer);
    return !(await oauth.processIntrospectionResponse(as, { client_id: world.server_id }, response)).active;
  });
}

async function withOpenidClient() {
  const check = checking("npm openid-client", versionOf("openid-client"));
  const options = { [openid.customFetch]: fetching(world.client_dir) };
  let config;
  let DPoP;
  await check("discovery", async () => {
    config = await openid.discovery(issuer, world.client_id, {}, openid.TlsClientAuth(), { algorithm: "oauth2", ...options });
    DPoP = openid.getDPoPHandle(config, await keyPair(world.client_dir));
  });
  let token;
  await check("client credentials by certificate, with DPoP", async () => {
    const answer = await openid.clientCredentialsGrant(config, { resource: world.resource }, { DPoP });
    token = answer.access_token;
    return answer.token_type === "dpop";
  });
  await check("proved request to the gateway", async () => {
    const answer = await openid.fetchProtectedResource(config, token, new URL(world.api), "GET", null, undefined, { DPoP });
    return answer.status === 200;
  });
  await check("token exchange of an ID token of oidc-provider", async () => {
    const subject_token_type = "urn:ietf:params:oauth:token-type:id_token";
    const parameters = { resource: world.resource, subject_token: world.id_tokens[1], subject_token_type };
    const answer = await openid.genericGrantRequest(config, EXCHANGE, parameters, { DPoP });
    return claims(answer.access_token).sub === `${world.idp}#jane`;
  });
  await check("introspection", async () => {
    const auth = openid.TlsClientAuth();
    const asServer = { algorithm: "oauth2", [openid.customFetch]: fetching(world.server_dir) };
    const own = await openid.discovery(issuer, world.server_id, {}, auth, asServer);
    return (await openid.tokenIntrospection(own, token)).active;
  });
  await check("revocation", async () => {
    await openid.tokenRevocation(config, token);
  });
}

await withOauth4webapi();
await withOpenidClient();
