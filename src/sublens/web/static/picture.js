/**
 * One picture on a canvas: layers, zoom and pan, a scale bar, and marks on top.
 *
 * Places are in pixels of the image: u to the right, v up, both 0 in its lower left corner; or in arcsec from its
 * centre, x to the right, y up.
 */

const MOST_ZOOM = 16;

/** @typedef {{width: number, height: number, scale: number | null}} Size  pixels, and arcsec a pixel where known */
/** @typedef {{source: CanvasImageSource, share?: number, alpha?: number}} Layer  share: of the image's width that it covers */

export class Picture {
  /** @param {HTMLCanvasElement} canvas square, as wide as its box */
  constructor(canvas) {
    this.canvas = canvas;
    this.context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
    /** @type {Layer[]} */
    this.layers = [];
    /** Draws on top of the layers. */
    this.marks = () => {};
    this.whenMoved = () => {};
    this.zoom = 1;
    this.centre = { u: 0, v: 0 };
    this.isLight = false; // then marks are dark
    /** @type {Size} */
    this.size = { width: 1, height: 1, scale: null };
    this.fit();
    new ResizeObserver(() => this.draw()).observe(canvas);
  }

  /** @param {Size} size */
  resize(size) {
    const isOther = size.width !== this.size.width || size.height !== this.size.height;
    this.size = size;
    if (isOther) this.fit();
  }

  fit() {
    this.zoom = 1;
    this.centre = { u: this.size.width / 2, v: this.size.height / 2 };
    this.draw();
  }

  /** Screen pixels an image pixel takes. */
  get magnification() {
    return (this.zoom * this.canvas.clientWidth) / Math.max(this.size.width, this.size.height);
  }

  /** Zooms so that the place at (x, y) of the canvas stays where it is; by default its middle. @param {number} factor */
  zoomBy(factor, x = this.canvas.clientWidth / 2, y = this.canvas.clientHeight / 2) {
    const before = this.placeAt(x, y);
    this.zoom = Math.min(MOST_ZOOM, Math.max(1, this.zoom * factor));
    const after = this.placeAt(x, y);
    this.moveBy(before.u - after.u, before.v - after.v);
  }

  /** Moves the part that is shown; its middle stays within the image. @param {number} du @param {number} dv */
  moveBy(du, dv) {
    const { width, height } = this.size;
    const kept = (/** @type {number} */ value, /** @type {number} */ side) => {
      const margin = Math.min(side, Math.max(width, height) / this.zoom) / 2;
      return Math.min(side - margin, Math.max(margin, value));
    };
    this.centre = { u: kept(this.centre.u + du, width), v: kept(this.centre.v + dv, height) };
    this.draw();
    this.whenMoved();
  }

  /** The place in the image of a point on the canvas. @param {number} x @param {number} y */
  placeAt(x, y) {
    const k = this.magnification;
    const { clientWidth, clientHeight } = this.canvas;
    return { u: this.centre.u + (x - clientWidth / 2) / k, v: this.centre.v - (y - clientHeight / 2) / k };
  }

  /** Where on the canvas a place lies. @param {number} u @param {number} v */
  screen(u, v) {
    const k = this.magnification;
    const { clientWidth, clientHeight } = this.canvas;
    return { x: clientWidth / 2 + (u - this.centre.u) * k, y: clientHeight / 2 - (v - this.centre.v) * k };
  }

  /** Arcsec from the centre, of a point on the canvas. @param {number} x @param {number} y */
  skyAt(x, y) {
    const { u, v } = this.placeAt(x, y);
    const { width, height } = this.size;
    const scale = this.size.scale ?? NaN;
    return { x: (u - width / 2) * scale, y: (v - height / 2) * scale };
  }

  /** Where on the canvas a place on the sky lies. @param {number} x @param {number} y */
  screenOfSky(x, y) {
    const { width, height } = this.size;
    const scale = this.size.scale ?? NaN;
    return this.screen(width / 2 + x / scale, height / 2 + y / scale);
  }

  draw() {
    const { canvas, context } = this;
    const side = canvas.clientWidth;
    if (!side) return; // in a tab that is not shown
    const pixels = Math.round(side * devicePixelRatio);
    if (canvas.width !== pixels) canvas.width = canvas.height = pixels;
    context.setTransform(pixels / side, 0, 0, pixels / side, 0, 0);
    context.clearRect(0, 0, side, side);
    context.imageSmoothingEnabled = false; // pixels are shown as they are
    for (const layer of this.layers) this.drawLayer(layer);
    if (!this.layers.length) return;
    this.marks();
    if (this.size.scale) drawScaleBar(this, this.magnification / this.size.scale);
  }

  /** @param {Layer} layer */
  drawLayer({ source, share = 1, alpha = 1 }) {
    const { width, height } = this.size;
    const aside = ((1 - share) * width) / 2;
    const low = ((height - share * width) / 2) * (share < 1 ? 1 : 0);
    const corner = this.screen(aside, height - low);
    const other = this.screen(width - aside, low);
    this.context.globalAlpha = alpha;
    this.context.drawImage(source, corner.x, corner.y, other.x - corner.x, other.y - corner.y);
    this.context.globalAlpha = 1;
  }
}

/** Ink for marks on a picture, and the outline that sets them off. @param {Picture} picture */
export const inks = ({ isLight }) => (isLight ? ["#16191d", "rgb(255 255 255 / 85%)"] : ["#fff", "rgb(0 0 0 / 75%)"]);

/** @param {Picture} picture @param {number} perArcsec canvas pixels */
function drawScaleBar(picture, perArcsec) {
  const { context, canvas } = picture;
  const side = canvas.clientWidth;
  const [ink, outline] = inks(picture);
  const length = [5, 2, 1, 0.5, 0.2, 0.1, 0.05].find((arcsec) => arcsec * perArcsec < side / 3) ?? 0.02;
  const [x, y] = [12, side - 12];
  context.lineCap = "butt";
  for (const [colour, width] of /** @type {const} */ ([
    [outline, 5],
    [ink, 2],
  ])) {
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.beginPath();
    context.moveTo(x, y);
    context.lineTo(x + length * perArcsec, y);
    context.stroke();
  }
  label(picture, `${length}″`, x, y - 7);
}

/** Text that is read on any picture. @param {Picture} picture @param {string} text @param {number} x @param {number} y */
export function label(picture, text, x, y) {
  const { context } = picture;
  const [ink, outline] = inks(picture);
  context.font = "600 12px system-ui, sans-serif";
  context.lineJoin = "round";
  context.strokeStyle = outline;
  context.lineWidth = 3;
  context.strokeText(text, x, y);
  context.fillStyle = ink;
  context.fillText(text, x, y);
}

/**
 * Zooms and pans a picture by wheel, drag and keys.
 * @param {Picture} picture
 * @param {HTMLElement} stage the box around its canvas that takes the focus
 */
export function makeMovable(picture, stage) {
  const { canvas } = picture;
  canvas.addEventListener("wheel", (event) => {
    const isOut = event.deltaY > 0;
    if (isOut && picture.zoom === 1) return; // then the page scrolls
    event.preventDefault();
    picture.zoomBy(isOut ? 1 / 1.2 : 1.2, event.offsetX, event.offsetY);
  });
  canvas.addEventListener("pointerdown", (event) => canvas.setPointerCapture(event.pointerId));
  canvas.addEventListener("pointermove", (event) => {
    if (!canvas.hasPointerCapture(event.pointerId)) return;
    picture.moveBy(-event.movementX / picture.magnification, event.movementY / picture.magnification);
  });
  stage.addEventListener("keydown", (event) => {
    const step = Math.max(picture.size.width, picture.size.height) / 8 / picture.zoom;
    const act = /** @type {Record<string, () => void>} */ ({
      "+": () => picture.zoomBy(1.5),
      "=": () => picture.zoomBy(1.5),
      "-": () => picture.zoomBy(1 / 1.5),
      0: () => picture.zoomBy(0),
      ArrowLeft: () => picture.moveBy(-step, 0),
      ArrowRight: () => picture.moveBy(step, 0),
      ArrowUp: () => picture.moveBy(0, step),
      ArrowDown: () => picture.moveBy(0, -step),
    })[event.key];
    if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    act();
  });
}
