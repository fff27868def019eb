// A Node server of HTTP/2 in the clear that hints before it answers.
import { createServer } from "node:http2";

const server = createServer();
server.on("stream", (stream) => {
  stream.additionalHeaders({ ":status": 103, link: "</style.css>; rel=preload; as=style" });
  stream.respond({ ":status": 200, "content-type": "text/plain" });
  stream.end("ok");
});
server.listen(0, "127.0.0.1", () => console.log(JSON.stringify({ version: process.version, port: server.address().port })));
