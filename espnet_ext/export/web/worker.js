/**
 * Runs models in a thread, so that the page stays responsive: { open: folder, member } loads one, { wave, last } transcribes a
 * segment, or with `piece` the next samples of a stream.
 */

import * as ort from "./ort.js";
import { Model } from "./model.js";
import { Stream } from "./stream.js";

const QUIET = 1.2; // seconds without a token that end a paragraph of a stream
const FRAME = 0.04; // seconds of a frame of a stream's encoder

ort.env.wasm.numThreads = 1; // more need headers that a plain server does not send
ort.env.wasm.wasmPaths = { wasm: new URL("./ort.wasm", import.meta.url).href };

let model = null;
let stream = null;
let turn = Promise.resolve(); // a session runs once at a time

onmessage = ({ data }) => {
  turn = turn.then(() => (data.open ? open(data) : data.piece ? hear(data) : transcribe(data))).catch((error) => {
    stream = null; // what it heard is lost
    postMessage({ error: `${error.message ?? error}` });
  });
};

async function open({ open: folder, member }) {
  const start = performance.now();
  model = stream = null;
  model = await Model.open(ort, async (name) => {
    const reply = await fetch(`${folder}/${name}`);
    if (!reply.ok) throw new Error(`${folder}/${name}: ${reply.status}`);
    return new Uint8Array(await reply.arrayBuffer());
  }, member);
  const streams = model.settings.kind === "transducer";
  postMessage({ opened: folder, rate: model.settings.rate, streams, seconds: (performance.now() - start) / 1000 });
}

async function hear({ wave, last }) {
  const start = performance.now();
  stream ??= await Stream.open(model);
  await stream.accept(wave, last);
  const seconds = (performance.now() - start) / 1000;
  const text = model.text(stream.tokens);
  const ends = last || (text && (stream.count - stream.frames.at(-1)) * FRAME > QUIET);
  if (ends) [stream.tokens, stream.frames] = [[], []];
  if (last) stream = null;
  postMessage({ text, last: Boolean(ends), seconds, length: wave.length / model.settings.rate });
}

async function transcribe({ wave, last }) {
  const start = performance.now();
  const tokens = await model.tokens(wave);
  const seconds = (performance.now() - start) / 1000;
  postMessage({ text: model.text(tokens), last, seconds, length: wave.length / model.settings.rate });
}
