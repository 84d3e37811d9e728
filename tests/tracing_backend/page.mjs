// Opens a trace's page as an engineer does: `node page.mjs URL SCREENSHOT PROFILE`. It prints, as JSON, what the page says
// of the trace with its execution looked at, and of the batch that the link there leads to.
import { chromium } from "playwright-core";

const [url, screenshot, profile] = process.argv.slice(2);
const QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync"];
const WIDE = 800; // of the 1300 pixels, for the timeline

const browser = await chromium.launchPersistentContext(profile, {
  executablePath: "/usr/bin/chromium", headless: true, args: QUIET, viewport: { width: 1300, height: 380 },
});
const page = browser.pages()[0];
// By CSS: while a tip of MLflow's is open, roles and labels of everything else are hidden.
const trace = page.locator("[role=dialog]", { has: page.getByLabel("Trace display settings") });
const links = trace.locator("[role=tab]", { hasText: "Links" });
const jump = trace.locator("a", { hasText: "Jump to linked span" }).first();
const timeline = (text) => trace.getByText(text, { exact: true }).filter({ visible: true }).first();

await page.goto(url);
await trace.getByLabel("Full screen").click();
await trace.getByLabel("Show execution timeline").click();
await timeline("encode").waitFor();
const edge = await trace.evaluateHandle((dialog) => [...dialog.querySelectorAll("div")]
  .find((element) => getComputedStyle(element).cursor.includes("resize"))); // between timeline and details
await edge.asElement().hover(); // once it stands still
await page.mouse.down();
await page.mouse.move(WIDE, 250, { steps: 5 });
await page.mouse.up();
await timeline("execute").click();
await links.click();
await jump.waitFor();
await page.mouse.move(WIDE + 100, 370); // where nothing answers to it
await page.screenshot({ path: screenshot, clip: { x: 0, y: 48, width: 1300, height: 312 } }); // without the tool bar
const request = await trace.innerText();

await page.goto(new URL(await jump.getAttribute("href"), url).href);
await timeline("infer").waitFor();
await links.click();
await jump.waitFor();
const batch = await trace.innerText();
await browser.close();
console.log(JSON.stringify({ request, batch }));
