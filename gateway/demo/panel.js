// The panel: candidates of the active object, the list of objects, and the downloads.

import { active, hasPrompt, promptKey } from "./annotations.js";
import { paintThumbnail } from "./painter.js";
import { colourOf } from "./palette.js";
import { chosenOf } from "./session.js";

const byId = (id) => document.getElementById(id);

export class Panel {
  #commands;
  #candidates = [];
  #shown = null;
  #rows = new Map();

  constructor(commands) {
    this.#commands = commands;
    for (let index = 0; index < 3; index++) this.#candidates.push(this.#newCandidate(index));
    byId("new-object").addEventListener("click", commands.newThing);
    for (const button of document.querySelectorAll("[data-export]")) {
      button.addEventListener("click", () => commands.download(button.dataset.export));
    }
  }

  /** Show annotations; `isPending` tells whether a thing's mask is awaited, `found` is what could be downloaded. */
  show(annotations, session, isPending, found) {
    this.#showCandidates(active(annotations), session, isPending);
    this.#showObjects(annotations, session, isPending);
    byId("new-object").disabled = !session;
    for (const button of document.querySelectorAll("[data-export]")) button.disabled = found.length === 0;
  }

  #newCandidate(index) {
    const label = byId("candidate-row").content.cloneNode(true).querySelector("label");
    const input = label.querySelector("input");
    input.value = String(index);
    input.addEventListener("change", () => this.#commands.choose(index));
    label.querySelector("kbd").textContent = String(index + 1);
    byId("candidates").append(label);
    return { label, input, canvas: label.querySelector("canvas"), score: label.querySelector(".score") };
  }

  #showCandidates(thing, session, isPending) {
    const result = thing && session?.results.get(promptKey(thing));
    const awaited = Boolean(thing) && !result && isPending(thing);
    const box = byId("candidates");
    box.classList.toggle("awaited", awaited);
    box.disabled = awaited;
    box.hidden = !result && !(awaited && this.#shown?.id === thing.id);
    byId("candidates-empty").hidden = Boolean(result) || !box.hidden;
    byId("timing").hidden = !result;
    if (!result) {
      if (awaited) for (const { score } of this.#candidates) score.textContent = "…";
      return;
    }
    const chosen = chosenOf(thing, result);
    const redraw = this.#shown?.result !== result || this.#shown?.id !== thing.id;
    this.#candidates.forEach(({ label, input, canvas, score }, index) => {
      const mask = result.masks[index];
      label.hidden = !mask;
      if (!mask) return;
      if (redraw) paintThumbnail(canvas, session.picture, mask, colourOf(thing.id));
      input.checked = index === chosen;
      input.setAttribute("aria-label", `Candidate ${index + 1}, score ${mask.score.toFixed(2)}`);
      score.textContent = mask.score.toFixed(2);
    });
    this.#shown = { id: thing.id, result };
    byId("timing-score").textContent = result.masks[chosen].score.toFixed(3);
    byId("timing-trip").textContent = milliseconds(result.tripMs);
    byId("timing-server").textContent = result.serverMs === null ? "not told" : milliseconds(result.serverMs);
  }

  #showObjects({ things, activeId }, session, isPending) {
    byId("objects-count").textContent = things.length > 0 ? String(things.length) : "";
    byId("objects-empty").hidden = things.length > 0;
    const list = byId("objects");
    for (const [id, row] of this.#rows) {
      if (things.some((thing) => thing.id === id)) continue;
      row.remove();
      this.#rows.delete(id);
    }
    things.forEach((thing, index) => {
      const row = this.#rows.get(thing.id) ?? this.#newRow(thing.id);
      if (list.children[index] !== row) list.insertBefore(row, list.children[index] ?? null);
      this.#showRow(row, thing, thing.id === activeId, session, isPending);
    });
  }

  #newRow(id) {
    const row = byId("object-row").content.cloneNode(true).querySelector("li");
    row.querySelector(".swatch").style.setProperty("--colour", colourOf(id));
    row.querySelector(".swatch").textContent = String(id);
    const input = row.querySelector("input");
    row.querySelector(".pick").addEventListener("click", () => this.#commands.activate(id));
    input.addEventListener("focus", () => this.#commands.activate(id));
    input.addEventListener("change", () => this.#commands.rename(id, input.value.trim()));
    input.addEventListener("keydown", (event) => event.key === "Enter" && input.blur());
    row.querySelector(".remove").addEventListener("click", () => {
      this.#commands.remove(id);
      // The button is gone with its row; the focus goes where work goes on.
      byId("canvas").focus();
    });
    this.#rows.set(id, row);
    return row;
  }

  #showRow(row, thing, isActive, session, isPending) {
    const input = row.querySelector("input");
    if (document.activeElement !== input) input.value = thing.label;
    input.setAttribute("aria-label", `Label of object ${thing.id}`);
    row.querySelector(".pick").setAttribute("aria-label", `Work on ${thing.label}`);
    row.querySelector(".remove").setAttribute("aria-label", `Remove ${thing.label}`);
    row.querySelector(".remove").title = `Remove ${thing.label}`;
    if (isActive) row.setAttribute("aria-current", "true");
    else row.removeAttribute("aria-current");
    const result = session?.results.get(promptKey(thing));
    const state = row.querySelector(".state");
    state.classList.toggle("awaited", !result && isPending(thing));
    if (result) state.textContent = result.masks[chosenOf(thing, result)].score.toFixed(2);
    else if (isPending(thing)) state.textContent = "…";
    else state.textContent = hasPrompt(thing) ? "failed" : "no clicks";
  }
}

export function milliseconds(ms) {
  return ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`;
}
