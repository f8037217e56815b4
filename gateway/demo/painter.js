// Draws the picture and what lies over it. Sizes of marks are in CSS pixels, whatever the zoom.

import { promptKey } from "./annotations.js";
import { colourOf } from "./palette.js";
import { chosenOf } from "./session.js";
import { shapeOf } from "./shapes.js";

const INCLUDE = "#12805c";
const EXCLUDE = "#c8321f";

export class Painter {
  #canvas;
  #context;
  #frame = 0;
  #scene = null;

  constructor(canvas) {
    this.#canvas = canvas;
    this.#context = canvas.getContext("2d");
  }

  /** Draw at the next frame: `{session, annotations, view, ghost, box, crosshair}`. */
  paint(scene) {
    this.#scene = scene;
    this.#frame ||= requestAnimationFrame(() => {
      this.#frame = 0;
      this.#draw(this.#scene);
    });
  }

  #draw({ session, annotations, view, ghost, box, crosshair }) {
    const context = this.#context;
    const ratio = devicePixelRatio;
    const [width, height] = [this.#canvas.clientWidth, this.#canvas.clientHeight];
    if (this.#canvas.width !== Math.round(width * ratio) || this.#canvas.height !== Math.round(height * ratio)) {
      this.#canvas.width = Math.round(width * ratio);
      this.#canvas.height = Math.round(height * ratio);
    }
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    context.clearRect(0, 0, width, height);
    if (!session) return;
    const { picture } = session;
    context.setTransform(ratio * view.scale, 0, 0, ratio * view.scale, ratio * view.x, ratio * view.y);
    // Pixels are to be seen as such where they are large.
    context.imageSmoothingEnabled = view.scale < 3;
    context.imageSmoothingQuality = "high";
    context.drawImage(picture.bitmap, 0, 0);
    const { things, activeId } = annotations;
    for (const thing of things) {
      const result = session.results.get(promptKey(thing));
      if (result) this.#mask(result.masks[chosenOf(thing, result)], thing.id, thing.id === activeId, view.scale);
    }
    if (ghost) this.#ghost(ghost.mask, ghost.id, view.scale);
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    const place = ({ x, y }) => [view.x + x * view.scale, view.y + y * view.scale];
    for (const thing of things) if (thing.id === activeId) this.#prompt(thing, place);
    if (box) this.#box(box, place, "#fff");
    if (crosshair) this.#crosshair(place({ x: crosshair.x + 0.5, y: crosshair.y + 0.5 }), width, height);
  }

  #mask(mask, id, isActive, scale) {
    const context = this.#context;
    const { path } = shapeOf(mask);
    context.lineJoin = "round";
    context.fillStyle = colourOf(id);
    context.globalAlpha = isActive ? 0.42 : 0.26;
    context.fill(path, "evenodd");
    context.globalAlpha = isActive ? 0.9 : 0.5;
    context.strokeStyle = "#fff";
    context.lineWidth = (isActive ? 3.6 : 2.6) / scale;
    context.stroke(path);
    context.globalAlpha = 1;
    context.strokeStyle = colourOf(id);
    context.lineWidth = (isActive ? 2 : 1.4) / scale;
    context.stroke(path);
  }

  /** Where the last mask was, while the next one is awaited: a faint dotted line that no one takes for an answer. */
  #ghost(mask, id, scale) {
    const context = this.#context;
    context.globalAlpha = 0.55;
    context.strokeStyle = colourOf(id);
    context.lineWidth = 1.2 / scale;
    context.setLineDash([2 / scale, 4 / scale]);
    context.stroke(shapeOf(mask).path);
    context.setLineDash([]);
    context.globalAlpha = 1;
  }

  #prompt({ points, box, id }, place) {
    if (box) this.#box(box, place, colourOf(id));
    const context = this.#context;
    for (const point of points) {
      const [x, y] = place({ x: point.x + 0.5, y: point.y + 0.5 });
      context.beginPath();
      context.arc(x, y, 7, 0, 2 * Math.PI);
      context.fillStyle = point.label === 1 ? INCLUDE : EXCLUDE;
      context.shadowColor = "rgb(0 0 0 / 45%)";
      context.shadowBlur = 5;
      context.fill();
      context.shadowBlur = 0;
      context.lineWidth = 2;
      context.strokeStyle = "#fff";
      context.stroke();
      context.beginPath();
      context.moveTo(x - 3.2, y);
      context.lineTo(x + 3.2, y);
      if (point.label === 1) {
        context.moveTo(x, y - 3.2);
        context.lineTo(x, y + 3.2);
      }
      context.lineWidth = 1.8;
      context.stroke();
    }
  }

  #box([x0, y0, x1, y1], place, colour) {
    const context = this.#context;
    const [left, top] = place({ x: x0, y: y0 });
    const [right, bottom] = place({ x: x1, y: y1 });
    context.lineWidth = 3.4;
    context.strokeStyle = "rgb(0 0 0 / 50%)";
    context.strokeRect(left, top, right - left, bottom - top);
    context.lineWidth = 1.6;
    context.strokeStyle = colour;
    context.setLineDash([7, 4]);
    context.strokeRect(left, top, right - left, bottom - top);
    context.setLineDash([]);
  }

  #crosshair([x, y], width, height) {
    const context = this.#context;
    for (const [colour, line] of [["rgb(0 0 0 / 60%)", 3], ["#fff", 1]]) {
      context.strokeStyle = colour;
      context.lineWidth = line;
      context.beginPath();
      context.moveTo(0, y);
      context.lineTo(x - 9, y);
      context.moveTo(x + 9, y);
      context.lineTo(width, y);
      context.moveTo(x, 0);
      context.lineTo(x, y - 9);
      context.moveTo(x, y + 9);
      context.lineTo(x, height);
      context.stroke();
      context.beginPath();
      context.arc(x, y, 9, 0, 2 * Math.PI);
      context.stroke();
    }
  }
}

/** A small picture of a candidate: the mask in colour, everything else pale. */
export function paintThumbnail(canvas, { bitmap, width, height }, mask, colour) {
  const context = canvas.getContext("2d");
  const scale = Math.min(canvas.width / width, canvas.height / height);
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.translate((canvas.width - width * scale) / 2, (canvas.height - height * scale) / 2);
  context.scale(scale, scale);
  context.globalAlpha = 0.55;
  context.filter = "grayscale(1)";
  context.drawImage(bitmap, 0, 0);
  context.filter = "none";
  context.globalAlpha = 0.9;
  context.fillStyle = colour;
  context.fill(shapeOf(mask).path, "evenodd");
}
