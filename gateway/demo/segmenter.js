// Brings the masks up to what is drawn. At most one request is under way, and it is for what is wanted now: when the
// prompt changes, it is given up and the new one is sent at once.

import { ApiError } from "./api.js";
import { hasPrompt, promptKey } from "./annotations.js";

export class Segmenter {
  #connection;
  #changed;
  #session = null;
  #annotations = null;
  #running = null;

  /** `changed` is called when a session's phase, results or failures did. */
  constructor(connection, changed) {
    this.#connection = connection;
    this.#changed = changed;
  }

  /** What is wanted now. */
  want(session, annotations) {
    this.#session = session;
    this.#annotations = annotations;
    const next = this.#next();
    const running = this.#running;
    if (running && (running.session !== session || (running.key !== "picture" && running.key !== next?.key))) {
      running.controller.abort();
      this.#running = null;
    }
    if (!this.#running && next && !this.#connection.trouble) this.#run(next);
  }

  /** Whether a thing's mask is being waited for. */
  isPending(thing) {
    return missing(this.#session, thing);
  }

  #next() {
    const session = this.#session;
    if (!session || session.phase === "failed") return null;
    if (session.phase !== "ready") {
      return { key: "picture", session, work: (signal) => session.embed(signal) };
    }
    const { things, activeId } = this.#annotations;
    const first = things.filter((thing) => thing.id === activeId);
    const thing = [...first, ...things].find((candidate) => missing(session, candidate));
    if (!thing) return null;
    const key = promptKey(thing);
    return { key, session, work: (signal) => session.segment(key, promptOf(thing), signal) };
  }

  async #run({ key, session, work }) {
    const running = { key, session, controller: new AbortController() };
    this.#running = running;
    this.#changed();
    let failure = null;
    try {
      await work(running.controller.signal);
    } catch (error) {
      failure = error;
    }
    // Given up: something newer is under way.
    if (this.#running !== running) return;
    this.#running = null;
    if (!failure) this.#connection.succeeded();
    else if (failure.transient) this.#connection.lose(failure);
    else if (!(failure instanceof ApiError)) throw failure;
    else if (key !== "picture") session.failures.set(key, failure);
    this.#changed();
  }
}

function missing(session, thing) {
  const key = promptKey(thing);
  return Boolean(session) && hasPrompt(thing) && !session.results.has(key) && !session.failures.has(key);
}

function promptOf({ points, box }) {
  return {
    ...(points.length > 0 && {
      point_coords: points.map(({ x, y }) => [x, y]),
      point_labels: points.map(({ label }) => label),
    }),
    ...(box && { box }),
  };
}
