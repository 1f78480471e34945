// The page of `segx demo` and of `segx export --format web`: segments images in the browser and shows the masks.

import { countForeground, flipsOf, isExclusive, masksFromLogits, toImage } from "./masks.js";
import { encodeGrayPng } from "./png.js";
import { findGpu } from "./session.js";

const MOST_SHOWN = 1280; // pixels of a side
const FLIPPED = [224, 69, 123, 255]; // as in the report of a bench
const STAGES = { decode: "read the image", prepare: "prepare it", run: "run the model", mask: "make the mask" };

const element = (id) => document.getElementById(id);
let model;
try {
  model = await (await request("model.json")).json();
} catch (error) {
  say("");
  complain(`model.json: ${error.message}`);
  throw error;
}
const { spec } = model;

let threshold = spec.threshold;
let worker, calls;
let broken; // why the worker answers no calls
let asked = 0; // counts calls
let chosen = null; // name and content of the newest image, or of the one that is shown if that was refused
let image = null; // the one that is shown: also its bytes, and what a worker and the native runtime made of it
let newest = 0; // counts images; of earlier ones nothing is shown any more
let isFirst = true;
let samplesShown = 0;

// The model in this browser ----------------------------------------------------------------------------------------

/** Start a new worker with the file and backend that are chosen; one that runs is given up. */
function start() {
  worker?.terminate();
  worker = new Worker("worker.js", { type: "module" });
  const pending = new Map();
  calls = pending;
  const fail = (message) => {
    for (const { reject } of pending.values()) reject(new Error(message));
    pending.clear();
  };
  broken = "";
  worker.onerror = ({ message }) => {
    if (!message) broken = `the page's worker cannot be loaded: ${noAnswer()}`;
    fail(broken || `the page's worker failed: ${message}`);
  };
  worker.onmessage = ({ data: { id, result, error } }) => {
    const { resolve, reject } = pending.get(id) ?? {};
    pending.delete(id);
    if (error === undefined) resolve?.(result);
    else reject?.(new Error(error));
  };
  element("engine").textContent = "";
  const backend = element("backend").value;
  const { url } = model.files.find(({ name }) => name === element("precision").value);
  const mine = worker;
  ask("open", { backend, url, threads: model.threads ?? Math.min(navigator.hardwareConcurrency, 8), batchSize: model.batch_size }).then(
    ({ version, threads, isolated, seconds }) => {
      if (mine !== worker) return;
      const parallel = backend === "wasm" ? `, ${threads} thread${threads > 1 ? "s" : ""}` : "";
      const why = isolated || backend !== "wasm" ? "" : " (the server does not send the headers that more need: see README.md)";
      element("engine").textContent = `onnxruntime-web ${version}, ${backend}${parallel}${why}`;
      element("start").textContent = `The model was ready after ${seconds.toFixed(1)} s.`;
      if (!chosen) say("Choose, drop or paste an image.");
    },
    (error) => mine === worker && complain(error.message),
  );
}

async function ask(kind, given) {
  if (broken) throw new Error(broken);
  asked += 1;
  const id = asked;
  const answer = new Promise((resolve, reject) => calls.set(id, { resolve, reject }));
  worker.postMessage({ id, kind, ...given });
  return answer;
}

/** Segment an image, which `load` returns as a Blob, here and then by the native runtime; show a problem meanwhile. */
async function segment(name, load, problem = "") {
  newest += 1;
  const mine = newest;
  complain(problem);
  chosen = { name, load };
  say(`Segmenting ${name} …`);
  try {
    const blob = await load();
    if (blob.size > model.max_bytes) throw new Error(`${(blob.size / 2 ** 20).toFixed(0)} MiB, more than ${model.max_bytes / 2 ** 20}; downscale it`);
    const bytes = new Uint8Array(await blob.arrayBuffer());
    const here = await ask("segment", { bytes, spec });
    if (mine !== newest) return;
    image?.here.bitmap.close();
    chosen = image = { name, load: async () => new Blob([bytes]), bytes, here, worker, native: null };
    show();
    say(describe());
    if (isFirst) {
      isFirst = false;
      element("start").textContent += ` The first mask was there ${(performance.now() / 1e3).toFixed(1)} s after the page was opened.`;
    }
    for (const id of ["save-mask", "save-overlay"]) element(id).disabled = false;
  } catch (error) {
    if (mine !== newest) return;
    say(describe());
    complain(`${name}: ${error.message}`);
    if (!image || load === image.load) return;
    chosen = image;
    // Of another model, if that was changed before the image was refused.
    if (image.worker !== worker) await segment(image.name, image.load, `${name}: ${error.message}`);
    return;
  }
  await compare();
}

// The same image by a native runtime of the server ------------------------------------------------------------------

async function compare() {
  const variant = element("native").value, mine = image;
  if (!variant || !mine) return;
  mine.native = null;
  show();
  element("flips").textContent = `Running ${variant} …`;
  const isStale = () => mine !== image || variant !== element("native").value;
  try {
    const answer = await request(`native?${new URLSearchParams({ variant })}`, { method: "POST", body: mine.bytes });
    const times = answer.headers.get("Server-Timing").matchAll(/(\w+);dur=([\d.]+)/g);
    const seconds = Object.fromEntries([...times].map(([, stage, ms]) => [stage, ms / 1e3]));
    const logits = new Float32Array(await answer.arrayBuffer());
    if (isStale()) return;
    mine.native = { logits, seconds, variant };
    show();
  } catch (error) {
    if (isStale()) return;
    element("flips").textContent = "";
    complain(`${variant}: ${error.message}`);
  }
}

// The server of the page ---------------------------------------------------------------------------------------------

/** Fetch from it; an error says what is wrong with it. */
async function request(url, options) {
  const answer = await fetch(url, options).catch(() => { throw new Error(noAnswer()); });
  if (answer.ok) return answer;
  const { error, hint } = answer.status === 422 ? await answer.json() : { error: `status ${answer.status}`, hint: answer.status === 503 ? "the server is busy; try again" : remedy() };
  throw new Error(`${error} (${hint})`);
}

function noAnswer() {
  return `the server does not answer (${remedy()})`;
}

function remedy() {
  return model?.native.length ? "restart segx demo" : "check that the server runs and has all files of the page";
}

// What is shown ------------------------------------------------------------------------------------------------------

const describe = () => (image ? `${image.name}: ${image.here.size.width}x${image.here.size.height} pixels.` : "");

function say(text) {
  element("state").textContent = text;
}

function complain(text) {
  element("problem").textContent = text;
  element("problem").hidden = !text;
}

/** Draw the image with its masks, and write what there is to say about them. */
function show() {
  element("threshold-value").textContent = threshold.toFixed(3).replace(/0$/, "");
  element("opacity-value").textContent = `${Math.round(element("opacity").value * 100)}%`;
  if (!image) return;
  const { here, native } = image;
  const begin = performance.now();
  const masks = masksFromLogits(here.logits, here.box, spec, threshold);
  here.seconds.mask = (performance.now() - begin) / 1e3;
  draw("picture", "share", masks);
  if (native) {
    const others = masksFromLogits(native.logits, here.box, spec, threshold);
    const flips = flipsOf(masks, others);
    const count = countForeground([flips]);
    draw("native-picture", "native-share", others, flips);
    const marked = count ? ", marked in pink" : "";
    element("flips").textContent = `${count.toLocaleString("en")} of ${flips.length.toLocaleString("en")} pixels differ from ${native.variant}${marked}.`;
  } else {
    const canvas = element("native-picture");
    canvas.getContext("2d").clearRect(0, 0, canvas.width, canvas.height);
    element("native-share").textContent = "";
  }
  showLegend(masks);
  showTimes();
}

function draw(id, shareId, masks, flips = null) {
  const canvas = element(id);
  const { bitmap, size, box } = image.here;
  const scale = Math.min(1, MOST_SHOWN / Math.max(size.width, size.height));
  canvas.width = Math.max(1, Math.round(size.width * scale));
  canvas.height = Math.max(1, Math.round(size.height * scale));
  const context = canvas.getContext("2d");
  context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
  context.imageSmoothingEnabled = false;
  context.drawImage(tinted(masks, box, flips), 0, 0, canvas.width, canvas.height);
  const share = `${(100 * countForeground(masks) / masks[0].length).toFixed(1)}% of pixels in the mask`;
  element(shareId).textContent = `· ${share}`;
  canvas.setAttribute("aria-label", `${image.name}: ${share}`);
}

/** Return planes as a canvas of their colours, as opaque as chosen, and flips in their own. */
function tinted(planes, { width, height }, flips = null) {
  const canvas = new OffscreenCanvas(width, height), context = canvas.getContext("2d");
  const pixels = new ImageData(width, height);
  const alpha = Math.round(255 * element("opacity").value);
  planes.forEach((plane, k) => {
    for (let i = 0; i < plane.length; i += 1) {
      if (plane[i]) pixels.data.set([...model.colours[isExclusive(spec) ? plane[i] : k], alpha], 4 * i);
    }
  });
  flips?.forEach((flipped, i) => flipped && pixels.data.set(FLIPPED, 4 * i));
  context.putImageData(pixels, 0, 0);
  return canvas;
}

/** List the classes that are in the mask, with their colours and shares. */
function showLegend(masks) {
  const list = element("legend");
  list.hidden = spec.classes === 1;
  if (list.hidden) return;
  const counts = new Array(spec.classes).fill(0);
  masks.forEach((plane, k) => plane.forEach((value) => { if (value) counts[isExclusive(spec) ? value : k] += 1; }));
  list.replaceChildren(...counts.flatMap((count, k) => {
    if (!count) return [];
    const item = document.createElement("li"), swatch = document.createElement("canvas");
    [swatch.width, swatch.height] = [1, 1];
    const context = swatch.getContext("2d");
    context.fillStyle = `rgb(${model.colours[k].join(" ")})`;
    context.fillRect(0, 0, 1, 1);
    item.append(swatch, `class ${k}: ${(100 * count / masks[0].length).toFixed(1)}%`);
    return [item];
  }));
}

function showTimes() {
  const columns = [image.here.seconds, ...(element("native-column").hidden ? [] : [image.native?.seconds ?? {}])];
  const milliseconds = (value) => (value === undefined ? "–" : (value * 1e3).toFixed(value < 0.01 ? 1 : 0));
  const sum = (seconds) => Object.values(seconds).reduce((total, value) => (total ?? 0) + value, undefined);
  const rows = [
    ...Object.entries(STAGES).map(([stage, title]) => [title, ...columns.map((seconds) => seconds[stage])]),
    ["in all", ...columns.map(sum)],
  ];
  element("times").replaceChildren(...rows.map(([title, ...values]) => {
    const row = document.createElement("tr"), head = document.createElement("th");
    head.scope = "row";
    head.textContent = title;
    row.append(head, ...values.map((value) => {
      const cell = document.createElement("td");
      cell.textContent = milliseconds(value);
      return cell;
    }));
    return row;
  }));
}

// Downloads ----------------------------------------------------------------------------------------------------------

const stem = () => image.name.replace(/\.[^.]*$/, "") || "image";

function download(name, blob) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

const masksOfImage = () => {
  const { logits, box, size } = image.here;
  return masksFromLogits(logits, box, spec, threshold).map((plane) => toImage(plane, box, size));
};

/** Save the mask, or that of each label, as `segx predict` writes it. */
async function saveMask() {
  const { size } = image.here, name = stem();
  for (const [k, plane] of masksOfImage().entries()) {
    const pixels = isExclusive(spec) ? plane : plane.map((value) => 255 * value);
    download(`${name}.mask${spec.multilabel ? `-${k}` : ""}.png`, await encodeGrayPng(pixels, size));
  }
}

async function saveOverlay() {
  const { bitmap, size } = image.here, name = stem();
  const canvas = new OffscreenCanvas(size.width, size.height), context = canvas.getContext("2d");
  context.drawImage(bitmap, 0, 0);
  context.drawImage(tinted(masksOfImage(), size), 0, 0);
  download(`${name}.overlay.png`, await canvas.convertToBlob());
}

// Where images come from ---------------------------------------------------------------------------------------------

async function showSample() {
  const url = model.samples[samplesShown % model.samples.length];
  samplesShown += 1;
  await segment(url.split("/").at(-1), async () => (await request(url)).blob());
}

function take(files) {
  const [file] = files;
  if (file) segment(file.name, async () => file);
  else complain("That is not an image file.");
}

async function openCamera() {
  element("camera").disabled = true; // while the browser asks for permission
  try {
    element("video").srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
  } catch (error) {
    return complain(`The camera cannot be used: ${error.message}`);
  } finally {
    element("camera").disabled = false;
  }
  element("take").disabled = true; // until there are pixels
  element("camera-dialog").showModal();
  try {
    await element("video").play();
  } catch (error) {
    if (error.name === "AbortError") return; // the dialog was closed
    return complain(`The camera cannot be used: ${error.message}`);
  }
  element("take").disabled = false;
}

async function takePicture() {
  const video = element("video"), canvas = new OffscreenCanvas(video.videoWidth, video.videoHeight);
  canvas.getContext("2d").drawImage(video, 0, 0);
  element("camera-dialog").close();
  await segment("camera.png", () => canvas.convertToBlob());
}

function closeCamera() {
  for (const track of element("video").srcObject?.getTracks() ?? []) track.stop();
}

// The page -----------------------------------------------------------------------------------------------------------

function fill(id, options) {
  element(id).replaceChildren(...options.map(([value, text]) => new Option(text, value)));
}

document.title = `${model.name}: segmentation in the browser`;
element("name").textContent = model.name;
element("model").textContent = `${model.description} It runs in this browser; ${model.native.length ? "images are sent to segx demo for the comparison only" : "images do not leave it"}.`;
element("threshold").value = threshold;
element("threshold-field").hidden = isExclusive(spec) || spec.class_map;
fill("precision", model.files.map(({ name, bytes }) => [name, `${name} (${(bytes / 2 ** 20).toFixed(1)} MiB)`]));
fill("native", model.native.map((name) => [name, name]));
fill("backend", [["wasm", "WASM"]]);
findGpu().then(({ adapter }) => adapter && element("backend").append(new Option("WebGPU", "webgpu")));
for (const id of ["native-field", "native-figure", "native-column"]) element(id).hidden = !model.native.length;
element("sample").hidden = !model.samples.length;
element("camera").hidden = !navigator.mediaDevices || spec.in_channels > 3;

const nameNative = () => { element("native-name").textContent = element("native-column").textContent = element("native").value; };
nameNative();

const again = () => chosen && segment(chosen.name, chosen.load);
for (const id of ["precision", "backend"]) element(id).addEventListener("change", () => { start(); again(); });
element("native").addEventListener("change", () => { nameNative(); compare(); });
element("threshold").addEventListener("input", ({ target }) => { threshold = Number(target.value); show(); });
element("opacity").addEventListener("input", show);
element("file").addEventListener("change", ({ target }) => { take(target.files); target.value = ""; });
element("sample").addEventListener("click", showSample);
element("camera").addEventListener("click", openCamera);
element("take").addEventListener("click", takePicture);
element("close-camera").addEventListener("click", () => element("camera-dialog").close());
element("camera-dialog").addEventListener("close", closeCamera);
element("save-mask").addEventListener("click", saveMask);
element("save-overlay").addEventListener("click", saveOverlay);
document.addEventListener("paste", ({ clipboardData }) => clipboardData.files.length && take(clipboardData.files));
document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dropping"); });
document.addEventListener("dragleave", ({ relatedTarget }) => relatedTarget || document.body.classList.remove("dropping"));
document.addEventListener("drop", (event) => { event.preventDefault(); document.body.classList.remove("dropping"); take(event.dataTransfer.files); });

element("file").disabled = false;
show();
start();
if (model.samples.length) showSample();
