// A model in this page: onnxruntime-web, loaded from this server, and a session of it.

const BUILDS = { wasm: "./ort/ort.wasm.min.mjs", webgpu: "./ort/ort.webgpu.min.mjs" };

/**
 * Load the build of a backend, "wasm" or "webgpu". Without the headers of cross-origin isolation it has one thread,
 * whatever `threads` says. The number is fixed once a session is open.
 */
export async function loadEngine(backend, threads) {
  const ort = await import(BUILDS[backend]);
  ort.env.wasm.wasmPaths = new URL("./ort/", import.meta.url).href;
  ort.env.wasm.numThreads = crossOriginIsolated ? threads : 1;
  ort.env.logLevel = "error";
  return ort;
}

/** Fetch a model, compile it for a backend and return the session. */
export async function openSession(ort, backend, url) {
  const response = await fetch(url);
  if (!response.ok) throw new Error(`${url}: status ${response.status}`);
  const model = new Uint8Array(await response.arrayBuffer());
  return ort.InferenceSession.create(model, { executionProviders: [backend] });
}

/**
 * Run float32 images of shape [N, C, H, W]; return the logits, their shape, and the seconds from the tensor in this
 * page to the logits in this page.
 */
export async function run(ort, session, pixels, shape) {
  const input = new ort.Tensor("float32", pixels, shape);
  const begun = performance.now();
  const outputs = await session.run({ [session.inputNames[0]]: input });
  const output = outputs[session.outputNames[0]];
  const logits = await output.getData();
  const seconds = (performance.now() - begun) / 1e3;
  return { logits, shape: output.dims, seconds };
}

/** Return the name of the GPU that WebGPU would use as `adapter`, or as `missing` why there is none. */
export async function findGpu() {
  const found = await navigator.gpu?.requestAdapter();
  if (!found) return { missing: "the browser has no WebGPU adapter" };
  const { vendor, architecture, description } = found.info;
  const name = [description || vendor, architecture].filter(Boolean).join(" ");
  const software = found.info.isFallbackAdapter || /swiftshader|llvmpipe|software/i.test(`${vendor} ${name}`);
  return software ? { missing: `WebGPU has no GPU here, only ${name} on the processor` } : { adapter: name };
}
