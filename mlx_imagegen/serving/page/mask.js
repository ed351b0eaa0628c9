// Painting a mask over a picture, with a pointer or the keyboard. The mask is white where the picture is to change.

const LARGEST = 1536;
const PAINT = "#d400ff";
const $ = (id) => document.getElementById(id);

// Resolves with the mask as a PNG's data URL, with "" for an empty one, with null if nothing is to be changed.
export async function paint(source, former) {
  const image = await load(source);
  const scale = Math.min(1, LARGEST / Math.max(image.naturalWidth, image.naturalHeight));
  const [width, height] = [image.naturalWidth, image.naturalHeight].map((side) => Math.round(side * scale));
  const below = size($("mask-picture"), width, height);
  below.getContext("2d").drawImage(image, 0, 0, width, height);
  const canvas = size($("mask"), width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  const shown = Math.min(900, window.innerWidth * 0.85, (window.innerHeight * 0.62 * width) / height);
  for (const each of [below, canvas]) each.style.width = `${shown}px`;
  if (former) await restore(context, former);
  const undo = [];
  const keep = () => undo.push(context.getImageData(0, 0, width, height)) > 20 && undo.shift();
  const brush = () => (Number($("brush").value) * Math.max(width, height)) / 512;
  const stroke = (from, to) => {
    context.globalCompositeOperation = $("erase").checked ? "destination-out" : "source-over";
    context.strokeStyle = PAINT;
    context.lineWidth = brush();
    context.lineCap = context.lineJoin = "round";
    context.beginPath();
    context.moveTo(...from);
    context.lineTo(...to);
    context.stroke();
  };
  let last = null;
  let cursor = [width / 2, height / 2];
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) * width) / box.width, ((event.clientY - box.top) * height) / box.height];
  };
  canvas.onpointerdown = (event) => {
    keep();
    canvas.setPointerCapture(event.pointerId);
    last = cursor = place(event);
    stroke(last, last);
  };
  canvas.onpointermove = (event) => {
    if (!last) return;
    const next = place(event);
    stroke(last, next);
    last = cursor = next;
  };
  canvas.onpointerup = canvas.onpointercancel = () => (last = null);
  canvas.onkeydown = (event) => {
    const step = brush() / 2;
    const moves = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
    const move = moves[event.key];
    if (move) {
      const next = [clamp(cursor[0] + move[0], width), clamp(cursor[1] + move[1], height)];
      if (event.shiftKey) stroke(cursor, next);
      cursor = next;
    } else if (event.key === " ") {
      keep();
      stroke(cursor, cursor);
    } else return;
    event.preventDefault();
  };
  $("mask-undo").onclick = () => undo.length && context.putImageData(undo.pop(), 0, 0);
  $("mask-clear").onclick = () => keep() && context.clearRect(0, 0, width, height);
  $("mask-invert").onclick = () => {
    keep();
    context.globalCompositeOperation = "xor";
    context.fillStyle = PAINT;
    context.fillRect(0, 0, width, height);
  };
  const dialog = $("mask-dialog");
  dialog.showModal();
  canvas.focus();
  return new Promise((resolve) => {
    const end = (value) => {
      dialog.close();
      resolve(value);
    };
    $("mask-done").onclick = () => end(asMask(context, width, height));
    $("mask-cancel").onclick = () => end(null);
    dialog.oncancel = () => resolve(null);
  });
}

export function load(source) {
  return new Promise((resolve, reject) => {
    const image = new Image();
    image.onload = () => resolve(image);
    image.onerror = () => reject(new Error("This file cannot be shown as a picture."));
    image.src = source;
  });
}

function size(canvas, width, height) {
  canvas.width = width;
  canvas.height = height;
  return canvas;
}

const clamp = (value, limit) => Math.max(0, Math.min(limit, value));

function asMask(context, width, height) {
  const pixels = context.getImageData(0, 0, width, height);
  let painted = false;
  for (let i = 0; i < pixels.data.length; i += 4) {
    const level = pixels.data[i + 3];
    painted ||= level > 0;
    pixels.data.set([level, level, level, 255], i);
  }
  if (!painted) return "";
  const canvas = size(document.createElement("canvas"), width, height);
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas.toDataURL("image/png");
}

async function restore(context, former) {
  const { width, height } = context.canvas;
  context.drawImage(await load(former), 0, 0, width, height);
  const pixels = context.getImageData(0, 0, width, height);
  const [red, green, blue] = [1, 3, 5].map((at) => parseInt(PAINT.slice(at, at + 2), 16));
  for (let i = 0; i < pixels.data.length; i += 4) pixels.data.set([red, green, blue, pixels.data[i]], i);
  context.putImageData(pixels, 0, 0);
}
