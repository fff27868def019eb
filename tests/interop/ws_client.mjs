// npm ws, unmodified, through `popgate proxy`: one JSON line a call.
import { createRequire } from "node:module";

const [modules, proxy] = process.argv.slice(2);
const require = createRequire(`${modules}/`);
const WebSocket = require("ws");
const { version } = require("ws/package.json");
const tell = (call, result) => console.log(JSON.stringify({ client: "npm ws", version, call, result }));

function echo() {
  return new Promise((done) => {
    const socket = new WebSocket(`${proxy.replace("http", "ws")}/ws/pass`);
    const got = [];
    socket.on("open", () => socket.send("hello"));
    socket.on("message", (data, binary) => {
      got.push(binary ? [...data] : data.toString());
      if (got.length === 1) socket.send(Buffer.from([0, 255]));
      else socket.close(1000, "done");
    });
    socket.on("close", (code) => done(code === 1000 && JSON.stringify(got) === '["hello",[0,255]]' ? "ok" : `${code} ${JSON.stringify(got)}`));
    socket.on("error", (error) => done(String(error)));
  });
}

tell("text, binary and close", await echo());
