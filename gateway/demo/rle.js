// COCO's compressed run lengths: column by column, runs of 0 and 1 in turn, 0 first.

/** The run lengths in the text that pycocotools calls `counts`. */
export function runsOf(counts) {
  const runs = [];
  for (let at = 0; at < counts.length; ) {
    let value = 0;
    let shift = 0;
    let code;
    do {
      // Five bits of the number in each character, the lowest first; the sixth says that more follow.
      code = counts.charCodeAt(at++) - 48;
      value |= (code & 0x1f) << shift;
      shift += 5;
    } while (code & 0x20);
    if (code & 0x10) value |= -1 << shift;
    // From the fourth on, a run is told as its difference to the one before the last.
    runs.push(runs.length > 2 ? value + runs[runs.length - 2] : value);
  }
  return runs;
}

/** A mask unpacked: `pixels`, one byte each, row by row with a margin of one around `width` x `height`. */
export function unpack({ size: [height, width], counts }) {
  const stride = width + 2;
  const pixels = new Uint8Array(stride * (height + 2));
  let area = 0;
  let place = 0;
  let [left, top, right, bottom] = [width, height, 0, 0];
  runsOf(counts).forEach((length, index) => {
    if (index % 2 && length > 0) {
      area += length;
      const end = place + length;
      const [first, last] = [Math.floor(place / height), Math.floor((end - 1) / height)];
      left = Math.min(left, first);
      right = Math.max(right, last + 1);
      for (let x = first; x <= last; x++) {
        const from = Math.max(place - x * height, 0);
        const to = Math.min(end - x * height, height);
        top = Math.min(top, from);
        bottom = Math.max(bottom, to);
        for (let y = from, i = (from + 1) * stride + x + 1; y < to; y++, i += stride) pixels[i] = 1;
      }
    }
    place += length;
  });
  const bounds = area > 0 ? { left, top, right, bottom } : null;
  return { width, height, stride, pixels, area, bounds };
}
