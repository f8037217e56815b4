// Mouse, pen and fingers on the picture. A click is a point, a drag is a box; two fingers or the middle button move.

const SLOP = { mouse: 4, pen: 6, touch: 10 };

/**
 * @param {HTMLCanvasElement} canvas
 * @param {import("./view.js").View} view
 * @param {object} on
 * @param {() => string} on.mode  `include`, `exclude` or `box`.
 * @param {(at: {x: number, y: number}, include: boolean) => void} on.point  In pixels of the picture.
 * @param {(box: number[] | null) => void} on.boxing  The box as it is drawn; null: given up.
 * @param {(box: number[]) => void} on.box
 * @param {(at: {x: number, y: number} | null) => void} on.hover
 * @param {() => void} on.viewed  The view has changed.
 */
export function followPointer(canvas, view, on) {
  const fingers = new Map();
  let press = null;

  const placeOf = (event) => {
    const { left, top } = canvas.getBoundingClientRect();
    return { x: event.clientX - left, y: event.clientY - top };
  };
  const boxTo = (at) => {
    const [a, b] = [view.clamp(view.toPicture(press.at)), view.clamp(view.toPicture(at))];
    const low = [Math.floor(Math.min(a.x, b.x)), Math.floor(Math.min(a.y, b.y))];
    return [...low, Math.ceil(Math.max(a.x, b.x)), Math.ceil(Math.max(a.y, b.y))];
  };
  const giveUp = () => {
    if (press?.boxing) on.boxing(null);
    press = null;
  };

  canvas.addEventListener("pointerdown", (event) => {
    const at = placeOf(event);
    canvas.setPointerCapture(event.pointerId);
    fingers.set(event.pointerId, at);
    if (fingers.size > 1) {
      giveUp();
      return;
    }
    press = { at, button: event.button, exclude: event.altKey || event.ctrlKey || event.button === 2 };
  });

  canvas.addEventListener("pointermove", (event) => {
    const at = placeOf(event);
    const before = fingers.get(event.pointerId);
    if (before) fingers.set(event.pointerId, at);
    if (fingers.size === 2 && before) {
      pinch(event.pointerId, before, at);
    } else if (press && press.button === 1) {
      view.move(at.x - before.x, at.y - before.y);
      on.viewed();
    } else if (press && press.button === 0) {
      press.boxing ||= Math.hypot(at.x - press.at.x, at.y - press.at.y) > (SLOP[event.pointerType] ?? SLOP.mouse);
      if (press.boxing) on.boxing(boxTo(at));
    }
    const over = view.toPicture(at);
    on.hover(view.holds(over) ? over : null);
  });

  canvas.addEventListener("pointerup", (event) => {
    fingers.delete(event.pointerId);
    if (!press) return;
    const { at, button, boxing, exclude } = press;
    const box = boxing ? boxTo(placeOf(event)) : null;
    giveUp();
    if (box) {
      if (box[2] > box[0] && box[3] > box[1]) on.box(box);
      return;
    }
    const place = view.toPicture(at);
    if (button === 1 || !view.holds(place)) return;
    if (on.mode() === "box" && !exclude) on.boxHint();
    else on.point(place, !exclude && on.mode() !== "exclude");
  });

  canvas.addEventListener("pointercancel", (event) => {
    fingers.delete(event.pointerId);
    giveUp();
  });
  canvas.addEventListener("pointerleave", () => on.hover(null));
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener(
    "wheel",
    (event) => {
      event.preventDefault();
      // A notch of a wheel is 100 pixels or 3 lines.
      const pixels = event.deltaY * (event.deltaMode === WheelEvent.DOM_DELTA_LINE ? 33 : 1);
      view.zoom(Math.exp(-Math.max(-300, Math.min(300, pixels)) / (event.ctrlKey ? 100 : 400)), placeOf(event));
      on.viewed();
    },
    { passive: false },
  );

  function pinch(movedId, before, after) {
    const [other] = [...fingers].filter(([id]) => id !== movedId).map(([, place]) => place);
    const spread = (place) => Math.max(1, Math.hypot(place.x - other.x, place.y - other.y));
    // The middle between the fingers moves half as far as the one that moves.
    view.move((after.x - before.x) / 2, (after.y - before.y) / 2);
    view.zoom(spread(after) / spread(before), { x: (after.x + other.x) / 2, y: (after.y + other.y) / 2 });
    on.viewed();
  }
}
