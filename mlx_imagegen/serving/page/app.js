// The page: a job from the form, its progress on the stage, its pictures in the history.

import * as api from "./api.js";
import * as form from "./form.js";
import * as history from "./history.js";
import * as pictures from "./pictures.js";

const $ = (id) => document.getElementById(id);
const RUNNING = "mlx-imagegen job"; // of this tab, so that a page that is loaded again goes on watching
const REQUEST = "mlx-imagegen request"; // without its pictures
const VARIED = 0.6;

let items = []; // of the history, the newest first
let shown = null; // the item on the stage
let running = null; // the job's id
let recordForm = "command"; // of the record

// The stage.

function fail(message) {
  $("error").textContent = message;
  $("error").hidden = !message;
  if (message) $("error").scrollIntoView({ block: "nearest" });
}

function stage(source, alt, width) {
  $("empty").hidden = true;
  $("picture").hidden = false;
  $("picture").src = source;
  $("picture").alt = alt;
  $("picture").style.width = `${Math.max(width, Math.min(width * 3, 512))}px`; // small ones are enlarged
}

function progress(job) {
  $("progress").hidden = false;
  const bar = $("bar");
  const drawing = job?.state === "drawing";
  bar.classList.toggle("waiting", !drawing);
  bar.style.width = drawing ? `${job.progress * 100}%` : "";
  if (drawing) bar.setAttribute("aria-valuenow", Math.round(job.progress * 100));
  else bar.removeAttribute("aria-valuenow");
  $("status").textContent = words(job);
}

function words(job) {
  if (!job) return "The connection was lost; trying again…";
  if (job.state === "queued") return job.position ? `Waiting: ${job.position} before this one.` : "Waiting.";
  if (job.state === "preparing") {
    if (!job.load_bytes || job.loaded_bytes >= job.load_bytes) return "Reading the prompt…";
    return `Reading the model: ${Math.round((100 * job.loaded_bytes) / job.load_bytes)} %`;
  }
  const which = job.pictures > 1 ? `Picture ${job.picture} of ${job.pictures}, step` : "Step";
  return `${which} ${job.step} of ${job.steps}${left(job.seconds_left)}`;
}

function left(seconds) {
  if (seconds === null) return "";
  if (seconds < 1) return " · nearly done";
  return seconds < 90 ? ` · ${Math.ceil(seconds)} s left` : ` · ${Math.ceil(seconds / 60)} min left`;
}

function busy(id) {
  running = id;
  $("cancel").hidden = !id;
  document.querySelector(".keys").hidden = Boolean(id);
  $("generate").disabled = Boolean(id);
  $("progress").hidden = !id;
  if (id) {
    $("progress").scrollIntoView({ block: "nearest" });
    sessionStorage.setItem(RUNNING, id);
    $("result").hidden = true;
  } else sessionStorage.removeItem(RUNNING);
}

// A job, from the button to the history.

async function start() {
  fail("");
  const request = { ...form.fields(), ...pictures.fields() };
  form.keep();
  try {
    const job = await api.start(request);
    const { image, references, mask, ...rest } = request;
    sessionStorage.setItem(REQUEST, JSON.stringify(rest));
    await watch(job.id, request);
  } catch (error) {
    refused(error);
  }
}

async function watch(id, request) {
  busy(id);
  progress({ state: "queued" });
  let job;
  try {
    const { width } = await api.job(id);
    job = await api.follow(id, { onProgress: progress, onPreview: (source) => stage(source, "Unfinished picture", width) });
  } catch (error) {
    busy(null);
    showItem(shown);
    return fail(error.message);
  }
  for (const result of job.results) await keep(job, result, request).catch((error) => fail(error.message));
  busy(null);
  if (job.state === "failed") fail(job.error.message);
  showItem(job.results.length ? items[job.results.length - 1] : shown);
  if (job.state === "cancelled") announce("Cancelled.");
}

async function keep(job, result, request) {
  const blob = await api.picture(result.url);
  const { seed, width, height, record, command, python } = result;
  const item = await history.add({ blob, created: job.ended, prompt: job.prompt, seed, width, height, record, command, python, request });
  items.unshift(item);
  showHistory();
}

function announce(text) {
  $("progress").hidden = false;
  $("bar").style.width = "0";
  $("bar").classList.remove("waiting");
  $("status").textContent = text;
}

function refused(error) {
  busy(null);
  if (error.status === 401) return askForToken();
  fail(error.message);
}

// The history.

function showHistory() {
  $("thumbs").replaceChildren(...items.map(thumb));
  $("clear").hidden = !items.length;
  $("no-history").hidden = items.length > 0;
}

function thumb(item) {
  const entry = form.element("li", { tabIndex: item === shown || (!shown && item === items[0]) ? 0 : -1 });
  entry.setAttribute("role", "option");
  entry.setAttribute("aria-selected", item === shown);
  entry.setAttribute("aria-label", `${item.prompt}, seed ${item.seed}`);
  item.source ??= URL.createObjectURL(item.blob);
  entry.append(form.element("img", { src: item.source, alt: "", loading: "lazy" }));
  entry.onclick = () => showItem(item);
  return entry;
}

function showItem(item) {
  shown = item ?? null;
  $("result").hidden = !shown;
  $("picture").hidden = !shown;
  $("empty").hidden = Boolean(shown);
  showHistory();
  if (!shown) return;
  stage(shown.source, shown.prompt, shown.width);
  const { steps, model, quant } = shown.record;
  const title = form.element("b", { textContent: shown.prompt });
  const facts = [`${shown.width}×${shown.height}`, model + (quant ? ` ${quant}` : ""), `${steps} steps`, `seed ${shown.seed}`];
  $("caption").replaceChildren(title, facts.join(" · "));
  $("save").href = shown.source;
  $("save").download = `${shown.prompt.toLowerCase().replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 48) || "picture"}-${shown.seed}.png`;
  showRecord();
}

function showRecord() {
  for (const tab of document.querySelectorAll("[role=tab]")) {
    const chosen = tab.id === `tab-${recordForm}`;
    tab.setAttribute("aria-selected", chosen);
    tab.tabIndex = chosen ? 0 : -1;
  }
  const texts = { command: shown.command, python: shown.python, record: JSON.stringify(shown.record, null, 2) };
  $("text").textContent = texts[recordForm];
  $("text").setAttribute("aria-labelledby", `tab-${recordForm}`);
  $("copy").textContent = "Copy";
}

async function copy() {
  try {
    await navigator.clipboard.writeText($("text").textContent);
    $("copy").textContent = "Copied";
  } catch {
    getSelection().selectAllChildren($("text")); // where the browser lets no page write: it is selected at least
    $("copy").textContent = "Press Ctrl+C";
  }
}

function again(changes = {}) {
  const { seed, count, ...request } = { ...shown.request, ...changes };
  form.fill(request);
  pictures.fill(request);
  start();
}

async function vary() {
  const { references, mask, width, height, aspect, ...request } = shown.request;
  const image = await pictures.dataUrl(shown.blob);
  again({ ...request, references: undefined, mask: undefined, width: shown.width, height: shown.height, aspect: undefined, image, strength: VARIED });
}

async function remove() {
  const index = items.indexOf(shown);
  await history.remove(shown.id);
  items.splice(index, 1);
  showItem(items[Math.min(index, items.length - 1)]);
}

async function clear() {
  if (!confirm("Remove all pictures from this browser?")) return;
  await history.clear();
  items = [];
  showItem(null);
}

// Keys: Ctrl or Cmd with Enter draws, Escape cancels, arrows move through the history and the tabs.

document.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !running) $("form").requestSubmit();
  if (event.key === "Escape" && running && !document.querySelector("dialog[open]")) $("cancel").click();
});

function moveWith(container, selector, chosen, keys = { ArrowLeft: -1, ArrowRight: 1 }) {
  container.addEventListener("keydown", (event) => {
    const entries = [...container.querySelectorAll(selector)];
    const index = entries.indexOf(document.activeElement);
    const next = { ...keys, Home: -entries.length, End: entries.length }[event.key];
    if (index < 0 || next === undefined) return;
    event.preventDefault();
    const target = Math.max(0, Math.min(entries.length - 1, index + next));
    chosen(entries[target], target);
    container.querySelectorAll(selector)[target].focus();
  });
}

// The token.

function askForToken(message = "") {
  $("token-error").textContent = message;
  $("token-error").hidden = !message;
  $("token-dialog").showModal();
}

async function openWith(token) {
  try {
    await api.session(token);
    if ($("token-dialog").open) $("token-dialog").close();
    await begin();
  } catch (error) {
    askForToken(error.message);
  }
}

// The token in the address that the server printed; it does not stay there.
async function openWithHash() {
  const token = new URLSearchParams(location.hash.slice(1)).get("token");
  if (!token) return false;
  globalThis.history.replaceState(null, "", "/");
  await openWith(token);
  return true;
}

async function begin() {
  await form.open(() => pictures.setModel(form.model()));
}

async function main() {
  const wide = matchMedia("(min-width: 861px)");
  wide.onchange = () => ($("settings").open ||= wide.matches);
  $("settings").open = wide.matches;
  $("generate").title = "Ctrl or Cmd with Enter";
  document.querySelector(".keys").textContent = `${/Mac/.test(navigator.platform) ? "⌘" : "Ctrl"} Enter`;
  $("form").onsubmit = (event) => (event.preventDefault(), running || start());
  $("cancel").onclick = () => running && api.cancel(running).catch(refused);
  $("again").onclick = () => again();
  $("vary").onclick = vary;
  $("use").onclick = () => pictures.add(shown.blob);
  $("forget").onclick = remove;
  $("clear").onclick = clear;
  $("copy").onclick = copy;
  for (const tab of document.querySelectorAll("[role=tab]")) tab.onclick = () => ((recordForm = tab.id.slice(4)), showRecord());
  moveWith($("record"), "[role=tab]", (tab) => tab.click());
  moveWith($("thumbs"), "li", (_, index) => showItem(items[index]), { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -1, ArrowDown: 1 });
  $("token-form").onsubmit = () => openWith($("token").value);
  pictures.open(fail);
  items = await history.all().catch(() => []);
  showItem(items[0]);
  addEventListener("hashchange", openWithHash);
  const left = sessionStorage.getItem(RUNNING);
  if (!(await openWithHash())) await begin().catch(refused);
  if (left && !running) watch(left, JSON.parse(sessionStorage.getItem(REQUEST) ?? "{}"));
}

main();
