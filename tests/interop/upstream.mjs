// A Node server that tells each request it read: one JSON line each.
import { createHash } from "node:crypto";
import { createServer } from "node:http";

const server = createServer((request, response) => {
  const pieces = [];
  request.on("error", () => {});
  request.on("data", (piece) => pieces.push(piece));
  request.on("end", () => {
    const body = Buffer.concat(pieces);
    const digest = createHash("sha256").update(body).digest("hex");
    console.log(JSON.stringify({ method: request.method, target: request.url, sha256: digest, headers: request.rawHeaders }));
    response.writeHead(200, { "content-type": "text/plain" });
    response.end("ok");
  });
});
server.listen(0, "127.0.0.1", () => console.log(JSON.stringify({ version: process.version, port: server.address().port })));
