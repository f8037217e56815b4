// The server's public routes, and its errors in words.

const ROOT = new URL("../", import.meta.url);
const KEY_NAME = "samovar-api-key";
// How long an answer is waited for, in seconds. Reading a picture may take a slow server minutes; a click should not.
export const LONG_S = 180;
export const SHORT_S = 15;
const TRANSIENT = new Set([429, 502, 503, 504]);

/** Something that was not answered. `transient`: the same request may succeed later, by itself. */
export class ApiError extends Error {
  constructor(message, { status = 0, reason = "", transient = false, waitS = 0 } = {}) {
    super(message);
    Object.assign(this, { status, reason, transient, waitS });
  }
}

export class Api {
  // Gone with the tab.
  #key = sessionStorage.getItem(KEY_NAME) ?? "";

  set key(key) {
    this.#key = key;
    sessionStorage.setItem(KEY_NAME, key);
  }

  get(path) {
    return this.#ask(path, { method: "GET" }, SHORT_S);
  }

  post(path, body, signal, patienceS = LONG_S) {
    const headers = { "Content-Type": "application/json" };
    return this.#ask(path, { method: "POST", headers, body: JSON.stringify(body) }, patienceS, signal);
  }

  /** An answer that comes as JSON line by line, each as it comes. */
  async *lines(path, body, signal, patienceS) {
    const headers = { "Content-Type": "application/json" };
    const init = { method: "POST", headers, body: JSON.stringify(body) };
    const response = await this.#send(path, init, patienceS, signal);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { done, value } = await answered(() => reader.read(), signal);
      const parts = (rest + (value ?? "")).split("\n");
      rest = parts.pop();
      yield* parts.map((line) => JSON.parse(line));
      if (done) return;
    }
  }

  /** The bytes of a file that comes with the page. */
  async file(name) {
    const response = await answered(() => fetch(new URL(name, import.meta.url)));
    if (!response.ok) throw await errorOf(response);
    return answered(() => response.blob());
  }

  async #ask(path, init, patienceS, signal) {
    const started = performance.now();
    const response = await this.#send(path, init, patienceS, signal);
    const body = await answered(() => response.json(), signal);
    return { body, tripMs: performance.now() - started, serverMs: totalOf(response.headers.get("Server-Timing")) };
  }

  async #send(path, init, patienceS, signal) {
    const headers = { ...init.headers, ...(this.#key && { Authorization: `Bearer ${this.#key}` }) };
    const limit = AbortSignal.timeout(1000 * patienceS);
    const either = signal ? AbortSignal.any([signal, limit]) : limit;
    const url = new URL(path, ROOT);
    const response = await answered(() => fetch(url, { ...init, headers, signal: either, cache: "no-store" }), signal);
    if (!response.ok) throw await errorOf(response);
    return response;
  }
}

/** What the network brings; an error in words if it brings nothing, unless `signal` says that the caller gave up. */
async function answered(ask, signal) {
  try {
    return await ask();
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new ApiError("The server does not answer. It may be restarting, or this device is offline.", {
      transient: true,
    });
  }
}

async function errorOf(response) {
  const { status } = response;
  let body = {};
  try {
    body = await response.json();
  } catch {
    // A proxy's own page: the status has to do.
  }
  const message = body.message ?? `The server, or something in front of it, answered with HTTP status ${status}.`;
  const waitS = Number(response.headers.get("Retry-After")) || 0;
  return new ApiError(message, { status, reason: body.reason ?? "", transient: TRANSIENT.has(status), waitS });
}

/** The milliseconds that the whole request took in the server. */
function totalOf(timing) {
  const found = /(?:^|,)\s*total;dur=([\d.]+)/.exec(timing ?? "");
  return found ? Number(found[1]) : null;
}
