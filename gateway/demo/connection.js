// Whether the server can be reached. When it cannot, it is asked again by itself, ever less often, until it answers.

const FIRST_S = 1;
const LONGEST_S = 8;

export class Connection {
  #api;
  #on;
  #failures = 0;
  #timer = 0;
  #until = 0;
  /** What is wrong while nothing is sent; null while all is well. */
  trouble = null;

  /** `on.changed` is called whenever `trouble` or `secondsLeft` does, `on.recovered` when the trouble is over. */
  constructor(api, on) {
    this.#api = api;
    this.#on = on;
    addEventListener("online", () => this.trouble && this.tryNow());
  }

  get secondsLeft() {
    return Math.max(0, Math.ceil((this.#until - performance.now()) / 1000));
  }

  /** Hold everything back for a while because of a transient error. */
  lose(error) {
    this.trouble = error;
    const patience = Math.max(error.waitS, Math.min(FIRST_S * 2 ** this.#failures, LONGEST_S));
    this.#failures += 1;
    this.#until = performance.now() + patience * 1000;
    this.#tick();
  }

  /** A request was answered. */
  succeeded() {
    this.#failures = 0;
    this.#settle();
  }

  async tryNow() {
    clearTimeout(this.#timer);
    this.#until = performance.now();
    this.#on.changed();
    try {
      await this.#api.get("readiness");
    } catch (error) {
      this.lose(error);
      return;
    }
    // What failed is sent again now; should it fail again, the next wait is longer.
    this.#settle();
  }

  #settle() {
    clearTimeout(this.#timer);
    if (!this.trouble) return;
    this.trouble = null;
    this.#on.recovered();
    this.#on.changed();
  }

  #tick() {
    clearTimeout(this.#timer);
    this.#on.changed();
    const left = this.#until - performance.now();
    this.#timer = left > 0 ? setTimeout(() => this.#tick(), Math.min(left, 500)) : setTimeout(() => this.tryNow());
  }
}
