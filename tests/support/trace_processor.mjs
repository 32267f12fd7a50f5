// Perfetto's trace processor behind a Unix socket, with the bytes of its own RPC on it: what its Python client speaks.
//
//     node trace_processor.mjs FOLDER SOCKET
//
// FOLDER is that of a Perfetto UI: its engine is a web worker, which takes requests from a message port and answers there.
// Node.js has no such worker, so it runs in a context of its own that has what it asks for.
import { readFileSync } from "node:fs";
import { createServer } from "node:net";
import { basename, join } from "node:path";
import vm from "node:vm";

const [folder, socket] = process.argv.slice(2);
const worker = vm.createContext({
  WorkerGlobalScope: class {},
  location: { href: "http://localhost/" },
  console: { log: console.error, warn: console.error, error: console.error },
  XMLHttpRequest: class {
    open(_method, address) {
      this.path = join(folder, basename(address));
    }
    send() {
      this.response = bytes(readFileSync(this.path)).buffer;
    }
  },
  URL, TextDecoder, TextEncoder, performance, crypto,
});
worker.self = worker;
// The engine takes no arrays but those of its own context.
const bytes = vm.runInContext("(bytes) => new Uint8Array(bytes)", worker);
let client = null;
const port = { postMessage: (answer) => client.write(answer) };
vm.runInContext(readFileSync(join(folder, "engine_bundle.js"), "utf8"), worker);
worker.onmessage({ data: port });
createServer((connection) => {
  client = connection;
  connection.on("data", (request) => port.onmessage({ data: bytes(request) }));
}).listen(socket, () => console.log("ready"));
