/** The page: a microphone or a file in, text out, with the model that the slider names. */

import { Segmenter } from "./segments.mjs";

const EVERY = 1; // seconds between texts of a segment that has not ended
const at = (id) => document.getElementById(id);
const models = await (await fetch("models.json")).json();

let worker = null;
let rate = 16000; // of the model
let busy = 0; // segments that the worker has not answered
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
  worker?.terminate();
  worker = new Worker("worker.mjs", { type: "module" });
  worker.onmessage = ({ data }) => answer(data);
  worker.onerror = (event) => say(`This browser cannot run the model: ${event.message ?? "worker failed"}`);
  [busy, total.seconds, total.length] = [0, 0, 0];
  at("listen").disabled = at("file").disabled = true;
  say("Loading …");
  worker.postMessage({ open: models[at("size").value].folder });
}

function answer(data) {
  if (data.error) {
    say(data.error);
    return;
  }
  if (data.opened) {
    rate = data.rate;
    at("listen").disabled = at("file").disabled = false;
    say(`Loaded in ${data.seconds.toFixed(1)} s.`);
    return;
  }
  busy--;
  at("partial").textContent = data.last ? "" : data.text;
  if (!data.last) return;
  if (data.text) at("text").append(Object.assign(document.createElement("p"), { textContent: data.text }));
  total.seconds += data.seconds;
  total.length += data.length;
  say(`${total.length.toFixed(1)} s of speech in ${total.seconds.toFixed(1)} s.`);
  document.body.dataset.idle = busy === 0;
}

function send(wave, last) {
  busy++;
  document.body.dataset.idle = false;
  worker.postMessage({ wave, last });
}

/** Transcribe the microphone until it is closed. */
async function listen() {
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ audio: { channelCount: 1 } });
    audio = { context: new AudioContext({ sampleRate: rate }), stream, segmenter: new Segmenter(rate), since: 0 };
  } catch (error) {
    say(`No microphone: ${error.message}`);
    return;
  }
  await audio.context.audioWorklet.addModule("recorder.mjs");
  const recorder = new AudioWorkletNode(audio.context, "recorder");
  recorder.port.onmessage = ({ data }) => hear(data);
  audio.context.createMediaStreamSource(audio.stream).connect(recorder);
  at("listen").textContent = "Stop";
}

function hear(samples) {
  if (!audio) return;
  const ended = audio.segmenter.push(samples);
  ended.forEach((wave) => send(wave, true));
  audio.since = ended.length ? 0 : audio.since + samples.length;
  const current = audio.segmenter.current();
  if (audio.since > EVERY * rate && busy === 0 && current) {
    audio.since = 0;
    send(current, false);
  }
}

/** Close the microphone; what was said so far is transcribed. */
function close() {
  const { context, stream, segmenter } = audio;
  audio = null;
  stream.getTracks().forEach((track) => track.stop());
  context.close();
  at("listen").textContent = "Microphone";
  const last = segmenter.end();
  if (last) send(last, true);
}

/** Transcribe a file. */
async function transcribe(file) {
  say(`Reading ${file.name} …`);
  try {
    const context = new OfflineAudioContext(1, 1, rate); // it resamples
    const decoded = await context.decodeAudioData(await file.arrayBuffer());
    const channels = Array.from({ length: decoded.numberOfChannels }, (_, place) => decoded.getChannelData(place));
    const mono = channels[0].map((_, place) => channels.reduce((sum, one) => sum + one[place], 0) / channels.length);
    const segmenter = new Segmenter(rate);
    const found = [...segmenter.push(mono), segmenter.end()].filter(Boolean);
    found.forEach((wave) => send(wave, true));
    if (!found.length) say("No speech found.");
  } catch (error) {
    say(`${file.name}: ${error.message}`);
  }
}

function say(text) {
  at("status").textContent = text;
}
