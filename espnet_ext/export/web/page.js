/** The page: a microphone or a file in, text out, with the model that the slider names. */

import { Segmenter } from "./segments.js";
import { MARGIN, Pieces } from "./stream.js";

const EVERY = 1; // seconds between texts of a segment that has not ended
const at = (id) => document.getElementById(id);
const models = await (await fetch("models.json")).json();

let worker = null;
let loads = 0; // models that were asked for; what belongs to an earlier one is dropped
let rate = 16000; // of the model
let streams = false; // the model hears pieces, not segments
let busy = 0; // segments that the worker has not answered
let queue = Promise.resolve(); // segments are resampled in their order
let audio = null; // of the microphone, while it is open
const total = { seconds: 0, length: 0 };

at("size").max = models.length - 1;
at("size").value = models.length - 1;
at("size").oninput = name;
at("size").onchange = open;
at("listen").onclick = () => (audio ? close() : listen());
at("file").onchange = () => {
  const [file] = at("file").files;
  at("file").value = ""; // so that the same file can be chosen again
  if (file) transcribe(file);
};
name();
open();

/** Show which model the slider names. */
function name() {
  const { name, bytes } = models[at("size").value];
  at("model").textContent = `${name}, ${(bytes / 1e6).toFixed(1)} MB`;
}

/** Load the model that the slider names. */
function open() {
  loads++;
  if (audio) close(false);
  worker?.terminate();
  worker = new Worker("worker.js", { type: "module" });
  worker.onmessage = ({ data }) => answer(data);
  worker.onerror = (event) => say(`This browser cannot run the model: ${event.message ?? "worker failed"}`);
  [busy, total.seconds, total.length] = [0, 0, 0];
  at("listen").disabled = at("file").disabled = true;
  at("partial").textContent = "";
  say("Loading …");
  const { folder, member } = models[at("size").value];
  worker.postMessage({ open: folder, member });
}

function answer(data) {
  if (data.opened) {
    [rate, streams] = [data.rate, data.streams];
    at("listen").disabled = at("file").disabled = false;
    say(`Loaded in ${data.seconds.toFixed(1)} s.`);
    return;
  }
  busy = Math.max(0, busy - 1);
  if (data.error) {
    say(data.error);
    return;
  }
  at("partial").textContent = data.last ? "" : data.text;
  if (streams || data.last) {
    total.seconds += data.seconds;
    total.length += data.length;
  }
  if (!data.last) return;
  if (data.text) at("text").append(Object.assign(document.createElement("p"), { textContent: data.text }));
  say(`${total.length.toFixed(1)} s of speech in ${total.seconds.toFixed(1)} s.`);
}

/** Have samples of another rate or the model's own transcribed: a segment, or a piece with its margins. */
function send(wave, from, last, piece = false) {
  const load = loads;
  busy++;
  queue = queue
    .then(() => resampled(wave, from))
    .then((wave) => {
      const margin = piece ? Math.round(MARGIN * rate) : 0;
      if (load === loads) worker.postMessage({ wave: wave.slice(margin, wave.length - margin), last, piece });
    })
    .catch((error) => say(error.message));
}

async function resampled(wave, from) {
  if (from === rate) return wave;
  const context = new OfflineAudioContext(1, Math.max(1, Math.round((wave.length * rate) / from)), rate);
  const buffer = context.createBuffer(1, wave.length, from);
  buffer.copyToChannel(wave, 0);
  const source = new AudioBufferSourceNode(context, { buffer });
  source.connect(context.destination);
  source.start();
  return (await context.startRendering()).getChannelData(0);
}

/** Transcribe the microphone until it is closed. */
async function listen() {
  const load = loads;
  let [stream, context] = [null, null];
  at("listen").disabled = true;
  try {
    if (!navigator.mediaDevices) throw new Error("it needs https, or this machine's own server");
    stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1 } });
    context = new AudioContext(); // at the microphone's rate: not all browsers resample
    await context.audioWorklet.addModule("recorder.js");
    if (load !== loads) throw new Error("another model was chosen; try again");
    const recorder = new AudioWorkletNode(context, "recorder");
    recorder.port.onmessage = ({ data }) => hear(data);
    context.createMediaStreamSource(stream).connect(recorder);
    const cutter = streams ? { pieces: new Pieces(context.sampleRate) } : { segmenter: new Segmenter(context.sampleRate) };
    audio = { context, stream, since: 0, ...cutter };
    at("file").disabled = streams; // a worker hears one stream
    at("listen").textContent = "Stop";
  } catch (error) {
    stream?.getTracks().forEach((track) => track.stop());
    context?.close();
    say(`No microphone: ${error.message}`);
  }
  if (load === loads) at("listen").disabled = false;
}

function hear(samples) {
  if (!audio) return;
  const { context, segmenter, pieces } = audio;
  if (pieces) {
    pieces.push(samples).forEach((piece) => send(piece, context.sampleRate, false, true));
    return;
  }
  const ended = segmenter.push(samples);
  ended.forEach((wave) => send(wave, context.sampleRate, true));
  audio.since = ended.length ? 0 : audio.since + samples.length;
  if (busy || !segmenter.spoken || audio.since < EVERY * context.sampleRate) return;
  audio.since = 0;
  send(segmenter.current(), context.sampleRate, false);
}

/** Close the microphone; what was said so far is transcribed, or dropped. */
function close(transcribes = true) {
  const { context, stream, segmenter, pieces } = audio;
  audio = null;
  at("file").disabled = false;
  stream.getTracks().forEach((track) => track.stop());
  at("listen").textContent = "Microphone";
  const last = pieces ? pieces.end() : segmenter.end();
  if (last && transcribes) send(last, context.sampleRate, true, Boolean(pieces));
  context.close();
}

/** Transcribe a file. */
async function transcribe(file) {
  const load = loads;
  at("listen").disabled = streams; // a worker hears one stream
  say(`Reading ${file.name} …`);
  try {
    const context = new OfflineAudioContext(1, 1, rate); // it resamples
    const decoded = await context.decodeAudioData(await file.arrayBuffer());
    if (load !== loads) return;
    const channels = Array.from({ length: decoded.numberOfChannels }, (_, place) => decoded.getChannelData(place));
    const mono = channels[0].map((_, place) => channels.reduce((sum, one) => sum + one[place], 0) / channels.length);
    if (streams) {
      const pieces = new Pieces(rate);
      pieces.push(mono).forEach((piece) => send(piece, rate, false, true));
      send(pieces.end(), rate, true, true);
      return;
    }
    const segmenter = new Segmenter(rate);
    const found = [...segmenter.push(mono), segmenter.end()].filter(Boolean);
    found.forEach((wave) => send(wave, rate, true));
    if (!found.length) say("No speech found.");
  } catch (error) {
    say(`${file.name}: ${error.message}`);
  } finally {
    if (load === loads) at("listen").disabled = false;
  }
}

function say(text) {
  at("status").textContent = text;
}
