// The picture and what is done on it, by pointer and by keys.

import * as edit from "./annotations.js";
import { followKeys } from "./keyboard.js";
import { Painter } from "./painter.js";
import { followPointer } from "./pointer.js";
import { chosenOf } from "./session.js";
import { shapeOf } from "./shapes.js";
import { View } from "./view.js";

// How far an arrow key moves the crosshair, in CSS pixels.
const STEP = 16;
// How long the crosshair rests before its place is read out, in milliseconds.
const REST_MS = 500;

const byId = (id) => document.getElementById(id);

export class Editor {
  #canvas;
  #commands;
  #painter;
  #view = new View();
  #session = null;
  #annotations = edit.NOTHING;
  #picture = null;
  #box = null;
  #crosshair = null;
  #corner = null;
  #usesKeys = false;
  #last = null;
  #rest = 0;

  constructor(canvas, commands) {
    this.#canvas = canvas;
    this.#commands = commands;
    this.#painter = new Painter(canvas);
    followPointer(canvas, this.#view, {
      mode: () => document.querySelector("[name=mode]:checked").value,
      point: (at, include) => (include ? commands.include(at) : commands.exclude(at)),
      boxing: (box) => this.#drawBox(box),
      box: commands.box,
      boxHint: () => commands.say("Drag to draw a box."),
      hover: (at) => this.#hover(at),
      viewed: () => this.#paint(),
    });
    followKeys(canvas, this.#keys());
    canvas.addEventListener("focus", () => this.#useKeys(canvas.matches(":focus-visible")));
    canvas.addEventListener("blur", () => this.#useKeys(false));
    byId("zoom-in").addEventListener("click", () => this.#zoom(1.25));
    byId("zoom-out").addEventListener("click", () => this.#zoom(0.8));
    byId("zoom-fit").addEventListener("click", () => this.#fit());
    byId("new-object-here").addEventListener("click", commands.newThing);
    new ResizeObserver(() => this.#resize()).observe(byId("surface"));
  }

  /** Show another picture. */
  open(picture) {
    this.#picture = picture;
    this.#crosshair = { x: Math.floor(picture.width / 2), y: Math.floor(picture.height / 2) };
    this.#box = this.#corner = this.#last = null;
    this.#canvas.hidden = false;
    byId("tools").hidden = false;
    this.#canvas.setAttribute("aria-label", `${picture.name}, ${picture.width} by ${picture.height} pixels`);
    byId("picture-facts").textContent = `${picture.width} × ${picture.height}`;
    byId("surface").style.setProperty("--aspect", String(picture.height / picture.width));
    this.#resize();
    this.#view.fit();
    this.#canvas.focus({ preventScroll: true });
  }

  /** Draw what was found. */
  show(session, annotations) {
    this.#session = session;
    this.#annotations = annotations;
    this.#paint();
  }

  #paint() {
    if (!this.#session) return;
    byId("zoom-level").textContent = `${Math.round(this.#view.scale * 100)}%`;
    this.#painter.paint({
      session: this.#session,
      annotations: this.#annotations,
      view: this.#view,
      ghost: this.#ghost(),
      box: this.#box ?? this.#boxFromCorner(),
      crosshair: this.#usesKeys ? this.#crosshair : null,
    });
  }

  /** The active object's last mask, while its next one is awaited. */
  #ghost() {
    const thing = edit.active(this.#annotations);
    const result = thing && this.#session.results.get(edit.promptKey(thing));
    if (result) this.#last = { id: thing.id, mask: result.masks[chosenOf(thing, result)] };
    const awaited = thing && !result && edit.hasPrompt(thing) && !this.#session.failures.has(edit.promptKey(thing));
    return awaited && this.#last?.id === thing.id ? this.#last : null;
  }

  #resize() {
    if (!this.#picture) return;
    this.#view.resize({ width: this.#canvas.clientWidth, height: this.#canvas.clientHeight }, this.#picture);
    this.#paint();
  }

  #zoom(factor) {
    this.#view.zoom(factor);
    this.#paint();
  }

  #fit() {
    this.#view.fit();
    this.#paint();
  }

  #drawBox(box) {
    this.#box = box;
    this.#paint();
  }

  #hover(at) {
    if (this.#usesKeys && at) this.#useKeys(false);
    byId("position").textContent = at ? `${Math.floor(at.x)}, ${Math.floor(at.y)}` : "";
  }

  #useKeys(uses) {
    if (uses === this.#usesKeys) return;
    this.#usesKeys = uses;
    if (!uses) this.#corner = null;
    this.#paint();
  }

  #keys() {
    const { include, exclude, box, say } = this.#commands;
    return {
      ...this.#commands,
      moveCrosshair: (dx, dy, fine) => this.#moveCrosshair(dx, dy, fine),
      pointAtCrosshair: (isIncluded) => {
        this.#useKeys(true);
        (isIncluded ? include : exclude)(this.#crosshair);
      },
      boxAtCrosshair: () => {
        this.#useKeys(true);
        const drawn = this.#boxFromCorner();
        if (drawn && drawn[2] > drawn[0] && drawn[3] > drawn[1]) {
          this.#corner = null;
          box(drawn);
          return;
        }
        this.#corner = { ...this.#crosshair };
        say("A box begins here. Move to the opposite corner and press B again.");
        this.#paint();
      },
      giveUpBox: () => {
        if (this.#corner) say("The box is given up.");
        this.#corner = null;
        this.#paint();
      },
      zoom: (factor) => {
        this.#view.zoom(factor);
        this.#view.show(this.#crosshair);
        this.#paint();
      },
      fit: () => this.#fit(),
    };
  }

  #moveCrosshair(dx, dy, fine) {
    this.#useKeys(true);
    const step = fine ? 1 : Math.max(1, Math.round(STEP / this.#view.scale));
    const { width, height } = this.#picture;
    const x = Math.min(Math.max(this.#crosshair.x + dx * step, 0), width - 1);
    const y = Math.min(Math.max(this.#crosshair.y + dy * step, 0), height - 1);
    this.#crosshair = { x, y };
    this.#view.show(this.#crosshair);
    byId("position").textContent = `${x}, ${y}`;
    this.#paint();
    clearTimeout(this.#rest);
    this.#rest = setTimeout(() => this.#commands.speak(`${x}, ${y}${this.#whatIsAt(x, y)}`), REST_MS);
  }

  #whatIsAt(x, y) {
    const context = this.#canvas.getContext("2d");
    const found = this.#annotations.things.filter((thing) => {
      const result = this.#session?.results.get(edit.promptKey(thing));
      if (!result) return false;
      const { path } = shapeOf(result.masks[chosenOf(thing, result)]);
      context.save();
      context.resetTransform();
      const inside = context.isPointInPath(path, x + 0.5, y + 0.5, "evenodd");
      context.restore();
      return inside;
    });
    return found.length > 0 ? `, on ${found.map(({ label }) => label).join(" and ")}` : "";
  }

  /** The box from the corner set by key to the crosshair. */
  #boxFromCorner() {
    if (!this.#corner) return null;
    const [a, b] = [this.#corner, this.#crosshair];
    return [Math.min(a.x, b.x), Math.min(a.y, b.y), Math.max(a.x, b.x), Math.max(a.y, b.y)];
  }
}
