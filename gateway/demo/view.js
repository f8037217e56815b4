// Where the picture lies on the canvas: a scale and an offset, in CSS pixels.

const MARGIN = 20;
const NARROW = 600;
const NARROW_MARGIN = 8;
const LARGEST = 16;

export class View {
  scale = 1;
  x = 0;
  y = 0;
  #fitted = true;
  #canvas = { width: 1, height: 1 };
  #picture = { width: 1, height: 1 };

  /** The canvas or the picture has a new size. */
  resize(canvas, picture) {
    const other = picture.width !== this.#picture.width || picture.height !== this.#picture.height;
    this.#canvas = canvas;
    this.#picture = picture;
    if (this.#fitted || other) this.fit();
    else this.#keepInSight();
  }

  fit() {
    this.scale = this.#fittingScale();
    this.x = (this.#canvas.width - this.#picture.width * this.scale) / 2;
    this.y = (this.#canvas.height - this.#picture.height * this.scale) / 2;
    this.#fitted = true;
  }

  /** Zoom with one place of the canvas, its middle if none is given, staying where it is. */
  zoom(factor, at = { x: this.#canvas.width / 2, y: this.#canvas.height / 2 }) {
    const least = Math.min(this.#fittingScale(), 1);
    const scale = Math.min(Math.max(this.scale * factor, least), LARGEST);
    this.x = at.x - ((at.x - this.x) * scale) / this.scale;
    this.y = at.y - ((at.y - this.y) * scale) / this.scale;
    this.scale = scale;
    this.#fitted = scale === least && least < 1;
    if (this.#fitted) this.fit();
    this.#keepInSight();
  }

  move(dx, dy) {
    this.x += dx;
    this.y += dy;
    this.#fitted = false;
    this.#keepInSight();
  }

  /** Bring a place of the picture onto the canvas. */
  show({ x, y }) {
    const [left, top] = [this.x + x * this.scale, this.y + y * this.scale];
    const dx = Math.max(MARGIN - left, 0) + Math.min(this.#canvas.width - MARGIN - left, 0);
    const dy = Math.max(MARGIN - top, 0) + Math.min(this.#canvas.height - MARGIN - top, 0);
    if (dx || dy) this.move(dx, dy);
  }

  /** From the canvas to the picture. */
  toPicture({ x, y }) {
    return { x: (x - this.x) / this.scale, y: (y - this.y) / this.scale };
  }

  holds({ x, y }) {
    return x >= 0 && y >= 0 && x < this.#picture.width && y < this.#picture.height;
  }

  /** The nearest place in the picture, its far edges included. */
  clamp({ x, y }) {
    const { width, height } = this.#picture;
    return { x: Math.min(Math.max(x, 0), width), y: Math.min(Math.max(y, 0), height) };
  }

  #fittingScale() {
    const margin = this.#canvas.width < NARROW ? NARROW_MARGIN : MARGIN;
    const across = (this.#canvas.width - 2 * margin) / this.#picture.width;
    const down = (this.#canvas.height - 2 * margin) / this.#picture.height;
    return Math.min(Math.max(Math.min(across, down), 0.01), 4);
  }

  /** A quarter of the canvas at least shows the picture, or all of the picture if that is less. */
  #keepInSight() {
    const [wide, high] = [this.#picture.width * this.scale, this.#picture.height * this.scale];
    const [atLeastX, atLeastY] = [Math.min(wide, this.#canvas.width / 4), Math.min(high, this.#canvas.height / 4)];
    this.x = Math.min(Math.max(this.x, atLeastX - wide), this.#canvas.width - atLeastX);
    this.y = Math.min(Math.max(this.y, atLeastY - high), this.#canvas.height - atLeastY);
  }
}
