// The outlines of a mask along the edges of its pixels: exact, closed, none touching itself.

// East, south, west, north: a step, and the two pixels ahead of it, to its left and to its right.
const STEP_X = [1, 0, -1, 0];
const STEP_Y = [0, 1, 0, -1];

/**
 * Rings of corners [x0, y0, x1, y1, ...] in pixels of the picture, not closed. Seen with y pointing down, those around
 * the object run clockwise, those around its holes the other way.
 */
export function ringsOf(mask) {
  const { stride, pixels, bounds } = mask;
  const rings = [];
  if (!bounds) return rings;
  // Every ring runs east somewhere: along the upper edge of a pixel that has none above it.
  const begun = new Uint8Array(pixels.length);
  for (let y = bounds.top; y < bounds.bottom; y++) {
    for (let x = bounds.left; x < bounds.right; x++) {
      const at = (y + 1) * stride + x + 1;
      if (pixels[at] && !pixels[at - stride] && !begun[at]) split(walk(mask, begun, x, y), rings);
    }
  }
  return rings;
}

/** Follow one edge of the object, with the object on the right, back to where it began. */
function walk({ stride, pixels }, begun, startX, startY) {
  const corners = [];
  let [x, y, direction] = [startX, startY, 0];
  let crossings = false;
  do {
    // Of the four pixels around the corner (x, y), the lower right one.
    if (direction === 0) begun[(y + 1) * stride + x + 1] = 1;
    x += STEP_X[direction];
    y += STEP_Y[direction];
    const here = (y + 1) * stride + x + 1;
    const around = [here - stride, here, here - 1, here - stride - 1];
    const left = pixels[around[direction]];
    const right = pixels[around[(direction + 1) % 4]];
    // Pixels that meet at a corner alone are not connected: keep to this one.
    if (!right || left) {
      corners.push(x, y);
      crossings ||= !right && left === 1;
      direction = (direction + (right ? 3 : 1)) % 4;
    }
  } while (x !== startX || y !== startY || direction !== 0);
  return { corners, crossings };
}

/** Cut a walk that came to a corner twice into rings that do not touch themselves. */
function split({ corners, crossings }, rings) {
  if (!crossings) {
    rings.push(corners);
    return;
  }
  const path = [];
  const places = new Map();
  for (let i = 0; i < corners.length; i += 2) {
    const corner = `${corners[i]} ${corners[i + 1]}`;
    const seen = places.get(corner);
    if (seen !== undefined) {
      const ring = path.splice(seen);
      for (let j = 0; j < ring.length; j += 2) places.delete(`${ring[j]} ${ring[j + 1]}`);
      rings.push(ring);
    }
    places.set(corner, path.length);
    path.push(corners[i], corners[i + 1]);
  }
  rings.push(path);
}

/** Twice would be the shoelace sum: positive for a ring around the object, negative around a hole. */
export function areaOf(ring) {
  let sum = 0;
  for (let i = 0; i < ring.length; i += 2) {
    const j = (i + 2) % ring.length;
    sum += ring[i] * ring[j + 1] - ring[j] * ring[i + 1];
  }
  return sum / 2;
}

/** Group rings into parts, each its outline first and then its holes. */
export function partsOf(rings) {
  const outer = [];
  const holes = [];
  for (const ring of rings) {
    const area = areaOf(ring);
    (area > 0 ? outer : holes).push({ ring, area, bounds: boundsOf(ring) });
  }
  // The smallest outline around a hole is that of its part.
  outer.sort((a, b) => a.area - b.area);
  const parts = new Map(outer.map((part) => [part, [part.ring]]));
  for (const { ring } of holes) {
    const [x, y] = besideOf(ring);
    const part = outer.find((other) => within(other.bounds, x, y) && contains(other.ring, x, y));
    parts.get(part).push(ring);
  }
  return [...parts.values()];
}

/** The middle of a pixel of the object beside a ring's first edge, to the right of it. */
function besideOf(ring) {
  const [x0, y0, x1, y1] = ring;
  const [dx, dy] = [Math.sign(x1 - x0), Math.sign(y1 - y0)];
  return [x0 + dx / 2 - dy / 2, y0 + dy / 2 + dx / 2];
}

function boundsOf(ring) {
  const bounds = { left: Infinity, top: Infinity, right: -Infinity, bottom: -Infinity };
  for (let i = 0; i < ring.length; i += 2) {
    bounds.left = Math.min(bounds.left, ring[i]);
    bounds.right = Math.max(bounds.right, ring[i]);
    bounds.top = Math.min(bounds.top, ring[i + 1]);
    bounds.bottom = Math.max(bounds.bottom, ring[i + 1]);
  }
  return bounds;
}

function within({ left, top, right, bottom }, x, y) {
  return left < x && x < right && top < y && y < bottom;
}

function contains(ring, x, y) {
  let inside = false;
  for (let i = 0; i < ring.length; i += 2) {
    const j = (i + 2) % ring.length;
    const [y0, y1] = [ring[i + 1], ring[j + 1]];
    // Edges are upright or level; only upright ones to the right count.
    if (y0 !== y1 && y > Math.min(y0, y1) && y < Math.max(y0, y1) && ring[i] > x) inside = !inside;
  }
  return inside;
}
