// The colours of objects: told apart in light and dark, and by most who see fewer colours. Numbers and labels go along.

const COLOURS = ["#14a3a3", "#e2457a", "#e8a317", "#5b7cfa", "#6bb536", "#b25be0", "#ef6a3a", "#2fa8e8"];

export function colourOf(id) {
  return COLOURS[(id - 1) % COLOURS.length];
}

/** Red, green and blue from 0 to 255. */
export function channelsOf(colour) {
  return [1, 3, 5].map((at) => parseInt(colour.slice(at, at + 2), 16));
}
