/** Cuts a stream of samples at pauses. */

import { joined } from "./stream.js";

const FRAME = 0.02; // seconds over which loudness is measured
const PAUSE = 0.6; // seconds that end a segment
const LEAD = 0.3; // seconds kept before speech
const LONGEST = 28; // seconds of a segment; a model takes 30
const ABOVE = 3; // times the loudness of the background is speech
const SILENCE = 0.0007; // the least loudness of a background

export class Segmenter {
  /** @param {number} rate samples a second. */
  constructor(rate) {
    this.rate = rate;
    this.size = Math.round(FRAME * rate);
    this.rest = new Float32Array(0); // less than a frame
    this.floor = SILENCE; // loudness of the background
    this.#begin([]);
  }

  /**
   * Take the next samples.
   *
   * @returns {Float32Array[]} segments that ended.
   */
  push(samples) {
    const all = joined(this.rest, samples);
    const ended = [];
    let start = 0;
    for (; start + this.size <= all.length; start += this.size) {
      const found = this.#frame(all.slice(start, start + this.size));
      if (found) ended.push(found);
    }
    this.rest = all.slice(start);
    return ended;
  }

  /** The segment so far; null where there is no speech. */
  current() {
    return this.spoken ? joined(...this.frames) : null;
  }

  /** The last segment, when no samples follow; null where there is none. */
  end() {
    const last = this.current();
    this.#begin([]);
    return last;
  }

  #begin(frames) {
    this.frames = frames;
    this.spoken = false;
    this.quiet = 0; // frames since speech
  }

  #frame(frame) {
    const loudness = Math.sqrt(frame.reduce((sum, one) => sum + one * one, 0) / frame.length);
    // The background is followed down within some frames, and up by 1 % a frame.
    const { floor } = this;
    const next = loudness < floor ? 0.7 * floor + 0.3 * loudness : Math.min(loudness, 1.01 * floor);
    this.floor = Math.max(SILENCE, next);
    const speech = loudness > ABOVE * this.floor;
    this.frames.push(frame);
    this.spoken ||= speech;
    this.quiet = speech ? 0 : this.quiet + 1;
    if (!this.spoken) {
      this.frames = this.frames.slice(-Math.round(LEAD / FRAME));
      return null;
    }
    if (this.quiet * FRAME < PAUSE && this.frames.length * FRAME < LONGEST) return null;
    const found = joined(...this.frames);
    this.#begin([]);
    return found;
  }
}
