/** Numbers to colours: stretches, colour maps, and pictures painted with them. */

/** @typedef {import("./api.js").Plane} Plane */

/** @type {Record<string, (share: number) => number>} each takes 0..1 to 0..1 */
export const STRETCHES = {
  linear: (t) => t,
  sqrt: Math.sqrt,
  asinh: (t) => Math.asinh(10 * t) / Math.asinh(10),
  log: (t) => Math.log1p(1000 * t) / Math.log1p(1000),
};

/** Colours that the maps run through, evenly spaced; inferno and viridis are matplotlib's. */
const ANCHORS = {
  inferno: ["000004", "1b0c41", "4a0c6b", "781c6d", "a52c60", "cf4446", "ed6925", "fb9b06", "f7d13d", "fcffa4"],
  viridis: ["440154", "482878", "3e4989", "31688e", "26828e", "1f9e89", "35b779", "6ece58", "b5de2b", "fde725"],
  grey: ["000000", "ffffff"],
  inverted: ["ffffff", "000000"],
  diverging: [
    "053061",
    "2166ac",
    "4393c3",
    "92c5de",
    "d1e5f0",
    "f7f7f7",
    "fddbc7",
    "f4a582",
    "d6604d",
    "b2182b",
    "67001f",
  ],
};

/** @type {Record<string, Uint8ClampedArray>} 256 colours of three bytes each */
export const COLOURS = Object.fromEntries(Object.entries(ANCHORS).map(([name, anchors]) => [name, ramp(anchors)]));

/** @param {string[]} anchors hexadecimal colours */
function ramp(anchors) {
  const colours = anchors.map((hex) => [0, 2, 4].map((at) => parseInt(hex.slice(at, at + 2), 16)));
  const table = new Uint8ClampedArray(256 * 3);
  for (let i = 0; i < 256; i++) {
    const place = (i / 255) * (colours.length - 1);
    const left = Math.min(Math.floor(place), colours.length - 2);
    for (let c = 0; c < 3; c++)
      table[3 * i + c] = colours[left][c] + (place - left) * (colours[left + 1][c] - colours[left][c]);
  }
  return table;
}

const HIDDEN_SHARE = 0.003;

/** Where black and white lie: a few pixels in a thousand may be beyond, so that one hot pixel hides nothing. @param {Plane} image @returns {[number, number]} */
export function limits({ values }) {
  const sorted = Float64Array.from(values).sort();
  const at = (/** @type {number} */ share) => sorted[Math.round(share * (sorted.length - 1))];
  const [low, high] = [at(HIDDEN_SHARE), at(1 - HIDDEN_SHARE)];
  return high > low ? [low, high] : [sorted[0], sorted[sorted.length - 1]];
}

/**
 * A canvas of a plane's own size, its first row at the bottom.
 * @param {Plane} image
 * @param {[number, number]} range values of the first and the last colour
 * @param {string} stretch
 * @param {string} colours
 */
export function painted(image, range, stretch, colours) {
  const [low, high] = range;
  const scale = high > low ? 1 / (high - low) : 0;
  const share = (/** @type {number} */ value) => STRETCHES[stretch](Math.min(1, Math.max(0, (value - low) * scale)));
  const table = COLOURS[colours];
  return filled(image, (value, pixels, at) => {
    const colour = 3 * Math.round(255 * share(value));
    for (let c = 0; c < 3; c++) pixels[at + c] = table[colour + c];
    pixels[at + 3] = 255;
  });
}

/**
 * A canvas of one colour, the more opaque the greater the value; what reaches `full` is opaque.
 * @param {Plane} image
 * @param {readonly [number, number, number]} colour
 * @param {number} full
 */
export function veiled(image, [red, green, blue], full) {
  return filled(image, (value, pixels, at) => {
    pixels.set([red, green, blue, 255 * Math.sqrt(Math.min(1, Math.max(0, value) / full))], at);
  });
}

/** The greatest value of a plane. @param {Plane} image */
export function greatest({ values }) {
  let most = -Infinity;
  for (const value of values) most = Math.max(most, value);
  return most;
}

/**
 * @param {Plane} image
 * @param {(value: number, pixels: Uint8ClampedArray, at: number) => void} paint sets the four bytes at a place
 */
function filled({ values, width, height }, paint) {
  const canvas = new OffscreenCanvas(width, height);
  const context = /** @type {OffscreenCanvasRenderingContext2D} */ (canvas.getContext("2d"));
  const picture = context.createImageData(width, height);
  for (let row = 0; row < height; row++) {
    const top = (height - 1 - row) * width;
    for (let column = 0; column < width; column++) {
      paint(values[row * width + column], picture.data, 4 * (top + column));
    }
  }
  context.putImageData(picture, 0, 0);
  return canvas;
}

/** Fills a canvas with a colour map from left to right. @param {HTMLCanvasElement} canvas @param {string} colours */
export function paintScale(canvas, colours) {
  [canvas.width, canvas.height] = [256, 1];
  const values = Float32Array.from({ length: 256 }, (_, i) => i);
  canvas.getContext("2d")?.drawImage(painted({ values, width: 256, height: 1 }, [0, 255], "linear", colours), 0, 0);
}
