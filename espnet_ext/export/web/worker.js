/** Runs models beside the page: { open: folder } loads one, { wave, last } transcribes. */

import * as ort from "./ort.js";
import { Model } from "./model.js";

ort.env.wasm.numThreads = 1; // more need headers that a plain server does not send
ort.env.wasm.wasmPaths = { wasm: new URL("./ort.wasm", import.meta.url).href };

let model = null;
let turn = Promise.resolve(); // a session runs once at a time

onmessage = ({ data }) => {
  turn = turn.then(() => (data.open ? open(data.open) : transcribe(data))).catch((error) => postMessage({ error: `${error.message ?? error}` }));
};

async function open(folder) {
  const start = performance.now();
  model = null;
  model = await Model.open(ort, async (name) => {
    const reply = await fetch(`${folder}/${name}`);
    if (!reply.ok) throw new Error(`${folder}/${name}: ${reply.status}`);
    return new Uint8Array(await reply.arrayBuffer());
  });
  postMessage({ opened: folder, rate: model.settings.rate, seconds: (performance.now() - start) / 1000 });
}

async function transcribe({ wave, last }) {
  const start = performance.now();
  const tokens = await model.tokens(wave);
  const seconds = (performance.now() - start) / 1000;
  postMessage({ text: model.text(tokens), last, seconds, length: wave.length / model.settings.rate });
}
