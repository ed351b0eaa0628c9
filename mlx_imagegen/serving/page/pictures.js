// Pictures to refer to or to start from: chosen, dropped, pasted or taken from the history; a mask over the first.

import { element } from "./form.js";
import { load, paint } from "./mask.js";

const $ = (id) => document.getElementById(id);
const TYPES = ["image/png", "image/jpeg", "image/webp"];
const LARGEST = 2048; // larger photos are made smaller here, before they are sent

let pictures = []; // data URLs
let mask = "";
let edits = false;
let report = () => {};

export function open(onError) {
  report = onError;
  $("drop").onclick = () => $("file").click();
  $("file").onchange = () => {
    addFiles($("file").files);
    $("file").value = "";
  };
  document.addEventListener("paste", (event) => addFiles(event.clipboardData.files));
  document.addEventListener("dragover", (event) => {
    event.preventDefault();
    document.body.classList.add("dragging");
  });
  document.addEventListener("dragleave", (event) => event.relatedTarget ?? document.body.classList.remove("dragging"));
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dragging");
    addFiles(event.dataTransfer.files);
  });
  $("role").onchange = show;
  $("strength").oninput = show;
  show();
}

export function setModel(model) {
  edits = model.edits;
  show();
}

const starts = () => !edits || $("role").value === "image" || mask !== "";

// The fields of a request.
export function fields() {
  if (!pictures.length) return {};
  const found = {};
  if (starts()) {
    found.image = pictures[0];
    found.strength = Number($("strength").value);
    if (mask) found.mask = mask;
  }
  const references = edits && $("role").value === "references" ? pictures : [];
  if (references.length) found.references = references;
  return found;
}

export function fill(request) {
  pictures = request.references ?? (request.image ? [request.image] : []);
  mask = request.mask ?? "";
  if (request.image && !request.references) $("role").value = "image";
  if (request.strength) $("strength").value = request.strength;
  show();
}

export async function add(blob) {
  if (!TYPES.includes(blob.type)) return report("Only PNG, JPEG and WebP pictures can be used.");
  try {
    pictures.push(await shrunk(await dataUrl(blob)));
  } catch (error) {
    return report(error.message);
  }
  show();
}

async function addFiles(files) {
  for (const file of files) await add(file);
}

function show() {
  $("picture-list").replaceChildren(...pictures.map(item));
  $("pictures-help").textContent = edits ? "to edit or to refer to" : "to start from";
  $("role-field").hidden = !edits || !pictures.length;
  $("strength-field").hidden = !pictures.length || !starts();
  $("strength-value").textContent = `${Math.round($("strength").value * 100)} %`;
}

function item(source, index) {
  const entry = element("li");
  const frame = element("div", { className: "frame" });
  frame.append(element("img", { src: source, alt: `Picture ${index + 1}` }));
  if (index === 0 && mask) frame.append(element("img", { src: mask, alt: "its mask" }));
  const remove = element("button", { type: "button", className: "remove", textContent: "×" });
  remove.setAttribute("aria-label", `Remove picture ${index + 1}`);
  remove.onclick = () => {
    pictures.splice(index, 1);
    if (index === 0) mask = "";
    show();
    $("drop").focus();
  };
  frame.append(remove);
  entry.append(frame);
  if (index === 0) {
    const button = element("button", { type: "button", id: "paint", textContent: mask ? "Edit mask" : "Paint mask" });
    button.onclick = async () => {
      const painted = (await paint(source, mask)) ?? mask;
      if (painted && !mask) $("strength").value = 1; // what is painted is drawn from scratch, if nothing else is said
      mask = painted;
      show();
      $("paint")?.focus();
    };
    entry.append(button);
  }
  return entry;
}

export function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(new Error("This file cannot be read."));
    reader.readAsDataURL(blob);
  });
}

async function shrunk(source) {
  const image = await load(source);
  const scale = LARGEST / Math.max(image.naturalWidth, image.naturalHeight);
  if (scale >= 1) return source;
  const canvas = element("canvas", { width: Math.round(image.naturalWidth * scale), height: Math.round(image.naturalHeight * scale) });
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return canvas.toDataURL("image/png");
}
