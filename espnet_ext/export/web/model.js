/**
 * A model that `espnet-ext export` wrote, run by ONNX Runtime for the web, in a browser or Node.js.
 *
 * It finds what transcribe.py finds.
 */

import { largest, Stream } from "./stream.js";

const [START, END, PROMPT] = [1, 2, 3]; // ids of a decoder
const BLANK = 0; // id of CTC
const GRAPHS = {
  whisper: ["preprocess", "encode", "uncached_decode", "cached_decode"],
  attention: ["preprocess", "encode", "uncached_decode", "cached_decode"],
  ctc: ["preprocess", "model"],
  class: ["preprocess", "model"],
  transducer: ["preprocess", "encoder", "decoder", "joiner"],
};

/** The graphs of a folder. */
export class Model {
  /**
   * @param ort the module of onnxruntime-web.
   * @param {(name: string) => Promise<Uint8Array>} read reads a file of the folder.
   * @param {string} [member] of a family, which the demo's folder has with its computed weights.
   */
  static async open(ort, read, member) {
    const model = new Model();
    const text = async (name) => new TextDecoder().decode(await read(name));
    model.ort = ort;
    model.settings = JSON.parse(await text("model.json"));
    const options = {};
    if (model.settings.members) {
      member ??= Object.keys(model.settings.members)[0]; // the best
      if (!Object.hasOwn(model.settings.members, member)) throw new Error(`no member ${member}`);
      Object.assign(model.settings, model.settings.members[member]);
      const weights = ["weights.bin", `${member}.weights.bin`];
      options.externalData = await Promise.all(weights.map(async (path) => ({ path, data: await read(path) })));
    } else if (member) throw new Error(`no member ${member}: the folder has one model`);
    const file = (name) => model.settings.files?.[name] ?? name;
    const lines = (await text(file("tokens.txt"))).trimEnd().split("\n");
    model.symbols = new Map(lines.map((line) => line.match(/^(.*) (\d+)$/).slice(1)).map(([s, id]) => [+id, s]));
    model.graphs = {};
    for (const name of GRAPHS[model.settings.kind])
      model.graphs[name] = await ort.InferenceSession.create(await read(file(`${name}.onnx`)), options);
    return model;
  }

  /**
   * Ids of what is found in samples at the model's rate.
   *
   * @param {Float32Array} wave samples in [-1, 1].
   */
  async tokens(wave) {
    if (["whisper", "attention"].includes(this.settings.kind)) return await this.#attend(wave);
    if (this.settings.kind === "transducer") {
      const stream = await Stream.open(this);
      await stream.accept(wave, true);
      return stream.tokens;
    }
    const scores = await this.#logProbs(wave);
    const [frames, size] = this.settings.kind === "class" ? [1, scores.data.length] : scores.dims.slice(1);
    const tokens = [];
    let last = BLANK;
    for (let t = 0; t < frames; t++) {
      const row = scores.data.subarray(t * size, (t + 1) * size);
      const best = largest(row);
      if (this.settings.kind === "class" || (best !== BLANK && best !== last)) tokens.push(best);
      last = best;
    }
    return tokens;
  }

  /** The text of ids. */
  text(tokens) {
    const joined = tokens.map((token) => this.symbols.get(token)).join("").replaceAll("\u2581", " ");
    const bytes = joined.split(/((?:<0x[0-9A-F]{2}>)+)/).flatMap((part, place) =>
      place % 2 ? part.match(/[0-9A-F]{2}(?=>)/g).map((hex) => parseInt(hex, 16)) : [...new TextEncoder().encode(part)],
    );
    return new TextDecoder().decode(new Uint8Array(bytes)).split(/\s+/).filter(Boolean).join(" ");
  }

  /** The state of a graph before it has run: zeros for all inputs from `first` on. */
  zeros(name, first) {
    return this.graphs[name].inputMetadata.slice(first).map(({ type, shape }) => {
      const size = shape.reduce((product, one) => product * one, 1);
      return new this.ort.Tensor(type, type === "int64" ? new BigInt64Array(size) : new Float32Array(size), shape);
    });
  }

  /** Run a graph on its inputs, in their order. */
  async run(name, ...inputs) {
    const graph = this.graphs[name];
    const found = await graph.run(Object.fromEntries(graph.inputNames.map((key, place) => [key, inputs[place]])));
    return graph.outputNames.map((key) => found[key]);
  }

  #ints(values, dims) {
    return new this.ort.Tensor("int32", Int32Array.from(values), dims);
  }

  async #features(wave) {
    return (await this.run("preprocess", new this.ort.Tensor("float32", wave, [1, wave.length])))[0];
  }

  async #logProbs(wave) {
    const x = await this.#features(wave);
    const length = new this.ort.Tensor("int64", BigInt64Array.of(BigInt(x.dims[1])), [1]);
    return (await this.run("model", x, length))[0];
  }

  /** Greedy search. */
  async #attend(wave) {
    const { rate, tokens_per_second, more_tokens, most_tokens } = this.settings;
    const most = Math.min(Math.trunc((tokens_per_second * wave.length) / rate) + more_tokens, most_tokens);
    const mel = await this.#features(wave);
    const [encoded] = await this.run("encode", mel, this.#ints([mel.dims[2]], [1]));
    const length = this.#ints([encoded.dims[1]], [1]);
    let [, ...states] = await this.run("uncached_decode", this.#ints([START], [1, 1]), encoded, length);
    const following = async (token) => {
      const [logits, ...next] = await this.run("cached_decode", this.#ints([token], [1, 1]), encoded, length, ...states);
      states = next;
      return largest(logits.data.subarray(-logits.dims.at(-1)));
    };
    const tokens = [];
    let token = PROMPT;
    if (this.settings.languages) token = await following(token);
    while (tokens.length < most) {
      token = await following(token);
      if (token === END) break;
      tokens.push(token);
      const repeated = loop(tokens);
      if (repeated) {
        tokens.length -= repeated;
        break;
      }
    }
    return tokens;
  }
}

/** How many ids at the end only repeat the phrase before them; 0 if it is no loop. */
export function loop(tokens, longest = 10, times = 4, least = 12) {
  for (let size = 1; size <= longest; size++) {
    const count = Math.max(times, Math.ceil(least / size));
    const tail = tokens.slice(-size * count);
    if (tail.length === size * count && tail.every((token, place) => place < size || token === tail[place - size]))
      return size * (count - 1);
  }
  return 0;
}
