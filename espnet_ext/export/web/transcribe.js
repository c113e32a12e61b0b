/**
 * Transcribe WAVE files of at most 30 s with an exported model in Node.js: an example of model.js.
 *
 *     node transcribe.js models/NAME speech.wav
 *     node transcribe.js models/NAME --member MEMBER speech.wav     (of a family, instead of the best)
 */

import { readFile } from "node:fs/promises";
import { Model } from "./model.js";
import * as ort from "./ort.js";

ort.env.wasm.numThreads = 1;
ort.env.wasm.wasmBinary = await readFile(new URL("./ort.wasm", import.meta.url));

/** Samples of 16-bit PCM, channels averaged. */
function samples(data, rate) {
  const view = new DataView(data.buffer, data.byteOffset, data.length);
  const word = (place) => String.fromCharCode(...data.subarray(place, place + 4));
  if (word(0) !== "RIFF" || word(8) !== "WAVE") throw new Error("no WAVE file");
  let [place, channels] = [12, 0];
  while (place + 8 <= data.length) {
    const size = view.getUint32(place + 4, true);
    if (word(place) === "fmt ") {
      channels = view.getUint16(place + 10, true);
      if (view.getUint32(place + 12, true) !== rate || view.getUint16(place + 22, true) !== 16)
        throw new Error(`needs ${rate} Hz and 16 bits`);
    } else if (word(place) === "data") {
      const end = Math.min(size, data.length - place - 8);
      const count = Math.trunc(end / 2 / channels);
      if (count > 30 * rate) throw new Error("needs at most 30 s: cut it at pauses");
      return Float32Array.from({ length: count }, (_, t) => {
        let sum = 0;
        for (let c = 0; c < channels; c++) sum += view.getInt16(place + 8 + 2 * (t * channels + c), true);
        return sum / channels / 32768;
      });
    }
    place += 8 + size + (size % 2);
  }
  throw new Error("no samples");
}

const [folder, ...files] = process.argv.slice(2);
const [, member] = files[0] === "--member" ? files.splice(0, 2) : [];
if (!files.length) {
  console.error("usage: node transcribe.js MODEL_FOLDER [--member MEMBER] FILE.wav...");
  process.exit(2);
}
const model = await Model.open(ort, (name) => readFile(`${folder}/${name}`), member).catch((error) => {
  console.error(`${folder}: no exported model: ${error.message}`);
  process.exit(1);
});
for (const file of files) {
  try {
    const tokens = await model.tokens(samples(await readFile(file), model.settings.rate));
    console.log(model.text(tokens));
  } catch (error) {
    console.error(`${file}: ${error.message}`);
    process.exitCode = 1;
  }
}
