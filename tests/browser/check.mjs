// Opens pages in Chromium as people do, on a laptop and on a phone, light and dark, and checks what must hold of each:
// it loads nothing, says nothing on the console, has no serious violation of accessibility, shows every number also in a
// table, and can be used with the keyboard. Usage: node check.mjs CHROMIUM PICTURES PAGE...
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, join, resolve } from "node:path";
import { pathToFileURL } from "node:url";
import { chromium } from "playwright-core";

const [program, pictures, ...pages] = process.argv.slice(2);
assert.ok(pages.length > 0, "usage: node check.mjs CHROMIUM PICTURES PAGE...");
const axe = readFileSync(createRequire(import.meta.url).resolve("axe-core/axe.min.js"), "utf8");

const SCREENS = [
  ["laptop", { width: 1440, height: 900 }],
  ["phone", { width: 390, height: 844 }],
];
const SCHEMES = ["light", "dark"];

async function open(context, path, problems) {
  const page = await context.newPage();
  const address = pathToFileURL(resolve(path)).href;
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) problems.push(`console: ${message.text()}`);
  });
  page.on("pageerror", (error) => problems.push(`error: ${error.message}`));
  page.on("dialog", (dialog) => {
    problems.push(`dialog: ${dialog.message()}`);
    dialog.dismiss();
  });
  page.on("request", (request) => {
    if (request.url() !== address) problems.push(`request: ${request.url()}`);
  });
  await page.goto(address);
  await page.waitForSelector("html[data-drawn]", { timeout: 30_000 });
  return page;
}

async function accessibility(page, problems) {
  await page.evaluate(axe);
  const { violations } = await page.evaluate(() => window.axe.run(document, { resultTypes: ["violations"] }));
  for (const { id, impact, nodes } of violations) {
    const where = nodes.slice(0, 3).map((node) => `${node.target.join(" ")} (${node.failureSummary})`);
    const text = `axe: ${impact} ${id} at ${nodes.length} places: ${where.join("; ")}`;
    if (["serious", "critical"].includes(impact)) problems.push(text);
    else console.log(`  ${text}`);
  }
}

// Everything that the data says is there, and nothing in it became anything but text.
async function contents(page, problems) {
  const found = await page.evaluate(() => {
    const data = JSON.parse(document.getElementById("data").textContent);
    const blocks = data.sections.flatMap((section) => section.blocks);
    const count = (kind) => blocks.filter((block) => block.kind === kind).length;
    return {
      owned: window.owned,
      foreign: document.querySelectorAll("body img, body iframe, body object, body embed, body link, [onerror], [onload]").length,
      scripts: document.scripts.length,
      sections: data.sections.map((section) => section.title),
      headings: [...document.querySelectorAll("h2")].map((heading) => heading.textContent),
      charts: [count("chart"), document.querySelectorAll(".chart canvas").length],
      overflow: document.documentElement.scrollWidth - window.innerWidth,
    };
  });
  if (found.owned !== undefined) problems.push("something from outside ran");
  if (found.foreign > 0) problems.push("something from outside became an element");
  if (found.scripts !== 2) problems.push(`${found.scripts} scripts`);
  for (const section of found.sections) {
    if (!found.headings.includes(section)) problems.push(`the section ${section} is missing`);
  }
  if (found.charts[0] !== found.charts[1]) problems.push(`${found.charts[1]} of ${found.charts[0]} charts are drawn`);
  if (found.overflow > 0) problems.push(`the page is ${found.overflow} pixels wider than the screen`);
}

// Each chart, histogram, waterfall and heat map has a table of as many rows as it has points, requests or rows.
async function numbers(page, problems) {
  const found = await page.evaluate(async () => {
    const data = JSON.parse(document.getElementById("data").textContent);
    const length = { chart: (of) => of.x.length, histogram: (of) => of.counts.length, waterfall: (of) => of.requests.length, heat_map: (of) => of.rows.length };
    const drawn = data.sections.flatMap((section) => section.blocks).filter((block) => block.kind in length);
    const expected = drawn.map((block) => [block.title, length[block.kind](block)]);
    const boxes = [...document.querySelectorAll("details")].filter((box) => box.firstChild.textContent.startsWith("The numbers"));
    for (const box of document.querySelectorAll("details")) box.open = true;
    // `toggle` comes in a task of its own.
    await new Promise((resolve) => setTimeout(resolve, 0));
    await new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve)));
    return { expected, got: boxes.map((box) => box.querySelectorAll("tbody tr").length) };
  });
  if (found.expected.length !== found.got.length) problems.push(`${found.got.length} tables for ${found.expected.length} charts`);
  found.expected.forEach(([title, rows], at) => {
    if (found.got[at] !== rows) problems.push(`${title}: ${found.got[at]} rows in the table for ${rows} points`);
  });
}

const range = (page) => page.textContent(".range");
// The picture of a chart, as it is after all frames that were asked for.
async function picture(page, at) {
  await page.evaluate(() => new Promise((resolve) => requestAnimationFrame(() => requestAnimationFrame(resolve))));
  return page.evaluate((at) => document.querySelectorAll(".chart canvas")[at].toDataURL(), at);
}

async function use(page, problems) {
  const charts = await page.$$(".chart .plot");
  if (charts.length < 2) return;
  const last = charts.length - 1;
  const whole = await range(page);
  const before = await picture(page, last);
  await charts[0].focus();
  await page.keyboard.press("ArrowRight");
  await page.keyboard.press("ArrowRight");
  const said = await page.textContent(".chart [aria-live]");
  if (!/^at .*\d/.test(said)) problems.push(`an arrow key read nothing: ${said}`);
  await page.keyboard.press("+");
  const zoomed = await picture(page, last);
  if ((await range(page)) === whole) problems.push("+ does not zoom");
  if (zoomed === before) problems.push("another chart does not follow the zoom");
  await page.keyboard.press("Shift+ArrowRight");
  await page.keyboard.press("0");
  if ((await picture(page, last)) !== before) problems.push("0 does not bring the whole run back");
  await charts[0].scrollIntoViewIfNeeded();
  const box = await (await charts[0].$(".u-over")).boundingBox();
  const drag = async (from, to) => {
    await page.mouse.move(box.x + box.width * from, box.y + 60);
    await page.mouse.down();
    await page.mouse.move(box.x + box.width * to, box.y + 60, { steps: 4 });
    await page.mouse.up();
  };
  await drag(0.3, 0.6);
  await picture(page, last);
  if ((await range(page)) === whole) problems.push("dragging does not zoom");
  await page.mouse.dblclick(box.x + box.width / 2, box.y + 60);
  await picture(page, last);
  if ((await range(page)) !== whole) problems.push("a double click does not bring the whole run back");
  await page.mouse.move(0, 0);
}

// The arrow keys read the numbers of a heat map, cell by cell.
async function heatMaps(page, problems) {
  const maps = await page.evaluate(() => JSON.parse(document.getElementById("data").textContent).sections.flatMap((section) => section.blocks).filter((block) => block.kind === "heat_map"));
  for (const [at, plot] of (await page.$$(".heatmap .plot")).entries()) {
    const { values, digits, unit } = maps[at];
    await plot.focus();
    for (const key of ["End", "ArrowDown", "Home", "End"]) await page.keyboard.press(key);
    const last = values[Math.min(1, values.length - 1)].at(-1);
    const wanted = last === null ? "not known" : `${last.toFixed(digits)} ${unit}`;
    const said = await page.textContent(`.heatmap >> nth=${at} >> [aria-live]`);
    if (!said.endsWith(`: ${wanted}`)) problems.push(`a heat map said ${said} where ${wanted} is`);
  }
}

async function theme(page, problems) {
  const ground = () => page.evaluate(() => getComputedStyle(document.body).backgroundColor);
  await page.selectOption("#theme", "light");
  const light = await ground();
  await page.selectOption("#theme", "dark");
  if ((await ground()) === light) problems.push("the theme switch does nothing");
  await page.selectOption("#theme", "");
}

const flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"];
const browser = await chromium.launch({ executablePath: program, args: flags });
let failed = 0;
try {
  for (const path of pages) {
    for (const [screen, viewport] of SCREENS) {
      for (const colorScheme of SCHEMES) {
        const problems = [];
        const context = await browser.newContext({ viewport, colorScheme });
        const page = await open(context, path, problems);
        const name = `${basename(path, ".html")}-${screen}-${colorScheme}`;
        await page.screenshot({ path: join(pictures, `${name}.png`), fullPage: true });
        await contents(page, problems);
        await accessibility(page, problems);
        if (screen === "laptop") {
          await use(page, problems);
          await heatMaps(page, problems);
        }
        await theme(page, problems);
        if (colorScheme === "light") {
          await numbers(page, problems);
          // Thousands of rows take axe ten seconds; they are the same elements on every screen.
          if (screen === "laptop") await accessibility(page, problems);
          await contents(page, problems);
        }
        await context.close();
        console.log(`${problems.length ? "FAILED" : "ok"} ${name}`);
        for (const problem of problems) console.log(`  ${problem}`);
        failed += problems.length;
      }
    }
  }
} finally {
  await browser.close();
}
process.exitCode = failed ? 1 : 0;
