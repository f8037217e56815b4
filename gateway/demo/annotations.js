// What the person has drawn: objects with their points, box and label. A pure value: every edit returns a new one, so
// that undo is keeping the old one.

/** @typedef {{x: number, y: number, label: 0 | 1}} Point  In pixels of the picture; 1 is on the object, 0 off it. */
/**
 * @typedef {object} Thing
 * @property {number} id
 * @property {string} label
 * @property {Point[]} points
 * @property {number[] | null} box  x_min, y_min, x_max, y_max in pixels of the picture.
 * @property {number | null} choice  The candidate chosen by hand; null: the best by score.
 * @property {object | null} given  A mask that came without a prompt.
 */

export const NOTHING = Object.freeze({ things: Object.freeze([]), activeId: null, nextId: 1 });

/** The active thing, or null. */
export function active(annotations) {
  return annotations.things.find((thing) => thing.id === annotations.activeId) ?? null;
}

export function hasPrompt(thing) {
  return thing.points.length > 0 || thing.box !== null;
}

/** What a thing's mask is filed under: the same prompt has the same masks, another prompt never has. */
export function promptKey(thing) {
  return thing.given ? `given ${thing.id}` : JSON.stringify([thing.box, thing.points.map((p) => [p.x, p.y, p.label])]);
}

export function withNewThing(annotations, given = null) {
  const id = annotations.nextId;
  const thing = { id, label: `Object ${id}`, points: [], box: null, choice: null, given };
  return { things: [...annotations.things, thing], activeId: id, nextId: id + 1 };
}

export function withPoint(annotations, point) {
  return changed(promptable(annotations), (thing) => ({ ...thing, points: [...thing.points, point] }));
}

export function withBox(annotations, box) {
  return changed(promptable(annotations), (thing) => ({ ...thing, box }));
}

export function withChoice(annotations, choice) {
  return changed(annotations, (thing) => ({ ...thing, choice }));
}

export function withLabel(annotations, id, label) {
  return changed(annotations, (thing) => ({ ...thing, label }), id);
}

export function withActive(annotations, id) {
  return { ...annotations, activeId: id };
}

export function without(annotations, id) {
  const things = annotations.things.filter((thing) => thing.id !== id);
  const activeId = annotations.activeId === id ? (things.at(-1)?.id ?? null) : annotations.activeId;
  return { ...annotations, things, activeId };
}

/** A prompt begins a thing where there is none, or where the active one's mask has no prompt to add to. */
function promptable(annotations) {
  const thing = active(annotations);
  return thing && !thing.given ? annotations : withNewThing(annotations);
}

function changed(annotations, change, id = annotations.activeId) {
  return { ...annotations, things: annotations.things.map((thing) => (thing.id === id ? change(thing) : thing)) };
}
