// The form: models with what fits this machine, and a field for each parameter of the server's table.

import * as api from "./api.js";

const $ = (id) => document.getElementById(id);
// Parameters that have a place of their own on the page.
const PLACED = new Set([
  "prompt", "model", "quant", "lora", "lora_partial", "image", "strength", "references", "mask", "steps", "width", "height",
  "aspect", "seed", "count",
]);
const KEPT = "mlx-imagegen form";

let known = { models: [], parameters: [], loras: [], limits: {} };

export const model = () => known.models.find((each) => each.name === $("model").value) ?? known.models[0];

export async function open(onModel) {
  known = await api.models();
  $("machine").textContent = `${(known.memory_bytes / 1e9).toFixed(0)} GB of memory`;
  $("model").replaceChildren(...known.models.map((each) => option(each.name, each.title)));
  $("model").value = known.default;
  $("count").max = known.limits.count;
  $("steps").max = known.limits.steps;
  showLoras();
  showMore();
  $("model").onchange = () => (showModel(), onModel());
  $("quant").onchange = showFit;
  $("aspect").onchange = () => ($("size").hidden = $("aspect").value !== "size");
  $("more-list").oninput = $("lora-list").oninput = count;
  recall();
  showModel();
  onModel();
  annotateAll();
}

async function annotateAll() {
  for (const each of known.models) await annotate(each).catch(() => {});
}

// What is asked for, without pictures.
export function fields() {
  const found = { prompt: $("prompt").value, model: $("model").value };
  if ($("quant").value) found.quant = $("quant").value;
  if ($("aspect").value === "size") Object.assign(found, numbers("width", "height"));
  else if ($("aspect").value) found.aspect = $("aspect").value;
  Object.assign(found, numbers("steps"));
  if ($("seed").value.trim()) found.seed = Number($("seed").value);
  if (Number($("count").value) > 1) found.count = Number($("count").value);
  const loras = chosenLoras();
  if (loras.length) found.lora = loras;
  for (const row of shownParameters()) {
    const value = valueOf(row);
    if (value !== undefined) found[row.name] = value;
  }
  return found;
}

// Fields of an earlier request, put back into the form.
export function fill(request) {
  $("prompt").value = request.prompt ?? "";
  if (known.models.some((each) => each.name === request.model)) $("model").value = request.model;
  showModel();
  $("quant").value = request.quant ?? "";
  const sized = request.width !== undefined || request.height !== undefined;
  $("aspect").value = sized ? "size" : (request.aspect ?? "");
  $("size").hidden = !sized;
  for (const name of ["width", "height", "steps", "seed"]) $(name).value = request[name] ?? "";
  $("count").value = request.count ?? 1;
  const scales = new Map((request.lora ?? []).map((each) => (Array.isArray(each) ? each : [each, 1])));
  for (const row of document.querySelectorAll(".lora")) {
    row.querySelector("[type=checkbox]").checked = scales.has(row.dataset.name);
    row.querySelector("[type=number]").value = scales.get(row.dataset.name) ?? 1;
  }
  for (const row of known.parameters) {
    const input = $(`more-${row.name}`);
    if (!input) continue;
    const value = request[row.name];
    if (input.type === "checkbox") input.checked = value === true;
    else input.value = value === undefined ? "" : typeof value === "object" ? JSON.stringify(value) : value;
  }
  count();
}

export const keep = () => localStorage.setItem(KEPT, JSON.stringify(fields()));

function recall() {
  try {
    const kept = JSON.parse(localStorage.getItem(KEPT));
    if (kept) fill(kept);
  } catch {
    localStorage.removeItem(KEPT);
  }
}

function showModel() {
  const shown = model();
  $("steps").placeholder = shown.steps;
  $("width").placeholder = shown.width;
  $("height").placeholder = shown.height;
  $("aspect").options[0].text = `${shown.width}×${shown.height}`;
  $("note").textContent = shown.note ?? "";
  $("note").hidden = !shown.note;
  for (const row of known.parameters) {
    const field = $(`field-${row.name}`);
    if (field) field.hidden = shown.refuses.includes(row.name);
  }
  for (const row of document.querySelectorAll(".lora")) {
    row.hidden = row.dataset.family !== "" && !row.dataset.family.includes(shown.family);
  }
  $("loras").hidden = !shownLoras().length;
  const guidance = $("more-guidance");
  if (guidance) guidance.placeholder = shown.default_guidance;
  showQuants();
  count();
}

// How much memory each model takes is computed by the server from its files: one after the other, the list comes first.
async function annotate(each) {
  each.fits = (await api.fits(each.name)).fits;
  const best = each.fits.find((fit) => fit.fits);
  const entry = [...$("model").options].find((found) => found.value === each.name);
  entry.text = `${each.title} · ${best ? size(best.peak_bytes) : "does not fit"}`;
  entry.disabled = !best;
  if (each === model()) showQuants();
}

function showQuants() {
  const chosen = $("quant").value;
  const rows = model().fits ?? [{ quant: null, fits: true }];
  $("quant").replaceChildren(
    ...rows.map((fit) => {
      const amount = fit.peak_bytes ? ` · ${size(fit.peak_bytes)}` : "";
      const entry = option(fit.quant ?? "", `${fit.quant ?? "as they are"}${amount}`);
      entry.disabled = !fit.fits;
      return entry;
    }),
  );
  $("quant").value = rows.some((fit) => (fit.quant ?? "") === chosen && fit.fits) ? chosen : (rows.find((fit) => fit.fits)?.quant ?? "");
  showFit();
}

function showFit() {
  const fit = model().fits?.find((each) => (each.quant ?? "") === $("quant").value);
  $("fit").hidden = !fit || fit.fits;
  $("fit").textContent = fit && !fit.fits ? `Needs ${size(fit.peak_bytes)}, more than this machine has.` : "";
}

function showLoras() {
  $("lora-list").replaceChildren(
    ...known.loras.map(({ name, family }) => {
      const row = element("div", { className: "lora" });
      Object.assign(row.dataset, { name, family: family ?? "" });
      const label = element("label", { title: name });
      label.append(element("input", { type: "checkbox" }), name);
      const scale = element("input", { type: "number", step: "0.05", value: "1" });
      scale.setAttribute("aria-label", `Scale of ${name}`);
      row.append(label, scale);
      return row;
    }),
  );
}

function chosenLoras() {
  const rows = shownLoras().filter((row) => row.querySelector("[type=checkbox]").checked);
  return rows.map((row) => [row.dataset.name, Number(row.querySelector("[type=number]").value)]);
}

const shownLoras = () => [...document.querySelectorAll(".lora")].filter((row) => !row.hidden);

function showMore() {
  const rows = known.parameters.filter((row) => !PLACED.has(row.name));
  $("more-list").replaceChildren(...rows.map(moreField));
}

function moreField(row) {
  const id = `more-${row.name}`;
  const field = element("label", { className: "field", htmlFor: id, id: `field-${row.name}` });
  const words = row.name.replaceAll("_", " ");
  const title = element("span", { textContent: words[0].toUpperCase() + words.slice(1) });
  const input = inputFor(row, id);
  const help = element("small", { textContent: row.help.replaceAll("`", "") });
  field.append(...(input.type === "checkbox" ? [input, ` ${title.textContent}`, help] : [title, input, help]));
  return field;
}

function inputFor(row, id) {
  if (row.kind === "true or false") return element("input", { type: "checkbox", id });
  if (row.name.endsWith("prompt")) return element("textarea", { rows: 2, id });
  const input = element("input", { type: row.kind === "a number" || row.kind === "a whole number" ? "number" : "text", id });
  if (input.type === "number") {
    input.step = row.kind === "a number" ? "any" : "1";
    if (row.limits) [input.min, input.max] = row.limits;
  }
  input.placeholder = row.default;
  return input;
}

function shownParameters() {
  return known.parameters.filter((row) => $(`field-${row.name}`)?.hidden === false);
}

function valueOf(row) {
  const input = $(`more-${row.name}`);
  if (input.type === "checkbox") return input.checked || undefined;
  const text = input.value;
  if (text.trim() === "") return undefined;
  if (input.type === "number") return Number(text);
  if (row.kind === "text") return text;
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}

function numbers(...names) {
  return Object.fromEntries(names.filter((name) => $(name).value !== "").map((name) => [name, Number($(name).value)]));
}

function count() {
  const loras = chosenLoras().length;
  const more = shownParameters().filter((row) => valueOf(row) !== undefined).length;
  $("lora-count").textContent = loras ? `${loras} chosen` : "";
  $("more-count").textContent = more ? `${more} set` : "";
}

const size = (bytes) => (bytes >= 1e9 ? `${(bytes / 1e9).toFixed(1)} GB` : `${Math.ceil(bytes / 1e6)} MB`);
const option = (value, text) => element("option", { value, text });

export function element(name, properties = {}) {
  return Object.assign(document.createElement(name), properties);
}
