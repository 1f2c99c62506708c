/** The three panels of a simulated lens (image, residual, mass map), and the pointer on them. */

import { plane } from "./api.js";
import { greatest, limits, painted, paintScale } from "./colours.js";
import { find } from "./dom.js";
import { many, mass, plain, signed } from "./numbers.js";
import { inks, label, Picture } from "./picture.js";
import { rounded } from "./scene.js";
import { massInWords, PLAIN_MSUN } from "./viewer.js";

/**
 * @typedef {import("./api.js").Plane} Plane
 * @typedef {import("./explore.js").Desk} Desk
 * @typedef {import("./masses.js").Which} Which
 * @typedef {import("./predictions.js").Network} Network
 * @typedef {import("./scene.js").Subhalo} Subhalo
 * @typedef {{x: number, y: number}} Point
 */

const PICTURES = ["sky", "residual", "mass-map"];
const FAINTEST = 1; // electrons: so that rounding errors of a smooth lens are not blown up to look like something
const NEAR = 9; // canvas pixels
const SHORTEST_STRING = 0.1; // arcsec, half of it: less is a slip of the hand

export class Panels {
  /** The string that is being drawn, as its ends. @type {[Point, Point] | undefined} */
  drawn;
  /** The mass that is being dragged. @type {Which | null} */
  held = null;
  hasNoise = false; // whether the image is signal to noise
  /** Where it was last. */
  from = { x: 0, y: 0 };

  /** @param {Desk} desk */
  constructor(desk) {
    this.desk = desk;
    this.pictures = Object.fromEntries(PICTURES.map((id) => [id, new Picture(find(id))]));
    for (const picture of Object.values(this.pictures)) {
      picture.marks = () => this.mark(picture);
      this.wire(picture);
    }
    this.pictures.residual.isLight = true;
    paintScale(find("residual-ramp"), "diverging");
    paintScale(find("mass-map-ramp"), "viridis");
  }

  /** Takes in an answer of the simulator. @param {import("./explore.js").Simulated} result */
  take(result) {
    const counts = plane(result.counts);
    this.planes = { counts, residual: plane(result.residual) };
    this.hasNoise = result.pixels === "signal-to-noise";
    /** @type {Record<string, Plane | null>} */
    this.maps = Object.fromEntries(result.predictions.map(({ network, map }) => [network, map && plane(map)]));
    const size = { width: counts.width, height: counts.height, scale: result.pixel_scale };
    for (const picture of Object.values(this.pictures)) picture.resize(size);
  }

  /** @param {{network: Network, stretch: string, colours: string}} look */
  paint({ network, stretch, colours }) {
    if (!this.planes) return;
    this.paintSky(this.planes.counts, stretch, colours);
    this.paintResidual(this.planes.residual);
    this.paintMap(network, this.maps?.[network.name]);
    for (const picture of Object.values(this.pictures)) picture.draw();
  }

  redraw() {
    for (const picture of Object.values(this.pictures)) picture.draw();
  }

  /** @param {Plane} counts @param {string} stretch @param {string} colours */
  paintSky(counts, stretch, colours) {
    const range = limits(counts);
    this.pictures.sky.layers = [{ source: painted(counts, range, stretch, colours) }];
    this.pictures.sky.isLight = colours === "inverted";
    paintScale(find("sky-ramp"), colours);
    const [low, high] = this.hasNoise ? range.map((value) => signed(value, 1)) : range.map(many);
    find("sky-low").textContent = low;
    find("sky-high").textContent = this.hasNoise ? `${high} S/N` : `${high} e⁻`;
    const { width, height } = counts;
    find("sky").setAttribute(
      "aria-label",
      `Simulated image, ${width} by ${height} pixels, up to ${this.hasNoise ? `a signal to noise of ${high}` : `${high} electrons`}. ${find("mass-words").textContent}.`,
    );
  }

  /** @param {Plane} residual */
  paintResidual(residual) {
    const most = Math.max(FAINTEST, greatest({ ...residual, values: Float32Array.from(residual.values, Math.abs) }));
    this.pictures.residual.layers = [{ source: painted(residual, [-most, most], "linear", "diverging") }];
    const digits = most < 10 ? 1 : 0;
    find("residual-low").textContent = signed(-most, digits);
    find("residual-high").textContent = `+${most.toFixed(digits)} e⁻`;
    find("residual").setAttribute(
      "aria-label",
      `What the substructure changes in the image without noise: from ${signed(-most, digits)} in blue to +${most.toFixed(digits)} electrons in red.`,
    );
  }

  /** @param {Network} network @param {Plane | null} [map] */
  paintMap(network, map) {
    const veil = find("mass-map-veil");
    veil.hidden = Boolean(map);
    find("mass-map-network").textContent = network.name;
    if (!map) {
      veil.textContent = `${network.name} predicts no mass map. Choose another network.`;
      find("mass-map").setAttribute("aria-label", veil.textContent);
      this.pictures["mass-map"].layers = [];
      return;
    }
    const most = Math.max(PLAIN_MSUN, greatest(map));
    const { width, scale } = this.pictures["mass-map"].size;
    const share = network.map && scale ? (network.map.n_cells * network.map.cell_arcsec) / (width * scale) : 1;
    this.pictures["mass-map"].layers = [{ source: painted(map, [0, most], "linear", "viridis"), share }];
    find("mass-map-high").textContent = `${mass(most)} M☉ a cell`;
    find("mass-map").setAttribute("aria-label", massInWords(map, network));
  }

  // --- marks ---

  /** @param {Picture} picture */
  mark(picture) {
    const { scene, chosen, chosenMass, place, showsMasses } = this.desk;
    if (!scene) return;
    if (place && chosen === null) cross(picture, picture.screenOfSky(place.x, place.y));
    if (this.drawn) {
      const [start, end] = this.drawn.map(({ x, y }) => picture.screenOfSky(x, y));
      line(picture, start, end, true);
    }
    if (!showsMasses) return;
    if (scene.string) line(picture, ...ends(picture, scene.string), chosen === "string");
    for (const subhalo of scene.subhaloes) if (subhalo !== chosenMass) ring(picture, subhalo, false);
    if (typeof chosen === "number") ring(picture, chosenMass, true); // on top of the others
    if (chosen !== null)
      label(
        picture,
        `${chosen === "string" ? "string" : `subhalo ${chosen + 1}`}: ${mass(chosenMass.mass_msun)} M☉`,
        12,
        22,
      );
  }

  // --- the pointer ---

  /** @param {Picture} picture */
  wire(picture) {
    const { canvas } = picture;
    const place = (/** @type {PointerEvent} */ event) => tidy(picture.skyAt(event.offsetX, event.offsetY));
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || !this.planes) return;
      event.preventDefault(); // no text is selected; the focus is set by hand
      canvas.parentElement?.focus({ preventScroll: true });
      canvas.setPointerCapture(event.pointerId);
      this.press(picture, place(event), event);
    });
    canvas.addEventListener(
      "pointermove",
      (event) => canvas.hasPointerCapture(event.pointerId) && this.move(place(event)),
    );
    canvas.addEventListener("pointerup", () => this.release());
    canvas.addEventListener("pointercancel", () => this.release());
    canvas.parentElement?.addEventListener("keydown", (event) => this.pressKey(event));
  }

  /** @param {Picture} picture @param {Point} place @param {PointerEvent} event */
  press(picture, place, event) {
    const { desk } = this;
    if (desk.mode === "string") return (this.drawn = [place, place]);
    if (desk.mode === "point") return desk.point(place);
    const which = this.near(picture, { x: event.offsetX, y: event.offsetY });
    if (which === null) desk.add({ ...place, mass_msun: desk.nextMass });
    else desk.choose(which);
    this.held = desk.chosen;
    this.from = place;
  }

  /** The mass under the pointer, if any: the nearest one, else the string. @param {Picture} picture @param {Point} point @returns {Which | null} */
  near(picture, { x, y }) {
    const { scene } = this.desk;
    const far = (/** @type {Point} */ at) => Math.hypot(at.x - x, at.y - y);
    const reach = scene.subhaloes.map(
      (/** @type {Subhalo} */ subhalo) =>
        far(picture.screenOfSky(subhalo.x, subhalo.y)) - Math.max(NEAR, radius(subhalo.mass_msun)),
    );
    const best = reach.indexOf(Math.min(...reach));
    if (best >= 0 && reach[best] <= 0) return best;
    return scene.string && distance({ x, y }, ...ends(picture, scene.string)) < NEAR ? "string" : null;
  }

  /** @param {Point} place */
  move(place) {
    if (this.drawn) {
      this.drawn[1] = place;
      return this.redraw();
    }
    if (this.held === null) return;
    this.desk.moveBy(this.held, place.x - this.from.x, place.y - this.from.y);
    this.from = place;
  }

  release() {
    if (this.drawn) this.finishString(...this.drawn);
    this.drawn = undefined;
    this.held = null;
    this.redraw();
  }

  /** @param {Point} a @param {Point} b */
  finishString(a, b) {
    const half = Math.hypot(b.x - a.x, b.y - a.y) / 2;
    if (half < SHORTEST_STRING) return;
    const angle = (Math.atan2(b.y - a.y, b.x - a.x) + Math.PI) % Math.PI;
    const middle = tidy({ x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 });
    this.desk.setString({ ...middle, angle: rounded(angle), half_length: rounded(half) });
  }

  /** @param {KeyboardEvent} event */
  pressKey(event) {
    const { desk } = this;
    const step = event.shiftKey ? 0.25 : 0.05;
    const steps = /** @type {Record<string, [number, number]>} */ ({
      ArrowLeft: [-step, 0],
      ArrowRight: [step, 0],
      ArrowUp: [0, step],
      ArrowDown: [0, -step],
    });
    if (desk.chosen === null) return;
    if (event.key in steps) desk.moveBy(desk.chosen, ...steps[event.key]);
    else if (event.key === "Delete" || event.key === "Backspace") desk.remove(desk.chosen);
    else if (event.key === "Escape") desk.choose(null);
    else return;
    event.preventDefault();
  }
}

/** @param {Point} point */
const tidy = ({ x, y }) => ({ x: Number(plain(x, 3)), y: Number(plain(y, 3)) });

/** Canvas pixels; the heavier, the larger. @param {number} msun */
const radius = (msun) => Math.max(2, 3 * (Math.log10(msun) - 7));

/** Both ends of a string on the canvas. @param {Picture} picture @param {import("./scene.js").Vortex} string @returns {[Point, Point]} */
function ends(picture, { x, y, angle, half_length: half }) {
  const [dx, dy] = [half * Math.cos(angle), half * Math.sin(angle)];
  return [picture.screenOfSky(x - dx, y - dy), picture.screenOfSky(x + dx, y + dy)];
}

/** Distance of a point from a line that ends in a and b. @param {Point} point @param {Point} a @param {Point} b */
function distance(point, a, b) {
  const length = (b.x - a.x) ** 2 + (b.y - a.y) ** 2;
  const share = length
    ? Math.min(1, Math.max(0, ((point.x - a.x) * (b.x - a.x) + (point.y - a.y) * (b.y - a.y)) / length))
    : 0;
  return Math.hypot(point.x - a.x - share * (b.x - a.x), point.y - a.y - share * (b.y - a.y));
}

/** Draws a path twice, its outline below, so that it shows on any picture. What is chosen is thick and gold. @param {Picture} picture @param {boolean} isChosen @param {(context: CanvasRenderingContext2D) => void} trace */
function outlined(picture, isChosen, trace) {
  const { context } = picture;
  const [ink, outline] = inks(picture);
  const gold = picture.isLight ? "#a86f00" : "#ffd54a";
  for (const [colour, width] of /** @type {const} */ ([
    [outline, isChosen ? 5 : 3],
    [isChosen ? gold : ink, isChosen ? 2.5 : 1.2],
  ])) {
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.beginPath();
    trace(context);
    context.stroke();
  }
}

/** @param {Picture} picture @param {Subhalo} subhalo @param {boolean} isChosen */
function ring(picture, subhalo, isChosen) {
  const { x, y } = picture.screenOfSky(subhalo.x, subhalo.y);
  outlined(picture, isChosen, (context) => context.arc(x, y, radius(subhalo.mass_msun), 0, 2 * Math.PI));
}

/** @param {Picture} picture @param {Point} a @param {Point} b @param {boolean} isChosen */
const line = (picture, a, b, isChosen) =>
  outlined(picture, isChosen, (context) => {
    context.moveTo(a.x, a.y);
    context.lineTo(b.x, b.y);
  });

/** @param {Picture} picture @param {Point} point */
const cross = (picture, { x, y }) =>
  outlined(picture, true, (context) => {
    context.moveTo(x - 8, y);
    context.lineTo(x + 8, y);
    context.moveTo(x, y - 8);
    context.lineTo(x, y + 8);
  });
