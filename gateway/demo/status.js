// What the page says in words: one line about what happened, and what is wrong with what to do about it.

const byId = (id) => document.getElementById(id);

export class Status {
  #problem = null;
  #dismissed = null;
  #reading = 0;
  #readingSince = 0;

  /** `retry` is called when the person wants what failed to be tried again. */
  constructor(retry) {
    byId("problem-retry").addEventListener("click", retry);
    byId("problem-close").addEventListener("click", () => {
      this.#dismissed = this.#problem;
      byId("problem").hidden = true;
    });
  }

  /** Say what happened; screen readers read it out. */
  say(words) {
    if (byId("status").textContent !== words) byId("status").textContent = words;
  }

  /** For screen readers alone. */
  speak(words) {
    byId("spoken").textContent = words;
  }

  /** Show what is wrong, an error, or null if nothing is. */
  problem(error, { canRetry = false, secondsLeft = null } = {}) {
    const changed = error !== this.#problem;
    this.#problem = error;
    const seen = error !== null && error !== this.#dismissed;
    byId("problem").hidden = !seen;
    byId("problem-wait").textContent = secondsLeft === null ? "" : waiting(secondsLeft);
    byId("problem-retry").hidden = !canRetry;
    byId("problem-close").hidden = secondsLeft !== null;
    // Written anew it would be read out anew.
    if (seen && (changed || !byId("problem-text").textContent)) byId("problem-text").textContent = error.message;
    if (!seen) byId("problem-text").textContent = "";
  }

  /** Show for how long the picture has been worked on, or that it no longer is. */
  reading(isReading) {
    byId("progress").hidden = !isReading;
    if (isReading === this.#reading > 0) return;
    clearInterval(this.#reading);
    this.#reading = 0;
    if (!isReading) return;
    this.#readingSince = performance.now();
    const tell = () => {
      const seconds = Math.floor((performance.now() - this.#readingSince) / 1000);
      byId("progress-text").textContent = `Reading the picture${seconds > 0 ? ` · ${seconds} s` : ""}`;
    };
    tell();
    this.#reading = setInterval(tell, 250);
  }
}

function waiting(seconds) {
  return seconds > 0 ? `Trying again in ${seconds} s.` : "Trying again now.";
}
