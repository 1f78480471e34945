// Slow work, off the page's thread: reading an image, preparing it, and running the model.

import { decodeImage } from "./images.js";
import { imageBox, misfit, preprocess } from "./preprocess.js";
import { loadEngine, openSession, run } from "./session.js";

let opened;

/** Load the engine and the model; return what is in force, and seconds. */
async function open({ backend, threads, url, batchSize }) {
  const begin = performance.now();
  opened = loadEngine(backend, threads)
    .then(async (ort) => ({ ort, session: await openSession(ort, backend, url), batchSize }))
    .catch((error) => { throw new Error(`the model cannot be loaded: ${error?.message ?? error}`); });
  const { ort } = await opened;
  return {
    version: ort.env.versions.web,
    threads: ort.env.wasm.numThreads,
    isolated: crossOriginIsolated,
    seconds: (performance.now() - begin) / 1e3,
  };
}

/** Segment an image; return it as a bitmap, its logits, where it lies in them, and the seconds of each stage. */
async function segment({ bytes, spec }) {
  const begin = performance.now();
  const image = await decodeImage(bytes);
  const decoded = performance.now();
  const reason = misfit(image, spec);
  if (reason) throw new Error(reason);
  const input = preprocess(image, spec);
  const prepared = performance.now();
  const { ort, session, batchSize } = await opened;
  const batch = new Float32Array(batchSize * input.length);
  for (let i = 0; i < batchSize; i += 1) batch.set(input, i * input.length);
  const { logits, seconds } = await run(ort, session, batch, [batchSize, spec.in_channels, spec.height, spec.width]);
  const { width, height } = image;
  return {
    logits: logits.slice(0, spec.classes * spec.height * spec.width),
    bitmap: await createImageBitmap(toShow(image, spec)),
    size: { width, height },
    box: imageBox(image, spec),
    seconds: { decode: (decoded - begin) / 1e3, prepare: (prepared - decoded) / 1e3, run: seconds },
  };
}

/** Return 8-bit pixels to look at, opaque as the model sees them. */
function toShow({ data, width, height }, spec) {
  const shown = new ImageData(width, height);
  const scale = 255 / (spec.white_level ?? (data instanceof Uint16Array ? 65535 : 255));
  for (let i = 0; i < data.length; i += 1) shown.data[i] = i % 4 === 3 ? 255 : data[i] * scale;
  return shown;
}

onmessage = async ({ data: { id, kind, ...given } }) => {
  try {
    const result = await { open, segment }[kind](given);
    postMessage({ id, result }, result.bitmap ? [result.bitmap, result.logits.buffer] : []);
  } catch (error) {
    postMessage({ id, error: String(error?.message ?? error) });
  }
};
