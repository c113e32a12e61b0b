/** Audio that a transducer hears piece by piece; it finds what the class Stream of transcribe.py finds. */

export class Stream {
  /** @param model of the kind "transducer". */
  static async open(model) {
    const stream = new Stream();
    const { rate, bins, window, shift } = model.settings;
    Object.assign(stream, { model, bins, window, shift });
    [stream.length, stream.hop] = [Math.trunc((rate * 25) / 1000), Math.trunc(rate / 100)];
    [stream.samples, stream.lastSamples, stream.features] = [[], [], []].map((none) => Float32Array.from(none));
    [stream.heard, stream.computed] = [0, 0];
    stream.count = 0; // frames of the encoder
    stream.tokens = [];
    stream.frames = []; // of the tokens
    stream.caches = model.zeros("encoder", 2);
    stream.states = model.zeros("decoder", 2);
    stream.blank = model.symbols.size - 1;
    await stream.#feed(stream.blank);
    return stream;
  }

  /** Hear samples (Float32Array); the tokens that they complete are appended to `tokens`. */
  async accept(wave, last = false) {
    this.features = joined(this.features, await this.#computed(wave, last));
    const [whole, step] = [this.window * this.bins, this.shift * this.bins];
    while (this.features.length >= whole || (last && this.features.length)) {
      await this.#chunk(this.features.subarray(0, whole));
      this.features = this.features.slice(step);
    }
  }

  /** Encode and search a chunk and its look-ahead; features are frame after frame. */
  async #chunk(features) {
    const { ort } = this.model;
    const frames = features.length / this.bins;
    const turned = new Float32Array(this.window * this.bins); // a row for each bin
    for (let t = 0; t < frames; t++)
      for (let bin = 0; bin < this.bins; bin++) turned[bin * this.window + t] = features[t * this.bins + bin];
    const given = new ort.Tensor("float32", turned, [1, this.bins, this.window]);
    const length = new ort.Tensor("int64", BigInt64Array.of(BigInt(frames)), [1]);
    const [encoded, count, ...caches] = await this.model.run("encoder", given, length, ...this.caches);
    this.caches = caches;
    const [, width, places] = encoded.dims;
    for (let t = 0; t < Number(count.data[0]); t++) {
      const frame = Float32Array.from({ length: width }, (_, place) => encoded.data[place * places + t]);
      const [scores] = await this.model.run("joiner", new ort.Tensor("float32", frame, [1, width, 1]), this.predicted);
      const token = largest(scores.data);
      if (token !== this.blank) {
        this.tokens.push(token);
        this.frames.push(this.count);
        await this.#feed(token);
      }
      this.count++;
    }
  }

  /** Give a token to the predictor. */
  async #feed(token) {
    const { ort } = this.model;
    const given = new ort.Tensor("int32", Int32Array.of(token), [1, 1]);
    const one = new ort.Tensor("int32", Int32Array.of(1), [1]);
    const [predicted, , ...states] = await this.model.run("decoder", given, one, ...this.states);
    [this.predicted, this.states] = [predicted, states];
  }

  /** Features of the windows that samples complete; at the end, with reflected edges. */
  async #computed(wave, last) {
    const before = this.heard;
    this.heard += wave.length;
    this.samples = joined(this.samples, wave);
    this.lastSamples = joined(this.lastSamples, wave).slice(-this.length);
    if (this.heard < this.length) return new Float32Array(0);
    if (before < this.length) {
      const edge = Math.trunc(this.length / 2) - Math.trunc(this.hop / 2);
      this.samples = joined(this.samples.slice(0, edge).reverse(), this.samples);
    }
    let count = Math.trunc((this.samples.length - this.length) / this.hop) + 1;
    if (last) {
      this.samples = joined(this.samples, this.lastSamples.slice().reverse());
      count = Math.trunc((this.heard + Math.trunc(this.hop / 2)) / this.hop) - this.computed;
    }
    if (count <= 0) return new Float32Array(0);
    const piece = this.samples.slice(0, (count - 1) * this.hop + this.length);
    this.samples = this.samples.slice(count * this.hop);
    this.computed += count;
    const [found] = await this.model.run("preprocess", new this.model.ort.Tensor("float32", piece, [1, piece.length]));
    return found.data;
  }
}

/** Cuts samples of a rate into pieces that can be resampled one by one: each has some of its neighbours. */
export class Pieces {
  /** @param {number} rate samples a second. */
  constructor(rate) {
    [this.size, this.margin] = [Math.round(SECONDS * rate), Math.round(MARGIN * rate)];
    this.rest = new Float32Array(this.margin); // silence before the start
  }

  /** Take the next samples; return pieces that are complete, with their margins. */
  push(samples) {
    this.rest = joined(this.rest, samples);
    const found = [];
    for (; this.rest.length >= this.size + 2 * this.margin; this.rest = this.rest.slice(this.size))
      found.push(this.rest.slice(0, this.size + 2 * this.margin));
    return found;
  }

  /** The rest, with its margins. */
  end() {
    return joined(this.rest, new Float32Array(this.margin));
  }
}

/** The place of the largest number. */
export function largest(row) {
  let best = 0;
  for (let place = 1; place < row.length; place++) if (row[place] > row[best]) best = place;
  return best;
}

const SECONDS = 0.16; // of a piece
export const MARGIN = 0.02; // seconds on each side: whole samples at every usual rate

/** Arrays one after another, as one. */
export function joined(...parts) {
  const whole = new Float32Array(parts.reduce((sum, part) => sum + part.length, 0));
  let start = 0;
  for (const part of parts) {
    whole.set(part, start);
    start += part.length;
  }
  return whole;
}
