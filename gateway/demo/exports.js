// The files that can be downloaded. Each takes a picture and what was found in it.

import { partsOf } from "./outline.js";
import { channelsOf, colourOf } from "./palette.js";
import { palettePng } from "./png.js";
import { unpack } from "./rle.js";
import { shapeOf } from "./shapes.js";

/** @typedef {{id: number, label: string, mask: {size: number[], counts: string, score: number}}} Found */

/** Each kind of file: what its name ends in, and how it is made. */
export const EXPORTS = {
  png: { suffix: "-labels.png", make: labelPicture },
  coco: { suffix: "-coco.json", make: (picture, found) => json(coco(picture, found), "application/json") },
  geojson: { suffix: ".geojson", make: (picture, found) => json(geojson(picture, found), "application/geo+json") },
};

/** A PNG of the picture's size: 0 where nothing is, n on the n-th object, a later one over an earlier one. */
async function labelPicture({ width, height }, found) {
  const indices = new Uint8Array(width * height);
  found.slice(0, 255).forEach(({ mask }, number) => {
    const { stride, pixels, bounds } = unpack(mask);
    if (!bounds) return;
    for (let y = bounds.top; y < bounds.bottom; y++) {
      for (let x = bounds.left; x < bounds.right; x++) {
        if (pixels[(y + 1) * stride + x + 1]) indices[y * width + x] = number + 1;
      }
    }
  });
  const palette = [[0, 0, 0], ...found.slice(0, 255).map(({ id }) => channelsOf(colourOf(id)))];
  return palettePng(indices, width, height, palette);
}

/** A data set of one picture in COCO's format: a category for each label, the masks as compressed run lengths. */
function coco({ name, width, height }, found) {
  const labels = [...new Set(found.map(({ label }) => label))];
  return {
    info: { description: `Masks of ${name}` },
    images: [{ id: 1, file_name: name, width, height }],
    categories: labels.map((label, index) => ({ id: index + 1, name: label })),
    annotations: found.map(({ label, mask }, index) => {
      const { area, bounds } = shapeOf(mask);
      const { left, top, right, bottom } = bounds ?? { left: 0, top: 0, right: 0, bottom: 0 };
      return {
        id: index + 1,
        image_id: 1,
        category_id: labels.indexOf(label) + 1,
        segmentation: { size: mask.size, counts: mask.counts },
        area,
        bbox: [left, top, right - left, bottom - top],
        iscrowd: 0,
        score: mask.score,
      };
    }),
  };
}

/** A feature for each object, in pixels of the picture with y pointing down, exact along the pixels' edges. */
function geojson(_picture, found) {
  const closed = (ring) => {
    const positions = [];
    for (let i = 0; i < ring.length; i += 2) positions.push([ring[i], ring[i + 1]]);
    return [...positions, positions[0]];
  };
  return {
    type: "FeatureCollection",
    features: found.map(({ id, label, mask }) => ({
      type: "Feature",
      id,
      properties: { label, score: mask.score, area: shapeOf(mask).area },
      geometry: { type: "MultiPolygon", coordinates: partsOf(shapeOf(mask).rings).map((part) => part.map(closed)) },
    })),
  };
}

function json(body, type) {
  return new Blob([JSON.stringify(body)], { type });
}

/** Hand a file to the person. */
export function save(blob, name) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  // The browser has its own hold on it by then.
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}
