// A Node gRPC client with the standard's proto file against an agent: one JSON line a call.
"use strict";
const [socket, expected, modules, proto] = process.argv.slice(2);
const { createRequire } = require("module");
const from = createRequire(modules + "/package.json");
const grpc = from("@grpc/grpc-js");
const loader = from("@grpc/proto-loader");
const version = from("@grpc/grpc-js/package.json").version;

const api = grpc.loadPackageDefinition(loader.loadSync(proto, { includeDirs: [require("path").dirname(proto)] }));
const client = new api.SpiffeWorkloadAPI("unix://" + socket, grpc.credentials.createInsecure());
const row = (call, result) =>
  console.log(JSON.stringify({ client: "Node @grpc/grpc-js", version, call, result }));
const header = () => {
  const metadata = new grpc.Metadata();
  metadata.set("workload.spiffe.io", "true");
  return metadata;
};
const first = (stream) =>
  new Promise((resolve, reject) => {
    stream.once("data", (message) => { stream.cancel(); resolve(message); });
    stream.once("error", reject);
  });
const unary = (method, request) =>
  new Promise((resolve, reject) =>
    client[method](request, header(), (error, message) => (error ? reject(error) : resolve(message))));
const check = async (call, run) => {
  try {
    row(call, (await run()) ? "ok" : "unexpected answer");
  } catch (error) {
    row(call, `${error.code}: ${error.details || error.message}`);
  }
};

(async () => {
  await check("FetchX509SVID", async () => (await first(client.FetchX509SVID({}, header()))).svids[0].spiffeId === expected);
  await check("FetchX509Bundles", async () => Object.keys((await first(client.FetchX509Bundles({}, header()))).bundles).length > 0);
  await check("FetchJWTBundles", async () => Object.keys((await first(client.FetchJWTBundles({}, header()))).bundles).length > 0);
  await check("FetchJWTSVID, ValidateJWTSVID", async () => {
    const { svids } = await unary("FetchJWTSVID", { audience: ["reporter"] });
    const valid = await unary("ValidateJWTSVID", { audience: "reporter", svid: svids[0].svid });
    return valid.spiffeId === expected && svids[0].spiffeId === expected;
  });
  await check("without the security header", async () => {
    try {
      await first(client.FetchX509SVID({}));
      return false;
    } catch (error) {
      return error.code === grpc.status.INVALID_ARGUMENT;
    }
  });
  client.close();
})();
