/** The three pictures of a simulated lens, and the pointer on them. */

import { plane } from "./api.js";
import { greatest, limits, painted, paintScale } from "./colours.js";
import { find } from "./dom.js";
import { massInWords, PLAIN_MSUN } from "./large.js";
import { many, mass, plain, signed } from "./numbers.js";
import { inks, label, Picture } from "./picture.js";
import { rounded } from "./scene.js";

const PICTURES = ["sky", "residual", "seen"];
const FAINTEST = 1; // electrons: so that rounding errors of a smooth lens are not blown up to look like something
const NEAR = 9; // canvas pixels
const SHORTEST_STRING = 0.1; // arcsec, half of it: less is a slip of the hand

export class Sights {
  /** @param {object} desk see `Masses`; also `mode`, `setString(string)`, `point(place)` and `nextMass` */
  constructor(desk) {
    this.desk = desk;
    this.pictures = Object.fromEntries(PICTURES.map((id) => [id, new Picture(find(id))]));
    for (const picture of Object.values(this.pictures)) {
      picture.marks = () => this.mark(picture);
      this.wire(picture);
    }
    this.pictures.residual.isLight = true;
    paintScale(find("residual-ramp"), "diverging");
    paintScale(find("seen-ramp"), "viridis");
  }

  /** Takes in an answer of the simulator. */
  take(result) {
    this.counts = plane(result.counts);
    this.residual = plane(result.residual);
    this.maps = Object.fromEntries(result.predictions.map((one) => [one.network, one.map && plane(one.map)]));
    const size = { width: this.counts.width, height: this.counts.height, scale: result.pixel_scale };
    for (const picture of Object.values(this.pictures)) picture.resize(size);
  }

  /** @param {{network: object, stretch: string, colours: string}} look */
  paint({ network, stretch, colours }) {
    if (!this.counts) return;
    this.paintSky(stretch, colours);
    this.paintResidual();
    this.paintSeen(network);
    for (const picture of Object.values(this.pictures)) picture.draw();
  }

  redraw() {
    for (const picture of Object.values(this.pictures)) picture.draw();
  }

  paintSky(stretch, colours) {
    const range = limits(this.counts);
    this.pictures.sky.layers = [{ source: painted(this.counts, range, stretch, colours) }];
    this.pictures.sky.isLight = colours === "inverted";
    paintScale(find("sky-ramp"), colours);
    [find("sky-low").textContent, find("sky-high").textContent] = [many(range[0]), `${many(range[1])} e⁻`];
    const { width, height } = this.counts;
    find("sky").setAttribute(
      "aria-label",
      `Simulated image, ${width} by ${height} pixels, up to ${many(range[1])} electrons. ${find("mass-words").textContent}.`,
    );
  }

  paintResidual() {
    const most = Math.max(
      FAINTEST,
      this.residual.values.reduce((top, value) => Math.max(top, Math.abs(value)), 0),
    );
    this.pictures.residual.layers = [{ source: painted(this.residual, [-most, most], "linear", "diverging") }];
    const digits = most < 10 ? 1 : 0;
    find("residual-low").textContent = signed(-most, digits);
    find("residual-high").textContent = `+${most.toFixed(digits)} e⁻`;
    find("residual").setAttribute(
      "aria-label",
      `What the substructure changes in the image without noise: from ${signed(-most, digits)} in blue to +${most.toFixed(digits)} electrons in red.`,
    );
  }

  paintSeen(network) {
    const map = this.maps[network.name];
    const veil = find("seen-veil");
    veil.hidden = Boolean(map);
    find("seen-network").textContent = network.name;
    if (!map) {
      veil.textContent = `${network.name} draws no map of the mass. Choose another network.`;
      find("seen").setAttribute("aria-label", veil.textContent);
      this.pictures.seen.layers = [];
      return;
    }
    const most = Math.max(PLAIN_MSUN, greatest(map));
    const { width, scale } = this.pictures.seen.size;
    const share = network.map ? (network.map.n_cells * network.map.cell_arcsec) / (width * scale) : 1;
    this.pictures.seen.layers = [{ source: painted(map, [0, most], "linear", "viridis"), share }];
    find("seen-high").textContent = `${mass(most)} M☉ a cell`;
    find("seen").setAttribute("aria-label", massInWords(map, network));
  }

  // --- marks ---

  mark(picture) {
    const { scene, chosen, place, showsMasses } = this.desk;
    if (!scene) return;
    if (place && chosen === null) cross(picture, picture.screenOfSky(place.x, place.y));
    if (this.drawn) line(picture, ...this.drawn.map(({ x, y }) => picture.screenOfSky(x, y)), true);
    if (!showsMasses) return;
    if (scene.string) line(picture, ...ends(picture, scene.string), chosen === "string");
    for (const subhalo of scene.subhaloes) if (subhalo !== scene.subhaloes[chosen]) ring(picture, subhalo, false);
    if (scene.subhaloes[chosen]) ring(picture, scene.subhaloes[chosen], true); // on top of the others
    if (chosen !== null)
      label(
        picture,
        `${chosen === "string" ? "string" : `subhalo ${chosen + 1}`}: ${mass(this.desk.chosenMass.mass_msun)} M☉`,
        12,
        22,
      );
  }

  // --- the pointer ---

  wire(picture) {
    const { canvas } = picture;
    const place = (event) => tidy(picture.skyAt(event.offsetX, event.offsetY));
    canvas.addEventListener("pointerdown", (event) => {
      if (event.button !== 0 || !this.counts) return;
      event.preventDefault(); // no text is selected; the focus is set by hand
      canvas.parentElement.focus({ preventScroll: true });
      canvas.setPointerCapture(event.pointerId);
      this.press(picture, place(event), event);
    });
    canvas.addEventListener(
      "pointermove",
      (event) => canvas.hasPointerCapture(event.pointerId) && this.move(place(event)),
    );
    canvas.addEventListener("pointerup", () => this.release());
    canvas.addEventListener("pointercancel", () => this.release());
    canvas.parentElement.addEventListener("keydown", (event) => this.pressKey(event));
  }

  press(picture, place, event) {
    const { desk } = this;
    if (desk.mode === "string") return (this.drawn = [place, place]);
    if (desk.mode === "point") return desk.point(place);
    const found = this.near(picture, { x: event.offsetX, y: event.offsetY });
    if (found === null) desk.add({ ...place, mass_msun: desk.nextMass });
    else desk.choose(found);
    this.held = desk.chosen;
    this.from = place;
  }

  /** The mass under the pointer, if any: the nearest one, else the string. */
  near(picture, { x, y }) {
    const { scene } = this.desk;
    const far = (at) => Math.hypot(at.x - x, at.y - y);
    const reach = scene.subhaloes.map(
      (one) => far(picture.screenOfSky(one.x, one.y)) - Math.max(NEAR, radius(one.mass_msun)),
    );
    const best = reach.indexOf(Math.min(...reach));
    if (best >= 0 && reach[best] <= 0) return best;
    return scene.string && distance({ x, y }, ...ends(picture, scene.string)) < NEAR ? "string" : null;
  }

  move(place) {
    if (this.drawn) {
      this.drawn[1] = place;
      return this.redraw();
    }
    if (this.held === undefined || this.held === null) return;
    this.desk.moveBy(this.held, place.x - this.from.x, place.y - this.from.y);
    this.from = place;
  }

  release() {
    if (this.drawn) this.finishString(...this.drawn);
    this.drawn = this.held = undefined;
    this.redraw();
  }

  finishString(a, b) {
    const half = Math.hypot(b.x - a.x, b.y - a.y) / 2;
    if (half < SHORTEST_STRING) return;
    const angle = (Math.atan2(b.y - a.y, b.x - a.x) + Math.PI) % Math.PI;
    const middle = tidy({ x: (a.x + b.x) / 2, y: (a.y + b.y) / 2 });
    this.desk.setString({ ...middle, angle: rounded(angle), half_length: rounded(half) });
  }

  pressKey(event) {
    const { desk } = this;
    const step = event.shiftKey ? 0.25 : 0.05;
    const steps = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, step], ArrowDown: [0, -step] };
    if (desk.chosen === null) return;
    if (event.key in steps) desk.moveBy(desk.chosen, ...steps[event.key]);
    else if (event.key === "Delete" || event.key === "Backspace") desk.remove(desk.chosen);
    else if (event.key === "Escape") desk.choose(null);
    else return;
    event.preventDefault();
  }
}

const tidy = ({ x, y }) => ({ x: Number(plain(x, 3)), y: Number(plain(y, 3)) });

/** Canvas pixels; the heavier, the larger. */
const radius = (msun) => Math.max(2, 3 * (Math.log10(msun) - 7));

/** Both ends of a string on the canvas. */
function ends(picture, { x, y, angle, half_length: half }) {
  const [dx, dy] = [half * Math.cos(angle), half * Math.sin(angle)];
  return [picture.screenOfSky(x - dx, y - dy), picture.screenOfSky(x + dx, y + dy)];
}

function distance(point, a, b) {
  const length = (b.x - a.x) ** 2 + (b.y - a.y) ** 2;
  const share = length
    ? Math.min(1, Math.max(0, ((point.x - a.x) * (b.x - a.x) + (point.y - a.y) * (b.y - a.y)) / length))
    : 0;
  return Math.hypot(point.x - a.x - share * (b.x - a.x), point.y - a.y - share * (b.y - a.y));
}

/** Draws a path twice, its outline below, so that it is seen on any picture. What is chosen is thick and gold. */
function outlined(picture, isChosen, trace) {
  const { context } = picture;
  const [ink, outline] = inks(picture);
  const gold = picture.isLight ? "#a86f00" : "#ffd54a";
  for (const [colour, width] of [
    [outline, isChosen ? 5 : 3],
    [isChosen ? gold : ink, isChosen ? 2.5 : 1.2],
  ]) {
    context.strokeStyle = colour;
    context.lineWidth = width;
    context.beginPath();
    trace(context);
    context.stroke();
  }
}

function ring(picture, subhalo, isChosen) {
  const { x, y } = picture.screenOfSky(subhalo.x, subhalo.y);
  outlined(picture, isChosen, (context) => context.arc(x, y, radius(subhalo.mass_msun), 0, 2 * Math.PI));
}

const line = (picture, a, b, isChosen) =>
  outlined(picture, isChosen, (context) => {
    context.moveTo(a.x, a.y);
    context.lineTo(b.x, b.y);
  });

const cross = (picture, { x, y }) =>
  outlined(picture, true, (context) => {
    context.moveTo(x - 8, y);
    context.lineTo(x + 8, y);
    context.moveTo(x, y - 8);
    context.lineTo(x, y + 8);
  });
