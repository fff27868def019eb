// npm oidc-provider as an OpenID provider over TLS, in lines of JSON: first its issuer; for each line NAME of standard input
// a person of that name signs in by the code flow, and the ID token is a line.
import { createServer, request } from "node:https";
import { readFileSync } from "node:fs";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";
import { createHash, randomBytes } from "node:crypto";

const [modules, certificate, key, ca] = process.argv.slice(2);
const { Provider } = await import(pathToFileURL(modules + "/oidc-provider/lib/index.js"));
const CALLBACK = "https://popgate.example/callback";
const server = createServer({ cert: readFileSync(certificate), key: readFileSync(key) });
await new Promise((done) => server.listen(0, "localhost", done));
const issuer = `https://localhost:${server.address().port}`;
const provider = new Provider(issuer, {
  clients: [
    {
      client_id: "popgate",
      token_endpoint_auth_method: "none",
      redirect_uris: [CALLBACK],
    },
  ],
  conformIdTokenClaims: false,
  claims: { openid: ["sub", "groups"] },
  cookies: { keys: [randomBytes(16).toString("hex")] },
  findAccount: (_ctx, id) => ({ accountId: id, claims: async () => ({ sub: id, groups: ["dev", "ops"] }) }),
  features: { devInteractions: { enabled: true } },
});
server.on("request", provider.callback());
const tell = (document) => console.log(JSON.stringify(document));
const { version } = JSON.parse(readFileSync(modules + "/oidc-provider/package.json"));
tell({ issuer, version });

const cookies = new Map();
const send = (method, url, form) =>
  new Promise((resolve, reject) => {
    const body = form ? new URLSearchParams(form).toString() : "";
    const headers = { cookie: [...cookies].map(([n, v]) => `${n}=${v}`).join("; ") };
    if (form) headers["content-type"] = "application/x-www-form-urlencoded";
    const asked = request(new URL(url, issuer), { method, headers, ca: readFileSync(ca) }, (answer) => {
      for (const line of answer.headers["set-cookie"] ?? []) {
        const [pair] = line.split(";");
        const at = pair.indexOf("=");
        cookies.set(pair.slice(0, at), pair.slice(at + 1));
      }
      let text = "";
      answer.on("data", (part) => (text += part));
      answer.on("end", () => resolve({ status: answer.statusCode, location: answer.headers.location, text }));
    });
    asked.on("error", reject);
    asked.end(body);
  });

async function signIn(name) {
  cookies.clear();
  const verifier = randomBytes(32).toString("base64url");
  const challenge = createHash("sha256").update(verifier).digest("base64url");
  const query = new URLSearchParams({
    client_id: "popgate",
    response_type: "code",
    scope: "openid",
    redirect_uri: CALLBACK,
    code_challenge: challenge,
    code_challenge_method: "S256",
  });
  let answer = await send("GET", `/auth?${query}`);
  while (!answer.location?.startsWith(CALLBACK)) {
    if (answer.location) {
      answer = await send("GET", answer.location);
      continue;
    }
    const action = /action="([^"]+)"/.exec(answer.text)?.[1];
    const prompt = /name="prompt" value="([^"]+)"/.exec(answer.text)?.[1];
    if (!action) throw new Error(`no form: ${answer.status} ${answer.text}`);
    answer = await send("POST", action, { prompt, login: name, password: "x" });
  }
  const code = new URL(answer.location).searchParams.get("code");
  const token = await send("POST", "/token", {
    grant_type: "authorization_code",
    client_id: "popgate",
    code,
    redirect_uri: CALLBACK,
    code_verifier: verifier,
  });
  return JSON.parse(token.text).id_token;
}

for await (const line of createInterface({ input: process.stdin })) {
  tell({ id_token: await signIn(line.trim()) });
}
process.exit(0);
