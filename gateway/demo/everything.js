// "Segment everything", where the server has a route for it: its own description of itself tells.

import { ApiError } from "./api.js";

const ROUTE = "sam/segment_everything";
// A thousand clicks' work.
const PATIENCE_S = 900;
// What the picture itself, sent along, makes good.
const FORGOTTEN = new Set(["EMBEDDING_NOT_FOUND", "STORE_UNAVAILABLE"]);

const byId = (id) => document.getElementById(id);

export class Everything {
  #api;
  #on;
  #running = null;

  /**
   * @param {import("./api.js").Api} api
   * @param {object} on
   * @param {() => import("./session.js").Session | null} on.session  The picture that is open.
   * @param {(masks: object[], tripMs: number) => void} on.found  Each mask with its score.
   * @param {(error: Error) => void} on.failed
   * @param {(words: string) => void} on.say
   */
  constructor(api, on) {
    this.#api = api;
    this.#on = on;
    byId("everything").addEventListener("click", () => this.#start());
    byId("work-stop").addEventListener("click", () => {
      this.#end();
      on.say("Stopped.");
      byId("canvas").focus();
    });
  }

  /** Show the button if the server offers it. */
  async offer() {
    const { body } = await this.#api.get("openapi.json");
    byId("everything").hidden = !body.paths[`/${ROUTE}`]?.post;
  }

  /** Follow the picture that is open: work on another one is given up. */
  show(session) {
    if (this.#running && this.#running.session !== session) this.#end();
    byId("everything").disabled = session?.phase !== "ready" || this.#running !== null;
  }

  #end() {
    this.#running?.controller.abort();
    this.#running = null;
    byId("work").hidden = true;
    this.show(this.#on.session());
  }

  async #start() {
    const session = this.#on.session();
    const running = { session, controller: new AbortController() };
    this.#running = running;
    this.show(session);
    this.#tell({ points_done: 0, points_total: 1, masks_found: 0 });
    byId("work").hidden = false;
    byId("work-stop").focus();
    const started = performance.now();
    try {
      const masks = await this.#ask(session, running);
      if (this.#running === running) this.#on.found(masks, performance.now() - started);
    } catch (error) {
      // Given up: by the person, or for another picture.
      if (this.#running === running) this.#on.failed(error);
    }
    if (this.#running === running) this.#end();
  }

  async #ask(session, running) {
    try {
      return await this.#stream({ image_id: session.imageId }, running);
    } catch (error) {
      if (!FORGOTTEN.has(error.reason)) throw error;
      return this.#stream({ image: await session.image() }, running);
    }
  }

  async #stream(picture, { controller }) {
    const body = { ...picture, stream: true };
    for await (const line of this.#api.lines(ROUTE, body, controller.signal, PATIENCE_S)) {
      if (line.error) throw new ApiError(line.error.message, { reason: line.error.reason });
      if (line.result) return line.result.masks.map((mask) => ({ ...mask.segmentation, score: mask.predicted_iou }));
      this.#tell(line.progress);
    }
    throw new ApiError("The server stopped before it was done. Try again.");
  }

  #tell({ points_done: done, points_total: total, masks_found: found }) {
    byId("work-progress").value = done / total;
    byId("work-text").textContent = `Segmenting everything: ${Math.floor((100 * done) / total)} %, ${found} masks`;
  }
}
