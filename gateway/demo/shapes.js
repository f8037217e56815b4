// What is drawn and measured of a mask, worked out once for each.

import { ringsOf } from "./outline.js";
import { unpack } from "./rle.js";

const known = new WeakMap();

/** Of a mask `{size, counts}`: its area in pixels, its bounds, its rings, and its outline as a path. */
export function shapeOf(mask) {
  let shape = known.get(mask);
  if (!shape) {
    const unpacked = unpack(mask);
    const rings = ringsOf(unpacked);
    shape = { area: unpacked.area, bounds: unpacked.bounds, rings, path: pathOf(rings) };
    known.set(mask, shape);
  }
  return shape;
}

/** Fill it with the rule "evenodd": holes are rings as well. */
function pathOf(rings) {
  const path = new Path2D();
  for (const ring of rings) {
    path.moveTo(ring[0], ring[1]);
    for (let i = 2; i < ring.length; i += 2) path.lineTo(ring[i], ring[i + 1]);
    path.closePath();
  }
  return path;
}
