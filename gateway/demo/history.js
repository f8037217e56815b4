// Undo and redo over values that never change.

const LONGEST = 500;

export class History {
  #past = [];
  #future = [];

  constructor(present) {
    this.present = present;
  }

  get canUndo() {
    return this.#past.length > 0;
  }

  get canRedo() {
    return this.#future.length > 0;
  }

  /** A step of its own. */
  commit(next) {
    this.#past.push(this.present);
    if (this.#past.length > LONGEST) this.#past.shift();
    this.#future = [];
    this.present = next;
  }

  /** A change that undo passes over, such as which object is looked at. */
  amend(next) {
    this.present = next;
  }

  /** Go back a step; false if there is none. */
  undo() {
    return this.#step(this.#past, this.#future);
  }

  /** Go forward a step; false if there is none. */
  redo() {
    return this.#step(this.#future, this.#past);
  }

  #step(from, to) {
    if (from.length === 0) return false;
    to.push(this.present);
    this.present = from.pop();
    return true;
  }
}
