// One picture and what the server has said about it. The picture is sent once; after that, clicks send its id.

import { ApiError, LONG_S, SHORT_S } from "./api.js";
import { asPng, dataUrlOf } from "./picture.js";

export class Session {
  #api;
  /** `new`: the server does not have it (any more); `sending`; `ready`: clicks may be sent; `failed`. */
  phase = "new";
  imageId = null;
  /** Masks by the prompt they were predicted for: a mask can never be drawn for another. */
  results = new Map();
  /** Errors by prompt that asking again would not change. */
  failures = new Map();
  error = null;
  /** How often the picture had to be sent. */
  sent = 0;
  #misses = 0;

  constructor(api, picture) {
    this.#api = api;
    this.picture = picture;
  }

  /** Send the picture and keep its id. */
  async embed(signal) {
    this.phase = "sending";
    try {
      await this.#embedOnce(signal);
      this.phase = "ready";
    } catch (error) {
      this.error = error;
      this.phase = error instanceof ApiError && !error.transient ? "failed" : "new";
      throw error;
    }
  }

  async #embedOnce(signal) {
    const { body } = await this.#api.post("sam/embed_image", { image: await this.image(), format: "none" }, signal);
    const [height, width] = body.original_size;
    if (width !== this.picture.width || height !== this.picture.height) {
      // Turned or scaled by a rule that only one of the two knows: send what is seen.
      if (this.sent > 1) throw new ApiError(`The server reads this picture as ${width} x ${height} pixels.`);
      this.picture = await asPng(this.picture);
      return this.#embedOnce(signal);
    }
    this.imageId = body.image_id;
  }

  /** Ask for the three masks of a prompt and file them under `key`. */
  async segment(key, prompt, signal) {
    let answer;
    try {
      answer = await this.#ask({ image_id: this.imageId, ...prompt }, signal, SHORT_S);
    } catch (error) {
      const forgotten = error.reason === "EMBEDDING_NOT_FOUND";
      this.#misses += Number(forgotten);
      if (forgotten && this.#misses === 1) {
        this.phase = "new";
        return;
      }
      // The server cannot keep anything: the click takes the picture along.
      if (!forgotten && error.reason !== "STORE_UNAVAILABLE") throw error;
      answer = await this.#ask({ image: await this.image(), ...prompt }, signal, LONG_S);
    }
    this.#misses = 0;
    const { body, tripMs, serverMs } = answer;
    const masks = body.masks.map((mask, index) => ({ ...mask, score: body.scores[index] }));
    this.results.set(key, { masks, tripMs, serverMs });
  }

  #ask(prompt, signal, patienceS) {
    const body = { ...prompt, multimask_output: true, format: "rle" };
    return this.#api.post("sam/segment_image", body, signal, patienceS);
  }

  /** The picture as a request holds it. */
  async image() {
    this.sent += 1;
    return { type: "base64", value: await dataUrlOf(this.picture.blob) };
  }
}

/** The candidate that counts: the one chosen by hand, or the best by its score. */
export function chosenOf(thing, result) {
  if (thing.choice !== null && thing.choice < result.masks.length) return thing.choice;
  return result.masks.reduce((best, mask, index, masks) => (mask.score > masks[best].score ? index : best), 0);
}
