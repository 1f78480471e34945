// Runs the batches of a bench. Every answer is a POST, whose response, when it comes, is the next batch.
import { findGpu, loadEngine, openSession, run } from "./session.js";

/** Report facts, with logits if there are any; return the next batch, which is empty where there is only leave to go on. */
async function report(facts, body) {
  const response = await fetch(`next?${new URLSearchParams(facts)}`, { method: "POST", body });
  return new Float32Array(await response.arrayBuffer());
}

/** Have WebAssembly take no more than so many bytes. */
function limitMemory(bytes) {
  const pages = Math.floor(bytes / 65536);
  const { Memory } = WebAssembly;
  WebAssembly.Memory = class extends Memory {
    constructor({ initial, maximum, ...rest }) {
      super({ initial, maximum: Math.max(initial, Math.min(maximum, pages)), ...rest });
    }
  };
}

/** Load the engine and the model and run one batch of zeros; return what is in force, read back. */
async function open(task, gpu) {
  let workers = 0;
  const { Worker } = globalThis;
  globalThis.Worker = class extends Worker {
    constructor(...given) {
      super(...given);
      workers += 1;
    }
  };
  if (task.memory_limit) limitMemory(task.memory_limit);
  const ort = await loadEngine(task.backend, task.threads);
  await report({ loaded: ort.env.versions.web });
  const session = await openSession(ort, task.backend, "model.onnx");
  const [batch] = session.inputMetadata[0].shape;
  const shape = [Number.isInteger(batch) ? batch : 1, ...task.image];
  const zeros = new Float32Array(shape.reduce((a, b) => a * b));
  await run(ort, session, zeros, shape);
  const wasm = performance.getEntriesByType("resource").find(({ name }) => name.endsWith(".wasm"));
  const facts = {
    threads: `${Math.min(ort.env.wasm.numThreads, workers + 1)}`,
    "cross-origin isolated": crossOriginIsolated ? "yes" : "no",
    build: wasm.name.split("/").at(-1),
    ...gpu,
  };
  return { ort, session, facts };
}

fetch("alive").catch(() => {}); // until this page is gone
try {
  const task = await (await fetch("task")).json();
  const gpu = task.backend === "webgpu" ? await findGpu() : {};
  if (gpu.missing || !task.image) {
    await report(gpu);
  } else {
    const { ort, session, facts } = await open(task, gpu);
    let pixels = await report({ facts: JSON.stringify(facts) });
    const size = task.image.reduce((a, b) => a * b);
    for (;;) {
      const { logits, shape, seconds } = await run(ort, session, pixels, [pixels.length / size, ...task.image]);
      pixels = await report({ shape, seconds }, logits);
    }
  }
} catch (error) {
  await report({ error: `${error}`.slice(0, 1000) });
}
